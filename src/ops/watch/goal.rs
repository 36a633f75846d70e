//! Where a recovery is to stop: what the server was told, and what the restore that made the directory
//! has planned.

use std::fs;
use std::path::Path;

use chrono::{DateTime, Utc};

use crate::ops::restore::{Action, RecordedTarget, RestoreRecord};
use crate::pg::settings::AutoConf;
use crate::pg::{Lsn, Timeline};

/// The kinds of targets as the server names them, and as we do.
const KINDS: [(&str, &str); 4] = [
    ("recovery_target_time", "time"),
    ("recovery_target_lsn", "lsn"),
    ("recovery_target_xid", "xid"),
    ("recovery_target_name", "name"),
];

/// Where a recovery is to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// The target; `None` where the server was told none: it goes on to the end of the WAL.
    pub target: Option<RecordedTarget>,
    /// Everything before it will be replayed, where that is known.
    pub stop_lsn: Option<Lsn>,
    /// The last commit that will be replayed, where that is known.
    pub last_commit_at: Option<DateTime<Utc>>,
    /// What the server does when it is there.
    pub action: Action,
    /// Whether it is a standby, which never is there.
    pub standby: bool,
    /// The timeline that it was told to follow; `None` for the newest.
    pub timeline: Option<Timeline>,
    /// How it fetches its WAL.
    pub restore_command: Option<Vec<u8>>,
}

impl Goal {
    /// Reads it from a data directory. Configuration that lies elsewhere is not looked at.
    pub fn read(directory: &Path) -> Self {
        let conf = configuration(directory);
        let standby = directory.join("standby.signal").exists();
        let record = RestoreRecord::read(directory).filter(|record| fits(record, &conf));
        let told = told(&conf);
        let lsn = told.as_ref().filter(|target| target.kind == "lsn");
        let lsn = lsn.and_then(|target| target.value.as_deref()?.parse().ok());
        let action = text(&conf, "recovery_target_action").and_then(|word| word.parse().ok());
        Self {
            stop_lsn: record.as_ref().map_or(lsn, |record| record.stop_lsn),
            last_commit_at: record.as_ref().and_then(|record| record.last_commit_at),
            target: match record {
                Some(record) if !standby => Some(record.target),
                _ => told,
            },
            action: action.unwrap_or(Action::Pause),
            standby,
            timeline: text(&conf, "recovery_target_timeline").and_then(|number| number.parse().ok()),
            restore_command: conf.value("restore_command"),
        }
    }

    /// Whether a server that has paused here has arrived.
    pub(super) fn is_reached(&self, lsn: Option<Lsn>) -> bool {
        let Some(target) = self.target.as_ref().filter(|target| target.kind != "latest") else {
            return false;
        };
        match (self.stop_lsn, lsn) {
            // Where a page begins, its header lies between the last record and the stop.
            (Some(stop), Some(lsn)) if target.kind != "immediate" => lsn.plus(PAGE) >= stop,
            _ => true,
        }
    }
}

/// Two positions that differ by less are taken for one.
const PAGE: u64 = crate::pg::PAGE_SIZE as u64;

/// The settings of the data directory; those written by `ALTER SYSTEM` and by restores count last.
fn configuration(directory: &Path) -> AutoConf {
    let mut all = Vec::new();
    for file in ["postgresql.conf", "postgresql.auto.conf"] {
        all.extend(fs::read(directory.join(file)).unwrap_or_default());
        all.push(b'\n');
    }
    AutoConf::new(all)
}

fn text(conf: &AutoConf, name: &str) -> Option<String> {
    let value = conf.value(name)?;
    Some(String::from_utf8_lossy(&value).into_owned()).filter(|value| !value.is_empty())
}

/// The target that the server was told.
fn told(conf: &AutoConf) -> Option<RecordedTarget> {
    let off = |word: &str| matches!(word.to_ascii_lowercase().as_str(), "off" | "false" | "no" | "0");
    let inclusive = !text(conf, "recovery_target_inclusive").is_some_and(|word| off(&word));
    let target = |kind: &str, value| RecordedTarget {
        kind: kind.to_owned(),
        value,
        inclusive,
    };
    if text(conf, "recovery_target").is_some() {
        return Some(target("immediate", None));
    }
    let mut given = KINDS.iter().filter_map(|(name, kind)| Some((kind, text(conf, name)?)));
    given.next().map(|(kind, value)| target(kind, Some(value)))
}

