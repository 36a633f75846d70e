//! `salvage`: what a dead server's `pg_wal` holds and the repository lacks comes back, to the last whole record, and
//! nothing in the dead server's directory is touched.
//!
//! What must be there is told by PostgreSQL itself: a copy of the dead directory is started, recovers, and has rows.

mod bad;
mod lines;
mod oracle;
mod received;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::ledger;
use crate::support::program::Answer;
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

#[test]
fn every_commit_of_a_killed_primary_is_restored_after_its_directory_is_gone() {
    for major in [Major::usual(), Major::newest()] {
        saved_to_the_last_commit(&Vault::folder(), major);
    }
}

#[test]
fn every_commit_of_a_killed_primary_is_saved_into_a_bucket() {
    let s3 = S3Server::start();
    saved_to_the_last_commit(&Vault::s3(&s3, "salvage"), Major::usual());
}

fn saved_to_the_last_commit(vault: &Vault, major: &'static Major) {
    let scratch = Scratch::new();
    let mut primary = protected(vault, major, 1);
    archive_no_more(&primary);
    ledger::write(&primary, 3, 12);
    let acknowledged = killed_at_work(&mut primary);
    let dead = primary.data_dir().to_path_buf();
    let rows = rows_after_a_crash(&primary, &scratch.join("oracle"));
    assert!(acknowledged.is_subset(&rows) && acknowledged.len() > 5);

    // Read-only, as a disk is mounted that somebody fears for.
    write_protect(&dead, true);
    let before = fingerprint(&dead);
    let dry = salvage(vault, &dead, &["--dry-run"]).with_code(0).json();
    assert!(repository_lacks_wal(vault, &primary));
    let saved = salvage(vault, &dead, &[]).with_code(0).json();
    for key in ["timelines", "latest", "problems", "complete"] {
        assert_eq!(dry[key], saved[key], "{key}");
    }
    assert_eq!(saved["complete"], true);
    let on = &saved["timelines"][0];
    assert!(on["segments"].as_array().unwrap().len() > 2, "{saved:#}");
    assert!(on["piece_bytes"].as_u64().unwrap() > 0, "{saved:#}");
    assert_nothing_missing(vault, &dead, &saved);
    assert_eq!(before, fingerprint(&dead), "something in the directory was changed");
    write_protect(&dead, false);
    drop(primary);
    assert!(!dead.exists());

    let to = scratch.join("restored");
    let plan = vault
        .restore(&to, &["--latest", "--archive", "off", "--json"])
        .with_code(0)
        .json();
    assert_eq!(plan["reaches"]["last_commit_xid"], saved["latest"]["last_commit_xid"]);
    assert_eq!(plan["reaches"]["last_commit_at"], saved["latest"]["last_commit_at"]);
    let mut restored = Cluster::on_directory(major, &to);
    assert_eq!(restored.recover(), Recovered::Open, "{}", restored.log());
    assert_eq!(ledger::rows(&restored), rows, "{major:?}");
}

#[test]
fn a_dead_standby_gives_what_it_had_received() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let primary = protected(&vault, Major::usual(), 1);
    let mut standby = standby_of(&primary, &scratch);
    archive_no_more(&primary);
    ledger::write(&primary, 2, 12);
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    standby.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{end}'"));
    let rows = ledger::rows(&primary);
    standby.kill9();
    drop(primary);
    let saved = salvage(&vault, standby.data_dir(), &[]).with_code(0).json();
    assert_nothing_missing(&vault, standby.data_dir(), &saved);
    drop(standby);

    let to = scratch.join("restored");
    vault.restore(&to, &["--latest", "--archive", "off"]).with_code(0);
    let mut restored = Cluster::on_directory(Major::usual(), &to);
    assert_eq!(restored.recover(), Recovered::Open, "{}", restored.log());
    assert_eq!(ledger::rows(&restored), rows);
}

#[test]
fn a_server_that_runs_on_agrees_with_what_was_salvaged_from_it() {
    let vault = Vault::folder();
    let mut primary = protected(&vault, Major::usual(), 1);
    archive_no_more(&primary);
    ledger::write(&primary, 2, 8);
    primary.kill9();
    salvage(&vault, primary.data_dir(), &[]).with_code(0);
    // It was not dead after all: it archives the same segments, and finishes the one that was saved in pieces.
    primary.start();
    let command = primary.sql("select setting from pg_settings where name = 'archive_command'");
    assert_eq!(command, "false");
    primary.sql("alter system reset archive_command");
    primary.reload();
    ledger::write(&primary, 1, 4);
    primary.archive_now();
    let rows = ledger::rows(&primary);
    // The repository is ahead of a copy from before: nothing to do.
    primary.stop(Stop::Fast);
    let answer = salvage(&vault, primary.data_dir(), &[]).with_code(0);
    assert_nothing_missing(&vault, primary.data_dir(), &answer.json());
    let scratch = Scratch::new();
    let to = scratch.join("restored");
    vault.restore(&to, &["--latest", "--archive", "off"]).with_code(0);
    let mut restored = Cluster::on_directory(Major::usual(), &to);
    assert_eq!(restored.recover(), Recovered::Open, "{}", restored.log());
    assert_eq!(ledger::rows(&restored), rows);
}

