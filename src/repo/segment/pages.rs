//! Where the WAL of a part of a segment ends, page by page.

use std::io::{self, Write};

use crate::pg::{Lsn, PageHeader};

/// Passes on pages as long as each has the address that follows the one before, and nothing from then on: a segment that
/// was recycled carries old pages after the end of its WAL.
pub(super) struct OwnPages<'a, S: ?Sized> {
    sink: &'a mut S,
    page: Vec<u8>,
    page_bytes: usize,
    next: Lsn,
    ended: bool,
}

impl<'a, S: Write + ?Sized> OwnPages<'a, S> {
    /// For a segment that begins at `start`, with pages of so many bytes.
    pub(super) fn new(sink: &'a mut S, start: Lsn, page_bytes: u32) -> Self {
        Self {
            sink,
            page: Vec::with_capacity(page_bytes as usize),
            page_bytes: page_bytes as usize,
            next: start,
            ended: false,
        }
    }

    /// Where the pages end that were passed on.
    pub(super) const fn end(&self) -> Lsn {
        self.next
    }

    fn belongs(&self) -> bool {
        PageHeader::parse(&self.page).is_ok_and(|header| header.address == self.next)
    }
}

impl<S: Write + ?Sized> Write for OwnPages<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = bytes.len().min(self.page_bytes - self.page.len());
        self.page.extend_from_slice(&bytes[..take]);
        if self.page.len() == self.page_bytes {
            self.ended = self.ended || !self.belongs();
            if !self.ended {
                self.sink.write_all(&self.page)?;
                self.next = self.next.plus(self.page_bytes as u64);
            }
            self.page.clear();
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
