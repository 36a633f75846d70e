//! What the whole cluster shares: settings, roles, tablespaces, the list of databases.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::ask::{self, Budget, Warnings};
use super::manifest::{ClusterConfig, Database, Manifest, Role, Tablespace};
use crate::replication::SqlSession;

/// Settings by name; those that the role may not see are absent.
const SETTINGS: &str = "
SELECT json_object_agg(name, setting)::text
  FROM pg_settings
 WHERE name IN ('data_directory', 'TimeZone', 'wal_level', 'server_encoding', 'shared_preload_libraries',
                'max_connections', 'block_size', 'wal_block_size', 'data_checksums', 'archive_mode', 'archive_command',
                'server_version', 'server_version_num')";

/// The locale of the database asked, which is where `lc_collate` and `lc_ctype` came from until 15.
const STATE: &str = "
SELECT row_to_json(s)::text
  FROM (SELECT pg_is_in_recovery() AS in_recovery, datcollate AS lc_collate, datctype AS lc_ctype
          FROM pg_database WHERE datname = current_database()) s";

/// Without the server's own roles (`pg_…`), which are the same everywhere. Moments that have no date
/// in RFC 3339 are told as none.
const ROLES: &str = "
SELECT row_to_json(r)::text
  FROM (SELECT rolname AS name, rolsuper AS superuser, rolreplication AS replication, rolcanlogin AS can_login,
               rolcreatedb AS create_db, rolcreaterole AS create_role, rolinherit AS inherit,
               rolbypassrls AS bypass_rls, rolconnlimit AS connection_limit,
               CASE WHEN isfinite(rolvaliduntil) AND rolvaliduntil >= '0001-01-01 UTC' AND rolvaliduntil < '10000-01-01 UTC'
                    THEN to_char(rolvaliduntil, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') END AS valid_until,
               (SELECT json_agg(g.rolname ORDER BY g.rolname)
                  FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                 WHERE m.member = roles.oid) AS member_of
          FROM pg_roles roles
         WHERE rolname !~ '^pg_'
         ORDER BY rolname) r";

const TABLESPACES: &str = "
SELECT row_to_json(t)::text
  FROM (SELECT oid::bigint AS oid, spcname AS name, pg_get_userbyid(spcowner) AS owner,
               pg_tablespace_location(oid) AS location, spcoptions AS options
          FROM pg_tablespace ORDER BY spcname) t";

const DATABASES: &str = "
SELECT row_to_json(d)::text
  FROM (SELECT datname AS name, pg_get_userbyid(datdba) AS owner, pg_encoding_to_char(encoding) AS encoding,
               datcollate AS collate, datctype AS ctype, datallowconn AS allow_conn, datistemplate AS is_template,
               (SELECT spcname FROM pg_tablespace WHERE oid = dattablespace) AS default_tablespace,
               datconnlimit AS connection_limit
          FROM pg_database
         WHERE datconnlimit <> -2 -- left behind by a DROP DATABASE that failed
         ORDER BY datname) d";

/// What the server is at this moment.
#[derive(Debug, Default, Deserialize)]
struct State {
    in_recovery: bool,
    lc_collate: String,
    lc_ctype: String,
}

/// A tablespace with the number that a backup knows it by.
#[derive(Debug, Deserialize)]
struct NumberedTablespace {
    oid: u32,
    #[serde(flatten)]
    tablespace: Tablespace,
}

/// Fills in what the cluster shares.
pub(super) async fn describe(
    session: &SqlSession,
    manifest: &mut Manifest,
    budget: &mut Budget,
    warnings: &mut Warnings,
) {
    manifest.reached(session.address());
    let settings: BTreeMap<String, Option<String>> = match ask::row(session, SETTINGS, budget).await {
        Ok(settings) => settings,
        Err(trouble) => return warnings.add_trouble("manifest.json tells nothing of the cluster", Some(trouble)),
    };
    let state: State = match ask::row(session, STATE, budget).await {
        Ok(state) => state,
        Err(trouble) => return warnings.add_trouble("manifest.json tells nothing of the cluster", Some(trouble)),
    };
    manifest.in_recovery = state.in_recovery;
    manifest.cluster_config = Some(config(&settings, state));
    let (roles, trouble) = ask::rows::<Role>(session, ROLES, budget).await;
    manifest.roles = roles;
    warnings.add_trouble("manifest.json does not list all roles", trouble);
    let (tablespaces, trouble) = ask::rows::<NumberedTablespace>(session, TABLESPACES, budget).await;
    for NumberedTablespace { oid, tablespace } in tablespaces {
        manifest.name_tablespace(oid, &tablespace.name);
        manifest.tablespaces.push(tablespace);
    }
    warnings.add_trouble("manifest.json does not list all tablespaces", trouble);
    let (databases, trouble) = ask::rows::<Database>(session, DATABASES, budget).await;
    manifest.databases = databases;
    warnings.add_trouble("manifest.json does not list all databases", trouble);
}

fn config(settings: &BTreeMap<String, Option<String>>, state: State) -> ClusterConfig {
    let text = |name: &str| settings.get(name).cloned().flatten().unwrap_or_default();
    let number = |name: &str| text(name).parse().unwrap_or(0);
    ClusterConfig {
        data_directory: text("data_directory"),
        timezone: text("TimeZone"),
        wal_level: text("wal_level"),
        server_encoding: text("server_encoding"),
        shared_preload_libraries: text("shared_preload_libraries"),
        lc_collate: state.lc_collate,
        lc_ctype: state.lc_ctype,
        archive_mode: text("archive_mode"),
        max_connections: number("max_connections"),
        block_size: number("block_size"),
        wal_block_size: number("wal_block_size"),
        data_checksums: text("data_checksums") == "on",
        // The server says "(disabled)" where archive_mode is off.
        archive_command_set: !matches!(text("archive_command").as_str(), "" | "(disabled)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_role_may_not_see_is_left_out_and_the_command_is_never_told() {
        let settings = |command: &str| {
            BTreeMap::from([
                ("archive_command".to_owned(), Some(command.to_owned())),
                ("max_connections".to_owned(), Some("100".to_owned())),
            ])
        };
        let told = |command| serde_json::to_value(config(&settings(command), State::default())).unwrap();
        assert_eq!(
            told("put --key s3cret %p"),
            serde_json::json!({"max_connections": 100, "data_checksums": false, "archive_command_set": true})
        );
        for off in ["", "(disabled)"] {
            assert_eq!(told(off)["archive_command_set"], false);
        }
    }
}
