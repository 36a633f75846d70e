//! Records about the WAL itself: checkpoints, restore points, changed settings, timelines.

use chrono::{DateTime, Utc};

use super::cursor::Cursor;
use super::record::{Record, RecordError};
use super::xid::Xid;
use crate::pg::{ControlSettings, Lsn, Timeline, WalLevel};

/// What a record of [`super::ResourceManager::XLOG`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XlogChange<'a> {
    /// A checkpoint was completed.
    Checkpoint(Checkpoint),
    /// `pg_create_restore_point`.
    RestorePoint {
        /// As given; the bytes are in the encoding of whichever database it was called in.
        name: &'a [u8],
        /// When it was made.
        at: DateTime<Utc>,
    },
    /// A server was started with other settings than before.
    ParameterChange(ParameterChange),
    /// Recovery ended, without a checkpoint, by promotion.
    EndOfRecovery {
        /// When.
        at: DateTime<Utc>,
        /// The timeline that begins here.
        timeline: Timeline,
        /// The timeline that it left.
        previous_timeline: Timeline,
    },
    /// The rest of the segment is padding.
    Switch,
    /// A base backup that began at `start` has ended: what was restored from it is consistent from here on.
    BackupEnd {
        /// The backup's start LSN.
        start: Lsn,
    },
    /// The first record after a crash left one unfinished that crossed into a page which was never written.
    Overwrite {
        /// Where the unfinished record begins.
        unfinished: Lsn,
        /// When the server began anew.
        at: DateTime<Utc>,
    },
    /// Anything else: page images, object ids reserved, `full_page_writes` changed.
    Other,
}

/// The parts of a checkpoint record (`CheckPoint`) that recovery is planned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whether it was written by a shutdown; nothing else was going on then.
    pub shutdown: bool,
    /// When it began, to the second.
    pub at: DateTime<Utc>,
    /// Where replay from this checkpoint begins.
    pub redo: Lsn,
    /// The timeline it is on.
    pub timeline: Timeline,
    /// The timeline that was left, where this record begins a new one; the same as `timeline` otherwise.
    pub previous_timeline: Timeline,
    /// The next transaction id.
    pub next_xid: Xid,
    /// How often transaction ids have wrapped around before `next_xid`.
    pub next_xid_epoch: u32,
}

/// The settings that a standby must follow (`xl_parameter_change`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterChange {
    /// What hot standby must have at least.
    pub settings: ControlSettings,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// `XLOG_…`.
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
pub(super) const SWITCH: u8 = 0x40;
const BACKUP_END: u8 = 0x50;
const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;
const OVERWRITE: u8 = 0xD0;

impl<'a> XlogChange<'a> {
    /// The meaning of a record of [`super::ResourceManager::XLOG`].
    pub fn parse(record: &Record<'a>) -> Result<Self, RecordError> {
        let raw = record.raw();
        let mut fields = Cursor::new(record.main());
        let (parsed, what) = match raw.info() & 0xF0 {
            kind @ (CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE) => {
                let checkpoint = checkpoint(&mut fields, kind == CHECKPOINT_SHUTDOWN);
                (checkpoint.map(Self::Checkpoint), "it is no checkpoint")
            }
            RESTORE_POINT => (restore_point(&mut fields), "it is no restore point"),
            PARAMETER_CHANGE => {
                let change = parameter_change(&mut fields);
                (change.map(Self::ParameterChange), "it tells no settings")
            }
            END_OF_RECOVERY => (end_of_recovery(&mut fields), "it is no end of recovery"),
            BACKUP_END => (
                fields.u64().map(Lsn::new).map(|start| Self::BackupEnd { start }),
                "it ends no backup",
            ),
            OVERWRITE => (overwrite(&mut fields), "it tells of no unfinished record"),
            SWITCH => (Some(Self::Switch), ""),
            _ => (Some(Self::Other), ""),
        };
        parsed.ok_or(RecordError::of(raw, what))
    }
}

