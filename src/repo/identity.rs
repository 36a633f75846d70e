//! The identity frame: who a stored WAL file is, readable without reading the file.

use chrono::{DateTime, Utc};

use crate::codec::{Digest, SealedFrame};
use crate::pg::{SystemId, WalFileName};

/// Length of the whole frame at the front of each WAL object.
pub const IDENTITY_FRAME: usize = FRAME.bytes();

const FRAME: SealedFrame = SealedFrame {
    kind: 0,
    magic: *b"PGPWAL\0\x01",
    payload: 176,
    name: "identity frame",
};
const NAME: std::ops::Range<usize> = 112..160;

/// What the frame tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The file's name: an object that was renamed is found out.
    pub file: WalFileName,
    /// The cluster.
    pub system: SystemId,
    /// The cluster's WAL segment size in bytes.
    pub segment_size: u32,
    /// The page magic of the file's first page, which tells the major version; 0 for texts.
    pub page_magic: u16,
    /// Length of the file itself.
    pub content_len: u64,
    /// Digest of the file itself.
    pub content: Digest,
    /// Length of all that follows this frame in the object.
    pub stored_len: u64,
    /// Digest of all that follows this frame in the object.
    pub stored: Digest,
    /// When the server last wrote the file.
    pub modified_at: DateTime<Utc>,
}

impl Identity {
    /// The frame that tells it.
    pub fn frame(&self) -> Vec<u8> {
        FRAME.write(|fields| {
            fields.put(8, &self.system.value().to_le_bytes());
            fields.put(16, &self.segment_size.to_le_bytes());
            fields.put(20, &self.page_magic.to_le_bytes());
            fields.put(24, &self.content_len.to_le_bytes());
            fields.put(32, self.content.as_bytes());
            fields.put(64, &self.stored_len.to_le_bytes());
            fields.put(72, self.stored.as_bytes());
            fields.put(104, &self.modified_at.timestamp_micros().to_le_bytes());
            fields.put(NAME.start, self.file.to_string().as_bytes());
        })
    }

    /// Reads the frame from an object's first bytes; the reason where it can't be.
    ///
    /// # Errors
    /// Too few bytes, another frame, or a frame that fails its own digest.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let fields = FRAME.read(bytes)?;
        let name: Vec<u8> = fields
            .range(NAME)
            .iter()
            .copied()
            .take_while(|byte| *byte != 0)
            .collect();
        let name = String::from_utf8_lossy(&name);
        let micros = i64::from_le_bytes(fields.array(104));
        Ok(Self {
            file: name.parse().map_err(|error| format!("its identity frame: {error}"))?,
            system: SystemId::new(u64::from_le_bytes(fields.array(8))),
            segment_size: u32::from_le_bytes(fields.array(16)),
            page_magic: u16::from_le_bytes(fields.array(20)),
            content_len: u64::from_le_bytes(fields.array(24)),
            content: Digest::from_bytes(fields.array(32)),
            stored_len: u64::from_le_bytes(fields.array(64)),
            stored: Digest::from_bytes(fields.array(72)),
            modified_at: DateTime::from_timestamp_micros(micros)
                .ok_or("its identity frame tells an impossible time")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity {
            file: "000000010000000000000002.00000028.backup".parse().unwrap(),
            system: SystemId::new(7_489_000_000_000_000_001),
            segment_size: 16 << 20,
            page_magic: 0xD110,
            content_len: 16 << 20,
            content: Digest::of(b"content"),
            stored_len: 12345,
            stored: Digest::of(b"stored"),
            modified_at: DateTime::from_timestamp_micros(1_763_720_000_123_456).unwrap(),
        }
    }

    #[test]
    fn an_identity_survives_its_frame() {
        assert_eq!(identity().frame().len(), IDENTITY_FRAME);
        assert_eq!(Identity::read(&identity().frame()), Ok(identity()));
    }

    proptest! {
        #[test]
        fn a_changed_frame_is_refused(at in 0..IDENTITY_FRAME, bit in 0..8u8) {
            let mut frame = identity().frame();
            frame[at] ^= 1 << bit;
            prop_assert!(Identity::read(&frame).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Identity::read(&bytes);
        }
    }
}
