//! Resource managers: which part of the server wrote a record, and so replays it.

use std::fmt;

use crate::pg::MajorVersion;

/// A resource manager (`RmgrId`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceManager(u8);

/// As `pg_waldump` prints them. The list has not changed from 13 to 18.
const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// The first id that extensions may take, since 15.
const FIRST_CUSTOM: u8 = 128;

impl ResourceManager {
    /// Checkpoints, restore points, switches and other things about the WAL itself.
    pub const XLOG: Self = Self(0);
    /// Ends of transactions.
    pub const TRANSACTION: Self = Self(1);
    /// Files of relations: created, truncated.
    pub const STORAGE: Self = Self(2);
    /// Databases: created, dropped.
    pub const DATABASE: Self = Self(4);
    /// Tablespaces: created, dropped.
    pub const TABLESPACE: Self = Self(5);
    /// Which files are those of the catalogues that must be found first.
    pub const RELATION_MAP: Self = Self(7);
    /// More about rows of tables: several inserted at once, visible, frozen, pruned.
    pub const HEAP2: Self = Self(9);
    /// Rows of tables: inserted, updated, deleted, locked; `TRUNCATE` for logical replication.
    pub const HEAP: Self = Self(10);

    /// The resource manager of this id.
    pub const fn new(id: u8) -> Self {
        Self(id)
    }

    /// Its id.
    pub const fn id(self) -> u8 {
        self.0
    }

    /// Whether a server of this major can have it.
    pub(super) const fn exists_in(self, version: MajorVersion) -> bool {
        (self.0 as usize) < NAMES.len() || self.0 >= FIRST_CUSTOM && version.number() >= 15
    }
}

impl fmt::Display for ResourceManager {
    /// As `pg_waldump` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "custom{:03}", self.0),
        }
    }
}
