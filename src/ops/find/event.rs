//! What is found: events, each with the moment just before it.

use chrono::{DateTime, Utc};

use crate::pg::{Lsn, SegmentNumber, Timeline};
use crate::wal::index::Rows;
use crate::wal::{Oid, Xid};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A transaction was committed.
    Commit,
    /// A transaction was rolled back.
    Abort,
    /// A transaction was prepared for a commit in two phases.
    Prepare,
    /// Tables, materialized views or sequences were dropped.
    Drop,
    /// Tables were emptied by `TRUNCATE`.
    Truncate,
    /// Many rows of one relation were deleted.
    MassDelete,
    /// `pg_create_restore_point`.
    RestorePoint,
    /// A checkpoint was completed.
    Checkpoint,
    /// A server was promoted, and a timeline begins.
    EndOfRecovery,
    /// A server was started with other settings.
    ParameterChange,
    /// A server began anew after a crash that left a record unfinished.
    Crash,
    /// A database was created.
    CreateDatabase,
    /// A database was dropped.
    DropDatabase,
    /// A tablespace was created.
    CreateTablespace,
    /// A tablespace was dropped.
    DropTablespace,
}

impl Kind {
    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Abort => "abort",
            Self::Prepare => "prepare",
            Self::Drop => "drop",
            Self::Truncate => "truncate",
            Self::MassDelete => "mass_delete",
            Self::RestorePoint => "restore_point",
            Self::Checkpoint => "checkpoint",
            Self::EndOfRecovery => "end_of_recovery",
            Self::ParameterChange => "parameter_change",
            Self::Crash => "crash",
            Self::CreateDatabase => "create_database",
            Self::DropDatabase => "drop_database",
            Self::CreateTablespace => "create_tablespace",
            Self::DropTablespace => "drop_tablespace",
        }
    }

    /// Whether it is told without being asked for.
    pub const fn is_remarkable(self) -> bool {
        !matches!(
            self,
            Self::Commit
                | Self::Abort
                | Self::Prepare
                | Self::Checkpoint
                | Self::ParameterChange
                | Self::CreateDatabase
                | Self::CreateTablespace
        )
    }
}

/// A relation in an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Schema and name; the path of its file where no name is known.
    pub name: String,
    /// Its object id, where that is known.
    pub oid: Option<Oid>,
    /// What the transaction did to its rows.
    pub rows: Rows,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// What happened.
    pub kind: Kind,
    /// The timeline on which it is.
    pub timeline: Timeline,
    /// Where its record begins. Of a transaction the commit or abort record.
    pub lsn: Lsn,
    /// What a recovery must stop before: its record, or the first of its transaction where that cannot be undone.
    pub before: Lsn,
    /// Where that record ends.
    pub end_lsn: Lsn,
    /// The transaction.
    pub xid: Option<Xid>,
    /// When, where the record tells.
    pub at: Option<DateTime<Utc>>,
    /// The database, where it is known.
    pub database: Option<Oid>,
    /// Its name, where that is known.
    pub database_name: Option<String>,
    /// The relations that it is about.
    pub relations: Vec<Relation>,
    /// The name of a restore point, of a tablespace's folder, or under which a transaction was prepared.
    pub name: Option<String>,
    /// Bytes of WAL that the transaction wrote.
    pub wal_bytes: Option<u64>,
    /// Files that went with it: their paths.
    pub files: Vec<String>,
    /// Whether all that the transaction did is in the WAL that was read: the numbers are too low otherwise.
    pub complete: bool,
    /// Whether some of the relations may not be meant: what the transaction did to them could not be told apart.
    pub uncertain: bool,
    /// Whether a backup and unbroken WAL lead to the moment just before it.
    pub reachable: bool,
    /// Subtransactions, and the segments that may hold more of the transaction's bytes.
    pub(super) uncounted: (Vec<Xid>, Vec<SegmentNumber>),
}
