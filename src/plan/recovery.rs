//! Where a recovery will end, and which settings make PostgreSQL end it there.
//!
//! PostgreSQL trips over targets that people give in good faith: a time after the last commit, the
//! last commit's own time, the end of the WAL. What can be had is translated into a target that it
//! reaches, with exactly the rows that were asked for; what can't is refused with the nearest moments
//! that can.

use chrono::{DateTime, Utc};

use super::needs::{Needs, NewTablespace};
use crate::pg::time::{RecoveryTime, rfc3339};
use crate::pg::{Leg, Lsn, Timeline};
use crate::repo::backup::{BackupId, BackupRecord};
use crate::wal::{CommitPoint, Extent, Outcome, Stop, Target, Xid};

pub use super::refusal::{Moment, Nearest, Refusal};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requested {
    /// This moment, and the text it was read from.
    Time(RecoveryTime, String),
    /// This position.
    Lsn(Lsn),
    /// This transaction.
    Xid(Xid),
    /// This restore point.
    Name(String),
    /// As soon as the backup is consistent.
    Immediate,
    /// The end of the WAL.
    Latest,
}

impl Requested {
    /// Its kind, in one word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Time(..) => "time",
            Self::Lsn(_) => "lsn",
            Self::Xid(_) => "xid",
            Self::Name(_) => "name",
            Self::Immediate => "immediate",
            Self::Latest => "latest",
        }
    }

    /// As it was typed; `None` where nothing was.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Time(_, text) => Some(text.clone()),
            Self::Lsn(lsn) => Some(lsn.to_string()),
            Self::Xid(xid) => Some(xid.number().to_string()),
            Self::Name(name) => Some(name.clone()),
            Self::Immediate | Self::Latest => None,
        }
    }

    /// As it was understood.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Time(time, _) => Some(time.instant().to_rfc3339_opts(chrono::SecondsFormat::Micros, false)),
            _ => self.text(),
        }
    }

    /// What the WAL is searched for. `backup` is where replay begins.
    pub fn target(&self, backup: &BackupRecord) -> Target {
        match self {
            Self::Time(time, _) => Target::Time(time.instant()),
            Self::Lsn(lsn) => Target::Lsn(*lsn),
            Self::Xid(xid) => Target::Xid(*xid),
            Self::Name(name) => Target::Name(name.clone().into_bytes()),
            Self::Immediate => Target::Consistent(backup.stop_lsn),
            Self::Latest => Target::EndOfWal,
        }
    }

    /// Why a backup can't serve, told before any WAL is read; `None` where it may.
    pub fn rules_out(&self, inclusive: bool, backup: &BackupRecord) -> Option<String> {
        match self {
            Self::Time(time, _) if backup.stopped_at > time.instant() => {
                Some(format!("it ended after the target, at {}", rfc3339(backup.stopped_at)))
            }
            Self::Time(time, _) if !inclusive && backup.stopped_at == time.instant() => {
                Some(format!("it ended at the target itself, {}", rfc3339(backup.stopped_at)))
            }
            Self::Lsn(lsn) if backup.stop_lsn > *lsn => {
                Some(format!("it is consistent only from {} on", backup.stop_lsn))
            }
            _ => None,
        }
    }
}

/// What the WAL tells between a backup and its target.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Where the target lies; `None` where the WAL could not be read.
    pub outcome: Option<Outcome>,
    /// How far the WAL was read, where it was read to its end.
    pub extent: Option<Extent>,
    /// The last moment that it tells of, of whatever kind.
    pub last_moment: Option<DateTime<Utc>>,
    /// How many segments the server reads, up to its stop or to the end.
    pub segments: usize,
    /// Why recovery ends before the WAL does, where it does.
    pub ends: Option<String>,
    /// What the server must be ready for on its way to the stop.
    pub needs: Needs,
    /// What is told of the transaction that was asked for.
    pub xid: XidTold,
    /// Records that could not be understood, in words.
    pub troubles: Vec<String>,
}

/// What the WAL tells of a transaction that was asked for, besides its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XidTold {
    /// When it was prepared, and under which name.
    pub prepared: Option<(DateTime<Utc>, String)>,
    /// It is a subtransaction that ended with another transaction in this segment, by its place on the way.
    pub within: Option<usize>,
    /// It is a subtransaction of this one.
    pub whole: Option<Xid>,
    /// It was rolled back.
    pub rolled_back: bool,
}

/// The point that is really reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reaches {
    /// Everything before it is replayed, nothing after it.
    pub lsn: Option<Lsn>,
    /// The last commit that is replayed.
    pub last_commit: Option<CommitPoint>,
    /// The first commit that is not.
    pub next_commit: Option<CommitPoint>,
}

/// What PostgreSQL is told about where to stop, by setting.
pub type StopSettings = Vec<(&'static str, String)>;

/// A recovery, decided.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it starts from.
    pub backup: BackupRecord,
    /// The timeline to follow.
    pub timeline: Timeline,
    /// The way to it.
    pub path: Vec<Leg>,
    /// What was asked for.
    pub requested: Requested,
    /// Whether the target itself is replayed.
    pub inclusive: bool,
    /// What PostgreSQL is told.
    pub stop: StopSettings,
    /// Where that leads.
    pub reaches: Reaches,
    /// How many segments recovery will fetch.
    pub segments: usize,
    /// Settings that must be higher than the backup has them, and how high.
    pub settings: Vec<(&'static str, i32)>,
    /// Tablespaces that are created on the way and that the backup does not hold.
    pub tablespaces: Vec<NewTablespace>,
    /// Whether the server must not read ahead: it would stumble over what lies behind its target.
    pub no_read_ahead: bool,
    /// Bytes to fetch from the repository, backup and WAL.
    pub fetch_bytes: u64,
    /// The backups that were passed over, newest first, and why.
    pub passed_over: Vec<(BackupId, String)>,
    /// What a person should know before acting.
    pub warnings: Vec<String>,
}

/// A target that this backup and its WAL don't reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// The target lies before the backup is consistent.
    TooEarly(String),
    /// The WAL ends before the target.
    TooLate(String),
    /// The WAL has no such transaction or restore point.
    NotThere,
}

