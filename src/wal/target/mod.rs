//! Where PostgreSQL ends a recovery: its rules for each kind of target (`recoveryStopsBefore`,
//! `recoveryStopsAfter`), applied to what the WAL tells. They are the same from 13 to 18.
//!
//! Not judged here: whether the data directory is consistent at the stop, which depends on the backup.

use chrono::{DateTime, Utc};

use super::events::{Event, EventKind, Extent};
use super::index::SegmentIndex;
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
        let Some(point) = commit_point(event) else { return };
        if replayed {
            self.outcome.last_commit = Some(point);
        } else if self.outcome.next_commit.is_none() {
            self.outcome.next_commit = Some(point);
        }
    }

    /// Takes a commit that the backup has already, and that is not replayed.
    pub fn see_before_replay(&mut self, event: &Event) {
        if let Some(point) = commit_point(event)
            && !self.has_stopped()
        {
            self.outcome.last_commit = Some(point);
        }
    }

    /// Whether the events of a segment make no difference that its sums don't tell: the stop is not in it. The record
    /// that crosses into the segment must have been seen.
    pub fn may_pass_over(&self, index: &SegmentIndex) -> bool {
        if self.has_stopped() {
            return true;
        }
        match &self.target {
            Target::Time(time) => index
                .ends
                .latest_end
                .is_none_or(|latest| latest < *time || latest == *time && self.inclusive),
            Target::Xid(xid) => !index.ended.contains(*xid),
            Target::Name(wanted) => {
                let has = |event: &Event| matches!(&event.kind, EventKind::RestorePoint { name, .. } if name == wanted);
                index.left_out.events == 0 && !index.events.iter().any(has)
            }
            Target::Lsn(lsn) => index.extent.is_none_or(|extent| extent.last_record < *lsn),
            Target::Consistent(lsn) => index.extent.is_none_or(|extent| extent.end < *lsn),
            Target::EndOfWal => true,
        }
    }

    /// Takes all events of a segment at once, which [`Self::may_pass_over`] allowed.
    pub fn pass_over(&mut self, index: &SegmentIndex) {
        if !self.has_stopped() {
            self.outcome.last_commit = index.ends.last_commit.or(self.outcome.last_commit);
        } else if self.outcome.next_commit.is_none() {
            self.outcome.next_commit = index.ends.first_commit;
        }
    }

    /// All events as far as `extent` have been seen: a place may be reached at a record that is no event.
    pub const fn reach(&mut self, extent: Extent) {
        if self.has_stopped() {
            return;
        }
        self.outcome.stop = match self.target {
            Target::Lsn(lsn) if extent.last_record.bytes() >= lsn.bytes() => Some(Stop::Near(lsn)),
            Target::Consistent(lsn) if extent.end.bytes() >= lsn.bytes() => Some(Stop::Near(lsn)),
            _ => None,
        };
    }

    /// What is known so far.
    pub const fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// All events have been seen; the WAL reaches as far as `extent`.
    pub fn finish(mut self, extent: Option<Extent>) -> Outcome {
        let Some(extent) = extent else { return self.outcome };
        self.reach(extent);
        if self.target == Target::EndOfWal && !self.has_stopped() {
            self.outcome.stop = Some(Stop::EndOfWal(extent.end));
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

fn commit_point(event: &Event) -> Option<CommitPoint> {
    let EventKind::Commit(commit) = event.kind else {
        return None;
    };
    Some(CommitPoint {
        lsn: event.lsn,
        end_lsn: event.end_lsn,
        xid: commit.xid,
        at: commit.at,
    })
}

#[cfg(test)]
mod tests;
