//! The writer's requests to the store, each a task of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::Instant;

use super::Writer;
use crate::error::{Explain, Failure, on_one_line};
use crate::ops::receive::cutter::Cut;
use crate::pg::{Lsn, SegmentNumber, Timeline};
use crate::repo::tail::{self, PackedPiece, Piece, PieceSource, pack_piece};
use crate::repo::{ClusterInfo, PackedWal, RepoError, Repository, Stored};

/// Between two tries, growing from the first to the longest. Each try has its own patience besides.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Compressing so much at once would hold up the connection.
const COMPRESSED_HERE: u64 = 128 << 10;

/// What became of a request.
pub(super) enum Done {
    Piece {
        piece: Piece,
        merged: bool,
    },
    Segment {
        number: SegmentNumber,
        bytes: u64,
        stored: Stored,
    },
    Discarded {
        refused: Option<String>,
    },
}

/// How often a bucket is asked whether it is still the repository.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What stands between us and the store, if something does, and when it was last seen to be the right one. Shared by
/// all requests.
#[derive(Debug, Clone, Default)]
pub(in crate::ops::receive) struct Trouble(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    trouble: Option<String>,
    looked_at: Option<Instant>,
}

impl Trouble {
    /// What it is, in words.
    pub(in crate::ops::receive) fn now(&self) -> Option<String> {
        self.known().trouble.clone()
    }

    /// Whether it is time to look whether the store is the right one; always after trouble.
    fn look_now(&self) -> bool {
        let mut known = self.known();
        let due = known.trouble.is_some() || known.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if due {
            known.looked_at = Some(Instant::now());
        }
        due
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice of it, or that it is over.
    pub(in crate::ops::receive) fn set(&self, what: Option<String>) {
        let now = &mut self.known().trouble;
        match (&now, &what) {
            (None, Some(what)) => tracing::warn!(error = %what, "the repository can't be written to; trying again"),
            (Some(_), None) => tracing::info!("the repository can be written to again"),
            _ => {}
        }
        *now = what;
    }
}

impl Writer {
    /// Stores a piece, or a merge of pieces.
    pub(super) fn store_piece(&mut self, cut: Cut, merged: bool) {
        let mut job = Job::of(self);
        let (cluster, timeline, level) = (self.goal.cluster.clone(), self.goal.unit.timeline, self.goal.level);
        self.jobs.spawn(async move {
            let packed = job.pack(cluster, timeline, level, cut).await?;
            let piece = *packed.piece();
            loop {
                let tried = job.put_piece(&packed).await;
                if job.tried(tried).await?.is_some() {
                    return Ok(Done::Piece { piece, merged });
                }
            }
        });
    }

    /// Stores a segment.
    pub(super) fn store_segment(&mut self, mut packed: Box<PackedWal>) {
        let mut job = Job::of(self);
        let bytes = packed.stored_bytes();
        let size = self.goal.cluster.segment_size;
        let number = packed.file().segment().and_then(|name| name.number(size));
        let number = number.unwrap_or(self.number);
        self.jobs.spawn(async move {
            loop {
                let tried = job.store(&mut packed).await;
                if !packed.is_in_memory() {
                    // It can't be tried again: everything begins anew where it failed.
                    let stored = tried?;
                    return Ok(Done::Segment { number, bytes, stored });
                }
                if let Some(stored) = job.tried(tried).await? {
                    return Ok(Done::Segment { number, bytes, stored });
                }
            }
        });
    }

    /// Takes notice of what is done.
    pub(super) fn done(&mut self, done: Result<Result<Done, Failure>, JoinError>) -> Result<(), Failure> {
        let done = match done {
            Ok(done) => done?,
            Err(_) => return Err(super::ReceiveError::PackerGone.into()),
        };
        match done {
            Done::Piece { piece, merged } => self.piece_stored(piece, merged),
            Done::Segment { number, bytes, stored } => {
                if let Some(doubt) = stored.doubt {
                    tracing::warn!(%doubt, "WAL that can't be read was stored as it is");
                }
                self.segment_stored(number, bytes);
            }
            Done::Discarded { refused: None } => {}
            Done::Discarded { refused: Some(why) } => {
                tracing::debug!(error = %why, "the store keeps pieces that are not needed any more");
            }
        }
        Ok(())
    }

    fn piece_stored(&mut self, piece: Piece, merged: bool) {
        self.written.pieces += 1;
        self.written.stored_bytes += piece.stored_bytes;
        if merged {
            self.merging = false;
            let covered = |made: &Piece| piece.from <= made.from && made.to <= piece.to;
            let gone = self.made.extract_if(.., |made| covered(made)).collect();
            self.discard(gone);
        } else {
            self.pieces_in_flight -= 1;
            self.durable.add(piece.from, piece.to);
            // A merge may have overtaken it.
            let covers = |made: &Piece| made.from <= piece.from && piece.to <= made.to;
            if self.made.iter().any(covers) {
                self.discard(vec![piece]);
                return;
            }
        }
        self.made.push(piece);
    }

