//! The headers of WAL pages (`XLogPageHeaderData`, `XLogLongPageHeaderData`), and whether a segment is what its file
//! name says.
//!
//! Every page of WAL begins with a header; that of a segment's first page is longer and tells which cluster wrote
//! it. Only little-endian files are read.

use super::{Lsn, MagicMeaning, MajorVersion, SegmentSize, SystemId, Timeline, WalFileName};
use crate::error::{Class, Explain};

/// The size of WAL pages (`XLOG_BLCKSZ`) in every common build of PostgreSQL, in bytes.
pub const PAGE_SIZE: u32 = 8192;

/// Flag bits of `xlp_info`.
const FIRST_IS_CONTINUED: u16 = 0x1;
const LONG_HEADER: u16 = 0x2;
const FIRST_IS_OVERWRITTEN: u16 = 0x8;
const ALL_FLAGS: u16 = 0xF;

/// The header of any page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Tells the major version; see [`MagicMeaning`].
    pub magic: u16,
    /// `xlp_info`, as it stands.
    pub flags: u16,
    /// The timeline that was current when the page was begun; `None` where there stands a zero, as no server writes.
    pub timeline: Option<Timeline>,
    /// Where in the WAL the page begins.
    pub address: Lsn,
    /// How many bytes are left of the record that an earlier page began (`xlp_rem_len`); not aligned.
    pub remaining: u32,
}

impl PageHeader {
    /// How many bytes it takes, padding included: the page's own bytes follow.
    pub const BYTES: usize = 24;

    /// Reads the header; judges nothing but the length.
    pub fn parse(bytes: &[u8]) -> Result<Self, PageError> {
        let Some(bytes) = bytes.first_chunk::<{ Self::BYTES }>() else {
            return Err(PageError::TooShort(bytes.len() as u64));
        };
        let [
            m0,
            m1,
            f0,
            f1,
            t0,
            t1,
            t2,
            t3,
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            rest @ ..,
        ] = *bytes;
        let [r0, r1, r2, r3, ..] = rest;
        Ok(Self {
            magic: u16::from_le_bytes([m0, m1]),
            flags: u16::from_le_bytes([f0, f1]),
            timeline: Timeline::new(u32::from_le_bytes([t0, t1, t2, t3])),
            address: Lsn::new(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7])),
            remaining: u32::from_le_bytes([r0, r1, r2, r3]),
        })
    }

    /// Whether the page goes on with a record that an earlier page began (`XLP_FIRST_IS_CONTRECORD`).
    pub const fn continues_record(&self) -> bool {
        self.flags & FIRST_IS_CONTINUED != 0
    }

    /// Whether the header is a [`LongHeader`] (`XLP_LONG_HEADER`).
    pub const fn is_long(&self) -> bool {
        self.flags & LONG_HEADER != 0
    }

    /// Whether the record that an earlier page began was never finished, and another one begins here
    /// (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
    pub const fn overwrites_record(&self) -> bool {
        self.flags & FIRST_IS_OVERWRITTEN != 0
    }

    /// Whether there are flags that no known major sets.
    pub const fn has_unknown_flags(&self) -> bool {
        self.flags & !ALL_FLAGS != 0
    }

    /// How many bytes the header takes: [`PageHeader::BYTES`] or [`LongHeader::BYTES`].
    pub const fn bytes(&self) -> usize {
        if self.is_long() { LongHeader::BYTES } else { Self::BYTES }
    }
}

/// The header of a segment's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// What every page has.
    pub page: PageHeader,
    /// The cluster that wrote the segment.
    pub system: SystemId,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The cluster's WAL page size in bytes: a power of two from 1 KiB to 64 KiB.
    pub page_size: u32,
}

impl LongHeader {
    /// How many bytes it takes.
    pub const BYTES: usize = 40;