/// A primary with segments of so many MiB, some archived WAL and a base backup.
fn protected(vault: &Vault, major: &'static Major, segment: u32) -> Cluster {
    let builder = Cluster::builder(major).initdb_args([format!("--wal-segsize={segment}")]);
    let primary = vault.protect(builder.conf("autovacuum", "off").conf("max_wal_size", "64MB"));
    ledger::write(&primary, 1, 3);
    vault.backup(&primary);
    ledger::write(&primary, 1, 3);
    primary.archive_now();
    primary
}

/// From now on nothing reaches the repository, and some segments are filled.
fn archive_no_more(primary: &Cluster) {
    primary.set("archive_command", "false");
    primary.sql("create table if not exists bulk (id int, text text)");
    for _ in 0..3 {
        primary.sql("insert into bulk select n, repeat(md5(n::text), 20) from generate_series(1, 1500) n");
    }
}

/// Kills a server while a client inserts, and answers which rows the client was told are committed.
fn killed_at_work(primary: &mut Cluster) -> BTreeSet<i64> {
    let mut client = primary.client("psql");
    client.args(["-XAtq"]);
    let script: String = (1..50_000)
        .map(|n| format!("insert into ledger (id) values (-{n}) returning id;\n"))
        .collect();
    thread::scope(|scope| {
        let client = scope.spawn(|| Answer::of_input(&mut client, &script).stdout);
        thread::sleep(Duration::from_millis(1500));
        primary.kill9();
        let told = client.join().expect("a client");
        told.lines().filter_map(|line| line.parse().ok()).collect()
    })
}

/// A standby that streams from a primary.
fn standby_of(primary: &Cluster, scratch: &Scratch) -> Cluster {
    let data = scratch.join("standby");
    let mut copy = primary.client("pg_basebackup");
    Answer::of(copy.args(["-R", "-X", "stream", "-c", "fast", "-D"]).arg(&data)).with_code(0);
    let mut standby = Cluster::on_directory(primary.major(), &data);
    standby.start();
    standby
}

fn salvage(vault: &Vault, dead: &Path, arguments: &[&str]) -> Answer {
    let mut command = vault.command();
    Answer::of(command.args(["salvage", "--json"]).args(arguments).arg(dead))
}

/// Run again, it finds nothing to do, and the same end.
#[track_caller]
fn assert_nothing_missing(vault: &Vault, dead: &Path, saved: &Value) {
    let again = salvage(vault, dead, &[]).with_code(0).json();
    for on in again["timelines"].as_array().unwrap() {
        assert_eq!(on["saved"], serde_json::json!([]), "{again:#}");
        assert_eq!(on["segments"], serde_json::json!([]), "{again:#}");
        assert_eq!(on["other_files"], serde_json::json!([]), "{again:#}");
        assert_eq!(on["piece_bytes"], 0, "{again:#}");
    }
    assert_eq!(again["latest"]["lsn"], saved["latest"]["lsn"]);
    let text = Answer::of(vault.command().arg("salvage").arg(dead)).with_code(0).stdout;
    assert!(text.contains("nothing to save"), "{text}");
}

fn repository_lacks_wal(vault: &Vault, primary: &Cluster) -> bool {
    let scratch = Scratch::new();
    let files = wal_files(primary.data_dir());
    let last = files.iter().rev().nth(1).unwrap();
    let name = last.file_name().unwrap().to_str().unwrap();
    vault.fetch(primary, name, &scratch.join("x")).code == 1
}

/// The segments of a data directory, by name.
fn wal_files(data: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(data.join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name.len() == 24))
        .collect();
    files.sort();
    files
}

/// A copy of a directory, owned as the original.
fn copy(from: &Path, to: &Path) {
    Answer::of(Command::new("cp").arg("-a").arg(from).arg(to)).with_code(0);
}

/// The ledger as PostgreSQL itself recovers it from a copy of a dead server's directory.
fn rows_after_a_crash(dead: &Cluster, copied: &Path) -> BTreeSet<i64> {
    copy(dead.data_dir(), copied);
    let mut server = Cluster::on_directory(dead.major(), copied);
    server.start();
    let rows = ledger::rows(&server);
    drop(server);
    fs::remove_dir_all(copied).unwrap();
    rows
}

/// Makes a directory read-only, or undoes that.
fn write_protect(directory: &Path, on: bool) {
    for path in below(directory) {
        let about = fs::symlink_metadata(&path).unwrap();
        let mode = match (about.is_dir(), on) {
            (true, true) => 0o500,
            (true, false) => 0o700,
            (false, true) => 0o400,
            (false, false) => 0o600,
        };
        if !about.is_symlink() {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    ServerUser::get().give(directory);
}

/// What would show a change: names, sizes, and when each was last written.
fn fingerprint(directory: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let all = below(directory).into_iter();
    all.map(|path| {
        let about = fs::symlink_metadata(&path).unwrap();
        (path, (about.len(), about.modified().unwrap()))
    })
    .collect()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_path_buf()];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true => all.extend(below(&path)),
            false => all.push(path),
        }
    }
    all
}
