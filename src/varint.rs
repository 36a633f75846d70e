//! Numbers in as few bytes as they need, as our own tables and indexes hold them (docs/repository-format.md).
//!
//! A number is written seven bits a byte, the low ones first, with the highest bit set in all bytes but the last
//! (LEB128). Every read answers `None` where the bytes make no sense, and reserves no memory before it has seen the
//! bytes that fill it.

/// Appends a number.
pub fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a number from the front of `bytes` and moves on.
pub fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        let low = u64::from(byte & 0x7F);
        if shift == 63 && low > 1 {
            return None;
        }
        value |= low << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Appends a number that may be negative: 0, -1, 1, -2 … are written as 0, 1, 2, 3 ….
pub fn signed(out: &mut Vec<u8>, value: i64) {
    number(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Reads a number that may be negative.
pub fn read_signed(bytes: &mut &[u8]) -> Option<i64> {
    let value = read_number(bytes)?;
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

/// Appends a text: its length, and its bytes.
pub fn text(out: &mut Vec<u8>, text: &[u8]) {
    number(out, text.len() as u64);
    out.extend_from_slice(text);
}

/// Reads a text.
pub fn read_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(read_number(bytes)?).ok()?;
    take(bytes, len)
}

/// Takes `len` bytes from the front.
pub fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(plain: u64, other: i64, words: Vec<u8>) {
            let mut out = Vec::new();
            number(&mut out, plain);
            signed(&mut out, other);
            text(&mut out, &words);
            let bytes = &mut &out[..];
            prop_assert_eq!(read_number(bytes), Some(plain));
            prop_assert_eq!(read_signed(bytes), Some(other));
            prop_assert_eq!(read_text(bytes), Some(&words[..]));
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = read_number(&mut &bytes[..]);
            let _ = read_signed(&mut &bytes[..]);
            let _ = read_text(&mut &bytes[..]);
        }
    }
}
