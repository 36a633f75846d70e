//! Where PostgreSQL ends a recovery: its rules for each kind of target (`recoveryStopsBefore`,
//! `recoveryStopsAfter`), applied to what the WAL tells. They are the same from 13 to 18.
//!
//! Not judged here: whether the data directory is consistent at the stop, which depends on the backup.

use chrono::{DateTime, Utc};

use super::events::{Event, EventKind, Extent};
use super::xid::Xid;
use crate::pg::Lsn;

/// Where a recovery is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `recovery_target_time`: at the first end of a transaction, in WAL order, that tells a later time; exclusive, a
    /// later or the same time. Transactions need not tell their times in order.
    Time(DateTime<Utc>),
    /// `recovery_target_xid`: at the end of this transaction. Ids of subtransactions are never met.
    Xid(Xid),
    /// `recovery_target_lsn`: at the first record that begins here or later. Inclusive, that record is replayed too.
    Lsn(Lsn),
    /// `recovery_target_name`: after the first restore point of this name. There is no exclusive form.
    Name(Vec<u8>),
    /// `recovery_target = 'immediate'`: as soon as replay has reached this LSN, where the backup is consistent.
    Consistent(Lsn),
    /// No target: at the end of the WAL.
    EndOfWal,
}

/// Where replay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Before the record that begins here.
    Before(Lsn),
    /// After this record.
    After {
        /// Where it begins.
        lsn: Lsn,
        /// Where it ends.
        end_lsn: Lsn,
    },
    /// Before or after a record that begins here or later and ends no transaction, so that it makes no difference to
    /// rows. It is no event, and so not known more exactly.
    Near(Lsn),
    /// At the end of the WAL.
    EndOfWal(Lsn),
}

/// A commit, and its place in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPoint {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end_lsn: Lsn,
    /// The transaction.
    pub xid: Xid,
    /// When the server says it committed.
    pub at: DateTime<Utc>,
}

/// What a recovery to some target comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Where replay ends. `None`: the target is not reached in this WAL, and the server would give up at its end.
    pub stop: Option<Stop>,
    /// The last commit replayed, in WAL order, of those that were seen.
    pub last_commit: Option<CommitPoint>,
    /// The first commit that is not replayed.
    pub next_commit: Option<CommitPoint>,
}

/// Finds where a recovery ends, event by event, so that no list of them is needed.
#[derive(Debug, Clone)]
pub struct StopFinder {
    target: Target,
    inclusive: bool,
    outcome: Outcome,
}

/// Where a recovery to `target` ends that replays these events, in WAL order, from WAL that reaches as far as `extent`
/// (`None`: not one record). `inclusive` is `recovery_target_inclusive`.
pub fn stop<'a>(
    target: Target,
    inclusive: bool,
    events: impl IntoIterator<Item = &'a Event>,
    extent: Option<Extent>,
) -> Outcome {
    let mut finder = StopFinder::new(target, inclusive);
    for event in events {
        finder.see(event);
        if finder.is_settled() {
            break;
        }
    }
    finder.finish(extent)
}

/// What an event is to the target.
enum Met {
    /// Replayed, and recovery goes on.
    Replayed,
    /// Replayed, and recovery ends.
    Last(Stop),
    /// Recovery has ended before it.
    NotReplayed(Stop),
}

impl StopFinder {
    /// `inclusive` is `recovery_target_inclusive`.
    pub const fn new(target: Target, inclusive: bool) -> Self {
        Self {
            target,
            inclusive,
            outcome: Outcome {
                stop: None,
                last_commit: None,
                next_commit: None,
            },
        }
    }

    /// Whether later events make no difference any more.
    pub const fn is_settled(&self) -> bool {
        self.outcome.stop.is_some() && self.outcome.next_commit.is_some()
    }

    /// Whether the stop is known.
    pub const fn has_stopped(&self) -> bool {
        self.outcome.stop.is_some()
    }

    /// Takes the next event, in WAL order.
    pub fn see(&mut self, event: &Event) {
        let replayed = self.outcome.stop.is_none()
            && match self.meet(event) {
                Met::Replayed => true,
                Met::Last(stop) => {
                    self.outcome.stop = Some(stop);
                    true
                }
                Met::NotReplayed(stop) => {
                    self.outcome.stop = Some(stop);
                    false
                }
            };
        let EventKind::Commit(commit) = event.kind else { return };
        let point = CommitPoint {
            lsn: event.lsn,
            end_lsn: event.end_lsn,
            xid: commit.xid,
            at: commit.at,
        };
        if replayed {
            self.outcome.last_commit = Some(point);
        } else if self.outcome.next_commit.is_none() {
            self.outcome.next_commit = Some(point);
        }
    }

