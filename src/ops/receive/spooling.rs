//! Receiving through a spool: everything goes to a local disk first, and from there into the repository as fast as that
//! takes it. A store that is out for a while, or slow, is so the spool's trouble and not the server's.

mod delivery;
mod keeper;
mod seam;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::ReceiveError;
use super::packer::Took;
use super::spool::Spool;
use super::writer::{Goal, Written};
use crate::error::Failure;
use crate::pg::{Lsn, Timeline};

use delivery::{Delivered, Delivery};
use keeper::Keeper;
pub(super) use seam::Seam;

/// So many bytes may wait for the spool's thread.
const MOST_QUEUED: u64 = 2 << 20;
/// What a frame and a file's beginning may take beside the bytes.
const MARGIN: u64 = 2 << 20;

/// What the server is told to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Promise {
    /// What is in the store.
    #[default]
    Store,
    /// What is in the store or in the spool.
    Spool,
}

/// A spool in use, over all connections.
pub(super) struct Spooling {
    keeper: Keeper,
    delivered: watch::Receiver<Delivered>,
    took: mpsc::UnboundedReceiver<(Timeline, Took)>,
    delivery: Option<AbortOnDropHandle<Failure>>,
    promise: Promise,
    limit: u64,
    /// Where the server's next bytes go.
    at: Option<(Timeline, Lsn)>,
    /// Where they began to come.
    begun: Lsn,
    /// What comes before them, to be compared.
    seam: Option<Seam>,
    told: Written,
}

impl Spooling {
    /// Starts with what the spool holds.
    pub(super) fn start(spool: Spool, goal: Goal, promise: Promise) -> Self {
        let (at, limit) = (spool.end(), spool.limit().bytes());
        let keeper = Keeper::start(spool, goal.repository.store().env().clone());
        let (tell, delivered) = watch::channel(Delivered::default());
        let (send, took) = mpsc::unbounded_channel();
        let delivery = Delivery {
            goal,
            keeper: keeper.clone(),
            tell,
            took: send,
        };
        Self {
            keeper,
            delivered,
            took,
            delivery: Some(AbortOnDropHandle::new(tokio::spawn(delivery.run()))),
            promise,
            limit,
            at,
            begun: at.map_or(Lsn::ZERO, |(_, at)| at),
            seam: None,
            told: Written::default(),
        }
    }

    /// Up to where the server's WAL was received; `None` before anything was.
    pub(super) const fn at(&self) -> Option<(Timeline, Lsn)> {
        self.at
    }

    /// What comes next begins here: on a timeline that follows, or behind a gap; or before it with a seam.
    pub(super) fn begin_at(&mut self, timeline: Timeline, at: Lsn, seam: Option<Seam>) {
        if self.at.is_some_and(|(known, end)| known == timeline && end != at) {
            self.keeper.gap();
        }
        self.at = Some((timeline, at));
        self.begun = at;
        self.seam = seam;
    }

    /// Keeps a timeline's history.
    pub(super) fn put_history(&self, timeline: Timeline, text: Bytes) {
        self.keeper.put_history(timeline, text);
    }

    pub(super) fn received(&self) -> Lsn {
        self.at.map_or(Lsn::ZERO, |(_, at)| at)
    }

    pub(super) fn has_room(&self) -> bool {
        let queued = self.queued();
        !self.keeper.kept.borrow().full && queued < MOST_QUEUED && self.bytes() + queued + MARGIN < self.limit
    }

    /// Whether the spool is what stops the reading.
    pub(super) fn is_full(&self) -> bool {
        self.keeper.kept.borrow().full || self.bytes() + MARGIN + MOST_QUEUED >= self.limit
    }

    /// To be called from time to time: room that others have made on the disk is not told.
    pub(super) fn tick(&self) {
        if self.keeper.kept.borrow().full {
            self.keeper.retry();
        }
    }

    /// What the spool takes on its disk.
    pub(super) fn bytes(&self) -> u64 {
        self.keeper.kept.borrow().bytes
    }

    /// What it may take.
    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are not what the repository has of that place.
    pub(super) fn take(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        if let Some(seam) = &mut self.seam {
            if !seam.take(&mut bytes)? {
                return Ok(());
            }
            self.seam = None;
        }
        if let Some((timeline, at)) = self.at.filter(|_| !bytes.is_empty()) {
            let end = at.plus(bytes.len() as u64);
            self.keeper.append(timeline, at, bytes);
            self.at = Some((timeline, end));
        }
        Ok(())
    }

    /// Waits until something has become durable. Cancel-safe.
    ///
    /// # Errors
    /// The spool's disk failed, or what can't be stored however often it is tried.
    pub(super) async fn progress(&mut self) -> Result<(), Failure> {
        let changed = {
            tokio::select! {
                changed = self.keeper.kept.changed() => changed,
                changed = self.delivered.changed() => changed,
            }
        };
        if let Some(why) = self.keeper.kept.borrow().failed.clone() {
            return Err(ReceiveError::Spool { why }.into());
        }
        let ended = self.delivered.borrow().ended;
        if (ended || changed.is_err())
            && let Some(delivery) = self.delivery.take()
        {
            return Err(match delivery.await {
                Ok(failure) => failure,
                Err(_) => ReceiveError::PackerGone.into(),
            });
        }
        Ok(())
    }

    /// Up to where WAL is durable in the repository.
    pub(super) fn delivered(&self) -> Option<Lsn> {
        self.on_timeline(self.delivered.borrow().durable)
    }

    /// Up to where WAL is durable, as it was promised.
    pub(super) fn durable(&self) -> Option<Lsn> {
        match self.promise {
            Promise::Store => self.delivered(),
            Promise::Spool => self.synced().max(self.delivered()),
        }
    }

    /// Whether all that was received is on the spool's disk at least.
    pub(super) fn is_safe(&self) -> bool {
        self.at.is_none() || self.synced() >= Some(self.received())
    }

    /// Whether all that was received is in the repository.
    pub(super) fn is_drained(&self) -> bool {
        self.at.is_none() || self.delivered() >= Some(self.received())
    }

    /// What was packed since it was last asked, by timeline.
    pub(super) fn took(&mut self) -> Vec<(Timeline, Took)> {
        std::iter::from_fn(|| self.took.try_recv().ok()).collect()
    }

    /// What was written since it was last asked.
    pub(super) fn written(&mut self) -> Written {
        let all = self.delivered.borrow().written;
        let new = all.since(&self.told);
        self.told = all;
        new
    }

    fn synced(&self) -> Option<Lsn> {
        self.on_timeline(self.keeper.kept.borrow().synced)
    }

    /// A position, if it is of the timeline that is received.
    fn on_timeline(&self, place: Option<(Timeline, Lsn)>) -> Option<Lsn> {
        let (timeline, lsn) = place?;
        (self.at?.0 == timeline).then_some(lsn)
    }

    fn queued(&self) -> u64 {
        let synced = self.synced().unwrap_or(Lsn::ZERO).max(self.begun);
        self.received().bytes().saturating_sub(synced.bytes())
    }
}
