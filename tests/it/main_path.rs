//! The ledger, through our three binaries on real servers: what was committed by a target is there after a
//! restore to it, and nothing else is.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use pgp_pitr::pg::Lsn;
use serde_json::Value;

use crate::support::chance::Chance;
use crate::support::cluster::{Cluster, Recovered};
use crate::support::ledger::{self, History, Target};
use crate::support::program::{Answer, Program};
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

#[test]
fn a_restore_from_a_folder_gives_exactly_the_rows_committed_by_its_target() {
    let vault = Vault::folder();
    Scene::play(&vault, Major::usual()).restore_to_random_targets(8);
}

#[test]
fn a_restore_from_s3_on_the_newest_major_gives_exactly_the_rows_committed_by_its_target() {
    let s3 = S3Server::start();
    let vault = Vault::s3(&s3, "ledger/of one");
    Scene::play(&vault, Major::newest()).restore_to_random_targets(6);
}

#[test]
fn a_restore_on_each_major_gives_exactly_the_rows_committed_by_its_target() {
    for major in Major::all() {
        eprintln!("PostgreSQL {}", major.number());
        let vault = Vault::folder();
        Scene::play(&vault, major).restore_to_random_targets(3);
    }
}

#[test]
fn a_server_that_was_idle_since_can_be_restored_to_each_moment_that_its_wal_tells_of() {
    let vault = Vault::folder();
    let scene = Scene::play(&vault, Major::usual());
    let all = ledger::rows(&scene.primary);
    let last = scene.history.commits().last().unwrap().time;
    let idle = Target::Time(scene.idle);
    assert!(scene.idle > last);
    for target in [&idle, &Target::Time(last), &Target::Lsn(scene.end)] {
        let (kind, value) = (format!("--target-{}", target.kind()), target.value());
        assert_eq!(scene.restored(&[&kind, &value], Recovered::Paused), all, "{target:?}");
    }
    assert_eq!(scene.restored(&["--latest"], Recovered::Open), all);
    let at_once = scene.restored(&["--immediate"], Recovered::Paused);
    let consistent = Target::Lsn(scene.backup_end);
    assert_eq!(at_once, scene.history.expected(&consistent, false));
    assert!(at_once.len() < all.len());
}

#[test]
fn where_nothing_was_committed_since_the_backup_each_later_target_gives_all_rows() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
    let start: Lsn = primary.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    ledger::write(&primary, 2, 4);
    let backup = vault.backup(&primary);
    let scene = Scene::of(&vault, primary, backup, start);
    let all = ledger::rows(&scene.primary);
    let (consistent, end) = (scene.backup_end.to_string(), scene.end.to_string());
    for target in [
        &["--target-time", &Target::Time(scene.idle).value()][..],
        &["--target-lsn", &consistent],
        &["--target-lsn", &consistent, "--exclusive"],
        &["--target-lsn", &end],
        &["--target-name", "archive_now"],
        &["--immediate"],
    ] {
        assert_eq!(scene.restored(target, Recovered::Paused), all, "{target:?}");
    }
}

#[test]
fn a_prepared_transaction_is_there_from_its_commit_on() {
    let vault = Vault::folder();
    let primary = vault.protect(
        Cluster::builder(Major::usual())
            .conf("autovacuum", "off")
            .conf("max_prepared_transactions", "5"),
    );
    let start: Lsn = primary.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    primary.sql("create table t (n int)");
    let backup = vault.backup(&primary);
    let xid = primary.sql(
        "begin; insert into t values (1); select pg_current_xact_id(); prepare transaction 'one';
         insert into t values (2)",
    );
    let before = primary.sql("select clock_timestamp()");
    primary.sql("commit prepared 'one'; insert into t values (3)");
    ledger::write(&primary, 1, 1);
    let scene = Scene::of(&vault, primary, backup, start);
    for (target, rows) in [
        (&["--target-xid", &xid][..], "1,2"),
        (&["--target-xid", &xid, "--exclusive"], "2"),
        (&["--target-time", &before], "2"),
    ] {
        let found = scene.restored_and(target, Recovered::Paused, |server| {
            server.sql("select string_agg(n::text, ',' order by n) from t")
        });
        assert_eq!(found, rows, "{target:?}");
    }
}

