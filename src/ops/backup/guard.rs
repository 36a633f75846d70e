//! Before a backup: will its WAL reach this repository?
//!
//! A slot keeps WAL on the server until somebody has it. Without one, an archiver must be at work,
//! and at work for *this* repository: a server whose `archive_command` is `true` archives without a
//! fault, and for nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::{BackupError, Options, Server};
use crate::error::Failure;
use crate::pg::{SystemId, WalFileName};
use crate::replication::{ReplicationSession, SqlSession};
use crate::repo::{self, Repository};

/// A healthy archiver brings a segment within a second or two; one that has not in this time has
/// something to say first.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between what the server calls archived and what the repository shows: a store that is slow to
/// list what it has.
const GRACE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(250);

/// Sees to it that the backup's WAL can't vanish.
///
/// # Errors
/// Nothing brings WAL into this repository, or the slot is not there.
pub(super) async fn wal_arrives(
    repository: &Repository,
    session: &mut ReplicationSession,
    server: &Server,
    options: &Options,
) -> Result<(), Failure> {
    if let Some(slot) = &options.slot {
        // Servers before 15 can't be asked this way; there the slot is taken at its word.
        if server.cluster.major.number() >= 15 && session.read_slot(slot).await?.is_none() {
            return Err(BackupError::NoSlot(slot.as_str().to_owned()).into());
        }
        return Ok(());
    }
    let no_wal = |why: &str| {
        let repository = repository.store().url().to_string();
        Failure::from(BackupError::NoWal {
            repository,
            why: why.to_owned(),
        })
    };
    if !server.archiving {
        return Err(no_wal("archive_mode is off on the server, and no slot was named"));
    }
    match &server.sql {
        // A standby's own archiver may rest: its primary's brings the same files.
        Some(sql) if !server.standby => watch(repository, sql, server.cluster.system)
            .await?
            .map_err(|why| no_wal(&why)),
        _ => Ok(()),
    }
}

/// What `pg_stat_archiver` tells.
pub(super) struct Archiver {
    pub(super) last_archived: Option<String>,
    pub(super) last_failed: Option<String>,
    pub(super) failing: bool,
    pub(super) failures: i64,
}

impl Archiver {
    pub(super) async fn ask(sql: &SqlSession) -> Result<Self, Failure> {
        let query = "select last_archived_wal, last_failed_wal, failed_count, \
                     coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) \
                     from pg_catalog.pg_stat_archiver";
        let row = sql.query_one(query, &[]).await.map_err(|error| sql.failed(error))?;
        Ok(Self {
            last_archived: row.get(0),
            last_failed: row.get(1),
            failures: row.get(2),
            failing: row.get(3),
        })
    }
}

/// Waits until something that the archiver calls archived is in the repository; the inner error says
/// why that won't happen.
async fn watch(repository: &Repository, sql: &SqlSession, system: SystemId) -> Result<Result<(), String>, Failure> {
    let begun = Instant::now();
    let first = Archiver::ask(sql).await?;
    if !first.failing && arrived(repository, system, first.last_archived.as_deref()).await? {
        return Ok(Ok(()));
    }
    // Something for the archiver to do. Where we may not, or nothing was written since the last
    // switch, what comes by itself must do.
    let _ = sql.batch_execute("select pg_catalog.pg_switch_wal()").await;
    let mut elsewhere_since = None;
    loop {
        tokio::time::sleep(PAUSE).await;
        let now = Archiver::ask(sql).await?;
        if !now.failing && arrived(repository, system, now.last_archived.as_deref()).await? {
            return Ok(Ok(()));
        }
        if now.failing && now.failures > first.failures {
            let file = now.last_failed.unwrap_or_default();
            return Ok(Err(format!(
                "archive_command fails, for {file} just now (the server's log says why)"
            )));
        }
        if !now.failing && now.last_archived.is_some() {
            let since = *elsewhere_since.get_or_insert_with(Instant::now);
            if since.elapsed() > GRACE {
                let file = now.last_archived.unwrap_or_default();
                return Ok(Err(format!(
                    "the server calls {file} archived, but it is not here: archive_command leads elsewhere"
                )));
            }
        }
        if begun.elapsed() > PATIENCE {
            return Ok(Err(format!(
                "the archiver has brought nothing in {} s",
                PATIENCE.as_secs()
            )));
        }
    }
}

async fn arrived(repository: &Repository, system: SystemId, file: Option<&str>) -> Result<bool, Failure> {
    let Some(file) = file.and_then(|file| file.parse::<WalFileName>().ok()) else {
        return Ok(false);
    };
    Ok(repo::identity(repository.store(), system, file).await?.is_some())
}
