//! The spool on a thread of its own, because it waits for the disk.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use super::super::spool::{Chunk, Spool, SpoolError};
use crate::env::Env;
use crate::error::{Explain, on_one_line};
use crate::pg::{Lsn, Timeline};

/// What the thread is asked for. Its queue has no bound of its own: who appends looks at [`Kept::synced`].
enum Ask {
    Put(Put),
    /// Try again what found no room.
    Retry,
    Read(oneshot::Sender<Result<Option<Chunk>, SpoolError>>),
    Release(Timeline, Lsn),
    Histories(oneshot::Sender<Result<Vec<(Timeline, Bytes)>, SpoolError>>),
    ReleaseHistory(Timeline),
}

/// What goes into the spool, in this order.
enum Put {
    Wal(Timeline, Lsn, Bytes),
    Gap,
    History(Timeline, Bytes),
}

/// What the spool holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::ops::receive) struct Kept {
    /// Up to where it is durable.
    pub(in crate::ops::receive) synced: Option<(Timeline, Lsn)>,
    /// What it takes on the disk.
    pub(in crate::ops::receive) bytes: u64,
    /// Whether something waits for room, below the limit or on the disk.
    pub(in crate::ops::receive) full: bool,
    /// Why it can't go on.
    pub(in crate::ops::receive) failed: Option<String>,
}

/// The thread, as seen from the others. It ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Keeper {
    asks: UnboundedSender<Ask>,
    pub(super) kept: watch::Receiver<Kept>,
}

impl Keeper {
    pub(super) fn start(spool: Spool, env: Arc<Env>) -> Self {
        let (asks, inbox) = unbounded_channel();
        let (tell, kept) = watch::channel(state(&spool));
        tokio::task::spawn_blocking(move || {
            let mut work = Work {
                spool,
                env,
                tell,
                waiting: VecDeque::new(),
            };
            if let Err(error) = work.run(inbox) {
                work.tell.send_modify(|kept| {
                    let hint = error.hint().map_or(String::new(), |hint| format!(" ({hint})"));
                    kept.failed = Some(format!("{}{hint}", on_one_line(&error)));
                });
            }
        });
        Self { asks, kept }
    }

    pub(super) fn append(&self, timeline: Timeline, from: Lsn, content: Bytes) {
        self.ask(Ask::Put(Put::Wal(timeline, from, content)));
    }

    pub(super) fn gap(&self) {
        self.ask(Ask::Put(Put::Gap));
    }

    pub(super) fn put_history(&self, timeline: Timeline, text: Bytes) {
        self.ask(Ask::Put(Put::History(timeline, text)));
    }

    pub(super) fn retry(&self) {
        self.ask(Ask::Retry);
    }

    pub(super) fn release(&self, timeline: Timeline, up_to: Lsn) {
        self.ask(Ask::Release(timeline, up_to));
    }

    pub(super) fn release_history(&self, timeline: Timeline) {
        self.ask(Ask::ReleaseHistory(timeline));
    }

    /// The next chunk; `None` where there is none, or where the thread has ended (see [`Kept::failed`]).
    pub(super) async fn read(&self) -> Result<Option<Chunk>, SpoolError> {
        let (answer, question) = oneshot::channel();
        self.ask(Ask::Read(answer));
        question.await.unwrap_or(Ok(None))
    }

    pub(super) async fn histories(&self) -> Result<Vec<(Timeline, Bytes)>, SpoolError> {
        let (answer, question) = oneshot::channel();
        self.ask(Ask::Histories(answer));
        question.await.unwrap_or_else(|_| Ok(Vec::new()))
    }

    fn ask(&self, ask: Ask) {
        // A thread that has ended said why before.
        let _ = self.asks.send(ask);
    }
}

fn state(spool: &Spool) -> Kept {
    Kept {
        synced: spool.end(),
        bytes: spool.len_bytes(),
        full: false,
        failed: None,
    }
}

struct Work {
    spool: Spool,
    env: Arc<Env>,
    tell: watch::Sender<Kept>,
    /// What is not durable yet; bounded by who puts.
    waiting: VecDeque<Put>,
}

impl Work {
    /// Takes what has come together, then makes it durable in one go. A disk without room, like a spool at its limit, is
    /// one to wait for: what is delivered makes room.
    fn run(&mut self, mut inbox: UnboundedReceiver<Ask>) -> Result<(), SpoolError> {
        while let Some(ask) = inbox.blocking_recv() {
            let mut next = Some(ask);
            while let Some(ask) = next {
                self.follow(ask)?;
                next = inbox.try_recv().ok();
            }
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), SpoolError> {
        let put = self.put_all();
        let done = match self.spool.sync() {
            Ok(_) => put,
            // It has taken back what it could not make durable, and that is put again.
            Err(error) => Err(error),
        };
        let mut now = state(&self.spool);
        match done {
            Ok(()) => self.waiting.clear(),
            Err(error) if is_full(&error) => {
                now.full = true;
                if !self.tell.borrow().full {
                    tracing::warn!(error = %on_one_line(&error), "the spool has no room; nothing more is read until it has");
                }
            }
            Err(error) => return Err(error),
        }
        self.tell.send_if_modified(|kept| {
            let changed = *kept != now;
            *kept = now;
            changed
        });
        Ok(())
    }

    /// Puts what waits; of what was put before and not taken back, nothing again.
    fn put_all(&mut self) -> Result<(), SpoolError> {
        for put in &self.waiting {
            match put {
                Put::Wal(timeline, from, content) => {
                    let end = self.spool.end().filter(|(known, _)| known == timeline);
                    let known = end.map_or(0, |(_, end)| end.bytes().saturating_sub(from.bytes()));
                    let known = usize::try_from(known).map_or(content.len(), |known| known.min(content.len()));
                    let rest = content.slice(known..);
                    self.spool.append(*timeline, from.plus(known as u64), &[rest])?;
                }
                Put::Gap => self.spool.gap(),
                Put::History(timeline, text) => self.spool.put_history(*timeline, text, &self.env)?,
            }
        }
        Ok(())
    }

    fn follow(&mut self, ask: Ask) -> Result<(), SpoolError> {
        match ask {
            Ask::Put(put) => self.waiting.push_back(put),
            Ask::Retry => {}
            Ask::Read(answer) => drop(answer.send(self.read())),
            Ask::Release(timeline, up_to) => self.spool.release(timeline, up_to)?,
            Ask::Histories(answer) => drop(answer.send(self.spool.histories())),
            Ask::ReleaseHistory(timeline) => self.spool.release_history(timeline)?,
        }
        Ok(())
    }

    /// The next chunk. Damage is told once and passed over: what lies behind it may be the only copy.
    fn read(&mut self) -> Result<Option<Chunk>, SpoolError> {
        loop {
            match self.spool.read() {
                Err(error @ SpoolError::Damaged { .. }) => {
                    tracing::error!(error = %on_one_line(&error), "WAL in the spool is lost");
                    self.spool.pass_over_damage();
                }
                read => return read,
            }
        }
    }
}

/// Whether there is no room, in the spool or on its disk.
fn is_full(error: &SpoolError) -> bool {
    match error {
        SpoolError::Full { .. } => true,
        SpoolError::Io { source, .. } | SpoolError::Sync { source, .. } => {
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        }
        _ => false,
    }
}
