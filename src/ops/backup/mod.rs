//! `backup`: a base backup over the replication protocol.
//!
//! The server's stream goes straight into packs; nothing of it is visible before the record is
//! written, and that happens only when every WAL segment from start to stop is in this repository.
//! A backup that was interrupted leaves objects that nothing refers to, and takes those it can reach
//! with it.

mod error;
mod guard;
mod wal;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use futures_util::StreamExt;

use super::inventory::{self, BackupFacts};
use crate::env::Env;
use crate::error::Failure;
use crate::pg::Lsn;
use crate::pg::conninfo::ConnInfo;
use crate::replication::{
    BackupEnd, BackupEvent, BaseBackupOptions, Checkpoint, EntryKind, ReplicationError, ReplicationSession,
    ServerVersion, SlotName, SqlSession, Tablespace, TarEntry,
};
use crate::repo::backup::{self as record, BackupId, BackupKind, BackupRecord, BackupState, TablespaceRecord};
use crate::repo::map::{FileEntry, FileKind};
use crate::repo::{BackupWriter, ClusterInfo, Repository, names};
use crate::store::Store;

pub use error::BackupError;

/// zstd's level for backups unless told otherwise.
pub const LEVEL: i32 = 3;
/// How long to wait for the last WAL unless told otherwise.
pub const WAL_TIMEOUT: Duration = Duration::from_secs(300);

/// What a backup is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// A text that names it for people.
    pub label: Option<String>,
    /// How its checkpoint is made.
    pub checkpoint: Checkpoint,
    /// The most the server sends, in kB a second.
    pub max_rate: Option<u32>,
    /// A slot that holds its WAL.
    pub slot: Option<SlotName>,
    /// How long to wait for its last WAL.
    pub wal_timeout: Duration,
    /// zstd's level.
    pub level: i32,
    /// How many threads compress.
    pub jobs: usize,
}

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Looking whether WAL arrives.
    Checking,
    /// The server makes its checkpoint.
    Checkpoint,
    /// Files come in.
    Copying {
        /// Bytes of files so far.
        bytes: u64,
        /// About how many there will be, as the server estimates.
        total: u64,
        /// Bytes given to the store so far.
        stored: u64,
    },
    /// The files are stored; WAL is missing up to this position.
    WaitingForWal(Lsn),
}

/// Takes a base backup of the server at `info`.
///
/// Steps, and what a crash after each leaves:
/// 1. `cluster.json` is created: a cluster without backups;
/// 2. packs and tables are created: objects that nothing refers to;
/// 3. all WAL from start to stop is seen in the repository: the same;
/// 4. the record is created: the backup, whole.
///
/// # Errors
/// The server, the store, or WAL that does not arrive. Nothing is visible then.
pub async fn backup(
    store: &Store,
    info: &ConnInfo,
    options: &Options,
    tell: &mut dyn FnMut(Progress),
) -> Result<BackupRecord, Failure> {
    let env = store.env().clone();
    let repository = Repository::open(store).await?;
    let mut session = ReplicationSession::connect(info, &env).await?;
    let sql = SqlSession::connect_any(info, &env).await.ok();
    let server = Server::ask(&mut session, sql).await?;
    let known = ClusterInfo::read(store, server.cluster.system).await?;
    server.cluster.bind(&repository, known).await?;
    tell(Progress::Checking);
    guard::wal_arrives(&repository, &mut session, &server, options).await?;
    let id = BackupId::new(env.now(), env.chance());
    let taken = take(&repository, &mut session, info, &server, options, &id, tell).await;
    if taken.is_err() {
        // Best effort: what stays is referred to by nothing.
        let _ = abandon(&repository, &server, &id).await;
    }
    taken
}

/// What is known of the server before it begins.
struct Server {
    cluster: ClusterInfo,
    version: ServerVersion,
    archiving: bool,
    standby: bool,
    sql: Option<SqlSession>,
}

impl Server {
    async fn ask(session: &mut ReplicationSession, sql: Option<SqlSession>) -> Result<Self, Failure> {
        let identity = session.identify_system().await?;
        let segment_size = session.wal_segment_size().await?;
        let wal_page_size = session.show("wal_block_size").await?;
        let archiving = session.show("archive_mode").await? != "off";
        let standby = match &sql {
            Some(sql) => sql
                .query_one("select pg_catalog.pg_is_in_recovery()", &[])
                .await
                .map_err(|error| sql.failed(error))?
                .get(0),
            None => false,
        };
        let cluster = ClusterInfo {
            system: identity.system_id,
            major: session.server_version().major(),
            segment_size,
            wal_page_size: wal_page_size.parse().unwrap_or(crate::pg::PAGE_SIZE),
        };
        let version = session.server_version().clone();
        Ok(Self {
            cluster,
            version,
            archiving,
            standby,
            sql,
        })
    }

