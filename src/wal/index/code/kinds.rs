//! Events and rows of catalogues, by their kind.

use super::{Reader, Writer};
use crate::pg::{ControlSettings, Timeline, WalLevel};
use crate::wal::{CatalogRow, Checkpoint, EventKind, ParameterChange};

const COMMIT: u8 = 0;
const ABORT: u8 = 1;
const PREPARE: u8 = 2;
const RESTORE_POINT: u8 = 3;
const CHECKPOINT: u8 = 4;
const PARAMETER_CHANGE: u8 = 5;
const END_OF_RECOVERY: u8 = 6;
const SWITCH: u8 = 7;
const BACKUP_END: u8 = 8;
const OVERWRITE: u8 = 9;
const TABLESPACE_CREATED: u8 = 10;
const TABLESPACE_DROPPED: u8 = 11;
const DATABASE_CREATED: u8 = 12;
const DATABASE_DROPPED: u8 = 13;

const RELATION: u8 = 0;
const SCHEMA: u8 = 1;
const DATABASE: u8 = 2;
const MAPPED: u8 = 3;

impl Writer {
    pub(super) fn kind(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Commit(end) => {
                self.out.push(COMMIT);
                self.ended(end);
            }
            EventKind::Abort(end) => {
                self.out.push(ABORT);
                self.ended(end);
            }
            EventKind::Prepare { xid, at, name } => {
                self.out.push(PREPARE);
                self.xid(*xid);
                self.time(*at);
                self.text(name);
            }
            EventKind::RestorePoint { name, at } => {
                self.out.push(RESTORE_POINT);
                self.text(name);
                self.time(*at);
            }
            EventKind::Checkpoint(checkpoint) => {
                self.out.push(CHECKPOINT);
                self.flag(checkpoint.shutdown);
                self.time(checkpoint.at);
                self.lsn(checkpoint.redo);
                self.timeline(checkpoint.timeline);
                self.timeline(checkpoint.previous_timeline);
                self.xid(checkpoint.next_xid);
                self.number(checkpoint.next_xid_epoch.into());
            }
            EventKind::ParameterChange(change) => {
                self.out.push(PARAMETER_CHANGE);
                self.parameters(change);
            }
            EventKind::EndOfRecovery {
                at,
                timeline,
                previous_timeline,
            } => {
                self.out.push(END_OF_RECOVERY);
                self.time(*at);
                self.timeline(*timeline);
                self.timeline(*previous_timeline);
            }
            EventKind::Switch => self.out.push(SWITCH),
            EventKind::BackupEnd { start } => {
                self.out.push(BACKUP_END);
                self.lsn(*start);
            }
            EventKind::Overwrite { unfinished, at } => {
                self.out.push(OVERWRITE);
                self.lsn(*unfinished);
                self.time(*at);
            }
            EventKind::TablespaceCreated { tablespace, path } => {
                self.out.push(TABLESPACE_CREATED);
                self.number((*tablespace).into());
                self.text(path);
            }
            EventKind::TablespaceDropped { tablespace } => {
                self.out.push(TABLESPACE_DROPPED);
                self.number((*tablespace).into());
            }
            EventKind::DatabaseCreated { database, copied_from } => {
                self.out.push(DATABASE_CREATED);
                self.number((*database).into());
                self.option(copied_from.as_ref(), |to, from| to.number((*from).into()));
            }
            EventKind::DatabaseDropped { database } => {
                self.out.push(DATABASE_DROPPED);
                self.number((*database).into());
            }
        }
    }

    fn timeline(&mut self, timeline: Timeline) {
        self.number(timeline.number().into());
    }

    fn parameters(&mut self, change: &ParameterChange) {
        let settings = &change.settings;
        for value in [
            settings.max_connections,
            settings.max_worker_processes,
            settings.max_wal_senders,
            settings.max_prepared_transactions,
            settings.max_locks_per_transaction,
        ] {
            self.signed(value.into());
        }
        self.out.push(match change.wal_level {
            WalLevel::Minimal => 0,
            WalLevel::Replica => 1,
            WalLevel::Logical => 2,
        });
        self.flag(change.wal_log_hints);
        self.flag(change.track_commit_timestamp);
    }

    pub(super) fn catalog_row(&mut self, row: &CatalogRow) {
        match row {
            CatalogRow::Relation {
                oid,
                schema,
                name,
                kind,
                file,
            } => {
                self.out.push(RELATION);
                self.number((*oid).into());
                self.number((*schema).into());
                self.text(name);
                self.out.push(*kind);
                self.file(file);
            }
            CatalogRow::Schema { database, oid, name } => {
                self.out.push(SCHEMA);
                self.number((*database).into());
                self.number((*oid).into());
                self.text(name);
            }
            CatalogRow::Mapped { database, oid, file } => {
                self.out.push(MAPPED);
                self.number((*database).into());
                self.number((*oid).into());
                self.file(file);
            }
            CatalogRow::Database { oid, name, tablespace } => {
                self.out.push(DATABASE);
                self.number((*oid).into());
                self.text(name);
                self.number((*tablespace).into());
            }
        }
    }
}

