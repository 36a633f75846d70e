//! Backups and restores on a disk that breaks.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{kill_after, matters};
use crate::support::chance::Chance;
use crate::support::cluster::{Cluster, Recovered};
use crate::support::disk::SmallDisk;
use crate::support::ledger;
use crate::support::program::Answer;
use crate::support::strace::{self, Break, Broken};
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

/// Each call of a kind is broken where there are not more than so many.
const FEW: usize = 16;
/// Of calls that are made a thousand times, so many are broken, drawn by chance.
const SAMPLES: usize = 3;

#[test]
fn a_restore_that_breaks_cannot_be_started_and_the_same_command_finishes_it() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()));
    ledger::write(&primary, 1, 4);
    let rows = ledger::rows(&primary);
    vault.backup(&primary);
    primary.archive_now();
    let scratch = Scratch::new();
    let whole = scratch.join("whole");
    // Not below the data directory: `initdb` would have made that already.
    let trace = strace::watch(&restore(&vault, &whole), &whole);
    assert_eq!(trace.answer.code, 0, "{}", trace.answer.stderr);
    let files = trace.last(&["pwrite64("]);
    let all_synced = trace.last(&["syncfs("]);
    let control_synced = trace.last(&["fsync(", "global/pg_control#"]);
    let control_named = trace.last(&["rename", "global/pg_control#"]);
    let freed = trace.last(&["unlink", "pgp-restore-in-progress.json"]);
    assert!(files < all_synced && all_synced < control_synced && control_synced < control_named);
    assert!(control_named < freed);

    let chance = Chance::new();
    let mut felt = 0;
    for (call, how) in sample(&trace.calls.into_iter().collect::<Vec<_>>(), &chance) {
        let about = format!("{call:?} {how:?}");
        let to = scratch.join("broken");
        let Broken { answer, disk_failed } = strace::broken(&restore(&vault, &to), &call, how);
        if answer.code != 0 {
            felt += 1;
            let codes = if how == Break::Kill { vec![137] } else { vec![1, 4, 5] };
            assert!(codes.contains(&answer.code), "{about}: {answer:?}");
            let startable = to.join("global/pg_control").exists();
            if startable {
                // The very last steps: all is there, and was durable before.
                assert_same(&whole, &to, &about);
            }
            let claimed = !to.exists() || !startable || to.join("pgp-restore-in-progress.json").exists();
            Answer::of(&mut restore(&vault, &to)).with_code(if claimed { 0 } else { 2 });
        } else {
            // What it tells people may be lost with impunity.
            assert!(
                call.name == "write" || !disk_failed || !matters(call.name),
                "{about}: an error was swallowed"
            );
        }
        assert_same(&whole, &to, &about);
        fs::remove_dir_all(&to).unwrap();
    }
    assert!(felt > 10, "only {felt} faults were felt");

    too_small_a_disk_is_refused_before_a_byte_is_written(&vault);
    let mut restored = Cluster::on_directory(primary.major(), &whole);
    assert_eq!(restored.recover(), Recovered::Paused);
    assert_eq!(ledger::rows(&restored), rows);
}

fn too_small_a_disk_is_refused_before_a_byte_is_written(vault: &Vault) {
    let disk = SmallDisk::new(8 << 20);
    let to = disk.path().join("data");
    let answer = vault.restore(&to, &["--immediate"]).with_code(1);
    let [error, hint] = last_two_lines(&answer.stderr);
    assert!(error.contains("bytes") && error.contains("free"), "{}", answer.stderr);
    assert!(hint.contains("make room"), "{}", answer.stderr);
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
}

#[test]
fn a_backup_killed_at_any_moment_is_invisible_and_the_next_is_whole() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()));
    ledger::write(&primary, 1, 4);
    let begun = Instant::now();
    let mut whole = BTreeSet::from([id(&vault.backup(&primary))]);
    let mut usual = usize::try_from(begun.elapsed().as_millis()).unwrap();
    let chance = Chance::new();
    let mut killed = 0;
    for _ in 0..8 {
        let mut backup = vault.command();
        backup.args(["backup", "-d", &primary.conninfo()]);
        let moment = Duration::from_millis(chance.below(usual) as u64);
        let code = kill_after(&mut backup, moment);
        match code {
            None => killed += 1,
            // It was quicker than the first, which an idle machine would not have kept waiting.
            Some(_) => usual = usual / 2 + 1,
        }
        let seen = backups(&vault);
        assert!(seen.is_superset(&whole), "{moment:?}: {seen:?}");
        // One that was killed at its very end may be whole; it is tried below, as all are.
        assert!(seen.len() <= whole.len() + 1, "{moment:?}: {seen:?}");
        assert!(
            code != Some(0) || seen.len() == whole.len() + 1,
            "{moment:?}: acknowledged, then lost"
        );
        whole = seen;
    }
    assert!(killed > 2, "only {killed} were killed");
    whole.insert(id(&vault.backup(&primary)));
    primary.archive_now();
    assert_eq!(backups(&vault), whole);
    let scratch = Scratch::new();
    for backup in whole {
        let to = scratch.join(&backup);
        vault.restore(&to, &["--immediate", "--backup", &backup]).with_code(0);
        let mut verify = primary.tool("pg_verifybackup");
        verify.args(["-n", "-i", "recovery.signal", "-i", "postgresql.auto.conf"]);
        Answer::of(verify.arg(&to)).with_code(0);
        fs::remove_dir_all(&to).unwrap();
    }
}

fn restore(vault: &Vault, to: &Path) -> Command {
    let mut command = vault.command();
    // One thread, so that the same run makes the same calls.
    command.args(["restore", "--immediate", "--jobs", "1", "--to"]).arg(to);
    command
}

/// Each of the few calls of a kind; some of the many.
fn sample(calls: &[strace::Call], chance: &Chance) -> Vec<(strace::Call, Break)> {
    let mut kinds: Vec<&str> = calls.iter().map(|call| call.name).collect();
    kinds.dedup();
    let mut sampled = Vec::new();
    for kind in kinds {
        let of_kind: Vec<_> = calls.iter().filter(|call| call.name == kind).collect();
        if of_kind.len() <= FEW {
            let each = of_kind
                .iter()
                .flat_map(|call| call.breaks().into_iter().map(|how| ((*call).clone(), how)));
            sampled.extend(each);
        } else {
            for _ in 0..SAMPLES {
                let call = of_kind[chance.below(of_kind.len())];
                let breaks = call.breaks();
                sampled.push((call.clone(), breaks[chance.below(breaks.len())]));
            }
            let last = of_kind[of_kind.len() - 1];
            sampled.extend(last.breaks().into_iter().map(|how| (last.clone(), how)));
        }
    }
    sampled
}

#[track_caller]
fn assert_same(whole: &Path, other: &Path, about: &str) {
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference", "-x", "pgp-restore-in-progress.json"]);
    let answer = Answer::of(diff.args([whole, other]));
    assert_eq!(answer.code, 0, "{about}: {}", answer.stdout);
}

/// The ids of the backups that can be seen. In one second's their order means nothing.
fn backups(vault: &Vault) -> BTreeSet<String> {
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    let backups = list["clusters"][0]["backups"].as_array().unwrap();
    backups.iter().map(id).collect()
}

fn id(backup: &Value) -> String {
    backup["id"].as_str().unwrap().to_owned()
}

fn last_two_lines(text: &str) -> [&str; 2] {
    let lines: Vec<&str> = text.lines().collect();
    [lines[lines.len() - 2], lines[lines.len() - 1]]
}