    /// How far the server's clock is ahead of ours; zero where it can't be asked. Targets are
    /// compared with times that the server wrote.
    async fn clock_offset(&self, env: &Env) -> chrono::TimeDelta {
        let Some(sql) = &self.sql else {
            return chrono::TimeDelta::zero();
        };
        let micros = "select (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint";
        match sql
            .query_one(micros, &[])
            .await
            .ok()
            .and_then(|row| DateTime::from_timestamp_micros(row.get(0)))
        {
            Some(there) => there - env.now(),
            None => chrono::TimeDelta::zero(),
        }
    }
}

async fn take(
    repository: &Repository,
    session: &mut ReplicationSession,
    info: &ConnInfo,
    server: &Server,
    options: &Options,
    id: &BackupId,
    tell: &mut dyn FnMut(Progress),
) -> Result<BackupRecord, Failure> {
    let env = repository.store().env().clone();
    let system = server.cluster.system;
    let mut writer = BackupWriter::new(repository, system, id.clone(), options.level, options.jobs);
    let ahead = server.clock_offset(&env).await;
    tell(Progress::Checkpoint);
    let received = receive(session, options, &mut writer, &env, ahead, tell).await?;
    writer.flush().await?;
    let facts = BackupFacts {
        id: id.clone(),
        system,
        server_version: server.version.clone(),
        from_standby: server.standby,
        timeline: received.start.timeline,
        start_lsn: received.start.lsn,
        stop_lsn: received.end.lsn,
        started_at: received.started_at,
        stopped_at: received.stopped_at,
        segment_size: server.cluster.segment_size,
        tablespaces: received.tablespaces.clone(),
        backup_manifest_sha256: received.manifest.as_deref().map(sha256),
    };
    let gathered = inventory::gather(info, &env, &facts).await;
    if let Some(manifest) = received.manifest {
        let stored = zstd::bulk::compress(&manifest, LEVEL).map_err(BackupError::Manifest)?;
        writer.put_part(record::MANIFEST, stored.into()).await?;
    }
    if let Some(manifest) = gathered.manifest_json {
        writer.put_part(record::INVENTORY, manifest).await?;
    }
    if let Some(Ok(settings)) = gathered.settings.map(|settings| settings.to_json()) {
        writer.put_part(record::SETTINGS, settings.into()).await?;
    }
    if let Some(relations) = gathered.relations {
        writer.put_part(record::RELATIONS, relations).await?;
    }
    wal::wait(
        repository,
        session,
        server,
        &received.start,
        &received.end,
        options,
        tell,
    )
    .await?;
    let state = if received.damage.is_empty() {
        BackupState::Complete
    } else {
        BackupState::Damaged
    };
    let record = BackupRecord {
        id: id.clone(),
        system_identifier: system,
        label: options.label.clone(),
        kind: BackupKind::Full,
        state,
        pg_version: server.cluster.major.number().to_string(),
        server_version: server.version.text().to_owned(),
        timeline: received.start.timeline,
        start_lsn: received.start.lsn,
        stop_lsn: received.end.lsn,
        started_at: received.started_at,
        stopped_at: received.stopped_at,
        size_bytes: 0,
        stored_bytes: 0,
        entries: 0,
        tablespaces: received.tablespaces,
        from_standby: server.standby,
        warnings: received.damage.into_iter().chain(gathered.warnings).collect(),
        parts: Vec::new(),
    };
    Ok(writer.commit(record).await?)
}

/// What came of the stream.
struct Received {
    start: BackupEnd,
    end: BackupEnd,
    started_at: DateTime<Utc>,
    stopped_at: DateTime<Utc>,
    tablespaces: Vec<TablespaceRecord>,
    manifest: Option<Vec<u8>>,
    damage: Vec<String>,
}

