//! A recovery that is watched: what is told is true at each moment, and the end is told as what it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use chrono::{DateTime, Utc};
use pgp_pitr::pg::Lsn;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::ledger;
use crate::support::process::{signal, wait_for};
use crate::support::program::{Answer, Program};
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

/// So many WAL files lie between the backup and the target.
const FILES: usize = 8;

/// A primary whose WAL is in a repository, and a moment in the middle of it.
pub(crate) struct Scene {
    pub(crate) vault: Vault,
    pub(crate) primary: Cluster,
    pub(crate) target: DateTime<Utc>,
    /// How many rows the ledger has at that moment.
    pub(crate) rows: usize,
    pub(crate) scratch: Scratch,
}

impl Scene {
    pub(crate) fn play(major: &'static Major) -> Self {
        let vault = Vault::folder();
        let builder = Cluster::builder(major).initdb_args(["--wal-segsize=1"]);
        let primary = vault.protect(builder.conf("autovacuum", "off"));
        ledger::write(&primary, 1, 2);
        vault.backup(&primary);
        for _ in 0..FILES {
            // Enough that the server, which reads ahead by some dozens of blocks, is not two files ahead.
            ledger::write(&primary, 1, 24);
            primary.archive_now();
        }
        let rows = ledger::rows(&primary).len();
        let target: DateTime<Utc> = primary
            .sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
            .parse()
            .unwrap();
        ledger::write(&primary, 1, 3);
        primary.archive_now();
        Self {
            vault,
            primary,
            target,
            rows,
            scratch: Scratch::new(),
        }
    }

    /// Restores to the target, with a `restore_command` that takes its time.
    fn restored(&self, name: &str, more: &[&str]) -> PathBuf {
        let to = self.scratch.join(name);
        let time = self.target.to_rfc3339();
        let arguments = [&["--archive", "off"], more].concat();
        let timed = [&arguments[..], &["--target-time", &time]].concat();
        let arguments = if more.contains(&"--latest") { &arguments } else { &timed };
        self.vault.restore(&to, arguments).with_code(0);
        slow_down(&to, &self.scratch);
        to
    }

    fn server(&self, directory: &Path) -> Cluster {
        Cluster::on_directory(self.primary.major(), directory)
    }
}

/// `pgp-restore` with a pause before each WAL file.
pub(crate) fn slow_restore(scratch: &Scratch) -> PathBuf {
    let slow = scratch.join("slow-restore");
    let program = Program::Restore.path();
    fs::write(
        &slow,
        format!("#!/bin/sh\nsleep 0.4\nexec '{}' \"$@\"\n", program.display()),
    )
    .unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    slow
}

/// Puts a pause before each WAL file that the server fetches.
fn slow_down(directory: &Path, scratch: &Scratch) {
    let (slow, program) = (slow_restore(scratch), Program::Restore.path());
    let path = directory.join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).unwrap();
    let slowed = text.replace(
        &format!("restore_command = '{}", program.display()),
        &format!("restore_command = '{}", slow.display()),
    );
    assert_ne!(text, slowed);
    fs::write(path, slowed).unwrap();
}

fn watch(directory: &Path, more: &[&str]) -> Answer {
    let mut command = Program::Pitr.command();
    Answer::of(command.arg("watch").arg(directory).args(["-U", "postgres"]).args(more))
}

