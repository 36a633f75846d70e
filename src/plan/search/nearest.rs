//! What is said where no backup leads to the target: why, and what can be reached on each side. Every place that is
//! named was searched for in its turn, and found.

use chrono::{DateTime, Utc};

use super::{Request, Search, Source, Way};
use crate::error::Failure;
use crate::pg::Lsn;
use crate::pg::time::{RecoveryTime, rfc3339};
use crate::plan::recovery::{Findings, Moment, Nearest, Plan, Refusal, Requested};
use crate::repo::backup::{BackupId, BackupState};
use crate::wal::{Extent, Target};

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
        }
    }

    pub(super) const fn damaged(why: String, end: Option<End>) -> Self {
        Self {
            why,
            damaged: true,
            end,
            goes_on: true,
            later: Vec::new(),
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
    pub(super) async fn refuse(&self, miss: Miss) -> Result<Refusal, Failure> {
        let before = match &miss.end {
            Some(end) => self.before(*end, &miss).await?,
            None => None,
        };
        if miss.damaged {
            return Ok(self.damaged(miss.why, before));
        }
        let after = self.after(&miss.later).await?;
        Ok(self.out_of_reach(miss.why, Nearest { before, after }))
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
        let followed = self.follow_to(&plan.backup, &way, Target::EndOfWal, true).await?;
        let mut miss = Miss::damaged(how, None);
        miss.end = End::of(&followed.findings);
        self.refuse(miss).await
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
            if let Some(moment) = self.tried(requested, None, last_moment, Some(lsn)).await? {
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
            let moment = self.tried(Requested::Immediate, Some(id), at, lsn).await?;
            if moment.is_some() {
                return Ok(moment);
            }
        }
        Ok(None)
    }

    /// A moment, if it can be had.
    async fn tried(
        &self,
        requested: Requested,
        backup: Option<&BackupId>,
        at: Option<DateTime<Utc>>,
        lsn: Option<Lsn>,
    ) -> Result<Option<Moment>, Failure> {
        let mut flags = flags(&requested);
        flags.extend(
            backup
                .into_iter()
                .flat_map(|id| ["--backup".to_owned(), id.to_string()]),
        );
        let request = Request {
            requested,
            inclusive: true,
            backup: backup.or(self.request.backup.as_ref()).cloned(),
            timeline: self.request.timeline,
        };
        let planned = Box::pin(self.decide(&request)).await?;
        Ok(planned.is_ok().then(|| Moment {
            at,
            lsn,
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
    ) -> Result<Option<String>, Failure> {
        let Requested::Xid(xid) = request.requested else {
            return Ok(None);
        };
        let whole = match (found.xid.whole, found.xid.within) {
            (Some(whole), _) => Some(whole),
            (None, Some(at)) => self.source.whole_transaction(way.segments[at], xid).await?,
            (None, None) => None,
        };
        if let Some(whole) = whole {
            return Ok(Some(format!(
                "it is a subtransaction of {whole}, and PostgreSQL stops at the end of whole transactions only: use \
                 --target-xid {whole}"
            )));
        }
        Ok(found.xid.prepared.as_ref().map(|(at, name)| {
            format!(
                "it was prepared at {} as '{name}', and in this WAL it is neither committed nor rolled back",
                rfc3339(*at)
            )
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
