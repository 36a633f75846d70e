//! Sets of transaction ids.

use super::super::xid::Xid;

/// Transaction ids, as runs of consecutive numbers: a segment's are nearly consecutive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XidSet {
    /// First and last of each run, in order, with gaps between them.
    runs: Vec<(u32, u32)>,
}

impl XidSet {
    /// Of these ids, in any order.
    pub fn of(mut xids: Vec<u32>) -> Self {
        xids.sort_unstable();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for xid in xids {
            match runs.last_mut() {
                Some((_, last)) if xid <= last.saturating_add(1) => *last = xid.max(*last),
                _ => runs.push((xid, xid)),
            }
        }
        Self { runs }
    }

    /// Of these runs; `None` unless they are in order and apart.
    pub fn of_runs(runs: Vec<(u32, u32)>) -> Option<Self> {
        let apart = runs
            .windows(2)
            .all(|pair| pair[0].1 < pair[1].0 && pair[1].0 - pair[0].1 > 1);
        let forward = runs.iter().all(|(first, last)| first <= last);
        (apart && forward).then_some(Self { runs })
    }

    /// Its runs, first and last, in order.
    pub fn runs(&self) -> &[(u32, u32)] {
        &self.runs
    }

    /// Whether it holds this one.
    pub fn contains(&self, xid: Xid) -> bool {
        let number = xid.number();
        let after = self.runs.partition_point(|(first, _)| *first <= number);
        after > 0 && number <= self.runs[after - 1].1
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The lowest and the highest number in it. Numbers wrap around, so that the lowest need not be the oldest.
    pub fn range(&self) -> Option<(Xid, Xid)> {
        let (first, last) = (self.runs.first()?, self.runs.last()?);
        Some((Xid::new(first.0), Xid::new(last.1)))
    }
}
