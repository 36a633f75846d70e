//! What an earlier run has left half done: segments that are complete, but in pieces, and pieces of segments that are
//! whole.
//!
//! The server was told of complete pieces and may have removed the segment since, so they are made whole from what
//! the repository has. Steps, and what a crash after each leaves: the whole segment is stored: its pieces, found
//! again at the next start; they go: nothing.

use std::io::{self, Write};

use crate::catalog::Coverage;
use crate::error::{Failure, on_one_line};
use crate::pg::{SegmentNumber, Timeline, WalFileName};
use crate::repo::tail::{self, Piece};
use crate::repo::{ClusterInfo, Form, Packing, Repository, WalHead};

/// Makes segments whole that are there in pieces, and lets go of pieces that nobody needs. Answers whether a segment
/// became whole.
pub(super) async fn tidy(
    repository: &Repository,
    cluster: &ClusterInfo,
    stored: &Coverage,
    level: i32,
) -> Result<bool, Failure> {
    let size = cluster.segment_size;
    let mut made = Vec::new();
    for timeline in stored.timelines() {
        let segments = stored.timeline(timeline).map_or(&[][..], |wal| wal.segments());
        for segment in segments.iter().filter(|segment| segment.form == Form::Pieces) {
            let complete = stored.segment_end(timeline, segment.number) >= segment.number.end(size);
            if complete && make_whole(repository, cluster, timeline, segment.number, level).await? {
                made.push((timeline, segment.number));
            }
        }
    }
    let is_whole = |piece: &Piece| {
        piece.segment(size).is_some_and(|number| {
            let found = stored.segment(piece.timeline, number);
            made.contains(&(piece.timeline, number)) || found.is_some_and(|found| found.form == Form::Whole)
        })
    };
    let mut pieces = Vec::new();
    for timeline in tail::timelines(repository, cluster.system).await? {
        let all = tail::pieces(repository, cluster.system, timeline).await?;
        pieces.extend(all.into_iter().filter(is_whole));
    }
    if !pieces.is_empty() {
        let discarded = tail::discard(repository, cluster.system, &pieces).await;
        if let Some(error) = discarded.refused {
            tracing::debug!(error = %on_one_line(&error), "the store keeps pieces that are not needed any more");
        }
    }
    Ok(!made.is_empty())
}

/// Stores a segment from its pieces, if they give all of it.
async fn make_whole(
    repository: &Repository,
    cluster: &ClusterInfo,
    timeline: Timeline,
    number: SegmentNumber,
    level: i32,
) -> Result<bool, Failure> {
    let size = cluster.segment_size;
    let file = WalFileName::Segment(number.name(timeline, size));
    let magic = cluster.major.page_magic().unwrap_or_default();
    let head = WalHead::of_segment(cluster, file, magic, size.bytes(), repository.store().env().now());
    let mut sink = Pack(Packing::begin(repository.store(), head, level)?);
    let tail = tail::tail(repository, cluster, timeline, number, &mut sink).await?;
    if tail.end < number.end(size) {
        return Ok(false);
    }
    sink.0.finish()?.store(repository).await?;
    tracing::info!(%timeline, segment = %number.name(timeline, size), "made a segment whole from its pieces");
    Ok(true)
}

/// Packs what is written to it.
struct Pack(Packing);

impl Write for Pack {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
