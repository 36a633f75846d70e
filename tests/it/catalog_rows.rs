//! What the WAL of real servers tells of their catalogues is what the servers tell of them themselves.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgp_pitr::env::Env;
use pgp_pitr::ops::names::Names;
use pgp_pitr::pg::Lsn;
use pgp_pitr::repo::{ClusterInfo, Repository, backup};
use pgp_pitr::store::{self, S3Settings};
use pgp_pitr::wal::{CatalogRow, RelFile, RelFork, ResourceManager, StorageChange, Transaction};

use crate::support::cluster::{Cluster, Stop};
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;
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

/// What gives relations new files.
const NEW_FILES: &str = "
    create table a (id int primary key, note text);
    create table b (id serial primary key, note text unique);
    create table c (x int);
    create materialized view m as select g, g::text note from generate_series(1, 10) g;
    insert into a select g, repeat('x', 5000) from generate_series(1, 10) g;
    insert into c select generate_series(1, 10);
    create table kept (x int); create table rolled (x int);
    truncate a, b;
    truncate c, kept;
    begin; truncate kept; savepoint x; truncate c; release x; truncate a; commit;
    reindex table b;
    alter table b set tablespace elsewhere;
    truncate b restart identity;
    vacuum full a;
    truncate a;
    alter table c alter x type bigint;
    refresh materialized view m;
    cluster b using b_pkey;
    begin; truncate rolled; rollback;
    begin; create table made (x text); truncate kept; commit;
    begin; savepoint x; truncate kept; rollback to x; truncate rolled; commit;
    begin; truncate kept; drop table c; commit;";

#[test]
fn relations_keep_their_names_whatever_files_they_are_given() {
    for major in Major::all() {
        let tablespace = Scratch::new();
        let mut cluster = cluster(major);
        let folder = tablespace.folder("tablespace");
        cluster.sql(&format!("create tablespace elsewhere location '{}'", folder.display()));
        cluster.sql(NEW_FILES);
        let relations = cluster.sql(
            "select c.oid, relnamespace::regnamespace || '.' || relname, pg_relation_filenode(c.oid),
                    case reltablespace when 0 then 1663 else reltablespace end, d.oid,
                    (select t.oid from pg_class t
                     where reltoastrelid in (c.oid, (select indrelid from pg_index where indexrelid = c.oid)))
             from pg_class c join pg_database d on datname = current_database()
             where c.oid >= 16384 and pg_relation_filenode(c.oid) is not null",
        );
        cluster.stop(Stop::Fast);
        let names = names_of(&cluster);
        let mut nameless = Vec::new();
        for line in relations.lines() {
            let [oid, name, number, tablespace, database, table] = line.split('|').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let file = RelFile {
                tablespace: tablespace.parse().unwrap(),
                database: database.parse().unwrap(),
                number: number.parse().unwrap(),
            };
            match (names.relation(&file, Lsn::new(u64::MAX)), table.parse::<u32>()) {
                (None, _) => nameless.push(name),
                // TOAST of a rewrite keeps the name that it was made with.
                (Some(known), Ok(table)) => assert_eq!(known.owner, Some(table), "{major:?}: {line}"),
                (Some(known), Err(_)) => {
                    let found = (known.oid.to_string(), known.name);
                    assert_eq!(found, (oid.to_owned(), name.to_owned()), "{major:?}: {line}");
                }
            }
        }
        // One table was emptied and another dropped in one transaction: which one, the commit does not tell.
        assert_eq!(nameless, ["public.kept"], "{major:?}");
    }
}