    /// Reads the header. Refuses one that is short, and sizes that no cluster can have.
    pub fn parse(bytes: &[u8]) -> Result<Self, PageError> {
        let page = PageHeader::parse(bytes)?;
        if !page.is_long() {
            return Err(PageError::NotAFirstPage(page.address));
        }
        let long = bytes.get(PageHeader::BYTES..).and_then(<[u8]>::first_chunk::<16>);
        let Some(&[i0, i1, i2, i3, i4, i5, i6, i7, s0, s1, s2, s3, p0, p1, p2, p3]) = long else {
            return Err(PageError::TooShort(bytes.len() as u64));
        };
        let segment_size = u32::from_le_bytes([s0, s1, s2, s3]);
        let page_size = u32::from_le_bytes([p0, p1, p2, p3]);
        if !page_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&page_size) {
            return Err(PageError::PageSize(page_size));
        }
        Ok(Self {
            page,
            system: SystemId::new(u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7])),
            segment_size: SegmentSize::new(u64::from(segment_size))
                .map_err(|_| PageError::SegmentSize(segment_size))?,
            page_size,
        })
    }
}

/// The first page of a segment that is what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstPage {
    /// The major that wrote it; `None`: one newer than the known ones, worth a warning.
    pub version: Option<MajorVersion>,
    /// The whole header.
    pub header: LongHeader,
    /// The timeline in the header; lower than the name's where a segment was begun before a fork.
    pub timeline: Timeline,
}

/// Checks that a file that PostgreSQL calls `name`, is `file_len` bytes long and begins with `bytes` (40 or more) is
/// that segment. Says nothing of the pages after the first: a recycled segment holds old ones.
pub fn check_first_page(name: WalFileName, bytes: &[u8], file_len: u64) -> Result<FirstPage, PageError> {
    let (WalFileName::Segment(segment) | WalFileName::Partial(segment)) = name else {
        return Err(PageError::NotASegment(name));
    };
    let page = PageHeader::parse(bytes)?;
    let version = version_of(page)?;
    let header = LongHeader::parse(bytes)?;
    let size = header.segment_size;
    let number = segment.number(size).ok_or(PageError::NoSuchName { name, size })?;
    if page.address != number.start(size) {
        return Err(PageError::Address {
            name,
            in_name: number.start(size),
            in_header: page.address,
        });
    }
    if file_len != size.bytes() {
        return Err(PageError::Length {
            length: file_len,
            size: size.bytes(),
        });
    }
    let timeline = page.timeline.ok_or(PageError::NoTimeline)?;
    if timeline > name.timeline() {
        return Err(PageError::Timeline {
            in_name: name.timeline(),
            in_header: timeline,
        });
    }
    Ok(FirstPage {
        version,
        header,
        timeline,
    })
}

fn version_of(page: PageHeader) -> Result<Option<MajorVersion>, PageError> {
    match MagicMeaning::of(page.magic) {
        MagicMeaning::Major(_) if page.has_unknown_flags() => Err(PageError::Flags(page.flags)),
        MagicMeaning::Major(version) => Ok(Some(version)),
        MagicMeaning::Newer => Ok(None),
        MagicMeaning::TooOld => Err(PageError::TooOld(page.magic)),
        MagicMeaning::BigEndian => Err(PageError::BigEndian),
        MagicMeaning::NotWal => Err(PageError::NotWal(page.magic)),
    }
}

