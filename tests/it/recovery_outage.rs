//! A server in recovery whose store goes away, or hands out damaged bytes: it never ends recovery early.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::DateTime;
use pgp_pitr::env::Env;
use pgp_pitr::error::{Class, Explain};
use pgp_pitr::repo::{self, Fetched};
use pgp_pitr::store::{self, S3Settings};

use crate::support::chance::Chance;
use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::ledger;
use crate::support::made_up::{self, SYSTEM};
use crate::support::process::wait_for;
use crate::support::program::{Answer, Program};
use crate::support::s3::{BUCKET, S3Server};
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

#[test]
fn a_recovery_whose_store_goes_away_stops_and_finishes_with_every_row_when_it_is_back() {
    let mut s3 = S3Server::start();
    let vault = Vault::s3(&s3, "outage");
    let primary = vault.protect(Cluster::builder(Major::usual()));
    vault.backup(&primary);
    let segments: Vec<String> = (0..3)
        .map(|_| {
            ledger::write(&primary, 1, 3);
            primary.archive_now()
        })
        .collect();
    let rows = ledger::rows(&primary);
    let scratch = Scratch::new();

    // Under recovery.signal: refused connections first, then one that is never answered.
    let data = scratch.join("recovery");
    vault
        .restore(&data, &["--latest", "--target-action", "promote", "--archive", "off"])
        .with_code(0);
    be_impatient(&data);
    s3.kill9();
    let mut server = Cluster::on_directory(primary.major(), &data);
    assert_eq!(server.recover(), Recovered::Stopped, "{}", server.log());
    assert!(server.log().contains("onnection refused"), "{}", server.log());
    assert!(server.log().contains("exit code 205"), "{}", server.log());
    assert_not_promoted(&data);
    s3.restart();
    s3.pause();
    assert_eq!(server.recover(), Recovered::Stopped, "{}", server.log());
    assert_not_promoted(&data);
    s3.resume();

    // A segment in the middle is damaged: that is no end of the WAL either.
    let object = s3.file_of(
        BUCKET,
        &format!("outage/{}", name_in_repository(&primary, &segments[1])),
    );
    let healthy = fs::read(&object).unwrap();
    let mut damaged = healthy.clone();
    // Many bytes: one byte in a hundred of a compressed file can change and still give the same content.
    let middle = healthy.len() / 2;
    damaged[middle - 32..middle + 32]
        .iter_mut()
        .for_each(|byte| *byte ^= 0x10);
    fs::write(&object, &damaged).unwrap();
    assert_eq!(server.recover(), Recovered::Stopped, "{}", server.log());
    assert!(server.log().contains("exit code 204"), "{}", server.log());
    assert!(
        server.log().contains(&segments[1]),
        "the object is not named: {}",
        server.log()
    );
    assert_not_promoted(&data);
    fs::write(&object, &healthy).unwrap();

    assert_eq!(server.recover(), Recovered::Open, "{}", server.log());
    assert_eq!(ledger::rows(&server), rows);
    server.stop(Stop::Immediate);

    // Under standby.signal it waits, and goes on.
    let data = scratch.join("standby");
    let conninfo = "host=127.0.0.1 port=1 user=nobody";
    vault
        .restore(&data, &["--latest", "--standby", conninfo, "--archive", "off"])
        .with_code(0);
    be_impatient(&data);
    s3.pause();
    let mut standby = Cluster::on_directory(primary.major(), &data);
    standby.start_without_waiting();
    wait_for("the standby is refused its WAL", || {
        standby.log().contains("pgp-restore: error").then_some(())
    });
    assert!(!standby.has_exited(), "{}", standby.log());
    s3.resume();
    wait_for("the standby has every row", || {
        let seen = standby.try_sql("select count(*) from ledger").ok()?;
        (seen == rows.len().to_string()).then_some(())
    });
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");
    assert_eq!(ledger::rows(&standby), rows);
}

