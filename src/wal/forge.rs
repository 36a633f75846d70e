//! WAL made up by tests: the other direction of the decoder, with its own reading of the format.

use super::decoder::{Step, WalDecoder};
use super::page::WalLayout;
use super::record::Record;
use crate::pg::{Lsn, MajorVersion, SegmentSize, Timeline};

/// A layout with small pages and segments, so that little WAL crosses many borders.
pub(super) fn layout(major: u16) -> WalLayout {
    let version = MajorVersion::new(major).unwrap();
    WalLayout::new(version, SegmentSize::new(1 << 20).unwrap(), 1024).unwrap()
}

/// A record as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    pub(super) bytes: Vec<u8>,
}

/// Writes records one after the other.
#[derive(Debug, Clone)]
pub(super) struct Forge {
    layout: WalLayout,
    pub(super) timeline: Timeline,
    pub(super) system: u64,
    pub(super) start: Lsn,
    pub(super) wal: Vec<u8>,
    pub(super) written: Vec<Written>,
    previous: u64,
    overwrites: bool,
}

impl Forge {
    /// Begins at a page's start.
    pub(super) fn new(layout: WalLayout, start: Lsn) -> Self {
        Self {
            layout,
            timeline: Timeline::FIRST,
            system: 7,
            start,
            wal: Vec::new(),
            written: Vec::new(),
            previous: start.bytes() - 64,
            overwrites: false,
        }
    }

    /// Begins `pages` pages before the third segment.
    pub(super) fn before_a_segment(layout: WalLayout, pages: u64) -> Self {
        let border = 3 * layout.segment_size().bytes();
        Self::new(layout, Lsn::new(border - pages * u64::from(layout.page_size())))
    }

    pub(super) fn at(&self) -> Lsn {
        self.start.plus(self.wal.len() as u64)
    }

    fn begin_page(&mut self, remaining: u32) {
        let at = self.at();
        let first = self.layout.segment_size().offset(at) == 0;
        let overwrites = std::mem::take(&mut self.overwrites);
        let flags = u16::from(remaining > 0) | u16::from(first) << 1 | u16::from(overwrites) << 3;
        let magic = self.layout.version().page_magic().unwrap();
        self.wal.extend(magic.to_le_bytes());
        self.wal.extend(flags.to_le_bytes());
        self.wal.extend(self.timeline.number().to_le_bytes());
        self.wal.extend(at.bytes().to_le_bytes());
        self.wal.extend(u64::from(remaining).to_le_bytes());
        if first {
            self.wal.extend(self.system.to_le_bytes());
            self.wal
                .extend((self.layout.segment_size().bytes() as u32).to_le_bytes());
            self.wal.extend(self.layout.page_size().to_le_bytes());
        }
    }

    /// Writes a record whose bytes after the header are these. Returns where it begins and ends.
    pub(super) fn record(&mut self, manager: u8, info: u8, xid: u32, body: &[u8]) -> Written {
        if self.layout.is_page_start(self.at()) {
            self.begin_page(0);
        }
        let start = self.at();
        let mut bytes = Vec::new();
        bytes.extend((24 + body.len() as u32).to_le_bytes());
        bytes.extend(xid.to_le_bytes());
        bytes.extend(self.previous.to_le_bytes());
        bytes.extend([info, manager, 0, 0]);
        let checked = [body, &bytes].concat();
        bytes.extend(crc_fast::crc32_iscsi(&checked).to_le_bytes());
        bytes.extend(body);
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            if self.layout.is_page_start(self.at()) {
                self.begin_page(left.len() as u32);
            }
            let room = self.layout.rest_of_page(self.at()).min(left.len());
            self.wal.extend(&left[..room]);
            left = &left[room..];
        }
        self.wal.resize(self.wal.len().next_multiple_of(8), 0);
        self.previous = start.bytes();
        let written = Written {
            start,
            end: self.at(),
            bytes,
        };
        self.written.push(written.clone());
        written
    }

    /// A record with nothing but main data.
    pub(super) fn with_main(&mut self, manager: u8, info: u8, xid: u32, main: &[u8]) -> Written {
        self.record(manager, info, xid, &main_data(main))
    }

    /// Ends the segment.
    pub(super) fn switch(&mut self) {
        self.record(0, 0x40, 0, &[]);
        let end = self.at().bytes().next_multiple_of(self.layout.segment_size().bytes());
        self.wal.resize((end - self.start.bytes()) as usize, 0);
        self.written.last_mut().unwrap().end = Lsn::new(end);
    }

    /// Cuts the WAL off at a page border, as a crash does, and goes on there as the server would: the last record,
    /// which crosses that border, never was.
    pub(super) fn crash(&mut self, border: Lsn) {
        assert!(self.layout.is_page_start(border));
        let lost = self.written.pop().unwrap();
        assert!(lost.start < border && border < lost.end);
        self.previous = self.written.last().unwrap().start.bytes();
        self.wal.truncate((border.bytes() - self.start.bytes()) as usize);
        self.overwrites = true;
        let main = [lost.start.bytes().to_le_bytes(), [0; 8]].concat();
        self.with_main(0, 0xD0, 0, &main);
    }
}

/// Main data with its header.
pub(super) fn main_data(main: &[u8]) -> Vec<u8> {
    match u8::try_from(main.len()) {
        Ok(0) => Vec::new(),
        Ok(length) => [&[255, length], main].concat(),
        Err(_) => [&[254], (main.len() as u32).to_le_bytes().as_slice(), main].concat(),
    }
}

/// What is made of a record with nothing but this main data.
pub(super) fn meaning<T>(major: u16, kind: (u8, u8), xid: u32, main: &[u8], read: impl FnOnce(&Record<'_>) -> T) -> T {
    let layout = layout(major);
    let mut forge = Forge::before_a_segment(layout, 1);
    forge.with_main(kind.0, kind.1, xid, main);
    let mut decoder = WalDecoder::new(forge.start, layout);
    decoder.push(forge.start, &forge.wal).unwrap();
    let Step::Record(raw) = decoder.step() else {
        panic!("a record was written")
    };
    read(&Record::parse(&raw).unwrap())
}
