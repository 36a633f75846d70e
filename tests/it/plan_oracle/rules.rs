//! Where PostgreSQL ends a recovery, record by record, as its `xlogrecovery.c` has it; and which backup, of those that
//! there are, leads to what was asked for. As simple as can be, and written without a look at the planner.

use chrono::{DateTime, Utc};
use pgp_pitr::ops::plan::Request;
use pgp_pitr::pg::Lsn;
use pgp_pitr::plan::recovery::Requested;
use pgp_pitr::repo::backup::{BackupId, BackupRecord};

use super::reading::{Kind, Record};

/// `recovery_target_…`
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Time(DateTime<Utc>),
    Lsn(Lsn),
    Xid(u32),
    Name(String),
    Immediate,
    /// None is set.
    Unset,
}

impl Target {
    /// What was asked for, as the setting of the same name.
    pub fn of(requested: &Requested) -> Self {
        match requested {
            Requested::Time(time, _) => Self::Time(time.instant()),
            Requested::Lsn(lsn) => Self::Lsn(*lsn),
            Requested::Xid(xid) => Self::Xid(xid.number()),
            Requested::Name(name) => Self::Name(name.clone()),
            Requested::Immediate => Self::Immediate,
            Requested::Latest => Self::Unset,
        }
    }
}

/// The records that a server finds: all of them up to some place, of the whole list that begins with the first
/// segment there ever was.
#[derive(Debug, Clone, Copy)]
pub struct Wal<'a> {
    /// The whole list.
    pub records: &'a [Record],
    /// Of what comes after this many the WAL is missing.
    pub readable: usize,
}

/// What a recovery comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// The first record that is not replayed, by its number in the whole list.
    pub replayed: usize,
    /// Whether the target was met.
    pub reached: bool,
    /// Whether the backup's end was replayed.
    pub consistent: bool,
}

impl Recovery {
    /// Whether a server accepts it: else it stops with a FATAL.
    pub fn succeeds(self, target: &Target) -> bool {
        self.consistent && (self.reached || *target == Target::Unset)
    }
}

impl Wal<'_> {
    /// Replays a backup's WAL from its start.
    pub fn recover(self, backup: &BackupRecord, target: &Target, inclusive: bool) -> Recovery {
        let mut recovery = Recovery {
            replayed: self.readable,
            reached: false,
            consistent: false,
        };
        for (number, record) in self.records[..self.readable].iter().enumerate() {
            if record.start < backup.start_lsn {
                continue;
            }
            if stops_before(record, target, inclusive, recovery.consistent) {
                (recovery.replayed, recovery.reached) = (number, true);
                break;
            }
            // Backups of two timelines may start at the same position; they do not end at the same.
            recovery.consistent |= record.kind == Kind::BackupEnd(backup.start_lsn) && record.end == backup.stop_lsn;
            if stops_after(record, target, inclusive) {
                (recovery.replayed, recovery.reached) = (number + 1, true);
                break;
            }
        }
        recovery
    }

    /// Where the last whole record ends.
    pub fn end(self) -> Lsn {
        self.records[..self.readable].last().expect("records").end
    }

    /// The latest time of a transaction's end that is replayed from a backup.
    pub fn last_end(self, backup: &BackupRecord) -> Option<DateTime<Utc>> {
        let later = |record: &&Record| record.start >= backup.start_lsn;
        let records = self.records[..self.readable].iter().filter(later);
        records.filter_map(|record| Some(record.ended()?.at)).max()
    }
}

/// `recoveryStopsBefore`
fn stops_before(record: &Record, target: &Target, inclusive: bool, consistent: bool) -> bool {
    match (target, record.ended()) {
        (Target::Immediate, _) => consistent,
        (Target::Lsn(lsn), _) => !inclusive && record.start >= *lsn,
        (Target::Xid(xid), Some(end)) => !inclusive && end.xid == *xid,
        (Target::Time(time), Some(end)) if inclusive => end.at > *time,
        (Target::Time(time), Some(end)) => end.at >= *time,
        _ => false,
    }
}

/// `recoveryStopsAfter`
fn stops_after(record: &Record, target: &Target, inclusive: bool) -> bool {
    match (target, &record.kind) {
        (Target::Name(name), Kind::RestorePoint(found)) => name == found,
        (Target::Lsn(lsn), _) => inclusive && record.start >= *lsn,
        (Target::Xid(xid), Kind::End(end)) => inclusive && end.xid == *xid,
        _ => false,
    }
}

/// What must come of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// A recovery from this backup that leaves out the record of this number and all after it.
    Ends { backup: BackupId, replayed: usize },
    /// It can't be had.
    Refused,
    /// `pg_waldump` does not tell the times of checkpoints and restore points. If the WAL tells of a moment as late as
    /// this, recovery ends so; if not, it can't be had.
    EndsOrRefused { backup: BackupId, replayed: usize },
}

/// A backup, and the WAL that leads on from it.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The backup.
    pub backup: &'a BackupRecord,
    /// Its WAL.
    pub wal: Wal<'a>,
    /// Whether WAL follows after it that can't be reached, because what comes between is missing.
    pub gap: bool,
}

/// Which of these backups (oldest first) serves, and where recovery from it ends. `told` is a moment that the WAL of a
/// scene tells of without a gap, if only by a restore point, and `over` one that it can't tell of any more.
pub fn expected(starts: &[Start<'_>], request: &Request, told: Option<DateTime<Utc>>, over: DateTime<Utc>) -> Expected {
    let target = Target::of(&request.requested);
    for start in starts.iter().rev() {
        let Start { backup, wal, gap } = *start;
        if request.backup.as_ref().is_some_and(|named| *named != backup.id) {
            continue;
        }
        // Documented: a time or LSN needs a backup that had ended by then.
        let too_early = match target {
            Target::Time(time) => time < backup.stopped_at || time == backup.stopped_at && !request.inclusive,
            Target::Lsn(lsn) => lsn < backup.stop_lsn,
            _ => false,
        };
        let whole = wal.recover(backup, &Target::Unset, true);
        if too_early || !whole.consistent {
            continue;
        }
        let recovery = wal.recover(backup, &target, request.inclusive);
        let ends = |replayed| Expected::Ends {
            backup: backup.id.clone(),
            replayed,
        };
        match target {
            Target::Unset if gap => return Expected::Refused,
            Target::Unset => return ends(recovery.replayed),
            _ if recovery.succeeds(&target) => return ends(recovery.replayed),
            // Before the backup is consistent: an older one may serve.
            _ if recovery.reached => {}
            Target::Lsn(lsn) if lsn <= wal.end() => return ends(whole.replayed),
            Target::Lsn(_) => return Expected::Refused,
            Target::Time(time) if wal.last_end(backup).max(Some(backup.stopped_at)) >= Some(time) => {
                return ends(whole.replayed);
            }
            Target::Time(time) if told.is_some_and(|told| time <= told) => return ends(whole.replayed),
            Target::Time(time) if time > over => return Expected::Refused,
            Target::Time(_) => {
                return Expected::EndsOrRefused {
                    backup: backup.id.clone(),
                    replayed: whole.replayed,
                };
            }
            Target::Xid(_) | Target::Name(_) | Target::Immediate => {}
        }
    }
    Expected::Refused
}