/// Decides what PostgreSQL is told, so that it ends where the request says.
///
/// # Errors
/// The target is not reached from this backup, or not with this WAL.
pub fn settle(
    requested: &Requested,
    inclusive: bool,
    backup: &BackupRecord,
    found: &Findings,
) -> Result<(StopSettings, Reaches), Missed> {
    let Some(outcome) = found.outcome else {
        return unread(requested, inclusive);
    };
    let reaches = |stop| Reaches {
        lsn: Some(reached(stop)),
        last_commit: outcome.last_commit,
        next_commit: outcome.next_commit,
    };
    match (requested, outcome.stop) {
        (Requested::Latest, _) if found.ends.is_some() => Err(Missed::TooLate("recovery ends there".to_owned())),
        (Requested::Latest, Some(stop)) => Ok((Vec::new(), reaches(stop))),
        (Requested::Latest, None) => Err(Missed::TooLate("the WAL holds no whole record".to_owned())),
        (Requested::Immediate, Some(stop)) => Ok((immediate(), reaches(stop))),
        (_, Some(stop)) => {
            let at = reached(stop);
            if at < backup.stop_lsn {
                return Err(Missed::TooEarly(format!(
                    "it lies at {at}, where this backup is not consistent yet ({})",
                    backup.stop_lsn
                )));
            }
            Ok((as_asked(requested, inclusive), reaches(stop)))
        }
        (Requested::Xid(_) | Requested::Name(_), None) => Err(Missed::NotThere),
        (Requested::Time(time, _), None) => match found.last_moment {
            Some(last) if time.instant() <= last => all_of_it(backup, outcome, found),
            Some(last) => Err(Missed::TooLate(format!(
                "the last moment that the WAL tells of is {}",
                rfc3339(last)
            ))),
            None => Err(Missed::TooLate(
                "the WAL tells of no moment after the backup".to_owned(),
            )),
        },
        (Requested::Lsn(lsn), None) => match found.extent {
            Some(extent) if *lsn <= extent.end => all_of_it(backup, outcome, found),
            Some(extent) => Err(Missed::TooLate(format!("the WAL ends at {}", extent.end))),
            None => Err(Missed::TooLate("the WAL holds no whole record".to_owned())),
        },
        (Requested::Immediate, None) => Err(Missed::TooLate("the WAL ends before it is consistent".to_owned())),
    }
}

/// The WAL is of a version that can't be read: PostgreSQL gets the target as it is.
fn unread(requested: &Requested, inclusive: bool) -> Result<(StopSettings, Reaches), Missed> {
    let settings = match requested {
        Requested::Latest => Vec::new(),
        Requested::Immediate => immediate(),
        _ => as_asked(requested, inclusive),
    };
    Ok((settings, Reaches::default()))
}

/// Everything there is: no commit comes after the target, so PostgreSQL would call it not reached.
/// The last record's own start, inclusive, is a target that it reaches, with all that was committed
/// and all that was prepared; where nothing was written since the backup, its consistency is.
fn all_of_it(backup: &BackupRecord, outcome: Outcome, found: &Findings) -> Result<(StopSettings, Reaches), Missed> {
    let reaches = |lsn| Reaches {
        lsn: Some(lsn),
        last_commit: outcome.last_commit,
        next_commit: None,
    };
    match found.extent {
        Some(extent) if extent.last_record >= backup.stop_lsn => Ok((
            vec![
                ("recovery_target_lsn", extent.last_record.to_string()),
                ("recovery_target_inclusive", "true".to_owned()),
            ],
            reaches(extent.end),
        )),
        Some(extent) if extent.end < backup.stop_lsn => Err(Missed::TooLate(
            "the WAL ends before the backup is consistent".to_owned(),
        )),
        _ => Ok((immediate(), reaches(backup.stop_lsn))),
    }
}

fn immediate() -> StopSettings {
    vec![("recovery_target", "immediate".to_owned())]
}

fn as_asked(requested: &Requested, inclusive: bool) -> StopSettings {
    let (name, value) = match requested {
        Requested::Time(time, _) => ("recovery_target_time", time.for_settings()),
        Requested::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
        Requested::Xid(xid) => ("recovery_target_xid", xid.number().to_string()),
        Requested::Name(name) => ("recovery_target_name", name.clone()),
        Requested::Immediate => return immediate(),
        Requested::Latest => return Vec::new(),
    };
    vec![(name, value), ("recovery_target_inclusive", inclusive.to_string())]
}

/// Everything before this position is replayed.
pub const fn reached(stop: Stop) -> Lsn {
    match stop {
        Stop::Before(lsn) | Stop::Near(lsn) | Stop::EndOfWal(lsn) => lsn,
        Stop::After { end_lsn, .. } => end_lsn,
    }
}
