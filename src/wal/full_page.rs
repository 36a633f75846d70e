//! Page images made into the pages they are of: the hole filled in again, what was compressed unpacked.

use super::record::{Compression, Image};

/// `BLCKSZ` of every build that is handed out.
pub(super) const BYTES: usize = 8192;

/// The page; `None` where the image is none of a page of [`BYTES`], or can't be unpacked.
pub(super) fn page_of(image: &Image<'_>) -> Option<Vec<u8>> {
    let hole = match image.hole_length {
        Some(length) => usize::from(length),
        None => BYTES.checked_sub(image.bytes.len())?,
    };
    let held = BYTES.checked_sub(hole)?;
    let unpacked = match image.compression {
        None => Some(image.bytes.to_vec()),
        Some(Compression::Pglz) => pglz(image.bytes, held),
        Some(Compression::Lz4) => lz4(image.bytes, held),
        Some(Compression::Zstd) => zstd::bulk::decompress(image.bytes, held).ok(),
    };
    let mut page = unpacked.filter(|bytes| bytes.len() == held)?;
    let at = usize::from(image.hole_offset);
    if at > held {
        return None;
    }
    page.splice(at..at, std::iter::repeat_n(0, hole));
    Some(page)
}

/// PostgreSQL's own compression: a byte of eight flags, least significant first, and then for each a literal byte, or a
/// reference back of two or three bytes.
fn pglz(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut input = packed.iter().copied();
    let mut out = Vec::with_capacity(length);
    while let Some(flags) = input.next() {
        for bit in 0..8 {
            if out.len() >= length {
                break;
            }
            let Some(first) = input.next() else { return Some(out) };
            if flags >> bit & 1 == 0 {
                out.push(first);
                continue;
            }
            let distance = usize::from(first & 0xF0) << 4 | usize::from(input.next()?);
            let mut count = usize::from(first & 0x0F) + 3;
            if count == 18 {
                count += usize::from(input.next()?);
            }
            let room = length - out.len();
            repeat(&mut out, distance, count.min(room))?;
        }
    }
    Some(out)
}

/// One block of LZ4: literals and a reference back, by turns; the last turn has no reference.
fn lz4(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut input = packed;
    let mut out = Vec::with_capacity(length);
    loop {
        let token = next(&mut input)?;
        let literals = lz4_count(token >> 4, &mut input)?;
        let (taken, rest) = input.split_at_checked(literals)?;
        if out.len() + literals > length {
            return None;
        }
        out.extend_from_slice(taken);
        input = rest;
        if input.is_empty() {
            return Some(out);
        }
        let distance = usize::from(u16::from_le_bytes([next(&mut input)?, next(&mut input)?]));
        let count = lz4_count(token & 0x0F, &mut input)? + 4;
        if out.len() + count > length {
            return None;
        }
        repeat(&mut out, distance, count)?;
    }
}

/// Four bits of the token, and where these are all set, bytes that add up until one is not full.
fn lz4_count(nibble: u8, input: &mut &[u8]) -> Option<usize> {
    let mut count = usize::from(nibble);
    let mut more = nibble == 15;
    while more {
        let byte = next(input)?;
        count += usize::from(byte);
        more = byte == 255;
    }
    Some(count)
}

fn next(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

/// Says again what was said `distance` bytes ago; what is said may run into itself.
fn repeat(out: &mut Vec<u8>, distance: usize, count: usize) -> Option<()> {
    let from = out.len().checked_sub(distance).filter(|_| distance > 0)?;
    for at in from..from + count {
        out.push(out[at]);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(bytes: &[u8], compression: Option<Compression>, hole: (u16, Option<u16>)) -> Image<'_> {
        Image {
            bytes,
            compression,
            hole_offset: hole.0,
            hole_length: hole.1,
            applied: true,
        }
    }

    #[test]
    fn a_hole_is_filled_with_zeros() {
        let page = page_of(&image(&[7; 8000], None, (100, None))).unwrap();
        assert_eq!(page.len(), BYTES);
        assert_eq!(
            (&page[..100], &page[292..]),
            ([7; 100].as_slice(), [7; 7900].as_slice())
        );
        assert!(page[100..292].iter().all(|&byte| byte == 0));
        assert_eq!(page_of(&image(&[7; 8000], None, (0, Some(0)))), None);
        assert_eq!(page_of(&image(&[7; 9000], None, (0, None))), None);
        assert_eq!(page_of(&image(&[7; 92], None, (93, None))), None);
    }

    #[test]
    fn each_way_to_compress_is_undone() {
        // "abc", then four times more of it; in pglz as a reference of 12 bytes, in LZ4 of 7, then 5 literals.
        let text = b"abcabcabcabcabc";
        let pglz_packed = [0b0000_1000, b'a', b'b', b'c', 0x09, 3];
        assert_eq!(pglz(&pglz_packed, text.len()).as_deref(), Some(text.as_slice()));
        let lz4_packed = [0x33, b'a', b'b', b'c', 3, 0, 0x50, b'b', b'c', b'a', b'b', b'c'];
        assert_eq!(
            lz4(&lz4_packed, text.len()).as_deref(),
            Some(b"abcabcabcabcabc".as_slice())
        );
        let zstd_packed = zstd::bulk::compress(&[9; BYTES - 50], 3).unwrap();
        let page = page_of(&image(&zstd_packed, Some(Compression::Zstd), (8, Some(50)))).unwrap();
        assert_eq!((page.len(), page[7], page[8], page[58]), (BYTES, 9, 0, 9));
    }

    #[test]
    fn a_long_run_is_counted_in_further_bytes() {
        let pglz_packed = [0b0000_0010, b'x', 0x0F, 1, 200];
        assert_eq!(pglz(&pglz_packed, 219), Some(vec![b'x'; 219]));
        let lz4_packed = [0x1F, b'x', 1, 0, 255, 10, 0x10, b'y'];
        assert_eq!(
            lz4(&lz4_packed, 500),
            Some([vec![b'x'; 1 + 19 + 265], vec![b'y']].concat())
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_grow_beyond_a_page(
            bytes in prop::collection::vec(any::<u8>(), 0..300), way in 0_u8..4, offset: u16, length: Option<u16>
        ) {
            let way = [None, Some(Compression::Pglz), Some(Compression::Lz4), Some(Compression::Zstd)][usize::from(way)];
            prop_assert!(page_of(&image(&bytes, way, (offset, length))).is_none_or(|page| page.len() == BYTES));
        }
    }
}
