//! What a base backup carries besides files: an inventory of the cluster, the names of all relations,
//! and configuration from outside the data directory.
//!
//! All are asked for in SQL, and all are best effort: a backup without them restores just as well,
//! so what can't be read becomes a warning and never fails a backup. Nothing is locked, nothing is
//! written, and time and size are bounded, whatever the cluster holds.
//!
//! The inventory is `manifest.json` as Plakar's PostgreSQL integration has it (version 2), so that its
//! interface can browse our backups, with a key `pgp` of our own. No password, password's hash or
//! `archive_command` is in it. The configuration is [`CapturedSettings`]; *its* files may hold
//! passwords, as they do on the server.

mod ask;
mod capture;
mod cluster;
mod database;
mod includes;
mod manifest;
mod relations;
mod settings;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use self::ask::{Budget, Warnings};
use self::manifest::Manifest;
use crate::env::Env;
use crate::error::on_one_line;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, SegmentSize, SystemId, Timeline};
use crate::replication::{ConnectError, ServerVersion, SqlSession};
use crate::repo::backup::{BackupId, TablespaceRecord};

pub use relations::{CapturedName, CapturedNamesError};
pub use settings::{CapturedFile, CapturedSettings, CapturedSettingsError, FileContent, SettingKind, UnreadableFile};

/// The whole inventory takes no longer: the files are stored by now, and somebody waits.
const TIME: Duration = Duration::from_secs(30);

/// One connection takes no longer, however long the conninfo would wait: there may be many databases.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Bytes of JSON that the server sends for `manifest.json`: some ten thousand tables, and few enough
/// to be held in memory more than once.
const MANIFEST_LIMIT: usize = 12 << 20;

/// Bytes of configuration files, all together. With the manifest, 16 MiB.
const SETTINGS_LIMIT: usize = 4 << 20;

/// Databases whose tables are listed. Each costs a connection.
const DATABASES: usize = 200;

/// What the backup itself knows.
#[derive(Debug, Clone)]
pub struct BackupFacts {
    /// Its id.
    pub id: BackupId,
    /// The cluster.
    pub system: SystemId,
    /// The server's version.
    pub server_version: ServerVersion,
    /// Whether a standby was its source.
    pub from_standby: bool,
    /// The timeline of its WAL.
    pub timeline: Timeline,
    /// Where recovery from it begins.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub stopped_at: DateTime<Utc>,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// Its tablespaces, save the data directory's own.
    pub tablespaces: Vec<TablespaceRecord>,
    /// SHA-256 of the `backup_manifest`, all of its bytes.
    pub backup_manifest_sha256: Option<[u8; 32]>,
}

/// What was gathered.
#[derive(Debug)]
pub struct Gathered {
    /// The content of `manifest.json`.
    pub manifest_json: Option<Bytes>,
    /// Configuration files from outside the data directory; `None` where there are none, or none are
    /// known of.
    pub settings: Option<CapturedSettings>,
    /// The content of `relations.jsonl.zst`.
    pub relations: Option<Bytes>,
    /// What could not be read, in plain words.
    pub warnings: Vec<String>,
}

/// Gathers what the role of `info` may see. Never fails; takes half a minute at most.
pub async fn gather(info: &ConnInfo, env: &Env, facts: &BackupFacts) -> Gathered {
    let until = Instant::now() + TIME;
    let mut warnings = Warnings::default();
    let mut manifest = Manifest::of_facts(facts, info, env.now());
    let mut relations = None;
    let settings = match connect(info, env, facts.system, until).await {
        Ok(session) => {
            let mut budget = Budget::new(SETTINGS_LIMIT, until);
            let settings = capture::capture(&session, info.user(), &mut budget, &mut warnings).await;
            let mut budget = Budget::new(MANIFEST_LIMIT, until);
            cluster::describe(&session, &mut manifest, &mut budget, &mut warnings).await;
            relations = relations::Capture::new(until);
            if let Some(relations) = &mut relations {
                relations.databases(&session, &mut warnings).await;
            }
            drop(session);
            describe_databases(info, env, &mut manifest, &mut relations, &mut budget, &mut warnings).await;
            settings
        }
        Err(why) => {
            warnings.add(format!(
                "manifest.json tells nothing of databases and roles, configuration files outside the data directory \
                 are not captured, and neither are names of relations, for `pgp-pitr find`: {why}"
            ));
            None
        }
    };
    Gathered {
        manifest_json: manifest.to_json(),
        settings,
        relations: relations.and_then(relations::Capture::finish),
        warnings: warnings.into_texts(),
    }
}

/// One short connection for each database that takes some.
async fn describe_databases(
    info: &ConnInfo,
    env: &Env,
    manifest: &mut Manifest,
    relations: &mut Option<relations::Capture>,
    budget: &mut Budget,
    warnings: &mut Warnings,
) {
    let mut open: Vec<_> = manifest
        .databases
        .iter_mut()
        .filter(|database| database.allow_conn)
        .collect();
    if open.len() > DATABASES {
        warnings.add(format!(
            "the tables of {DATABASES} databases are captured; {} more are there by name only",
            open.len() - DATABASES
        ));
        open.truncate(DATABASES);
    }
    let mut describing = true;
    for database in open {
        if describing && budget.is_spent() {
            warnings.add(format!(
                "manifest.json lists nothing of database \"{}\" and those after it: {}",
                database.name,
                budget.trouble()
            ));
            describing = false;
        }
        if !describing && relations.as_ref().is_none_or(relations::Capture::is_cut) {
            break;
        }
        let info = info.with_dbname(&database.name);
        match connect_in_time(&info, env, budget.until()).await {
            Ok(session) => {
                // First, since what is cut off of `manifest.json` is only missed by people.
                if let Some(relations) = relations {
                    relations.inside(&session, &database.name, warnings).await;
                }
                if describing {
                    database::describe(&session, database, budget, warnings).await;
                }
            }
            Err(why) => warnings.add(format!("nothing of database \"{}\" is captured: {why}", database.name)),
        }
    }
}

/// Connects for what the whole cluster shares, and makes sure that it is the cluster of the backup:
/// a conninfo of several hosts may lead elsewhere the second time.
async fn connect(info: &ConnInfo, env: &Env, system: SystemId, until: Instant) -> Result<SqlSession, String> {
    let session = in_time(SqlSession::connect_any(info, env), until).await;
    let session = session.map_err(said)?;
    match ask::system_identifier(&session, until).await {
        Some(found) if found != system => Err(format!("{} is of another cluster, {found}", session.address())),
        _ => Ok(session),
    }
}

async fn connect_in_time(info: &ConnInfo, env: &Env, until: Instant) -> Result<SqlSession, String> {
    in_time(SqlSession::connect(info, env), until).await.map_err(said)
}

/// Connects; `Err(None)` if there was no time left for it.
async fn in_time(
    connecting: impl Future<Output = Result<SqlSession, ConnectError>>,
    until: Instant,
) -> Result<SqlSession, Option<ConnectError>> {
    let until = until.min(Instant::now() + CONNECT_TIME);
    let session = tokio::time::timeout_at(until, async {
        let session = connecting.await?;
        Ok(ask::prepare(&session).await.map(|()| session))
    });
    match session.await {
        Ok(Ok(Ok(session))) => Ok(session),
        Ok(Err(error)) => Err(Some(error)),
        // Whoever can't be told to be careful is not asked.
        Ok(Ok(Err(_))) | Err(_) => Err(None),
    }
}

fn said(error: Option<ConnectError>) -> String {
    match error {
        Some(error) => on_one_line(&error),
        None => "the server did not answer in time".to_owned(),
    }
}
