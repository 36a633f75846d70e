//! `plan`: gathers what decides a recovery, and decides it.
//!
//! The WAL itself says where a target lies. So that not all of it must be read, the search begins
//! where the target can be at the earliest: at its segment for an LSN; for a time at the first
//! segment that was still written after that moment, because no commit in an earlier one can be later.

use std::ops::ControlFlow;

use chrono::{DateTime, Utc};

use super::walk::walk;
use crate::catalog::{Catalog, StoredSegment};
use crate::error::Failure;
use crate::pg::time::rfc3339;
use crate::pg::{Leg, Lsn, SegmentName, SegmentNumber, SystemId, Timeline, TimelineHistory, WalFileName};
use crate::plan::recovery::{Findings, Missed, Plan, Refusal, Requested, settle};
use crate::repo::backup::{BackupId, BackupRecord, BackupState};
use crate::repo::{self, ClusterInfo, Repository};
use crate::wal::{StopFinder, WalLayout};

/// How many segments before the earliest possible place of the target are read for the last commit
/// before it; four times as many while none is found, up to [`FARTHEST_BACK`].
const BACK: usize = 1;
const FARTHEST_BACK: usize = 64;
/// How many segments past the stop are read for the next commit.
const FORTH: usize = 8;

/// The timeline to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimelineChoice {
    /// The newest that there is.
    Latest,
    /// This one.
    Number(Timeline),
}

/// What to plan.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to end.
    pub requested: Requested,
    /// Whether the target itself is replayed.
    pub inclusive: bool,
    /// The timeline to follow.
    pub timeline: TimelineChoice,
    /// The backup to start from, where it was named.
    pub backup: Option<BackupId>,
}

/// Plans a recovery.
///
/// # Errors
/// A target that can't be reached, with the nearest that can; or the store.
pub async fn plan(repository: &Repository, catalog: &Catalog, request: &Request) -> Result<Plan, Failure> {
    let history = choose_timeline(catalog, request.timeline)?;
    let search = Search {
        repository,
        catalog,
        request,
        path: history.path(),
        timeline: history.timeline(),
    };
    search.run().await
}

/// The cluster that is meant: the one that was named, or the only one there is.
///
/// # Errors
/// None, or several and none named, or the store.
pub async fn choose_cluster(repository: &Repository, named: Option<SystemId>) -> Result<ClusterInfo, Failure> {
    let systems = ClusterInfo::systems(repository).await?;
    let url = || repository.store().url().to_string();
    let system = match (named, &systems[..]) {
        (Some(named), _) if systems.contains(&named) => named,
        (Some(named), _) => {
            return Err(ClusterError::Unknown {
                named,
                repository: url(),
            }
            .into());
        }
        (None, [only]) => *only,
        (None, []) => return Err(ClusterError::None { repository: url() }.into()),
        (None, _) => {
            let known = systems.iter().map(SystemId::to_string).collect::<Vec<_>>().join(", ");
            return Err(ClusterError::Several {
                repository: url(),
                known,
            }
            .into());
        }
    };
    let info = ClusterInfo::read(repository.store(), system).await?;
    Ok(info.ok_or_else(|| repo::RepoError::Damaged {
        object: repository.store().full(&repo::names::cluster_json(system)),
        why: "it is missing, and there are other objects of that cluster".to_owned(),
    })?)
}

/// No single cluster is meant.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The repository is empty.
    #[error("{repository} holds no cluster yet")]
    None {
        /// The repository.
        repository: String,
    },
    /// It holds several.
    #[error("{repository} holds several clusters: {known}")]
    Several {
        /// The repository.
        repository: String,
        /// Their identifiers.
        known: String,
    },
    /// It does not hold this one.
    #[error("{repository} does not hold cluster {named}")]
    Unknown {
        /// The one that was named.
        named: SystemId,
        /// The repository.
        repository: String,
    },
}

