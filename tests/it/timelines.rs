//! Timelines: each side of a fork stays restorable, whatever was written on the other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use pgp_pitr::pg::Lsn;

use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::ledger::{self, Commit, History, Target};
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

#[test]
fn three_timelines_in_one_repository_are_restored_on_either_side_of_their_forks() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let first = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
    let start: Lsn = first.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    ledger::write(&first, 2, 4);
    let backup_of_first = vault.backup(&first);
    let consistent: Lsn = backup_of_first["stop_lsn"].as_str().unwrap().parse().unwrap();
    ledger::write(&first, 3, 10);
    first.archive_now();

    let fork = pick(&History::read(&first, 1, start), consistent, 15);
    let lsn = fork.lsn.to_string();
    let second = promoted(&vault, &scratch, "second", &["--target-lsn", &lsn]);
    assert_eq!(
        ledger::rows(&second),
        History::read(&first, 1, start).expected(&Target::Lsn(fork.lsn), true)
    );
    // Both go on, into the same repository.
    for server in [&second, &first] {
        ledger::write(server, 3, 5);
    }
    let backup_of_second = vault.backup(&second);
    first.sql("select pg_create_restore_point('only on the first')");
    for server in [&second, &first] {
        ledger::write(server, 3, 10);
        server.archive_now();
    }
    let on_first = History::read(&first, 1, start);
    let left_first = left_at(&second, 1);
    let on_second = on_first.then(left_first, &History::read(&second, 2, left_first));
    assert_eq!(
        ledger::rows(&second),
        on_second.expected(&Target::Name("never".to_owned()), true)
    );

    let fork = pick(&on_second, left_first, 30);
    let third = promoted(&vault, &scratch, "third", &["--target-xid", &fork.xid.to_string()]);
    ledger::write(&third, 3, 10);
    ledger::write(&second, 1, 1);
    for server in [&third, &second] {
        server.archive_now();
    }
    let left_second = left_at(&third, 2);
    assert!(left_second > left_first);
    let on_third = on_second.then(left_second, &History::read(&third, 3, left_second));

    let restored = |arguments: &[&str], becomes: Recovered| -> (BTreeSet<i64>, serde_json::Value) {
        let to = scratch.join("restored");
        let arguments = [arguments, &["--archive", "off", "--json"]].concat();
        let plan = vault.restore(&to, &arguments).with_code(0).json();
        let mut server = Cluster::on_directory(first.major(), &to);
        assert_eq!(server.recover(), becomes, "{arguments:?}\n{}", server.log());
        let rows = ledger::rows(&server);
        drop(server);
        fs::remove_dir_all(&to).unwrap();
        (rows, plan)
    };
    let before = pick(&on_first, consistent, 7);
    let after = pick(&on_first, left_first, 20);
    let on_two = pick(&on_second, left_first, 25);
    let on_three = pick(&on_third, left_second, 20);
    let (one, two) = (&backup_of_first["id"], &backup_of_second["id"]);
    for (timeline, path, history, target, backup) in [
        ("1", &[1][..], &on_first, Target::Lsn(before.lsn), one),
        ("1", &[1], &on_first, Target::Time(after.time), one),
        ("2", &[1, 2], &on_second, Target::Xid(before.xid), one),
        ("2", &[1, 2], &on_second, Target::Lsn(on_two.lsn), two),
        ("3", &[1, 2, 3], &on_third, Target::Lsn(before.lsn), one),
        ("latest", &[1, 2, 3], &on_third, Target::Time(on_three.time), two),
    ] {
        let (kind, value) = (format!("--target-{}", target.kind()), target.value());
        let (rows, plan) = restored(&[&kind, &value, "--target-timeline", timeline], Recovered::Paused);
        assert_eq!(rows, history.expected(&target, true), "{timeline} {target:?}");
        assert_eq!(plan["timeline_path"], serde_json::json!(path));
        assert_eq!(plan["timeline"], path.len());
        assert_eq!(&plan["backup"], backup, "{timeline} {target:?}");
    }
    for (timeline, server) in [("1", &first), ("2", &second), ("latest", &third)] {
        let (rows, _) = restored(&["--latest", "--target-timeline", timeline], Recovered::Open);
        assert_eq!(rows, ledger::rows(server), "the end of {timeline}");
    }

    let plan = |arguments: &[&str]| vault.pitr(["plan"].iter().chain(arguments));
    let name = ["--target-name", "only on the first"];
    let refused = plan(&name).with_code(3);
    assert!(
        refused.stderr.contains("timeline 1 has it: --target-timeline 1"),
        "{}",
        refused.stderr
    );
    plan(&[&name[..], &["--target-timeline", "2"]].concat()).with_code(3);
    plan(&[&name[..], &["--target-timeline", "1"]].concat()).with_code(0);
    plan(&["--latest", "--target-timeline", "4"]).with_code(3);
    // A backup of the second timeline is no way to the first.
    let second_only = ["--latest", "--target-timeline", "1", "--backup", two.as_str().unwrap()];
    plan(&second_only).with_code(3);
}

