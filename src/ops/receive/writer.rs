//! What was received on its way into the repository: pieces now, whole segments when they are full.
//!
//! Bytes come in as the server sends them, from a segment's start on. They go to the thread that packs the segment, and
//! to the [`Cutter`] that makes pieces of it. Requests to the store run beside the connection, each tried until it is
//! done; only what the store has answered for counts as durable (rule 1).
//!
//! What a crash leaves, after
//! 1. a piece was stored: bytes that were not reported yet, and are received again and compared;
//! 2. a segment was stored: its pieces, which the next start lets go;
//! 3. some of its pieces went: nothing that is needed.

mod jobs;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ReceiveError;
use super::begin::Unit;
use super::cutter::{Cut, Cutter, Pace};
use super::durable::Durable;
use super::packer::{Packer, Reply, Took};
use crate::codec::Hasher;
use crate::error::Failure;
use crate::pg::{LongHeader, Lsn, SegmentNumber, Timeline, WalFileName, check_first_page};
use crate::repo::tail::{Piece, Tail};
use crate::repo::{ClusterInfo, Repository, WalHead};

use jobs::Done;
pub(super) use jobs::Trouble;

/// So many bytes may wait for the packing thread.
const MOST_QUEUED: u64 = 2 << 20;
/// So many segments may be full and not stored yet: one is on its way while the next is packed.
const MOST_UNSTORED: usize = 2;
/// While segments are not stored yet, no more is received than this beside them: what does not compress is held as it is.
const MOST_HELD: u64 = 24 << 20;

/// What is written where, and how.
#[derive(Clone)]
pub(super) struct Goal {
    pub(super) repository: Repository,
    pub(super) cluster: ClusterInfo,
    /// Whose WAL it is, for messages.
    pub(super) server: String,
    /// The timeline, and the segment with which it begins.
    pub(super) unit: Unit,
    /// When pieces leave.
    pub(super) pace: Pace,
    /// zstd's level.
    pub(super) level: i32,
    /// What stands between us and the repository.
    pub(super) trouble: Trouble,
}

/// What has been written since it was last asked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// Segments stored.
    pub(super) segments: u64,
    /// Pieces stored, merged ones too.
    pub(super) pieces: u64,
    /// Bytes of objects stored.
    pub(super) stored_bytes: u64,
}

impl Written {
    /// This and more.
    pub(super) fn add(&mut self, more: Self) {
        self.segments += more.segments;
        self.pieces += more.pieces;
        self.stored_bytes += more.stored_bytes;
    }

    /// What this is more than before.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            segments: self.segments - before.segments,
            pieces: self.pieces - before.pieces,
            stored_bytes: self.stored_bytes - before.stored_bytes,
        }
    }
}

/// Writes one timeline's WAL, from a segment's start on.
pub(super) struct Writer {
    goal: Goal,
    packer: Packer,
    jobs: JoinSet<Result<Done, Failure>>,
    /// The segment that is coming in.
    number: SegmentNumber,
    received: Lsn,
    /// The segment's first bytes, until they tell whose it is.
    head: BytesMut,
    begun: bool,
    cutter: Cutter,
    /// Segments that are full and not stored yet, with what of them was not cut.
    unstored: VecDeque<(SegmentNumber, Cutter)>,
    durable: Durable,
    check: Option<Check>,
    pieces_in_flight: usize,
    /// When the last piece left.
    left_at: Instant,
    merging: bool,
    /// Pieces that something longer will take the place of.
    made: Vec<Piece>,
    /// Up to where the server has WAL.
    server_end: Lsn,
    pub(super) took: Vec<Took>,
    pub(super) written: Written,
}

/// What the repository has of the first segment already: the server must send the same.
struct Check {
    tail: Tail,
    hasher: Hasher,
}

