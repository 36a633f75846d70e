//! `list`: what is there, and which moments can be restored.

mod edges;

use chrono::{DateTime, Utc};

use self::edges::Edges;
use crate::catalog::{Catalog, Gaps, OffPath, Run, StoredSegment};
use crate::error::Failure;
use crate::pg::{Leg, Lsn, SegmentNumber, SystemId, Timeline, TimelineHistory, WalFileName};
use crate::repo::backup::{BackupId, BackupRecord, BackupState};
use crate::repo::{ClusterInfo, Form, LEAST_WAL_OBJECT, Repository, names};

/// So many segments are followed where somebody wants to know for sure. Each is a read from the store.
const LOOK_BACK: u64 = 1024;

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

impl Listing {
    /// What is missing on the way to a timeline; `None` where no backup serves it.
    pub fn gaps(&self, timeline: Timeline) -> Option<Gaps> {
        let mut gaps = self.catalog.gaps(timeline)?;
        let wal = self.wal.iter().find(|wal| wal.timeline == timeline);
        gaps.after.extend(wal.and_then(|wal| wal.lost));
        let newest = self.catalog.backup(&gaps.newest).map(|backup| backup.start_lsn);
        if let Some(unlinked) = wal.and_then(|wal| wal.unlinked) {
            match newest.is_some_and(|newest| unlinked.0 <= newest) {
                true => gaps.before.push((unlinked.0, newest.unwrap_or(unlinked.1))),
                false => gaps.after.push(unlinked),
            }
        }
        Some(gaps)
    }
}

/// One timeline's WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineListing {
    /// The timeline.
    pub timeline: Timeline,
    /// Where its first segment begins.
    pub start: Lsn,
    /// Where its last segment ends; where the last whole record does, if that is in pieces.
    pub end: Lsn,
    /// How its last segment is stored.
    pub last_form: Form,
    /// How many segments there are.
    pub segments: usize,
    /// Size of their objects in bytes, pieces included.
    pub stored_bytes: u64,
    /// Its last commit, where one was found near its end.
    pub last_commit_at: Option<DateTime<Utc>>,
    /// Stretches that are missing. The last may have some pieces within that are of no use.
    pub gaps: Vec<(Lsn, Lsn)>,
    /// Such a one: it lies behind the end.
    pub lost: Option<(Lsn, Lsn)>,
    /// WAL that is there and does not follow on what is before, as of a server that was set back. Looked for near the
    /// end.
    pub unlinked: Option<(Lsn, Lsn)>,
}

/// A stretch of time, each moment of which can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The timeline to follow.
    pub timeline: Timeline,
    /// The first moment: the end of the backup, or the last end of a transaction before that by the server's clock.
    pub from: DateTime<Utc>,
    /// The last commit; the first moment where there is none.
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

/// Follows the WAL from the newest backup of a timeline on, as a recovery would, and notes where it breaks: a listing looks
/// only near the end. At most some thousand of the last segments are looked at.
///
/// # Errors
/// The store.
pub async fn look_back(repository: &Repository, listing: &mut Listing, timeline: Timeline) -> Result<(), Failure> {
    let catalog = &listing.catalog;
    let newest = catalog.gaps(timeline).and_then(|gaps| catalog.backup(&gaps.newest));
    let Some(from) = newest.map(|backup| backup.start_lsn) else {
        return Ok(());
    };
    let path = catalog.history(timeline).path();
    if let Some(last) = catalog.wal.end_along(&path, from) {
        let size = catalog.info.segment_size;
        let earliest = SegmentNumber::new(last.number().saturating_sub(LOOK_BACK));
        let first = SegmentNumber::holding(from, size).max(earliest);
        let unlinked = Edges::new(repository, catalog).unlinked(&path, first, last).await?;
        if let Some(wal) = listing.wal.iter_mut().find(|wal| wal.timeline == timeline) {
            wal.unlinked = unlinked.or(wal.unlinked);
        }
    }
    Ok(())
}

async fn one(repository: &Repository, mut catalog: Catalog) -> Result<Listing, Failure> {
    let stubs = stubs(&catalog);
    for (file, segment) in &stubs {
        let object = repository.store().full(&names::wal_file(catalog.info.system, *file));
        let bytes = segment.stored_bytes;
        let warning = format!("{object} is damaged: it has {bytes} bytes, and no WAL file is as short");
        catalog.warnings.push(warning);
    }
    let mut edges = Edges::new(repository, &catalog);
    let mut wal = Vec::new();
    for timeline in catalog.wal.timelines() {
        wal.extend(of_timeline(&catalog, &mut edges, timeline).await?);
    }
    let mut windows = Vec::new();
    for timeline in catalog.timelines() {
        windows.extend(of_path(&catalog, &stubs, &mut edges, timeline).await?);
    }
    let warnings = edges.warnings;
    catalog.warnings.extend(warnings);
    Ok(Listing { catalog, wal, windows })
}

