//! Indexes a segment while its bytes pass by.

use super::super::decoder::{NotContiguous, RawRecord, Step, WalDecoder};
use super::super::events::{Event, EventKind, Extent};
use super::super::page::WalLayout;
use super::super::record::{Record, RecordError};
use super::super::rmgr::ResourceManager;
use super::super::xact::{Transaction, TransactionEnd};
use super::tally::Ending;
use super::{Broken, Ends, FirstRecord, LeftOut, Notable, Part, SegmentIndex, Tally, Touched, XidSet};
use crate::pg::{Lsn, Timeline};
use crate::wal::{CatalogRow, EndReason};

/// An index with all its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexed {
    /// What is always kept.
    pub core: SegmentIndex,
    /// Every commit and abort, in WAL order.
    pub ends: Vec<Event>,
    /// The blocks that records refer to.
    pub touched: Touched,
}

/// Indexes one segment. Bytes go in, in any pieces; nothing is an error, because WAL that can't be read is archived all
/// the same: the index says how far it could be read.
#[derive(Debug, Clone)]
pub struct SegmentIndexer {
    decoder: WalDecoder,
    at: Lsn,
    tally: Tally,
    core: SegmentIndex,
    ends: Vec<Event>,
    xids: Vec<u32>,
    within: Vec<u32>,
    limits: Limits,
}

/// How much is told at most.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Rows from which on a transaction that has ended is told as a part.
    rows: u64,
    /// Transactions.
    parts: usize,
    /// Relations.
    relations: usize,
    /// Rows of catalogues.
    catalog: usize,
    /// Events that are no ends. A segment has some, and thousands only if somebody makes restore points in a loop.
    events: usize,
    /// Notable ends.
    notable: usize,
    /// Items of each list that a notable end has.
    items: usize,
    /// Minutes.
    minutes: usize,
}

/// What an index holds that is stored.
const STORED: Limits = Limits {
    rows: Part::ROWS,
    parts: 4096,
    relations: 4096,
    catalog: 4096,
    events: 16_384,
    notable: 4096,
    items: 512,
    minutes: 2048,
};

/// Everything, down to the last row; for a reader who looks at one segment. Memory follows its size.
const ALL: Limits = Limits {
    rows: 1,
    parts: usize::MAX,
    relations: usize::MAX,
    catalog: usize::MAX,
    events: usize::MAX,
    notable: usize::MAX,
    items: usize::MAX,
    minutes: usize::MAX,
};

/// Troubles told at most.
const TROUBLES: usize = 8;

impl SegmentIndexer {
    /// For the segment that begins at `start`, of a file whose name tells this timeline.
    pub fn new(start: Lsn, timeline: Timeline, layout: WalLayout) -> Self {
        let mut decoder = WalDecoder::new(start, layout);
        decoder.allow_timelines_up_to(timeline);
        Self {
            decoder,
            at: start,
            tally: Tally::default(),
            core: SegmentIndex {
                start,
                version: layout.version(),
                timeline: None,
                first: None,
                extent: None,
                broken: None,
                rest: None,
                overwrites: false,
                begun: None,
                ends: Ends::default(),
                ended: XidSet::default(),
                ended_within: XidSet::default(),
                events: Vec::new(),
                notable: Vec::new(),
                parts: Vec::new(),
                relations: Vec::new(),
                catalog: Vec::new(),
                minutes: Vec::new(),
                left_out: LeftOut::default(),
                troubles: Vec::new(),
            },
            ends: Vec::new(),
            xids: Vec::new(),
            within: Vec::new(),
            limits: STORED,
        }
    }

    /// The same, and nothing is left out for its number: every transaction that changed a row is a part, and its end is
    /// notable.
    #[must_use]
    pub const fn exhaustive(mut self) -> Self {
        self.limits = ALL;
        self
    }

