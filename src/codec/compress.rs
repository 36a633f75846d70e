//! Zstandard in pieces of bounded size.

use std::io;

use zstd::stream::raw::{CParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// The highest level worth offering: beyond it memory grows past what an archiver may use.
pub const MAX_LEVEL: i32 = 19;

/// How many bytes come out of one step at most: zstd's own recommended output buffer.
const OUT: usize = 128 << 10;

/// Bytes that zstd can't make or read.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// What zstd says of them.
    #[error("zstd: {0}")]
    Zstd(String),
    /// The stream ends before its last frame does.
    #[error("the compressed stream ends too early")]
    Short,
    /// More bytes come out than there should be.
    #[error("the compressed stream holds more than the {0} bytes it should")]
    Long(u64),
}

fn zstd_error(error: io::Error) -> CompressError {
    CompressError::Zstd(error.to_string())
}

/// Compresses a stream into one frame.
pub struct Compressor {
    encoder: Encoder<'static>,
    out: Vec<u8>,
}

impl Compressor {
    /// For a stream of exactly `len` bytes (the frame's header tells it). With `checksum`, the frame
    /// ends with zstd's own, so that `zstd -t` vouches for it.
    ///
    /// # Errors
    /// When zstd refuses the level or has no memory.
    pub fn new(level: i32, len: u64, checksum: bool) -> Result<Self, CompressError> {
        let mut encoder = Encoder::new(level).map_err(zstd_error)?;
        encoder
            .set_parameter(CParameter::ChecksumFlag(checksum))
            .map_err(zstd_error)?;
        encoder.set_pledged_src_size(Some(len)).map_err(zstd_error)?;
        Ok(Self {
            encoder,
            out: vec![0; OUT],
        })
    }

    /// Takes in `bytes` and hands on what comes out.
    ///
    /// # Errors
    /// What zstd says, or what `sink` answers.
    pub fn push<E: From<CompressError>>(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut input = InBuffer::around(bytes);
        while input.pos() < bytes.len() {
            let mut output = OutBuffer::around(&mut self.out[..]);
            self.encoder.run(&mut input, &mut output).map_err(zstd_error)?;
            let made = output.pos();
            if made > 0 {
                sink(&self.out[..made])?;
            }
        }
        Ok(())
    }

    /// Ends the frame and hands on the rest.
    ///
    /// # Errors
    /// What zstd says (also when fewer bytes came than were announced), or what `sink` answers.
    pub fn finish<E: From<CompressError>>(mut self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        loop {
            let mut output = OutBuffer::around(&mut self.out[..]);
            let left = self.encoder.finish(&mut output, true).map_err(zstd_error)?;
            let made = output.pos();
            if made > 0 {
                sink(&self.out[..made])?;
            }
            if left == 0 {
                return Ok(());
            }
        }
    }
}

/// Decompresses a stream of frames; skippable ones are passed over.
pub struct Decompressor {
    decoder: Decoder<'static>,
    out: Vec<u8>,
    left: u64,
    len: u64,
    within_frame: bool,
}

impl Decompressor {
    /// For a stream that must give exactly `len` bytes: a damaged one can't fill disk or memory.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn new(len: u64) -> Result<Self, CompressError> {
        let decoder = Decoder::new().map_err(zstd_error)?;
        Ok(Self {
            decoder,
            out: vec![0; OUT],
            left: len,
            len,
            within_frame: false,
        })
    }

    /// Takes in `bytes` and hands on what comes out.
    ///
    /// # Errors
    /// What zstd says, or what `sink` answers, or more bytes than announced.
    pub fn push<E: From<CompressError>>(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut input = InBuffer::around(bytes);
        loop {
            let before = input.pos();
            let mut output = OutBuffer::around(&mut self.out[..]);
            let hint = self.decoder.run(&mut input, &mut output).map_err(zstd_error)?;
            let made = output.pos();
            self.left = self
                .left
                .checked_sub(made as u64)
                .ok_or(CompressError::Long(self.len))?;
            if made > 0 {
                sink(&self.out[..made])?;
            }
            // A hint of zero is the end of a frame. Calling again without input would begin another.
            self.within_frame = hint != 0;
            let idle = input.pos() == before && made == 0;
            if input.pos() == bytes.len() && (made < OUT || hint == 0 || idle) {
                return Ok(());
            }
        }
    }

    /// Tells whether all came that was announced.
    ///
    /// # Errors
    /// When the last frame isn't whole, or bytes are missing.
    pub fn finish(self) -> Result<(), CompressError> {
        if self.within_frame || self.left > 0 {
            Err(CompressError::Short)
        } else {
            Ok(())
        }
    }
}

