//! How a cluster's WAL is laid out, and whether a page belongs where it was found.
//!
//! A page is held against what the server itself checks: its magic, flags, address, the cluster it tells of, and that
//! its timeline does not go back. Recycled segments hold old pages after the end of WAL; those are told by their
//! address.

use crate::error::{Class, Explain};
use crate::pg::{FirstPage, LongHeader, Lsn, MajorVersion, PageHeader, SegmentSize, SystemId, Timeline};

/// Facts that change how WAL is read; from the server or a segment's first page, never assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLayout {
    version: MajorVersion,
    magic: u16,
    segment_size: SegmentSize,
    page_size: u32,
}

impl WalLayout {
    /// The layout of a cluster of this major, with these sizes of segments and of WAL pages (in bytes). Refuses majors
    /// newer than the known ones: what their records mean is not known.
    pub fn new(version: MajorVersion, segment_size: SegmentSize, page_size: u32) -> Result<Self, LayoutError> {
        let Some(magic) = version.page_magic() else {
            return Err(LayoutError::NewerVersion(version));
        };
        if !page_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&page_size) {
            return Err(LayoutError::PageSize(page_size));
        }
        Ok(Self {
            version,
            magic,
            segment_size,
            page_size,
        })
    }

    /// The layout that a segment's first page tells.
    pub fn of(first: &FirstPage) -> Result<Self, LayoutError> {
        let magic = first.header.page.magic;
        let version = first.version.ok_or(LayoutError::NewerMagic(magic))?;
        Self::new(version, first.header.segment_size, first.header.page_size)
    }

    /// The major that wrote the WAL.
    pub const fn version(self) -> MajorVersion {
        self.version
    }

    /// The cluster's segment size.
    pub const fn segment_size(self) -> SegmentSize {
        self.segment_size
    }

    /// The cluster's WAL page size in bytes.
    pub const fn page_size(self) -> u32 {
        self.page_size
    }

    /// How many bytes lie between `at` and the end of its page; a whole page's where it is a page's first byte.
    pub(super) fn rest_of_page(self, at: Lsn) -> usize {
        (u64::from(self.page_size) - self.offset_in_page(at)) as usize
    }

    pub(super) fn is_page_start(self, at: Lsn) -> bool {
        self.offset_in_page(at) == 0
    }

    /// A page's size is a power of two.
    fn offset_in_page(self, at: Lsn) -> u64 {
        at.bytes() & (u64::from(self.page_size) - 1)
    }

    fn is_segment_start(self, at: Lsn) -> bool {
        self.segment_size.offset(at) == 0
    }

    /// How many bytes the header of the page takes that begins at `at`.
    pub(super) fn header_bytes(self, at: Lsn) -> usize {
        if self.is_segment_start(at) {
            LongHeader::BYTES
        } else {
            PageHeader::BYTES
        }
    }
}

/// Why WAL can't be read, though it may be sound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// What this major writes is not known.
    #[error("the WAL of PostgreSQL {0} is not known to this program, which knows up to {newest}", newest = MajorVersion::NEWEST_KNOWN)]
    NewerVersion(MajorVersion),
    /// Written by a major that is not known.
    #[error("the page magic {0:#06X} is of a PostgreSQL newer than {newest}, the newest known to this program", newest = MajorVersion::NEWEST_KNOWN)]
    NewerMagic(u16),
    /// No PostgreSQL has pages of this size.
    #[error("{0} bytes is not a WAL page size: it is a power of two from 1 KiB to 64 KiB")]
    PageSize(u32),
}

impl Explain for LayoutError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NewerVersion(_) | Self::NewerMagic(_) => {
                Some("its WAL can be archived and restored, but not read; use a newer pgp-pitr for that.".to_owned())
            }
            Self::PageSize(_) => None,
        }
    }
}

/// Why a page is not the one that belongs at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageFault {
    /// Not a page of this major; zero where nothing was written yet.
    #[error("has the magic {0:#06X}")]
    Magic(u16),
    /// Flags that no known major sets.
    #[error("has the unknown flags {0:#06X}")]
    Flags(u16),
    /// A short header where a segment begins, or a long one elsewhere.
    #[error("has a header of the wrong length")]
    HeaderLength,
    /// Segment or page size are not the cluster's.
    #[error("tells other sizes of segments and pages than the cluster's")]
    Sizes,
    /// Written by another cluster than the pages before.
    #[error("is of the cluster {0}")]
    OtherCluster(SystemId),
    /// An old page, in a recycled segment for example.
    #[error("tells the address {0}")]
    Address(Lsn),
    /// Timeline zero.
    #[error("tells no timeline")]
    NoTimeline,
    /// An older timeline than the page before.
    #[error("is of timeline {found}, after one of timeline {before}")]
    TimelineBack {
        /// That of the page before.
        before: Timeline,
        /// That of this page.
        found: Timeline,
    },
    /// A timeline that comes after the one that is read.
    #[error("is of timeline {found}, later than {newest}")]
    TimelineAhead {
        /// The newest that may occur.
        newest: Timeline,
        /// That of this page.
        found: Timeline,
    },
}

/// What pages so far have told, and so what the next one must.
#[derive(Debug, Clone)]
pub(super) struct PageRules {
    layout: WalLayout,
    system: Option<SystemId>,
    current: Option<Timeline>,
    newest: Option<Timeline>,
}

impl PageRules {
    pub(super) const fn new(layout: WalLayout) -> Self {
        Self {
            layout,
            system: None,
            current: None,
            newest: None,
        }
    }

    /// From now on no page may be of a later timeline.
    pub(super) const fn allow_up_to(&mut self, newest: Timeline) {
        self.newest = Some(newest);
    }

    /// The timeline of the last page admitted.
    pub(super) const fn timeline(&self) -> Option<Timeline> {
        self.current
    }

    /// Judges the page that begins at `at`. `header` holds as many bytes as `WalLayout::header_bytes` tells.
    pub(super) fn admit(&mut self, at: Lsn, header: &[u8]) -> Result<PageHeader, PageFault> {
        let page = PageHeader::parse(header).map_err(|_| PageFault::HeaderLength)?;
        if page.magic != self.layout.magic {
            return Err(PageFault::Magic(page.magic));
        }
        if page.has_unknown_flags() {
            return Err(PageFault::Flags(page.flags));
        }
        if page.is_long() != self.layout.is_segment_start(at) {
            return Err(PageFault::HeaderLength);
        }
        let system = if page.is_long() {
            Some(self.admit_long(header)?)
        } else {
            self.system
        };
        if page.address != at {
            return Err(PageFault::Address(page.address));
        }
        self.current = Some(self.admit_timeline(page.timeline)?);
        self.system = system;
        Ok(page)
    }

    fn admit_long(&self, header: &[u8]) -> Result<SystemId, PageFault> {
        let long = LongHeader::parse(header).map_err(|_| PageFault::Sizes)?;
        if (long.segment_size, long.page_size) != (self.layout.segment_size, self.layout.page_size) {
            return Err(PageFault::Sizes);
        }
        match self.system {
            Some(system) if system != long.system => Err(PageFault::OtherCluster(long.system)),
            _ => Ok(long.system),
        }
    }

    fn admit_timeline(&self, found: Option<Timeline>) -> Result<Timeline, PageFault> {
        let found = found.ok_or(PageFault::NoTimeline)?;
        if let Some(before) = self.current.filter(|&before| found < before) {
            return Err(PageFault::TimelineBack { before, found });
        }
        if let Some(newest) = self.newest.filter(|&newest| found > newest) {
            return Err(PageFault::TimelineAhead { newest, found });
        }
        Ok(found)
    }
}
