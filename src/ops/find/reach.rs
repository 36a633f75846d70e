//! From where to where the WAL reaches in which nothing was found.

use chrono::{DateTime, Utc};

use super::scan::Line;
use super::window::{TIMELESS, core, times};
use crate::catalog::StoredSegment;
use crate::error::Failure;
use crate::pg::{Lsn, Timeline};
use crate::repo::{ClusterInfo, Repository};

/// The WAL that there is of a timeline, gaps included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The timeline.
    pub timeline: Timeline,
    /// Where its first segment begins, or where it left another timeline.
    pub from: Lsn,
    /// Where its last segment ends, or the pieces of that.
    pub to: Lsn,
    /// The earliest time that its first segments tell, and the latest of its last ones.
    pub times: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

/// That of each timeline that is searched.
pub(super) async fn of(repository: &Repository, info: &ClusterInfo, lines: &[Line]) -> Result<Vec<Reach>, Failure> {
    let mut all = Vec::new();
    for line in lines {
        let (Some(first), Some(last)) = (line.segments.first(), line.segments.last()) else {
            continue;
        };
        let size = info.segment_size;
        let early = nearest(repository, info, line, line.segments.iter()).await?;
        let late = nearest(repository, info, line, line.segments.iter().rev()).await?;
        all.push(Reach {
            timeline: line.timeline,
            from: first.number.start(size).max(line.floor),
            to: match line.last == Some(last.number) {
                true => line.end,
                false => last.number.end(size),
            },
            times: early.map(|(earliest, _)| earliest).zip(late.map(|(_, latest)| latest)),
        });
    }
    Ok(all)
}

/// What the first segment that tells times tells.
async fn nearest(
    repository: &Repository,
    info: &ClusterInfo,
    line: &Line,
    segments: impl Iterator<Item = &StoredSegment>,
) -> Result<Option<(DateTime<Utc>, DateTime<Utc>)>, Failure> {
    for segment in segments.take(TIMELESS) {
        let core = core(repository, info, line.timeline, segment).await?;
        if let Some(times) = core.as_ref().and_then(times) {
            return Ok(Some(times));
        }
    }
    Ok(None)
}
