//! A stretch of WAL as it stands in a file of the spool: a header of 36 bytes, then the WAL itself. Pure.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 | `PGW1` |
//! | 4 | 4 | timeline |
//! | 8 | 8 | position in the WAL of the first byte |
//! | 16 | 4 | how many bytes of WAL follow the header |
//! | 20 | 16 | first half of the BLAKE3 digest of the system identifier, the fields before, and the WAL |
//!
//! Numbers are little-endian. The system identifier in the digest keeps a file from being read as another cluster's.

use bytes::Bytes;

use crate::codec::Hasher;
use crate::pg::{Lsn, SystemId, Timeline};

/// How many bytes stand before the WAL.
pub(super) const HEADER: usize = 36;

const MAGIC: [u8; 4] = *b"PGW1";
const FIELDS: usize = 20;

/// What the header says of the bytes behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub timeline: Timeline,
    pub from: Lsn,
    pub len: usize,
}

impl Frame {
    /// Where the WAL behind it ends.
    pub fn to(&self) -> Lsn {
        self.from.plus(self.len as u64)
    }

    /// Header and WAL.
    pub fn size(&self) -> usize {
        HEADER + self.len
    }

    /// Puts header and WAL at the end of `into`.
    pub fn write(&self, system: SystemId, content: &[Bytes], into: &mut Vec<u8>) {
        let begin = into.len();
        into.extend_from_slice(&MAGIC);
        into.extend_from_slice(&self.timeline.number().to_le_bytes());
        into.extend_from_slice(&self.from.bytes().to_le_bytes());
        into.extend_from_slice(&(self.len as u32).to_le_bytes());
        let mut digest = begun(system, &into[begin..]);
        content.iter().for_each(|part| digest.update(part));
        into.extend_from_slice(&digest.digest().short());
        content.iter().for_each(|part| into.extend_from_slice(part));
    }

    /// The frame that `bytes` begin with, and its WAL. `None` where none begins, where it does not end within
    /// `bytes`, is longer than `most`, or fails its digest.
    pub fn read(system: SystemId, most: usize, bytes: &[u8]) -> Option<(Self, &[u8])> {
        let header = bytes.get(..HEADER)?;
        let word = |at: usize| header[at..at + 4].try_into().ok().map(u32::from_le_bytes);
        let from = header[8..16].try_into().ok().map(u64::from_le_bytes)?;
        let frame = Self {
            timeline: Timeline::new(word(4)?)?,
            from: Lsn::new(from),
            len: word(16)? as usize,
        };
        if header[..4] != MAGIC || frame.len > most || from.checked_add(frame.len as u64).is_none() {
            return None;
        }
        let content = bytes.get(HEADER..frame.size())?;
        let mut digest = begun(system, &header[..FIELDS]);
        digest.update(content);
        (digest.digest().short() == header[FIELDS..]).then_some((frame, content))
    }
}

fn begun(system: SystemId, fields: &[u8]) -> Hasher {
    let mut digest = Hasher::default();
    digest.update(&system.value().to_le_bytes());
    digest.update(fields);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SYSTEM: SystemId = SystemId::new(7);

    fn written(content: &[u8]) -> (Frame, Vec<u8>) {
        let frame = Frame {
            timeline: Timeline::FIRST,
            from: Lsn::new(0x100_0028),
            len: content.len(),
        };
        let mut bytes = Vec::new();
        let (head, tail) = content.split_at(content.len() / 2);
        let parts = [head, tail].map(Bytes::copy_from_slice);
        frame.write(SYSTEM, &parts, &mut bytes);
        (frame, bytes)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(content: Vec<u8>, more: Vec<u8>) {
            let (frame, mut bytes) = written(&content);
            bytes.extend(&more);
            prop_assert_eq!(Frame::read(SYSTEM, content.len(), &bytes), Some((frame, &content[..])));
            prop_assert_eq!(Frame::read(SystemId::new(8), content.len(), &bytes), None, "another cluster's");
        }

        #[test]
        fn a_frame_that_is_cut_or_changed_is_none(content: Vec<u8>, at: prop::sample::Index, bit in 0..8) {
            let (frame, mut bytes) = written(&content);
            let at = at.index(bytes.len());
            prop_assert_eq!(Frame::read(SYSTEM, frame.len, &bytes[..at]), None);
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(Frame::read(SYSTEM, usize::MAX, &bytes), None);
        }
    }
}
