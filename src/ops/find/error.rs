//! What can't be looked for.

use std::collections::BTreeSet;

use crate::error::{Class, Explain};
use crate::ops::names::Names;
use crate::pg::{MajorVersion, Timeline};
use crate::wal::Xid;

/// What can't be looked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// WAL of a major that this version does not know.
    #[error("this version can't read the WAL of PostgreSQL {0}")]
    Unread(MajorVersion),
    /// No relation has ever had this name.
    #[error("no table {name} is known{}", in_database(.database.as_deref()))]
    Relation {
        /// The name.
        name: String,
        /// The database that was named.
        database: Option<String>,
    },
    /// A relation that has no rows of its own.
    #[error("{name} is a {kind}")]
    NoRows {
        /// The name.
        name: String,
        /// What it is.
        kind: &'static str,
        /// Where its rows are.
        rows: &'static str,
    },
    /// No database has ever had this name.
    #[error("no database {wanted:?} is known; known are: {known}")]
    Database {
        /// The one that was named.
        wanted: String,
        /// Those that are known.
        known: String,
    },
    /// The ids of transactions in the WAL had gone round more or less often.
    #[error("the WAL that was searched has no transaction {xid}: its ids are of epoch {known}, not {epoch}")]
    Epoch {
        /// All 64 bits of the id.
        xid: u64,
        /// Its upper half.
        epoch: u32,
        /// Those of the WAL.
        known: String,
    },
    /// There is no WAL of this timeline.
    #[error("there is no WAL of timeline {wanted}; there is of {known}")]
    Timeline {
        /// The one that was named.
        wanted: Timeline,
        /// Those that there are.
        known: String,
    },
    /// There is no WAL at all.
    #[error("there is no WAL of cluster {0} in the repository")]
    Empty(crate::pg::SystemId),
}

impl FindError {
    /// Why a relation has no files.
    pub(super) fn no_files(name: &str, database: Option<&str>, names: &Names) -> Self {
        let (kind, rows) = match names.kind_without_files(name, database) {
            Some(b'p') => (
                "partitioned table: its rows are in its partitions",
                "name one of them; without --relation, all that lost rows are told by their own names",
            ),
            Some(b'v') => ("view: it has no rows of its own", "name the table that it shows"),
            Some(b'f') => (
                "foreign table: its rows are elsewhere",
                "search the WAL of the server that has them",
            ),
            _ => {
                return Self::Relation {
                    name: name.to_owned(),
                    database: database.map(str::to_owned),
                };
            }
        };
        let name = name.to_owned();
        Self::NoRows { name, kind, rows }
    }

    pub(super) fn no_database(wanted: &str, names: &Names) -> Self {
        let known = names.databases();
        Self::Database {
            wanted: wanted.to_owned(),
            known: match known.is_empty() {
                true => "none, as no base backup tells of them".to_owned(),
                false => known.join(", "),
            },
        }
    }

    pub(super) fn epoch(xid: Xid, epoch: u32, known: &BTreeSet<u32>) -> Self {
        let known: Vec<String> = known.iter().map(u32::to_string).collect();
        Self::Epoch {
            xid: u64::from(epoch) << 32 | u64::from(xid.number()),
            epoch,
            known: match known.is_empty() {
                true => "no checkpoint told".to_owned(),
                false => known.join(" and "),
            },
        }
    }
}

fn in_database(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(" in database {name}"))
}

impl Explain for FindError {
    fn class(&self) -> Class {
        match self {
            Self::Relation { .. }
            | Self::NoRows { .. }
            | Self::Database { .. }
            | Self::Epoch { .. }
            | Self::Timeline { .. } => Class::Usage,
            Self::Unread(_) | Self::Empty(_) => Class::OutOfReach,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unread(_) => Some("use a version of pgp-pitr that knows it".to_owned()),
            Self::Relation { .. } => Some(
                "write SCHEMA.TABLE as the server has it, without quotes; names are known from base backups and from \
                 the WAL. One that was moved to another schema may be known by its former name only"
                    .to_owned(),
            ),
            Self::NoRows { rows, .. } => Some((*rows).to_owned()),
            Self::Database { .. } => Some("leave --database away to search all of them".to_owned()),
            Self::Epoch { .. } => Some("the lower 32 bits alone are what the server's log shows".to_owned()),
            Self::Timeline { .. } => None,
            Self::Empty(_) => Some("see that archive_command succeeds: `pgp-pitr check`".to_owned()),
        }
    }
}