#[test]
fn a_restored_server_finds_its_repository_however_that_was_named() {
    let folder = Scratch::new();
    let name = "my repo's 100% + \u{fc}";
    let vault = Vault::at(&folder.join(name));
    let primary = vault.protect(Cluster::builder(Major::usual()));
    ledger::write(&primary, 1, 4);
    vault.backup(&primary);
    primary.archive_now();
    for repo in [
        format!("./{name}"),
        format!("file://{}/{name}", folder.path().display()),
    ] {
        let mut restore = Program::Pitr.command();
        restore.current_dir(folder.path()).args(["restore", "--to", "here"]);
        restore.args(["--latest", "--archive", "off", "--repo", &repo]);
        Answer::of(&mut restore).with_code(0);
        let mut server = Cluster::on_directory(primary.major(), folder.join("here"));
        assert_eq!(server.recover(), Recovered::Open, "{}", server.log());
        assert_eq!(ledger::rows(&server), ledger::rows(&primary), "{repo}");
        drop(server);
        std::fs::remove_dir_all(folder.join("here")).unwrap();
    }
}

#[test]
fn a_directory_that_is_in_use_is_not_touched() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()));
    vault.backup(&primary);
    let answer = vault.restore(primary.data_dir(), &["--latest"]).with_code(2);
    assert!(answer.stderr.contains("a server runs in"), "{}", answer.stderr);
    assert_eq!(primary.sql("select 1"), "1");
    let scratch = Scratch::new();
    let folder = scratch.folder("folder");
    std::fs::write(folder.join("thesis"), "years of work").unwrap();
    vault.restore(&folder, &["--latest"]).with_code(2);
    vault.restore(&folder.join("thesis"), &["--latest"]).with_code(2);
    assert_eq!(std::fs::read(folder.join("thesis")).unwrap(), b"years of work");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn a_time_without_a_zone_is_this_machines_and_the_answer_shows_both() {
    let vault = Vault::folder();
    let scene = Scene::play(&vault, Major::usual());
    let time = scene.history.commits().last().unwrap().time - TimeDelta::microseconds(1);
    let on_the_wall = (time + TimeDelta::minutes(330)).format("%F %T%.6f").to_string();
    let plan = |arguments: &[&str]| {
        let mut command = vault.command();
        command
            .env("TZ", "Asia/Kolkata")
            .args(["plan", "--target-time", &on_the_wall]);
        Answer::of(command.args(arguments)).with_code(0)
    };
    let value = |text: &Value| -> DateTime<Utc> {
        let text = text.as_str().unwrap();
        DateTime::parse_from_str(&text.replacen('T', " ", 1), "%F %T%.f%#z")
            .unwrap()
            .to_utc()
    };
    let json = plan(&["--json"]).json();
    assert_eq!(json["target"]["requested"].as_str(), Some(on_the_wall.as_str()));
    assert_eq!(value(&json["target"]["value"]), time);
    assert_eq!(value(&json["recovery_settings"]["recovery_target_time"]), time);
    let text = plan(&[]).stdout;
    for shown in [
        time.format("%FT%T%.6fZ").to_string(),
        on_the_wall.replacen(' ', "T", 1) + "+05:30",
    ] {
        assert!(text.contains(&shown), "{shown} is not in\n{text}");
    }
}

#[test]
fn a_target_that_can_not_be_had_is_refused_with_the_next_best_before_a_byte_is_written() {
    let vault = Vault::folder();
    let scene = Scene::play(&vault, Major::usual());
    let backup_ended: DateTime<Utc> = scene.backup["stopped_at"].as_str().unwrap().parse().unwrap();
    let second = TimeDelta::seconds(1);
    let time = |at: DateTime<Utc>| Target::Time(at).value();
    let far = scene.end.plus(64 << 20).to_string();
    let start = scene.backup["start_lsn"].as_str().unwrap();
    let end_of_backup = scene.backup["id"].as_str().unwrap();
    for (target, hint) in [
        (["--target-time", &time(scene.idle + second * 3600)], "--latest"),
        (["--target-lsn", &far], "--latest"),
        (["--target-time", &time(backup_ended - second)], end_of_backup),
        (["--target-lsn", start], end_of_backup),
        (["--target-xid", "4000000000"], ""),
        (["--target-name", "never"], ""),
    ] {
        let to = scene.scratch.join("refused");
        let answer = vault.restore(&to, &target).with_code(3);
        assert!(answer.stderr.contains(hint), "{target:?}: {}", answer.stderr);
        assert!((1..=3).contains(&answer.stderr.lines().count()), "{}", answer.stderr);
        assert!(!to.exists(), "{target:?}");
    }
    let to = scene.scratch.join("refused");
    let answer = vault.restore(&to, &["--latest", "--target-timeline", "7"]).with_code(3);
    assert!(answer.stderr.contains("timeline 7"), "{}", answer.stderr);
    assert!(!to.exists());
    for nonsense in [
        &["--target-time", "yesterdayish"][..],
        &["--target-lsn", "0/XYZ"],
        &["--target-xid", "first"],
        &["--target-name", ""],
        &["--latest", "--immediate"],
        &["--latest", "--exclusive"],
        &["--latest", "--target-timeline", "newest"],
        &[],
    ] {
        let answer = vault.restore(&to, nonsense).with_code(2);
        assert!(!answer.stderr.is_empty() && !to.exists(), "{nonsense:?}");
    }
}