async fn receive(
    session: &mut ReplicationSession,
    options: &Options,
    writer: &mut BackupWriter,
    env: &Arc<Env>,
    ahead: chrono::TimeDelta,
    tell: &mut dyn FnMut(Progress),
) -> Result<Received, Failure> {
    let asked = BaseBackupOptions {
        label: options.label.clone().unwrap_or_else(|| "pgp-pitr".to_owned()),
        checkpoint: options.checkpoint,
        max_rate: options.max_rate,
        ..BaseBackupOptions::default()
    };
    let mut stream = session.base_backup(&asked).await?;
    let mut tablespaces: Vec<Tablespace> = Vec::new();
    let (mut start, mut end, mut started_at) = (None, None, env.now() + ahead);
    let (mut manifest, mut damage) = (Vec::new(), Vec::new());
    let (mut current, mut total) = (0, 0);
    loop {
        let event = match stream.next().await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            // The copy is whole, damage included: worth keeping, and worth a mark.
            Err(ReplicationError::DamagedPages {
                warnings,
                end: Some(at),
                ..
            }) => {
                damage = if warnings.is_empty() {
                    vec!["pages fail their checksums".to_owned()]
                } else {
                    warnings
                };
                end = Some(at);
                break;
            }
            Err(error) => return Err(error.into()),
        };
        match event {
            BackupEvent::Started {
                start_lsn,
                timeline,
                tablespaces: all,
            } => {
                start = Some(BackupEnd {
                    lsn: start_lsn,
                    timeline,
                });
                started_at = env.now() + ahead;
                total = all.iter().filter_map(|space| space.size_kb).sum::<u64>() << 10;
                tablespaces = all;
            }
            BackupEvent::ArchiveBegin { tablespace } => {
                current = tablespaces.get(tablespace).and_then(|space| space.oid).unwrap_or(0);
            }
            BackupEvent::Entry(entry) => writer.begin(file_entry(entry, current)).await?,
            BackupEvent::Data(bytes) => {
                writer.push(&bytes).await?;
                let (bytes, stored) = (writer.size_bytes(), writer.stored_bytes());
                tell(Progress::Copying {
                    bytes,
                    total: total.max(bytes),
                    stored,
                });
            }
            BackupEvent::EntryEnd => writer.end().await?,
            BackupEvent::ArchiveEnd | BackupEvent::Progress { .. } => {}
            BackupEvent::ManifestData(bytes) => manifest.extend_from_slice(&bytes),
            BackupEvent::Finished(at) => end = Some(at),
        }
    }
    match (start, end) {
        (Some(start), Some(end)) => Ok(Received {
            start,
            end,
            started_at,
            // Not earlier than the server's own stop, and before what is left to store: a target
            // right after the backup is one that it serves.
            stopped_at: next_microsecond(env.now() + ahead),
            tablespaces: tablespaces.iter().filter_map(tablespace_record).collect(),
            manifest: Some(manifest).filter(|manifest| !manifest.is_empty()),
            damage,
        }),
        _ => Err(BackupError::NoEnd.into()),
    }
}

/// Times are shown and compared in microseconds: rounded up, the one shown is one that serves.
fn next_microsecond(at: DateTime<Utc>) -> DateTime<Utc> {
    at.trunc_subsecs(6) + chrono::TimeDelta::microseconds(1)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut sum = [0; 32];
    sum.copy_from_slice(digest.as_ref());
    sum
}

fn file_entry(entry: TarEntry, tablespace: u32) -> FileEntry {
    let (kind, target) = match entry.kind {
        EntryKind::File => (FileKind::File, Vec::new()),
        EntryKind::Directory => (FileKind::Folder, Vec::new()),
        EntryKind::Symlink(target) => (FileKind::Link, target.to_vec()),
    };
    FileEntry {
        kind,
        tablespace,
        path: entry.path.to_vec(),
        mode: entry.mode & 0o7777,
        modified: entry.mtime as i64,
        size: entry.size,
        target,
    }
}

fn tablespace_record(space: &Tablespace) -> Option<TablespaceRecord> {
    let location = match std::str::from_utf8(&space.path) {
        Ok(text) => text.to_owned(),
        Err(_) => space
            .path
            .iter()
            .fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}")),
    };
    Some(TablespaceRecord {
        oid: space.oid?,
        location,
        size_bytes: space.size_kb.unwrap_or(0) << 10,
    })
}

/// Deletes what a backup that failed has stored.
async fn abandon(repository: &Repository, server: &Server, id: &BackupId) -> Result<(), Failure> {
    let system = server.cluster.system;
    for folder in [
        names::packs(system).join(id.as_str()),
        names::backups(system).join(id.as_str()),
    ] {
        let mut entries = repository.store().list(&folder);
        while let Some(entry) = entries.next().await {
            repository.store().delete(&entry?.location).await?;
        }
    }
    Ok(())
}