    fn segment_stored(&mut self, number: SegmentNumber, bytes: u64) {
        let size = self.goal.cluster.segment_size;
        let (start, end) = (number.start(size), number.end(size));
        self.durable.add(start, end);
        self.written.segments += 1;
        self.written.stored_bytes += bytes;
        self.unstored.retain(|(unstored, _)| *unstored != number);
        self.made.retain(|piece| piece.to > end);
        tracing::debug!(from = %start, to = %end, timeline = %self.goal.unit.timeline, "stored a segment");
        // Also those of an earlier run, and of another receiver.
        let (repository, system, timeline) = (
            self.goal.repository.clone(),
            self.goal.cluster.system,
            self.goal.unit.timeline,
        );
        self.jobs.spawn(async move {
            let found = tail::pieces(&repository, system, timeline).await;
            let refused = match found {
                Ok(mut pieces) => {
                    pieces.retain(|piece| start <= piece.from && piece.to <= end);
                    tail::discard(&repository, system, &pieces).await.refused
                }
                Err(RepoError::Store(error)) => Some(error),
                Err(_) => None,
            };
            Ok(Done::Discarded {
                refused: refused.map(|error| on_one_line(&error)),
            })
        });
    }

    fn discard(&mut self, pieces: Vec<Piece>) {
        let (repository, system) = (self.goal.repository.clone(), self.goal.cluster.system);
        self.jobs.spawn(async move {
            let refused = tail::discard(&repository, system, &pieces).await.refused;
            Ok(Done::Discarded {
                refused: refused.map(|error| on_one_line(&error)),
            })
        });
    }
}

/// What each request needs.
struct Job {
    repository: Repository,
    trouble: Trouble,
    pause: Duration,
}

impl Job {
    fn of(writer: &Writer) -> Self {
        Self {
            repository: writer.goal.repository.clone(),
            trouble: writer.goal.trouble.clone(),
            pause: FIRST_PAUSE,
        }
    }

    async fn pack(
        &self,
        cluster: ClusterInfo,
        timeline: Timeline,
        level: i32,
        cut: Cut,
    ) -> Result<PackedPiece, Failure> {
        let now = self.repository.store().env().now();
        let len = Lsn::since(cut.to, cut.from);
        let pack = move || {
            let source = PieceSource {
                cluster: &cluster,
                timeline,
                from: cut.from,
                content: &cut.content,
            };
            pack_piece(&source, level, now)
        };
        if len <= COMPRESSED_HERE {
            return Ok(pack()?);
        }
        match tokio::task::spawn_blocking(pack).await {
            Ok(packed) => Ok(packed?),
            Err(_) => Err(super::ReceiveError::PackerGone.into()),
        }
    }

    /// After a try: `Some` where it is done, and after a pause `None` where it should be tried again. What no later try
    /// can mend is an error.
    async fn tried<T>(&mut self, tried: Result<T, RepoError>) -> Result<Option<T>, Failure> {
        let error = match tried {
            Ok(done) => {
                self.trouble.set(None);
                return Ok(Some(done));
            }
            Err(error) => error,
        };
        match error {
            RepoError::Store(_) | RepoError::Taken { .. } | RepoError::NoRepository { .. } => {}
            error => return Err(error.into()),
        }
        self.trouble.set(Some(said(&error)));
        tokio::time::sleep(self.repository.store().env().jittered(self.pause)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(None)
    }

    /// A folder that was unmounted must not quietly become a new repository, and what was written as it went is
    /// in another place than it will be looked for: so it is asked before, and again before anything is acknowledged.
    async fn put_piece(&self, packed: &PackedPiece) -> Result<(), RepoError> {
        self.repository.is_mounted().await?;
        // Beside each other: a commit waits for one round trip, and not for two.
        let put = tail::put_piece(&self.repository, packed.clone());
        let (put, same) = tokio::join!(put, self.is_same());
        same?;
        put?;
        self.repository.still_holds(&packed.name()).await
    }

    /// A bucket's name may lead to another store since: looked at once a second, and after each trouble.
    async fn is_same(&self) -> Result<(), RepoError> {
        match self.repository.store().folder() {
            None if self.trouble.look_now() => self.repository.is_same().await,
            _ => Ok(()),
        }
    }

    async fn store(&self, packed: &mut PackedWal) -> Result<Stored, RepoError> {
        self.repository.is_mounted().await?;
        self.is_same().await?;
        let stored = packed.store(&self.repository).await?;
        self.repository.still_holds(&packed.name()).await?;
        Ok(stored)
    }
}

fn said(error: &RepoError) -> String {
    match error.hint() {
        Some(hint) => format!("{} ({hint})", on_one_line(error)),
        None => on_one_line(error),
    }
}