#[test]
fn beyond_a_gap_in_the_wal_nothing_is_promised() {
    let vault = Vault::folder();
    let scene = Scene::play(&vault, Major::usual());
    let before = scene.history.commits().find(|commit| commit.lsn > scene.backup_end);
    let before = before.unwrap().xid.to_string();
    let after = scene.history.commits().last().unwrap();
    let gap = scene.primary.archive_now();
    ledger::write(&scene.primary, 1, 4);
    let later = scene.primary.sql("select pg_current_wal_lsn()");
    scene.primary.archive_now();
    vault.lose(&gap);
    for target in [&["--target-lsn", &later][..], &["--latest"]] {
        let answer = vault.pitr(["plan"].iter().chain(target)).with_code(3);
        assert!(answer.stderr.contains(&gap), "{}", answer.stderr);
    }
    for target in [
        ["--target-xid", &before],
        ["--target-time", &Target::Time(after.time).value()],
    ] {
        vault.pitr(["plan"].iter().chain(&target)).with_code(0);
    }
}

/// A server with a backup that was taken while it was written to, and all that its ledger holds.
struct Scene<'a> {
    vault: &'a Vault,
    primary: Cluster,
    backup: Value,
    /// From here on the backup is consistent.
    backup_end: Lsn,
    history: History,
    /// A moment after the last commit that the archived WAL knows to be past.
    idle: DateTime<Utc>,
    /// Where the archived WAL ends.
    end: Lsn,
    scratch: Scratch,
}

impl<'a> Scene<'a> {
    fn play(vault: &'a Vault, major: &'static Major) -> Self {
        // Nobody else commits: the last commit is ours.
        let primary = vault.protect(Cluster::builder(major).conf("autovacuum", "off"));
        let start: Lsn = primary.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
        ledger::write(&primary, 2, 4);
        let backup = std::thread::scope(|scope| {
            let backup = scope.spawn(|| vault.backup(&primary));
            while !backup.is_finished() {
                ledger::write(&primary, 3, 8);
            }
            backup.join().unwrap()
        });
        ledger::write(&primary, 4, 12);
        primary.sql("select pg_create_restore_point('half way')");
        primary.archive_now();
        ledger::write(&primary, 4, 12);
        primary.sql("select pg_create_restore_point('it''s \"over\" \\ =')");
        ledger::write(&primary, 4, 12);
        Self::of(vault, primary, backup, start)
    }

    /// The scene as it is now. From `start` on its WAL is known.
    fn of(vault: &'a Vault, primary: Cluster, backup: Value, start: Lsn) -> Self {
        let idle: DateTime<Utc> = primary
            .sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
            .parse()
            .unwrap();
        primary.archive_now();
        let history = History::read(&primary, 1, start);
        let planned = vault.pitr(["plan", "--latest", "--json"]).with_code(0).json();
        Self {
            vault,
            backup_end: lsn(&backup["stop_lsn"]),
            backup,
            history,
            idle,
            end: lsn(&planned["reaches"]["lsn"]),
            primary,
            scratch: Scratch::new(),
        }
    }

    /// Restores, lets the server recover, and returns the rows that it has then.
    #[track_caller]
    fn restored(&self, target: &[&str], becomes: Recovered) -> BTreeSet<i64> {
        self.restored_and(target, becomes, ledger::rows)
    }

