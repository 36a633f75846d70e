//! WAL that the server has removed: named, gone past, and filled from elsewhere.

use std::fs;

use serde_json::Value;

use crate::support::cluster::Cluster;
use crate::support::ledger;
use crate::support::process::wait_for;
use crate::support::program::{Answer, Program};
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

use super::running::Receiver;
use super::{backup, restored_rows, switch, wait_until_durable};

#[test]
fn a_gap_is_named_gone_past_and_can_be_filled_later() {
    let (vault, scratch) = (Vault::folder(), Scratch::new());
    let copies = scratch.folder("copies");
    let server = Cluster::builder(Major::usual())
        .initdb_args(["--wal-segsize=1"])
        .conf("autovacuum", "off")
        .conf("wal_keep_size", "0")
        .conf("max_wal_size", "2MB")
        .conf("min_wal_size", "2MB")
        .conf("archive_mode", "on")
        .conf("archive_command", format!("cp %p \"{}/%f\"", copies.display()))
        .build();
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &[]);
    backup(&vault, &server);
    ledger::write(&server, 1, 4);
    wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));
    server.sql("select pg_drop_replication_slot('pgp')");
    let lost = server.sql("select pg_walfile_name(pg_current_wal_lsn())");
    wait_for("the server removes it", || {
        ledger::write(&server, 1, 2);
        switch(&server);
        server.sql("checkpoint");
        let there = format!("select count(*) from pg_ls_waldir() where name = '{lost}'");
        (server.sql(&there) == "0").then_some(())
    });

    receiver.start();
    receiver.wait_for_log("gap: the server has removed this WAL");
    ledger::write(&server, 1, 4);
    switch(&server);
    ledger::write(&server, 1, 4);
    wait_until_durable(&server);
    let status = wait_for("the status tells of it", || {
        let answer = receiver.status();
        let status = (!answer.stdout.is_empty()).then(|| answer.json())?;
        status["gaps"]
            .as_array()
            .is_some_and(|gaps| !gaps.is_empty())
            .then_some(status)
    });
    let gaps = |list: &Value| list["clusters"][0]["wal"][0]["gaps"].clone();
    let list = || vault.pitr(["list", "--json"]).with_code(0).json();
    let named = gaps(&list());
    assert_eq!(named.as_array().map(Vec::len), Some(1), "{named}");
    assert_eq!(status["gaps"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(status["gaps"][0]["to_lsn"], named[0]["to_lsn"], "{status} {named}");
    assert_eq!(status["gaps"][0]["timeline"], 1);
    let text = vault.pitr(["list"]).with_code(0).stdout;
    assert!(text.contains(named[0]["to_lsn"].as_str().unwrap()), "{text}");
    // A receiver that starts anew goes on, and does not forget.
    assert_eq!(receiver.stop().0, Some(0));
    receiver.start();
    receiver.wait_for_state("streaming");
    assert_eq!(gaps(&list()), named);

    let mut names: Vec<_> = fs::read_dir(&copies)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    for path in names {
        let mut archive = Program::Archive.command();
        archive.env("PGP_REPO", vault.repo()).current_dir(server.data_dir());
        Answer::of(archive.arg(path)).with_code(0);
    }
    assert_eq!(gaps(&list()), serde_json::json!([]));
    assert_eq!(
        restored_rows(&vault, server.major(), &["--latest"]),
        ledger::rows(&server)
    );
    assert_eq!(receiver.stop().0, Some(0));
}
