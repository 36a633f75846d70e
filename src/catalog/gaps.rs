//! What missing WAL means: no recovery gets past a gap, so a base backup from behind it is needed. Pure.

use super::Catalog;
use crate::pg::{Lsn, Timeline};
use crate::repo::backup::{BackupId, BackupRecord, BackupState};

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
        let serves = |backup: &&BackupRecord| {
            let leg = path.iter().find(|leg| leg.timeline == backup.timeline);
            let in_time = leg.is_some_and(|leg| leg.to.is_none_or(|to| backup.stop_lsn <= to));
            in_time && backup.state == BackupState::Complete
        };
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
}
