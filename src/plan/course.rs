//! What a recovery meets on its way from a backup to its target, folded from what the index of each segment tells.
//!
//! Segments come in the order of the WAL. Most of them are passed over by their sums; the events of a segment are asked
//! for only where the stop can be, or where sums don't tell enough. Nothing is kept of a segment that was left, so that
//! memory does not grow with the way. The outcome is the same as that of a walk through all events.

use chrono::{DateTime, Utc};

use super::needs::Needs;
use super::recovery::{Findings, XidTold};
use crate::pg::{Lsn, SegmentNumber, SegmentSize, WalLevel};
use crate::wal::index::{Chain, Crossed, Crossing, SegmentIndex, Told};
use crate::wal::{Event, EventKind, Extent, Record, Stop, StopFinder, Target, Transaction};

/// A recovery's way through the WAL, as far as it was followed.
#[derive(Debug, Clone)]
pub struct Course {
    finder: StopFinder,
    target: Target,
    /// Replay begins here; what lies before is in the backup.
    from: Lsn,
    segment_size: SegmentSize,
    chain: Chain,
    /// How far the WAL goes that was followed, with what of the present segment comes before its own records.
    extent: Option<Extent>,
    /// Whether the present segment's own records follow on what came before.
    follows: bool,
    followed: usize,
    stopped_in: Option<usize>,
    last_moment: Option<DateTime<Utc>>,
    needs: Needs,
    xid: XidTold,
    wall: Option<(Extent, String)>,
    troubles: Vec<String>,
}

impl Course {
    /// Of a recovery that replays from `from` on to a target; `inclusive` is `recovery_target_inclusive`.
    pub fn new(from: Lsn, target: Target, inclusive: bool, segment_size: SegmentSize) -> Self {
        Self {
            finder: StopFinder::new(target.clone(), inclusive),
            target,
            from,
            segment_size,
            chain: Chain::default(),
            extent: None,
            follows: false,
            followed: 0,
            stopped_in: None,
            last_moment: None,
            needs: Needs::default(),
            xid: XidTold::default(),
            wall: None,
            troubles: Vec::new(),
        }
    }

    /// Enters the next segment: takes the record that crosses into it. Answers where that begins if only the WAL itself
    /// tells what it means; it must be shown to [`Self::see`] then.
    pub fn enter(&mut self, index: &SegmentIndex) -> Option<Lsn> {
        let crossing = self.chain.follow(index, self.segment_size.bytes());
        self.followed += 1;
        // A break that the index itself tells of is behind what it tells.
        self.follows = self
            .chain
            .broken()
            .is_none_or(|broken| index.broken.as_ref() == Some(broken));
        let Crossing::Record(crossed) = crossing else {
            return None;
        };
        self.extent = Some(Extent {
            last_record: crossed.start(),
            end: crossed.end(),
        });
        match crossed.event() {
            Ok(Told::Nothing) => None,
            Ok(Told::Event(event)) => {
                self.look_for_subtransaction(&crossed);
                self.see(&event);
                None
            }
            Ok(Told::TooLong) => Some(crossed.start()),
            Err(error) => {
                self.troubles.push(error.to_string());
                None
            }
        }
    }

    /// Whether the segment's own records follow on what came before.
    pub const fn follows(&self) -> bool {
        self.follows
    }

    /// Whether the segment that was entered may be passed over; else each of its events must be seen.
    pub fn may_pass_over(&self, index: &SegmentIndex) -> bool {
        if self.finder.has_stopped() {
            return true;
        }
        let too_early = index.start < self.from;
        let wall = |event: &Event| is_minimal(&event.kind);
        !too_early && index.left_out.events == 0 && self.finder.may_pass_over(index) && !index.events.iter().any(wall)
    }

    /// Passes over the segment that was entered.
    pub fn pass_over(&mut self, index: &SegmentIndex) {
        if !self.finder.has_stopped() {
            for event in &index.events {
                self.note(event);
            }
            self.last_moment = self.last_moment.max(index.ends.latest);
            self.look_for_subtransactions(index);
        }
        self.finder.pass_over(index);
    }

