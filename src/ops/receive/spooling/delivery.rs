//! From the spool into the repository, beside whatever connection there is.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::super::begin::Unit;
use super::super::compare::what_is_stored;
use super::super::packer::Took;
use super::super::spool::Chunk;
use super::super::writer::{Goal, Writer, Written};
use super::keeper::Keeper;
use crate::error::{Failure, on_one_line};
use crate::pg::{Lsn, SegmentNumber, Timeline, WalFileName};
use crate::repo::tail::{Tail, tail};
use crate::repo::{self, RepoError, WalSource};

/// Between two tries to read the repository.
const PAUSE: Duration = Duration::from_secs(2);

/// How far it has come.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::ops::receive) struct Delivered {
    /// Up to where WAL is durable in the repository.
    pub(in crate::ops::receive) durable: Option<(Timeline, Lsn)>,
    /// What was written in all.
    pub(in crate::ops::receive) written: Written,
    /// Whether it has ended, which only an error makes it do.
    pub(in crate::ops::receive) ended: bool,
}

/// Delivers what the spool holds.
pub(super) struct Delivery {
    /// What is written; its timeline and segment follow the spool.
    pub(super) goal: Goal,
    pub(super) keeper: Keeper,
    pub(super) tell: watch::Sender<Delivered>,
    pub(super) took: mpsc::UnboundedSender<(Timeline, Took)>,
}

impl Delivery {
    /// Until an error that no later try can mend.
    pub(super) async fn run(mut self) -> Failure {
        let mut writer = None;
        let failure = loop {
            if let Err(failure) = self.step(&mut writer).await {
                break failure;
            }
        };
        self.tell.send_modify(|told| told.ended = true);
        failure
    }

    async fn step(&mut self, writer: &mut Option<Writer>) -> Result<(), Failure> {
        let room = writer.as_ref().is_none_or(Writer::has_room);
        // Everything appended up to now will be seen as no change; what comes later wakes us.
        self.keeper.kept.mark_unchanged();
        if room && let Some(chunk) = self.keeper.read().await? {
            return self.deliver(writer, chunk).await;
        }
        match writer {
            Some(writer) => {
                tokio::select! {
                    progress = writer.progress() => progress?,
                    changed = self.keeper.kept.changed(), if room => gone(changed)?,
                }
                self.publish(writer);
            }
            None => gone(self.keeper.kept.changed().await)?,
        }
        Ok(())
    }

    async fn deliver(&mut self, writer: &mut Option<Writer>, mut chunk: Chunk) -> Result<(), Failure> {
        let follows = |writer: &Writer| writer.timeline() == chunk.timeline && chunk.from <= writer.received();
        if !writer.as_ref().is_some_and(follows) {
            if let Some(mut old) = writer.take() {
                old.cut_all();
                while !old.is_drained() && old.durable().is_some() {
                    old.progress().await?;
                    self.publish(&mut old);
                }
            }
            *writer = self.begin(&mut chunk).await?;
        }
        if let Some(writer) = writer {
            let known = writer.received().bytes().saturating_sub(chunk.from.bytes()) as usize;
            if known < chunk.content.len() {
                // What the spool holds of a segment to its end leaves as a whole, not in pieces first.
                let kept = self.keeper.kept.borrow().synced;
                let end = kept.filter(|(timeline, _)| *timeline == chunk.timeline);
                writer.server_has(end.map_or(chunk.to(), |(_, end)| end.max(chunk.to())));
                writer.take(chunk.content.slice(known..))?;
            }
            self.publish(writer);
        }
        Ok(())
    }

    /// Begins to write where a chunk begins. What is of a segment that the repository has already, or of which the
    /// beginning is lost, is cut off the chunk; `None` where nothing else is in it. The next segment begins within
    /// the same chunk, and the spool may be the only place that has it.
    async fn begin(&mut self, chunk: &mut Chunk) -> Result<Option<Writer>, Failure> {
        self.store_histories().await?;
        let size = self.goal.cluster.segment_size;
        loop {
            let unit = Unit {
                timeline: chunk.timeline,
                number: SegmentNumber::holding(chunk.from, size),
            };
            self.goal.unit = unit;
            if let Some(writer) = self.begin_segment(unit, chunk).await? {
                return Ok(Some(writer));
            }
            let next = unit.number.end(size);
            if chunk.to() <= next {
                return Ok(None);
            }
            chunk.content = chunk.content.slice(next.since(chunk.from) as usize..);
            chunk.from = next;
        }
    }

