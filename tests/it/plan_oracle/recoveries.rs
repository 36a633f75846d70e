//! Real servers, sent to where plans say: do they end there, with these rows?

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgp_pitr::ops::plan::Request;
use pgp_pitr::pg::settings::{AutoConf, RECOVERY_SETTINGS};
use pgp_pitr::plan::recovery::{Plan, Requested};
use pgp_pitr::repo::backup::BackupRecord;
use serde_json::Value;

use super::judge::{Judge, settings};
use super::rules::{Recovery, Target};
use super::scene::Scene;
use super::targets::flags;
use crate::support::cluster::{Cluster, Recovered};
use crate::support::program::Answer;
use crate::support::user::Scratch;

/// A directory restored from each backup, to be copied: then only the settings differ from target to target.
pub struct Servers<'a> {
    scene: &'a Scene,
    restored: Scratch,
}

type Settings = Vec<(String, String)>;

impl<'a> Servers<'a> {
    /// Restores each backup on a scene's path.
    pub fn of(scene: &'a Scene) -> Self {
        let restored = Scratch::new();
        for backup in scene.backups() {
            let id = backup.id.as_str();
            let arguments = ["--immediate", "--archive", "off", "--backup", id];
            scene.vault.restore(&restored.join(id), &arguments).with_code(0);
        }
        Self { scene, restored }
    }

    /// A server with the settings that `pgp-pitr` gives for a request ends where the plan says.
    pub fn follow(&self, judge: &Judge<'_>, request: &Request, plan: &Plan) {
        let answer = self.answer(request);
        let about = format!("{request:?}\n{answer:#}");
        let text = |value: &Value| value.as_str().map(str::to_owned);
        assert_eq!(text(&answer["backup"]), Some(plan.backup.id.to_string()), "{about}");
        assert_eq!(
            text(&answer["reaches"]["lsn"]),
            plan.reaches.lsn.map(|lsn| lsn.to_string()),
            "{about}"
        );
        let settings_given: Settings = answer["recovery_settings"]
            .as_object()
            .expect("settings")
            .iter()
            .map(|(name, value)| (name.clone(), text(value).expect("text")))
            .collect();
        for (name, value) in &plan.stop {
            assert!(settings_given.contains(&((*name).to_owned(), value.clone())), "{about}");
        }
        let (target, inclusive) = settings(&plan.stop);
        let recovery = judge.start(plan).wal.recover(&plan.backup, &target, inclusive);
        let log = self.recover(&plan.backup, &settings_given, &target, recovery, &about);
        let segments = |line: &str| Some(line.split_once("restored log file \"")?.1.get(..24)?.to_owned());
        let fetched: BTreeSet<String> = log.lines().filter_map(segments).collect();
        // A server reads ahead, in segments that were left early through several of them.
        let planned = plan.segments;
        assert!(
            fetched.len() >= planned,
            "{planned} planned, fetched {fetched:?}\n{about}"
        );
    }

    /// A server with the very target that was asked for, from a backup that may not serve it, does what the rules say:
    /// they are PostgreSQL's.
    pub fn defy(&self, judge: &Judge<'_>, backup: usize, request: &Request) {
        let start = judge.starts()[backup];
        let target = Target::of(&request.requested);
        let recovery = start.wal.recover(start.backup, &target, request.inclusive);
        let mut settings = self.settings_but_the_target();
        let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
        match &request.requested {
            Requested::Time(time, _) => set("recovery_target_time", time.for_settings()),
            Requested::Immediate => set("recovery_target", "immediate".to_owned()),
            Requested::Latest => {}
            other => set(&format!("recovery_target_{}", other.kind()), other.text().unwrap()),
        }
        set("recovery_target_inclusive", request.inclusive.to_string());
        let about = format!("as it is, from {}: {request:?}", start.backup.id);
        self.recover(start.backup, &settings, &target, recovery, &about);
    }

    /// What the program itself answers.
    fn answer(&self, request: &Request) -> Value {
        let to = self.restored.join("planned");
        let mut plan = self.scene.vault.command();
        plan.args(["plan", "--json", "--archive", "off", "--to"]).arg(to);
        Answer::of(plan.args(flags(request))).with_code(0).json()
    }

    fn settings_but_the_target(&self) -> Settings {
        let arguments = ["plan", "--latest", "--json", "--archive", "off"];
        let answer = self.scene.vault.pitr(arguments).with_code(0).json();
        let settings = answer["recovery_settings"].as_object().expect("settings");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        settings
            .iter()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect()
    }

    /// Starts a server on a copy, and holds what comes of it against the rules. Returns its log.
    fn recover(
        &self,
        backup: &BackupRecord,
        settings: &Settings,
        target: &Target,
        expected: Recovery,
        about: &str,
    ) -> String {
        let scratch = Scratch::new();
        let data = self.copy(backup, &scratch);
        write(&data, settings);
        let mut server = Cluster::on_directory(self.scene.major, &data);
        server.start_with("fsync", "off");
        let ended = server.recover();
        let about = format!("{about}\nexpected {expected:?}\n{}", server.log());
        match (expected.succeeds(target), target) {
            (false, _) => {
                assert_eq!(ended, Recovered::Stopped, "{about}");
                let reason = if expected.reached {
                    "requested recovery stop point is before consistent recovery point"
                } else {
                    "recovery ended before configured recovery target was reached"
                };
                assert!(server.log().contains(reason), "{about}");
                return server.log();
            }
            (true, Target::Unset) => {
                assert_eq!(ended, Recovered::Open, "{about}");
                let prepared = server.sql("select transaction from pg_prepared_xacts");
                assert_eq!(prepared, self.scene.facts.left_prepared.to_string(), "{about}");
            }
            (true, _) => {
                assert_eq!(ended, Recovered::Paused, "{about}");
                let last = &self.scene.records[expected.replayed - 1];
                let replayed = server.sql("select pg_last_wal_replay_lsn()");
                assert_eq!(replayed.parse(), Ok(last.end), "{about}");
            }
        }
        let rows = server.sql("select id from ledger");
        let rows: BTreeSet<i64> = rows.lines().map(|id| id.parse().unwrap()).collect();
        let committed = self.scene.records[..expected.replayed]
            .iter()
            .filter_map(|record| record.commit());
        let wanted = committed
            .filter_map(|end| self.scene.facts.rows.get(&end.xid))
            .flatten()
            .copied();
        let differ: Vec<i64> = rows.symmetric_difference(&wanted.collect()).take(5).copied().collect();
        assert!(differ.is_empty(), "rows {differ:?}\n{about}");
        server.log()
    }

    fn copy(&self, backup: &BackupRecord, scratch: &Scratch) -> PathBuf {
        let data = scratch.join("data");
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"])
            .arg(self.restored.join(backup.id.as_str()));
        Answer::of(copy.arg(&data)).with_code(0);
        data
    }
}

/// Gives a restored directory other settings for its recovery.
fn write(data: &Path, settings: &Settings) {
    let path = data.join("postgresql.auto.conf");
    let mut file = AutoConf::new(fs::read(&path).unwrap());
    file.remove(RECOVERY_SETTINGS);
    let settings: Vec<(&str, &[u8])> = settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    file.append(&settings).unwrap();
    fs::write(&path, file.bytes()).unwrap();
}