    /// Takes the events of the segment that was entered.
    pub fn see_all<'a>(&mut self, index: &SegmentIndex, events: impl IntoIterator<Item = &'a Event>) {
        self.look_for_subtransactions(index);
        for event in events {
            self.see(event);
        }
    }

    /// Takes an event, in WAL order.
    pub fn see(&mut self, event: &Event) {
        if self.wall.is_some() {
            return;
        }
        if event.lsn < self.from {
            self.finder.see_before_replay(event);
            return;
        }
        let had_stopped = self.finder.has_stopped();
        let before = is_minimal(&event.kind).then(|| self.finder.clone());
        self.finder.see(event);
        let replayed = match self.finder.outcome().stop {
            None => true,
            Some(Stop::After { lsn, .. }) => lsn == event.lsn,
            Some(_) => false,
        };
        if had_stopped || !replayed {
            return;
        }
        if let Some(before) = before {
            self.finder = before;
            let extent = Extent {
                last_record: event.previous,
                end: event.lsn,
            };
            let why = format!(
                "at {} the server was started with wal_level = minimal, and PostgreSQL recovers no further",
                event.lsn
            );
            self.wall = Some((extent, why));
            return;
        }
        self.last_moment = self.last_moment.max(event.kind.at());
        self.note(event);
        if let (Target::Xid(xid), EventKind::Abort(end)) = (&self.target, &event.kind) {
            self.xid.rolled_back |= end.xid == *xid;
        }
    }

    /// Leaves the segment that was entered. `extent` is how far it goes where it counts only in part.
    pub fn leave(&mut self, extent: Option<Extent>) {
        if extent.is_some() {
            self.extent = extent;
        } else if self.follows {
            self.extent = self.chain.extent();
        }
        if let (None, Some(extent)) = (&self.wall, self.extent) {
            self.finder.reach(extent);
        }
        if self.finder.has_stopped() && self.stopped_in.is_none() {
            self.stopped_in = Some(self.followed);
        }
    }

    /// How far the WAL goes that was followed, the record included that crosses into the segment that was entered.
    pub const fn extent(&self) -> Option<Extent> {
        self.extent
    }

    /// Whether later segments make no difference, or don't count.
    pub fn is_over(&self) -> bool {
        self.finder.is_settled() || self.wall.is_some() || self.chain.broken().is_some()
    }

    /// Whether the stop was found.
    pub const fn has_stopped(&self) -> bool {
        self.finder.has_stopped()
    }

    /// How many segments were entered.
    pub const fn followed(&self) -> usize {
        self.followed
    }

    /// What was found. `last` is the last segment that there is: in an earlier one, the WAL should not break off.
    pub fn finish(self, last: Option<SegmentNumber>) -> Findings {
        let (extent, mut ends) = match self.wall {
            Some((extent, why)) => (Some(extent), Some(why)),
            None => (self.extent, None),
        };
        if let Some(broken) = self.chain.broken()
            && last.is_some_and(|last| SegmentNumber::holding(broken.at, self.segment_size) < last)
        {
            ends = ends.or_else(|| Some(format!("the WAL can be read only up to {}: {}", broken.at, broken.why)));
        }
        let read_on = self.finder.has_stopped();
        Findings {
            outcome: Some(self.finder.finish(extent)),
            extent: extent.filter(|_| !read_on),
            last_moment: self.last_moment,
            segments: self.stopped_in.unwrap_or(self.followed),
            ends: ends.filter(|_| !read_on),
            needs: self.needs,
            xid: self.xid,
            troubles: self.troubles,
        }
    }

    /// Takes what the server must be ready for when it replays an event.
    fn note(&mut self, event: &Event) {
        self.needs.note(event);
        if let (Target::Xid(wanted), EventKind::Prepare { xid, at, name }) = (&self.target, &event.kind)
            && xid == wanted
        {
            self.xid.prepared = Some((*at, String::from_utf8_lossy(name).into_owned()));
        }
    }

    fn look_for_subtransactions(&mut self, index: &SegmentIndex) {
        if let Target::Xid(xid) = self.target
            && index.ended_within.contains(xid)
        {
            self.xid.within = Some(self.followed - 1);
        }
    }

    fn look_for_subtransaction(&mut self, crossed: &Crossed) {
        let Target::Xid(wanted) = self.target else { return };
        let raw = crossed.raw();
        let end = Record::parse(&raw).and_then(|record| match Transaction::parse(&record)? {
            Transaction::End(end) => Ok(end.subtransactions.iter().any(|xid| xid == wanted).then_some(end.xid)),
            _ => Ok(None),
        });
        if let Ok(Some(whole)) = end {
            self.xid.whole = Some(whole);
        }
    }
}

/// Whether PostgreSQL gives up at this event: what was done afterwards is not all in the WAL.
fn is_minimal(kind: &EventKind) -> bool {
    matches!(kind, EventKind::ParameterChange(change) if change.wal_level == WalLevel::Minimal)
}

#[cfg(test)]
mod tests;
