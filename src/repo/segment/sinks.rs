//! What the bytes of a segment pass through on their way.

use std::io::{self, Write};

use super::SegmentFile;
use crate::codec::{Digest, Hasher};
use crate::pg::{Lsn, SegmentNumber, Timeline};
use crate::repo::{ClusterInfo, RepoError};
use crate::wal::{RecoveryEvents, WalLayout, Walked};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Makes a segment's part as long as the segment.
pub(super) struct Padded<'a, S: ?Sized> {
    sink: &'a mut S,
    left: u64,
}

impl<'a, S: Write + ?Sized> Padded<'a, S> {
    pub(super) const fn new(sink: &'a mut S, bytes: u64) -> Self {
        Self { sink, left: bytes }
    }

    /// Where the bytes go, without being counted.
    pub(super) const fn inner(&mut self) -> &mut S {
        self.sink
    }

    /// Writes the zeros that are wanting.
    pub(super) fn finish(mut self, file: SegmentFile) -> Result<(), RepoError> {
        while self.left > 0 {
            let take = self.left.min(ZEROS.len() as u64) as usize;
            self.write_all(&ZEROS[..take]).map_err(|source| RepoError::File {
                doing: "write",
                file: file.to_string(),
                source,
            })?;
        }
        Ok(())
    }
}

impl<S: Write + ?Sized> Write for Padded<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(bytes)?;
        self.left = self.left.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Passes on what comes behind a beginning that was written before, and holds that against its digest: pieces are bytes
/// of the whole segment, or else of another history.
pub(super) struct Rest<'a, S: ?Sized> {
    sink: &'a mut S,
    before: u64,
    hasher: Hasher,
    digest: Digest,
}

impl<'a, S: Write + ?Sized> Rest<'a, S> {
    /// Behind so many bytes with this digest.
    pub(super) fn behind(sink: &'a mut S, before: u64, digest: Digest) -> Self {
        Self {
            sink,
            before,
            hasher: Hasher::default(),
            digest,
        }
    }
}

impl<S: Write + ?Sized> Write for Rest<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.before == 0 {
            return self.sink.write(bytes);
        }
        let take = self.before.min(bytes.len() as u64) as usize;
        self.hasher.update(&bytes[..take]);
        self.before -= take as u64;
        if self.before == 0 && self.hasher.digest() != self.digest {
            return Err(io::Error::other("the whole segment has other bytes than its pieces"));
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Finds where the last whole record ends.
pub(super) struct Measure {
    /// `None` where this version can't read the WAL, and behind its end.
    events: Option<RecoveryEvents>,
    at: Lsn,
    records: Option<Lsn>,
}

impl Measure {
    pub(super) fn new(cluster: &ClusterInfo, number: SegmentNumber, timeline: Timeline) -> Self {
        let at = number.start(cluster.segment_size);
        let layout = WalLayout::new(cluster.major, cluster.segment_size, cluster.wal_page_size);
        let events = layout.ok().map(|layout| {
            let mut events = RecoveryEvents::new(at, layout);
            events.allow_timelines_up_to(timeline);
            events
        });
        Self {
            events,
            at,
            records: None,
        }
    }

    pub(super) const fn records(&self) -> Option<Lsn> {
        self.records
    }
}

impl Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(events) = &mut self.events else {
            return Ok(bytes.len());
        };
        events.push(self.at, bytes).map_err(io::Error::other)?;
        self.at = self.at.plus(bytes.len() as u64);
        let ended = loop {
            match events.walk() {
                Ok(Walked::NeedMore) => break false,
                Ok(Walked::EndOfWal { .. }) => break true,
                // What can't be understood is whole all the same.
                Ok(Walked::Event(_)) | Err(_) => {}
            }
        };
        self.records = events.extent().map(|extent| extent.end);
        if ended {
            self.events = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
