//! What is told when something is asked for: a transaction, a table, a stretch of the WAL, a moment.

use super::*;

/// The id of the transaction that runs these statements, in the database `postgres`.
fn xid_of(cluster: &Cluster, statements: &str) -> String {
    let answer = cluster.sql(&format!("begin; select pg_current_xact_id(); {statements}; commit"));
    answer.lines().next().expect("an id").to_owned()
}

fn relation<'a>(event: &'a Value, name: &str) -> &'a Value {
    let relations = event["relations"].as_array().expect("a list");
    let found = relations.iter().find(|relation| relation["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {event:#}"))
}

fn rows(event: &Value, name: &str) -> (u64, u64, u64) {
    let relation = relation(event, name);
    let number = |field: &str| relation[field].as_u64().expect("a number");
    (number("inserts"), number("updates"), number("deletes"))
}

/// Bytes of a transaction's records, and of those that belong to it, as the server's own tool tells them.
fn wal_bytes(cluster: &Cluster, from: Lsn, to: Lsn, xids: &[&str]) -> u64 {
    let dump = Answer::of(
        cluster
            .tool("pg_waldump")
            .arg("-p")
            .arg(cluster.data_dir().join("pg_wal"))
            .args(["-s", &from.to_string(), "-e", &to.to_string()]),
    );
    let lengths = dump.stdout.lines().filter_map(|line| {
        let field = |name: &str| {
            let rest = line.split_once(name)?.1;
            rest.trim_start().split([',', ' ']).next()
        };
        let total: u64 = line
            .split_once("len (rec/tot):")?
            .1
            .split_once('/')?
            .1
            .split(',')
            .next()?
            .trim()
            .parse()
            .ok()?;
        xids.contains(&field("tx:")?).then_some(total)
    });
    lengths.sum()
}

#[test]
fn a_transaction_is_told_exactly_however_small_or_large() {
    let vault = Vault::folder();
    let cluster = vault.protect(
        quiet(Major::usual())
            .initdb_args(["--wal-segsize=1"])
            .conf("wal_level", "replica"),
    );
    cluster.sql("create table a (x int, words text); create table b (x int); create table c (x int)");
    vault.backup(&cluster);
    let from = here(&cluster);
    let small = xid_of(
        &cluster,
        "insert into a values (1, 'one'), (2, 'two'); update a set words = 'more' where x = 1",
    );
    // Over some ten segments, so that records cross from one into the next.
    let large = xid_of(
        &cluster,
        "insert into a select n, repeat('words', 40) from generate_series(3, 20002) n; insert into b values (1);
         delete from a where x > 15002",
    );
    // Subtransactions, one of which is rolled back, with rows in several segments.
    let nested = cluster.sql(
        "begin; insert into c values (0); select pg_current_xact_id();
         savepoint one; insert into c select generate_series(1, 9000); select txid_current_if_assigned() is null;
         savepoint two; insert into c select generate_series(1, 5); rollback to two;
         delete from c where x <= 1200; release one; insert into c select generate_series(1, 9000); commit",
    );
    let nested = nested.lines().next().expect("an id").to_owned();
    let aborted =
        cluster.sql("begin; select pg_current_xact_id(); insert into b select generate_series(1, 7); rollback");
    cluster.sql("begin; insert into b values (5); prepare transaction 'still there'");
    let prepared = cluster.sql("select transaction from pg_prepared_xacts");
    let to = here(&cluster);
    cluster.archive_now();

    let answer = find(&vault, &["--xid", &small]);
    let [event] = events(&answer) else { panic!("{answer:#}") };
    assert_eq!(
        (event["kind"].as_str(), rows(event, "public.a")),
        (Some("commit"), (2, 1, 0))
    );
    assert_eq!(event["wal_bytes"], wal_bytes(&cluster, from, to, &[&small]));

    let answer = find(&vault, &["--xid", &large]);
    let [commit, mass] = events(&answer) else {
        panic!("{answer:#}")
    };
    assert_eq!(
        (rows(commit, "public.a"), rows(commit, "public.b")),
        ((20000, 0, 5000), (1, 0, 0))
    );
    assert_eq!(
        (mass["kind"].as_str(), rows(mass, "public.a")),
        (Some("mass_delete"), (20000, 0, 5000))
    );
    assert_eq!(commit["wal_bytes"], wal_bytes(&cluster, from, to, &[&large]));
    assert_eq!(commit["complete"], true);
    assert_eq!(
        (&commit["lsn"], &commit["end_lsn"], &commit["at"]),
        (&mass["lsn"], &mass["end_lsn"], &mass["at"])
    );

    let nested_sub = (nested.parse::<u64>().expect("a number") + 1).to_string();
    for asked in [&nested, &nested_sub] {
        let answer = find(&vault, &["--xid", asked]);
        let commit = of_kind(&answer, "commit")[0];
        assert_eq!(commit["xid"].to_string(), nested);
        assert_eq!(rows(commit, "public.c"), (18001, 0, 1201));
        // After the way back to it, a savepoint is another subtransaction.
        let again = (nested.parse::<u64>().expect("a number") + 3).to_string();
        let xids: Vec<&str> = vec![&nested, &nested_sub, &again];
        assert_eq!(commit["wal_bytes"], wal_bytes(&cluster, from, to, &xids));
        assert_eq!(of_kind(&answer, "mass_delete").len(), 1);
    }
    let answer = find(&vault, &["--xid", &aborted]);
    assert_eq!(short(&answer), ["abort public.b"]);
    let answer = vault.pitr(["find", "--json", "--xid", &prepared]).with_code(0);
    assert_eq!(short(&answer.json()), ["prepare"]);
    assert!(
        answer
            .stderr
            .contains("is prepared and neither committed nor rolled back"),
        "{}",
        answer.stderr
    );
    let answer = vault.pitr(["find", "--json", "--xid", "4000000"]).with_code(0);
    assert_eq!(events(&answer.json()).len(), 0);
    assert!(
        answer.stderr.contains("transaction 4000000 is not in the WAL"),
        "{}",
        answer.stderr
    );
    cluster.sql("rollback prepared 'still there'");
}