impl crate::error::Explain for ClusterError {
    fn class(&self) -> crate::error::Class {
        match self {
            Self::None { .. } => crate::error::Class::OutOfReach,
            _ => crate::error::Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::None { .. } => "nothing was archived into it; `pgp-pitr check` finds out why",
            Self::Several { .. } => "say which with --cluster SYSID",
            Self::Unknown { .. } => "`pgp-pitr list` shows those it holds",
        };
        Some(text.to_owned())
    }
}

fn choose_timeline(catalog: &Catalog, choice: TimelineChoice) -> Result<TimelineHistory, Refusal> {
    let known = catalog.timelines();
    let chosen = match choice {
        TimelineChoice::Latest => known.last().copied(),
        TimelineChoice::Number(number) => known.iter().copied().find(|timeline| *timeline == number),
    };
    match (chosen, choice) {
        (Some(timeline), _) => Ok(catalog.history(timeline)),
        (None, TimelineChoice::Number(asked)) => Err(Refusal::NoTimeline {
            asked,
            known: known.iter().map(Timeline::to_string).collect(),
        }),
        (None, TimelineChoice::Latest) => Err(Refusal::NoBackup(catalog.info.system.to_string())),
    }
}

type Segments = Vec<(Timeline, StoredSegment)>;

struct Search<'a> {
    repository: &'a Repository,
    catalog: &'a Catalog,
    request: &'a Request,
    path: Vec<Leg>,
    timeline: Timeline,
}