#[test]
fn a_timeline_that_no_backup_leads_to_fails_check_and_what_can_be_had_on_the_other_is_named() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let first = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
    ledger::write(&first, 2, 4);
    let early = vault.backup(&first);
    ledger::write(&first, 2, 4);
    let fork: String = first.sql("select pg_current_wal_lsn()");
    ledger::write(&first, 2, 4);
    let late = vault.backup(&first);
    ledger::write(&first, 2, 4);
    first.archive_now();
    let second = promoted(&vault, &scratch, "second", &["--target-lsn", &fork]);
    ledger::write(&second, 2, 4);
    second.archive_now();
    let check = |code| vault.pitr(["check", "-d", &second.conninfo()]).with_code(code);
    let on_two = |answer: &Answer| {
        let json = vault.pitr(["list", "--json"]).with_code(0).json();
        let listed = json["clusters"][0]["timelines_without_backup"] == serde_json::json!([2]);
        assert_eq!(
            listed,
            answer.stdout.contains("no base backup leads to timeline 2"),
            "{json}"
        );
        let text = vault.pitr(["list"]).with_code(0).stdout;
        assert_eq!(listed, text.contains("no backup leads to timeline 2"), "{text}");
        assert_eq!(listed, text.contains("take a base backup now"), "{text}");
        listed
    };
    assert!(!on_two(&check(0)));

    // As if there had been no backup before the fork.
    let listed = vault.pitr(["list", "--json"]).with_code(0).json();
    let system = listed["clusters"][0]["system_identifier"].as_str().unwrap();
    let backups = Path::new(vault.repo()).join("clusters").join(system).join("backups");
    fs::remove_dir_all(backups.join(early["id"].as_str().unwrap())).unwrap();
    let answer = check(3);
    assert!(on_two(&answer));
    assert!(
        answer.stdout.contains(late["id"].as_str().unwrap()),
        "{}",
        answer.stdout
    );
    assert!(answer.stderr.contains("pgp-pitr backup"), "{}", answer.stderr);

    let plan = |arguments: &[&str]| vault.pitr(["plan"].iter().chain(arguments));
    let on_first = plan(&["--latest", "--target-timeline", "1", "--json"])
        .with_code(0)
        .json();
    let refused = plan(&["--latest"]).with_code(3);
    let last = on_first["reaches"]["last_commit_at"].as_str().unwrap();
    let named = format!("but timeline 1 up to {last}");
    assert!(refused.stderr.contains(&named), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("--latest --target-timeline 1"),
        "{}",
        refused.stderr
    );
    let refused = plan(&["--latest", "--json"]).with_code(3).json();
    let flags = &refused["elsewhere"][0]["flags"];
    assert_eq!(*flags, serde_json::json!(["--latest", "--target-timeline", "1"]));
    let refused = plan(&["--target-time", last]).with_code(3);
    assert!(
        refused.stderr.contains("timeline 1 has it: --target-timeline 1"),
        "{}",
        refused.stderr
    );

    vault.backup(&second);
    assert!(!on_two(&check(0)));
    plan(&["--latest"]).with_code(0);

    // What is missing where a timeline begins is a gap, too.
    let on_second = || vault.pitr(["list", "--json"]).with_code(0).json()["clusters"][0]["wal"][1].clone();
    let start = on_second()["start_lsn"].as_str().unwrap().to_owned();
    assert_eq!(on_second()["gaps"], serde_json::json!([]));
    for segments in [0, 1] {
        let size = "(select setting::numeric from pg_settings where name = 'wal_segment_size')";
        let name = format!("select pg_walfile_name('{start}'::pg_lsn + 1 + {segments} * {size})");
        vault.lose(&second.sql(&name));
    }
    assert_eq!(on_second()["gaps"][0]["to_lsn"], on_second()["start_lsn"]);
}

