//! Reading WAL itself out of the repository, where indexes don't tell what recovery meets in it.

use std::io::{self, Write};

use crate::catalog::StoredSegment;
use crate::error::Failure;
use crate::pg::{Lsn, Timeline};
use crate::plan::search::Stretch;
use crate::repo::{self, ClusterInfo, Fetched, RepoError, Repository};
use crate::wal::{RecoveryEvents, WalLayout, Walked};

/// What the records tell that begin in these segments, which follow each other, and end at `until` or before.
pub(super) async fn stretch(
    repository: &Repository,
    cluster: &ClusterInfo,
    segments: &[(Timeline, StoredSegment)],
    until: Lsn,
) -> Result<Stretch, Failure> {
    let Some((_, first)) = segments.first() else {
        return Ok(Stretch::default());
    };
    let unreadable = |why: String| RepoError::Damaged {
        object: format!("the WAL of cluster {}", cluster.system),
        why,
    };
    let layout = WalLayout::new(cluster.major, cluster.segment_size, cluster.wal_page_size);
    let layout = layout.map_err(|error| unreadable(error.to_string()))?;
    let start = first.number.start(cluster.segment_size);
    let mut sink = Until {
        events: RecoveryEvents::new(start, layout),
        at: start,
        until,
        stretch: Stretch::default(),
        ended: false,
    };
    for segment in segments {
        sink.events.allow_timelines_up_to(segment.0);
        let file = segment.1.file(segment.0, cluster.segment_size);
        if repo::fetch_segment(repository, cluster, file, &mut sink).await? == Fetched::Missing {
            return Err(unreadable(format!("{file} was there a moment ago and is gone")).into());
        }
    }
    sink.stretch.extent = sink.events.extent();
    Ok(sink.stretch)
}

/// Decodes what is written to it, up to some place.
struct Until {
    events: RecoveryEvents,
    at: Lsn,
    until: Lsn,
    stretch: Stretch,
    ended: bool,
}

impl Write for Until {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.until.bytes().saturating_sub(self.at.bytes());
        let wanted = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        if self.ended || wanted.is_empty() {
            // The rest is still read, because its checksum is.
            return Ok(bytes.len());
        }
        self.events.push(self.at, wanted).map_err(io::Error::other)?;
        self.at = self.at.plus(wanted.len() as u64);
        loop {
            match self.events.walk() {
                Ok(Walked::NeedMore) => return Ok(bytes.len()),
                Ok(Walked::Event(event)) => self.stretch.events.push(event),
                Ok(Walked::EndOfWal { .. }) => {
                    self.ended = true;
                    return Ok(bytes.len());
                }
                // Passed over by the index as well, and told by it.
                Err(_) => {}
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