    /// Restores, lets the server recover, and asks it something.
    #[track_caller]
    fn restored_and<T>(&self, target: &[&str], becomes: Recovered, ask: impl FnOnce(&Cluster) -> T) -> T {
        let to = self.scratch.join("restored");
        let arguments = [target, &["--archive", "off"]].concat();
        self.vault.restore(&to, &arguments).with_code(0);
        let mut server = Cluster::on_directory(self.primary.major(), &to);
        assert_eq!(server.recover(), becomes, "{target:?}\n{}", server.log());
        let answer = ask(&server);
        drop(server);
        std::fs::remove_dir_all(&to).unwrap();
        answer
    }

    /// Chance draws a target of each kind in turn, and whether it is inclusive and where the server goes from there.
    fn restore_to_random_targets(&self, count: usize) {
        let chance = Chance::new();
        let mut sizes = BTreeSet::new();
        for n in 0..count {
            let target = self.random_target(n, &chance);
            // A restore point has no exclusive form.
            let inclusive = chance.below(2) == 0 || matches!(target, Target::Name(_));
            let (action, becomes) = match chance.below(2) {
                0 => ("promote", Recovered::Open),
                _ => ("pause", Recovered::Paused),
            };
            let (kind, value) = (format!("--target-{}", target.kind()), target.value());
            let mut arguments = vec![kind.as_str(), &value, "--target-action", action];
            if !inclusive {
                arguments.push("--exclusive");
            }
            eprintln!("restoring with {arguments:?}");
            self.plan_tells_the_commits_around(&target, inclusive, &arguments);
            let rows = self.restored(&arguments, becomes);
            assert_eq!(rows, self.history.expected(&target, inclusive), "{arguments:?}");
            sizes.insert(rows.len());
        }
        assert!(sizes.len() > count / 2, "the targets are too much alike: {sizes:?}");
    }

    fn plan_tells_the_commits_around(&self, target: &Target, inclusive: bool, arguments: &[&str]) {
        let plan = self
            .vault
            .pitr(["plan", "--json"].iter().chain(arguments))
            .with_code(0)
            .json();
        let (last, next) = self.history.around(target, inclusive);
        let last = last.expect("the ledger was written to before");
        let reaches = &plan["reaches"];
        let xid = next.map(|commit| u64::from(commit.xid));
        assert_eq!(reaches["next_commit_xid"].as_u64(), xid, "{plan:#}");
        // What was committed before the backup was begun is in no WAL that is replayed.
        if last.lsn > lsn(&self.backup["start_lsn"]) {
            assert_eq!(reaches["last_commit_xid"], last.xid, "{plan:#}");
            let at: DateTime<Utc> = reaches["last_commit_at"].as_str().unwrap().parse().unwrap();
            assert_eq!(at, last.time);
        }
    }

    fn random_target(&self, n: usize, chance: &Chance) -> Target {
        // The ledger was written on in one session after the backup, so these are later than its end in time, too.
        let backup_ended: DateTime<Utc> = self.backup["stopped_at"].as_str().unwrap().parse().unwrap();
        let later: Vec<_> = self
            .history
            .commits()
            .filter(|commit| commit.lsn >= self.backup_end && commit.time > backup_ended)
            .collect();
        assert!(later.len() > 100);
        let pick = chance.below(later.len());
        let aborted: Vec<_> = self.history.aborts().filter(|(lsn, _)| *lsn > later[0].lsn).collect();
        match n % 6 {
            0 => Target::Time(later[pick].time),
            1 => Target::Xid(later[pick].xid),
            2 => Target::Lsn(later[pick].lsn),
            3 => Target::Name(["half way", "it's \"over\" \\ ="][chance.below(2)].to_owned()),
            4 => {
                let last = later.iter().map(|commit| commit.time).max().unwrap();
                let span = (last - later[0].time).num_microseconds().unwrap();
                let micros = chance.below(usize::try_from(span).unwrap());
                Target::Time(later[0].time + TimeDelta::microseconds(i64::try_from(micros).unwrap()))
            }
            _ if chance.below(2) == 0 => Target::Xid(aborted[chance.below(aborted.len())].1),
            _ => {
                let bytes = later[later.len() - 1].lsn.since(self.backup_end);
                let skip = chance.below(usize::try_from(bytes).unwrap());
                Target::Lsn(self.backup_end.plus(skip as u64))
            }
        }
    }
}

fn lsn(value: &Value) -> Lsn {
    value.as_str().unwrap().parse().unwrap()
}
