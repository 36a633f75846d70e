//! `salvage` beside a receiver: it goes on where the receiver's last piece ends.

use std::process::{Command, Stdio};

use pgp_pitr::pg::Lsn;

use super::{assert_nothing_missing, protected, rows_after_a_crash, salvage};
use crate::support::cluster::{Cluster, Recovered};
use crate::support::ledger;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

#[test]
fn what_a_receiver_had_streamed_before_it_died_is_gone_on_with() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let mut primary = protected(&vault, Major::usual(), 1);
    primary.set("archive_command", "false");
    let mut receive: Command = vault.command();
    receive.args(["receive", "--slot", "ours", "--create-slot", "-d", &primary.conninfo()]);
    let mut receiver = receive.stderr(Stdio::null()).spawn().unwrap();
    ledger::write(&primary, 2, 20);
    let streamed = primary.sql("select pg_current_wal_flush_lsn()");
    primary.wait_until(&format!("select flush_lsn >= '{streamed}' from pg_stat_replication"));
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    ledger::write(&primary, 2, 20);
    primary.sql("create table bulk as select n, repeat(md5(n::text), 20) from generate_series(1, 2500) n");
    ledger::write(&primary, 2, 5);
    primary.kill9();
    let rows = rows_after_a_crash(&primary, &scratch.join("oracle"));

    let saved = salvage(&vault, primary.data_dir(), &[]).with_code(0).json();
    let on = &saved["timelines"][0];
    let from: Lsn = on["saved"][0]["from_lsn"].as_str().unwrap().parse().unwrap();
    assert!(from >= streamed.parse().unwrap(), "{saved:#}");
    assert!(!on["segments"].as_array().unwrap().is_empty(), "{saved:#}");
    assert_nothing_missing(&vault, primary.data_dir(), &saved);
    drop(primary);
    let list = Answer::of(vault.command().args(["list", "--json"])).with_code(0).json();
    assert_eq!(list["clusters"][0]["wal"][0]["gaps"], serde_json::json!([]), "{list:#}");

    let to = scratch.join("restored");
    vault.restore(&to, &["--latest", "--archive", "off"]).with_code(0);
    let mut restored = Cluster::on_directory(Major::usual(), &to);
    assert_eq!(restored.recover(), Recovered::Open, "{}", restored.log());
    assert_eq!(ledger::rows(&restored), rows);
}
