//! What one database holds: extensions, schemas, and relations with their columns, constraints and
//! indexes. Names and definitions only; nothing of any row.

use super::ask::{self, Budget, Warnings};
use super::manifest::{Database, Extension, Relation, Schema};
use crate::replication::SqlSession;

/// Relations told of one database: more are not browsed by hand, and to describe so many takes the
/// server a second.
const RELATIONS: usize = 5_000;

const EXTENSIONS: &str = "
SELECT row_to_json(e)::text
  FROM (SELECT extname AS name, extversion AS version, nspname AS schema
          FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace ORDER BY extname) e";

const SCHEMAS: &str = "
SELECT row_to_json(s)::text
  FROM (SELECT nspname AS name, pg_get_userbyid(nspowner) AS owner
          FROM pg_namespace
         WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY nspname) s";

/// Fills in what the database of this session holds.
pub(super) async fn describe(
    session: &SqlSession,
    database: &mut Database,
    budget: &mut Budget,
    warnings: &mut Warnings,
) {
    let lacks = |what: &str| {
        format!(
            "manifest.json does not list all {what} of database \"{}\"",
            database.name
        )
    };
    let (extensions, trouble) = ask::rows::<Extension>(session, EXTENSIONS, budget).await;
    warnings.add_trouble(&lacks("extensions"), trouble);
    let (schemas, trouble) = ask::rows::<Schema>(session, SCHEMAS, budget).await;
    warnings.add_trouble(&lacks("schemas"), trouble);
    let (mut relations, trouble) = ask::rows::<Relation>(session, &relations_query(RELATIONS + 1), budget).await;
    warnings.add_trouble(&lacks("tables"), trouble);
    if relations.len() > RELATIONS {
        relations.truncate(RELATIONS);
        warnings.add(format!("{}: only the first {RELATIONS}", lacks("tables")));
    }
    (database.extensions, database.schemas, database.relations) = (extensions, schemas, relations);
}

/// The first `limit` relations by schema and name. They are chosen before they are described, so that
/// a database with a million tables costs no more than one with `limit`.
fn relations_query(limit: usize) -> String {
    let moment = |kind: &str| {
        format!(
            "to_char(greatest(pg_stat_get_last_{kind}_time(c.oid), pg_stat_get_last_auto{kind}_time(c.oid)), \
             'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        )
    };
    let (last_vacuum, last_analyze) = (moment("vacuum"), moment("analyze"));
    format!(
        "
SELECT row_to_json(r)::text
  FROM (SELECT c.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner,
               c.relpersistence::text AS persistence, c.relkind::text AS kind,
               (SELECT spcname FROM pg_tablespace t WHERE t.oid = c.reltablespace) AS tablespace,
               c.reltuples::bigint AS row_estimate,
               coalesce(pg_stat_get_live_tuples(c.oid), 0) AS live_row_estimate,
               (SELECT count(*) FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS column_count,
               EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS has_primary_key,
               c.relhastriggers AS has_triggers, c.relrowsecurity AS rls_enabled,
               c.relforcerowsecurity AS rls_forced, c.relispartition AS is_partition,
               (SELECT format('%I.%I', pn.nspname, p.relname)
                  FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
                                     JOIN pg_namespace pn ON pn.oid = p.relnamespace
                 WHERE h.inhrelid = c.oid AND c.relispartition) AS partition_parent,
               (SELECT CASE p.partstrat WHEN 'r' THEN 'range' WHEN 'l' THEN 'list' WHEN 'h' THEN 'hash' END
                  FROM pg_partitioned_table p WHERE p.partrelid = c.oid) AS partition_strategy,
               c.reloptions AS storage_options,
               {last_vacuum} AS last_vacuum, {last_analyze} AS last_analyze,
               (SELECT json_agg(a ORDER BY a.position)
                  FROM (SELECT a.attnum AS position, a.attname AS name,
                               format_type(a.atttypid, a.atttypmod) AS type, NOT a.attnotnull AS nullable,
                               pg_get_expr(d.adbin, d.adrelid) AS default
                          FROM pg_attribute a
                          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                           AND c.relkind <> 'S') a) AS columns,
               (SELECT json_agg(o ORDER BY o.name)
                  FROM (SELECT o.conname AS name, o.contype::text AS type,
                               (SELECT json_agg(a.attname ORDER BY k.place)
                                  FROM unnest(o.conkey) WITH ORDINALITY k (attnum, place)
                                  JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.attnum) AS columns
                          FROM pg_constraint o WHERE o.conrelid = c.oid) o) AS constraints,
               (SELECT json_agg(x ORDER BY x.name)
                  FROM (SELECT x.relname AS name, m.amname AS method, pg_get_indexdef(i.indexrelid) AS definition,
                               i.indisunique AS is_unique, i.indisprimary AS is_primary, i.indisvalid AS is_valid,
                               i.indpred IS NOT NULL AS is_partial,
                               (SELECT o.conname FROM pg_constraint o
                                 WHERE o.conindid = i.indexrelid AND o.conrelid = c.oid
                                   AND o.contype IN ('p', 'u', 'x')) AS constraint_name
                          FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
                         WHERE i.indrelid = c.oid) x) AS indexes
          FROM (SELECT n.nspname, c.*
                  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
                   AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                 ORDER BY n.nspname, c.relname LIMIT {limit}) c) r"
    )
}
