//! What a recovery meets on its way through the WAL: every end of a transaction, every named moment, and whatever its
//! settings and folders must be ready for.

use chrono::{DateTime, Utc};

use super::decoder::{EndReason, NotContiguous, RawRecord, Step, WalDecoder};
use super::page::WalLayout;
use super::record::{Oid, Record, RecordError};
use super::rmgr::ResourceManager;
use super::storage::StorageChange;
use super::xact::{Transaction, TransactionEnd};
use super::xid::Xid;
use super::xlog::{Checkpoint, ParameterChange, XlogChange};
use crate::pg::{Lsn, Timeline};

/// One record that a recovery cares about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where it ends, aligned to eight.
    pub end_lsn: Lsn,
    /// Where the record before it begins, which need not be an event. No record begins between the two.
    pub previous: Lsn,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A transaction was committed.
    Commit(Ended),
    /// A transaction was rolled back.
    Abort(Ended),
    /// A transaction was prepared for a commit in two phases.
    Prepare {
        /// The transaction.
        xid: Xid,
        /// When.
        at: DateTime<Utc>,
        /// The name it was prepared under.
        name: Vec<u8>,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// As given, in the encoding of whichever database it was called in.
        name: Vec<u8>,
        /// When.
        at: DateTime<Utc>,
    },
    /// A checkpoint was completed.
    Checkpoint(Checkpoint),
    /// A server was started with other settings than before.
    ParameterChange(ParameterChange),
    /// Recovery ended by promotion, and a timeline began.
    EndOfRecovery {
        /// When.
        at: DateTime<Utc>,
        /// The timeline that begins here.
        timeline: Timeline,
        /// The timeline that it left.
        previous_timeline: Timeline,
    },
    /// A segment was ended early.
    Switch,
    /// A base backup has ended: what was restored from it is consistent at this record's end.
    BackupEnd {
        /// The backup's start LSN.
        start: Lsn,
    },
    /// A server began anew after a crash that left a record unfinished.
    Overwrite {
        /// Where the unfinished record begins.
        unfinished: Lsn,
        /// When.
        at: DateTime<Utc>,
    },
    /// A tablespace was created, and its folder must be there when this is replayed.
    TablespaceCreated {
        /// The tablespace.
        tablespace: Oid,
        /// Its folder; empty for one inside the data directory.
        path: Vec<u8>,
    },
    /// A tablespace was dropped.
    TablespaceDropped {
        /// The tablespace.
        tablespace: Oid,
    },
    /// A database was created.
    DatabaseCreated {
        /// The database.
        database: Oid,
        /// The database whose files were copied, where the WAL does not hold its blocks.
        copied_from: Option<Oid>,
    },
    /// A database was dropped.
    DatabaseDropped {
        /// The database.
        database: Oid,
    },
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The transaction; for a prepared one its own id.
    pub xid: Xid,
    /// When the server says it ended. Not monotonic in WAL order.
    pub at: DateTime<Utc>,
    /// The database it ran in, where the record tells.
    pub database: Option<Oid>,
    /// How many subtransactions ended with it.
    pub subtransactions: usize,
    /// Whether it had been prepared.
    pub prepared: bool,
}

