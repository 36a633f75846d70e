//! Files that come, shrink or go with a record of their own: relations, databases, tablespaces.
//!
//! Files of relations that are dropped go with the end of the transaction instead ([`super::TransactionEnd`]).

use super::cursor::Cursor;
use super::record::{Oid, Record, RecordError, RelFile, RelFork};
use super::rmgr::ResourceManager;

/// What a record means for files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageChange<'a> {
    /// A file of a relation was created.
    FileCreated {
        /// The relation.
        file: RelFile,
        /// Which of its files.
        fork: RelFork,
    },
    /// A relation lost its end: `VACUUM`, or `TRUNCATE` in the transaction that created it.
    FileTruncated {
        /// The relation.
        file: RelFile,
        /// How many blocks are left of its data.
        blocks: u32,
        /// Which files lose their end: bit 0 data, bit 1 visibility map, bit 2 free space map.
        forks: u32,
    },
    /// A database was made by copying the files of another one, of which the WAL has no trace.
    DatabaseCopied {
        /// The new database.
        database: Oid,
        /// Its files here.
        tablespace: Oid,
        /// The database whose files were copied.
        from_database: Oid,
        /// From here.
        from_tablespace: Oid,
    },
    /// A database was made, whose blocks follow in the WAL (15 and newer).
    DatabaseCreated {
        /// The new database.
        database: Oid,
        /// Its files here.
        tablespace: Oid,
    },
    /// A database was dropped.
    DatabaseDropped {
        /// The database.
        database: Oid,
    },
    /// A tablespace was created.
    TablespaceCreated {
        /// The tablespace.
        tablespace: Oid,
        /// The folder; empty for one inside the data directory.
        path: &'a [u8],
    },
    /// A tablespace was dropped.
    TablespaceDropped {
        /// The tablespace.
        tablespace: Oid,
    },
    /// Tables were emptied by `TRUNCATE`; told with `wal_level = logical` only. By object id, not by file.
    TablesTruncated {
        /// The database.
        database: Oid,
        /// How many tables.
        tables: usize,
    },
    /// Nothing of the kind.
    Other,
}

impl<'a> StorageChange<'a> {
    /// The meaning of any record for files.
    pub fn parse(record: &Record<'a>) -> Result<Self, RecordError> {
        let raw = record.raw();
        let kind = raw.info() & 0xF0;
        let mut fields = Cursor::new(record.main());
        let fields = &mut fields;
        let parsed = match raw.manager() {
            ResourceManager::STORAGE => of_storage(kind, fields),
            ResourceManager::DATABASE => of_database(kind, fields, raw.version().number() >= 15),
            ResourceManager::TABLESPACE => of_tablespace(kind, fields),
            // The flag is for the first row of a page that is built anew.
            ResourceManager::HEAP if kind & 0x70 == 0x30 => of_truncate(fields),
            _ => Some(Self::Other),
        };
        parsed.ok_or(RecordError::of(raw, "it tells of no file"))
    }
}

fn of_storage<'a>(kind: u8, fields: &mut Cursor<'a>) -> Option<StorageChange<'a>> {
    Some(match kind {
        0x10 => StorageChange::FileCreated {
            file: RelFile::take(fields)?,
            fork: RelFork::new(fields.u32()?)?,
        },
        0x20 => StorageChange::FileTruncated {
            blocks: fields.u32()?,
            file: RelFile::take(fields)?,
            forks: fields.u32()?,
        },
        _ => StorageChange::Other,
    })
}

/// 15 brought a second way to create a database, and moved the kinds.
fn of_database<'a>(kind: u8, fields: &mut Cursor<'a>, two_ways: bool) -> Option<StorageChange<'a>> {
    Some(match (kind, two_ways) {
        (0x00, _) => StorageChange::DatabaseCopied {
            database: fields.u32()?,
            tablespace: fields.u32()?,
            from_database: fields.u32()?,
            from_tablespace: fields.u32()?,
        },
        (0x10, true) => StorageChange::DatabaseCreated {
            database: fields.u32()?,
            tablespace: fields.u32()?,
        },
        (0x20, true) | (0x10, false) => StorageChange::DatabaseDropped {
            database: fields.u32()?,
        },
        _ => StorageChange::Other,
    })
}

fn of_tablespace<'a>(kind: u8, fields: &mut Cursor<'a>) -> Option<StorageChange<'a>> {
    Some(match kind {
        0x00 => StorageChange::TablespaceCreated {
            tablespace: fields.u32()?,
            path: fields.text()?,
        },
        0x10 => StorageChange::TablespaceDropped {
            tablespace: fields.u32()?,
        },
        _ => StorageChange::Other,
    })
}

/// `xl_heap_truncate`.
fn of_truncate<'a>(fields: &mut Cursor<'a>) -> Option<StorageChange<'a>> {
    let database = fields.u32()?;
    let tables = fields.u32()? as usize;
    let _flags_and_padding = fields.u32()?;
    fields.slice(tables.checked_mul(4)?)?;
    Some(StorageChange::TablesTruncated { database, tables })
}
