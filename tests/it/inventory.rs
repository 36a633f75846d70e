//! What a backup carries besides files, gathered from real servers.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use chrono::DateTime;
use pgp_pitr::env::Env;
use pgp_pitr::ops::inventory::{BackupFacts, CapturedFile, CapturedName, FileContent, Gathered, SettingKind, gather};
use pgp_pitr::pg::conninfo::{ConnInfo, Overrides, Surroundings};
use pgp_pitr::pg::{Lsn, SegmentSize, SystemId, Timeline};
use pgp_pitr::replication::ReplicationSession;
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::process::wait_for;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};

/// The way in as superuser, or as another role (`conninfo` has a user already, and the last one counts).
fn conninfo(cluster: &Cluster, more: &str) -> ConnInfo {
    let around = Surroundings {
        var: &|_| None,
        read_file: &|_| Err(std::io::ErrorKind::NotFound.into()),
        exists: &|path| path.exists(),
        os_user: None,
        home: None,
    };
    let text = format!("{} {more}", cluster.conninfo());
    ConnInfo::resolve(Some(&text), &Overrides::default(), &around).unwrap()
}

/// Facts of a backup as it would be of this server.
async fn facts(info: &ConnInfo, env: &Env) -> BackupFacts {
    let mut session = ReplicationSession::connect(info, env).await.unwrap();
    let identity = session.identify_system().await.unwrap();
    BackupFacts {
        id: "20261121T100000Z-1f2e3d4c".parse().unwrap(),
        system: identity.system_id,
        server_version: session.server_version().clone(),
        from_standby: false,
        timeline: Timeline::FIRST,
        start_lsn: Lsn::new(0x200_0028),
        stop_lsn: Lsn::new(0x200_0100),
        started_at: DateTime::UNIX_EPOCH,
        stopped_at: DateTime::UNIX_EPOCH,
        segment_size: SegmentSize::DEFAULT,
        tablespaces: Vec::new(),
        backup_manifest_sha256: None,
    }
}

#[track_caller]
fn gather_from(cluster: &Cluster, more: &str) -> (Gathered, Value) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let env = Env::of_process();
    let gathered = runtime.block_on(async {
        let facts = facts(&conninfo(cluster, ""), &env).await;
        gather(&conninfo(cluster, more), &env, &facts).await
    });
    let manifest = serde_json::from_slice(gathered.manifest_json.as_ref().unwrap()).unwrap();
    (gathered, manifest)
}

/// The entry of this name in a list of the manifest.
#[track_caller]
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let entries = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    let found = entries.iter().find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

const ODD: &str = "it's \"ödd\" %s \\ db";

fn fill(cluster: &Cluster) {
    cluster.sql("create role \"o'dd role\" noinherit valid until '2030-01-01 00:00:00+01'");
    cluster.sql("create role forever login valid until 'infinity' in role \"o'dd role\"");
    cluster.sql("create role later valid until '20000-01-01'");
    cluster.sql("create database closed allow_connections false");
    cluster.sql("create database raw encoding 'SQL_ASCII' locale 'C' template template0");
    cluster.sql("create database \"it's \"\"ödd\"\" %s \\ db\"");
    cluster.sql_in(
        "raw",
        "do $$ begin execute format('create table %I (a int)', convert_from('\\xe9', 'SQL_ASCII')); end $$",
    );
    cluster.sql_in(
        ODD,
        "create schema s;
         create table s.\"Orders\" (id int generated always as identity primary key, note text default 'it''s', gone int,
                                    check (id > 0)) with (fillfactor = 70);
         alter table s.\"Orders\" drop column gone;
         create index late on s.\"Orders\" (note) where note is not null;
         create table p (at date not null) partition by range (at);
         create table p1 partition of p for values from ('2026-01-01') to ('2027-01-01');
         create view v as select 1 as one;
         create unlogged table u ();
         insert into s.\"Orders\" (note) select 'x' from generate_series(1, 100);
         vacuum analyze s.\"Orders\";",
    );
    // Until 14 a process of its own kept the statistics, and took its time.
    wait_for("the vacuum is in the statistics", || {
        let seen = cluster.sql_in(ODD, "select count(last_vacuum) from pg_stat_user_tables");
        (seen == "1").then_some(())
    });
}