#[test]
fn names_captured_with_backups_are_put_together_and_a_damaged_capture_is_told() {
    let vault = Vault::folder();
    let cluster = vault.protect(Cluster::builder(Major::usual()));
    cluster.sql("create table orders (x int)");
    vault.backup(&cluster);
    let before = file_of(&cluster, "orders");
    cluster.sql("truncate orders; create table lines (x int)");
    let between: Lsn = cluster.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    cluster.sql("alter table orders rename to purchases");
    let second = vault.backup(&cluster);
    let after = file_of(&cluster, "purchases");

    let names = captured(&vault);
    assert_eq!(names.warnings(), Vec::<String>::new());
    let name = |names: &Names, file, at| names.relation(file, at).map(|known| known.name);
    assert_eq!(
        name(&names, &before, Lsn::new(u64::MAX)).as_deref(),
        Some("public.orders")
    );
    assert_eq!(name(&names, &after, between).as_deref(), Some("public.purchases"));
    assert_eq!(names.database(before.database), Some("postgres"));
    let oid = names.relation(&before, between).unwrap().oid;
    assert_eq!(
        names.files_of("public.purchases", Some("postgres")),
        [(before, oid), (after, oid)]
    );

    let part = format!("backups/{}/relations.jsonl.zst", second["id"].as_str().unwrap());
    let part = find(Path::new(vault.repo()), &part);
    let mut bytes = fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&part).unwrap();
    fs::write(&part, bytes).unwrap();
    let names = captured(&vault);
    assert_eq!(names.warnings().len(), 1, "{:?}", names.warnings());
    assert!(
        names.warnings()[0].contains("fails its checksum"),
        "{:?}",
        names.warnings()
    );
    assert_eq!(name(&names, &before, between).as_deref(), Some("public.orders"));
    assert_eq!(name(&names, &after, between), None);
}

fn file_of(cluster: &Cluster, table: &str) -> RelFile {
    let text = cluster.sql(&format!(
        "select oid, pg_relation_filenode('{table}') from pg_database where datname = current_database()"
    ));
    let (database, number) = text.split_once('|').unwrap();
    RelFile {
        tablespace: 1663,
        database: database.parse().unwrap(),
        number: number.parse().unwrap(),
    }
}

/// A file below the folder of the one cluster in a repository.
fn find(repository: &Path, end: &str) -> PathBuf {
    let mut clusters = fs::read_dir(repository.join("clusters")).unwrap();
    let cluster = clusters.next().unwrap().unwrap().path();
    cluster.join(end)
}

fn captured(vault: &Vault) -> Names {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let url = vault.repo().to_str().unwrap().parse().unwrap();
        let store = store::open(&url, &S3Settings::default(), &Arc::new(Env::of_process())).unwrap();
        let repository = Repository::open(&store).await.unwrap();
        let system = ClusterInfo::systems(&repository).await.unwrap()[0];
        let mut records = Vec::new();
        for id in backup::ids(&repository, system).await.unwrap() {
            records.extend(backup::read(&repository, system, &id).await.unwrap());
        }
        Names::captured(&repository, &records).await
    })
}

/// What the WAL of a cluster tells of names.
fn names_of(cluster: &Cluster) -> Names {
    let mut names = Names::default();
    let mut created: BTreeMap<u32, Vec<RelFile>> = BTreeMap::new();
    Segments::read(cluster).each_record(|record| {
        let (at, xid) = (record.raw().start(), record.raw().xid());
        CatalogRow::of(record, &mut |row| names.learn_row(at, &row)).unwrap();
        match record.raw().manager() {
            ResourceManager::STORAGE => {
                if let StorageChange::FileCreated {
                    file,
                    fork: RelFork::Main,
                } = StorageChange::parse(record).unwrap()
                {
                    created.entry(xid.number()).or_default().push(file);
                }
            }
            ResourceManager::TRANSACTION => {
                if let Transaction::End(end) = Transaction::parse(record).unwrap()
                    && end.committed
                {
                    let all = [end.xid].into_iter().chain(end.subtransactions.iter());
                    let new: Vec<_> = all.filter_map(|xid| created.remove(&xid.number())).flatten().collect();
                    names.learn_new_files(at, &new, &end.dropped.iter().collect::<Vec<_>>());
                }
            }
            _ => {}
        }
    });
    names
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
        CatalogRow::Mapped { database, oid, file } => ((*database, 3, *oid), format!("{oid}|{}", file.number)),
        CatalogRow::Database { oid, name, tablespace } => ((0, 2, *oid), format!("{oid}|{}|{tablespace}", text(name))),
    }
}
