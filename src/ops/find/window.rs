//! Which segments a window of time lies in, by what their indexes tell.

use std::collections::BTreeSet;

use chrono::{DateTime, Duration, Utc};
use futures_util::{StreamExt, stream};

use super::scan::Line;
use crate::catalog::StoredSegment;
use crate::error::{Class, Explain, Failure};
use crate::pg::{SegmentNumber, Timeline};
use crate::repo::{self, ClusterInfo, Repository};
use crate::wal::RelFile;
use crate::wal::index::SegmentIndex;

/// How far around a moment.
pub(super) const AROUND: Duration = Duration::minutes(2);
/// Of more segments than this, those that a window of time is in are found by halving; times in the WAL are nearly in
/// order.
const ALL: usize = 8192;
/// So many more are looked at on each side then.
const MARGIN: usize = 256;
/// Segments without a time that are passed over while halving.
pub(super) const TIMELESS: usize = 64;
/// Indexes that are read at a time.
const AT_ONCE: usize = 32;

/// What matters of a segment before it is searched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Brief {
    pub(super) timeline: Timeline,
    pub(super) number: SegmentNumber,
    /// The earliest and the latest time that it tells.
    pub(super) times: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Whether transactions end in it.
    pub(super) ends: bool,
    /// Whether rows of the relation asked for were changed in it.
    pub(super) touched: bool,
}

impl Brief {
    fn of(timeline: Timeline, number: SegmentNumber, core: &SegmentIndex, files: Option<&BTreeSet<RelFile>>) -> Self {
        let (earliest, latest) = times(core).unzip();
        let touched = |files: &BTreeSet<RelFile>| {
            let mut changed = core.relations.iter().filter(|activity| activity.rows.all() > 0);
            core.left_out.relations > 0 || changed.any(|activity| files.contains(&activity.file))
        };
        Self {
            timeline,
            number,
            times: earliest.zip(latest),
            ends: core.ends.commits + core.ends.aborts > 0,
            touched: files.is_some_and(touched),
        }
    }

    /// Whether something in it may be between two moments.
    pub(super) fn overlaps(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> bool {
        self.times
            .is_some_and(|(earliest, latest)| earliest <= to && latest >= from)
    }
}

/// The earliest and the latest time that a segment tells.
pub(super) fn times(core: &SegmentIndex) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let told = core.events.iter().filter_map(|event| event.kind.at());
    let earliest = told.chain(core.ends.earliest_end).min()?;
    Some((earliest, core.ends.latest.unwrap_or(earliest).max(earliest)))
}

/// Looks at the indexes of all segments of a timeline. Damaged ones are passed over: the search tells of them.
pub(super) async fn survey(
    repository: &Repository,
    info: &ClusterInfo,
    line: &Line,
    files: Option<&BTreeSet<RelFile>>,
) -> Result<Vec<Brief>, Failure> {
    let timeline = line.timeline;
    let mut briefs = stream::iter(&line.segments)
        .map(|segment| async move { (segment.number, core(repository, info, timeline, segment).await) })
        .buffered(AT_ONCE);
    let mut found = Vec::new();
    while let Some((number, core)) = briefs.next().await {
        found.extend(core?.map(|core| Brief::of(timeline, number, &core, files)));
    }
    Ok(found)
}

/// A segment's index; `None`: it is damaged.
pub(super) async fn core(
    repository: &Repository,
    info: &ClusterInfo,
    timeline: Timeline,
    segment: &StoredSegment,
) -> Result<Option<SegmentIndex>, Failure> {
    let file = segment.file(timeline, info.segment_size);
    match repo::read_index(repository, info, file, segment.stored_bytes.into()).await {
        Ok(stored) => Ok(stored.map(|stored| stored.core)),
        Err(error) if error.class() == Class::Damaged => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes those segments away that are far from the moments between `from` and `to`.
pub(super) async fn narrow(
    repository: &Repository,
    info: &ClusterInfo,
    line: &mut Line,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> Result<(), Failure> {
    if line.segments.len() <= ALL {
        return Ok(());
    }
    let first = first(repository, info, line, &|_, latest| latest >= from).await?;
    let last = self::first(repository, info, line, &|earliest, _| earliest > to).await?;
    let kept = first.saturating_sub(MARGIN)..(last + MARGIN).min(line.segments.len());
    line.segments = line.segments[kept].to_vec();
    Ok(())
}

/// The first segment whose times fulfil a condition that all after it fulfil, too.
async fn first(
    repository: &Repository,
    info: &ClusterInfo,
    line: &Line,
    fulfils: &(dyn Fn(DateTime<Utc>, DateTime<Utc>) -> bool + Sync),
) -> Result<usize, Failure> {
    let (mut low, mut high) = (0, line.segments.len());
    while low < high {
        let middle = (low + high) / 2;
        let mut at = middle;
        let mut told = None;
        while told.is_none() && at < high && at < middle + TIMELESS {
            let core = core(repository, info, line.timeline, &line.segments[at]).await?;
            told = core.as_ref().and_then(times);
            at += 1;
        }
        match told {
            Some((earliest, latest)) if !fulfils(earliest, latest) => low = at,
            _ => high = middle,
        }
    }
    Ok(low)
}