    /// Takes the segment's next bytes.
    ///
    /// # Errors
    /// Never in a row of pushes that begins where the segment does; the decoder checks it all the same.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NotContiguous> {
        if self.core.broken.is_some() {
            return Ok(());
        }
        self.decoder.push(self.at, bytes)?;
        self.at = self.at.plus(bytes.len() as u64);
        loop {
            match self.decoder.step() {
                Step::NeedMore => return Ok(()),
                Step::EndOfWal { at, why } => {
                    self.core.broken = Some(Broken {
                        at,
                        unwritten: why == EndReason::Unwritten,
                        why: why.to_string(),
                    });
                    return Ok(());
                }
                Step::Record(raw) => {
                    let seen = Seen {
                        tally: &mut self.tally,
                        core: &mut self.core,
                        ends: &mut self.ends,
                        xids: &mut self.xids,
                        within: &mut self.within,
                        limits: self.limits,
                    }
                    .see(&raw);
                    if let Err(error) = seen {
                        let _ = self.core.troubles.push_up_to(TROUBLES, error.to_string());
                    }
                }
            }
        }
    }

    /// Every commit and abort of the bytes so far, in WAL order.
    pub fn ends(&self) -> &[Event] {
        &self.ends
    }

    /// All bytes have been pushed.
    pub fn finish(self) -> Indexed {
        let Self {
            decoder,
            tally,
            mut core,
            ends,
            xids,
            within,
            limits,
            ..
        } = self;
        core.timeline = decoder.timeline();
        core.rest = decoder.rest().cloned();
        core.overwrites = decoder.overwrites();
        if core.broken.is_none() {
            core.begun = decoder.begun();
        }
        core.ended = XidSet::of(xids);
        core.ended_within = XidSet::of(within);
        let (touched, mut relations, open) = tally.finish();
        // Also of those that changed no row yet: where a transaction begins matters.
        core.parts.extend(open);
        if core.parts.len() > limits.parts {
            core.parts.sort_by_key(|part| std::cmp::Reverse(part.rows()));
            core.left_out.large_parts = (core.parts.len() - limits.parts) as u64;
            core.parts.truncate(limits.parts);
        }
        core.parts.sort_by_key(|part| (part.first, part.xid.number()));
        if relations.len() > limits.relations {
            relations.sort_by_key(|activity| std::cmp::Reverse((activity.rows.all(), activity.references)));
            core.left_out.relations = (relations.len() - limits.relations) as u64;
            relations.truncate(limits.relations);
            relations.sort_by_key(|activity| activity.file);
        }
        core.relations = relations;
        Indexed { core, ends, touched }
    }
}

/// What one record is added to.
struct Seen<'a> {
    tally: &'a mut Tally,
    core: &'a mut SegmentIndex,
    ends: &'a mut Vec<Event>,
    xids: &'a mut Vec<u32>,
    within: &'a mut Vec<u32>,
    limits: Limits,
}

