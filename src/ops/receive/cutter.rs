//! When a piece of the segment that is not full yet leaves for the repository, and what it holds. Pure.
//!
//! A piece leaves as soon as bytes are there (synchronous), or when its first byte has waited for the interval or a
//! mebibyte has come together. What was cut is kept for a while, so that many small pieces can be put together to one
//! (a merge) without reading them back: a recovery, a listing and the bill of a store want few.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::pg::Lsn;

/// From so many bytes on a piece leaves without waiting for the interval.
const ENOUGH: u64 = 1 << 20;
/// A block, the longest stretch that is kept to be merged, is closed by the piece that reaches this length.
const BLOCK: u64 = 1 << 20;
/// So many pieces are merged into one before their block is full.
const MOST_PIECES: u32 = 256;
/// So many bytes may wait for pieces in flight, then no more should come. Where the server has the whole segment
/// already, what comes beyond leaves with the whole: a store that is so much slower gains nothing by getting everything
/// twice.
const MOST_UNCUT: u64 = 4 << 20;
/// Pieces on their way at a time where commits wait for them: the second one takes the commits that came while the first
/// was on its way, and need not wait for it.
const AT_ONCE: usize = 2;

/// When pieces leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As soon as bytes are there: commits wait for them.
    Synchronous,
    /// After so long.
    Interval(Duration),
}

/// Bytes to be stored as one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    /// Where they begin.
    pub(super) from: Lsn,
    /// Where they end.
    pub(super) to: Lsn,
    /// They.
    pub(super) content: Vec<Bytes>,
}

/// Cuts one segment into pieces.
#[derive(Debug)]
pub(super) struct Cutter {
    pace: Pace,
    /// The bytes that are still needed, in a row up to `received`.
    held: VecDeque<Bytes>,
    /// Where they begin.
    held_from: Lsn,
    received: Lsn,
    /// Up to here pieces were cut.
    cut: Lsn,
    /// When the first byte after `cut` came.
    since: Option<Instant>,
    /// Where the current block begins.
    block: Lsn,
    /// Pieces of the block that were cut since, in its merged part and behind it.
    merged: (Lsn, u32),
    pieces: u32,
    /// Too much waited: the rest of the segment leaves with the whole.
    gave_up: bool,
}

impl Cutter {
    /// For a segment of which everything before `at` is durable or cut already.
    pub(super) fn new(pace: Pace, at: Lsn) -> Self {
        Self {
            pace,
            held: VecDeque::new(),
            held_from: at,
            received: at,
            cut: at,
            since: None,
            block: at,
            merged: (at, 0),
            pieces: 0,
            gave_up: false,
        }
    }

    /// Whether more bytes may come.
    pub(super) fn has_room(&self) -> bool {
        self.gave_up || self.received.since(self.cut) < MOST_UNCUT
    }

    /// Takes the segment's next bytes. `whole` is whether the server has all of the segment.
    pub(super) fn take(&mut self, bytes: Bytes, now: Instant, whole: bool) {
        self.received = self.received.plus(bytes.len() as u64);
        if self.gave_up || bytes.is_empty() {
            return;
        }
        self.since.get_or_insert(now);
        self.held.push_back(bytes);
        if whole && self.received.since(self.cut) > MOST_UNCUT {
            self.gave_up = true;
            self.held.clear();
            self.since = None;
        }
    }

    /// The next piece, if one should leave now. `in_flight` is how many are on their way, `whole` whether the server has
    /// all of the segment: then its rest comes at once.
    pub(super) fn next(&mut self, now: Instant, in_flight: usize, whole: bool) -> Option<Cut> {
        let since = self.since?;
        let enough = self.received.since(self.cut) >= ENOUGH && !whole;
        let leaves = match self.pace {
            Pace::Synchronous if !whole => in_flight < AT_ONCE,
            Pace::Synchronous => in_flight == 0 && now >= since + Duration::from_secs(1),
            Pace::Interval(interval) => in_flight == 0 && (enough || now >= since + interval),
        };
        if leaves { self.rest() } else { None }
    }

