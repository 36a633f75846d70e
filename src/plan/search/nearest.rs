//! What is said where no backup leads to the target: why, and what can be reached on each side. Every place that is
//! named was searched for in its turn, and found.

use chrono::{DateTime, Utc};

use super::{Request, Search, Source, TimelineChoice, Way};
use crate::error::Failure;
use crate::pg::time::{RecoveryTime, rfc3339};
use crate::pg::{Lsn, SegmentNumber, Timeline};
use crate::plan::recovery::{Findings, Moment, Nearest, Plan, Refusal, Requested};
use crate::repo::backup::{BackupId, BackupRecord, BackupState};
use crate::wal::{Extent, Stop, Target, Xid};

/// In so many segments before a backup a target is looked for that is not in the WAL after it. Each is a read from the
/// store, and nobody waits for a refusal longer than that takes.
const LOOK_BACK: u64 = 4096;

/// No backup leads there.
#[derive(Debug)]
pub(super) struct Miss {
    pub(super) why: String,
    /// Something is damaged, and not simply not there.
    pub(super) damaged: bool,
    /// How far the WAL goes.
    pub(super) end: Option<End>,
    /// Whether more WAL is there than can be replayed.
    pub(super) goes_on: bool,
    /// Backups that are consistent only behind the target, newest first.
    pub(super) later: Vec<BackupId>,
    /// Backups that don't have the target in the WAL after them, newest first.
    pub(super) not_there: Vec<NotThere>,
    /// The target is a subtransaction of this one.
    pub(super) whole: Option<Xid>,
}

/// A backup that does not have the target in the WAL after it.
#[derive(Debug)]
pub(super) struct NotThere {
    id: BackupId,
    from: Lsn,
    why: String,
    end: Option<End>,
    goes_on: bool,
}

impl NotThere {
    pub(super) fn of(backup: &BackupRecord, miss: &Miss) -> Self {
        Self {
            id: backup.id.clone(),
            from: backup.start_lsn,
            why: miss.why.clone(),
            end: miss.end,
            goes_on: miss.goes_on,
        }
    }
}

/// What the WAL tells of a transaction that can't be a target.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) why: String,
    /// The transaction that it is a part of.
    pub(super) whole: Option<Xid>,
}

/// How far WAL goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    extent: Extent,
    last_moment: Option<DateTime<Utc>>,
}

impl End {
    pub(super) fn of(found: &Findings) -> Option<Self> {
        Some(Self {
            extent: found.extent?,
            last_moment: found.last_moment,
        })
    }
}

impl Miss {
    pub(super) const fn out_of_reach(why: String, end: Option<End>, goes_on: bool) -> Self {
        Self {
            why,
            damaged: false,
            end,
            goes_on,
            later: Vec::new(),
            not_there: Vec::new(),
            whole: None,
        }
    }

    pub(super) const fn damaged(why: String, end: Option<End>) -> Self {
        Self {
            why,
            damaged: true,
            end,
            goes_on: true,
            later: Vec::new(),
            not_there: Vec::new(),
            whole: None,
        }
    }
}

impl Miss {
    /// A backup would have served, and lacks this of its own objects: that is the damage to repair.
    pub(super) fn lacks(&mut self, what: Option<String>) {
        if let Some(what) = what {
            self.why = what;
            self.damaged = true;
        }
    }
}