impl Writer {
    /// Begins with a segment, of which the repository has this tail.
    pub(super) fn new(goal: Goal, tail: Tail) -> Self {
        let start = goal.unit.number.start(goal.cluster.segment_size);
        Self {
            packer: Packer::start(goal.repository.store().clone(), goal.level),
            jobs: JoinSet::new(),
            number: goal.unit.number,
            received: start,
            head: BytesMut::new(),
            begun: false,
            cutter: Cutter::new(goal.pace, tail.end),
            unstored: VecDeque::new(),
            durable: Durable::up_to(tail.end),
            check: (tail.end > start).then(|| Check {
                tail,
                hasher: Hasher::default(),
            }),
            pieces_in_flight: 0,
            left_at: Instant::now(),
            merging: false,
            made: Vec::new(),
            server_end: start,
            took: Vec::new(),
            written: Written::default(),
            goal,
        }
    }

    /// Up to where WAL was received.
    pub(super) const fn received(&self) -> Lsn {
        self.received
    }

    /// Up to where it is durable; `None` until the server has shown that it has the same WAL as the repository.
    pub(super) fn durable(&self) -> Option<Lsn> {
        self.check.is_none().then(|| self.durable.at())
    }

    /// Every segment before this position is stored whole.
    fn stored_up_to(&self) -> Lsn {
        let first = self.unstored.front().map_or(self.number, |(number, _)| *number);
        first.start(self.goal.cluster.segment_size)
    }

    /// Whether more bytes may come: what is held in memory is bounded.
    pub(super) fn has_room(&self) -> bool {
        self.packer.queued() < MOST_QUEUED
            && self.unstored.len() < MOST_UNSTORED
            && (self.unstored.is_empty() || self.held() < MOST_HELD)
            && (self.cutter.has_room() || self.is_whole())
    }

    /// How much was received and is not stored as a whole yet.
    fn held(&self) -> u64 {
        self.received.bytes().saturating_sub(self.stored_up_to().bytes())
    }

    /// Whether everything that was received is durable.
    pub(super) fn is_drained(&self) -> bool {
        self.durable() >= Some(self.received)
    }

    /// The timeline.
    pub(super) const fn timeline(&self) -> Timeline {
        self.goal.unit.timeline
    }

    /// Whether the server has more than what comes next.
    pub(super) fn is_catching_up(&self) -> bool {
        self.check.is_some() || self.is_whole()
    }

    /// Whether the server has all of the current segment.
    fn is_whole(&self) -> bool {
        self.server_end >= self.number.end(self.goal.cluster.segment_size)
    }

    /// For how long a piece has been on its way, if one is.
    pub(super) fn waits_for(&self) -> Option<Duration> {
        (self.pieces_in_flight > 0).then(|| self.left_at.elapsed())
    }