#[test]
fn a_cluster_is_described_on_every_major() {
    for major in Major::all() {
        let cluster = Cluster::builder(major)
            .conf("archive_command", "put --key s3cret %p")
            .build();
        fill(&cluster);
        let (gathered, manifest) = gather_from(&cluster, "");
        assert_eq!(gathered.warnings, Vec::<String>::new(), "{major:?}");
        assert!(
            gathered.settings.is_none(),
            "nothing lies outside: {:?}",
            gathered.settings
        );
        assert!(!manifest.to_string().contains("s3cret"), "the command is never told");
        assert_eq!(manifest["version"], 2);
        assert_eq!(manifest["port"], cluster.port().to_string());
        assert_eq!(manifest["server_version"], cluster.sql("show server_version"));
        let number = manifest["server_version_num"].to_string();
        assert_eq!(number, cluster.sql("show server_version_num"));
        let config = &manifest["cluster_config"];
        assert_eq!(config["data_directory"], cluster.data_dir().to_str().unwrap());
        assert_eq!(config["block_size"], 8192);
        assert_eq!(config["lc_collate"], "C");
        assert_eq!(config["archive_command_set"], false, "archive_mode is off");
        described_roles(&manifest);
        described_databases(&manifest);
    }
}

fn described_roles(manifest: &Value) {
    let roles = &manifest["roles"];
    assert_eq!(
        *named(roles, "o'dd role"),
        json!({
            "name": "o'dd role", "superuser": false, "replication": false, "can_login": false, "create_db": false,
            "create_role": false, "inherit": false, "bypass_rls": false, "connection_limit": -1,
            "valid_until": "2029-12-31T23:00:00.000000Z",
        })
    );
    assert_eq!(named(roles, "forever")["member_of"], json!(["o'dd role"]));
    assert_eq!(named(roles, "forever")["valid_until"], Value::Null);
    assert_eq!(named(roles, "later")["valid_until"], Value::Null, "no date of RFC 3339");
    assert_eq!(named(&manifest["tablespaces"], "pg_default")["owner"], "postgres");
}

fn described_databases(manifest: &Value) {
    let databases = &manifest["databases"];
    assert!(named(databases, "closed").get("schemas").is_none());
    assert_eq!(
        named(&named(databases, "raw")["relations"], "\u{FFFD}")["schema"],
        "public"
    );
    let odd = named(databases, ODD);
    assert_eq!(odd["owner"], "postgres");
    assert_eq!(named(&odd["extensions"], "plpgsql")["schema"], "pg_catalog");
    assert_eq!(named(&odd["schemas"], "s")["owner"], "postgres");
    let orders = named(&odd["relations"], "Orders");
    assert_eq!(orders["row_estimate"], 100);
    assert_eq!(orders["column_count"], 2);
    assert_eq!(orders["has_primary_key"], true);
    assert_eq!(orders["storage_options"], json!(["fillfactor=70"]));
    assert!(orders["last_vacuum"].as_str().unwrap().ends_with('Z'), "{orders}");
    assert_eq!(
        orders["columns"],
        json!([
            {"position": 1, "name": "id", "type": "integer", "nullable": false},
            {"position": 2, "name": "note", "type": "text", "nullable": true, "default": "'it''s'::text"},
        ])
    );
    assert_eq!(named(&orders["constraints"], "Orders_pkey")["columns"], json!(["id"]));
    assert_eq!(named(&orders["constraints"], "Orders_id_check")["type"], "c");
    let late = named(&orders["indexes"], "late");
    assert_eq!((&late["is_partial"], &late["method"]), (&json!(true), &json!("btree")));
    assert_eq!(
        named(&orders["indexes"], "Orders_pkey")["constraint_name"],
        "Orders_pkey"
    );
    assert_eq!(named(&odd["relations"], "p")["partition_strategy"], "range");
    assert_eq!(named(&odd["relations"], "p1")["partition_parent"], "public.p");
    assert_eq!(named(&odd["relations"], "v")["kind"], "v");
    assert_eq!(named(&odd["relations"], "u")["persistence"], "u");
    assert_eq!(named(&odd["relations"], "Orders_id_seq")["kind"], "S");
}

