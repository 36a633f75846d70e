//! Receiver, store and primary are killed in random order while clients commit. In the end the primary is destroyed, and
//! what the clients were told is compared with what a recovery from the repository alone gives.
//!
//! `PGP_TEST_SEED` brings an order back; `PGP_TEST_CHAOS` says how many kills there are.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pgp_pitr::env::Env;

use crate::support::chance::Chance;
use crate::support::cluster::{Cluster, Stop};
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::vault::Vault;

use super::load::Load;
use super::running::Receiver;
use super::{backup, restored_rows};

/// A client may lose what it was told in the last so many seconds where commits do not wait.
const MOST_LOST: Duration = Duration::from_secs(2);

#[test]
fn no_commit_that_waited_is_missing_from_a_folder() {
    chaos(&Vault::folder(), None, "on", &["--synchronous"]);
}

#[test]
fn no_commit_that_waited_is_missing_from_a_bucket() {
    let mut s3 = S3Server::start();
    chaos(
        &Vault::s3(&s3, "chaos"),
        Some(&mut s3),
        "remote_apply",
        &["--synchronous"],
    );
}

#[test]
fn commits_that_did_not_wait_are_lost_for_two_seconds_at_most_with_a_folder() {
    chaos(&Vault::folder(), None, "local", &[]);
}

#[test]
fn commits_that_did_not_wait_are_lost_for_two_seconds_at_most_with_a_bucket() {
    let mut s3 = S3Server::start();
    chaos(&Vault::s3(&s3, "chaos"), Some(&mut s3), "local", &[]);
}

#[test]
fn no_commit_that_waited_is_missing_where_it_came_through_a_spool() {
    let mut s3 = S3Server::start();
    let spool = crate::support::user::Scratch::new();
    let arguments = ["--synchronous", "--spool", spool.path().to_str().unwrap()];
    chaos(&Vault::s3(&s3, "chaos"), Some(&mut s3), "on", &arguments);
}

fn chaos(vault: &Vault, s3: Option<&mut S3Server>, commit: &str, arguments: &[&str]) {
    let chance = Chance::new();
    let kills = Env::of_process()
        .var("PGP_TEST_CHAOS")
        .map_or(6, |kills| kills.parse().unwrap());
    let mut primary = Cluster::builder(Major::usual())
        .initdb_args(["--wal-segsize=1"])
        .conf("max_wal_size", "32MB")
        .conf("autovacuum", "off")
        .build();
    let mut receiver = Receiver::streaming(vault, &primary.conninfo(), arguments);
    let mut store = Store::of(vault, s3);
    backup(vault, &primary);
    let waits = commit != "local";
    if waits {
        primary.set("synchronous_standby_names", "\"pgp-pitr\"");
    }
    let load = Load::start(&primary, 4, commit);
    for _ in 0..kills {
        load.wait_for_more(30);
        sleep(Duration::from_millis(chance.below(600) as u64));
        let outage = Duration::from_millis(chance.below(1200) as u64);
        let event = chance.below(6);
        eprintln!("{} commits, then {event} for {outage:?}", load.len());
        match event {
            0 => receiver.kill9(),
            1 => {
                store.away();
                sleep(outage);
                store.back();
            }
            2 => primary.restart(Stop::Immediate),
            3 => {
                primary.kill9();
                primary.start();
            }
            4 => {
                store.away();
                sleep(outage);
                receiver.kill9();
                store.back();
            }
            _ => {
                store.away();
                primary.stop(Stop::Immediate);
                sleep(outage);
                store.back();
                primary.start();
            }
        }
        if event == 0 || event == 4 {
            receiver.start();
        }
        assert_eq!(receiver.has_ended(), None, "the receiver has given up");
    }
    // All is well again, and has been for a while: what is lost then is what the interval allows.
    receiver.wait_for_state("streaming");
    load.wait_for_more(100);
    sleep(Duration::from_millis(1500 + chance.below(1000) as u64));
    // The receiver first: with the primary gone it would store what it has.
    let destroyed = Instant::now();
    receiver.kill9();
    primary.kill9();
    let told = load.stop();
    let major = primary.major();
    drop(primary);

    let rows = restored_rows(vault, major, &["--latest"]);
    let missing: Vec<_> = told.iter().filter(|(id, _)| !rows.contains(id)).collect();
    let oldest = missing
        .iter()
        .map(|(_, at)| destroyed.saturating_duration_since(**at))
        .max();
    eprintln!(
        "{} of {} commits are lost, the oldest {oldest:?} old",
        missing.len(),
        told.len()
    );
    if waits {
        assert_eq!(missing, Vec::new());
    }
    assert!(oldest.unwrap_or_default() <= MOST_LOST, "{oldest:?}");
}

/// What can be taken away from a receiver.
enum Store<'a> {
    Folder { here: PathBuf, away: PathBuf },
    Bucket(&'a mut S3Server),
}

impl<'a> Store<'a> {
    fn of(vault: &Vault, s3: Option<&'a mut S3Server>) -> Self {
        let here = PathBuf::from(vault.repo());
        match s3 {
            Some(s3) => Self::Bucket(s3),
            None => Self::Folder {
                away: here.with_extension("away"),
                here,
            },
        }
    }

    fn away(&mut self) {
        match self {
            Self::Folder { here, away } => fs::rename(here, away).unwrap(),
            Self::Bucket(s3) => s3.kill9(),
        }
    }

    fn back(&mut self) {
        match self {
            Self::Folder { here, away } => fs::rename(away, here).unwrap(),
            Self::Bucket(s3) => s3.restart(),
        }
    }
}
