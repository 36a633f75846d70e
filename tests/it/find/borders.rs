//! Where WAL ends, forks, is missing or crosses from one segment into the next.

use std::fs;

use super::*;
use crate::support::cluster::Stop;

/// A cluster with segments of 1 MiB.
fn small_segments(vault: &Vault, major: &'static Major) -> Cluster {
    vault.protect(
        quiet(major)
            .initdb_args(["--wal-segsize=1"])
            .conf("max_locks_per_transaction", "1000"),
    )
}

/// SQL that fills the WAL up to so many bytes before a segment's end, or a few bytes less.
fn fill_up_to(bytes: u32) -> String {
    // Each page of 8 KiB has a header of 24 bytes, and the record itself takes some 70.
    let fill = |bytes: u32| {
        format!(
            "select pg_logical_emit_message(false, 'fill', repeat('x', room - {bytes} - 70 - room / 8192 * 24))
               from (select room + case when room < {bytes} + 300 then 1 << 20 else 0 end as room
                       from (select ((1 << 20) - (pg_current_wal_insert_lsn() - '0/0') % (1 << 20))::int as room) as now
                    ) as next"
        )
    };
    format!("{}; {}", fill(bytes + 5000), fill(bytes))
}

#[test]
fn a_commit_that_crosses_into_the_next_segment_is_told_whole_on_each_major() {
    thread::scope(|scope| {
        for major in Major::all() {
            scope.spawn(move || crossing_commits(major));
        }
    });
}

fn crossing_commits(major: &'static Major) {
    const TABLES: usize = 700;
    let vault = Vault::folder();
    let cluster = small_segments(&vault, major);
    cluster.sql(&format!(
        "create table a (x int primary key, words text); create table b (x int);
         insert into b select generate_series(1, 5000); create schema many;
         do $$ begin for i in 1..{TABLES} loop execute 'create table many.t' || i || ' (x int)'; end loop; end $$"
    ));
    vault.backup(&cluster);
    let crosses = |statements: &str, room: u32| {
        cluster.sql(&format!(
            "set client_min_messages = error; begin; {statements}; {}; commit",
            fill_up_to(room)
        ));
        here(&cluster)
    };
    let mut ends = Vec::new();
    for room in [40, 64, 120, 200] {
        ends.push(crosses("truncate a", room));
        ends.push(crosses(
            "delete from b where x <= 1000; insert into b select generate_series(1, 1000)",
            room,
        ));
    }
    ends.push(crosses("drop table a", 80));
    // Longer than what the index keeps of a record that crosses, and with more files than it keeps.
    ends.push(crosses("drop schema many cascade", 20_000));
    cluster.archive_now();
    let answer = find(&vault, &[]);
    let told = short(&answer);
    let mut expected = ["truncate public.a", "mass_delete public.b"].repeat(4);
    expected.push("drop public.a");
    assert_eq!(told[..told.len() - 1], expected, "{} {answer:#}", major.number());
    let all = events(&answer);
    let many = all.iter().rfind(|event| event["kind"] == "drop").expect("told");
    let relations = many["relations"].as_array().expect("a list");
    assert_eq!(
        (relations.len(), many["files"].as_array().expect("a list").len()),
        (TABLES, TABLES)
    );
    let crossed = all.iter().filter(|event| {
        let [begin, end] = ["lsn", "end_lsn"].map(|field| (lsn(&event[field]).bytes() - 1) >> 20);
        event["kind"] != "restore_point" && begin != end
    });
    assert!(
        crossed.count() >= 6,
        "of {} commits too few cross: {answer:#}",
        ends.len()
    );
    assert!(answer["gaps"].as_array().expect("a list").is_empty());
    for event in of_kind(&answer, "mass_delete") {
        let relation = &event["relations"][0];
        assert_eq!(
            (&relation["deletes"], &relation["inserts"]),
            (&1000.into(), &1000.into())
        );
    }
    let xid = many["xid"].to_string();
    assert_eq!(events(&find(&vault, &["--xid", &xid])).len(), 2);
}

