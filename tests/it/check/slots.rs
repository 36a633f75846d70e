//! The slot of a receiver: whether it is there, who reads it, how long it lasts, and whether commits wait for it.

use std::process::Stdio;

use crate::support::cluster::{Cluster, Stop};
use crate::support::process::wait_for;
use crate::support::tools::Major;
use crate::support::user::Scratch;

use super::{archive_into, check, field, repository, sound, statuses};

#[test]
fn a_slot_is_told_with_its_reader_what_is_left_of_it_and_who_waits() {
    for major in [Major::usual(), Major::newest()] {
        told_of_a_slot(major);
    }
}

fn told_of_a_slot(major: &'static Major) {
    let scratch = Scratch::new();
    let folder = repository(&scratch, "repo");
    let mut cluster = sound(major)
        .initdb_args(["--wal-segsize=1"])
        .conf("archive_command", archive_into(&folder))
        .conf("wal_level", "logical")
        .conf("autovacuum", "off")
        .conf("max_wal_size", "8MB")
        .build();
    let run = |cluster: &Cluster, slot: &str, code| {
        check(&cluster.conninfo(), &folder, &["--json", "--slot", slot]).with_code(code)
    };
    // Nothing is held yet; then a slot that nobody reads, without a limit.
    cluster.sql("select pg_create_physical_replication_slot('ours')");
    assert!(field(&run(&cluster, "ours", 0), "slot:ours", "detail").contains("holds no WAL yet"));
    cluster.sql("select pg_drop_replication_slot('ours'); select pg_create_physical_replication_slot('ours', true)");
    cluster.sql("select pg_create_logical_replication_slot('other', 'pgoutput')");
    let answer = run(&cluster, "ours", 0);
    assert_eq!(statuses(&answer)["slot:ours"], "warning");
    assert!(field(&answer, "slot:ours", "detail").contains("nobody reads it"));
    assert!(field(&answer, "max_slot_wal_keep_size", "detail").contains("the disk is full"));
    assert_eq!(statuses(&answer)["synchronous_standby_names"], "ok");
    let answer = run(&cluster, "other", 4);
    assert!(field(&answer, "slot:other", "detail").contains("logical"));
    cluster.sql("select pg_drop_replication_slot('other')");

    // A limit: what is left is told in bytes and in time.
    cluster.set("max_slot_wal_keep_size", "40MB");
    let answer = run(&cluster, "ours", 0);
    assert_eq!(statuses(&answer)["max_slot_wal_keep_size"], "ok");
    let detail = field(&answer, "slot:ours", "detail");
    assert!(detail.contains("left until it is given up"), "{detail}");
    assert!(detail.contains("of WAL a second") || major.number() < 14, "{detail}");

    // Commits wait for a receiver that isn't there, and for one that is.
    cluster.set("synchronous_standby_names", "FIRST 1 (\"pgp-pitr\")");
    let answer = run(&cluster, "ours", 4);
    assert!(field(&answer, "synchronous_standby_names", "detail").contains("wait for ever"));
    let mut receiver = cluster.client("pg_receivewal");
    let received = scratch.folder("received");
    receiver.args([
        "--synchronous",
        "--slot",
        "ours",
        "-d",
        "application_name=pgp-pitr",
        "-D",
    ]);
    let mut receiver = receiver.arg(&received).stderr(Stdio::null()).spawn().unwrap();
    let ready = "select count(*) = 1 from pg_stat_replication where sync_state = 'sync' and state = 'streaming'";
    cluster.wait_until(ready);
    let answer = run(&cluster, "ours", 0);
    assert_eq!(statuses(&answer)["slot:ours"], "ok", "{}", answer.stdout);
    assert!(field(&answer, "synchronous_standby_names", "detail").contains("which streams"));
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    cluster.set("synchronous_standby_names", "");

    // It falls behind by more than the limit.
    cluster.set("max_slot_wal_keep_size", "1MB");
    wait_for("the slot is given up", || {
        cluster.sql("create table if not exists t (x text); insert into t select repeat('x', 900) from generate_series(1, 9000)");
        cluster.sql("checkpoint");
        let status = cluster.sql("select wal_status from pg_replication_slots");
        (status == "lost").then_some(())
    });
    let answer = run(&cluster, "ours", 4);
    assert!(field(&answer, "slot:ours", "detail").contains("is gone from this server"));
    cluster.stop(Stop::Fast);
}
