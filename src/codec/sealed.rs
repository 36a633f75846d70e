//! A sealed frame: a skippable frame of fixed length in front of an object, that tells what the object is and vouches
//! for itself.

use super::{Digest, SKIPPABLE_HEADER, skippable, skippable_payload_len};

/// Everything before is covered by the frame's own digest, of which the first half is kept at its end.
const SEAL: usize = 16;

/// One layout of such frames.
#[derive(Debug, Clone, Copy)]
pub struct SealedFrame {
    /// Which of the sixteen kinds of skippable frames it is.
    pub kind: u8,
    /// Marks the payload, with the layout's version in the last byte.
    pub magic: [u8; 8],
    /// Length of the payload, mark and seal included.
    pub payload: usize,
    /// What messages call it.
    pub name: &'static str,
}

/// A frame's fields: on their way in, mutable, or read and found to be what was sealed.
#[derive(Debug)]
pub struct Fields<B>(B);

impl SealedFrame {
    /// Length of the whole frame.
    pub const fn bytes(&self) -> usize {
        SKIPPABLE_HEADER + self.payload
    }

    /// The frame with the fields that `put` puts.
    pub fn write(&self, put: impl FnOnce(&mut Fields<Vec<u8>>)) -> Vec<u8> {
        let mut fields = Fields(vec![0; self.payload]);
        fields.put(0, &self.magic);
        put(&mut fields);
        let seal = self.payload - SEAL;
        let digest = Digest::of(&fields.0[..seal]).short();
        fields.put(seal, &digest);
        skippable(self.kind, &fields.0)
    }

    /// The fields of the frame that an object's first bytes hold; the reason where they can't be read.
    ///
    /// # Errors
    /// Too few bytes, another frame, or a frame that fails its own digest.
    pub fn read<'a>(&self, bytes: &'a [u8]) -> Result<Fields<&'a [u8]>, String> {
        let name = self.name;
        let payload = match skippable_payload_len(self.kind, bytes) {
            Ok(len) if len == self.payload => bytes
                .get(SKIPPABLE_HEADER..self.bytes())
                .ok_or_else(|| format!("ends within its {name}"))?,
            Ok(len) => return Err(format!("its {name} has {len} bytes, not {}", self.payload)),
            Err(error) => return Err(error.to_string()),
        };
        if payload[..self.magic.len()] != self.magic {
            return Err(format!("its {name} is of a kind this version does not know"));
        }
        let seal = self.payload - SEAL;
        if payload[seal..] != Digest::of(&payload[..seal]).short() {
            return Err(format!("its {name} fails its checksum"));
        }
        Ok(Fields(payload))
    }
}

impl Fields<Vec<u8>> {
    /// Puts a field at its place.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl<'a> Fields<&'a [u8]> {
    /// The field at this place.
    pub fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.0[at..at + N]);
        array
    }

    /// The bytes of this range.
    pub fn range(&self, range: std::ops::Range<usize>) -> &'a [u8] {
        &self.0[range]
    }
}
