//! Judges missing WAL: no recovery gets past a gap (rule 10). Pure.

use chrono::{DateTime, Utc};

use super::Check;
use crate::ops::list::{Listing, Window};
use crate::pg::time::rfc3339;
use crate::pg::{Lsn, Timeline};

/// What scripts know the check by, and what decides the exit code.
pub(super) const NAME: &str = "wal_gaps";

/// Gaps on the way to a timeline; `None` where no backup serves it, and so none matters.
pub(super) fn judge(listing: &Listing, timeline: Timeline) -> Option<Check> {
    let gaps = listing.gaps(timeline)?;
    if let Some((from, to)) = gaps.after.first() {
        let last = windows(listing, timeline).rfind(|window| window.from_lsn <= *from);
        let last = last.map(|window| format!(", whose last moment is {}", rfc3339(window.to)));
        let unlinked = listing.wal.iter().any(|wal| wal.unlinked == Some((*from, *to)));
        let what = match unlinked {
            true => "does not follow on what is before it (was the server set back to an older copy?)",
            false => "is missing",
        };
        let detail = format!(
            "the WAL from {from} to {to} {what}, after the newest base backup ({}): no recovery gets past {from}{}{}",
            gaps.newest,
            last.unwrap_or_default(),
            more(&gaps.after)
        );
        let fix = "pgp-pitr backup: until there is a base backup from after the gap, nothing behind it can be restored";
        return Some(Check::fails(NAME, detail, fix));
    }
    let Some((from, to)) = gaps.before.first() else {
        return Some(Check::ok(NAME, format!("no WAL is missing on timeline {timeline}")));
    };
    let lost = lost(listing, timeline, (*from, *to));
    Some(Check::warning(
        NAME,
        format!(
            "the WAL from {from} to {to} is missing between two base backups{lost}{}",
            more(&gaps.before)
        ),
        "bring the missing files back, if they are anywhere (pgp-archive, pgp-pitr salvage); later moments are not concerned",
    ))
}

fn windows(listing: &Listing, timeline: Timeline) -> impl DoubleEndedIterator<Item = &Window> {
    let windows = listing.windows.iter();
    windows.filter(move |window| window.timeline == timeline)
}

fn more(gaps: &[(Lsn, Lsn)]) -> String {
    match gaps.len() {
        0 | 1 => String::new(),
        all => format!(
            "; and {} more, see `pgp-pitr list`",
            super::words::count(all as u64 - 1, "gap")
        ),
    }
}

/// The moments between what can be restored on either side of a gap.
fn lost(listing: &Listing, timeline: Timeline, (from, to): (Lsn, Lsn)) -> String {
    let before: Option<DateTime<Utc>> = windows(listing, timeline)
        .filter(|window| window.from_lsn <= from)
        .map(|window| window.to)
        .max();
    let after = windows(listing, timeline)
        .filter(|window| window.from_lsn >= to)
        .map(|window| window.from)
        .min();
    match (before, after) {
        (Some(before), Some(after)) => format!(
            ": no moment between {} and {} can be restored",
            rfc3339(before),
            rfc3339(after)
        ),
        (None, Some(after)) => format!(": no moment before {} can be restored", rfc3339(after)),
        _ => String::new(),
    }
}
