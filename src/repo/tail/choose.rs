//! Which piece comes next. Pure.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Piece;
use crate::pg::Lsn;

/// Chooses from pieces the one that reaches furthest from some place on, each at most once.
///
/// Pieces that begin at or before the place lie in a heap, by where they end; the others wait. So each piece is looked at
/// a few times, however many there are.
#[derive(Debug, Default)]
pub(super) struct Chooser {
    /// Those that begin later, the earliest last.
    waiting: Vec<Piece>,
    begun: BinaryHeap<Reach>,
}

/// Of pieces that end at the same place the shortest comes first: there is less of it to read.
type Reach = (Lsn, Lsn, Reverse<u64>, Piece);

fn reach(piece: Piece) -> Reach {
    (piece.to, piece.from, Reverse(piece.stored_bytes), piece)
}

impl Chooser {
    pub(super) fn new(mut pieces: Vec<Piece>) -> Self {
        pieces.sort_unstable_by_key(|piece| Reverse(piece.from));
        Self {
            waiting: pieces,
            begun: BinaryHeap::new(),
        }
    }

    /// Takes the piece with the byte at `at` that reaches furthest. `at` never goes back.
    pub(super) fn next(&mut self, at: Lsn) -> Option<Piece> {
        while let Some(piece) = self.waiting.pop_if(|piece| piece.from <= at) {
            self.begun.push(reach(piece));
        }
        let (to, ..) = self.begun.peek()?;
        if *to <= at {
            return None;
        }
        self.begun.pop().map(|(.., piece)| piece)
    }

    /// Takes back the piece that was taken last.
    pub(super) fn give_back(&mut self, piece: Piece) {
        self.begun.push(reach(piece));
    }
}
