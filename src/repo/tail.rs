//! Pieces of a segment that is not full yet: what a receiver has made durable of the WAL's end.
//!
//! A piece holds a stretch of one segment's bytes, from one position up to another. Pieces may overlap, leave gaps, come
//! from two receivers, and be merged: a longer one supersedes those that it covers. So nothing is derived from how they
//! were cut. What counts is the segment's *tail*: its longest stretch without a gap, from its first byte on, that sound
//! pieces give.
//!
//! Pieces of a segment go once the whole segment is stored, and merged ones once the longer piece is: never before. So
//! a reader that finds a piece gone looks again, and finds what took its place.

mod choose;
mod discard;
mod frame;
mod list;
mod put;
mod read;
#[cfg(test)]
mod tests;

use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, Timeline};

pub use discard::{Discarded, discard};
pub use frame::PIECE_FRAME;
pub use list::{pieces, pieces_of, pieces_to_read, timelines};
pub use put::{PackedPiece, PieceSource, pack_piece, put_piece};
pub use read::{Tail, tail};

/// No piece holds more bytes of WAL: readers hold one in memory.
pub const LARGEST_PIECE: u64 = 16 << 20;

/// A piece as its name tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// Its timeline.
    pub timeline: Timeline,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends: the first byte that it does not hold.
    pub to: Lsn,
    /// Size of its object in bytes.
    pub stored_bytes: u64,
}

impl Piece {
    /// The segment that holds all of it; `None` where it lies in several, as no piece of ours does.
    pub fn segment(&self, size: SegmentSize) -> Option<SegmentNumber> {
        let number = SegmentNumber::holding(self.from, size);
        (number == SegmentNumber::ending(self.to, size)).then_some(number)
    }
}

/// A segment in pieces, as their names tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieced {
    /// The segment.
    pub name: SegmentName,
    /// Where its tail ends, if all pieces are sound.
    pub end: Lsn,
    /// Size of all its pieces' objects in bytes.
    pub stored_bytes: u64,
}

/// The segments that begin with a piece, of pieces in the order in which [`pieces_to_read`] gives them.
pub fn by_segment(pieces: &[Piece], size: SegmentSize) -> Vec<Pieced> {
    let own = |piece: &Piece| Some((*piece, piece.segment(size)?.name(piece.timeline, size)));
    let own: Vec<(Piece, SegmentName)> = pieces.iter().filter_map(own).collect();
    let segments = own.chunk_by(|(_, one), (_, other)| one == other);
    let pieced = segments.filter_map(|segment| {
        let (first, name) = segment.first()?;
        let start = name.number(size)?.start(size);
        let end = segment.iter().fold(start, |end, (piece, _)| match piece.from <= end {
            true => end.max(piece.to),
            false => end,
        });
        (first.from == start).then_some(Pieced {
            name: *name,
            end,
            stored_bytes: segment.iter().map(|(piece, _)| piece.stored_bytes).sum(),
        })
    });
    pieced.collect()
}
