//! What is told of statements of every kind, and what is not.

use std::fmt::Write;

use super::*;

/// SQL in the database `shop`, and what is told of it.
const STATEMENTS: &[(&str, &[&str])] = &[
    ("vacuum full kept", &[]),
    ("vacuum full big", &[]),
    ("cluster big using big_pkey", &[]),
    ("reindex table big", &[]),
    ("reindex index big_pkey", &[]),
    ("reindex table concurrently big", &[]),
    ("alter table big alter n type bigint", &[]),
    ("alter table big alter id type bigint", &[]),
    (
        "alter table big add column stamp timestamptz default clock_timestamp()",
        &[],
    ),
    ("refresh materialized view seen", &[]),
    (
        "delete from kept; refresh materialized view concurrently seen_unique",
        &["mass_delete public.kept"],
    ),
    ("alter table big set tablespace elsewhere", &[]),
    ("alter table big set unlogged; alter table big set logged", &[]),
    ("create index on big (n); drop index big_n_idx", &[]),
    (
        "create index concurrently again on big (n); drop index concurrently again",
        &[],
    ),
    (
        "create table made as select generate_series(1, 2000) x; drop table made",
        &["drop public.made"],
    ),
    (
        "begin; create table made as select generate_series(1, 2000) x; drop table made; commit",
        &[],
    ),
    (
        "begin; create table made (x int); insert into made values (1); truncate made; commit; drop table made",
        &["drop public.made"],
    ),
    (
        "begin; drop table big2; create table big2 (x int); commit",
        &["drop public.big2"],
    ),
    (
        "begin; truncate t1; insert into t1 select 1; commit",
        &["truncate public.t1"],
    ),
    ("truncate t1, t2", &["truncate public.t1 public.t2"]),
    ("truncate t1 restart identity", &["truncate public.t1"]),
    (
        "begin; truncate t1; drop table t3; commit",
        &["drop public.t3", "truncate public.t1"],
    ),
    (
        "begin; truncate t1; truncate t2; commit",
        &["truncate public.t1 public.t2"],
    ),
    ("begin; truncate t1; rollback", &[]),
    (
        "begin; savepoint a; drop table t2; rollback to a; truncate t1; commit",
        &["truncate public.t1"],
    ),
    (
        "begin; savepoint a; truncate t2; release a; commit",
        &["truncate public.t2"],
    ),
    (
        "begin; alter table t2 alter x type bigint; drop table t4; commit",
        &["drop public.t4"],
    ),
    ("drop table parted", &["drop public.part1 public.part2"]),
    ("truncate parted2", &["truncate public.part3 public.part4"]),
    ("drop schema extra cascade", &["drop extra.a extra.b extra.v"]),
    ("drop materialized view seen", &["drop public.seen"]),
    ("drop sequence lonely", &["drop public.lonely"]),
    ("alter sequence counting restart 5; select setval('counting', 7)", &[]),
    (
        "create temp table fleeting as select generate_series(1, 2000) x; delete from fleeting; truncate fleeting; drop table fleeting",
        &[],
    ),
    ("truncate unlogged", &["truncate public.unlogged"]),
    ("drop table unlogged2", &["drop public.unlogged2"]),
    ("drop table unlogged", &["drop public.unlogged"]),
    ("delete from t5 where x <= 999", &[]),
    ("delete from t5 where x <= 1999", &["mass_delete public.t5"]),
    ("begin; delete from t5; rollback", &[]),
    (
        "begin; delete from t5 where x <= 2600; delete from t6 where x <= 3; delete from t5 where x <= 3000; commit",
        &["mass_delete public.t5 public.t6"],
    ),
    (
        "do $$ begin for i in 1..11 loop begin delete from t6 where x <= i * 100; exception when division_by_zero then null; end; end loop; end $$",
        &["mass_delete public.t6"],
    ),
    (
        "begin; delete from t6 where x <= 2500; drop table t7; commit",
        &["drop public.t7", "mass_delete public.t6"],
    ),
    (
        "begin; truncate t5; prepare transaction 'later'; commit prepared 'later'",
        &["truncate public.t5"],
    ),
    (
        "begin; drop table t6; prepare transaction 'never'; rollback prepared 'never'",
        &[],
    ),
    ("drop table t5", &["drop public.t5"]),
    ("create database gone; drop database gone", &["drop_database"]),
    ("vacuum full pg_class; vacuum full pg_attribute", &[]),
    ("drop table after_that", &["drop public.after_that"]),
    ("truncate t6", &["truncate public.t6"]),
    ("analyze; vacuum", &[]),
    (
        "create database moved; alter database moved set tablespace elsewhere",
        &[],
    ),
    // Gives every catalogue a new file.
    ("vacuum full", &[]),
    (
        "create table later (x int, words text); insert into later values (1); drop table later",
        &["drop public.later"],
    ),
    (
        "create table night as select generate_series(1, 2000) x; truncate night",
        &["truncate public.night"],
    ),
    ("vacuum full kept", &[]),
    (
        "create table other as select generate_series(1, 2000) x; delete from other",
        &["mass_delete public.other"],
    ),
];

