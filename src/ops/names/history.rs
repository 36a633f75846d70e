//! What is known of something at one moment of the WAL or another.

use crate::pg::Lsn;

/// Knowledge in the order of the WAL. What was learned more than once of the same is kept as its first and last place:
/// other knowledge that comes to lie between the two holds up to the last.
#[derive(Debug, Clone)]
pub(super) struct History<T>(Vec<Held<T>>);

/// What is known to hold at two places, and is taken to hold between them.
#[derive(Debug, Clone)]
pub(super) struct Held<T> {
    pub(super) from: Lsn,
    last: Lsn,
    pub(super) known: T,
}

impl<T> Held<T> {
    const fn at(place: Lsn, known: T) -> Self {
        Self {
            from: place,
            last: place,
            known,
        }
    }
}

impl<T: PartialEq + Clone> History<T> {
    pub(super) fn new(at: Lsn, known: T) -> Self {
        // Nearly all have one item for good: room for no other.
        Self(vec![Held::at(at, known)])
    }

    /// Adds what is known to hold at some place. Answers how many more items that takes.
    pub(super) fn learn(&mut self, at: Lsn, known: T) -> usize {
        let after = self.0.partition_point(|held| held.from <= at);
        let (before, behind) = self.0.split_at_mut(after);
        if let Some(held) = before.last_mut() {
            if held.known == known {
                held.last = held.last.max(at);
                return 0;
            }
            if held.last > at {
                let again = Held::at(held.last, held.known.clone());
                held.last = held.from;
                self.0.splice(after..after, [Held::at(at, known), again]);
                return 2;
            }
        }
        if let Some(next) = behind.first_mut().filter(|next| next.known == known) {
            next.from = at;
            return 0;
        }
        self.0.insert(after, Held::at(at, known));
        1
    }

    /// The newest that is not after `at`; where there is none, the oldest after it.
    pub(super) fn at(&self, at: Lsn) -> Option<&T> {
        self.at_where(at, |_| true)
    }

    /// As [`Self::at`], of what fulfils a condition.
    pub(super) fn at_where(&self, at: Lsn, fits: impl Fn(&T) -> bool) -> Option<&T> {
        let (before, after) = self.0.split_at(self.0.partition_point(|held| held.from <= at));
        let newest = before.iter().rev().find(|held| fits(&held.known));
        let found = newest.or_else(|| after.iter().find(|held| fits(&held.known)));
        found.map(|held| &held.known)
    }

    /// The newest of all.
    pub(super) fn newest(&self) -> Option<&T> {
        self.0.last().map(|held| &held.known)
    }

    /// All that was ever known, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Held<T>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn learned(facts: impl IntoIterator<Item = (u64, u8)>) -> History<u8> {
        let mut facts = facts.into_iter();
        let (at, first) = facts.next().unwrap();
        let mut history = History::new(Lsn::new(at), first);
        let items = 1 + facts
            .map(|(at, known)| history.learn(Lsn::new(at), known))
            .sum::<usize>();
        assert_eq!(history.0.len(), items);
        history
    }

    #[test]
    fn what_was_known_before_and_after_something_else_is_not_forgotten() {
        let history = learned([(10, b'b'), (2, b'b'), (5, b'a')]);
        for (at, known) in [(1, b'b'), (4, b'b'), (5, b'a'), (9, b'a'), (10, b'b'), (11, b'b')] {
            assert_eq!(history.at(Lsn::new(at)), Some(&known), "{at}");
        }
        assert_eq!(history.at_where(Lsn::new(1), |known| *known == b'a'), Some(&b'a'));
        assert_eq!(history.at_where(Lsn::new(20), |known| *known == b'c'), None);
    }

    proptest! {
        #[test]
        fn the_newest_knowledge_not_after_a_place_holds_there(
            facts in prop::collection::btree_map(0_u64..50, 0_u8..3, 1..10), at in 0_u64..60,
        ) {
            let history = learned(facts.clone());
            let expected = facts.range(..=at).next_back().or_else(|| facts.range(at..).next());
            prop_assert_eq!(history.at(Lsn::new(at)), expected.map(|(_, known)| known));
            prop_assert_eq!(history.newest(), facts.values().next_back());
        }

        #[test]
        fn in_whatever_order_it_is_learned_knowledge_holds_where_all_agree_and_at_both_ends(
            facts in prop::collection::btree_map(0_u64..50, 0_u8..3, 1..10)
                .prop_flat_map(|facts| (Just(facts.clone()), Just(Vec::from_iter(facts)).prop_shuffle())),
        ) {
            let (facts, order): (BTreeMap<u64, u8>, Vec<(u64, u8)>) = facts;
            let history = learned(order);
            let all: Vec<_> = facts.iter().map(|(at, known)| (Lsn::new(*at), *known)).collect();
            prop_assert_eq!(history.at(all[0].0), Some(&all[0].1));
            prop_assert_eq!(history.newest(), all.last().map(|(_, known)| known));
            prop_assert!(history.0.windows(2).all(|pair| pair[0].last < pair[1].from));
            for held in history.iter() {
                prop_assert!(facts.values().any(|known| *known == held.known));
            }
        }
    }
}