async fn of_timeline(
    catalog: &Catalog,
    edges: &mut Edges<'_>,
    timeline: Timeline,
) -> Result<Option<TimelineListing>, Failure> {
    let size = catalog.info.segment_size;
    let Some(stored) = catalog.wal.timeline(timeline) else {
        return Ok(None);
    };
    let runs = stored.runs();
    let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
        return Ok(None);
    };
    let alone = TimelineHistory::root(timeline).path();
    let found = edges.end(&alone, *last).await?;
    let last_form = catalog
        .wal
        .segment(timeline, last.last)
        .map_or(Form::Whole, |segment| segment.form);
    let end = catalog.wal.end_of(timeline, *last);
    // Of a timeline that was begun by a fork, what comes before its first segment can be missing as well.
    let path = catalog.history(timeline).path();
    let fork = path.last().filter(|_| path.len() > 1).map(|leg| leg.from);
    let at_fork = fork.into_iter().flat_map(|from| catalog.wal.gaps_along(&path, from));
    let at_fork = at_fork.filter(|(_, to)| *to <= first.first.start(size));
    let between = |pair: &[Run]| (catalog.wal.end_of(timeline, pair[0]), pair[1].first.start(size));
    Ok(Some(TimelineListing {
        timeline,
        start: first.first.start(size),
        end: match last_form {
            Form::Pieces => found.lsn.unwrap_or(end),
            Form::Whole | Form::Partial => end,
        },
        last_form,
        segments: stored.segments().len(),
        stored_bytes: stored.stored_bytes(),
        last_commit_at: found.latest_commit,
        gaps: at_fork
            .chain(runs.windows(2).map(between))
            .chain(found.lost)
            .chain(found.unlinked)
            .collect(),
        lost: found.lost,
        unlinked: found.unlinked,
    }))
}

/// The stretches that a timeline's backups open, on the way to it. Of those that end at the same place the longest holds
/// all others.
async fn of_path(
    catalog: &Catalog,
    stubs: &[Stub],
    edges: &mut Edges<'_>,
    timeline: Timeline,
) -> Result<Vec<Window>, Failure> {
    let size = catalog.info.segment_size;
    let path = catalog.history(timeline).path();
    let mut windows: Vec<Window> = Vec::new();
    // Where runs end by the names of their segments, and where they do indeed.
    let mut known: Vec<(SegmentNumber, SegmentNumber)> = Vec::new();
    for backup in &catalog.backups {
        let Some(run) = run_from(catalog, stubs, &path, backup) else {
            continue;
        };
        if known.iter().any(|(last, end)| *last == run.last && run.first <= *end) {
            continue;
        }
        let end = edges.end(&path, run).await?;
        let Some(last) = end
            .last
            .filter(|last| *last >= SegmentNumber::ending(backup.stop_lsn, size))
            .filter(|_| end.lsn.is_none_or(|lsn| lsn >= backup.stop_lsn))
        else {
            continue;
        };
        known.push((run.last, last));
        let earliest = edges.latest_before(&path, backup.start_lsn, backup.stop_lsn).await?;
        let from = backup.stopped_at.max(earliest.unwrap_or(backup.stopped_at));
        windows.push(Window {
            timeline,
            from,
            to: end.latest_commit.unwrap_or(from).max(from),
            from_lsn: backup.stop_lsn,
            to_lsn: end.lsn.unwrap_or(backup.stop_lsn).max(backup.stop_lsn),
            backup: backup.id.clone(),
        });
    }
    Ok(windows)
}

/// A file of WAL that is too short to be whole.
type Stub = (WalFileName, StoredSegment);

/// Those that there are, told by their sizes alone.
fn stubs(catalog: &Catalog) -> Vec<Stub> {
    let mut stubs = Vec::new();
    for timeline in catalog.wal.timelines() {
        let segments = catalog.wal.timeline(timeline).map_or(&[][..], |wal| wal.segments());
        let short = |segment: &&StoredSegment| {
            segment.form != Form::Pieces && u64::from(segment.stored_bytes) < LEAST_WAL_OBJECT
        };
        let size = catalog.info.segment_size;
        let file = |segment: &StoredSegment| segment.file(timeline, size).file();
        stubs.extend(segments.iter().filter(short).map(|segment| (file(segment), *segment)));
    }
    stubs
}

/// The WAL that leads on from a backup along a path, up to a gap or to a place that no replay gets past; `None` where the
/// backup is of no use on that path.
fn run_from(catalog: &Catalog, stubs: &[Stub], path: &[Leg], backup: &BackupRecord) -> Option<Run> {
    let size = catalog.info.segment_size;
    if backup.state == BackupState::Damaged || OffPath::of(path, backup).is_some() {
        return None;
    }
    let first = SegmentNumber::holding(backup.start_lsn, size);
    let last = catalog.wal.end_along(path, backup.start_lsn)?;
    let doubtful = catalog
        .doubts
        .iter()
        .filter(|doubt| doubt.at.is_some_and(|at| at >= backup.start_lsn))
        .filter_map(|doubt| Some((doubt, doubt.file.segment()?.number(size)?)))
        .filter(|(_, number)| (first..=last).contains(number))
        .filter(|(doubt, number)| {
            let taken = catalog.wal.on_path(path, *number);
            taken.is_some_and(|(timeline, _)| timeline == doubt.file.timeline())
        })
        .map(|(_, number)| number);
    let last = doubtful.min().unwrap_or(last);
    let cut = stubs
        .iter()
        .filter(|(_, stub)| (first..=last).contains(&stub.number))
        .filter(|(file, stub)| {
            let taken = catalog.wal.on_path(path, stub.number);
            taken.is_some_and(|(timeline, _)| timeline == file.timeline())
        });
    let last = match cut.map(|(_, stub)| stub.number).min() {
        Some(cut) if cut == first => return None,
        Some(cut) => SegmentNumber::new(cut.number() - 1),
        None => last,
    };
    (last >= SegmentNumber::ending(backup.stop_lsn, size)).then_some(Run { first, last })
}
