//! What the WAL of real servers tells of their catalogues is what the servers tell of them themselves.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use pgp_pitr::wal::{CatalogRow, ResourceManager, Transaction};

use crate::support::cluster::{Cluster, Stop};
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::waldump::Segments;

/// A relation as [`SERVER`] prints it.
const SERVER: &str = "
    select format('%s|%s|%s|%s|%s|%s|%s', c.oid, relnamespace, relname, relkind,
                  case reltablespace when 0 then dattablespace else reltablespace end,
                  d.oid, coalesce(pg_relation_filenode(c.oid), 0))
    from pg_class c join pg_database d on datname = current_database()
    where c.oid >= 16384 and relpersistence <> 't' order by c.oid";

/// Relations of every kind, one of them where no other is, and rewrites that name a file anew.
const RELATIONS: &str = "
    create schema sales;
    create table sales.orders (id serial primary key, note text) partition by range (id);
    create table sales.first partition of sales.orders for values from (0) to (100);
    create table \"Ordres passés\" (x int) tablespace elsewhere;
    create view seen as select 1 as one;
    create materialized view kept as select 1 as one with no data;
    create index on sales.first (note);
    create type pair as (a int, b int);
    checkpoint;
    create schema after_checkpoint;
    create table after_checkpoint.one (x text);
    create table after_checkpoint.two (x int);";

#[test]
fn relations_schemas_and_databases_made_since_are_told_as_the_server_tells_them() {
    for major in Major::all() {
        let tablespace = Scratch::new();
        let mut cluster = cluster(major);
        let folder = tablespace.folder("tablespace");
        cluster.sql(&format!(
            "create tablespace elsewhere location '{}'; create database shop; create database there tablespace elsewhere",
            folder.display()
        ));
        for database in ["shop", "there"] {
            cluster.sql_in(database, RELATIONS);
            for (number, way) in ways_to_compress(major).iter().enumerate() {
                cluster.sql_in(
                    database,
                    &format!("{way}; create table first_{number} (x int); checkpoint; create table compressed_{number} (x int)"),
                );
            }
        }
        // The first on a page comes with an image to put in place; a page can be full after the first.
        cluster.sql_in(
            "shop",
            "set wal_consistency_checking = 'heap'; create table first (x int); create table second (x int);
             create table third (x int)",
        );
        let schemas = "select format('%s|%s|%s', d.oid, n.oid, nspname) from pg_namespace n \
                       join pg_database d on datname = current_database() where n.oid >= 16384";
        let expected: BTreeSet<String> = ["shop", "there"]
            .iter()
            .flat_map(|database| [cluster.sql_in(database, SERVER), cluster.sql_in(database, schemas)])
            .chain([cluster
                .sql("select format('%s|%s|%s', oid, datname, dattablespace) from pg_database where oid >= 16384")])
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        cluster.stop(Stop::Fast);

        let mut told = BTreeMap::new();
        let (mut images, mut alone) = (HashSet::new(), 0);
        Segments::read(&cluster).each_record(|record| {
            CatalogRow::of(record, &mut |row| {
                let image = record.blocks().next().and_then(|block| block.image);
                match image {
                    Some(image) => drop(images.insert((image.compression, image.applied))),
                    None => alone += 1,
                }
                let (key, line) = printed(&row);
                told.insert(key, line);
            })
            .unwrap();
        });
        let told: BTreeSet<String> = told
            .into_iter()
            .filter(|((_, _, oid), _)| *oid >= 16384)
            .map(|(_, line)| line)
            .collect();
        let differences: Vec<_> = told.symmetric_difference(&expected).collect();
        assert!(differences.is_empty(), "{major:?}: {differences:#?}");
        // Each way to compress, none, and one to compare with only.
        assert_eq!(images.len(), ways_to_compress(major).len() + 2, "{major:?}: {images:?}");
        assert!(alone >= 20, "{major:?}: {alone}");
    }
}

#[test]
fn commits_tell_which_relations_they_changed_and_rewrites_whose_file_is_new() {
    for major in Major::all() {
        let mut cluster = cluster(major);
        let oids = cluster.sql(
            "create table dropped (x int); create table truncated (x int); create table rewritten (x int);
             select oid from pg_class where relname in ('dropped', 'truncated', 'rewritten') order by relname",
        );
        let oids: Vec<u32> = oids.lines().map(|oid| oid.parse().unwrap()).collect();
        let database: u32 = cluster
            .sql("select oid from pg_database where datname = 'postgres'")
            .parse()
            .unwrap();
        let from = cluster.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
        cluster.sql("truncate truncated; drop table dropped; vacuum full rewritten");
        let file: u32 = cluster.sql("select pg_relation_filenode('rewritten')").parse().unwrap();
        cluster.stop(Stop::Fast);

        let (mut changed, mut rewritten) = (Vec::new(), None);
        Segments::read(&cluster).each_record(|record| {
            CatalogRow::of(record, &mut |row| match row {
                CatalogRow::Relation { name, file, .. } if name.starts_with(b"pg_temp_") => {
                    rewritten = Some((String::from_utf8(name).unwrap(), file.number));
                }
                _ => {}
            })
            .unwrap();
            if record.raw().start() < from || record.raw().manager() != ResourceManager::TRANSACTION {
                return;
            }
            if let Ok(Transaction::End(end)) = Transaction::parse(record)
                && end.committed
            {
                let relations: Vec<_> = end.relations_changed.iter().collect();
                changed.extend((!end.dropped.is_empty()).then_some(relations));
            }
        });
        let [truncated, dropped, whole] = changed.as_slice() else {
            panic!("{major:?}: {changed:?}")
        };
        // In the order of their names: dropped, rewritten, truncated.
        assert_eq!(
            (truncated, dropped),
            (&vec![(database, oids[2])], &vec![(database, oids[0])])
        );
        assert!(whole.contains(&(database, oids[1])), "{major:?}: {whole:?}");
        assert_eq!(rewritten, Some((format!("pg_temp_{}", oids[1]), file)), "{major:?}");
    }
}

fn cluster(major: &'static Major) -> Cluster {
    Cluster::builder(major)
        .initdb_args(["--wal-segsize=1"])
        .conf("fsync", "off")
        .conf("autovacuum", "off")
        // All WAL stays where it is.
        .conf("wal_keep_size", "4GB")
        .build()
}

fn ways_to_compress(major: &Major) -> &'static [&'static str] {
    const WAYS: [&str; 3] = [
        "set wal_compression = on",
        "set wal_compression = lz4",
        "set wal_compression = zstd",
    ];
    if major.number() >= 15 { &WAYS } else { &WAYS[..1] }
}

/// What a row is of (database, catalogue, object), and the row in the words of the server's answer.
fn printed(row: &CatalogRow) -> ((u32, u8, u32), String) {
    let text = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
    match row {
        CatalogRow::Relation {
            oid,
            schema,
            name,
            kind,
            file,
        } => {
            let (tablespace, database, number) = (file.tablespace, file.database, file.number);
            let (name, kind) = (text(name), char::from(*kind));
            (
                (database, 0, *oid),
                format!("{oid}|{schema}|{name}|{kind}|{tablespace}|{database}|{number}"),
            )
        }
        CatalogRow::Schema { database, oid, name } => {
            ((*database, 1, *oid), format!("{database}|{oid}|{}", text(name)))
        }
        CatalogRow::Database { oid, name, tablespace } => ((0, 2, *oid), format!("{oid}|{}|{tablespace}", text(name))),
    }
}
