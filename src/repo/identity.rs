//! The identity frame: who a stored WAL file is, readable without reading the file.

use chrono::{DateTime, Utc};

use crate::codec::{Digest, SKIPPABLE_HEADER, skippable, skippable_payload_len};
use crate::pg::{SystemId, WalFileName};

/// Length of the whole frame at the front of each WAL object.
pub const IDENTITY_FRAME: usize = SKIPPABLE_HEADER + PAYLOAD;

/// Which of the sixteen kinds of skippable frames it is.
const KIND: u8 = 0;
/// Marks the payload, with the layout's version in the last byte.
const MAGIC: [u8; 8] = *b"PGPWAL\0\x01";
const PAYLOAD: usize = 176;
const NAME: std::ops::Range<usize> = 112..160;
/// Everything before is covered by the frame's own digest, of which the first half is kept here.
const SEAL: std::ops::Range<usize> = 160..176;

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
        let mut payload = [0; PAYLOAD];
        let mut put = |at: usize, bytes: &[u8]| payload[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &self.system.value().to_le_bytes());
        put(16, &self.segment_size.to_le_bytes());
        put(20, &self.page_magic.to_le_bytes());
        put(24, &self.content_len.to_le_bytes());
        put(32, self.content.as_bytes());
        put(64, &self.stored_len.to_le_bytes());
        put(72, self.stored.as_bytes());
        put(104, &self.modified_at.timestamp_micros().to_le_bytes());
        put(NAME.start, self.file.to_string().as_bytes());
        let seal = Digest::of(&payload[..SEAL.start]).short();
        payload[SEAL].copy_from_slice(&seal);
        skippable(KIND, &payload)
    }

    /// Reads the frame from an object's first bytes; the reason where it can't be.
    ///
    /// # Errors
    /// Too few bytes, another frame, or a frame that fails its own digest.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let payload = match skippable_payload_len(KIND, bytes) {
            Ok(PAYLOAD) => bytes
                .get(SKIPPABLE_HEADER..IDENTITY_FRAME)
                .ok_or("ends within its identity frame")?,
            Ok(len) => return Err(format!("its identity frame has {len} bytes, not {PAYLOAD}")),
            Err(error) => return Err(error.to_string()),
        };
        if payload[..MAGIC.len()] != MAGIC {
            return Err("its identity frame is of a kind this version does not know".to_owned());
        }
        if payload[SEAL] != Digest::of(&payload[..SEAL.start]).short() {
            return Err("its identity frame fails its checksum".to_owned());
        }
        let name: Vec<u8> = payload[NAME].iter().copied().take_while(|byte| *byte != 0).collect();
        let name = String::from_utf8_lossy(&name);
        let micros = i64::from_le_bytes(array(payload, 104));
        Ok(Self {
            file: name.parse().map_err(|error| format!("its identity frame: {error}"))?,
            system: SystemId::new(u64::from_le_bytes(array(payload, 8))),
            segment_size: u32::from_le_bytes(array(payload, 16)),
            page_magic: u16::from_le_bytes(array(payload, 20)),
            content_len: u64::from_le_bytes(array(payload, 24)),
            content: Digest::from_bytes(array(payload, 32)),
            stored_len: u64::from_le_bytes(array(payload, 64)),
            stored: Digest::from_bytes(array(payload, 72)),
            modified_at: DateTime::from_timestamp_micros(micros)
                .ok_or("its identity frame tells an impossible time")?,
        })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
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
