//! What the repository knows of a base backup.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::marker::check_format;
use super::{RepoError, Repository, names};
use crate::codec::Digest;
use crate::pg::{Lsn, SystemId, Timeline};

const FORMAT: u32 = 1;
/// A record names its parts, of which there is one per few thousand frames.
const LIMIT: u64 = 64 << 20;

/// The object that makes a backup visible: written last.
pub const RECORD: &str = "backup.json";
/// The server's `backup_manifest`, byte for byte, compressed.
pub const MANIFEST: &str = "backup_manifest.zst";
/// What Plakar's interface reads.
pub const INVENTORY: &str = "manifest.json";
/// Configuration files from outside the data directory.
pub const SETTINGS: &str = "settings.json";
/// Names and files of all relations.
pub const RELATIONS: &str = "relations.jsonl.zst";

/// A base backup's name: when it began, and a few digits of chance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct BackupId(String);

impl BackupId {
    /// A new one.
    pub fn new(started_at: DateTime<Utc>, chance: u64) -> Self {
        Self(format!("{}-{:08x}", started_at.format("%Y%m%dT%H%M%SZ"), chance as u32))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a backup's id; `pgp-pitr list` shows them (for example 20261121T101500Z-1f2e3d4c)")]
pub struct ParseBackupIdError(String);

impl FromStr for BackupId {
    type Err = ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, ParseBackupIdError> {
        let plain =
            !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if plain {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseBackupIdError(text.to_owned()))
        }
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How a backup was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Every byte anew.
    Full,
    /// With references to frames of earlier backups; as whole to restore as any.
    Incremental,
}

/// Whether a backup is fit to restore from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupState {
    /// It is.
    Complete,
    /// The server reported pages that fail their checksums.
    Damaged,
}

/// One tablespace of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceRecord {
    /// Its OID.
    pub oid: u32,
    /// Where it was. Bytes that are not UTF-8 are kept as PostgreSQL's hexadecimal `\x…`.
    pub location: String,
    /// How many bytes it held.
    pub size_bytes: u64,
}

/// One object of a backup besides the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name in the backup's folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// All that is known of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// Its name.
    pub id: BackupId,
    /// The cluster.
    pub system_identifier: SystemId,
    /// What a person called it.
    pub label: Option<String>,
    /// How it was stored.
    pub kind: BackupKind,
    /// Whether it is fit to restore from.
    pub state: BackupState,
    /// The major version.
    pub pg_version: String,
    /// The server's own words for its version.
    pub server_version: String,
    /// The timeline of its WAL.
    pub timeline: Timeline,
    /// Where recovery from it begins.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// When it began, by the clock of the host that took it.
    pub started_at: DateTime<Utc>,
    /// When it ended, by the same clock.
    pub stopped_at: DateTime<Utc>,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// Bytes it added to the repository.
    pub stored_bytes: u64,
    /// How many files, folders and links it has.
    pub entries: u64,
    /// Its tablespaces, save the data directory's own.
    pub tablespaces: Vec<TablespaceRecord>,
    /// Whether a standby was its source.
    pub from_standby: bool,
    /// What the server warned of while it sent the files, and what could not be captured with them.
    pub warnings: Vec<String>,
    /// Its other objects.
    pub parts: Vec<Part>,
}

impl BackupRecord {
    /// A part by its name.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// The parts of a table, in order.
    pub fn table<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a Part> {
        self.parts
            .iter()
            .filter(move |part| part.name.strip_prefix(table).is_some_and(|rest| rest.starts_with('-')))
    }
}

#[derive(Serialize, Deserialize)]
struct RecordObject<'a> {
    format: u32,
    digest: Digest,
    #[serde(borrow)]
    backup: &'a RawValue,
}