impl Search<'_> {
    async fn run(&self) -> Result<Plan, Failure> {
        let named = match &self.request.backup {
            Some(id) => Some(self.catalog.backup(id).ok_or_else(|| self.no_such(id))?),
            None => None,
        };
        if let (true, Some((_, how))) = (self.catalog.backups.is_empty(), self.catalog.damaged.last()) {
            return Err(Refusal::Damaged {
                target: self.target(),
                what: how.clone(),
            }
            .into());
        }
        if self.catalog.backups.is_empty() {
            return Err(Refusal::NoBackup(self.catalog.info.system.to_string()).into());
        }
        let mut passed_over: Vec<_> = self.catalog.damaged.iter().rev().cloned().collect();
        let (mut missed, mut gap) = (None, None);
        for backup in self
            .catalog
            .backups
            .iter()
            .rev()
            .filter(|backup| named.is_none_or(|named| named.id == backup.id))
        {
            let segments = match self.usable(backup, named.is_some()) {
                Ok(segments) => segments,
                Err(why) => {
                    passed_over.push((backup.id.clone(), why));
                    continue;
                }
            };
            let (found, mut warnings) = self.read(backup, &segments).await?;
            match settle(&self.request.requested, self.request.inclusive, backup, &found) {
                // The end of the WAL is meant, and this would be the beginning of a gap.
                Ok(_) if self.request.requested == Requested::Latest && self.gap(&segments).is_some() => {
                    let why = self.with_gap(&segments, "the WAL ends".to_owned());
                    return Err(self.refused(why, Some(&found), true).into());
                }
                Ok((stop, reaches)) => {
                    let used = self.used(&segments, &reaches);
                    let wal_bytes: u64 = used.iter().map(|(_, segment)| u64::from(segment.stored_bytes)).sum();
                    warnings.extend(self.catalog.warnings.iter().cloned());
                    return Ok(Plan {
                        backup: backup.clone(),
                        timeline: self.timeline,
                        path: self.path.clone(),
                        requested: self.request.requested.clone(),
                        inclusive: self.request.inclusive,
                        stop,
                        reaches,
                        segments: used.len(),
                        fetch_bytes: backup.stored_bytes + wal_bytes,
                        passed_over,
                        warnings,
                    });
                }
                Err(Missed::TooLate(why)) => {
                    // An older backup would meet the same end of the same WAL.
                    let gap = self.gap(&segments).is_some();
                    let why = self.with_gap(&segments, why);
                    return Err(self.refused(why, Some(&found), gap).into());
                }
                Err(Missed::TooEarly(why)) => passed_over.push((backup.id.clone(), why)),
                Err(Missed::NotThere) => {
                    passed_over.push((
                        backup.id.clone(),
                        "the WAL after it does not have the target".to_owned(),
                    ));
                    missed = missed.or(Some(found));
                    gap = gap.or_else(|| self.gap(&segments));
                }
            }
        }
        let why = match (&self.request.requested, passed_over.last()) {
            (Requested::Xid(_) | Requested::Name(_), Some((id, why))) => match gap {
                Some(missing) => format!("WAL segment {missing} is missing, and what is there does not have it"),
                None => format!("no backup has it in the WAL after its end (of {id}: {why})"),
            },
            (_, Some((id, why))) => format!("of the oldest backup, {id}: {why}"),
            (_, None) => "no backup serves".to_owned(),
        };
        Err(self.refused(why, missed.as_ref(), gap.is_some()).into())
    }

    /// The WAL that leads on from a backup to the target, or why it can't be used at all.
    fn usable(&self, backup: &BackupRecord, named: bool) -> Result<Segments, String> {
        self.on_path(backup, named)?;
        match self.request.requested.rules_out(self.request.inclusive, backup) {
            Some(why) => Err(why),
            None => self.leads_on(backup),
        }
    }

    /// Says whether a backup is whole, and on the way to the timeline.
    fn on_path(&self, backup: &BackupRecord, named: bool) -> Result<(), String> {
        if backup.state == BackupState::Damaged && !named {
            return Err("it has damaged pages (name it with --backup to use it all the same)".to_owned());
        }
        let Some(leg) = self.path.iter().find(|leg| leg.timeline == backup.timeline) else {
            return Err(format!(
                "its timeline {} does not lead to timeline {}",
                backup.timeline, self.timeline
            ));
        };
        match leg.to.filter(|left| backup.stop_lsn > *left) {
            Some(left) => Err(format!(
                "it ended at {}, after timeline {} was left at {left}",
                backup.stop_lsn, backup.timeline
            )),
            None => Ok(()),
        }
    }

    /// The WAL that leads on from a backup, if at least its own is there.
    fn leads_on(&self, backup: &BackupRecord) -> Result<Segments, String> {
        let segments = self.catalog.wal.along(&self.path, backup.start_lsn);
        let size = self.catalog.info.segment_size;
        let needed = SegmentNumber::ending(backup.stop_lsn, size);
        match segments.last() {
            Some((_, last)) if last.number >= needed => Ok(segments),
            last => {
                let first = SegmentNumber::holding(backup.start_lsn, size);
                let missing = last.map_or(first, |(_, last)| last.number.next());
                Err(format!(
                    "WAL segment {}, which it needs, is missing",
                    missing.name(backup.timeline, size)
                ))
            }
        }
    }

    /// Reads as much WAL as the target asks for.
    async fn read(&self, backup: &BackupRecord, segments: &Segments) -> Result<(Findings, Vec<String>), Failure> {
        let info = &self.catalog.info;
        let layout = match WalLayout::new(info.major, info.segment_size, info.wal_page_size) {
            Ok(layout) => layout,
            Err(error) => {
                return Ok((
                    Findings::default(),
                    vec![format!("the point reached can't be told: {error}")],
                ));
            }
        };
        let earliest = self.earliest(backup, segments).await?;
        let mut back = BACK;
        loop {
            let from = earliest.saturating_sub(back);
            let read = self.read_from(backup, segments, from, earliest, layout).await?;
            let last_commit = read.0.outcome.and_then(|outcome| outcome.last_commit);
            if last_commit.is_some() || from == 0 || back >= FARTHEST_BACK {
                return Ok(read);
            }
            back *= 4;
        }
    }

    async fn read_from(
        &self,
        backup: &BackupRecord,
        segments: &Segments,
        from: usize,
        earliest: usize,
        layout: WalLayout,
    ) -> Result<(Findings, Vec<String>), Failure> {
        let mut finder = StopFinder::new(self.request.requested.target(backup), self.request.inclusive);
        let size = self.catalog.info.segment_size;
        let last_of_interest = segments.get(earliest).map(|(_, segment)| segment.number.number());
        // The backup's own end can be had, whatever the WAL tells of.
        let mut last_moment = Some(backup.stopped_at);
        let mut stopped_in: Option<u64> = last_of_interest.filter(|_| self.request.requested == Requested::Immediate);
        let mut each = |event: &crate::wal::Event| {
            let segment = SegmentNumber::holding(event.lsn, size).number();
            if let Some(at) = stopped_in
                && segment > at + FORTH as u64
            {
                return ControlFlow::Break(());
            }
            finder.see(event);
            if let (Some(at), true) = (event.kind.at(), event.lsn >= backup.start_lsn) {
                last_moment = last_moment.max(Some(at));
            }
            if finder.is_settled() {
                return ControlFlow::Break(());
            }
            if finder.has_stopped() && stopped_in.is_none() {
                stopped_in = Some(segment);
            }
            ControlFlow::Continue(())
        };
        let walked = walk(
            self.repository,
            &self.catalog.info,
            layout,
            &segments[from..],
            &mut each,
        )
        .await?;
        let outcome = finder.finish(walked.extent.filter(|_| !walked.broken_off));
        if let Some((number, how)) = walked.unreadable {
            // What was read of that segment before the damage is true, and no server can fetch it.
            let before = |lsn: Lsn| lsn <= number.start(size);
            let stop = outcome.stop.map(crate::plan::recovery::reached);
            if self.request.requested == Requested::Latest || !stop.is_some_and(before) {
                return Err(Refusal::Damaged {
                    target: self.target(),
                    what: how,
                }
                .into());
            }
        }
        let mut warnings = walked.warnings;
        let inner_end = walked.ended.filter(|(at, _)| {
            let last = segments.last().map(|(_, segment)| segment.number);
            last.is_some_and(|last| SegmentNumber::holding(*at, size) < last)
        });
        if let Some((at, why)) = inner_end {
            warnings.push(format!("the WAL can be read only up to {at}: {why}"));
        }
        let extent = if walked.broken_off { None } else { walked.extent };
        Ok((
            Findings {
                outcome: Some(outcome),
                extent,
                last_moment,
            },
            warnings,
        ))
    }

    /// The first of the segments in which the target can lie.
    async fn earliest(&self, backup: &BackupRecord, segments: &Segments) -> Result<usize, Failure> {
        let size = self.catalog.info.segment_size;
        let index = |number: SegmentNumber| {
            segments
                .iter()
                .position(|(_, segment)| segment.number >= number)
                .unwrap_or(segments.len())
        };
        Ok(match &self.request.requested {
            Requested::Lsn(lsn) => index(SegmentNumber::holding(*lsn, size)).min(segments.len().saturating_sub(1)),
            Requested::Immediate => index(SegmentNumber::ending(backup.stop_lsn, size)),
            Requested::Latest => segments.len().saturating_sub(1),
            Requested::Xid(_) | Requested::Name(_) => 0,
            Requested::Time(time, _) => {
                // Halving: the first segment that was written to after the target.
                let (mut low, mut high) = (0, segments.len());
                while low < high {
                    let middle = (low + high) / 2;
                    if self
                        .modified_at(segments[middle])
                        .await?
                        .is_none_or(|at| at > time.instant())
                    {
                        high = middle;
                    } else {
                        low = middle + 1;
                    }
                }
                low.min(segments.len().saturating_sub(1))
            }
        })
    }

    async fn modified_at(
        &self,
        (timeline, segment): (Timeline, StoredSegment),
    ) -> Result<Option<DateTime<Utc>>, Failure> {
        let info = &self.catalog.info;
        let name = segment.number.name(timeline, info.segment_size);
        let file = if segment.partial {
            WalFileName::Partial(name)
        } else {
            WalFileName::Segment(name)
        };
        let identity = repo::identity(self.repository.store(), info.system, file).await?;
        Ok(identity.map(|identity| identity.modified_at))
    }

    /// The segments that recovery will really fetch.
    fn used(&self, segments: &Segments, reaches: &crate::plan::recovery::Reaches) -> Segments {
        let size = self.catalog.info.segment_size;
        let last = reaches.lsn.map(|lsn| SegmentNumber::holding(lsn, size));
        segments
            .iter()
            .copied()
            .filter(|(_, segment)| last.is_none_or(|last| segment.number <= last))
            .collect()
    }

    /// Says where the WAL breaks off, if it does not simply end.
    fn with_gap(&self, segments: &Segments, why: String) -> String {
        match self.gap(segments) {
            Some(missing) => format!("WAL segment {missing} is missing, and before it {why}"),
            None => why,
        }
    }

    /// The segment that is missing after these, where later ones of the same path are there.
    fn gap(&self, segments: &Segments) -> Option<SegmentName> {
        let size = self.catalog.info.segment_size;
        let missing = segments.last()?.1.number.next();
        let mut legs = self
            .path
            .iter()
            .filter(|leg| leg.to.is_none_or(|to| missing.start(size) < to));
        let timeline = legs.clone().next()?.timeline;
        // What a timeline holds after it was left is on another path.
        let beyond = legs.any(|leg| {
            let stored = self.catalog.wal.timeline(leg.timeline);
            stored.is_some_and(|wal| {
                wal.segments()
                    .iter()
                    .any(|segment| segment.number > missing && leg.to.is_none_or(|to| segment.number.start(size) < to))
            })
        });
        beyond.then(|| missing.name(timeline, size))
    }

    fn no_such(&self, id: &BackupId) -> Refusal {
        match self.catalog.damaged.iter().find(|(damaged, _)| damaged == id) {
            Some((_, how)) => Refusal::Damaged {
                target: self.target(),
                what: how.clone(),
            },
            None => Refusal::NoSuchBackup(id.clone()),
        }
    }

    /// The target in words.
    fn target(&self) -> String {
        match &self.request.requested {
            Requested::Time(time, _) => rfc3339(time.instant()),
            other => other.text().unwrap_or_else(|| other.kind().to_owned()),
        }
    }

    fn refused(&self, why: String, found: Option<&Findings>, gap: bool) -> Refusal {
        let named = self.request.backup.as_ref();
        let serves = |backup: &&BackupRecord| {
            named.is_none_or(|named| *named == backup.id)
                && self.on_path(backup, named.is_some()).is_ok()
                && self.leads_on(backup).is_ok()
        };
        // By its LSN it can be had even where the WAL tells of no later moment yet.
        let consistent = |backup: &BackupRecord| {
            format!(
                "{} (--target-lsn {}), the end of backup {}",
                rfc3339(backup.stopped_at),
                backup.stop_lsn,
                backup.id
            )
        };
        let later = |backup: &&BackupRecord| {
            self.request
                .requested
                .rules_out(self.request.inclusive, backup)
                .is_some()
        };
        Refusal::OutOfReach {
            target: self.target(),
            timeline: self.timeline,
            why,
            // Where the WAL goes on after a gap, what comes before it is not the latest. It may tell of no moment
            // after the backup's end, so its end is named by LSN.
            before: found.and_then(|found| {
                let how = match found.extent.filter(|_| gap) {
                    Some(extent) => format!("--target-lsn {}", extent.end),
                    None => "--latest".to_owned(),
                };
                Some(format!("{} ({how})", rfc3339(found.last_moment?)))
            }),
            after: self.catalog.backups.iter().filter(later).find(serves).map(consistent),
        }
    }
}