/// A server whose configuration lies outside its data directory, as on Debian, with all ways to include.
fn cluster_with_settings_outside(scratch: &Scratch) -> Cluster {
    let mut cluster = Cluster::builder(Major::usual()).build_stopped();
    let etc = scratch.folder("etc pg");
    for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(cluster.data_dir().join(file), etc.join(file)).unwrap();
    }
    let setting = |name: &str| format!("{name} = '{}'\n", etc.join(name.replace("_file", ".conf")).display());
    let mut conf = fs::read_to_string(etc.join("postgresql.conf")).unwrap();
    conf.push_str(&format!("data_directory = '{}'\n", cluster.data_dir().display()));
    conf.push_str(&setting("hba_file").replace("hba.conf", "pg_hba.conf"));
    conf.push_str(&setting("ident_file").replace("ident.conf", "pg_ident.conf"));
    conf.push_str("include_dir 'conf.d'\ninclude 'only includes.conf'\ninclude_if_exists 'missing.conf'\n");
    fs::write(etc.join("postgresql.conf"), conf).unwrap();
    fs::create_dir(etc.join("conf.d")).unwrap();
    fs::write(etc.join("conf.d/10.conf"), "work_mem = '5MB'\n").unwrap();
    fs::write(etc.join("conf.d/ignored.txt"), "nonsense").unwrap();
    fs::write(etc.join("only includes.conf"), "include 'deep.conf'\n").unwrap();
    fs::write(
        etc.join("deep.conf"),
        b"# caf\xE9\nprimary_conninfo = 'password=hunter2'\n",
    )
    .unwrap();
    fs::write(etc.join("dbas"), "postgres\n").unwrap();
    let hba = fs::read_to_string(etc.join("pg_hba.conf")).unwrap();
    fs::write(etc.join("pg_hba.conf"), format!("local all @dbas trust\n{hba}")).unwrap();
    ServerUser::get().give(&etc);
    cluster.start_with("config_file", etc.join("postgresql.conf").to_str().unwrap());
    cluster.start();
    cluster
}