#[test]
fn what_a_promotion_leaves_of_the_old_timeline_is_archived_fetched_and_restored() {
    for major in [Major::usual(), Major::newest()] {
        let vault = Vault::folder();
        let scratch = Scratch::new();
        let mut cluster = vault.protect(Cluster::builder(major).conf("autovacuum", "off"));
        ledger::write(&cluster, 1, 4);
        vault.backup(&cluster);
        ledger::write(&cluster, 2, 8);
        let on_first = ledger::rows(&cluster);
        let last = cluster.sql("select pg_walfile_name(pg_current_wal_lsn())");
        // As after a crash: what was written last is in no archive yet.
        cluster.stop(Stop::Immediate);
        fs::write(cluster.data_dir().join("standby.signal"), "").unwrap();
        cluster.start();
        cluster.promote();
        ledger::write(&cluster, 2, 4);
        cluster.archive_now();

        let partial = format!("{last}.partial");
        for file in [&partial, "00000002.history"] {
            let fetched = scratch.join(file);
            vault.fetch(&cluster, file, &fetched).with_code(0);
            let archived = cluster.data_dir().join("pg_wal").join(file);
            assert!(fs::read(&fetched).unwrap() == fs::read(archived).unwrap(), "{file}");
        }
        // Under its plain name there is only this.
        let padded = scratch.join("padded");
        vault.fetch(&cluster, &last, &padded).with_code(0);
        assert!(fs::read(padded).unwrap().len() == 16 << 20);
        let missing = scratch.join("missing");
        for file in ["00000003.history", "0000000100000000000000FE"] {
            vault.fetch(&cluster, file, &missing).with_code(1);
        }
        assert!(!missing.exists());

        for (timeline, rows) in [("1", on_first), ("2", ledger::rows(&cluster))] {
            let to = scratch.join("restored");
            let arguments = ["--latest", "--target-timeline", timeline, "--archive", "off"];
            vault.restore(&to, &arguments).with_code(0);
            let mut restored = Cluster::on_directory(major, &to);
            assert_eq!(restored.recover(), Recovered::Open, "{}", restored.log());
            assert_eq!(ledger::rows(&restored), rows, "timeline {timeline} of {major:?}");
            drop(restored);
            fs::remove_dir_all(&to).unwrap();
        }
    }
}

/// The `n`th commit of ledger rows after a place in the WAL.
fn pick(history: &History, after: Lsn, n: usize) -> Commit {
    let mut later = history
        .commits()
        .filter(|commit| commit.lsn > after && !commit.rows.is_empty());
    later.nth(n).expect("enough commits").clone()
}

/// A server restored to a target, promoted there, and archiving on into the same repository.
fn promoted(vault: &Vault, scratch: &Scratch, name: &str, target: &[&str]) -> Cluster {
    let to = scratch.join(name);
    vault
        .restore(&to, &[target, &["--target-action", "promote"]].concat())
        .with_code(0);
    let mut server = Cluster::on_directory(Major::usual(), &to);
    assert_eq!(server.recover(), Recovered::Open, "{}", server.log());
    server
}

/// Where the server's history left timeline `parent`.
fn left_at(server: &Cluster, parent: u32) -> Lsn {
    let history = server.sql(&format!("select pg_read_file('pg_wal/{:08X}.history')", parent + 1));
    let line = history
        .lines()
        .find(|line| line.starts_with(&format!("{parent}\t")))
        .expect("a line of the parent");
    line.split('\t').nth(1).unwrap().parse().unwrap()
}
