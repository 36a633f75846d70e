//! The moment at a position, from the WAL that the server itself has fetched: it needs neither a login nor
//! the repository.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

use chrono::{DateTime, Utc};

use crate::pg::{Lsn, MajorVersion, SegmentNumber, SegmentSize, Timeline};
use crate::wal::{EventKind, RecoveryEvents, WalLayout, Walked};

/// More than this is never read for one answer: with segments of a gigabyte the moment stays unknown
/// until the server answers SQL.
const MOST: u64 = 256 << 20;
/// One buffer for files of any size.
const BUFFER: usize = 256 << 10;

/// Reads along behind the server, each byte once.
pub(super) struct LocalWal {
    layout: Option<WalLayout>,
    size: SegmentSize,
    reader: Option<Reader>,
}

struct Reader {
    events: RecoveryEvents,
    at: Lsn,
    timeline: Timeline,
    last_commit: Option<DateTime<Utc>>,
    /// Nothing more can be read in this segment.
    stuck: bool,
}

impl LocalWal {
    pub(super) fn new(major: MajorVersion, size: SegmentSize, page_size: u32) -> Self {
        Self {
            layout: WalLayout::new(major, size, page_size).ok(),
            size,
            reader: None,
        }
    }

    /// The last commit before a position, as far as the segment that it ends in tells.
    pub(super) fn last_commit(&mut self, directory: &Path, timeline: Timeline, lsn: Lsn) -> Option<DateTime<Utc>> {
        let layout = self.layout?;
        let segment = SegmentNumber::ending(lsn, self.size);
        let goes_on = |reader: &Reader| {
            reader.timeline == timeline
                && reader.at <= lsn
                && lsn.since(reader.at) <= MOST
                && !(reader.stuck && reader.at <= segment.start(self.size))
        };
        if !self.reader.as_ref().is_some_and(goes_on) {
            let start = segment.start(self.size);
            self.reader = (lsn.since(start) <= MOST).then(|| Reader {
                events: RecoveryEvents::new(start, layout),
                at: start,
                timeline,
                last_commit: None,
                stuck: false,
            });
        }
        let reader = self.reader.as_mut()?;
        while reader.at < lsn && !reader.stuck {
            let segment = SegmentNumber::holding(reader.at, self.size);
            let until = segment.end(self.size).min(lsn);
            let name = segment.name(timeline, self.size).to_string();
            let path = directory.join("pg_wal").join(name);
            reader.stuck = reader.read(&path, self.size, until).is_break();
        }
        reader.last_commit
    }
}

impl Reader {
    /// Reads on in one segment's file. Breaks off where there is no more to be had from it.
    fn read(&mut self, path: &Path, size: SegmentSize, until: Lsn) -> ControlFlow<()> {
        let Ok(mut file) = File::open(path) else {
            return ControlFlow::Break(());
        };
        if file.seek(SeekFrom::Start(size.offset(self.at))).is_err() {
            return ControlFlow::Break(());
        }
        self.events.allow_timelines_up_to(self.timeline);
        let mut buffer = vec![0; BUFFER];
        while self.at < until {
            let wanted = usize::try_from(until.since(self.at)).unwrap_or(BUFFER).min(BUFFER);
            let read = match file.read(&mut buffer[..wanted]) {
                Ok(read) if read > 0 => read,
                _ => return ControlFlow::Break(()),
            };
            if self.events.push(self.at, &buffer[..read]).is_err() {
                return ControlFlow::Break(());
            }
            self.at = self.at.plus(read as u64);
            self.walk()?;
        }
        ControlFlow::Continue(())
    }

    fn walk(&mut self) -> ControlFlow<()> {
        loop {
            match self.events.walk() {
                Ok(Walked::NeedMore) => return ControlFlow::Continue(()),
                Ok(Walked::EndOfWal { .. }) => return ControlFlow::Break(()),
                Ok(Walked::Event(event)) => {
                    if let EventKind::Commit(commit) = event.kind {
                        self.last_commit = Some(commit.at);
                    }
                }
                // A record of no known meaning is passed over.
                Err(_) => {}
            }
        }
    }
}
