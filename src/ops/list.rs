//! `list`: what is there, and which moments can be restored.

use std::ops::ControlFlow;

use chrono::{DateTime, Utc};

use super::walk::walk;
use crate::catalog::{Catalog, Run};
use crate::error::Failure;
use crate::pg::{Leg, Lsn, SegmentNumber, SystemId, Timeline, TimelineHistory};
use crate::repo::backup::{BackupId, BackupState};
use crate::repo::{ClusterInfo, Repository};
use crate::wal::{Event, EventKind, WalLayout};

/// How many segments before the last one are read for the last commit; an idle server may write many
/// without one.
const BACK: [u64; 3] = [0, 7, 63];

/// One cluster.
#[derive(Debug)]
pub struct Listing {
    /// All that is known of it.
    pub catalog: Catalog,
    /// Its WAL by timeline.
    pub wal: Vec<TimelineListing>,
    /// What can be restored.
    pub windows: Vec<Window>,
}

/// One timeline's WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineListing {
    /// The timeline.
    pub timeline: Timeline,
    /// Where its first segment begins.
    pub start: Lsn,
    /// Where its last segment ends.
    pub end: Lsn,
    /// How many segments there are.
    pub segments: usize,
    /// Size of their objects in bytes.
    pub stored_bytes: u64,
    /// Its last commit, where one was found near its end.
    pub last_commit_at: Option<DateTime<Utc>>,
    /// Stretches that are missing.
    pub gaps: Vec<(Lsn, Lsn)>,
}

/// A stretch of time, each moment of which can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The timeline to follow.
    pub timeline: Timeline,
    /// The first moment: the end of the backup.
    pub from: DateTime<Utc>,
    /// The last moment that the WAL tells of; the first where it tells of none.
    pub to: DateTime<Utc>,
    /// Where the backup is consistent.
    pub from_lsn: Lsn,
    /// Where the WAL ends.
    pub to_lsn: Lsn,
    /// The backup that opens it.
    pub backup: BackupId,
}

/// Lists every cluster, or the one that is named.
///
/// # Errors
/// The store.
pub async fn list(repository: &Repository, only: Option<SystemId>) -> Result<Vec<Listing>, Failure> {
    let mut listings = Vec::new();
    for system in ClusterInfo::systems(repository).await? {
        if only.is_some_and(|only| only != system) {
            continue;
        }
        let info = super::plan::choose_cluster(repository, Some(system)).await?;
        let catalog = Catalog::read(repository, info).await?;
        listings.push(one(repository, catalog).await?);
    }
    Ok(listings)
}

async fn one(repository: &Repository, mut catalog: Catalog) -> Result<Listing, Failure> {
    let size = catalog.info.segment_size;
    let mut wal = Vec::new();
    for timeline in catalog.wal.timelines().collect::<Vec<_>>() {
        let Some(stored) = catalog.wal.timeline(timeline) else {
            continue;
        };
        let (segments, stored_bytes) = (stored.segments().len(), stored.stored_bytes());
        let (Some(first), Some(last)) = (stored.runs().first().copied(), stored.runs().last().copied()) else {
            continue;
        };
        let gaps = stored
            .runs()
            .windows(2)
            .map(|pair| (pair[0].last.end(size), pair[1].first.start(size)))
            .collect();
        let alone = TimelineHistory::root(timeline).path();
        let end = tail_of(repository, &mut catalog, &alone, last).await?;
        wal.push(TimelineListing {
            timeline,
            start: first.first.start(size),
            end: last.last.end(size),
            segments,
            stored_bytes,
            last_commit_at: end.last_commit,
            gaps,
        });
    }
    let windows = windows(repository, &mut catalog).await?;
    Ok(Listing { catalog, wal, windows })
}

/// For each timeline, the stretches that its backups open; those that end at the same place are one.
async fn windows(repository: &Repository, catalog: &mut Catalog) -> Result<Vec<Window>, Failure> {
    let size = catalog.info.segment_size;
    let mut windows: Vec<Window> = Vec::new();
    for timeline in catalog.timelines() {
        let path = catalog.history(timeline).path();
        for (backup, last) in opening(catalog, &path) {
            let backup = catalog.backups[backup].clone();
            let first = SegmentNumber::holding(backup.start_lsn, size);
            let end = tail_of(repository, catalog, &path, Run { first, last }).await?;
            windows.push(Window {
                timeline,
                from: backup.stopped_at,
                to: end.last_commit.unwrap_or(backup.stopped_at).max(backup.stopped_at),
                from_lsn: backup.stop_lsn,
                to_lsn: end.lsn.unwrap_or(backup.stop_lsn).max(backup.stop_lsn),
                backup: backup.id,
            });
        }
    }
    Ok(windows)
}

/// The backups (by their place in the catalogue) that open a stretch of the path, each with the stretch's last segment.
fn opening(catalog: &Catalog, path: &[Leg]) -> Vec<(usize, SegmentNumber)> {
    let size = catalog.info.segment_size;
    let mut found: Vec<(usize, SegmentNumber)> = Vec::new();
    for (at, backup) in catalog.backups.iter().enumerate() {
        let usable = |leg: &Leg| leg.timeline == backup.timeline && leg.to.is_none_or(|to| backup.stop_lsn <= to);
        if backup.state == BackupState::Damaged || !path.iter().any(usable) {
            continue;
        }
        let Some(last) = catalog.wal.end_along(path, backup.start_lsn) else {
            continue;
        };
        let whole = last >= SegmentNumber::ending(backup.stop_lsn, size);
        if whole && found.iter().all(|(_, known)| *known != last) {
            found.push((at, last));
        }
    }
    found
}

#[derive(Default)]
struct Tail {
    lsn: Option<Lsn>,
    last_commit: Option<DateTime<Utc>>,
}

/// What the last segments tell.
async fn tail_of(repository: &Repository, catalog: &mut Catalog, path: &[Leg], run: Run) -> Result<Tail, Failure> {
    let info = catalog.info.clone();
    let mut tail = Tail::default();
    let Ok(layout) = WalLayout::new(info.major, info.segment_size, info.wal_page_size) else {
        return Ok(tail);
    };
    let Run { first, mut last } = run;
    let mut backs = BACK.iter().copied().peekable();
    while let Some(back) = backs.peek().copied() {
        let from = SegmentNumber::new(last.number().saturating_sub(back)).max(first);
        let segments = catalog.wal.between(path, from, last);
        let mut last_commit = None;
        let mut each = |event: &Event| {
            if let EventKind::Commit(commit) = event.kind {
                last_commit = last_commit.max(Some(commit.at));
            }
            ControlFlow::Continue(())
        };
        let walked = walk(repository, &info, layout, &segments, &mut each).await?;
        catalog.warnings.extend(walked.warnings);
        if let Some((damaged, how)) = walked.unreadable {
            // No server gets past it: what can be had ends before.
            catalog.warnings.push(how);
            if damaged <= first {
                return Ok(Tail::default());
            }
            last = SegmentNumber::new(damaged.number() - 1);
            continue;
        }
        tail = Tail {
            lsn: walked.extent.map(|extent| extent.end),
            last_commit,
        };
        if last_commit.is_some() || from == first {
            break;
        }
        backs.next();
    }
    Ok(tail)
}