impl Seen<'_> {
    fn see(&mut self, raw: &RawRecord<'_>) -> Result<(), RecordError> {
        if self.core.first.is_none() {
            self.core.first = Some(FirstRecord {
                lsn: raw.start(),
                previous: raw.previous(),
            });
        }
        self.core.extent = Some(Extent {
            last_record: raw.start(),
            end: raw.end(),
        });
        let file = self.tally.see(raw)?;
        match raw.manager() {
            ResourceManager::TRANSACTION => return self.transaction(raw),
            ResourceManager::RELATION_MAP => return self.catalog(raw),
            ResourceManager::HEAP | ResourceManager::HEAP2 if file.is_some_and(|file| CatalogRow::may_be_in(&file)) => {
                return self.catalog(raw);
            }
            _ => {}
        }
        if let Some(kind) = EventKind::of(raw)? {
            self.note(event_of(raw, kind));
        }
        Ok(())
    }

    /// An event that is no end.
    fn note(&mut self, event: Event) {
        self.core.ends.add(&event);
        if !self.core.events.push_up_to(self.limits.events, event) {
            self.core.left_out.events += 1;
        }
    }

    fn transaction(&mut self, raw: &RawRecord<'_>) -> Result<(), RecordError> {
        let record = Record::parse(raw)?;
        let change = Transaction::parse(&record)?;
        let Some(kind) = EventKind::of_transaction(change) else {
            return Ok(());
        };
        let event = event_of(raw, kind);
        match change {
            Transaction::End(end) => self.end(&end, event),
            _ => self.note(event),
        }
        Ok(())
    }

    fn end(&mut self, end: &TransactionEnd<'_>, event: Event) {
        self.count(end, &event);
        self.xids.push(end.xid.number());
        self.within.extend(end.subtransactions.iter().map(|xid| xid.number()));
        let drops = end.committed && !end.dropped.is_empty();
        let enough = self.limits.rows;
        let wanted = |rows, empties| drops || empties || rows >= enough;
        let ending = self.tally.end_if(end.xid, end.subtransactions.iter(), wanted);
        if ending == Ending::Unwanted {
            self.core.left_out.parts += 1;
        }
        if drops || matches!(ending, Ending::Part(_)) {
            let notable = notable_of(end, event.clone(), self.limits.items);
            if !self.core.notable.push_up_to(self.limits.notable, notable) {
                self.core.left_out.notable += 1;
            }
        }
        if let Ending::Part(part) = ending {
            self.core.parts.push(*part);
        }
        self.ends.push(event);
    }

    fn count(&mut self, end: &TransactionEnd<'_>, event: &Event) {
        self.core.ends.add(event);
        if !end.committed {
            return;
        }
        let minute = end.at.timestamp().div_euclid(60);
        // Times are nearly in order: the minute is the last one, or one of those just before.
        let limit = self.limits.minutes;
        let minutes = &mut self.core.minutes;
        match minutes.iter_mut().rev().find(|(known, _)| *known == minute) {
            Some((_, commits)) => *commits += 1,
            None => {
                let _ = minutes.push_up_to(limit, (minute, 1));
            }
        }
    }

    fn catalog(&mut self, raw: &RawRecord<'_>) -> Result<(), RecordError> {
        let record = Record::parse(raw)?;
        let (core, at, limit) = (&mut *self.core, raw.start(), self.limits.catalog);
        CatalogRow::of(&record, &mut |row| {
            if !core.catalog.push_up_to(limit, (at, row)) {
                core.left_out.catalog += 1;
            }
        })
    }
}

/// A list that is told only up to some length.
trait Bounded<T> {
    /// Appends `item` and says so, unless `limit` items are there.
    fn push_up_to(&mut self, limit: usize, item: T) -> bool;
}

impl<T> Bounded<T> for Vec<T> {
    fn push_up_to(&mut self, limit: usize, item: T) -> bool {
        let room = self.len() < limit;
        if room {
            self.push(item);
        }
        room
    }
}

fn event_of(raw: &RawRecord<'_>, kind: EventKind) -> Event {
    Event {
        lsn: raw.start(),
        end_lsn: raw.end(),
        previous: raw.previous(),
        kind,
    }
}

fn notable_of(end: &TransactionEnd<'_>, event: Event, items: usize) -> Notable {
    // Told once for each of its columns, and more.
    let mut changed: Vec<_> = end.relations_changed.iter().collect();
    changed.sort_unstable();
    changed.dedup();
    let all = end.subtransactions.len() + end.dropped.len() + changed.len();
    changed.truncate(items);
    let mut notable = Notable {
        event,
        subtransactions: end.subtransactions.iter().take(items).collect(),
        dropped: end.dropped.iter().take(items).collect(),
        changed,
        left_out: 0,
    };
    let told = notable.subtransactions.len() + notable.dropped.len() + notable.changed.len();
    notable.left_out = (all - told) as u64;
    notable
}