/// The object of a record: JSON for people, with a digest of its own content.
pub(super) fn write_record(record: &BackupRecord) -> Result<Vec<u8>, serde_json::Error> {
    let backup = serde_json::value::to_raw_value(record)?;
    let object = RecordObject {
        format: FORMAT,
        digest: Digest::of(backup.get().as_bytes()),
        backup: &backup,
    };
    let mut bytes = serde_json::to_vec(&object)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn read_record(object: &str, bytes: &[u8]) -> Result<BackupRecord, RepoError> {
    check_format(object, bytes, FORMAT)?;
    let damaged = |why: String| RepoError::Damaged {
        object: object.to_owned(),
        why,
    };
    let read: RecordObject<'_> = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if Digest::of(read.backup.get().as_bytes()) != read.digest {
        return Err(damaged("its content fails its checksum".to_owned()));
    }
    serde_json::from_str(read.backup.get()).map_err(|error| damaged(error.to_string()))
}

/// Reads one backup's record; `None` where there is no such backup, or not a whole one.
///
/// # Errors
/// A damaged record, or the store.
pub async fn read(repository: &Repository, system: SystemId, id: &BackupId) -> Result<Option<BackupRecord>, RepoError> {
    let store = repository.store();
    let name = names::backup_part(system, id, RECORD);
    let Some(bytes) = store.get(&name, LIMIT).await? else {
        return Ok(None);
    };
    let record = read_record(&store.full(&name), &bytes)?;
    if record.id != *id || record.system_identifier != system {
        let why = format!(
            "it tells of backup {} of cluster {}",
            record.id, record.system_identifier
        );
        return Err(RepoError::Damaged {
            object: store.full(&name),
            why,
        });
    }
    Ok(Some(record))
}

/// The ids of all backups of a cluster that were begun, oldest first. Those without a record are
/// under way or were interrupted.
///
/// # Errors
/// The store.
pub async fn ids(repository: &Repository, system: SystemId) -> Result<Vec<BackupId>, RepoError> {
    let (folders, _) = repository.store().list_level(&names::backups(system)).await?;
    let mut ids: Vec<BackupId> = folders
        .iter()
        .filter_map(|folder| folder.filename()?.parse().ok())
        .collect();
    ids.sort();
    Ok(ids)
}

/// Reads a part of a backup, checked against the record.
///
/// # Errors
/// A part that is missing or damaged, or the store.
pub async fn read_part(repository: &Repository, record: &BackupRecord, part: &Part) -> Result<bytes::Bytes, RepoError> {
    let store = repository.store();
    let name = names::backup_part(record.system_identifier, &record.id, &part.name);
    let damaged = |why: &str| RepoError::Damaged {
        object: store.full(&name),
        why: why.to_owned(),
    };
    let bytes = store
        .get(&name, part.size)
        .await?
        .ok_or_else(|| damaged("it is missing"))?;
    if Digest::of(&bytes) == part.digest {
        Ok(bytes)
    } else {
        Err(damaged("it fails its checksum"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn record() -> BackupRecord {
        let at = DateTime::from_timestamp_micros(1_763_720_000_123_456).unwrap();
        BackupRecord {
            id: BackupId::new(at, 7),
            system_identifier: SystemId::new(7),
            label: Some("before \"the\" upgrade".to_owned()),
            kind: BackupKind::Full,
            state: BackupState::Complete,
            pg_version: "15".to_owned(),
            server_version: "15.20 (Debian 15.20-0+deb12u1)".to_owned(),
            timeline: Timeline::FIRST,
            start_lsn: Lsn::new(0x200_0028),
            stop_lsn: Lsn::new(0x200_0100),
            started_at: at,
            stopped_at: at,
            size_bytes: 1,
            stored_bytes: 1,
            entries: 1,
            tablespaces: vec![],
            from_standby: false,
            warnings: vec![],
            parts: vec![Part {
                name: "files-00000.zst".to_owned(),
                size: 3,
                digest: Digest::of(b"abc"),
            }],
        }
    }

    #[test]
    fn a_record_survives_its_object() {
        assert_eq!(read_record("x", &write_record(&record()).unwrap()).unwrap(), record());
    }

    proptest! {
        #[test]
        fn a_changed_record_is_never_another_record(at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = write_record(&record()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(read) = read_record("x", &bytes) {
                prop_assert_eq!(read, record());
            }
        }
    }
}
