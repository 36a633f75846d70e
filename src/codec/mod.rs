//! Bytes to bytes: skippable frames, compression, digests. Pure.

mod compress;
mod digest;
mod frame;
mod sealed;

pub use compress::{CompressError, Compressor, Decompressor, MAX_LEVEL, compress_block, decompress_block};
pub use digest::{Digest, Hasher, ParseDigestError};
pub use frame::{FrameError, SKIPPABLE_HEADER, skippable, skippable_payload_len};
pub use sealed::SealedFrame;
