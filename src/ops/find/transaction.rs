//! Transactions on their way through the WAL: what each has done so far, added up over segments until it ends.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use crate::pg::{Lsn, SegmentNumber};
use crate::wal::index::{Chain, Notable, Part, Rows, XidSet};
use crate::wal::{Ended, Event, EventKind, Oid, RelFile, TransactionEnd, Xid};

/// What a transaction did.
#[derive(Debug, Clone, Default)]
pub(super) struct Did {
    /// Its first record that is known of.
    pub(super) first: Option<Lsn>,
    /// Bytes of its records in the segments of [`Self::counted`].
    pub(super) wal_bytes: u64,
    /// Rows by relation.
    pub(super) relations: BTreeMap<RelFile, Rows>,
    /// Files that it created.
    pub(super) created: Vec<RelFile>,
    /// Tables that it emptied, as told for logical replication: database and object id.
    pub(super) truncated: Vec<(Oid, Oid)>,
    /// The segments that tell of it.
    pub(super) counted: BTreeSet<SegmentNumber>,
}

impl Did {
    /// Adds what it did in one segment.
    pub(super) fn add_part(&mut self, part: Part, segment: SegmentNumber) {
        self.first = Some(self.first.map_or(part.first, |first| first.min(part.first)));
        self.wal_bytes += part.wal_bytes;
        for (file, rows) in part.relations {
            self.relations.entry(file).or_default().add(&rows);
        }
        self.created.extend(part.created);
        self.truncated.extend(part.truncated);
        self.counted.insert(segment);
    }

    /// Adds what a subtransaction did.
    fn add(&mut self, other: Self) {
        self.first = match (self.first, other.first) {
            (Some(own), Some(other)) => Some(own.min(other)),
            (own, other) => own.or(other),
        };
        self.wal_bytes += other.wal_bytes;
        for (file, rows) in other.relations {
            self.relations.entry(file).or_default().add(&rows);
        }
        self.created.extend(other.created);
        self.truncated.extend(other.truncated);
        self.counted.extend(other.counted);
    }
}

/// How a transaction ended, with all its record's lists.
#[derive(Debug, Clone)]
pub(super) struct End {
    /// The commit or abort.
    pub(super) event: Event,
    /// What it tells of the transaction.
    pub(super) ended: Ended,
    /// Whether it is a commit.
    pub(super) committed: bool,
    /// The subtransactions that ended with it.
    pub(super) subtransactions: Vec<Xid>,
    /// The files that went with it, in the record's order.
    pub(super) dropped: Vec<RelFile>,
    /// Database and object id of relations whose definition changed.
    pub(super) changed: Vec<(Oid, Oid)>,
}

impl End {
    /// As an index tells it; `None` for what is no end.
    pub(super) fn noted(notable: &Notable) -> Option<Self> {
        Some(Self {
            subtransactions: notable.subtransactions.clone(),
            dropped: notable.dropped.clone(),
            changed: notable.changed.clone(),
            ..Self::bare(notable.event.clone())?
        })
    }

    /// As the record itself tells it.
    pub(super) fn read(event: Event, end: &TransactionEnd<'_>) -> Option<Self> {
        Some(Self {
            subtransactions: end.subtransactions.iter().collect(),
            dropped: end.dropped.iter().collect(),
            changed: end.relations_changed.iter().collect(),
            ..Self::bare(event)?
        })
    }

    fn bare(event: Event) -> Option<Self> {
        let (ended, committed) = match event.kind {
            EventKind::Commit(ended) => (ended, true),
            EventKind::Abort(ended) => (ended, false),
            _ => return None,
        };
        Some(Self {
            event,
            ended,
            committed,
            subtransactions: Vec::new(),
            dropped: Vec::new(),
            changed: Vec::new(),
        })
    }
}

/// A transaction that has ended.
#[derive(Debug, Clone)]
pub(super) struct Transaction {
    /// How it ended.
    pub(super) end: End,
    /// What it did.
    pub(super) did: Did,
    /// Whether all it did is in WAL that was read.
    pub(super) complete: bool,
}

/// Where a reader of one timeline's WAL stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// From segment to segment.
    pub(super) chain: Chain,
    open: FxHashMap<u32, Did>,
    /// Prepared and not ended.
    prepared: FxHashMap<u32, Event>,
    /// Transactions from this one on began in WAL that was read without a gap.
    known_from: Option<Xid>,
}

impl Standing {
    /// Adds what a transaction that has not ended did in a segment.
    pub(super) fn add(&mut self, part: Part, segment: SegmentNumber) {
        self.open.entry(part.xid.number()).or_default().add_part(part, segment);
    }

    /// Ends a transaction, whose last part is `part`.
    pub(super) fn end(&mut self, end: End, part: Option<Part>, segment: SegmentNumber) -> Transaction {
        let xid = end.ended.xid;
        let mut did = self.open.remove(&xid.number()).unwrap_or_default();
        self.prepared.remove(&xid.number());
        for xid in &end.subtransactions {
            if let Some(other) = self.open.remove(&xid.number()) {
                did.add(other);
            }
        }
        if let Some(part) = part {
            did.add_part(part, segment);
        }
        // Ids go round: half of all are younger.
        let complete = self
            .known_from
            .is_some_and(|known| xid.number().wrapping_sub(known.number()) < 1 << 31);
        Transaction { end, did, complete }
    }

    /// Forgets transactions that ended, of which nothing was to be told.
    pub(super) fn forget(&mut self, ended: &[&XidSet]) {
        let over = |xid: &u32| ended.iter().any(|set| set.contains(Xid::new(*xid)));
        self.open.retain(|xid, _| !over(xid));
        self.prepared.retain(|xid, _| !over(xid));
    }

    /// A transaction was prepared.
    pub(super) fn prepare(&mut self, xid: Xid, event: Event) {
        self.prepared.insert(xid.number(), event);
    }

    /// A server stopped or began here: what was going on before is over, unless it was prepared.
    pub(super) fn stopped(&mut self, at: Lsn) {
        let prepared = &self.prepared;
        self.open
            .retain(|xid, did| prepared.contains_key(xid) || did.first.is_none_or(|first| first > at));
    }

    /// At a checkpoint this was the next transaction.
    pub(super) fn next_xid(&mut self, next: Xid) {
        self.known_from.get_or_insert(next);
    }

    /// WAL is missing here.
    pub(super) fn break_off(&mut self) {
        self.chain = Chain::default();
        self.known_from = None;
    }

    /// Those that have not ended.
    pub(super) fn open(&self) -> impl Iterator<Item = (Xid, &Did)> {
        self.open.iter().map(|(xid, did)| (Xid::new(*xid), did))
    }

    /// The record that prepared a transaction that has not ended.
    pub(super) fn prepared(&self, xid: Xid) -> Option<&Event> {
        self.prepared.get(&xid.number())
    }
}
