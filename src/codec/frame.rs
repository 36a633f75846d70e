//! Zstandard's skippable frames (RFC 8878, section 3.1.2): bytes of ours in a file that `zstd -d`
//! still reads.

/// Length of a skippable frame's header: magic number and payload length, four bytes each.
pub const SKIPPABLE_HEADER: usize = 8;

/// The first of the sixteen magic numbers that mark a skippable frame.
const FIRST_MAGIC: u32 = 0x184D_2A50;

/// Bytes that are not the skippable frame they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame has.
    #[error("ends within a frame")]
    Short,
    /// Another kind of frame, or none.
    #[error("does not begin with the frame expected here")]
    Magic,
}

/// A skippable frame of the given kind (0 to 15) around `payload`.
pub fn skippable(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(SKIPPABLE_HEADER + payload.len());
    frame.extend_from_slice(&(FIRST_MAGIC + u32::from(kind & 15)).to_le_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The payload's length, read from the header of a skippable frame of the given kind.
///
/// # Errors
/// Bytes too few for a header, or another magic number.
pub fn skippable_payload_len(kind: u8, header: &[u8]) -> Result<usize, FrameError> {
    let word = |at: usize| {
        let bytes: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    match (word(0), word(4)) {
        (Some(magic), Some(len)) if magic == FIRST_MAGIC + u32::from(kind & 15) => Ok(len as usize),
        (Some(_), Some(_)) => Err(FrameError::Magic),
        _ => Err(FrameError::Short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_passes_over_what_we_put_in_front() {
        let mut file = skippable(0, b"who am I");
        file.extend(zstd::encode_all(&b"content"[..], 1).unwrap());
        file.extend(skippable(1, b"index"));
        assert_eq!(zstd::decode_all(&file[..]).unwrap(), b"content");
        assert_eq!(skippable_payload_len(0, &file), Ok(8));
        assert_eq!(skippable_payload_len(1, &file), Err(FrameError::Magic));
        assert_eq!(skippable_payload_len(0, &file[..7]), Err(FrameError::Short));
    }
}
