//! WAL segments: their size, their number, and the names of files in `pg_wal`.

use std::fmt;
use std::str::FromStr;

use super::{Lsn, Timeline};

/// The size of a cluster's WAL segments (`wal_segment_size`): a power of two from 1 MiB to 1 GiB,
/// fixed by `initdb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u32);

/// A number that no cluster can have as its segment size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes is not a WAL segment size: it is a power of two from 1 MiB to 1 GiB")]
pub struct SegmentSizeError(u64);

impl SegmentSize {
    /// What `initdb` chooses unless told otherwise.
    pub const DEFAULT: Self = Self(16 << 20);

    /// The segment size of this many bytes.
    pub fn new(bytes: u64) -> Result<Self, SegmentSizeError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(Self(size)),
            _ => Err(SegmentSizeError(bytes)),
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// How many segments one "log file" of 4 GiB has: names count in these.
    const fn per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// Where `lsn` lies within its segment, in bytes.
    pub const fn offset(self, lsn: Lsn) -> u64 {
        lsn.bytes() & (self.bytes() - 1)
    }
}

/// The number of a segment in a cluster's WAL (`XLogSegNo`), counted from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(u64);

impl SegmentNumber {
    /// The segment with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The segment that holds the byte at `lsn` (`XLByteToSeg`).
    pub const fn holding(lsn: Lsn, size: SegmentSize) -> Self {
        Self(lsn.bytes() / size.bytes())
    }

    /// The segment that holds the last byte before `lsn` (`XLByteToPrevSeg`): for an end of WAL that
    /// falls on a segment's border, the segment that ends there.
    pub const fn ending(lsn: Lsn, size: SegmentSize) -> Self {
        Self(lsn.bytes().saturating_sub(1) / size.bytes())
    }

    /// Its number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Its first byte.
    pub const fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.0 * size.bytes())
    }

    /// The byte after its last.
    pub const fn end(self, size: SegmentSize) -> Lsn {
        Lsn::new((self.0 + 1) * size.bytes())
    }

    /// The segment after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Its name on a timeline.
    pub const fn name(self, timeline: Timeline, size: SegmentSize) -> SegmentName {
        let per_log = size.per_log();
        SegmentName {
            timeline,
            log: (self.0 / per_log) as u32,
            index: (self.0 % per_log) as u32,
        }
    }
}

/// A segment's file name: timeline, 4 GiB "log file", and segment within it, eight hexadecimal
/// digits each (`XLogFileName`). Which bytes it names depends on the cluster's segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: Timeline,
    log: u32,
    index: u32,
}

impl SegmentName {
    /// The timeline in the name.
    pub const fn timeline(self) -> Timeline {
        self.timeline
    }

    /// The 4 GiB of WAL that the segment lies in: the middle eight digits.
    pub const fn log(self) -> u32 {
        self.log
    }

    /// The segment's number; `None` if a cluster with segments of this size has no such name.
    pub const fn number(self, size: SegmentSize) -> Option<SegmentNumber> {
        let per_log = size.per_log();
        if (self.index as u64) < per_log {
            Some(SegmentNumber(self.log as u64 * per_log + self.index as u64))
        } else {
            None
        }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.number(), self.log, self.index)
    }
}

/// A name that PostgreSQL gives to no file it archives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not the name of a WAL file (24 hexadecimal digits, or such a name with .partial or .XXXXXXXX.backup, or XXXXXXXX.history)"
)]
pub struct ParseWalNameError(String);

impl FromStr for SegmentName {
    type Err = ParseWalNameError;

    fn from_str(text: &str) -> Result<Self, ParseWalNameError> {
        let part = |range| text.get(range).and_then(hex8);
        match (
            part(0..8).and_then(Timeline::new),
            part(8..16),
            part(16..24),
            text.len(),
        ) {
            (Some(timeline), Some(log), Some(index), 24) => Ok(Self { timeline, log, index }),
            _ => Err(ParseWalNameError(text.to_owned())),
        }
    }
}

fn hex8(digits: &str) -> Option<u32> {
    let plain = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    u32::from_str_radix(digits, 16).ok().filter(|_| plain)
}

