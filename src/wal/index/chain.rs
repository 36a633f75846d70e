//! From one segment's index to the next: whether the WAL goes on, and the records that cross the border.
//!
//! Neither segment has such a record whole. Both keep its first bytes on their side and the checksum of all of them,
//! from which the record's own checksum follows: CRCs of two stretches make that of both.

use crc_fast::{CrcAlgorithm, checksum, checksum_combine};

use super::super::decoder::{RawRecord, RecordHeader, Rest};
use super::super::events::{Event, EventKind, Extent};
use super::super::record::RecordError;
use super::super::rmgr::ResourceManager;
use super::super::xid::Xid;
use super::{Broken, SegmentIndex};
use crate::pg::{Lsn, MajorVersion};

/// A record that crosses from one segment into another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossed {
    start: Lsn,
    end: Lsn,
    version: MajorVersion,
    header: RecordHeader,
    bytes: Vec<u8>,
}

impl Crossed {
    /// Where it begins.
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// Where it ends, aligned to eight.
    pub const fn end(&self) -> Lsn {
        self.end
    }

    /// The transaction that wrote it.
    pub const fn xid(&self) -> Xid {
        self.header.xid
    }

    /// Whether all its bytes are known.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() == self.header.total as usize
    }

    /// The record, of which the end may be missing: see [`RawRecord::bytes`].
    pub fn raw(&self) -> RawRecord<'_> {
        RawRecord::of_parts(self.start, self.end, self.header, self.version, &self.bytes)
    }

    /// What it means to a recovery, and whether that can be told at all.
    pub fn event(&self) -> Result<Told, RecordError> {
        let tells = matches!(
            self.header.manager,
            ResourceManager::TRANSACTION
                | ResourceManager::XLOG
                | ResourceManager::DATABASE
                | ResourceManager::TABLESPACE
        );
        // A page's image is the one long record of its manager, and means nothing to a plan.
        let image = self.header.manager == ResourceManager::XLOG && matches!(self.header.info & 0xF0, 0xA0 | 0xB0);
        if !tells || image {
            return Ok(Told::Nothing);
        }
        if !self.is_whole() {
            return Ok(Told::TooLong);
        }
        Ok(match EventKind::of(&self.raw())? {
            None => Told::Nothing,
            Some(kind) => Told::Event(Event {
                lsn: self.start,
                end_lsn: self.end,
                previous: self.header.previous,
                kind,
            }),
        })
    }
}

/// What a record means to a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    Nothing,
    /// This.
    Event(Event),
    /// Something, and only the WAL itself tells what: too much of the record was not kept.
    TooLong,
}

/// What lies between two segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crossing {
    /// No record crosses, or none that has ended yet.
    Nothing,
    /// This record does.
    Record(Box<Crossed>),
}

/// Follows indexes of segments that follow each other.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// Where the next segment begins.
    next: Option<Lsn>,
    extent: Option<Extent>,
    pending: Option<Pending>,
    broken: Option<Broken>,
    /// Whether the segment that is followed holds nothing but padding behind the record that crosses into it.
    padded: bool,
}

/// A record of which the segments so far hold the beginning.
#[derive(Debug, Clone)]
struct Pending {
    start: Lsn,
    version: MajorVersion,
    total: u32,
    got: u32,
    bytes: Vec<u8>,
    /// Of all bytes behind the header.
    crc: u32,
}

impl Chain {
    /// How far the WAL goes that was followed; `None` before the first whole record.
    pub const fn extent(&self) -> Option<Extent> {
        self.extent
    }

    /// Where it breaks off; nothing after that place can be replayed.
    pub const fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    /// Follows the next segment's index: the record that crosses into it is returned, what the index tells comes after
    /// that. Where this finds that the WAL breaks off between the two, [`Self::broken`] tells it and nothing of the
    /// index counts. `segment_bytes` is the cluster's segment size, in bytes.
    pub fn follow(&mut self, index: &SegmentIndex, segment_bytes: u64) -> Crossing {
        if self.broken.is_some() {
            return Crossing::Nothing;
        }
        if self.next.is_some_and(|next| next != index.start) {
            self.breaks(index.start, "a segment before it is missing");
            return Crossing::Nothing;
        }
        let first_of_all = self.next.is_none();
        self.next = Some(index.start.plus(segment_bytes));
        self.padded = false;
        let crossing = self.cross(index, first_of_all, segment_bytes);
        if self.broken.is_some() {
            return Crossing::Nothing;
        }
        if let (Some(first), Some(extent)) = (&index.first, self.extent)
            && first.previous != extent.last_record
        {
            self.breaks(
                first.lsn,
                "the record there does not follow the last one of the segment before",
            );
            return crossing;
        }
        self.extent = index.extent.or(self.extent);
        if let Some(begun) = &index.begun {
            self.pending = Some(Pending {
                start: begun.start,
                version: index.version,
                total: begun.total,
                got: begun.got,
                bytes: begun.bytes.clone(),
                crc: begun.crc,
            });
        }
        self.broken = index.broken.clone().filter(|_| !self.padded);
        crossing
    }