/// Why a file is not the segment that its name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// Asked of a history or backup file, which has no pages.
    #[error("{0} is not a WAL segment")]
    NotASegment(WalFileName),
    /// Ends before its first page header does.
    #[error("only {0} bytes, too short for a WAL page header")]
    TooShort(u64),
    /// Begins with something else.
    #[error("begins with {0:#06X}, which is not the magic of a WAL page")]
    NotWal(u16),
    /// Written by a major that is not supported.
    #[error("the page magic {0:#06X} is of a PostgreSQL older than {oldest}", oldest = MajorVersion::OLDEST)]
    TooOld(u16),
    /// Written on another kind of machine.
    #[error("written on a big-endian machine, which is not supported")]
    BigEndian,
    /// Flags that the major in the magic does not know.
    #[error("the page header has the unknown flags {0:#06X}")]
    Flags(u16),
    /// A page from the middle of a segment.
    #[error("begins with the page of {0}, which is not the first of a segment")]
    NotAFirstPage(Lsn),
    /// `xlp_seg_size` is not one that `initdb` gives.
    #[error("the page header tells a segment size of {0} bytes, which no cluster has")]
    SegmentSize(u32),
    /// `xlp_xlog_blcksz` is not one that PostgreSQL can be built with.
    #[error("the page header tells a page size of {0} bytes, which no PostgreSQL has")]
    PageSize(u32),
    /// The name can't occur where segments have the size in the header.
    #[error("{name} is not a name where segments have {} bytes, as the page header tells", size.bytes())]
    NoSuchName {
        /// The file's name.
        name: WalFileName,
        /// The segment size in its header.
        size: SegmentSize,
    },
    /// Another segment than the name says: renamed, or recycled and never written.
    #[error("named {name}, which begins at {in_name}, but its page header tells {in_header}")]
    Address {
        /// The file's name.
        name: WalFileName,
        /// Where the segment of that name begins.
        in_name: Lsn,
        /// Where the page in it begins.
        in_header: Lsn,
    },
    /// Truncated, or grown.
    #[error("{length} bytes long, but its page header tells a segment size of {size}")]
    Length {
        /// The file's length in bytes.
        length: u64,
        /// The segment size in its header, in bytes.
        size: u64,
    },
    /// The header's timeline is zero.
    #[error("the page header tells no timeline")]
    NoTimeline,
    /// A page of a timeline that was not begun when the named one was.
    #[error("named as of timeline {in_name}, but its page header tells the later timeline {in_header}")]
    Timeline {
        /// The timeline in the file's name.
        in_name: Timeline,
        /// The timeline in its header.
        in_header: Timeline,
    },
}

