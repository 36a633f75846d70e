//! Which transaction a number of 64 bits means: the upper half counts how often the ids went round. Pure.

use crate::wal::{Checkpoint, Xid};

/// How often the ids had gone round when a transaction began that is seen near this checkpoint. A server never has
/// transactions that are further apart than half of all ids.
pub(super) fn near(xid: Xid, checkpoint: &Checkpoint) -> u32 {
    let next = u64::from(checkpoint.next_xid_epoch) << 32 | u64::from(checkpoint.next_xid.number());
    let ahead = xid.number().wrapping_sub(checkpoint.next_xid.number()).cast_signed();
    (next.saturating_add_signed(ahead.into()) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::pg::{Lsn, Timeline};

    fn at(next_xid_epoch: u32, next_xid: u32, xid: u32) -> u32 {
        let checkpoint = Checkpoint {
            redo: Lsn::ZERO,
            timeline: Timeline::FIRST,
            previous_timeline: Timeline::FIRST,
            next_xid_epoch,
            next_xid: Xid::new(next_xid),
            at: DateTime::UNIX_EPOCH,
            shutdown: false,
        };
        near(Xid::new(xid), &checkpoint)
    }

    #[test]
    fn an_id_is_of_the_epoch_in_which_it_is_nearest_to_the_next_one() {
        assert_eq!([at(0, 800, 700), at(0, 800, 900), at(5, 800, 700)], [0, 0, 5]);
        // Just before and just after they went round.
        assert_eq!(
            [at(1, 10, u32::MAX), at(0, u32::MAX, 10), at(1, 10, 2_000_000_000)],
            [0, 1, 1]
        );
        assert_eq!(at(0, 10, u32::MAX), 0);
    }
}
