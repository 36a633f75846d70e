//! Packs: frames of pages and files, one after the other.
//!
//! A pack is a header of eight bytes, then frames. Each frame has a header of its own with the
//! digest of the bytes it stores, so a pack vouches for itself. What a frame's content belongs to is
//! told by a backup's [`super::map`].

use crate::codec::{CompressError, Digest, compress_block, decompress_block};

/// What a pack begins with; the last byte is the layout's version.
pub const PACK_MAGIC: [u8; 8] = *b"PGPPACK\x01";

/// Length of a frame's header.
pub const FRAME_HEADER: usize = 32;

/// The most content a frame holds: small enough that one page is read cheaply, large enough that
/// zstd loses nothing to speak of (CRATES 4).
pub const FRAME_CONTENT: usize = 1 << 20;

/// A pack is closed when it has reached this size. One conditional request carries it, and one
/// buffer of this size holds it on the way to an object store.
pub const PACK_SIZE: usize = 32 << 20;

const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"PGPF");

/// How a frame's content is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As it is: compression would not have made it smaller.
    Raw,
    /// As one zstd frame.
    Zstd,
}

impl Stored {
    /// Its number in headers and maps.
    pub const fn number(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// The way of this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Where a frame lies and what it must be: enough to read it and to know it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef {
    /// Offset of its header in the pack.
    pub offset: u64,
    /// Length of its content.
    pub content_len: u32,
    /// Length of its stored bytes, without the header.
    pub stored_len: u32,
    /// How they are stored.
    pub stored: Stored,
    /// First half of the digest of its stored bytes.
    pub digest: [u8; 16],
}

impl FrameRef {
    /// Where the frame ends in its pack.
    pub const fn end(&self) -> u64 {
        self.offset + FRAME_HEADER as u64 + self.stored_len as u64
    }
}

/// A frame ready to be put into a pack.
#[derive(Debug)]
pub struct SealedFrame {
    content_len: u32,
    stored: Stored,
    digest: [u8; 16],
    bytes: Vec<u8>,
}

impl SealedFrame {
    /// Compresses content of at most [`FRAME_CONTENT`] bytes, where that makes it smaller.
    ///
    /// # Errors
    /// What zstd says.
    pub fn seal(context: &mut zstd::bulk::Compressor<'static>, content: Vec<u8>) -> Result<Self, CompressError> {
        let content_len = content.len() as u32;
        let (stored, bytes) = match compress_block(context, &content)? {
            Some(bytes) => (Stored::Zstd, bytes),
            None => (Stored::Raw, content),
        };
        Ok(Self {
            content_len,
            stored,
            digest: Digest::of(&bytes).short(),
            bytes,
        })
    }

    /// How many bytes it takes in a pack.
    pub fn size(&self) -> usize {
        FRAME_HEADER + self.bytes.len()
    }

    /// Appends it to a pack and tells where.
    pub fn append(self, pack: &mut Vec<u8>) -> FrameRef {
        let offset = pack.len() as u64;
        let stored_len = self.bytes.len() as u32;
        pack.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
        pack.extend_from_slice(&[self.stored.number(), 0, 0, 0]);
        pack.extend_from_slice(&self.content_len.to_le_bytes());
        pack.extend_from_slice(&stored_len.to_le_bytes());
        pack.extend_from_slice(&self.digest);
        pack.extend_from_slice(&self.bytes);
        FrameRef {
            offset,
            content_len: self.content_len,
            stored_len,
            stored: self.stored,
            digest: self.digest,
        }
    }
}

/// Checks a frame's bytes, header included, against what the map says of it, and gives its content.
/// The reason where they don't agree.
///
/// # Errors
/// Another header, stored bytes that fail their digest, or content of another length.
pub fn open_frame<'a>(
    context: &mut zstd::bulk::Decompressor<'static>,
    frame: &FrameRef,
    bytes: &'a [u8],
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], String> {
    let (header, stored) = match bytes.split_at_checked(FRAME_HEADER) {
        Some((header, stored)) if stored.len() == frame.stored_len as usize => (header, stored),
        _ => return Err(format!("the frame at byte {} is cut short", frame.offset)),
    };
    let word = |at: usize| {
        header
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    };
    let expected = (FRAME_MAGIC, frame.stored.number(), frame.content_len, frame.stored_len);
    if (word(0), header[4], word(8), word(12)) != expected || header[16..] != frame.digest {
        return Err(format!(
            "the frame at byte {} is not the one the backup put there",
            frame.offset
        ));
    }
    if Digest::of(stored).short() != frame.digest {
        return Err(format!("the frame at byte {} fails its checksum", frame.offset));
    }
    match frame.stored {
        Stored::Raw if stored.len() == frame.content_len as usize => Ok(stored),
        Stored::Raw => Err(format!(
            "the frame at byte {} has another length than it should",
            frame.offset
        )),
        Stored::Zstd => {
            decompress_block(context, stored, buffer, frame.content_len as usize)
                .map_err(|error| format!("the frame at byte {}: {error}", frame.offset))?;
            Ok(buffer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contexts() -> (zstd::bulk::Compressor<'static>, zstd::bulk::Decompressor<'static>) {
        (
            zstd::bulk::Compressor::new(3).unwrap(),
            zstd::bulk::Decompressor::new().unwrap(),
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_was_sealed_opens_and_what_was_changed_does_not(
            content in prop::collection::vec(any::<u8>(), 0..3000), repeat in 1usize..40,
            at: prop::sample::Index, bit in 0..8u8,
        ) {
            let content = content.repeat(repeat);
            let (mut compressor, mut decompressor) = contexts();
            let mut pack = PACK_MAGIC.to_vec();
            let frame = SealedFrame::seal(&mut compressor, content.clone()).unwrap().append(&mut pack);
            prop_assert_eq!(frame.end(), pack.len() as u64);
            let mut bytes = pack[frame.offset as usize..].to_vec();
            let mut buffer = Vec::new();
            prop_assert_eq!(open_frame(&mut decompressor, &frame, &bytes, &mut buffer), Ok(&content[..]));
            let at = at.index(bytes.len());
            // Bytes 5 to 7 of the header are free.
            if !(5..8).contains(&at) {
                bytes[at] ^= 1 << bit;
                prop_assert!(open_frame(&mut decompressor, &frame, &bytes, &mut buffer).is_err());
            }
        }
    }
}