    /// Begins to write a segment; `None` where the repository has it, or where what comes before the chunk is lost.
    async fn begin_segment(&mut self, unit: Unit, chunk: &Chunk) -> Result<Option<Writer>, Failure> {
        let size = self.goal.cluster.segment_size;
        let start = unit.number.start(size);
        if chunk.from == start {
            loop {
                let stored = what_is_stored(&self.goal.repository, &self.goal.cluster, unit).await;
                if let Some(tail) = self.tried(stored).await? {
                    return Ok(Some(Writer::new(self.goal.clone(), tail)));
                }
            }
        }
        // The spool lets go of whole files, which end where they end: what comes first may be stored already.
        let file = WalFileName::Segment(unit.number.name(unit.timeline, size));
        if self.is_stored(file).await? {
            return Ok(None);
        }
        let (tail, bytes) = self.tail(unit).await?;
        if tail.end < chunk.from {
            tracing::error!(from = %tail.end, to = %chunk.from, timeline = %unit.timeline, "gap: WAL before the spool's is lost");
            return Ok(None);
        }
        let mut writer = Writer::new(self.goal.clone(), tail);
        writer.take(bytes.slice(..chunk.from.since(start) as usize))?;
        Ok(Some(writer))
    }

    /// The histories that were put into the spool belong into the repository before the WAL.
    async fn store_histories(&self) -> Result<(), Failure> {
        for (timeline, text) in self.keeper.histories().await? {
            let (repository, file) = (&self.goal.repository, WalFileName::History(timeline));
            let source = WalSource::of_text(&self.goal.cluster, file, text, repository.store().env().now());
            loop {
                let pushed = repo::push(repository, &source, self.goal.level, None).await;
                if self.tried(pushed).await?.is_some() {
                    break;
                }
            }
            self.keeper.release_history(timeline);
        }
        Ok(())
    }

    async fn is_stored(&self, file: WalFileName) -> Result<bool, Failure> {
        loop {
            let found = repo::identity(self.goal.repository.store(), self.goal.cluster.system, file).await;
            if let Some(found) = self.tried(found).await? {
                return Ok(found.is_some());
            }
        }
    }

    async fn tail(&self, unit: Unit) -> Result<(Tail, Bytes), Failure> {
        let (repository, cluster) = (&self.goal.repository, &self.goal.cluster);
        loop {
            let mut bytes = Vec::new();
            let read = tail(repository, cluster, unit.timeline, unit.number, &mut bytes).await;
            if let Some(tail) = self.tried(read).await? {
                return Ok((tail, bytes.into()));
            }
        }
    }

    /// What a try gave; after a pause `None` where the store did not answer.
    async fn tried<T>(&self, tried: Result<T, RepoError>) -> Result<Option<T>, Failure> {
        match tried {
            Ok(done) => Ok(Some(done)),
            Err(error @ (RepoError::Store(_) | RepoError::NoRepository { .. })) => {
                self.goal.trouble.set(Some(on_one_line(&error)));
                tokio::time::sleep(PAUSE).await;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn publish(&self, writer: &mut Writer) {
        let timeline = writer.timeline();
        for took in writer.took.drain(..) {
            let _ = self.took.send((timeline, took));
        }
        let written = std::mem::take(&mut writer.written);
        let durable = writer.durable().map(|durable| (timeline, durable));
        if let Some((_, durable)) = durable.filter(|_| self.tell.borrow().durable != durable) {
            // Also what is there in pieces: a restart puts the segment's beginning together from them.
            self.keeper.release(timeline, durable);
        }
        self.tell.send_if_modified(|told| {
            let news = durable.is_some() && told.durable != durable || written != Written::default();
            told.durable = durable.or(told.durable);
            told.written.add(written);
            news
        });
    }
}

/// The spool's thread has ended.
fn gone(changed: Result<(), watch::error::RecvError>) -> Result<(), Failure> {
    changed.map_err(|_| super::super::ReceiveError::PackerGone.into())
}
