//! What stands between a timeline and its backups: no recovery gets past a gap, and none enters a timeline from a backup
//! that ended after the way to it had branched off. Pure.

use std::fmt;

use super::Catalog;
use crate::pg::{Leg, Lsn, Timeline};
use crate::repo::backup::{BackupId, BackupRecord, BackupState};

/// Why no recovery leads from a backup along a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffPath {
    /// The path does not touch the backup's timeline.
    Elsewhere {
        /// The backup's.
        of: Timeline,
        /// Where the path leads.
        to: Timeline,
    },
    /// The backup was consistent only after the path had left its timeline.
    Left {
        /// The backup's timeline.
        of: Timeline,
        /// Where it was left.
        at: Lsn,
        /// Where the backup ended.
        ended: Lsn,
    },
}

impl OffPath {
    /// `None` where the backup lies on the path.
    pub fn of(path: &[Leg], backup: &BackupRecord) -> Option<Self> {
        let of = backup.timeline;
        let Some(leg) = path.iter().find(|leg| leg.timeline == of) else {
            let to = path.last().map_or(of, |leg| leg.timeline);
            return Some(Self::Elsewhere { of, to });
        };
        let ended = backup.stop_lsn;
        let at = leg.to.filter(|left| ended > *left)?;
        Some(Self::Left { of, at, ended })
    }
}

impl fmt::Display for OffPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere { of, to } => write!(f, "its timeline {of} does not lead to timeline {to}"),
            Self::Left { of, at, ended } => write!(f, "it ended at {ended}, after timeline {of} was left at {at}"),
        }
    }
}

/// The backup from which a recovery can enter a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<'a> {
    /// The newest that lies on the way to it.
    Backup(&'a BackupRecord),
    /// There are backups, but none on the way; of the newest, why.
    Nowhere(&'a BackupRecord, OffPath),
    /// There is no backup at all.
    NoBackup,
}

/// WAL that is missing on the way to a timeline, from its oldest base backup on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gaps {
    /// The newest backup that serves the timeline.
    pub newest: BackupId,
    /// Before that backup: what lies between is lost, and recoveries from it are not concerned.
    pub before: Vec<(Lsn, Lsn)>,
    /// In the WAL that the backup itself needs, or after it: no recovery gets past the first of these.
    pub after: Vec<(Lsn, Lsn)>,
}

impl Catalog {
    /// What is missing on the way to a timeline; `None` where no backup serves it.
    pub fn gaps(&self, timeline: Timeline) -> Option<Gaps> {
        let path = self.history(timeline).path();
        let serves =
            |backup: &&BackupRecord| OffPath::of(&path, backup).is_none() && backup.state == BackupState::Complete;
        let backups = || self.backups.iter().filter(serves);
        let newest = backups().max_by_key(|backup| backup.start_lsn)?;
        let oldest = backups().map(|backup| backup.start_lsn).min()?;
        let gaps = self.wal.gaps_along(&path, oldest).into_iter();
        let (before, after) = gaps.partition(|(_, to)| *to <= newest.start_lsn);
        Some(Gaps {
            newest: newest.id.clone(),
            before,
            after,
        })
    }

    /// From which backup a recovery enters a timeline.
    pub fn entry(&self, timeline: Timeline) -> Entry<'_> {
        let path = self.history(timeline).path();
        let newest_first = || self.backups.iter().rev();
        if let Some(backup) = newest_first().find(|backup| OffPath::of(&path, backup).is_none()) {
            return Entry::Backup(backup);
        }
        let off = newest_first().find_map(|backup| Some((backup, OffPath::of(&path, backup)?)));
        off.map_or(Entry::NoBackup, |(backup, why)| Entry::Nowhere(backup, why))
    }
}