#[test]
fn configuration_outside_the_data_directory_is_captured_and_comes_back() {
    let scratch = Scratch::new();
    let cluster = cluster_with_settings_outside(&scratch);
    let (gathered, _) = gather_from(&cluster, "");
    assert_eq!(gathered.warnings, Vec::<String>::new());
    let settings = gathered.settings.expect("files lie outside");
    assert_eq!(settings.unreadable, []);
    let etc = scratch.join("etc pg");
    let files: BTreeMap<String, &CapturedFile> = settings
        .files
        .iter()
        .map(|file| {
            let name = Path::new(&file.path).strip_prefix(&etc).unwrap();
            (name.display().to_string(), file)
        })
        .collect();
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = [
        "conf.d/10.conf",
        "dbas",
        "deep.conf",
        "only includes.conf",
        "pg_hba.conf",
        "pg_ident.conf",
        "postgresql.conf",
    ];
    assert_eq!(names, expected);
    assert_eq!(files["postgresql.conf"].setting, SettingKind::ConfigFile);
    assert_eq!(files["pg_hba.conf"].setting, SettingKind::HbaFile);
    assert_eq!(files["dbas"].setting, SettingKind::Include);
    assert!(matches!(files["deep.conf"].content, FileContent::Bytes(_)), "no UTF-8");
    let folder = scratch.join("back");
    for written in settings.write_below(&folder, &Env::of_process()).unwrap() {
        let original = Path::new("/").join(written.strip_prefix(&folder).unwrap());
        assert_eq!(
            fs::read(&written).unwrap(),
            fs::read(&original).unwrap(),
            "{original:?}"
        );
        assert_eq!(fs::metadata(&written).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_role_without_rights_gets_what_all_may_see_and_is_told_what_it_lacks() {
    let scratch = Scratch::new();
    let cluster = cluster_with_settings_outside(&scratch);
    cluster.sql("create role plain login");
    cluster.sql("create database private");
    cluster.sql("revoke connect on database private from public");
    cluster.sql("create table t (a int)");
    let (gathered, manifest) = gather_from(&cluster, "user=plain");
    assert!(gathered.settings.is_none());
    assert_eq!(gathered.warnings.len(), 2, "{:?}", gathered.warnings);
    assert!(
        gathered.warnings[0].contains("grant it pg_read_all_settings"),
        "{:?}",
        gathered.warnings
    );
    assert!(gathered.warnings[1].contains("\"private\""), "{:?}", gathered.warnings);
    assert_eq!(
        named(&named(&manifest["databases"], "postgres")["relations"], "t")["kind"],
        "r"
    );
    assert!(named(&manifest["databases"], "private").get("relations").is_none());

    // Places without contents: each file is named, with the server's reason.
    cluster.sql("grant pg_read_all_settings to plain");
    let (half, _) = gather_from(&cluster, "user=plain");
    let settings = half.settings.expect("places are known");
    assert!(settings.files.is_empty());
    assert!(
        settings
            .unreadable
            .iter()
            .any(|file| file.path.ends_with("pg_hba.conf")),
        "{settings:?}"
    );
    assert!(settings.unreadable[0].why.contains("permission denied"), "{settings:?}");

    // What the hint asks for is enough.
    cluster.sql(
        "grant pg_read_server_files to plain;
         grant execute on function pg_read_binary_file(text, bigint, bigint, boolean) to plain;
         grant execute on function pg_ls_dir(text, boolean, boolean) to plain",
    );
    let (whole, _) = gather_from(&cluster, "user=plain");
    assert_eq!(whole.settings.expect("all may be read").files.len(), 7);
}

/// Relations as the captured names have them: in which database, and then as [`PG_CLASS`] prints them.
fn captured_relations(gathered: &Gathered) -> BTreeMap<u32, Vec<String>> {
    let mut databases: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut current = 0;
    CapturedName::read(gathered.relations.as_ref().unwrap(), &mut |name| match name {
        CapturedName::Inside { database, lsn } => {
            assert!(lsn > Lsn::new(0x100_0000));
            current = database;
        }
        CapturedName::Relation {
            oid,
            schema,
            name,
            kind,
            file,
            tablespace,
            owner,
        } => databases
            .entry(current)
            .or_default()
            .push(format!("{oid}|{schema}|{name}|{kind}|{file}|{tablespace}|{owner}")),
        CapturedName::Database { .. } | CapturedName::Schema { .. } => {}
        CapturedName::Format(_) => panic!("only the first line tells the format"),
    })
    .unwrap();
    databases.values_mut().for_each(|relations| relations.sort());
    databases
}

const PG_CLASS: &str = "
    select c.oid, relnamespace, relname, relkind, coalesce(pg_relation_filenode(c.oid), 0), reltablespace,
           coalesce(indrelid, (select oid from pg_class t where t.reltoastrelid = c.oid), 0)
    from pg_class c left join pg_index on indexrelid = c.oid";

#[test]
fn names_and_files_of_all_relations_are_captured_from_each_database() {
    for major in Major::all() {
        let cluster = Cluster::builder(major).build();
        fill(&cluster);
        // Files that are not named by the id of their relation, and a table that only its session knows.
        cluster.sql_in(
            ODD,
            "vacuum full p1; truncate s.\"Orders\"; vacuum full pg_class; reindex table pg_class",
        );
        let mut session = cluster
            .client("psql")
            .args(["-XAtq"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let text = "create temp table mine (x int); select pg_sleep(60);\n";
        session.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        wait_for("the temporary table is there", || {
            let found = cluster.try_sql("select count(*) from pg_class where relname = 'mine'");
            (found.ok()? == "1").then_some(())
        });
        let (gathered, _) = gather_from(&cluster, "");
        let captured = captured_relations(&gathered);
        let names = cluster.sql("select datname from pg_database where datallowconn");
        assert_eq!(captured.len(), names.lines().count(), "{major:?}");
        for name in names.lines() {
            let oid = cluster.sql_in(name, "select oid from pg_database where datname = current_database()");
            let rows = cluster.sql_in(name, &format!("{PG_CLASS} where relpersistence <> 't'"));
            let mut rows: Vec<_> = rows.lines().map(str::to_owned).collect();
            rows.sort();
            assert_eq!(captured[&oid.parse().unwrap()], rows, "{major:?} {name}");
        }
        session.kill().unwrap();
        session.wait().unwrap();
    }
}

#[test]
fn functions_of_users_are_never_called() {
    let cluster = Cluster::new();
    cluster.sql(
        "create schema trap;
         create table trap.sprung ();
         create function trap.pg_get_userbyid(oid) returns name language plpgsql as
             $$ begin raise exception 'called'; end $$;
         create function trap.row_to_json(record) returns json language plpgsql as
             $$ begin raise exception 'called'; end $$;
         alter database postgres set search_path = trap, pg_catalog",
    );
    assert!(
        cluster.try_sql("select pg_get_userbyid(10)").is_err(),
        "the trap is set"
    );
    let (gathered, manifest) = gather_from(&cluster, "");
    assert_eq!(gathered.warnings, Vec::<String>::new());
    let tables = &named(&manifest["databases"], "postgres")["relations"];
    assert_eq!(named(tables, "sprung")["owner"], "postgres");
}

#[test]
fn of_a_database_with_too_many_tables_the_first_are_told_and_so_is_the_cut() {
    let cluster = Cluster::new();
    cluster.sql(
        "do $$ begin
             for n in 1..5001 loop
                 execute format('create table t%s ()', lpad(n::text, 4, '0'));
                 if n % 500 = 0 then commit; end if;
             end loop;
         end $$",
    );
    let (gathered, manifest) = gather_from(&cluster, "");
    assert_eq!(gathered.warnings.len(), 1, "{:?}", gathered.warnings);
    assert!(
        gathered.warnings[0].contains("only the first 5000"),
        "{:?}",
        gathered.warnings
    );
    let tables = named(&manifest["databases"], "postgres")["relations"]
        .as_array()
        .unwrap();
    assert_eq!(tables.len(), 5000);
    assert_eq!(
        (&tables[0]["name"], &tables[4999]["name"]),
        (&json!("t0001"), &json!("t5000"))
    );
}

/// A session that holds a lock on everything that reads a table.
fn lock(cluster: &Cluster, table: &str) -> Child {
    let mut psql = cluster
        .client("psql")
        .args(["-XAtq"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("begin; lock table {table}, pg_attrdef in access exclusive mode; select pg_sleep(60);\n");
    psql.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    wait_for("the table is locked", || {
        let held = cluster.try_sql("select count(*) > 0 from pg_locks where mode = 'AccessExclusiveLock' and granted");
        (held.ok()? == "t").then_some(())
    });
    psql
}

#[test]
fn a_lock_holds_nothing_up_for_long() {
    let cluster = Cluster::new();
    cluster.sql("create table t (a int default 1)");
    let mut psql = lock(&cluster, "t");
    let since = Instant::now();
    let (gathered, manifest) = gather_from(&cluster, "");
    assert!(since.elapsed() < Duration::from_secs(20), "took {:?}", since.elapsed());
    psql.kill().unwrap();
    psql.wait().unwrap();
    assert_eq!(gathered.warnings.len(), 1, "{:?}", gathered.warnings);
    assert!(gathered.warnings[0].contains("lock timeout"), "{:?}", gathered.warnings);
    assert!(
        named(&manifest["databases"], "postgres").get("schemas").is_some(),
        "the rest is there"
    );
}

#[test]
fn without_a_server_or_at_another_one_the_backup_still_has_a_manifest() {
    let (first, second) = (Cluster::new(), Cluster::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let env = Env::of_process();
    let mut of_first = runtime.block_on(facts(&conninfo(&first, ""), &env));
    for more in ["port=1", &format!("host={} port={}", "127.0.0.1", second.port())] {
        let gathered = runtime.block_on(gather(&conninfo(&first, more), &env, &of_first));
        let manifest: Value = serde_json::from_slice(&gathered.manifest_json.unwrap()).unwrap();
        assert_eq!(manifest["cluster_system_identifier"], of_first.system.to_string());
        assert!(manifest.get("databases").is_none());
        assert_eq!(gathered.warnings.len(), 1, "{:?}", gathered.warnings);
    }
    // A role's own name is rarely that of a database.
    first.sql("create role backup login superuser");
    let gathered_in_postgres = gather_from(&first, "user=backup dbname=backup").0;
    assert_eq!(gathered_in_postgres.warnings, Vec::<String>::new());
    of_first.system = SystemId::new(7);
    let elsewhere = runtime.block_on(gather(&conninfo(&first, ""), &env, &of_first));
    assert!(
        elsewhere.warnings[0].contains("another cluster"),
        "{:?}",
        elsewhere.warnings
    );
}