impl Explain for PageError {
    fn class(&self) -> Class {
        match self {
            Self::NotASegment(_) | Self::TooOld(_) | Self::BigEndian => Class::Usage,
            _ => Class::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotASegment(_) | Self::BigEndian => return None,
            Self::TooOld(_) => "use a server of a supported major version.",
            Self::Address { .. } | Self::Timeline { .. } | Self::NoSuchName { .. } => {
                "the file may have been renamed; look at it with pg_waldump."
            }
            Self::Length { .. } | Self::TooShort(_) => {
                "the file may have been truncated; look for a whole copy in pg_wal or on a standby."
            }
            _ => "the file is damaged or no WAL; look for a good copy in pg_wal or on a standby.",
        };
        Some(hint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::golden;
    use proptest::prelude::*;

    /// A golden segment: its name, first page and length.
    fn segment(major: u16, which: &str) -> (WalFileName, Vec<u8>, u64) {
        let told = |label| golden::told(major, &format!("{which}.txt"), label);
        let page = golden::read(major, &format!("{which}.page"));
        (told("name").parse().unwrap(), page, told("size").parse().unwrap())
    }

    #[test]
    fn what_a_server_wrote_is_the_segment_of_its_name() {
        for major in golden::MAJORS {
            for which in ["segment", "fork"] {
                let (name, bytes, length) = segment(major, which);
                let first = check_first_page(name, &bytes, length).unwrap();
                let told = |label| golden::told(major, "stopped.txt", label);
                assert_eq!(first.version, MajorVersion::new(major).ok());
                assert_eq!(first.header.system.to_string(), told("Database system identifier"));
                assert_eq!(
                    first.header.segment_size.bytes().to_string(),
                    told("Bytes per WAL segment")
                );
                assert_eq!(first.header.page_size.to_string(), told("WAL block size"));
                assert_eq!(first.timeline, Timeline::FIRST);
                assert_eq!(first.header.page.continues_record(), which == "segment");
            }
        }
    }

    #[test]
    fn the_rest_of_a_record_ends_where_pg_waldump_finds_the_next() {
        for major in golden::MAJORS {
            let (name, bytes, length) = segment(major, "segment");
            let header = check_first_page(name, &bytes, length).unwrap().header;
            let mut at = header.page.address.bytes() + LongHeader::BYTES as u64;
            let mut left = u64::from(header.page.remaining).next_multiple_of(8);
            let page = u64::from(header.page_size);
            while left > 0 {
                let here = left.min(page - at % page);
                (at, left) = (at + here, left - here);
                if at.is_multiple_of(page) {
                    at += PageHeader::BYTES as u64;
                }
            }
            let told = golden::text(major, "segment.txt");
            let (_, record) = told.split_once("lsn: ").unwrap();
            assert_eq!(
                Some(Lsn::new(at)),
                record.split(',').next().map(|lsn| lsn.parse().unwrap())
            );
        }
    }

    /// What is said of the golden segment of 17 after a change to its name, bytes or length.
    fn after(change: impl Fn(&mut WalFileName, &mut Vec<u8>, &mut u64)) -> PageError {
        let (mut name, mut bytes, mut length) = segment(17, "fork");
        change(&mut name, &mut bytes, &mut length);
        check_first_page(name, &bytes, length).unwrap_err()
    }

    fn patched(at: usize, with: &[u8]) -> PageError {
        after(|_, bytes, _| bytes[at..at + with.len()].copy_from_slice(with))
    }

    #[test]
    fn a_file_that_is_not_the_segment_of_its_name_is_refused() {
        use PageError as E;
        let renamed = |to: &str| after(|name, _, _| *name = to.parse().unwrap());
        assert!(matches!(renamed("000000020000000000000009"), E::Address { .. }));
        assert!(matches!(renamed("000000020000000100000006.partial"), E::Address { .. }));
        assert!(matches!(renamed("000000020000000000000100"), E::NoSuchName { .. }));
        assert!(matches!(renamed("00000002.history"), E::NotASegment(_)));
        assert!(matches!(
            after(|_, _, length| *length -= 1),
            E::Length { length: 16_777_215, .. }
        ));
        assert!(matches!(after(|_, _, length| *length *= 2), E::Length { .. }));
        assert_eq!(after(|_, bytes, _| bytes.truncate(39)), E::TooShort(39));
        assert_eq!(after(|_, bytes, _| bytes.fill(0)), E::NotWal(0));
        assert_eq!(patched(0, &[0xD1, 0x16]), E::BigEndian);
        assert_eq!(patched(0, &[0x01, 0xD1]), E::TooOld(0xD101));
        assert_eq!(patched(2, &[0x16]), E::Flags(0x16));
        assert!(matches!(patched(2, &[0x04]), E::NotAFirstPage(_)));
        assert_eq!(patched(4, &[0]), E::NoTimeline);
        assert!(matches!(patched(4, &[3]), E::Timeline { .. }));
        assert!(matches!(patched(10, &[1]), E::Address { .. }));
        assert_eq!(patched(32, &[1, 0, 0, 0]), E::SegmentSize(1));
        assert_eq!(patched(36, &[0, 0, 8, 0]), E::PageSize(512 << 10));
    }

    #[test]
    fn a_newer_major_is_let_through_and_told() {
        let (name, mut bytes, length) = segment(18, "fork");
        bytes[0] = 0x1B;
        assert_eq!(check_first_page(name, &bytes, length).unwrap().version, None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_page_parser_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..64), length: u64, real: bool) {
            if real && bytes.len() > 4 {
                bytes[..4].copy_from_slice(&[0x16, 0xD1, 0x06, 0x00]);
            }
            let name = "000000020000000000000006".parse().unwrap();
            let _ = check_first_page(name, &bytes, length);
        }

        #[test]
        fn a_flipped_bit_in_the_header_is_refused_or_changes_what_is_told(at in 0usize..40, bit in 0u8..8) {
            // The padding after xlp_rem_len means nothing.
            prop_assume!(!(20..24).contains(&at));
            let (name, bytes, length) = segment(17, "segment");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            prop_assert_ne!(check_first_page(name, &flipped, length), check_first_page(name, &bytes, length));
        }
    }
}
