//! Judges whether a recovery can enter the timeline that the server is on: after a failover, a backup that ended behind the
//! fork leads only along the timeline that was left. Pure.

use super::Check;
use crate::catalog::{Catalog, Entry};
use crate::ops::list::Listing;
use crate::pg::{Lsn, Timeline};

/// What scripts know the check by, and what decides the exit code.
pub(super) const NAME: &str = "timeline_backup";

/// `None` where there is no backup at all, which is told elsewhere.
pub(super) fn judge(listing: &Listing, timeline: Timeline) -> Option<Check> {
    let catalog = &listing.catalog;
    if catalog.backups.is_empty() {
        return None;
    }
    if lacks_history(catalog, timeline) {
        let hex = timeline.hex();
        let detail = format!(
            "the server is on timeline {timeline}, whose history file {hex}.history is not in the repository: no recovery \
             follows a timeline without it"
        );
        let fix = format!(
            "pgp-pitr backup: it brings that file; or `pgp-archive pg_wal/{hex}.history` in the data directory"
        );
        return Some(Check::fails(NAME, detail, fix));
    }
    match catalog.entry(timeline) {
        Entry::NoBackup => None,
        Entry::Backup(backup) => Some(Check::ok(
            NAME,
            format!("{} leads to timeline {timeline}, which the server is on", backup.id),
        )),
        Entry::Nowhere(newest, why) => Some(Check::fails(
            NAME,
            format!(
                "no base backup leads to timeline {timeline}, which the server is on: nothing on it can be restored (of \
                 the newest, {}: {why})",
                newest.id
            ),
            "take a base backup now: pgp-pitr backup",
        )),
    }
}

/// A server that is behind what it has written itself. `stored` is where the repository's WAL of its timeline ends, and
/// was asked for first.
pub(super) fn judge_position(stored: Option<Lsn>, server: Lsn, timeline: Timeline) -> Option<Check> {
    let stored = stored.filter(|stored| *stored > server)?;
    Some(Check::fails(
        "server_position",
        format!(
            "the server is at {server}, and the repository has WAL of its timeline {timeline} up to {stored}: it was set back \
             to an older copy, and what it writes now can't be kept beside what it wrote before"
        ),
        "restore it with pgp-pitr, or start the copy with recovery.signal and a restore_command, so that it gets a timeline of \
         its own; or archive into another repository",
    ))
}

fn lacks_history(catalog: &Catalog, timeline: Timeline) -> bool {
    timeline != Timeline::FIRST && !catalog.histories.contains_key(&timeline)
}