/// Whether the record is of the recovery that the server was told to do: somebody may have changed the
/// settings since.
fn fits(record: &RestoreRecord, conf: &AutoConf) -> bool {
    let names = KINDS.iter().map(|(name, _)| *name).chain(["recovery_target"]);
    names
        .map(|name| (text(conf, name), record.stop.get(name)))
        .all(|(told, planned)| told.as_ref() == planned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(auto_conf: &str, record: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("postgresql.conf"),
            "port = 1\nrecovery_target_xid = '7'\n",
        )
        .unwrap();
        fs::write(folder.path().join("postgresql.auto.conf"), auto_conf).unwrap();
        fs::create_dir(folder.path().join("pg_wal")).unwrap();
        if let Some(stop) = record {
            let text = format!(
                r#"{{"format": 1, "backup": "20261121T101500Z-1f2e3d4c", "timeline": 1,
                     "target": {{"kind": "time", "value": "2026-11-21T10:20:00+00:00", "inclusive": true}},
                     "start_lsn": "0/2000028", "stop_lsn": "0/5000A10", "last_commit_at": "2026-11-21T10:19:59.5Z",
                     "stop": {{{stop}}}}}"#
            );
            fs::write(folder.path().join("pg_wal/pgp-restore-plan.json"), text).unwrap();
        }
        folder
    }

    const TIME: &str = "recovery_target_xid = ''\nrecovery_target_time = '2026-11-21 10:20:00+00'\n";

    #[test]
    fn the_restores_plan_tells_where_a_time_lies() {
        let stop = r#""recovery_target_time": "2026-11-21 10:20:00+00", "recovery_target_inclusive": "true""#;
        let folder = directory(TIME, Some(stop));
        let goal = Goal::read(folder.path());
        assert_eq!(goal.stop_lsn, Some(Lsn::new(0x500_0A10)));
        assert_eq!(goal.target.unwrap().value.as_deref(), Some("2026-11-21T10:20:00+00:00"));
        assert!(goal.last_commit_at.is_some() && goal.action == Action::Pause && !goal.standby);
    }

    #[test]
    fn a_plan_for_other_settings_is_not_believed() {
        let stop = r#""recovery_target_time": "2026-11-21 10:20:01+00""#;
        let goal = Goal::read(directory(TIME, Some(stop)).path());
        assert_eq!(goal.stop_lsn, None);
        assert_eq!(goal.target.unwrap().value.as_deref(), Some("2026-11-21 10:20:00+00"));
    }

    #[test]
    fn settings_alone_tell_the_target_and_the_position_of_an_lsn() {
        let goal = Goal::read(directory("", None).path());
        assert_eq!(goal.target.as_ref().unwrap().kind, "xid");
        assert!(goal.is_reached(Some(Lsn::new(1))));
        let lsn = "recovery_target_xid = ''\nrecovery_target_lsn = '0/30000A0'\nrecovery_target_inclusive = off\n\
                   recovery_target_action = 'shutdown'\n";
        let goal = Goal::read(directory(lsn, None).path());
        assert_eq!(
            (goal.stop_lsn, goal.action),
            (Some(Lsn::new(0x300_00A0)), Action::Shutdown)
        );
        assert!(!goal.target.as_ref().unwrap().inclusive);
        assert!(goal.is_reached(Some(Lsn::new(0x300_0080))) && !goal.is_reached(Some(Lsn::new(0x200_0000))));
    }

    #[test]
    fn without_a_target_no_pause_is_an_arrival() {
        let folder = directory("recovery_target_xid = ''\n", None);
        fs::write(folder.path().join("standby.signal"), "").unwrap();
        let goal = Goal::read(folder.path());
        assert!(goal.standby && goal.target.is_none() && !goal.is_reached(Some(Lsn::new(7))));
    }
}
