//! Reading a segment's tail: pieces put together, every byte checked.

use std::io::Write;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use super::choose::Chooser;
use super::frame::PIECE_FRAME;
use super::put::check;
use super::{LARGEST_PIECE, Piece, pieces_of};
use crate::codec::{CompressError, Decompressor, Digest, Hasher};
use crate::error::{Class, Explain};
use crate::pg::{Lsn, SegmentNumber, SystemId, Timeline};
use crate::repo::{ClusterInfo, RepoError, Repository, names};

/// So many pieces are fetched at a time …
const READS_AT_ONCE: usize = 16;
/// … unless one of them is larger than this, or they are together.
const BYTES_AT_ONCE: u64 = 8 << 20;
/// zstd makes what it can't compress longer by less than this.
const GROWN: u64 = 1 << 20;

/// A segment's longest stretch without a gap, from its first byte on, that sound pieces give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Where it ends; the segment's start where there is none.
    pub end: Lsn,
    /// How far pieces go that lie behind it, or should follow on it and are damaged: what is between is lost, unless
    /// something else brings it. `None` where nothing is known of more.
    pub beyond: Option<Lsn>,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Pieces that were met and are damaged, in words. Where others cover them nothing is lost; the tail may end before
    /// the last of them.
    pub damaged: Vec<String>,
}

/// Writes a segment's tail to `sink`, in order, and answers where it ends. A piece is held in memory until every byte of
/// it is checked; of pieces that overlap, the furthest-reaching sound one is taken at each step.
///
/// The segment may become whole meanwhile, and its pieces go: whoever needs the end of the WAL looks for the whole one
/// *after* this (see [`super`]).
///
/// # Errors
/// The store, or what `sink` answers. Part of the tail may have been written then.
pub async fn tail(
    repository: &Repository,
    cluster: &ClusterInfo,
    timeline: Timeline,
    number: SegmentNumber,
    sink: &mut (impl Write + ?Sized),
) -> Result<Tail, RepoError> {
    let size = cluster.segment_size;
    let end = number.end(size);
    let mut reading = Reading {
        repository,
        system: cluster.system,
        segment: number.name(timeline, size).to_string(),
        at: number.start(size),
        hasher: Hasher::default(),
        damaged: Vec::new(),
        unusable: Vec::new(),
        sink,
    };
    let furthest = loop {
        let mut listed = pieces_of(repository, cluster, timeline, number).await?;
        let furthest = listed.iter().map(|piece| piece.to).max();
        listed.retain(|piece| !reading.unusable.contains(piece));
        let known = (reading.at, reading.unusable.len());
        reading.follow(Chooser::new(listed), end).await?;
        // Pieces may be merged while they are listed and read. A listing that led no further has the last word.
        if reading.at == end || known == (reading.at, reading.unusable.len()) {
            break furthest;
        }
    };
    Ok(Tail {
        end: reading.at,
        beyond: furthest.filter(|furthest| *furthest > reading.at),
        digest: reading.hasher.digest(),
        damaged: reading.damaged,
    })
}

struct Reading<'a, S: ?Sized> {
    repository: &'a Repository,
    system: SystemId,
    segment: String,
    at: Lsn,
    hasher: Hasher,
    damaged: Vec<String>,
    /// Pieces that are damaged or gone.
    unusable: Vec<Piece>,
    sink: &'a mut S,
}

impl<S: Write + ?Sized> Reading<'_, S> {
    /// Reads on from piece to piece, up to the end, a gap, or a piece that is of no use: what was chosen after that one
    /// need not be the best any more.
    async fn follow(&mut self, mut chooser: Chooser, end: Lsn) -> Result<(), RepoError> {
        while self.at < end {
            let batch = self.batch(&mut chooser);
            if batch.is_empty() {
                return Ok(());
            }
            let objects: Vec<_> = stream::iter(batch)
                .map(async |piece| (piece, self.get(&piece).await))
                .buffered(READS_AT_ONCE)
                .collect()
                .await;
            for (piece, object) in objects {
                if !self.take(&piece, object?)? {
                    self.unusable.push(piece);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The pieces that come next, if all are sound.
    fn batch(&self, chooser: &mut Chooser) -> Vec<Piece> {
        let (mut batch, mut bytes, mut at) = (Vec::new(), 0, self.at);
        while batch.len() < READS_AT_ONCE && bytes < BYTES_AT_ONCE {
            let Some(piece) = chooser.next(at) else { break };
            if !batch.is_empty() && bytes + piece.stored_bytes > BYTES_AT_ONCE {
                chooser.give_back(piece);
                break;
            }
            (bytes, at) = (bytes + piece.stored_bytes, piece.to);
            batch.push(piece);
        }
        batch
    }

    async fn get(&self, piece: &Piece) -> Result<Option<Bytes>, RepoError> {
        let name = names::piece(self.system, piece.timeline, piece.from, piece.to);
        let limit = PIECE_FRAME as u64 + LARGEST_PIECE + GROWN;
        match self.repository.store().get(&name, limit).await {
            // What is larger than any piece is none: checking it says that.
            Err(crate::store::StoreError::TooLarge { .. }) => Ok(Some(Bytes::new())),
            answer => Ok(answer?),
        }
    }

    /// Writes what a piece adds; `false` where it is gone or damaged.
    fn take(&mut self, piece: &Piece, object: Option<Bytes>) -> Result<bool, RepoError> {
        let Some(object) = object else { return Ok(false) };
        let content = match self.unpack(piece, &object) {
            Ok(content) => content,
            Err(error) if error.class() == Class::Damaged => {
                self.damaged.push(error.to_string());
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let new = &content[self.at.since(piece.from) as usize..];
        self.sink.write_all(new).map_err(|source| RepoError::File {
            doing: "write",
            file: self.segment.clone(),
            source,
        })?;
        self.hasher.update(new);
        self.at = piece.to;
        Ok(true)
    }

    fn unpack(&self, piece: &Piece, object: &[u8]) -> Result<Vec<u8>, RepoError> {
        let store = self.repository.store();
        let name = names::piece(self.system, piece.timeline, piece.from, piece.to);
        let damaged = |why: &str| RepoError::Damaged {
            object: store.full(&name),
            why: why.to_owned(),
        };
        let frame = check(store, &name, self.system, piece, object)?;
        let body = &object[PIECE_FRAME..];
        if body.len() as u64 != frame.stored_len || Digest::of(body) != frame.stored {
            return Err(damaged("it fails its checksum"));
        }
        let len = piece.to.since(piece.from);
        if len > LARGEST_PIECE {
            return Err(damaged("no piece is as large"));
        }
        let content = decompress(body, len).map_err(|error| damaged(&error.to_string()))?;
        match Digest::of(&content) == frame.content {
            true => Ok(content),
            false => Err(damaged("its content fails its checksum")),
        }
    }
}

fn decompress(body: &[u8], len: u64) -> Result<Vec<u8>, CompressError> {
    let mut content = Vec::with_capacity(len as usize);
    let mut decompressor = Decompressor::new(len)?;
    decompressor.push(body, |bytes| {
        content.extend_from_slice(bytes);
        Ok::<(), CompressError>(())
    })?;
    decompressor.finish()?;
    Ok(content)
}