fn watching(directory: &Path, more: &[&str]) -> Child {
    let mut command = Program::Pitr.command();
    command
        .arg("watch")
        .arg(directory)
        .args(["-U", "postgres", "--interval", "50ms"])
        .args(more);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub(crate) fn ended(child: Child) -> (i32, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

fn time(value: &Value) -> Option<DateTime<Utc>> {
    Some(value.as_str()?.parse().unwrap())
}

fn lsn(value: &Value) -> Option<Lsn> {
    Some(value.as_str()?.parse().unwrap())
}

#[test]
fn the_moments_told_of_a_recovery_rise_and_never_pass_its_target() {
    for major in [Major::usual(), Major::newest()] {
        let scene = Scene::play(major);
        for (name, role) in [("with-sql", "postgres"), ("without-sql", "nobody-at-all")] {
            moments_rise(&scene, name, role);
        }
    }
}

/// One recovery, looked at again and again until it has arrived.
fn moments_rise(scene: &Scene, name: &str, role: &str) {
    let directory = scene.restored(name, &[]);
    let mut server = scene.server(&directory);
    server.start_without_waiting();
    let mut looks: Vec<Value> = Vec::new();
    wait_for("the server has arrived", || {
        let mut command = Program::Pitr.command();
        command
            .arg("watch")
            .arg(&directory)
            .args(["-U", role, "--once", "--json", "--interval", "50ms"]);
        let answer = Answer::of(&mut command);
        // It may not be there yet.
        if answer.code == 3 && looks.is_empty() {
            return None;
        }
        looks.push(answer.with_code(0).json());
        (looks.last().unwrap()["state"] == "paused").then_some(())
    });
    let last = looks.last().unwrap();
    let stop = lsn(&last["target"]["lsn"]).expect("the restore has left its plan");
    let told: Vec<_> = looks.iter().filter(|look| look["state"] == "recovering").collect();
    assert!(told.len() >= 3, "{looks:?}");
    let positions: Vec<Lsn> = looks.iter().filter_map(|look| lsn(&look["replayed_lsn"])).collect();
    let moments: Vec<DateTime<Utc>> = looks.iter().filter_map(|look| time(&look["replayed_at"])).collect();
    let distinct = |count: usize| count >= FILES / 2;
    for (what, rises) in [
        ("positions", positions.is_sorted() && positions.last() <= Some(&stop)),
        ("moments", moments.is_sorted() && moments.last() <= Some(&scene.target)),
        (
            "many positions",
            distinct(positions.iter().collect::<std::collections::BTreeSet<_>>().len()),
        ),
        (
            "many moments",
            distinct(moments.iter().collect::<std::collections::BTreeSet<_>>().len()),
        ),
    ] {
        assert!(rises, "{what} of {name}: {looks:#?}");
    }
    let expected = if role == "postgres" { "sql" } else { "title" };
    assert_eq!(last["by"], expected, "{last}");
    assert_eq!(last["no_sql"].is_null(), role == "postgres", "{last}");
    assert_eq!(last["left_bytes"], 0);
    assert_eq!(ledger::rows(&server).len(), scene.rows);
    // Nobody was let in before the server was ready, so none of ours was refused on the way.
    assert!(!server.log().contains("the database system is"), "{}", server.log());
}

#[test]
fn watching_ends_when_recovery_has() {
    let scene = Scene::play(Major::usual());
    for (name, more, state, words) in [
        ("pause", &[][..], "paused", "paused at its target"),
        ("promote", &["--target-action", "promote"], "running", "timeline 2"),
        (
            "shutdown",
            &["--target-action", "shutdown"],
            "stopped_at_target",
            "stopped at its target",
        ),
        ("latest", &["--latest"], "running", "timeline 2"),
    ] {
        let directory = scene.restored(name, more);
        let mut server = scene.server(&directory);
        server.start_without_waiting();
        wait_for("the server is there", || {
            directory.join("postmaster.pid").exists().then_some(())
        });
        let (code, stdout, stderr) = ended(watching(&directory, &["--json"]));
        assert_eq!(code, 0, "{name}: {stderr}");
        let document: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(document["state"], state, "{name}: {document}");
        assert!(
            stderr.contains("starting") || stderr.contains("replayed up to"),
            "{stderr}"
        );
        let told = watch(&directory, &[]).with_code(0);
        assert!(told.stdout.contains(words), "{name}: {told:?}");
    }
}

#[test]
fn a_server_that_dies_while_it_is_watched_is_told_with_its_last_words() {
    let scene = Scene::play(Major::usual());
    let directory = scene.restored("killed", &[]);
    let mut server = scene.server(&directory);
    server.start_without_waiting();
    wait_for("the server is there", || {
        directory.join("postmaster.pid").exists().then_some(())
    });
    let child = watching(&directory, &[]);
    wait_for("it replays", || {
        let seen = watch(&directory, &["--once", "--json", "--interval", "50ms"]);
        (seen.code == 0 && seen.json()["state"] == "recovering").then_some(())
    });
    server.kill9();
    fs::remove_file(directory.join("postmaster.pid")).unwrap();
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(
        stderr.contains("has stopped; it had replayed up to") && stderr.contains("hint:"),
        "{stderr}"
    );

    // And one that gives up by itself.
    let path = directory.join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "recovery_target_time = '2100-01-01 00:00:00+00'\n").unwrap();
    server.start_without_waiting();
    wait_for("the server is there", || {
        directory.join("postmaster.pid").exists().then_some(())
    });
    let (code, _, stderr) = ended(watching(&directory, &[]));
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains("recovery ended before configured recovery target was reached"),
        "{stderr}"
    );
    assert!(
        stderr.contains("the time left is not told"),
        "the plan is of another target: {stderr}"
    );
}

