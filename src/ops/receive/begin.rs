//! Where to begin: the first segment that the repository lacks on the server's path of timelines. Pure.
//!
//! The repository decides, not the slot: a slot may stand before what `archive_command` has brought, or behind what
//! was lost with a spool. What the server has removed already is a gap, and receiving goes on behind it.

use crate::catalog::Coverage;
use crate::pg::{Leg, Lsn, SegmentNumber, SegmentSize, Timeline};
use crate::repo::Form;

/// A server's WAL, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    /// The way through its timelines to the one it is on.
    pub(super) path: Vec<Leg>,
    /// The oldest WAL that is kept for us, if something is.
    pub(super) kept_from: Option<Lsn>,
    /// Up to where it has WAL.
    pub(super) end: Lsn,
}

/// A segment on a timeline. The one in which a timeline was left is there twice: what the old timeline has of it, and
/// the new one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    /// The timeline.
    pub(super) timeline: Timeline,
    /// The segment.
    pub(super) number: SegmentNumber,
}

/// What to ask for first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// This segment.
    At(Unit),
    /// The repository has everything up to here, and the server does not.
    Ahead(Timeline, Lsn),
}

/// Where to begin. `None` where the server's end is on none of its timelines.
pub(super) fn begin(offer: &Offer, stored: &Coverage) -> Option<Begin> {
    let size = stored.segment_size();
    let kept = SegmentNumber::holding(offer.kept_from.unwrap_or(offer.end), size);
    let Some(last) = last_whole(&offer.path, stored) else {
        return first_with(&offer.path, kept, size).map(Begin::At);
    };
    let end = last.number.end(size);
    // Also after a switch: the server's own end is then where the next segment begins.
    if end > offer.end {
        return Some(Begin::Ahead(last.timeline, end));
    }
    // A hole behind what is kept for us: the server has it still.
    let mut hole = first_with(&offer.path, kept, size).filter(|unit| unit.number <= last.number);
    while let Some(unit) = hole.filter(|unit| *unit != last) {
        if !is_there(&offer.path, stored, unit) {
            return Some(Begin::At(unit));
        }
        hole = next(&offer.path, unit, size);
    }
    next(&offer.path, last, size).map(Begin::At)
}

/// Where to begin so that the server shows that it wrote what the repository has: a server that was set back to an older
/// copy writes other WAL at the same places, on the same timeline. What the repository has of the first segment is
/// compared anyway; where it has nothing of it, the segment before is received once more.
pub(super) fn to_compare(unit: Unit, stored: &Coverage) -> Unit {
    let before = Unit {
        number: SegmentNumber::new(unit.number.number().saturating_sub(1)),
        ..unit
    };
    match stored.segment(unit.timeline, unit.number) {
        None if is_whole(stored, before) => before,
        _ => unit,
    }
}

/// Whether the repository has the whole segment.
pub(super) fn is_whole(stored: &Coverage, unit: Unit) -> bool {
    let found = stored.segment(unit.timeline, unit.number);
    found.is_some_and(|found| found.form == Form::Whole)
}

/// The segment that follows on the path.
pub(super) fn next(path: &[Leg], unit: Unit, size: SegmentSize) -> Option<Unit> {
    let at = path.iter().position(|leg| leg.timeline == unit.timeline)?;
    match path[at].to {
        Some(to) if unit.number >= SegmentNumber::ending(to, size) => path.get(at + 1).map(|leg| Unit {
            timeline: leg.timeline,
            number: SegmentNumber::holding(leg.from, size),
        }),
        _ => Some(Unit {
            number: unit.number.next(),
            ..unit
        }),
    }
}

/// The next segment on the path that the repository lacks.
pub(super) fn next_missing(path: &[Leg], stored: &Coverage, unit: Unit) -> Option<Unit> {
    let mut missing = next(path, unit, stored.segment_size());
    while let Some(unit) = missing.filter(|unit| is_there(path, stored, *unit)) {
        missing = next(path, unit, stored.segment_size());
    }
    missing
}

/// The first timeline's segment of this number on the path.
pub(super) fn first_with(path: &[Leg], number: SegmentNumber, size: SegmentSize) -> Option<Unit> {
    let begun = |leg: &&Leg| SegmentNumber::holding(leg.from, size) <= number;
    let not_left = |leg: &&Leg| leg.to.is_none_or(|to| number <= SegmentNumber::ending(to, size));
    let leg = path.iter().find(|leg| begun(leg) && not_left(leg))?;
    Some(Unit {
        timeline: leg.timeline,
        number,
    })
}

/// Whether the repository has it; of a segment in which its timeline was left, any part will do.
fn is_there(path: &[Leg], stored: &Coverage, unit: Unit) -> bool {
    let left = path
        .iter()
        .find(|leg| leg.timeline == unit.timeline)
        .and_then(|leg| leg.to);
    let is_left = left.is_some_and(|left| unit.number >= SegmentNumber::ending(left, stored.segment_size()));
    let found = stored.segment(unit.timeline, unit.number);
    found.is_some_and(|found| match found.form {
        Form::Whole => true,
        Form::Partial => is_left,
        // Pieces tell how far they go.
        Form::Pieces => left.is_some_and(|left| stored.segment_end(unit.timeline, unit.number) >= left),
    })
}