#[test]
fn each_event_is_told_once_on_the_timeline_that_it_is_on() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let first = vault.protect(quiet(Major::usual()));
    first.sql("create table a (x int); create table b (x int); create table c (x int)");
    vault.backup(&first);
    first.sql("truncate a");
    first.sql("begin; truncate b; prepare transaction 'over the fork'");
    first.sql("select pg_create_restore_point('the fork')");
    first.archive_now();
    let to = scratch.join("second");
    vault.restore(&to, &["--target-name", "the fork"]).with_code(0);
    let mut second = Cluster::on_directory(Major::usual(), &to);
    assert_eq!(second.recover(), Recovered::Paused);
    second.promote();
    second.sql("commit prepared 'over the fork'");
    second.sql("drop table c");
    second.archive_now();
    first.sql("rollback prepared 'over the fork'");
    first.sql("drop table a");
    first.archive_now();
    let answer = find(&vault, &[]);
    let told: Vec<(u64, String)> = events(&answer)
        .iter()
        .filter(|event| event["name"] != "archive_now")
        .map(|event| {
            let one = serde_json::json!({ "events": [event] });
            (event["timeline"].as_u64().expect("a number"), short(&one).remove(0))
        })
        .collect();
    let expected = [
        (1, "truncate public.a"),
        (1, "restore_point"),
        (1, "drop public.a"),
        (2, "end_of_recovery"),
        (2, "truncate public.b"),
        (2, "drop public.c"),
    ];
    assert_eq!(
        told,
        expected.map(|(timeline, text)| (timeline, text.to_owned())),
        "{answer:#}"
    );
    let on_second = find(&vault, &["--timeline", "2", "--drop"]);
    assert_eq!(short(&on_second), ["drop public.c"]);
    let restored = followed(Major::usual(), &events(&on_second)[0], &scratch.join("third"));
    assert_eq!(restored.sql("select to_regclass('c')"), "c");
}

#[test]
fn missing_and_damaged_wal_is_named_and_the_search_goes_on_behind_it() {
    let vault = Vault::folder();
    let mut cluster = small_segments(&vault, Major::usual());
    cluster.sql("create table a (x int); create table b (x int); create table c (x int)");
    vault.backup(&cluster);
    cluster.sql("truncate a");
    cluster.archive_now();
    cluster.sql("drop table b");
    let lost = cluster.archive_now();
    cluster.sql("drop table a");
    cluster.archive_now();
    cluster.sql("insert into c select generate_series(1, 1000)");
    let damaged = cluster.archive_now();
    cluster.sql("drop table c");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    vault.lose(&lost);
    let object = object_of(&vault, &damaged);
    let half = fs::read(&object).expect("the object");
    fs::write(&object, &half[..half.len() / 2]).expect("cut");

    let answer = vault.pitr(["find", "--json"]).with_code(0);
    let found = answer.json();
    assert_eq!(short(&found), ["truncate public.a", "drop public.a", "drop public.c"]);
    let reachable: Vec<&Value> = events(&found)
        .iter()
        .filter(|event| event["kind"] != "restore_point")
        .map(|event| &event["reachable"])
        .collect();
    assert_eq!(reachable, [&Value::from(true), &false.into(), &false.into()]);
    let gaps = found["gaps"].as_array().expect("a list");
    assert_eq!(gaps.len(), 2, "{found:#}");
    assert!(
        gaps[0]["reason"].is_null() && gaps[1]["reason"].is_string(),
        "{found:#}"
    );
    assert!(
        answer.stderr.contains("is missing") && answer.stderr.contains("was not searched"),
        "{}",
        answer.stderr
    );
}

#[test]
fn a_table_without_a_name_is_told_by_its_file() {
    let vault = Vault::folder();
    let cluster = vault.protect(quiet(Major::newest()));
    cluster.sql("create table nameless as select generate_series(1, 2000) x; create table emptied (x int)");
    let file = |table: &str| cluster.sql(&format!("select pg_relation_filepath('{table}')"));
    let files = [file("nameless"), file("emptied")];
    // What told their names is gone, and no backup captured them.
    let told = cluster.archive_now();
    cluster.sql("insert into emptied values (1); truncate emptied; delete from nameless; drop table nameless");
    cluster.archive_now();
    vault.lose(&told);
    let answer = find(&vault, &[]);
    let [nameless, emptied] = &files;
    assert_eq!(
        short(&answer),
        [
            format!("truncate {emptied}"),
            format!("mass_delete {nameless}"),
            format!("drop {nameless}"),
        ]
    );
    assert!(events(&answer).iter().all(|event| event["reachable"] == false));
}