    /// When [`Self::next`] has something to say again, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let wait = match self.pace {
            Pace::Synchronous => Duration::from_secs(1),
            Pace::Interval(interval) => interval,
        };
        self.since.map(|since| since + wait)
    }

    /// Everything that was not cut yet, as one piece.
    pub(super) fn rest(&mut self) -> Option<Cut> {
        if self.cut >= self.received || self.gave_up {
            return None;
        }
        let piece = self.content(self.cut);
        self.cut = self.received;
        self.since = None;
        self.pieces += 1;
        Some(piece)
    }

    /// A merge that is due: the stretch whose pieces become one. To be asked after each piece that was cut.
    pub(super) fn merge(&mut self) -> Option<Cut> {
        if self.gave_up || self.cut < self.received {
            return None;
        }
        let (from, merged) = self.merged;
        if self.cut.since(self.block) >= BLOCK {
            let several = self.pieces + merged > 1;
            let merge = several.then(|| self.content(self.block));
            self.block = self.cut;
            self.merged = (self.cut, 0);
            self.pieces = 0;
            self.forget();
            return merge;
        }
        if self.pieces < MOST_PIECES {
            return None;
        }
        let merge = self.content(from);
        self.merged = (self.cut, merged + 1);
        self.pieces = 0;
        Some(merge)
    }

    /// The bytes from `from` to the last one received.
    fn content(&self, from: Lsn) -> Cut {
        let mut skip = from.since(self.held_from) as usize;
        let mut content = Vec::with_capacity(self.held.len());
        for bytes in &self.held {
            if skip < bytes.len() {
                content.push(bytes.slice(skip..));
            }
            skip = skip.saturating_sub(bytes.len());
        }
        Cut {
            from,
            to: self.received,
            content,
        }
    }

    /// Lets go of what lies before the block.
    fn forget(&mut self) {
        while let Some(first) = self.held.front()
            && self.held_from.plus(first.len() as u64) <= self.block
        {
            self.held_from = self.held_from.plus(first.len() as u64);
            self.held.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    fn cutter(pace: Pace) -> Cutter {
        Cutter::new(pace, Lsn::new(1000))
    }

    fn bytes(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    #[tokio::test]
    async fn a_piece_waits_for_the_interval_or_for_a_mebibyte() {
        let begun = Instant::now();
        let mut cutter = cutter(Pace::Interval(INTERVAL));
        assert_eq!(cutter.deadline(), None);
        cutter.take(bytes(10), begun, false);
        assert_eq!(cutter.next(begun, 0, false), None);
        assert_eq!(cutter.deadline(), Some(begun + INTERVAL));
        let piece = cutter.next(begun + INTERVAL, 0, false).unwrap();
        assert_eq!((piece.from, piece.to), (Lsn::new(1000), Lsn::new(1010)));
        assert_eq!(cutter.next(begun + INTERVAL, 0, false), None);
        cutter.take(bytes(ENOUGH as usize), begun, false);
        assert_eq!(
            cutter.next(begun, 0, true),
            None,
            "the server sends the whole segment at once"
        );
        assert_eq!(cutter.next(begun, 1, false), None, "one is on its way");
        assert!(cutter.next(begun, 0, false).is_some());
    }

    #[tokio::test]
    async fn where_commits_wait_a_piece_leaves_at_once_and_another_whole_it() {
        let now = Instant::now();
        let mut cutter = cutter(Pace::Synchronous);
        cutter.take(bytes(10), now, false);
        assert!(cutter.next(now, 0, false).is_some());
        cutter.take(bytes(10), now, false);
        assert!(cutter.next(now, 1, false).is_some());
        cutter.take(bytes(10), now, false);
        assert_eq!(cutter.next(now, AT_ONCE, false), None);
    }

    #[tokio::test]
    async fn many_small_pieces_become_few() {
        let now = Instant::now();
        let mut cutter = cutter(Pace::Synchronous);
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for _ in 0..100_000 {
            cutter.take(bytes(160), now, false);
            let piece = cutter.next(now, 0, false).unwrap();
            pieces.push((piece.from.bytes(), piece.to.bytes()));
            if let Some(merge) = cutter.merge() {
                let (from, to) = (merge.from.bytes(), merge.to.bytes());
                assert_eq!(merge.content.iter().map(Bytes::len).sum::<usize>() as u64, to - from);
                pieces.retain(|piece| piece.0 < from || piece.1 > to);
                pieces.push((from, to));
            }
            assert!(pieces.len() < 350, "{}", pieces.len());
        }
    }

    proptest! {
        #[test]
        fn pieces_follow_each_other_and_hold_the_bytes_that_came(
            steps in prop::collection::vec((1..200_000_usize, 0..3_u64, 0..3_usize, any::<bool>()), 1..200),
            synchronous: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _within = runtime.enter();
            let mut now = Instant::now();
            let mut cutter = cutter(if synchronous { Pace::Synchronous } else { Pace::Interval(INTERVAL) });
            let mut sent = Vec::new();
            let mut cut = 0;
            for (number, (len, wait, in_flight, whole)) in steps.into_iter().enumerate() {
                let bytes = vec![number as u8; len];
                sent.extend_from_slice(&bytes);
                cutter.take(bytes.into(), now, whole);
                now += Duration::from_millis(wait * 400);
                for (cut_now, merge) in [(cutter.next(now, in_flight, whole), false), (cutter.merge(), true)] {
                    let Some(piece) = cut_now else { continue };
                    let from = piece.from.since(Lsn::new(1000)) as usize;
                    let to = piece.to.since(Lsn::new(1000)) as usize;
                    prop_assert_eq!(piece.content.concat(), &sent[from..to]);
                    let follows = if merge { from <= cut && to == cut } else { from == cut };
                    prop_assert!(follows);
                    cut = to;
                }
            }
        }
    }
}