#[test]
fn pgp_restore_gives_up_on_a_store_that_never_answers_when_it_was_told_to() {
    let s3 = S3Server::start();
    let vault = Vault::s3(&s3, "paused");
    let scratch = Scratch::new();
    let data = scratch.folder("data");
    let fetch = || {
        let mut command = Program::Restore.command();
        command
            .current_dir(&data)
            .args(["000000010000000000000003", "RECOVERYXLOG", "--retry-for", "1s"])
            .args(["--cluster", &SYSTEM.to_string(), "--repo"])
            .arg(vault.repo())
            .arg("--config")
            .arg(vault.config().unwrap());
        Answer::of(&mut command)
    };
    // The repository has answered: this, and only this, is the end of the WAL.
    fetch().with_code(1);
    s3.pause();
    let begun = Instant::now();
    fetch().with_code(5);
    fs::write(data.join("recovery.signal"), "").unwrap();
    fetch().with_code(205);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    s3.resume();
    fetch().with_code(1);
}

#[test]
fn a_flipped_bit_in_a_stored_segment_is_never_handed_out() {
    let scratch = Scratch::new();
    let segment = made_up::segment(3, 1);
    let path = segment.put_into(scratch.path());
    let repo = scratch.join("repo");
    let repo_text = repo.to_str().unwrap();
    Program::Pitr.run(["init", "--repo", repo_text]).with_code(0);
    Program::Archive
        .run([path.to_str().unwrap(), "--repo", repo_text])
        .with_code(0);
    let object = repo.join(format!("clusters/{SYSTEM}/wal/00000001/00000000/{}.zst", segment.name));
    let healthy = fs::read(&object).unwrap();
    let env = Arc::new(Env::made_up(&[], DateTime::UNIX_EPOCH, 1));
    let store = store::open(&repo_text.parse().unwrap(), &S3Settings::default(), &env).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let fetch = || {
        let mut content = Vec::new();
        let file = segment.name.parse().unwrap();
        let fetched = runtime.block_on(repo::fetch(&store, SYSTEM, file, &mut content));
        fetched.map(|fetched| (fetched, content))
    };
    let chance = Chance::new();
    // Everywhere, and most of all where the identity stands.
    let places = (0..400).map(|n| chance.below(if n % 4 == 0 { 256 } else { healthy.len() }));
    for place in places {
        let mut damaged = healthy.clone();
        damaged[place] ^= 1 << chance.below(8);
        fs::write(&object, &damaged).unwrap();
        match fetch() {
            // A bit that means nothing: the content is whole all the same.
            Ok((fetched, content)) => assert!(fetched == Fetched::Whole && content == segment.bytes, "byte {place}"),
            Err(error) => assert_eq!(error.class(), Class::Damaged, "byte {place}: {error}"),
        }
    }
    for length in [0, 1, 100, healthy.len() / 2, healthy.len() - 1] {
        fs::write(&object, &healthy[..length]).unwrap();
        assert_eq!(fetch().unwrap_err().class(), Class::Damaged, "{length} bytes");
    }
    // And through the program, as the server calls it.
    let mut damaged = healthy.clone();
    damaged[healthy.len() / 2] ^= 1;
    fs::write(&object, damaged).unwrap();
    let data = scratch.folder("data");
    fs::write(data.join("recovery.signal"), "").unwrap();
    let mut command = Program::Restore.command();
    command
        .current_dir(&data)
        .args([&segment.name, "RECOVERYXLOG", "--retry-for", "0s", "--repo", repo_text])
        .args(["--cluster", &SYSTEM.to_string()]);
    let answer = Answer::of(&mut command).with_code(204);
    assert!(answer.stderr.contains(&segment.name), "{}", answer.stderr);
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "something was left");
}

/// Makes the server give up soon.
fn be_impatient(data: &Path) {
    let path = data.join("postgresql.auto.conf");
    let settings = fs::read_to_string(&path).unwrap();
    let impatient = settings.replace(" %f %p ", " %f %p --retry-for 3s ");
    assert_ne!(impatient, settings, "restore_command has changed");
    fs::write(&path, impatient).unwrap();
    ServerUser::get().give(&path);
}

#[track_caller]
fn assert_not_promoted(data: &Path) {
    assert!(data.join("recovery.signal").exists(), "recovery has ended");
    let histories: Vec<PathBuf> = fs::read_dir(data.join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "history"))
        .collect();
    assert!(histories.is_empty(), "there is a new timeline: {histories:?}");
}

fn name_in_repository(cluster: &Cluster, segment: &str) -> String {
    let system = cluster.sql("select system_identifier from pg_control_system()");
    format!(
        "clusters/{system}/wal/{}/{}/{segment}.zst",
        &segment[..8],
        &segment[8..16]
    )
}