impl EventKind {
    /// When it happened, where the record tells. A checkpoint tells it to the second, and tells when it began.
    pub const fn at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Commit(Ended { at, .. })
            | Self::Abort(Ended { at, .. })
            | Self::Prepare { at, .. }
            | Self::RestorePoint { at, .. }
            | Self::Checkpoint(Checkpoint { at, .. })
            | Self::EndOfRecovery { at, .. }
            | Self::Overwrite { at, .. } => Some(*at),
            _ => None,
        }
    }

    /// The end of a transaction, if it is one.
    pub const fn ended(&self) -> Option<&Ended> {
        match self {
            Self::Commit(ended) | Self::Abort(ended) => Some(ended),
            _ => None,
        }
    }

    /// What the record means to a recovery; `None` where it means nothing that a plan depends on.
    pub fn of(raw: &RawRecord<'_>) -> Result<Option<Self>, RecordError> {
        match raw.manager() {
            ResourceManager::TRANSACTION => {
                let record = Record::parse(raw)?;
                Ok(Self::of_transaction(Transaction::parse(&record)?))
            }
            ResourceManager::XLOG => {
                let record = Record::parse(raw)?;
                Ok(Self::of_xlog(XlogChange::parse(&record)?))
            }
            ResourceManager::DATABASE | ResourceManager::TABLESPACE => {
                let record = Record::parse(raw)?;
                Ok(Self::of_storage(StorageChange::parse(&record)?))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn of_transaction(change: Transaction<'_>) -> Option<Self> {
        match change {
            Transaction::End(end) if end.committed => Some(Self::Commit(Ended::of(&end))),
            Transaction::End(end) => Some(Self::Abort(Ended::of(&end))),
            Transaction::Prepare(prepared) => Some(Self::Prepare {
                xid: prepared.xid,
                at: prepared.at,
                name: prepared.name.to_vec(),
            }),
            Transaction::Other => None,
        }
    }

    fn of_xlog(change: XlogChange<'_>) -> Option<Self> {
        Some(match change {
            XlogChange::Checkpoint(checkpoint) => Self::Checkpoint(checkpoint),
            XlogChange::RestorePoint { name, at } => Self::RestorePoint {
                name: name.to_vec(),
                at,
            },
            XlogChange::ParameterChange(change) => Self::ParameterChange(change),
            XlogChange::EndOfRecovery {
                at,
                timeline,
                previous_timeline,
            } => Self::EndOfRecovery {
                at,
                timeline,
                previous_timeline,
            },
            XlogChange::Switch => Self::Switch,
            XlogChange::BackupEnd { start } => Self::BackupEnd { start },
            XlogChange::Overwrite { unfinished, at } => Self::Overwrite { unfinished, at },
            XlogChange::Other => return None,
        })
    }

    fn of_storage(change: StorageChange<'_>) -> Option<Self> {
        Some(match change {
            StorageChange::TablespaceCreated { tablespace, path } => Self::TablespaceCreated {
                tablespace,
                path: path.to_vec(),
            },
            StorageChange::TablespaceDropped { tablespace } => Self::TablespaceDropped { tablespace },
            StorageChange::DatabaseCopied {
                database,
                from_database,
                ..
            } => Self::DatabaseCreated {
                database,
                copied_from: Some(from_database),
            },
            StorageChange::DatabaseCreated { database, .. } => Self::DatabaseCreated {
                database,
                copied_from: None,
            },
            StorageChange::DatabaseDropped { database } => Self::DatabaseDropped { database },
            _ => return None,
        })
    }
}

impl Ended {
    fn of(end: &TransactionEnd<'_>) -> Self {
        Self {
            xid: end.xid,
            at: end.at,
            database: end.database,
            subtransactions: end.subtransactions.len(),
            prepared: end.prepared,
        }
    }
}

/// What there is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Walked {
    /// Push more bytes, then call again.
    NeedMore,
    /// The next event in WAL order.
    Event(Event),
    /// No valid record starts here; see [`Step::EndOfWal`].
    EndOfWal {
        /// Where the next record would have begun.
        at: Lsn,
        /// What is there instead.
        why: EndReason,
    },
}

/// How far WAL was walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where the last whole record begins.
    pub last_record: Lsn,
    /// Where it ends, aligned to eight.
    pub end: Lsn,
}

/// Walks through WAL that is pushed piece by piece, and stops at each event.
#[derive(Debug, Clone)]
pub struct RecoveryEvents {
    decoder: WalDecoder,
    extent: Option<Extent>,
}

impl RecoveryEvents {
    /// Begins at `start`: where a segment or page begins, or where a record does.
    pub fn new(start: Lsn, layout: WalLayout) -> Self {
        Self {
            decoder: WalDecoder::new(start, layout),
            extent: None,
        }
    }

    /// As [`WalDecoder::allow_timelines_up_to`]: to be called before the first byte of each segment is pushed, with
    /// the timeline in its name.
    pub fn allow_timelines_up_to(&mut self, newest: Timeline) {
        self.decoder.allow_timelines_up_to(newest);
    }

    /// Where the next bytes pushed must begin.
    pub fn wanted(&self) -> Lsn {
        self.decoder.wanted()
    }

    /// How far the WAL was walked; `None` before the first record.
    pub const fn extent(&self) -> Option<Extent> {
        self.extent
    }

    /// As [`WalDecoder::push`].
    pub fn push(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), NotContiguous> {
        self.decoder.push(at, bytes)
    }

    /// The next event, as far as the bytes pushed so far tell. After an error the walk can go on; the record it tells
    /// of is passed over.
    pub fn walk(&mut self) -> Result<Walked, RecordError> {
        loop {
            let raw = match self.decoder.step() {
                Step::NeedMore => return Ok(Walked::NeedMore),
                Step::EndOfWal { at, why } => return Ok(Walked::EndOfWal { at, why }),
                Step::Record(raw) => raw,
            };
            self.extent = Some(Extent {
                last_record: raw.start(),
                end: raw.end(),
            });
            if let Some(kind) = EventKind::of(&raw)? {
                return Ok(Walked::Event(Event {
                    lsn: raw.start(),
                    end_lsn: raw.end(),
                    previous: raw.previous(),
                    kind,
                }));
            }
        }
    }
}
