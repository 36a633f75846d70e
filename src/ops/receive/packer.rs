//! Compresses and indexes the segment that is coming in, on a thread of its own: the connection never waits for it.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::pg::Lsn;
use crate::repo::{PackedWal, Packing, RepoError, WalHead};
use crate::store::Store;
use crate::wal::{Event, EventKind};

/// Segments up to this size are held in memory, compressed, until they are stored, so that a store that fails can be
/// asked again. Larger ones grow in the repository's folder, where it is one.
const IN_MEMORY: u64 = 16 << 20;

/// What the thread is told. Its queue has no bound of its own: who fills it looks at [`Packer::queued`].
enum Order {
    Begin(WalHead),
    Bytes(Lsn, Bytes),
    Finish,
}

/// What it answers.
pub(super) enum Reply {
    /// Bytes were taken.
    Took(Took),
    /// A segment is ready to be stored.
    Packed(Box<PackedWal>),
    /// It can't go on: what was begun is lost.
    Failed(RepoError),
}

/// Bytes that were taken, and what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Took {
    /// Up to where.
    pub(super) to: Lsn,
    /// How many.
    pub(super) bytes: u64,
    /// Times of the first and the last transaction that ended in them.
    pub(super) commits: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

/// The thread, as seen from the connection's.
pub(super) struct Packer {
    orders: UnboundedSender<Order>,
    replies: UnboundedReceiver<Reply>,
    queued: u64,
}

impl Packer {
    /// Starts the thread; it ends when this value is dropped.
    pub(super) fn start(store: Store, level: i32) -> Self {
        let (orders, mut inbox) = unbounded_channel();
        let (outbox, replies) = unbounded_channel();
        tokio::task::spawn_blocking(move || {
            let mut work = Work {
                store,
                level,
                packing: None,
                told: 0,
            };
            while let Some(order) = inbox.blocking_recv() {
                match work.follow(order) {
                    Ok(None) => {}
                    Ok(Some(reply)) => drop(outbox.send(reply)),
                    Err(error) => {
                        let _ = outbox.send(Reply::Failed(error));
                        return;
                    }
                }
            }
        });
        Self {
            orders,
            replies,
            queued: 0,
        }
    }

    /// Begins a segment; one that was begun before and not finished is dropped.
    pub(super) fn begin(&self, head: WalHead) {
        self.order(Order::Begin(head));
    }

    /// Hands over the segment's next bytes, which end at `to`.
    pub(super) fn bytes(&mut self, to: Lsn, bytes: Bytes) {
        self.queued += bytes.len() as u64;
        self.order(Order::Bytes(to, bytes));
    }

    /// The segment is complete.
    pub(super) fn finish(&self) {
        self.order(Order::Finish);
    }

    /// How many bytes wait for the thread.
    pub(super) const fn queued(&self) -> u64 {
        self.queued
    }

    /// The next answer; `None` when the thread has ended, which it does after a failure. Cancel-safe.
    pub(super) async fn reply(&mut self) -> Option<Reply> {
        let reply = self.replies.recv().await;
        if let Some(Reply::Took(took)) = &reply {
            self.queued -= took.bytes;
        }
        reply
    }

    fn order(&self, order: Order) {
        // A thread that has ended said why before.
        let _ = self.orders.send(order);
    }
}

/// The thread's own.
struct Work {
    store: Store,
    level: i32,
    packing: Option<Packing>,
    /// How many ends of transactions were told of.
    told: usize,
}

impl Work {
    fn follow(&mut self, order: Order) -> Result<Option<Reply>, RepoError> {
        match order {
            Order::Begin(head) => {
                self.told = 0;
                self.packing = Some(if head.len <= IN_MEMORY {
                    Packing::begin_in_memory(head, self.level)?
                } else {
                    Packing::begin(&self.store, head, self.level)?
                });
                Ok(None)
            }
            Order::Bytes(to, bytes) => {
                let mut commits = None;
                if let Some(packing) = &mut self.packing {
                    packing.push(&bytes)?;
                    let ends = packing.ends();
                    commits = span(ends.get(self.told..).unwrap_or_default());
                    self.told = ends.len();
                }
                Ok(Some(Reply::Took(Took {
                    to,
                    bytes: bytes.len() as u64,
                    commits,
                })))
            }
            Order::Finish => match self.packing.take() {
                Some(packing) => Ok(Some(Reply::Packed(Box::new(packing.finish()?)))),
                None => Ok(None),
            },
        }
    }
}

/// The times of the first and the last commit.
fn span(ends: &[Event]) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let time = |event: &Event| match event.kind {
        EventKind::Commit(end) => Some(end.at),
        _ => None,
    };
    Some((ends.iter().find_map(time)?, ends.iter().rev().find_map(time)?))
}