impl Reader<'_> {
    pub(super) fn kind(&mut self) -> Option<EventKind> {
        Some(match self.byte()? {
            COMMIT => EventKind::Commit(self.ended()?),
            ABORT => EventKind::Abort(self.ended()?),
            PREPARE => EventKind::Prepare {
                xid: self.xid()?,
                at: self.time()?,
                name: self.text()?,
            },
            RESTORE_POINT => EventKind::RestorePoint {
                name: self.text()?,
                at: self.time()?,
            },
            CHECKPOINT => EventKind::Checkpoint(Checkpoint {
                shutdown: self.flag()?,
                at: self.time()?,
                redo: self.lsn()?,
                timeline: self.timeline()?,
                previous_timeline: self.timeline()?,
                next_xid: self.xid()?,
                next_xid_epoch: self.small()?,
            }),
            PARAMETER_CHANGE => EventKind::ParameterChange(self.parameters()?),
            END_OF_RECOVERY => EventKind::EndOfRecovery {
                at: self.time()?,
                timeline: self.timeline()?,
                previous_timeline: self.timeline()?,
            },
            SWITCH => EventKind::Switch,
            BACKUP_END => EventKind::BackupEnd { start: self.lsn()? },
            OVERWRITE => EventKind::Overwrite {
                unfinished: self.lsn()?,
                at: self.time()?,
            },
            TABLESPACE_CREATED => EventKind::TablespaceCreated {
                tablespace: self.small()?,
                path: self.text()?,
            },
            TABLESPACE_DROPPED => EventKind::TablespaceDropped {
                tablespace: self.small()?,
            },
            DATABASE_CREATED => EventKind::DatabaseCreated {
                database: self.small()?,
                copied_from: self.option(Self::small)?,
            },
            DATABASE_DROPPED => EventKind::DatabaseDropped {
                database: self.small()?,
            },
            _ => return None,
        })
    }

    fn timeline(&mut self) -> Option<Timeline> {
        Timeline::new(self.small()?)
    }

    fn setting(&mut self) -> Option<i32> {
        self.signed()?.try_into().ok()
    }

    fn parameters(&mut self) -> Option<ParameterChange> {
        Some(ParameterChange {
            settings: ControlSettings {
                max_connections: self.setting()?,
                max_worker_processes: self.setting()?,
                max_wal_senders: self.setting()?,
                max_prepared_transactions: self.setting()?,
                max_locks_per_transaction: self.setting()?,
            },
            wal_level: match self.byte()? {
                0 => WalLevel::Minimal,
                1 => WalLevel::Replica,
                2 => WalLevel::Logical,
                _ => return None,
            },
            wal_log_hints: self.flag()?,
            track_commit_timestamp: self.flag()?,
        })
    }

    pub(super) fn catalog_row(&mut self) -> Option<CatalogRow> {
        Some(match self.byte()? {
            RELATION => CatalogRow::Relation {
                oid: self.small()?,
                schema: self.small()?,
                name: self.text()?,
                kind: self.byte()?,
                file: self.file()?,
            },
            SCHEMA => CatalogRow::Schema {
                database: self.small()?,
                oid: self.small()?,
                name: self.text()?,
            },
            MAPPED => CatalogRow::Mapped {
                database: self.small()?,
                oid: self.small()?,
                file: self.file()?,
            },
            DATABASE => CatalogRow::Database {
                oid: self.small()?,
                name: self.text()?,
                tablespace: self.small()?,
            },
            _ => return None,
        })
    }
}