impl<S: Source> Search<'_, S> {
    /// What is answered to a request that missed.
    pub(super) async fn refuse(&self, mut miss: Miss) -> Result<Refusal, Failure> {
        if let (Some(whole), false) = (miss.whole, miss.damaged) {
            let beside = |inclusive| self.tried(Requested::Xid(whole), inclusive, None, None, None);
            let (before, mut after) = (beside(false).await?, beside(true).await?);
            if after.is_none() {
                after = self.after(&miss.later).await?;
            }
            return Ok(self.out_of_reach(
                miss.why,
                Nearest {
                    before,
                    after,
                    ..Nearest::default()
                },
            ));
        }
        if !miss.damaged {
            self.place(&mut miss).await?;
        }
        let before = match &miss.end {
            Some(end) => self.before(*end, &miss).await?,
            None => None,
        };
        if miss.damaged {
            return Ok(self.damaged(miss.why, before));
        }
        let after = self.after(&miss.later).await?;
        let elsewhere = match (&before, &after, &self.request.backup) {
            (None, None, None) => self.ends_elsewhere().await?,
            _ => Vec::new(),
        };
        let nearest = Nearest {
            before,
            after,
            elsewhere,
        };
        Ok(self.out_of_reach(miss.why, nearest))
    }

    /// What is answered where a segment on the way of a plan turns out to be damaged: `how`, and `at` which place on
    /// the way.
    ///
    /// # Errors
    /// What the source answers.
    pub async fn refuse_damaged(&self, plan: &Plan, at: usize, how: String) -> Result<Refusal, Failure> {
        let mut way = self.way(&plan.backup);
        way.segments.truncate(at);
        way.cut = None;
        let from = plan.backup.start_lsn;
        let mut found = self.follow_to(from, &way, Target::EndOfWal, true).await?.findings;
        found.last_moment = found.last_moment.max(Some(plan.backup.stopped_at));
        self.refuse(Miss::damaged(how, End::of(&found))).await
    }

    /// Finds out which backups begin behind a target that none has in the WAL after it: those are after it, and what their
    /// WAL leads to is not before it.
    async fn place(&self, miss: &mut Miss) -> Result<(), Failure> {
        let Some(newest) = miss.not_there.iter().map(|backup| backup.from).max() else {
            return Ok(());
        };
        let Some(at) = self.locate(newest).await? else {
            return Ok(());
        };
        let not_there = std::mem::take(&mut miss.not_there);
        let (behind, before): (Vec<_>, Vec<_>) = not_there.into_iter().partition(|backup| backup.from > at);
        miss.later.extend(behind.into_iter().map(|backup| backup.id));
        let place = |id: &BackupId| std::cmp::Reverse(self.catalog.backup(id).map(|backup| backup.stop_lsn));
        miss.later.sort_by_key(place);
        let nearest = before.into_iter().next();
        miss.why = match &nearest {
            Some(backup) if backup.goes_on => backup.why.clone(),
            _ => format!("it lies at {at} in the WAL, and no backup leads there"),
        };
        miss.end = nearest.as_ref().and_then(|backup| backup.end);
        miss.goes_on = nearest.is_some_and(|backup| backup.goes_on);
        Ok(())
    }

    /// Where the target lies in the WAL that was written before `until`, whether a backup leads there or not.
    async fn locate(&self, until: Lsn) -> Result<Option<Lsn>, Failure> {
        let target = match &self.request.requested {
            Requested::Xid(xid) => Target::Xid(*xid),
            Requested::Name(name) => Target::Name(name.clone().into_bytes()),
            _ => return Ok(None),
        };
        let size = self.catalog.info.segment_size;
        let last = SegmentNumber::holding(until, size);
        let mut next = SegmentNumber::new(last.number().saturating_sub(LOOK_BACK));
        while next <= last {
            let from = next.start(size);
            let mut way = self.way_from(from);
            let within = way.segments.partition_point(|(_, segment)| segment.number <= last);
            if within < way.segments.len() {
                way.segments.truncate(within);
                way.cut = None;
            }
            let followed = self.follow_to(from, &way, target.clone(), true).await?;
            let found = followed.findings;
            match found.outcome.and_then(|outcome| outcome.stop) {
                Some(Stop::After { lsn, .. }) => return Ok(Some(lsn)),
                // Every backup on this way comes behind a subtransaction, or its WAL would have told of that.
                _ if found.xid.within.is_some() || found.xid.whole.is_some() => return Ok(Some(from)),
                _ => {}
            }
            let end = match followed.damage {
                Some((at, _)) => way.segments.get(at),
                None => way.segments.last(),
            };
            next = end.map_or(next, |(_, segment)| segment.number).next();
        }
        Ok(None)
    }

    async fn before(&self, end: End, miss: &Miss) -> Result<Option<Moment>, Failure> {
        let End { extent, last_moment } = end;
        let mut candidates = Vec::new();
        if !miss.goes_on {
            candidates.push((Requested::Latest, extent.end));
        }
        if !miss.damaged {
            if let (Requested::Time(..) | Requested::Xid(_) | Requested::Name(_), Some(at)) =
                (&self.request.requested, last_moment)
            {
                candidates.push((Requested::Time(RecoveryTime::of(at), rfc3339(at)), extent.end));
            }
            candidates.push((Requested::Lsn(extent.end), extent.end));
        }
        // Replay may stop here and read no record that lies farther on.
        candidates.push((Requested::Lsn(extent.last_record), extent.end));
        for (requested, lsn) in candidates {
            if let Some(moment) = self.tried(requested, true, None, last_moment, Some(lsn)).await? {
                return Ok(Some(moment));
            }
        }
        Ok(None)
    }

    /// The first place after the target: where the oldest backup is consistent that lies behind it and can be had.
    async fn after(&self, later: &[BackupId]) -> Result<Option<Moment>, Failure> {
        for id in later.iter().rev() {
            let Some(backup) = self.catalog.backup(id) else {
                continue;
            };
            if backup.state == BackupState::Damaged && self.request.backup.is_none() {
                continue;
            }
            let (at, lsn) = (Some(backup.stopped_at), Some(backup.stop_lsn));
            let moment = self.tried(Requested::Immediate, true, Some(id), at, lsn).await?;
            if moment.is_some() {
                return Ok(moment);
            }
        }
        Ok(None)
    }

    /// The ends of other timelines that can be had.
    pub(super) async fn ends_elsewhere(&self) -> Result<Vec<(Timeline, Moment)>, Failure> {
        let mut ends = Vec::new();
        for timeline in self.others() {
            let request = Request {
                requested: Requested::Latest,
                inclusive: true,
                timeline: TimelineChoice::Number(timeline),
                backup: None,
            };
            let search = Search::new(self.source, self.catalog, &request)?;
            let moment = search.tried(Requested::Latest, true, None, None, None).await?;
            ends.extend(moment.map(|moment| (timeline, moment)));
        }
        Ok(ends)
    }

    /// All timelines but this one that PostgreSQL follows, newest first.
    pub(super) fn others(&self) -> impl Iterator<Item = Timeline> {
        let others = self.catalog.timelines().into_iter().rev();
        let has_history = |timeline| timeline == Timeline::FIRST || self.catalog.histories.contains_key(&timeline);
        others.filter(move |timeline| *timeline != self.timeline && has_history(*timeline))
    }

    /// A moment, if it can be had; what is not given is told by its plan.
    async fn tried(
        &self,
        requested: Requested,
        inclusive: bool,
        backup: Option<&BackupId>,
        at: Option<DateTime<Utc>>,
        lsn: Option<Lsn>,
    ) -> Result<Option<Moment>, Failure> {
        let mut flags = flags(&requested);
        flags.extend((!inclusive).then(|| "--exclusive".to_owned()));
        flags.extend(
            backup
                .into_iter()
                .flat_map(|id| ["--backup".to_owned(), id.to_string()]),
        );
        // Without it, the newest timeline would be meant, and that may be another one by then.
        if let TimelineChoice::Number(timeline) = self.request.timeline {
            flags.extend(["--target-timeline".to_owned(), timeline.to_string()]);
        }
        let request = Request {
            requested,
            inclusive,
            backup: backup.or(self.request.backup.as_ref()).cloned(),
            timeline: self.request.timeline,
        };
        let planned = Box::pin(self.decide(&request)).await?;
        Ok(planned.ok().map(|plan| Moment {
            at: at.or(plan.reaches.last_commit.map(|commit| commit.at)),
            lsn: lsn.or(plan.reaches.lsn),
            backup: backup.cloned(),
            flags,
        }))
    }

    /// What the WAL tells of a transaction that can't be a target.
    pub(super) async fn told_of_xid(
        &self,
        way: &Way,
        found: &Findings,
        request: &Request,
    ) -> Result<Option<Told>, Failure> {
        let Requested::Xid(xid) = request.requested else {
            return Ok(None);
        };
        let whole = match (found.xid.whole, found.xid.within) {
            (Some(whole), _) => Some(whole),
            (None, Some(at)) => self.source.whole_transaction(way.segments[at], xid).await?,
            (None, None) => None,
        };
        if let Some(whole) = whole {
            return Ok(Some(Told {
                why: format!(
                    "it is a subtransaction of {whole}, and PostgreSQL stops at the end of whole transactions only: use \
                     --target-xid {whole}"
                ),
                whole: Some(whole),
            }));
        }
        Ok(found.xid.prepared.as_ref().map(|(at, name)| Told {
            why: format!(
                "it was prepared at {} as '{name}', and in this WAL it is neither committed nor rolled back",
                rfc3339(*at)
            ),
            whole: None,
        }))
    }

    pub(super) fn no_such(&self, id: &BackupId) -> Refusal {
        match self.catalog.damaged.iter().find(|(damaged, _)| damaged == id) {
            Some((_, how)) => self.damaged(how.clone(), None),
            None => Refusal::NoSuchBackup(id.clone()),
        }
    }

    pub(super) fn damaged(&self, what: String, before: Option<Moment>) -> Refusal {
        Refusal::Damaged {
            target: self.target(),
            what,
            before: before.map(Box::new),
        }
    }

    pub(super) fn out_of_reach(&self, why: String, nearest: Nearest) -> Refusal {
        Refusal::OutOfReach {
            target: self.target(),
            timeline: self.timeline,
            why,
            before: nearest.before.as_ref().map(Moment::to_string),
            after: nearest.after.as_ref().map(Moment::to_string),
            nearest: Box::new(nearest),
        }
    }

    /// The target in words.
    fn target(&self) -> String {
        match &self.request.requested {
            Requested::Time(time, _) => rfc3339(time.instant()),
            other => other.text().unwrap_or_else(|| other.kind().to_owned()),
        }
    }
}

/// The flags that ask for this.
fn flags(requested: &Requested) -> Vec<String> {
    match requested.text() {
        Some(text) => vec![format!("--target-{}", requested.kind()), text],
        None => vec![format!("--{}", requested.kind())],
    }
}
