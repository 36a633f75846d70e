//! The frame in front of a piece: which stretch of whose WAL it is.

use chrono::{DateTime, Utc};

use crate::codec::{Digest, SealedFrame};
use crate::pg::{Lsn, SystemId, Timeline};

/// Length of the whole frame at the front of each piece.
pub const PIECE_FRAME: usize = FRAME.bytes();

const FRAME: SealedFrame = SealedFrame {
    kind: 2,
    magic: *b"PGPTAIL\x01",
    payload: 144,
    name: "first frame",
};

/// What the frame tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PieceFrame {
    /// The cluster.
    pub(super) system: SystemId,
    /// The cluster's WAL segment size in bytes.
    pub(super) segment_size: u32,
    /// The page magic of the cluster's major; 0 where that is newer than the known ones.
    pub(super) page_magic: u16,
    /// The timeline.
    pub(super) timeline: Timeline,
    /// Where the piece begins.
    pub(super) from: Lsn,
    /// Where it ends.
    pub(super) to: Lsn,
    /// Digest of its bytes.
    pub(super) content: Digest,
    /// Length of all that follows this frame in the object.
    pub(super) stored_len: u64,
    /// Digest of all that follows this frame in the object.
    pub(super) stored: Digest,
    /// When it was made.
    pub(super) written_at: DateTime<Utc>,
}

impl PieceFrame {
    /// The frame that tells it.
    pub(super) fn frame(&self) -> Vec<u8> {
        FRAME.write(|fields| {
            fields.put(8, &self.system.value().to_le_bytes());
            fields.put(16, &self.segment_size.to_le_bytes());
            fields.put(20, &self.page_magic.to_le_bytes());
            fields.put(24, &self.timeline.number().to_le_bytes());
            fields.put(32, &self.from.bytes().to_le_bytes());
            fields.put(40, &self.to.bytes().to_le_bytes());
            fields.put(48, self.content.as_bytes());
            fields.put(80, &self.stored_len.to_le_bytes());
            fields.put(88, self.stored.as_bytes());
            fields.put(120, &self.written_at.timestamp_micros().to_le_bytes());
        })
    }

    /// Reads the frame from an object's first bytes; the reason where it can't be.
    ///
    /// # Errors
    /// Too few bytes, another frame, or a frame that fails its own digest.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let fields = FRAME.read(bytes)?;
        Ok(Self {
            system: SystemId::new(u64::from_le_bytes(fields.array(8))),
            segment_size: u32::from_le_bytes(fields.array(16)),
            page_magic: u16::from_le_bytes(fields.array(20)),
            timeline: Timeline::new(u32::from_le_bytes(fields.array(24))).ok_or("its first frame tells no timeline")?,
            from: Lsn::new(u64::from_le_bytes(fields.array(32))),
            to: Lsn::new(u64::from_le_bytes(fields.array(40))),
            content: Digest::from_bytes(fields.array(48)),
            stored_len: u64::from_le_bytes(fields.array(80)),
            stored: Digest::from_bytes(fields.array(88)),
            written_at: DateTime::from_timestamp_micros(i64::from_le_bytes(fields.array(120)))
                .ok_or("its first frame tells an impossible time")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told() -> PieceFrame {
        PieceFrame {
            system: SystemId::new(7_489_000_000_000_000_001),
            segment_size: 16 << 20,
            page_magic: 0xD110,
            timeline: Timeline::FIRST,
            from: Lsn::new(0x16_B374_D848),
            to: Lsn::new(0x16_B374_E000),
            content: Digest::of(b"content"),
            stored_len: 12345,
            stored: Digest::of(b"stored"),
            written_at: DateTime::from_timestamp_micros(1_763_720_000_123_456).unwrap(),
        }
    }

    #[test]
    fn what_a_piece_tells_survives_its_frame() {
        assert_eq!(told().frame().len(), PIECE_FRAME);
        assert_eq!(PieceFrame::read(&told().frame()), Ok(told()));
    }

    proptest! {
        #[test]
        fn a_changed_frame_is_refused(at in 0..PIECE_FRAME, bit in 0..8u8) {
            let mut frame = told().frame();
            frame[at] ^= 1 << bit;
            prop_assert!(PieceFrame::read(&frame).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = PieceFrame::read(&bytes);
        }
    }
}
