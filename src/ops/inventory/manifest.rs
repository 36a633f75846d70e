//! The shape of `manifest.json`: version 2 of Plakar's PostgreSQL integration, field by field, and our
//! own key `pgp`, which its readers pass over.
//!
//! Names and types are theirs: the port and the system identifier are texts; what is empty and marked
//! so is left out; moments are RFC 3339. Rows come from the server in the same shape, so one type both
//! reads and writes them.

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize};

use super::BackupFacts;
use crate::pg::SegmentNumber;
use crate::pg::conninfo::{ConnInfo, Host};
use crate::pg::time::rfc3339;
use crate::pg::{Lsn, SystemId, Timeline};
use crate::replication::ServerAddress;
use crate::repo::backup::BackupId;
use crate::repo::names;

/// The version of the shape.
const VERSION: u32 = 2;

/// What Plakar calls backups of whole clusters, as opposed to dumps of databases.
const CONNECTOR: &str = "postgresql+bin";

/// The version of what is below `pgp`.
const OUR_FORMAT: u32 = 1;

#[derive(Debug, Serialize)]
pub(super) struct Manifest {
    version: u32,
    created_at: String,
    connector: &'static str,
    host: String,
    port: String,
    server_version: String,
    server_version_num: u32,
    cluster_system_identifier: SystemId,
    pub(super) in_recovery: bool,
    dump_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cluster_config: Option<ClusterConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) roles: Vec<Role>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tablespaces: Vec<Tablespace>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) databases: Vec<Database>,
    pgp: Ours,
}

/// What our backups have and Plakar's don't.
#[derive(Debug, Serialize)]
struct Ours {
    format: u32,
    backup_id: BackupId,
    timeline: Timeline,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    start_time: String,
    stop_time: String,
    /// In bytes.
    wal_segment_size: u64,
    /// The files of WAL that the backup needs to become consistent, first and last.
    wal_first: String,
    wal_last: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tablespaces: Vec<OurTablespace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup_manifest_sha256: Option<String>,
    /// Where the WAL is, below the repository's root.
    archive: String,
}

#[derive(Debug, Serialize)]
struct OurTablespace {
    oid: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    location: String,
    /// Its folder below the data directory.
    path: String,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct ClusterConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) data_directory: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) timezone: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) wal_level: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) server_encoding: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) shared_preload_libraries: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) lc_collate: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) lc_ctype: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) archive_mode: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) max_connections: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) block_size: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) wal_block_size: i64,
    pub(super) data_checksums: bool,
    pub(super) archive_command_set: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Role {
    name: String,
    superuser: bool,
    replication: bool,
    can_login: bool,
    create_db: bool,
    create_role: bool,
    inherit: bool,
    bypass_rls: bool,
    connection_limit: i64,
    valid_until: Option<String>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    member_of: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Tablespace {
    pub(super) name: String,
    owner: String,
    location: String,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Database {
    pub(super) name: String,
    owner: String,
    encoding: String,
    collate: String,
    ctype: String,
    pub(super) allow_conn: bool,
    is_template: bool,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    default_tablespace: String,
    connection_limit: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) extensions: Vec<Extension>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) schemas: Vec<Schema>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) relations: Vec<Relation>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Extension {
    name: String,
    version: String,
    schema: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Schema {
    name: String,
    owner: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Relation {
    schema: String,
    name: String,
    owner: String,
    persistence: String,
    kind: String,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    tablespace: String,
    row_estimate: i64,
    live_row_estimate: i64,
    column_count: i64,
    has_primary_key: bool,
    has_triggers: bool,
    rls_enabled: bool,
    rls_forced: bool,
    is_partition: bool,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    partition_parent: String,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    partition_strategy: String,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    storage_options: Vec<String>,
    last_vacuum: Option<String>,
    last_analyze: Option<String>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    columns: Vec<Column>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    constraints: Vec<Constraint>,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    indexes: Vec<Index>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Column {
    position: i64,
    name: String,
    #[serde(rename = "type")]
    type_name: String,
    nullable: bool,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    default: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Constraint {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    columns: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    name: String,
    method: String,
    definition: String,
    is_unique: bool,
    is_primary: bool,
    is_valid: bool,
    is_partial: bool,
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    constraint_name: String,
}

impl Manifest {
    /// What is known without asking the server.
    pub(super) fn of_facts(facts: &BackupFacts, info: &ConnInfo, now: DateTime<Utc>) -> Self {
        let (host, port) = info.servers().first().map_or_else(Default::default, |server| {
            let host = match server.host() {
                Host::Tcp { name } => name.clone(),
                Host::Unix(folder) => folder.display().to_string(),
            };
            (host, server.port().to_string())
        });
        Self {
            version: VERSION,
            created_at: now.to_rfc3339_opts(SecondsFormat::Nanos, true),
            connector: CONNECTOR,
            host,
            port,
            server_version: facts.server_version.text().to_owned(),
            server_version_num: facts.server_version.number(),
            cluster_system_identifier: facts.system,
            in_recovery: facts.from_standby,
            dump_format: "basebackup",
            cluster_config: None,
            roles: Vec::new(),
            tablespaces: Vec::new(),
            databases: Vec::new(),
            pgp: Ours::of_facts(facts),
        }
    }

    /// Notes which server of several answered.
    pub(super) fn reached(&mut self, at: &ServerAddress) {
        let (host, port) = match at {
            ServerAddress::Port { host, address } => (host.clone(), address.port().to_string()),
            ServerAddress::Socket(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let folder = path.parent().unwrap_or(path).display().to_string();
                (folder, name.rsplit('.').next().unwrap_or_default().to_owned())
            }
        };
        (self.host, self.port) = (host, port);
    }

    /// Gives a tablespace of the backup its name.
    pub(super) fn name_tablespace(&mut self, oid: u32, name: &str) {
        if let Some(tablespace) = self.pgp.tablespaces.iter_mut().find(|tablespace| tablespace.oid == oid) {
            name.clone_into(&mut tablespace.name);
        }
    }

    /// The object's content.
    pub(super) fn to_json(&self) -> Option<Bytes> {
        let mut text = serde_json::to_vec(self).ok()?;
        text.push(b'\n');
        Some(text.into())
    }
}

impl Ours {
    fn of_facts(facts: &BackupFacts) -> Self {
        let (timeline, size) = (facts.timeline, facts.segment_size);
        let tablespaces = facts.tablespaces.iter().map(|tablespace| OurTablespace {
            oid: tablespace.oid,
            name: String::new(),
            location: tablespace.location.clone(),
            path: format!("pg_tblspc/{}", tablespace.oid),
        });
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            format: OUR_FORMAT,
            backup_id: facts.id.clone(),
            timeline,
            start_lsn: facts.start_lsn,
            stop_lsn: facts.stop_lsn,
            start_time: rfc3339(facts.started_at),
            stop_time: rfc3339(facts.stopped_at),
            wal_segment_size: size.bytes(),
            wal_first: SegmentNumber::holding(facts.start_lsn, size)
                .name(timeline, size)
                .to_string(),
            wal_last: SegmentNumber::ending(facts.stop_lsn, size)
                .name(timeline, size)
                .to_string(),
            tablespaces: tablespaces.collect(),
            backup_manifest_sha256: facts.backup_manifest_sha256.map(hex),
            archive: names::wal(facts.system).to_string(),
        }
    }
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// The server's null is our nothing.
fn or_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
