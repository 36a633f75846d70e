//! Reading WAL out of the repository, segment after segment, for what recovery meets in it.

use std::io::{self, Write};
use std::ops::ControlFlow;

use crate::catalog::StoredSegment;
use crate::error::{Class, Failure};
use crate::pg::{Lsn, SegmentNumber, Timeline, WalFileName};
use crate::repo::{self, ClusterInfo, Fetched, Repository};
use crate::wal::{EndReason, Event, Extent, RecoveryEvents, WalLayout, Walked};

/// How a walk came out.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// How far it came; `None` without one whole record.
    pub(super) extent: Option<Extent>,
    /// Whether it was ended by whoever looked on.
    pub(super) broken_off: bool,
    /// What ended it before its last segment's end.
    pub(super) ended: Option<(Lsn, EndReason)>,
    /// The first segment that is damaged or gone, and how: no server can fetch it.
    pub(super) unreadable: Option<(SegmentNumber, String)>,
    /// What could not be read, in words.
    pub(super) warnings: Vec<String>,
}

/// Walks through segments that follow each other and shows each event to `each`, until that says to
/// break off or the WAL ends.
pub(super) async fn walk(
    repository: &Repository,
    cluster: &ClusterInfo,
    layout: WalLayout,
    segments: &[(Timeline, StoredSegment)],
    each: &mut (dyn FnMut(&Event) -> ControlFlow<()> + Send),
) -> Result<Walk, Failure> {
    let mut walk = Walk::default();
    let Some((_, first)) = segments.first() else {
        return Ok(walk);
    };
    let start = first.number.start(cluster.segment_size);
    let mut sink = Sink {
        events: RecoveryEvents::new(start, layout),
        at: start,
        each,
        walk: &mut walk,
    };
    for (timeline, segment) in segments {
        sink.events.allow_timelines_up_to(*timeline);
        let name = segment.number.name(*timeline, cluster.segment_size);
        let file = if segment.partial {
            WalFileName::Partial(name)
        } else {
            WalFileName::Segment(name)
        };
        match repo::fetch(repository.store(), cluster.system, file, &mut sink).await {
            Ok(Fetched::Whole) => {}
            Ok(Fetched::Missing) => {
                let how = format!("{file} was there a moment ago and is gone");
                sink.walk.unreadable = Some((segment.number, how));
                break;
            }
            Err(error) if crate::error::Explain::class(&error) == Class::Damaged => {
                sink.walk.unreadable = Some((segment.number, crate::error::on_one_line(&error)));
                break;
            }
            Err(error) => return Err(error.into()),
        }
        if sink.walk.broken_off || sink.walk.ended.is_some() {
            break;
        }
    }
    walk.extent = sink.events.extent();
    Ok(walk)
}

/// Decodes what is written to it.
struct Sink<'a> {
    events: RecoveryEvents,
    at: Lsn,
    each: &'a mut (dyn FnMut(&Event) -> ControlFlow<()> + Send),
    walk: &'a mut Walk,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.walk.broken_off || self.walk.ended.is_some() {
            // The rest of the segment is still read, because its checksum is.
            return Ok(bytes.len());
        }
        self.events.push(self.at, bytes).map_err(io::Error::other)?;
        self.at = self.at.plus(bytes.len() as u64);
        loop {
            match self.events.walk() {
                Ok(Walked::NeedMore) => return Ok(bytes.len()),
                Ok(Walked::Event(event)) => {
                    if (self.each)(&event).is_break() {
                        self.walk.broken_off = true;
                        return Ok(bytes.len());
                    }
                }
                Ok(Walked::EndOfWal { at, why }) => {
                    self.walk.ended = Some((at, why));
                    return Ok(bytes.len());
                }
                Err(error) => self.walk.warnings.push(error.to_string()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