/// Compresses a block that lies in memory; `None` where that would not make it smaller.
///
/// # Errors
/// What zstd says.
pub fn compress_block(
    context: &mut zstd::bulk::Compressor<'static>,
    block: &[u8],
) -> Result<Option<Vec<u8>>, CompressError> {
    let mut out = Vec::with_capacity(block.len());
    match context.compress_to_buffer(block, &mut out) {
        Ok(_) if out.len() < block.len() => Ok(Some(out)),
        Ok(_) => Ok(None),
        // The buffer is as large as the block: it does not fit, so it did not get smaller.
        Err(error) if error.to_string().contains("too small") => Ok(None),
        Err(error) => Err(zstd_error(error)),
    }
}

/// Decompresses a block into `out`, whose length is the block's.
///
/// # Errors
/// What zstd says, or another length than announced.
pub fn decompress_block(
    context: &mut zstd::bulk::Decompressor<'static>,
    stored: &[u8],
    out: &mut Vec<u8>,
    len: usize,
) -> Result<(), CompressError> {
    out.clear();
    out.reserve(len);
    let made = context.decompress_to_buffer(stored, out).map_err(zstd_error)?;
    if made == len { Ok(()) } else { Err(CompressError::Short) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn compressed(content: &[u8], step: usize) -> Vec<u8> {
        let mut stored = Vec::new();
        let mut keep = |bytes: &[u8]| -> Result<(), CompressError> {
            stored.extend_from_slice(bytes);
            Ok(())
        };
        let mut compressor = Compressor::new(1, content.len() as u64, true).unwrap();
        for piece in content.chunks(step) {
            compressor.push(piece, &mut keep).unwrap();
        }
        compressor.finish(&mut keep).unwrap();
        stored
    }

    fn decompressed(stored: &[u8], len: u64, step: usize) -> Result<Vec<u8>, CompressError> {
        let mut content = Vec::new();
        let mut decompressor = Decompressor::new(len)?;
        for piece in stored.chunks(step) {
            decompressor.push(piece, |bytes| {
                content.extend_from_slice(bytes);
                Ok::<(), CompressError>(())
            })?;
        }
        decompressor.finish().map(|()| content)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_went_in_comes_out(content: Vec<u8>, step in 1usize..5000, repeat in 1usize..300) {
            let content = content.repeat(repeat);
            let stored = compressed(&content, step);
            prop_assert_eq!(&zstd::decode_all(&stored[..]).unwrap(), &content);
            prop_assert_eq!(decompressed(&stored, content.len() as u64, step).unwrap(), content);
        }

        #[test]
        fn a_cut_or_longer_stream_is_refused(content in prop::collection::vec(any::<u8>(), 1..2000), cut: prop::sample::Index) {
            let stored = compressed(&content, 4096);
            let len = content.len() as u64;
            prop_assert!(decompressed(&stored[..cut.index(stored.len())], len, 100).is_err());
            prop_assert!(decompressed(&stored, len - 1, 100).is_err());
            prop_assert!(decompressed(&stored, len + 1, 100).is_err());
        }
    }

    #[test]
    fn a_block_that_does_not_shrink_is_told() {
        let mut context = zstd::bulk::Compressor::new(1).unwrap();
        let noise: Vec<u8> = (0..4096u64)
            .flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..1].to_vec())
            .collect();
        assert!(compress_block(&mut context, &noise).unwrap().is_none());
        let zeros = vec![0; 4096];
        let stored = compress_block(&mut context, &zeros).unwrap().unwrap();
        let mut out = Vec::new();
        decompress_block(&mut zstd::bulk::Decompressor::new().unwrap(), &stored, &mut out, 4096).unwrap();
        assert_eq!(out, zeros);
    }
}