    /// All events have been seen; the WAL reaches as far as `extent`.
    pub fn finish(mut self, extent: Option<Extent>) -> Outcome {
        let Some(extent) = extent else { return self.outcome };
        if self.outcome.stop.is_none() {
            self.outcome.stop = match self.target {
                Target::EndOfWal => Some(Stop::EndOfWal(extent.end)),
                Target::Lsn(lsn) if extent.last_record >= lsn => Some(Stop::Near(lsn)),
                Target::Consistent(lsn) if extent.end >= lsn => Some(Stop::Near(lsn)),
                _ => None,
            };
        }
        self.outcome
    }

    fn meet(&self, event: &Event) -> Met {
        let after = Stop::After {
            lsn: event.lsn,
            end_lsn: event.end_lsn,
        };
        match (&self.target, &event.kind) {
            (&Target::Lsn(lsn), _) => self.meet_lsn(lsn, event, after),
            (&Target::Consistent(lsn), _) if event.lsn >= lsn => Met::NotReplayed(Stop::Near(lsn)),
            (&Target::Consistent(lsn), _) if event.end_lsn >= lsn => Met::Last(after),
            (Target::Time(time), EventKind::Commit(end) | EventKind::Abort(end)) => {
                if end.at > *time || end.at == *time && !self.inclusive {
                    Met::NotReplayed(Stop::Before(event.lsn))
                } else {
                    Met::Replayed
                }
            }
            (Target::Xid(xid), EventKind::Commit(end) | EventKind::Abort(end)) if end.xid == *xid => {
                if self.inclusive {
                    Met::Last(after)
                } else {
                    Met::NotReplayed(Stop::Before(event.lsn))
                }
            }
            (Target::Name(wanted), EventKind::RestorePoint { name, .. }) if name == wanted => Met::Last(after),
            _ => Met::Replayed,
        }
    }