    /// Whether requests to the store are on their way.
    pub(super) fn is_busy(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// The server has WAL up to here.
    pub(super) fn server_has(&mut self, end: Lsn) {
        self.server_end = self.server_end.max(end);
    }

    /// Takes the next bytes, and sends off what should leave. Never waits.
    ///
    /// # Errors
    /// They are not this cluster's WAL, or not what the repository has of that place.
    pub(super) fn take(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let left = self.number.end(self.goal.cluster.segment_size).since(self.received);
            let part = bytes.split_to(usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len())));
            self.take_part(part)?;
        }
        self.cut(Instant::now());
        Ok(())
    }

    /// Takes bytes that lie in the current segment.
    fn take_part(&mut self, part: Bytes) -> Result<(), Failure> {
        self.received = self.received.plus(part.len() as u64);
        if self.begun {
            self.accept(part)?;
        } else {
            self.head.extend_from_slice(&part);
            if self.head.len() >= LongHeader::BYTES {
                let head = self.head.split().freeze();
                self.begin(&head)?;
                self.accept(head)?;
            }
        }
        if self.received == self.number.end(self.goal.cluster.segment_size) {
            self.end_segment();
        }
        Ok(())
    }

    /// The segment's first page must be what its place demands (rule 4).
    fn begin(&mut self, head: &[u8]) -> Result<(), Failure> {
        let size = self.goal.cluster.segment_size;
        let file = WalFileName::Segment(self.number.name(self.goal.unit.timeline, size));
        let not_wal = |why: String| ReceiveError::NotWal {
            server: self.goal.server.clone(),
            why,
        };
        let first = check_first_page(file, head, size.bytes())
            .map_err(|error| not_wal(format!("{file}: {}", crate::error::on_one_line(&error))))?;
        if first.header.system != self.goal.cluster.system {
            let (found, expected) = (first.header.system, self.goal.cluster.system);
            return Err(not_wal(format!("{file} is of cluster {found}, not {expected}")).into());
        }
        let (magic, now) = (first.header.page.magic, self.goal.repository.store().env().now());
        let head = WalHead::of_segment(&self.goal.cluster, file, magic, size.bytes(), now);
        self.packer.begin(head);
        self.begun = true;
        Ok(())
    }

    /// Hands bytes on that end at `received`.
    fn accept(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let whole = self.is_whole();
        self.packer.bytes(self.received, bytes.clone());
        let Some(check) = &mut self.check else {
            self.cutter.take(bytes, Instant::now(), whole);
            return Ok(());
        };
        let beyond = self.received.bytes().saturating_sub(check.tail.end.bytes()) as usize;
        let known = bytes.len() - beyond.min(bytes.len());
        check.hasher.update(&bytes[..known]);
        if self.received < check.tail.end {
            return Ok(());
        }
        if check.hasher.digest() != check.tail.digest {
            return Err(ReceiveError::Diverged {
                server: self.goal.server.clone(),
                timeline: self.goal.unit.timeline,
                from: self.number.start(self.goal.cluster.segment_size),
                to: check.tail.end,
            }
            .into());
        }
        self.check = None;
        self.cutter.take(bytes.slice(known..), Instant::now(), whole);
        Ok(())
    }

    fn end_segment(&mut self) {
        self.packer.finish();
        let next = Cutter::new(self.goal.pace, self.received);
        let full = std::mem::replace(&mut self.cutter, next);
        self.unstored.push_back((self.number, full));
        self.number = self.number.next();
        self.begun = false;
    }

    /// Everything that was received leaves now, whatever the pace.
    pub(super) fn cut_all(&mut self) {
        let cuts: Vec<Cut> = self.cutters().filter_map(|cutter| cutter.rest()).collect();
        cuts.into_iter().for_each(|cut| self.send(cut));
    }

    /// Sends off the pieces that should leave.
    fn cut(&mut self, now: Instant) {
        let whole = self.is_whole();
        loop {
            let in_flight = self.pieces_in_flight;
            let full = self
                .unstored
                .iter_mut()
                .find_map(|(_, cutter)| cutter.next(now, in_flight, true));
            let Some(cut) = full.or_else(|| self.cutter.next(now, in_flight, whole)) else {
                break;
            };
            self.send(cut);
        }
        if !self.merging
            && let Some(cut) = self.cutter.merge()
        {
            self.merging = true;
            self.store_piece(cut, true);
        }
    }

    fn cutters(&mut self) -> impl Iterator<Item = &mut Cutter> {
        self.unstored
            .iter_mut()
            .map(|(_, cutter)| cutter)
            .chain(std::iter::once(&mut self.cutter))
    }

    fn send(&mut self, cut: Cut) {
        self.pieces_in_flight += 1;
        self.left_at = Instant::now();
        self.store_piece(cut, false);
    }

    /// Waits until something is done, or a piece should leave. Cancel-safe.
    ///
    /// # Errors
    /// What can't be stored however often it is tried.
    pub(super) async fn progress(&mut self) -> Result<(), Failure> {
        let full = self.unstored.iter().filter_map(|(_, cutter)| cutter.deadline());
        let deadline = full.chain(self.cutter.deadline()).min();
        // While a piece is on its way, the next one's time does not matter.
        let deadline = deadline.filter(|_| self.pieces_in_flight == 0);
        let later = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reply = self.packer.reply() => self.packed(reply)?,
            Some(done) = self.jobs.join_next() => self.done(done)?,
            () = later => {}
        }
        self.cut(Instant::now());
        Ok(())
    }

    fn packed(&mut self, reply: Option<Reply>) -> Result<(), Failure> {
        match reply {
            Some(Reply::Took(took)) => self.took.push(took),
            Some(Reply::Packed(packed)) => self.store_segment(packed),
            Some(Reply::Failed(error)) => return Err(error.into()),
            None => return Err(ReceiveError::PackerGone.into()),
        }
        Ok(())
    }
}