const SCENE: &str = "
    set client_min_messages = error;
    create table kept as select generate_series(1, 1500) x;
    create table big (id int primary key, n int, words text);
    insert into big select n, n, md5(n::text) from generate_series(1, 3000) n;
    create table big2 (x int primary key, words text);
    insert into big2 select generate_series(1, 10);
    create table t1 (id serial primary key, words text); insert into t1 select generate_series(1, 10);
    create table t2 (x int, words text); insert into t2 values (1);
    create table t3 (x int, words text); create table t4 (x int primary key);
    insert into t3 values (1); insert into t4 values (1);
    create materialized view seen as select n from generate_series(1, 2000) n;
    create materialized view seen_unique as select x from kept; create unique index on seen_unique (x);
    create table parted (x int) partition by range (x);
    create table part1 partition of parted for values from (0) to (10);
    create table part2 partition of parted for values from (10) to (20);
    create table parted2 (x int) partition by range (x);
    create table part3 partition of parted2 for values from (0) to (10);
    create table part4 partition of parted2 for values from (10) to (20);
    create schema extra; create table extra.a (x int, words text); create table extra.b (id serial primary key);
    create materialized view extra.v as select 1;
    create view extra.w as select 1;
    create sequence lonely; create sequence counting;
    create unlogged table unlogged (x int primary key, words text); insert into unlogged values (1);
    create unlogged table unlogged2 (x int primary key, words text);
    create table t5 as select generate_series(1, 4000) x;
    create table t6 as select generate_series(1, 4000) x;
    create table t7 (id serial primary key, words text); create table after_that (x int, words text);";

#[test]
fn of_all_statements_those_are_told_that_lost_rows_on_each_major() {
    thread::scope(|scope| {
        for major in Major::all() {
            for level in ["replica", "logical"] {
                // Logical decoding changes what is logged, and on one major that is enough to see.
                if level == "replica" || major == Major::usual() {
                    scope.spawn(move || told_of_statements(major, level, true));
                }
            }
        }
    });
}

fn told_of_statements(major: &'static Major, level: &str, captured: bool) {
    let vault = Vault::folder();
    let tablespace = Scratch::new();
    let cluster = vault.protect(quiet(major).conf("wal_level", level));
    let folder = tablespace.folder("elsewhere");
    cluster.sql(&format!("create tablespace elsewhere location '{}'", folder.display()));
    cluster.sql("create database shop");
    cluster.sql_in("shop", SCENE);
    if captured {
        vault.backup(&cluster);
    }
    let mut places = Vec::new();
    for (statement, _) in STATEMENTS {
        let from = here(&cluster);
        cluster.sql_in("shop", statement);
        places.push((from, here(&cluster)));
    }
    cluster.archive_now();
    let answer = find(&vault, &[]);
    let mut wrong = String::new();
    for ((statement, expected), (from, to)) in STATEMENTS.iter().zip(places) {
        let told: Vec<Value> = events(&answer)
            .iter()
            .filter(|event| (from..to).contains(&lsn(&event["lsn"])))
            .cloned()
            .collect();
        let certain = told.iter().all(|event| event["uncertain"] == false);
        let told = short(&serde_json::json!({ "events": told }));
        if told != *expected || !certain {
            writeln!(
                wrong,
                "{}, {level}: {statement}\n    {told:?}, {certain}",
                major.number()
            )
            .expect("memory");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}
