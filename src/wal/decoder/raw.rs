//! One record as it stands in the WAL, and the header that each begins with.

use super::super::cursor::Cursor;
use super::super::rmgr::ResourceManager;
use super::super::xid::Xid;
use super::super::xlog::SWITCH;
use crate::pg::{Lsn, MajorVersion};

/// `XLogRecord`, the first bytes of every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::wal) struct RecordHeader {
    pub(in crate::wal) total: u32,
    pub(in crate::wal) xid: Xid,
    pub(in crate::wal) previous: Lsn,
    pub(in crate::wal) info: u8,
    pub(in crate::wal) manager: ResourceManager,
    pub(in crate::wal) crc: u32,
}

impl RecordHeader {
    /// How many bytes it takes.
    pub(in crate::wal) const BYTES: usize = 24;
    /// How many of them the checksum covers: all before the checksum itself.
    pub(in crate::wal) const CHECKED: usize = 20;

    /// Whether the rest of the segment is padding behind this record.
    pub(in crate::wal) fn is_switch(&self) -> bool {
        self.manager == ResourceManager::XLOG && self.info & 0xF0 == SWITCH
    }

    /// Reads the header from the first bytes of `record`; `None` where there are too few.
    pub(in crate::wal) fn parse(record: &[u8]) -> Option<Self> {
        let mut fields = Cursor::new(record);
        let total = fields.u32()?;
        let xid = Xid::new(fields.u32()?);
        let previous = Lsn::new(fields.u64()?);
        let info = fields.u8()?;
        let manager = ResourceManager::new(fields.u8()?);
        let _padding = fields.u16()?;
        let crc = fields.u32()?;
        Some(Self {
            total,
            xid,
            previous,
            info,
            manager,
            crc,
        })
    }
}

/// A whole record, checksum verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawRecord<'a> {
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    pub(super) header: RecordHeader,
    pub(super) version: MajorVersion,
    pub(super) bytes: &'a [u8],
}

impl<'a> RawRecord<'a> {
    /// A record that was put together elsewhere, and its checksum verified there.
    pub(in crate::wal) const fn of_parts(
        start: Lsn,
        end: Lsn,
        header: RecordHeader,
        version: MajorVersion,
        bytes: &'a [u8],
    ) -> Self {
        Self {
            start,
            end,
            header,
            version,
            bytes,
        }
    }

    /// Where its first byte lies: what the server calls the record's LSN (`ReadRecPtr`).
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// Where reading goes on (`EndRecPtr`): after its last byte, aligned to eight; after a switch, the next segment.
    /// A page header at that place still comes before the next record.
    pub const fn end(&self) -> Lsn {
        self.end
    }

    /// The start of the record before it; zero for the first of a cluster.
    pub const fn previous(&self) -> Lsn {
        self.header.previous
    }

    /// The transaction that wrote it, [`Xid::NONE`] where none did.
    pub const fn xid(&self) -> Xid {
        self.header.xid
    }

    /// Who replays it.
    pub const fn manager(&self) -> ResourceManager {
        self.header.manager
    }

    /// `xl_info`: the upper four bits say which kind of record of its resource manager it is.
    pub const fn info(&self) -> u8 {
        self.header.info
    }

    /// Its length in bytes, page headers between its parts not counted (`xl_tot_len`).
    pub const fn length(&self) -> u32 {
        self.header.total
    }

    /// The major that wrote it.
    pub const fn version(&self) -> MajorVersion {
        self.version
    }

    /// Its bytes from the header on. All of them, save in a record longer than [`super::WalDecoder::KEPT`], of which
    /// only that many are there; the checksum covered the others.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}