#[test]
fn a_standby_is_followed_until_somebody_ends_that() {
    let scene = Scene::play(Major::usual());
    let directory = scene.restored("standby", &["--latest", "--standby", &scene.primary.conninfo()]);
    let mut server = scene.server(&directory);
    server.start();
    server.wait_until("select count(*) > 0 from pg_stat_wal_receiver");
    let child = watching(&directory, &["--json"]);
    std::thread::sleep(std::time::Duration::from_secs(1));
    signal(child.id(), Signal::TERM);
    let (code, stdout, stderr) = ended(child);
    assert_eq!(code, 0, "{stderr}");
    let document: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&document["state"], &document["standby"]),
        (&"recovering".into(), &true.into())
    );
    assert!(document["target"].is_null(), "{document}");
    server.sql("select pg_wal_replay_pause()");
    server.wait_until("select pg_is_wal_replay_paused()");
    wait_for("the pause is told", || {
        let answer = watch(&directory, &["--once"]).with_code(0);
        answer.stdout.contains("paused before any target").then_some(())
    });
    server.stop(Stop::Fast);
}

#[test]
fn what_can_not_be_watched_is_refused_with_what_to_do() {
    let scratch = Scratch::new();
    let empty = scratch.folder("empty");
    let file = scratch.join("file");
    fs::write(&file, "").unwrap();
    let half = scratch.folder("half");
    fs::write(half.join("PG_VERSION"), "15\n").unwrap();
    ServerUser::get().give(&half);
    for (path, said) in [
        (scratch.join("absent"), "is not a directory"),
        (file, "is not a directory"),
        (empty, "is not a data directory"),
        (half, "is not a data directory"),
    ] {
        for more in [&[][..], &["--once", "--json"]] {
            let answer = watch(&path, more).with_code(2);
            assert!(answer.stdout.is_empty() && answer.stderr.contains(said), "{answer:?}");
            assert!(
                answer.stderr.contains("hint:") && answer.stderr.lines().count() <= 3,
                "{answer:?}"
            );
        }
    }
    let stopped = Cluster::builder(Major::usual()).build_stopped();
    let answer = watch(stopped.data_dir(), &["--once"]).with_code(3);
    assert!(
        answer.stderr.contains("no server runs in") && answer.stderr.contains("pg_ctl -D"),
        "{answer:?}"
    );
    // The file of a server that a power cut ended, whose number is another process's by now.
    fs::write(
        stopped.data_dir().join("postmaster.pid"),
        format!("{}\n", std::process::id()),
    )
    .unwrap();
    watch(stopped.data_dir(), &[]).with_code(3);
    for interval in ["0s", "-1s", "soon", ""] {
        let answer = watch(stopped.data_dir(), &[&format!("--interval={interval}")]).with_code(2);
        assert!(answer.stderr.contains("--interval"), "{answer:?}");
    }
    Answer::of(Program::Pitr.command().arg("watch")).with_code(2);
}

#[test]
fn a_restored_directory_with_its_plan_passes_pg_verifybackup() {
    let scene = Scene::play(Major::usual());
    let directory = scene.restored("verified", &[]);
    assert!(directory.join("pg_wal/pgp-restore-plan.json").exists());
    ServerUser::get().give(&directory);
    Answer::of(scene.primary.tool("pg_verifybackup").arg("-n").arg(&directory)).with_code(0);
    let mut server = scene.server(&directory);
    assert_eq!(server.recover(), Recovered::Paused);
}

#[test]
fn without_the_restores_plan_the_target_is_found_in_the_repository_of_the_restore_command() {
    let scene = Scene::play(Major::usual());
    let directory = scene.restored("by-hand", &[]);
    let plan = directory.join("pg_wal/pgp-restore-plan.json");
    let planned: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    fs::remove_file(&plan).unwrap();
    let mut server = scene.server(&directory);
    server.start_without_waiting();
    wait_for("the server is there", || {
        directory.join("postmaster.pid").exists().then_some(())
    });
    let seen = watch(&directory, &["--once", "--json"]).with_code(0);
    assert_eq!(seen.stderr, "");
    let target = &seen.json()["target"];
    assert_eq!(
        (&target["lsn"], &target["kind"]),
        (&planned["stop_lsn"], &"time".into()),
        "{target}"
    );
    assert_eq!(time(&target["last_commit_at"]), time(&planned["last_commit_at"]));
    // Another repository is named, which is not there: watched all the same.
    let seen = watch(&directory, &["--json", "--repo", "/nowhere/repo"]).with_code(0);
    assert!(seen.stderr.contains("the time left is not told"), "{seen:?}");
    assert_eq!(seen.json()["state"], "paused");
}
