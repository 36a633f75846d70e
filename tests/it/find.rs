//! `find` on real servers of each major: what lost rows is found and named, nothing else is, and the command it prints
//! brings the rows back.

mod asked;
mod borders;
mod nothing;
mod told;

use std::path::Path;
use std::thread;

use pgp_pitr::pg::Lsn;
use serde_json::Value;

use crate::support::cluster::{Builder, Cluster, Recovered};
use crate::support::program::{Answer, Program};
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

/// A server that does nothing on its own, and keeps no file twice on the disk for long.
fn quiet(major: &'static Major) -> Builder {
    Cluster::builder(major)
        .conf("autovacuum", "off")
        .conf("fsync", "off")
        .conf("max_prepared_transactions", "5")
}

/// What `find --json` answers with these arguments.
fn find(vault: &Vault, arguments: &[&str]) -> Value {
    let all = ["find", "--json"].iter().chain(arguments);
    vault.pitr(all).with_code(0).json()
}

fn events(answer: &Value) -> &[Value] {
    answer["events"].as_array().expect("a list")
}

/// Kind and relations of each event, without the restore points of `archive_now`.
fn short(answer: &Value) -> Vec<String> {
    let told = events(answer).iter().filter(|event| event["name"] != "archive_now");
    told.map(|event| {
        let relations = event["relations"].as_array().expect("a list").iter();
        let names: Vec<&str> = relations
            .map(|relation| relation["name"].as_str().expect("a name"))
            .collect();
        format!("{} {}", event["kind"].as_str().expect("a kind"), names.join(" "))
            .trim_end()
            .to_owned()
    })
    .collect()
}

fn of_kind<'a>(answer: &'a Value, kind: &str) -> Vec<&'a Value> {
    events(answer).iter().filter(|event| event["kind"] == kind).collect()
}

fn lsn(value: &Value) -> Lsn {
    value.as_str().expect("an LSN").parse().expect("an LSN")
}

fn here(cluster: &Cluster) -> Lsn {
    cluster
        .sql("select pg_current_wal_insert_lsn()")
        .parse()
        .expect("an LSN")
}

/// Follows the command that an event tells, up to a server that takes writes.
fn followed(major: &'static Major, event: &Value, to: &Path) -> Cluster {
    let command = event["command"].as_str().expect("a command");
    let command = command.replace("/path/to/new/directory", to.to_str().expect("UTF-8"));
    let programs = Program::Pitr.path().parent().expect("a folder").display().to_string();
    Answer::of(
        ServerUser::get()
            .command("/bin/sh")
            .env("PATH", format!("{programs}:/usr/bin:/bin"))
            .args(["-c", &format!("{command} --archive off")]),
    )
    .with_code(0);
    let mut cluster = Cluster::on_directory(major, to);
    assert_eq!(cluster.recover(), Recovered::Paused);
    cluster.promote();
    cluster
}

#[test]
fn what_was_lost_comes_back_by_the_command_that_find_prints_on_each_major() {
    thread::scope(|scope| {
        for major in Major::all() {
            scope.spawn(move || lost_and_brought_back(major));
        }
    });
}

fn lost_and_brought_back(major: &'static Major) {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let cluster = vault.protect(quiet(major));
    cluster.sql("create database shop; create table before_all (x int)");
    cluster.sql_in(
        "shop",
        "create schema sales;
         create table sales.orders (id int primary key, note text);
         create table items (id int primary key, note text);
         create table log (id int primary key);",
    );
    vault.backup(&cluster);
    cluster.sql_in(
        "shop",
        "insert into sales.orders select n, repeat(md5(n::text), 100) from generate_series(1, 300) n;
         insert into items select n, 'item ' || n from generate_series(1, 2000) n;
         insert into log select generate_series(1, 5000);
         delete from log where id <= 999;
         delete from log where id > 2000;
         update items set note = 'changed' where id <= 7;
         truncate items;
         insert into items values (1, 'new');
         drop table sales.orders;
         create table sales.orders (id int);",
    );
    cluster.archive_now();
    let answer = find(&vault, &[]);
    let told = short(&answer);
    assert_eq!(
        told,
        ["mass_delete public.log", "truncate public.items", "drop sales.orders"],
        "{answer:#}"
    );
    for event in events(&answer).iter().filter(|event| event["kind"] != "restore_point") {
        assert_eq!(
            (&event["database"], &event["reachable"]),
            (&"shop".into(), &true.into())
        );
        assert!(event["complete"] == true && event["uncertain"] == false, "{event:#}");
        let oid = event["relations"][0]["oid"].as_u64().expect("an oid");
        assert!(oid >= 16384);
    }
    let lost = &events(&answer)[0];
    assert_eq!(lost["relations"][0]["deletes"], 3000);
    // Each command brings back what was there just before.
    for (kind, query, rows) in [
        (
            "mass_delete",
            "select count(*), min(id), max(id) from log",
            "4001|1000|5000",
        ),
        (
            "truncate",
            "select count(*), count(*) filter (where note = 'changed') from items",
            "2000|7",
        ),
        (
            "drop",
            "select count(*), sum(length(note)), (select count(*) from items) from sales.orders",
            "300|960000|1",
        ),
    ] {
        let event = events(&answer)
            .iter()
            .find(|event| event["kind"] == kind)
            .expect("told");
        let restored = followed(major, event, &scratch.join(kind));
        assert_eq!(restored.sql_in("shop", query), rows, "{} of {}", kind, major.number());
    }
    // A server makes a database one that nobody may enter before it drops it: the moment is before that.
    let xid = cluster.sql("drop database shop; select pg_current_xact_id()::text::int - 1");
    cluster.archive_now();
    let answer = find(&vault, &["--drop"]);
    let event = of_kind(&answer, "drop_database")[0];
    assert_eq!((&event["database"], event["xid"].to_string()), (&"shop".into(), xid));
    assert!(event["at"].is_string(), "{event:#}");
    let restored = followed(major, event, &scratch.join("database"));
    assert_eq!(restored.sql_in("shop", "select count(*) from items"), "1");
}