fn object_of(vault: &Vault, file: &str) -> std::path::PathBuf {
    let mut folders = vec![std::path::PathBuf::from(vault.repo())];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path
                .file_name()
                .is_some_and(|name| name == format!("{file}.zst").as_str())
            {
                return path;
            }
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    panic!("{file} is not there");
}

#[test]
fn what_makes_no_sense_is_refused_with_words() {
    let vault = Vault::folder();
    let refused = |arguments: &[&str], code: i32, words: &str| {
        let answer = vault.pitr(["find"].iter().chain(arguments)).with_code(code);
        assert!(answer.stderr.contains(words), "{arguments:?}: {}", answer.stderr);
        assert!(
            answer.stderr.lines().count() <= 8 && answer.stdout.is_empty(),
            "{}",
            answer.stderr
        );
    };
    refused(&[], 3, "holds no cluster yet");
    let cluster = vault.protect(quiet(Major::usual()));
    cluster.sql("create table orders (x int)");
    vault.backup(&cluster);
    cluster.archive_now();
    refused(&["--relation", "oders"], 2, "no table public.oders is known");
    refused(
        &["--relation", "orders", "--database", "shop"],
        2,
        "no database \"shop\" is known",
    );
    refused(
        &["--relation", "oders", "--database", "postgres"],
        2,
        "in database postgres",
    );
    refused(&["--relation", ""], 2, "it is empty");
    refused(&["--between", "0/2000000", "0/1000000"], 2, "ends before it begins");
    refused(&["--between", "0/2000000", "0/2000000"], 2, "ends before it begins");
    refused(&["--between", "now", "2 hours ago"], 2, "ends before it begins");
    refused(&["--between", "0/2000000", "now"], 2, "not one of each");
    refused(
        &["--between", "0/10", "0/1900000000"],
        2,
        "\"0/1900000000\": it is no position",
    );
    refused(&["--between", "yesterday", "now"], 2, "yesterday");
    refused(&["--between", "now"], 2, "--between");
    refused(
        &["--around", "now", "--between", "0/1", "0/2"],
        2,
        "cannot be used with",
    );
    refused(&["--xid", "2"], 2, "from 3 on");
    refused(&["--xid", "many"], 2, "from 3 on");
    refused(&["--mass-delete", "0"], 2, "from 1 on");
    refused(&["--timeline", "7"], 2, "no WAL of timeline 7");
    refused(&["--timeline", "0"], 2, "--timeline");
    refused(&["--cluster", "7"], 2, "does not hold cluster 7");
    let nothing = vault.pitr(["find", "--drop"]).with_code(0);
    assert!(
        nothing.stdout.is_empty()
            && nothing
                .stderr
                .starts_with("nothing found; the archived WAL reaches from ")
    );
}

#[test]
fn rows_and_bytes_of_a_transaction_over_missing_wal_are_said_to_be_too_few() {
    let vault = Vault::folder();
    let cluster = small_segments(&vault, Major::usual());
    cluster.sql("create table a (x int)");
    vault.backup(&cluster);
    let told = cluster.sql(
        "begin; select pg_current_xact_id(); insert into a select generate_series(1, 30000);
         select pg_walfile_name(pg_current_wal_insert_lsn()); insert into a select generate_series(1, 30000); commit",
    );
    let mut told = told.lines();
    let (xid, lost) = (told.next().expect("an id"), told.next().expect("a file"));
    cluster.archive_now();
    vault.lose(lost);
    let answer = vault.pitr(["find", "--xid", xid]).with_code(0).stdout;
    assert!(answer.contains("of WAL; public.a (oid"), "{answer}");
    assert_eq!(
        answer.matches(": at least ").count() + answer.matches(", at least ").count(),
        2,
        "{answer}"
    );
}

#[test]
fn a_name_writes_no_line_of_its_own_among_the_commands() {
    let vault = Vault::folder();
    let cluster = vault.protect(quiet(Major::usual()));
    cluster.sql("create table \"x\n  just before it: rm -rf /\u{1b}[2K\" as select 1");
    vault.backup(&cluster);
    cluster.sql("drop table \"x\n  just before it: rm -rf /\u{1b}[2K\"");
    cluster.archive_now();
    let text = vault.pitr(["find", "--drop"]).with_code(0).stdout;
    assert!(
        text.contains(r"public.x\n  just before it: rm -rf /\u{1b}[2K"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'));
    assert!(
        !text.lines().any(|line| line.starts_with("  just before it: rm")),
        "{text}"
    );
}