#[test]
fn a_table_a_stretch_and_a_moment_tell_every_transaction() {
    let vault = Vault::folder();
    let cluster = vault.protect(quiet(Major::newest()));
    cluster.sql("create database shop");
    for database in ["postgres", "shop"] {
        cluster.sql_in(
            database,
            "create table orders (id int primary key, n int); create table other (x int)",
        );
    }
    vault.backup(&cluster);
    let insert = "insert into orders select n, n from generate_series(1, 3) n";
    let start = here(&cluster);
    cluster.sql(insert);
    cluster.sql("update orders set n = 0 where id = 1");
    let middle = here(&cluster);
    cluster.sql_in("shop", insert);
    cluster.sql("begin; delete from orders; rollback");
    cluster.sql("insert into other values (1)");
    cluster.sql("truncate orders; insert into orders values (7, 7)");
    let moment = cluster.sql("select clock_timestamp()");
    cluster.sql("create table later (x int); insert into later values (1); drop table later");
    let end = here(&cluster);
    cluster.archive_now();

    let answer = find(&vault, &["--relation", "orders", "--database", "postgres"]);
    assert_eq!(
        short(&answer),
        [
            "commit public.orders",
            "commit public.orders",
            "abort public.orders",
            "commit",
            "truncate public.orders",
            "commit public.orders",
        ]
    );
    let counted: Vec<_> = [0, 1, 2, 5]
        .iter()
        .map(|number| rows(&events(&answer)[*number], "public.orders"))
        .collect();
    assert_eq!(counted, [(3, 0, 0), (0, 1, 0), (0, 0, 3), (1, 0, 0)]);
    let shop = find(&vault, &["--relation", "public.orders", "--database", "shop"]);
    assert_eq!(short(&shop), ["commit public.orders"]);
    assert_eq!(events(&shop)[0]["database"], "shop");
    let both = find(&vault, &["--relation", "public.orders"]);
    assert_eq!(events(&both).len(), events(&answer).len() + 1);
    // Made after the backup, and gone again.
    let later = find(&vault, &["--relation", "later"]);
    assert!(short(&later).contains(&"drop public.later".to_owned()), "{later:#}");

    let between = |from: &str, to: &str| find(&vault, &["--between", from, to]);
    let first = between(&start.to_string(), &middle.to_string());
    assert_eq!(short(&first), ["commit public.orders", "commit public.orders"]);
    let all = between(&start.to_string(), &end.to_string());
    assert_eq!(of_kind(&all, "commit").len(), 9, "{all:#}");
    assert_eq!(
        short(&find(
            &vault,
            &["--truncate", "--between", &start.to_string(), &middle.to_string()]
        )),
        Vec::<String>::new()
    );
    let around = find(&vault, &["--around", &moment]);
    assert!(of_kind(&around, "commit").len() >= 8);
    let hour = cluster.sql("select clock_timestamp() - interval '1 hour'");
    let by_time = between(&hour, &moment);
    assert!(
        short(&by_time).ends_with(&[
            "commit".to_owned(),
            "truncate public.orders".to_owned(),
            "commit public.orders".to_owned()
        ]),
        "{by_time:#}"
    );
    assert!(short(&around).contains(&"truncate public.orders".to_owned()));
    // Far from everything, the nearest commit is told.
    let far = find(&vault, &["--around", "2001-01-01 00:00:00Z"]);
    assert_eq!(of_kind(&far, "commit").len(), 1, "{far:#}");
}
