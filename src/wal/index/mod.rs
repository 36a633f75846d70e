//! What a segment's WAL tells, small enough to be kept beside it: so that windows, plans and searches read kilobytes
//! and never the segments themselves.
//!
//! | part | holds |
//! | --- | --- |
//! | [`SegmentIndex`] | borders, what a recovery meets except plain ends of transactions, large transactions, totals |
//! | ends | every commit and abort, as events; left out where they are too many |
//! | [`Touched`] | the blocks that records of the segment refer to; a superset where they are too many |
//!
//! A record that crosses into the next segment is in neither index; [`Chain`] completes it from both, checksum
//! included. All parts are bounded. Whatever was left out is counted, so that a reader knows when it must read the
//! segment itself.

mod build;
mod chain;
mod code;
mod open;
#[cfg(test)]
pub(crate) mod summary;
mod tally;
mod touched;
mod xids;

use chrono::{DateTime, Utc};

use super::CatalogRow;
use super::decoder::{Begun, Rest};
use super::events::{Event, EventKind, Extent};
use super::record::{Oid, RelFile};
use super::target::CommitPoint;
use super::xid::Xid;
use crate::pg::{Lsn, MajorVersion, Timeline};

pub use build::{Indexed, SegmentIndexer};
pub use chain::{Chain, Crossed, Crossing, Told};
pub use code::{read_core, read_ends, read_touched, write_core, write_ends, write_touched};
pub use tally::Tally;
pub use touched::{Touched, TouchedFile};
pub use xids::XidSet;

/// What one segment's WAL tells, without its plain ends of transactions and its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Where the segment begins.
    pub start: Lsn,
    /// The major that wrote it.
    pub version: MajorVersion,
    /// The timeline of the last page that was read.
    pub timeline: Option<Timeline>,
    /// The first record that begins here.
    pub first: Option<FirstRecord>,
    /// How far the whole records go that begin here.
    pub extent: Option<Extent>,
    /// Where reading ended before the segment did.
    pub broken: Option<Broken>,
    /// The rest of a record that began in an earlier segment.
    pub rest: Option<Rest>,
    /// Whether the first page says that the record before it was never finished.
    pub overwrites: bool,
    /// The beginning of a record that goes on in the next segment.
    pub begun: Option<Begun>,
    /// The ends of transactions, in sum.
    pub ends: Ends,
    /// Transactions that end here.
    pub ended: XidSet,
    /// Subtransactions of those.
    pub ended_within: XidSet,
    /// Everything that a recovery meets here except ends of transactions, in WAL order.
    pub events: Vec<Event>,
    /// Ends of transactions that did more than change some rows, in WAL order.
    pub notable: Vec<Notable>,
    /// What large transactions, and those that had not ended, did in this segment.
    pub parts: Vec<Part>,
    /// What was done to each relation.
    pub relations: Vec<Activity>,
    /// Rows of the server's catalogues that were written, and where.
    pub catalog: Vec<(Lsn, CatalogRow)>,
    /// Commits by minute: minutes since 1970, in order.
    pub minutes: Vec<(i64, u32)>,
    /// What is not told for want of room.
    pub left_out: LeftOut,
    /// Records that passed their checksum and could not be understood.
    pub troubles: Vec<String>,
}

/// The first record that begins in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstRecord {
    /// Where it begins.
    pub lsn: Lsn,
    /// Where the record before it begins, as it says.
    pub previous: Lsn,
}

/// Where no valid record begins although the segment goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The place.
    pub at: Lsn,
    /// Whether nothing was written there: normal in the last segment of a timeline.
    pub unwritten: bool,
    /// What is there instead, in words.
    pub why: String,
}