    fn cross(&mut self, index: &SegmentIndex, first_of_all: bool, segment_bytes: u64) -> Crossing {
        match (self.pending.take(), &index.rest) {
            (None, None) => Crossing::Nothing,
            // The beginning is in a segment that was not asked for.
            (None, Some(_)) if first_of_all => Crossing::Nothing,
            (None, Some(rest)) if !rest.ends() || self.extent.is_none() => Crossing::Nothing,
            (None, Some(_)) => {
                self.breaks(index.start, "the page there continues a record that was not begun");
                Crossing::Nothing
            }
            // A server began anew there, and the record never was.
            (Some(_), _) if index.overwrites => Crossing::Nothing,
            (Some(pending), None) => {
                self.breaks(pending.start, "the segment after it does not continue the record there");
                Crossing::Nothing
            }
            (Some(pending), Some(rest)) if rest.left != pending.total - pending.got => {
                self.breaks(
                    pending.start,
                    "the segment after it continues the record there with another length",
                );
                Crossing::Nothing
            }
            (Some(mut pending), Some(rest)) => {
                pending.take(rest);
                if pending.got < pending.total {
                    self.pending = Some(pending);
                    return Crossing::Nothing;
                }
                self.complete(pending, rest.end, index.start.plus(segment_bytes))
            }
        }
    }

    fn complete(&mut self, pending: Pending, end: Lsn, segment_end: Lsn) -> Crossing {
        let Some(header) = RecordHeader::parse(&pending.bytes) else {
            self.breaks(pending.start, "the header of the record there is not known");
            return Crossing::Nothing;
        };
        let head = checksum(CrcAlgorithm::Crc32Iscsi, &pending.bytes[..RecordHeader::CHECKED]);
        let crc = checksum_combine(
            CrcAlgorithm::Crc32Iscsi,
            pending.crc.into(),
            head,
            RecordHeader::CHECKED as u64,
        );
        if crc != u64::from(header.crc) {
            self.breaks(pending.start, "the record's checksum is wrong");
            return Crossing::Nothing;
        }
        if let Some(extent) = self.extent.filter(|extent| extent.last_record != header.previous) {
            let why = format!(
                "the record there follows one at {}, not {}",
                header.previous, extent.last_record
            );
            self.breaks(pending.start, &why);
            return Crossing::Nothing;
        }
        // Behind a switch there is padding up to the segment's end, and no more records.
        let end = if header.is_switch() { segment_end } else { end };
        self.padded = header.is_switch();
        self.extent = Some(Extent {
            last_record: pending.start,
            end,
        });
        Crossing::Record(Box::new(Crossed {
            start: pending.start,
            end,
            version: pending.version,
            header,
            bytes: pending.bytes,
        }))
    }

    fn breaks(&mut self, at: Lsn, why: &str) {
        self.broken = Some(Broken {
            at,
            unwritten: false,
            why: why.to_owned(),
        });
    }
}

impl Pending {
    /// Adds what the next segment has of it. The header's bytes are not part of the sum, and the first segment may lack
    /// some of them.
    fn take(&mut self, rest: &Rest) {
        let head = RecordHeader::BYTES
            .saturating_sub(self.got as usize)
            .min(rest.got as usize);
        let body = u64::from(rest.got) - head as u64;
        let known = rest.bytes.get(..head).unwrap_or_default();
        let crc = match head {
            0 => u64::from(rest.crc),
            // The sum of both stretches, and of the first, give that of the second.
            _ => checksum_combine(
                CrcAlgorithm::Crc32Iscsi,
                checksum(CrcAlgorithm::Crc32Iscsi, known),
                rest.crc.into(),
                body,
            ),
        };
        self.crc = checksum_combine(CrcAlgorithm::Crc32Iscsi, self.crc.into(), crc, body) as u32;
        if self.bytes.len() == self.got as usize {
            self.bytes.extend_from_slice(&rest.bytes);
        }
        self.got += rest.got;
    }
}