    /// The first record at `lsn` or later is the stop, and most records are no events. An event is that record if the
    /// one before it begins earlier.
    fn meet_lsn(&self, lsn: Lsn, event: &Event, after: Stop) -> Met {
        if event.lsn < lsn {
            Met::Replayed
        } else if event.previous >= lsn {
            Met::NotReplayed(Stop::Near(lsn))
        } else if self.inclusive {
            Met::Last(after)
        } else {
            Met::NotReplayed(Stop::Before(event.lsn))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::Ended;
    use super::*;

    fn time(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn event(lsn: u64, previous: u64, kind: EventKind) -> Event {
        Event {
            lsn: Lsn::new(lsn),
            end_lsn: Lsn::new(lsn + 8),
            previous: Lsn::new(previous),
            kind,
        }
    }

    fn ended(xid: u32, second: i64) -> Ended {
        Ended {
            xid: Xid::new(xid),
            at: time(second),
            database: None,
            subtransactions: 0,
            prepared: false,
        }
    }

    fn named(name: &str, second: i64) -> EventKind {
        EventKind::RestorePoint {
            name: name.as_bytes().to_vec(),
            at: time(second),
        }
    }

    /// Records begin at every multiple of ten from 100 to 250; these of them are events. Times are out of order, and
    /// two are the same.
    fn wal() -> (Vec<Event>, Extent) {
        let (commit, abort) = (
            |x, t| EventKind::Commit(ended(x, t)),
            |x, t| EventKind::Abort(ended(x, t)),
        );
        let events = vec![
            event(110, 100, commit(1, 10)),
            event(130, 120, named("here", 12)),
            event(150, 140, commit(2, 30)),
            event(160, 150, commit(3, 20)),
            event(180, 170, abort(4, 40)),
            event(190, 180, named("here", 41)),
            event(200, 190, commit(5, 40)),
            event(210, 200, named("there", 50)),
            event(230, 220, commit(6, 60)),
        ];
        let extent = Extent {
            last_record: Lsn::new(250),
            end: Lsn::new(258),
        };
        (events, extent)
    }

    fn before(lsn: u64) -> Option<Stop> {
        Some(Stop::Before(Lsn::new(lsn)))
    }

    fn after(lsn: u64) -> Option<Stop> {
        let (lsn, end_lsn) = (Lsn::new(lsn), Lsn::new(lsn + 8));
        Some(Stop::After { lsn, end_lsn })
    }

    fn near(lsn: u64) -> Option<Stop> {
        Some(Stop::Near(Lsn::new(lsn)))
    }

    /// One line of a table: where recovery stops, the last commit's xid and the next one's; zero is none.
    type Line = (Option<Stop>, u32, u32);

    #[track_caller]
    fn assert_outcome(target: Target, inclusive: bool, expected: Line) {
        let (events, extent) = wal();
        let outcome = stop(target.clone(), inclusive, &events, Some(extent));
        let xid = |point: Option<CommitPoint>| point.map_or(0, |point| point.xid.number());
        let found = (outcome.stop, xid(outcome.last_commit), xid(outcome.next_commit));
        assert_eq!(found, expected, "{target:?}, inclusive: {inclusive}");
    }

    #[test]
    fn a_time_stops_before_the_first_end_that_tells_a_later_one() {
        for (second, inclusive, exclusive) in [
            (9, (before(110), 0, 1), (before(110), 0, 1)),
            (10, (before(150), 1, 2), (before(110), 0, 1)),
            // Xid 3 tells an earlier time than xid 2, and stays out all the same.
            (20, (before(150), 1, 2), (before(150), 1, 2)),
            (30, (before(180), 3, 5), (before(150), 1, 2)),
            // The abort at 180 stops it, too.
            (39, (before(180), 3, 5), (before(180), 3, 5)),
            (40, (before(230), 5, 6), (before(180), 3, 5)),
            // Restore points have times that don't count.
            (55, (before(230), 5, 6), (before(230), 5, 6)),
            (60, (None, 6, 0), (before(230), 5, 6)),
            (61, (None, 6, 0), (None, 6, 0)),
        ] {
            assert_outcome(Target::Time(time(second)), true, inclusive);
            assert_outcome(Target::Time(time(second)), false, exclusive);
        }
    }

    #[test]
    fn an_xid_stops_at_the_end_of_that_transaction_only() {
        for (xid, inclusive, exclusive) in [
            (1, (after(110), 1, 2), (before(110), 0, 1)),
            (3, (after(160), 3, 5), (before(160), 2, 3)),
            (4, (after(180), 3, 5), (before(180), 3, 5)),
            (6, (after(230), 6, 0), (before(230), 5, 6)),
            (7, (None, 6, 0), (None, 6, 0)),
        ] {
            assert_outcome(Target::Xid(Xid::new(xid)), true, inclusive);
            assert_outcome(Target::Xid(Xid::new(xid)), false, exclusive);
        }
    }

    #[test]
    fn an_lsn_stops_at_the_first_record_that_begins_there_or_later() {
        for (lsn, inclusive, exclusive) in [
            (0, (near(0), 0, 1), (near(0), 0, 1)),
            (100, (near(100), 0, 1), (near(100), 0, 1)),
            (101, (after(110), 1, 2), (before(110), 0, 1)),
            (110, (after(110), 1, 2), (before(110), 0, 1)),
            // The commit's end: the next record is replayed, and it is none that matters.
            (118, (near(118), 1, 2), (near(118), 1, 2)),
            (150, (after(150), 2, 3), (before(150), 1, 2)),
            // An inclusive LSN at a commit's end replays the next record, which is another commit.
            (158, (after(160), 3, 5), (before(160), 2, 3)),
            (231, (near(231), 6, 0), (near(231), 6, 0)),
            (250, (near(250), 6, 0), (near(250), 6, 0)),
            (251, (None, 6, 0), (None, 6, 0)),
        ] {
            assert_outcome(Target::Lsn(Lsn::new(lsn)), true, inclusive);
            assert_outcome(Target::Lsn(Lsn::new(lsn)), false, exclusive);
        }
    }

    #[test]
    fn a_name_stops_after_the_first_restore_point_that_has_it() {
        for inclusive in [true, false] {
            let name = |name: &str| Target::Name(name.as_bytes().to_vec());
            assert_outcome(name("here"), inclusive, (after(130), 1, 2));
            assert_outcome(name("there"), inclusive, (after(210), 5, 6));
            assert_outcome(name("her"), inclusive, (None, 6, 0));
        }
    }

    #[test]
    fn consistency_stops_as_soon_as_it_is_reached() {
        for inclusive in [true, false] {
            let consistent = |lsn| Target::Consistent(Lsn::new(lsn));
            assert_outcome(consistent(118), inclusive, (after(110), 1, 2));
            assert_outcome(consistent(120), inclusive, (near(120), 1, 2));
            assert_outcome(consistent(258), inclusive, (near(258), 6, 0));
            assert_outcome(consistent(259), inclusive, (None, 6, 0));
        }
    }

    #[test]
    fn without_a_target_all_is_replayed() {
        let end = Some(Stop::EndOfWal(Lsn::new(258)));
        assert_outcome(Target::EndOfWal, true, (end, 6, 0));
        let nothing = stop(Target::EndOfWal, true, &[], None);
        assert_eq!((nothing.stop, nothing.last_commit), (None, None));
    }

    #[test]
    fn a_transaction_that_was_prepared_stops_it_at_its_second_phase() {
        let prepare = EventKind::Prepare {
            xid: Xid::new(2),
            at: time(90),
            name: b"p".to_vec(),
        };
        let mut commit = ended(2, 20);
        commit.prepared = true;
        let events = [
            event(100, 90, EventKind::Commit(ended(1, 10))),
            event(110, 100, prepare),
            event(120, 110, EventKind::Commit(commit)),
        ];
        let stop = |target, inclusive| stop(target, inclusive, &events, None).stop;
        assert_eq!(stop(Target::Xid(Xid::new(2)), true), after(120));
        assert_eq!(stop(Target::Xid(Xid::new(2)), false), before(120));
        assert_eq!(stop(Target::Time(time(15)), true), before(120));
    }
}