/// The ends of transactions in a segment, in sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    /// How many commits.
    pub commits: u64,
    /// How many aborts.
    pub aborts: u64,
    /// The first commit in WAL order.
    pub first_commit: Option<CommitPoint>,
    /// The last commit in WAL order.
    pub last_commit: Option<CommitPoint>,
    /// The latest time that a commit tells.
    pub latest_commit: Option<DateTime<Utc>>,
    /// The latest time that a commit or abort tells.
    pub latest_end: Option<DateTime<Utc>>,
    /// The earliest time that a commit or abort tells.
    pub earliest_end: Option<DateTime<Utc>>,
    /// The latest time that anything tells.
    pub latest: Option<DateTime<Utc>>,
}

impl Ends {
    /// Adds what an event tells, in WAL order.
    pub(super) fn add(&mut self, event: &Event) {
        self.latest = self.latest.max(event.kind.at());
        let Some(end) = event.kind.ended() else { return };
        self.latest_end = self.latest_end.max(Some(end.at));
        self.earliest_end = Some(self.earliest_end.map_or(end.at, |at| at.min(end.at)));
        if !matches!(event.kind, EventKind::Commit(_)) {
            self.aborts += 1;
            return;
        }
        self.commits += 1;
        self.latest_commit = self.latest_commit.max(Some(end.at));
        let point = CommitPoint {
            lsn: event.lsn,
            end_lsn: event.end_lsn,
            xid: end.xid,
            at: end.at,
        };
        self.first_commit = self.first_commit.or(Some(point));
        self.last_commit = Some(point);
    }
}

/// The end of a transaction that dropped files or is large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notable {
    /// The commit or abort.
    pub event: Event,
    /// Its subtransactions.
    pub subtransactions: Vec<Xid>,
    /// The files that went with it.
    pub dropped: Vec<RelFile>,
    /// Database and object id of relations whose definition it changed, as it told the other sessions.
    pub changed: Vec<(Oid, Oid)>,
    /// How many items of the lists above are not told.
    pub left_out: u64,
}

/// What a transaction did in one segment. A subtransaction is counted with the transaction whose end is in the same
/// segment, and on its own otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The transaction.
    pub xid: Xid,
    /// Its first record here.
    pub first: Lsn,
    /// Bytes of its records.
    pub wal_bytes: u64,
    /// Rows by relation.
    pub relations: Vec<(RelFile, Rows)>,
    /// Files of relations that it created.
    pub created: Vec<RelFile>,
    /// Files that it cut to nothing.
    pub emptied: Vec<RelFile>,
    /// Tables that it emptied by `TRUNCATE`, as told for logical replication: database and object id.
    pub truncated: Vec<(Oid, Oid)>,
}

impl Part {
    /// All its rows.
    pub fn rows(&self) -> u64 {
        self.relations.iter().map(|(_, rows)| rows.all()).sum()
    }
}

/// Rows changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rows {
    /// Inserted.
    pub inserts: u64,
    /// Updated.
    pub updates: u64,
    /// Deleted.
    pub deletes: u64,
}

impl Rows {
    /// All of them.
    pub const fn all(&self) -> u64 {
        self.inserts + self.updates + self.deletes
    }

    /// Adds others.
    pub const fn add(&mut self, other: &Self) {
        self.inserts += other.inserts;
        self.updates += other.updates;
        self.deletes += other.deletes;
    }
}

/// What was done to a relation's data in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// The relation.
    pub file: RelFile,
    /// Rows, whoever changed them and however that ended.
    pub rows: Rows,
    /// How often records refer to its blocks.
    pub references: u64,
}

/// What is not told for want of room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Transactions that ended here whose rows are told only with their relations. None of them has as many rows here
    /// as [`Part::ROWS`], unless [`Self::large_parts`] says so.
    pub parts: u64,
    /// Transactions that are too many, however many rows they have.
    pub large_parts: u64,
    /// Relations that are too many.
    pub relations: u64,
    /// Rows of catalogues that are too many.
    pub catalog: u64,
    /// Events that are too many: with any, the index does not tell all that a recovery meets.
    pub events: u64,
    /// Ends of transactions that dropped files or are large, and are too many.
    pub notable: u64,
}

impl Part {
    /// A transaction that ended in the segment is told as a part from so many rows on.
    pub const ROWS: u64 = 64;
}