/// The name of any file that PostgreSQL hands to `archive_command` or asks of `restore_command`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A whole segment.
    Segment(SegmentName),
    /// The last segment of a timeline that was left by promotion, as far as it was written.
    Partial(SegmentName),
    /// Where a timeline forked from which.
    History(Timeline),
    /// The record of a finished base backup that began at this byte of this segment.
    Backup(SegmentName, u32),
}

impl WalFileName {
    /// The timeline in the name.
    pub const fn timeline(self) -> Timeline {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::Backup(name, _) => name.timeline(),
            Self::History(timeline) => timeline,
        }
    }

    /// The segment in the name, where there is one.
    pub const fn segment(self) -> Option<SegmentName> {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::Backup(name, _) => Some(name),
            Self::History(_) => None,
        }
    }

    /// Whether the file is WAL (begins with a page header), rather than a text about it.
    pub const fn is_wal(self) -> bool {
        matches!(self, Self::Segment(_) | Self::Partial(_))
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{}.history", timeline.hex()),
            Self::Backup(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for WalFileName {
    type Err = ParseWalNameError;

    fn from_str(text: &str) -> Result<Self, ParseWalNameError> {
        let refused = || ParseWalNameError(text.to_owned());
        match text.split_once('.') {
            None => text.parse().map(Self::Segment),
            Some((name, "partial")) => name.parse().map(Self::Partial).map_err(|_| refused()),
            Some((name, "history")) => Timeline::from_hex(name).map(Self::History).ok_or_else(refused),
            Some((name, rest)) => {
                let offset = rest.strip_suffix(".backup").and_then(hex8).ok_or_else(refused)?;
                name.parse()
                    .map(|name| Self::Backup(name, offset))
                    .map_err(|_| refused())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes() -> impl Strategy<Value = SegmentSize> {
        (20u32..=30).prop_map(|log2| SegmentSize(1 << log2))
    }

    fn timelines() -> impl Strategy<Value = Timeline> {
        (1..=u32::MAX).prop_filter_map("zero is none", Timeline::new)
    }

    proptest! {
        #[test]
        fn a_segment_is_found_again_by_its_name(size in sizes(), timeline in timelines(), lsn: u64) {
            let number = SegmentNumber::holding(Lsn::new(lsn), size);
            let name = number.name(timeline, size).to_string();
            prop_assert_eq!(name.parse::<SegmentName>().unwrap().number(size), Some(number));
            prop_assert!(number.start(size).bytes() <= lsn);
            prop_assert_eq!(number.start(size).bytes() + size.offset(Lsn::new(lsn)), lsn);
        }

        #[test]
        fn every_name_survives_printing(timeline in timelines(), log: u32, index: u32, offset: u32) {
            let segment = SegmentName { timeline, log, index };
            for name in [WalFileName::Segment(segment), WalFileName::Partial(segment),
                         WalFileName::History(timeline), WalFileName::Backup(segment, offset)] {
                prop_assert_eq!(name.to_string().parse(), Ok(name));
            }
        }

        #[test]
        fn no_text_is_read_as_a_name_it_does_not_print(text in "[0-9A-Fa-f.]{0,40}(partial|history|backup)?") {
            if let Ok(name) = text.parse::<WalFileName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }

    #[test] // pg_walfile_name on 15.20, segments of 16 MiB and of 64 MiB
    fn names_are_the_servers() {
        let name = |lsn: &str, mib: u64| {
            let size = SegmentSize::new(mib << 20).unwrap();
            SegmentNumber::holding(lsn.parse().unwrap(), size)
                .name(Timeline::FIRST, size)
                .to_string()
        };
        assert_eq!(name("0/1000000", 16), "000000010000000000000001");
        assert_eq!(name("16/B374D848", 16), "0000000100000016000000B3");
        assert_eq!(name("1/FFFFFFFF", 64), "00000001000000010000003F");
    }

    #[test]
    fn a_size_no_cluster_can_have_is_refused() {
        for bytes in [0, 1, 1 << 19, (16 << 20) + 1, 1 << 31, 1 << 40] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
    }
}
