//! Up to where everything is durable, when what follows may become durable out of order. Pure.

use crate::pg::Lsn;

/// How many stretches ahead of a hole are remembered: there are as many as requests at a time, and some more where a
/// store is slow with one of them.
const AHEAD: usize = 64;

/// The end of what is durable without a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Durable {
    at: Lsn,
    ahead: Vec<(Lsn, Lsn)>,
}

impl Durable {
    /// Everything up to `at` is.
    pub(super) const fn up_to(at: Lsn) -> Self {
        Self { at, ahead: Vec::new() }
    }

    /// The end.
    pub(super) const fn at(&self) -> Lsn {
        self.at
    }

    /// The stretch from `from` to `to` is durable now, too.
    pub(super) fn add(&mut self, from: Lsn, to: Lsn) {
        if from > self.at {
            // Behind one slow request hundreds of others may follow each other.
            let before = |(begin, end): &&mut (Lsn, Lsn)| *begin <= from && from <= *end;
            // To forget one is safe: what covers it later, the segment at the latest, counts as well.
            if let Some((_, end)) = self.ahead.iter_mut().find(before) {
                *end = to.max(*end);
            } else if self.ahead.len() < AHEAD {
                self.ahead.push((from, to));
            }
            return;
        }
        self.at = self.at.max(to);
        let reached = self.at;
        if let Some(next) = self.ahead.iter().position(|(from, _)| *from <= reached) {
            let (from, to) = self.ahead.swap_remove(next);
            self.add(from, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_slow_request_makes_nothing_forgotten() {
        let mut durable = Durable::up_to(Lsn::new(0));
        for at in 1..1000 {
            durable.add(Lsn::new(at), Lsn::new(at + 1));
        }
        assert_eq!(durable.at(), Lsn::new(0));
        durable.add(Lsn::new(0), Lsn::new(1));
        assert_eq!(durable.at(), Lsn::new(1000));
    }

    proptest! {
        #[test]
        fn it_ends_before_the_first_byte_that_is_not_durable(
            stretches in prop::collection::vec((0..40_u64, 0..10_u64), 0..40),
        ) {
            let mut durable = Durable::up_to(Lsn::new(3));
            let mut bytes = vec![true; 3];
            bytes.resize(60, false);
            for (from, len) in stretches {
                durable.add(Lsn::new(from), Lsn::new(from + len));
                bytes[from as usize..(from + len) as usize].fill(true);
                let hole = bytes.iter().position(|byte| !byte).unwrap();
                prop_assert_eq!(durable.at(), Lsn::new(hole as u64));
            }
        }
    }
}
