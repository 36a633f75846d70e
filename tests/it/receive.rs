//! `receive` against real servers and stores: what it has acknowledged is never missing, whatever is killed, and what it
//! stores is what the server wrote.

mod bad;
mod chaos;
mod deletes;
mod gaps;
mod identity;
mod life;
mod load;
mod running;
mod timelines;
mod two;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::cluster::{Cluster, Recovered};
use crate::support::ledger;
use crate::support::process::wait_for;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

/// Waits until a server has been told that all it has is durable, and answers up to where.
#[track_caller]
fn wait_until_durable(server: &Cluster) -> String {
    let end = server.sql("select pg_current_wal_flush_lsn()");
    let flushed = format!(
        "select coalesce(max(flush_lsn) >= '{end}', false) from pg_stat_replication where application_name = 'pgp-pitr'"
    );
    wait_for(&format!("{end} is durable"), || {
        (server.try_sql(&flushed).ok()? == "t").then_some(())
    });
    end
}

/// Ends the current segment, with something in it. Answers its name.
fn switch(server: &Cluster) -> String {
    server.sql("select pg_create_restore_point('switch')");
    server.sql("select pg_walfile_name(pg_switch_wal())")
}

/// A base backup whose WAL the receiver of slot `pgp` brings.
#[track_caller]
fn backup(vault: &Vault, server: &Cluster) {
    vault
        .pitr(["backup", "--slot", "pgp", "-d", &server.conninfo()])
        .with_code(0);
}

/// The ledger of a server that was restored from the repository alone, and recovered.
#[track_caller]
fn restored_rows(vault: &Vault, major: &'static Major, arguments: &[&str]) -> BTreeSet<i64> {
    let scratch = Scratch::new();
    let to = scratch.join("restored");
    let arguments = [arguments, &["--archive", "off"]].concat();
    vault.restore(&to, &arguments).with_code(0);
    let mut restored = Cluster::on_directory(major, &to);
    let recovered = restored.recover();
    assert_ne!(recovered, Recovered::Stopped, "{}", restored.log());
    ledger::rows(&restored)
}

/// Every file below a folder, with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

/// A copy of a folder, owned as the original.
fn copy(from: &Path, to: &Path) {
    Answer::of(std::process::Command::new("cp").arg("-a").arg(from).arg(to)).with_code(0);
}
