//! What a restore leaves for whoever follows the recovery: where it will stop.
//!
//! The server's settings name a time or a transaction; only the plan knows the position. The file lies in
//! `pg_wal`, where neither `pg_verifybackup` nor a base backup of the restored cluster looks.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Goal;
use super::directory::DirectoryError;
use crate::disk;
use crate::env::Env;
use crate::pg::{Lsn, Timeline};
use crate::plan::recovery::Plan;
use crate::repo::backup::BackupId;

/// Its place in the data directory.
const PATH: &str = "pg_wal/pgp-restore-plan.json";
/// The format written here.
const FORMAT: u32 = 1;

/// The plan of a restore, as far as it concerns the recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRecord {
    format: u32,
    /// Where recovery starts from.
    pub backup: BackupId,
    /// The timeline that is followed.
    pub timeline: Timeline,
    /// What was asked for.
    pub target: RecordedTarget,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Everything before it will be replayed; absent for a standby, and where the WAL could not be read.
    pub stop_lsn: Option<Lsn>,
    /// The last commit that will be replayed.
    pub last_commit_at: Option<DateTime<Utc>>,
    /// What PostgreSQL was told about where to stop: with other settings, this is another recovery's.
    pub stop: BTreeMap<String, String>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedTarget {
    /// Its kind, in one word.
    pub kind: String,
    /// As it was understood.
    pub value: Option<String>,
    /// Whether it is itself replayed.
    pub inclusive: bool,
}

impl RestoreRecord {
    pub(super) fn of(plan: &Plan, goal: &Goal) -> Self {
        let recovers = goal.standby.is_none();
        let stop = plan.stop.iter().filter(|_| recovers);
        Self {
            format: FORMAT,
            backup: plan.backup.id.clone(),
            timeline: plan.timeline,
            target: RecordedTarget {
                kind: plan.requested.kind().to_owned(),
                value: plan.requested.value(),
                inclusive: plan.inclusive,
            },
            start_lsn: plan.backup.start_lsn,
            stop_lsn: plan.reaches.lsn.filter(|_| recovers),
            last_commit_at: plan.reaches.last_commit.map(|point| point.at).filter(|_| recovers),
            stop: stop.map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        }
    }

    pub(super) fn write(&self, root: &Path, mode: u32, env: &Env) -> Result<(), DirectoryError> {
        let path = root.join(PATH);
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        disk::write(&path, &text, mode, env).map_err(DirectoryError::io("write", &path))
    }

    /// Reads what a restore has left in a data directory; `None` where there is nothing that can be read
    /// and understood.
    pub fn read(root: &Path) -> Option<Self> {
        let bytes = std::fs::read(root.join(PATH)).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        (record.format == FORMAT).then_some(record)
    }
}