/// All known majors have these fields in the same places; 17 put `wal_level` where there was padding.
fn checkpoint(fields: &mut Cursor<'_>, shutdown: bool) -> Option<Checkpoint> {
    let redo = Lsn::new(fields.u64()?);
    let timeline = Timeline::new(fields.u32()?)?;
    let previous_timeline = Timeline::new(fields.u32()?)?;
    let _full_page_writes_and_wal_level = fields.u64()?;
    let next_xid = fields.u64()?;
    // Next oid, next multixact and its offset; oldest xid, its database, oldest multixact, its database; padding.
    fields.slice(8 * 4)?;
    let at = DateTime::from_timestamp(fields.i64()?, 0)?;
    Some(Checkpoint {
        shutdown,
        at,
        redo,
        timeline,
        previous_timeline,
        next_xid: Xid::new(next_xid as u32),
        next_xid_epoch: (next_xid >> 32) as u32,
    })
}

fn restore_point<'a>(fields: &mut Cursor<'a>) -> Option<XlogChange<'a>> {
    let at = fields.time()?;
    let name = fields.text()?;
    Some(XlogChange::RestorePoint { name, at })
}

fn parameter_change(fields: &mut Cursor<'_>) -> Option<ParameterChange> {
    Some(ParameterChange {
        settings: ControlSettings {
            max_connections: fields.i32()?,
            max_worker_processes: fields.i32()?,
            max_wal_senders: fields.i32()?,
            max_prepared_transactions: fields.i32()?,
            max_locks_per_transaction: fields.i32()?,
        },
        wal_level: match fields.i32()? {
            0 => WalLevel::Minimal,
            1 => WalLevel::Replica,
            2 => WalLevel::Logical,
            _ => return None,
        },
        wal_log_hints: fields.u8()? != 0,
        track_commit_timestamp: fields.u8()? != 0,
    })
}

fn end_of_recovery<'a>(fields: &mut Cursor<'a>) -> Option<XlogChange<'a>> {
    Some(XlogChange::EndOfRecovery {
        at: fields.time()?,
        timeline: Timeline::new(fields.u32()?)?,
        previous_timeline: Timeline::new(fields.u32()?)?,
    })
}

fn overwrite<'a>(fields: &mut Cursor<'a>) -> Option<XlogChange<'a>> {
    Some(XlogChange::Overwrite {
        unfinished: Lsn::new(fields.u64()?),
        at: fields.time()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::forge::meaning;
    use super::*;

    /// 2026-11-21 10:20:00.123456 UTC
    const TIME: i64 = 848_571_600_123_456;

    fn of<T>(info: u8, main: &[u8], check: impl FnOnce(Option<XlogChange<'_>>) -> T) -> T {
        meaning(15, (0, info), 0, main, |record| check(XlogChange::parse(record).ok()))
    }

    #[test]
    fn a_restore_point_tells_its_name_up_to_the_zero() {
        let mut main = TIME.to_le_bytes().to_vec();
        main.extend(b"before the release\0rubbish");
        main.resize(72, 0);
        of(RESTORE_POINT, &main, |point| match point {
            Some(XlogChange::RestorePoint { name, at }) => {
                assert_eq!(name, b"before the release");
                assert_eq!(at.to_rfc3339(), "2026-11-21T10:20:00.123456+00:00");
            }
            other => panic!("{other:?}"),
        });
        of(RESTORE_POINT, &[b'x'; 72], |point| assert_eq!(point, None));
    }

    #[test]
    fn a_record_that_is_too_short_for_its_kind_is_refused() {
        for (info, whole) in [
            (CHECKPOINT_ONLINE, 72),
            (CHECKPOINT_SHUTDOWN, 72),
            (PARAMETER_CHANGE, 26),
            (END_OF_RECOVERY, 16),
            (BACKUP_END, 8),
            (OVERWRITE, 16),
            (RESTORE_POINT, 9),
        ] {
            // Ones, as no timeline is zero.
            let main = [&[0; 8][..], &[1, 0, 0, 0, 1, 0, 0, 0], &[0; 56]].concat();
            of(info, &main, |change| assert!(change.is_some(), "{info:#x}"));
            for short in 0..whole {
                of(info, &main[..short], |change| {
                    assert_eq!(change, None, "{info:#x} {short}")
                });
            }
        }
    }
}