/// The last segment on the path that is there as a whole.
fn last_whole(path: &[Leg], stored: &Coverage) -> Option<Unit> {
    let size = stored.segment_size();
    path.iter().rev().find_map(|leg| {
        let first = SegmentNumber::holding(leg.from, size);
        let left = leg.to.map(|to| SegmentNumber::ending(to, size));
        let on_leg = |number| number >= first && left.is_none_or(|left| number <= left);
        let mut segments = stored.timeline(leg.timeline)?.segments().iter().rev();
        let last = segments.find(|found| found.form == Form::Whole && on_leg(found.number))?;
        Some(Unit {
            timeline: leg.timeline,
            number: last.number,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{SegmentSize, TimelineHistory};

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn start(number: u64) -> Lsn {
        SegmentNumber::new(number).start(SIZE)
    }

    fn stored(segments: &[(u32, u64)]) -> Coverage {
        let mut stored = Coverage::new(SIZE);
        for (on, number) in segments {
            stored.add(SegmentNumber::new(*number).name(timeline(*on), SIZE), 1, Form::Whole);
        }
        stored.sort();
        stored
    }

    /// Timeline 1 until the middle of segment 5, then 2.
    fn offer(kept: Option<u64>, end: Lsn) -> Offer {
        let history = format!("1\t{}\tpromoted\n", start(5).plus(100));
        Offer {
            path: TimelineHistory::parse(timeline(2), history.as_bytes()).unwrap().path(),
            kept_from: kept.map(start),
            end,
        }
    }

    fn at(on: u32, number: u64) -> Option<Begin> {
        Some(Begin::At(Unit {
            timeline: timeline(on),
            number: SegmentNumber::new(number),
        }))
    }

    #[test]
    fn an_empty_repository_begins_where_the_server_keeps_wal() {
        assert_eq!(begin(&offer(Some(4), start(9).plus(1)), &stored(&[])), at(1, 4));
        assert_eq!(begin(&offer(None, start(9).plus(1)), &stored(&[])), at(2, 9));
    }

    #[test]
    fn it_goes_on_behind_what_the_repository_has_whatever_the_slot_says() {
        let have = stored(&[(1, 2), (1, 3)]);
        for kept in [None, Some(1), Some(3), Some(4), Some(8)] {
            let found = begin(&offer(kept, start(9).plus(1)), &have);
            assert_eq!(found, at(1, if kept == Some(1) { 1 } else { 4 }), "{kept:?}");
        }
    }

    #[test]
    fn a_hole_that_the_server_still_keeps_is_filled_first() {
        let have = stored(&[(1, 2), (1, 5), (2, 5), (2, 7), (2, 8)]);
        let found = |kept| begin(&offer(Some(kept), start(9).plus(1)), &have);
        assert_eq!(found(3), at(1, 3));
        assert_eq!(found(5), at(2, 6));
        assert_eq!(found(7), at(2, 9));
    }

    #[test]
    fn the_segment_of_a_fork_is_wanted_of_both_timelines() {
        let end = start(9).plus(1);
        assert_eq!(begin(&offer(Some(5), end), &stored(&[(1, 4)])), at(1, 5));
        assert_eq!(begin(&offer(Some(5), end), &stored(&[(1, 4), (1, 5)])), at(2, 5));
        assert_eq!(begin(&offer(Some(5), end), &stored(&[(1, 4), (2, 5)])), at(1, 5));
        let path = offer(None, end).path;
        let unit = first_with(&path, SegmentNumber::new(5), SIZE).unwrap();
        assert_eq!(next(&path, unit, SIZE).map(Begin::At), at(2, 5));
    }

    #[test]
    fn what_the_old_timeline_wrote_after_the_fork_does_not_count() {
        let have = stored(&[(1, 4), (1, 5), (1, 6), (1, 7)]);
        assert_eq!(begin(&offer(Some(5), start(9).plus(1)), &have), at(2, 5));
    }

    #[test]
    fn a_server_that_is_behind_the_repository_is_told_apart_from_one_that_has_nothing_new() {
        let have = stored(&[(2, 5), (2, 6)]);
        let ahead = Some(Begin::Ahead(timeline(2), start(7)));
        assert_eq!(begin(&offer(None, start(6)), &have), ahead);
        assert_eq!(begin(&offer(None, start(7)), &have), at(2, 7));
        assert_eq!(begin(&offer(None, start(6).plus(500)), &have), ahead);
    }

    #[test]
    fn where_the_repository_ends_with_a_whole_segment_that_is_received_again_to_be_compared() {
        let unit = |on, number| Unit {
            timeline: timeline(on),
            number: SegmentNumber::new(number),
        };
        let have = stored(&[(1, 4), (2, 5), (2, 6)]);
        assert_eq!(to_compare(unit(2, 7), &have), unit(2, 6));
        assert_eq!(to_compare(unit(1, 5), &have), unit(1, 4));
        assert_eq!(to_compare(unit(2, 9), &have), unit(2, 9));
    }
}
