//! `check`: is this server protected by this repository, now, and what would it take?
//!
//! What the server tells is gathered first (`facts`) and then judged without I/O (`server`,
//! `archiver`, `slots`); the repository and the way into it are tried out (`repository`,
//! `round_trip`). What can't be tried because something before it failed is left out: each line that
//! is there is an answer.

mod archiver;
mod facts;
mod gaps;
mod rate;
mod repository;
mod round_trip;
mod server;
mod slots;
mod sql;
mod synchronous;
mod timeline;
mod words;

use std::time::Duration;

use serde::Serialize;

use crate::catalog::Catalog;
use crate::env::Env;
use crate::error::{Class, Explain, Failure};
use crate::ops::list;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{MajorVersion, VersionError};
use crate::replication::{ReplicationSession, SlotName, SystemIdentity};
use crate::repo::{ClusterInfo, Repository};
use crate::store::{Retry, Store, StoreError};

use facts::ServerFacts;
use sql::Sql;

/// How long to wait for the segment of the round trip unless told otherwise.
pub const WAL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the store may take for one call: a person is waiting.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// What one check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and somebody should know this.
    Warning,
    /// A restore would lack something, or there would be none.
    Fails,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What scripts know it by.
    pub name: String,
    /// What it came to.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// How to mend it; may have several lines, of which the later ones are to be copied as they are.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Ok,
            detail: detail.into(),
            fix: None,
        }
    }

    fn warning(name: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: Status::Warning,
            fix: Some(fix.into()),
            ..Self::ok(name, detail)
        }
    }

    fn fails(name: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: Status::Fails,
            ..Self::warning(name, detail, fix)
        }
    }
}

/// What is to be checked.
pub struct Request {
    /// The server.
    pub server: ConnInfo,
    /// The endpoint, where others may listen on the way to it.
    pub plain_http: Option<String>,
    /// Whether the store's key stands in the environment and nowhere else.
    pub key_only_in_environment: bool,
    /// A physical slot that must be there.
    pub slot: Option<SlotName>,
    /// How long the round trip may take.
    pub wal_timeout: Duration,
    /// The line of `postgresql.conf` that brings WAL into this repository.
    pub archive_command: String,
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// Each check, in the order in which they were made.
    pub checks: Vec<Check>,
    /// Why the server or the repository could not be checked.
    pub out_of_reach: Option<Failure>,
}

/// Something to be told of the whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Something is not fit.
    #[error("{} of {of} checks {}: {}", failed.len(), if failed.len() == 1 { "fails" } else { "fail" }, failed.join(", "))]
    NotFit {
        /// What.
        failed: Vec<String>,
        /// How many checks were made.
        of: usize,
    },
    /// Nothing is wrong but that WAL is missing.
    #[error("WAL is missing after the newest base backup")]
    Gap,
    /// Nothing is wrong but that no backup leads to the server's timeline.
    #[error("no base backup leads to the timeline that the server is on")]
    NoEntry,
    /// The server takes too long.
    #[error("no answer from the server within {}", humantime::format_duration(*.0))]
    NoAnswer(Duration),
    /// The server answers what can't be understood.
    #[error("the server's answer to a query has no usable \"{0}\"")]
    Answer(&'static str),
}

impl Explain for CheckError {
    fn class(&self) -> Class {
        match self {
            Self::NotFit { .. } => Class::Damaged,
            Self::Gap | Self::NoEntry => Class::OutOfReach,
            Self::NoAnswer(_) => Class::Unavailable,
            Self::Answer(_) => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NotFit { .. } => None,
            Self::Gap | Self::NoEntry => Some("take a new base backup: pgp-pitr backup".to_owned()),
            Self::NoAnswer(_) => Some("look into its log; is it overloaded, or the network cut?".to_owned()),
            Self::Answer(_) => Some("is a proxy between, or something else that changes answers?".to_owned()),
        }
    }
}

impl Report {
    /// Whether nothing fails.
    pub fn is_fit(&self) -> bool {
        self.count(Status::Fails) == 0
    }

    /// How many checks came to this.
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }

    /// Success, where nothing fails.
    ///
    /// # Errors
    /// What was out of reach, else what is not fit.
    pub fn verdict(self) -> Result<(), Failure> {
        if let Some(failure) = self.out_of_reach {
            return Err(failure);
        }
        let fails = |check: &&Check| check.status == Status::Fails;
        let failed: Vec<String> = self
            .checks
            .iter()
            .filter(fails)
            .map(|check| check.name.clone())
            .collect();
        match failed.as_slice() {
            [] => Ok(()),
            [only] if only == gaps::NAME => Err(CheckError::Gap.into()),
            [only] if only == timeline::NAME => Err(CheckError::NoEntry.into()),
            _ => Err(CheckError::NotFit {
                failed,
                of: self.checks.len(),
            }
            .into()),
        }
    }
}

/// The report in the making; who waits for it hears of each check as it is made.
struct Log<'a> {
    report: Report,
    tell: &'a mut dyn FnMut(&Check),
}

impl Log<'_> {
    fn add(&mut self, check: Check) {
        (self.tell)(&check);
        self.report.checks.push(check);
    }

    fn extend(&mut self, checks: impl IntoIterator<Item = Check>) {
        checks.into_iter().for_each(|check| self.add(check));
    }

    /// A check that broke off. What was damaged was at least reached.
    fn broke_off(&mut self, name: &str, failure: Failure) {
        let fix = failure
            .hint()
            .unwrap_or_else(|| "mend what is named here, and run check again".to_owned());
        self.add(Check::fails(name, failure.one_line(), fix));
        if !matches!(failure.class(), Class::Damaged | Class::Failed) {
            self.report.out_of_reach.get_or_insert(failure);
        }
    }
}

/// Makes every check that can be made. `store` is the repository's, or why it can't be opened; `tell`
/// hears of each check at once: the round trip may take a while.
pub async fn check(
    request: &Request,
    store: Result<Store, StoreError>,
    env: &Env,
    mut tell: impl FnMut(&Check),
) -> Report {
    let mut log = Log {
        report: Report {
            checks: Vec::new(),
            out_of_reach: None,
        },
        tell: &mut tell,
    };
    let server = match reach_server(&mut log, request, env).await {
        Ok(server) => server,
        Err(failure) => {
            log.broke_off("server", failure);
            None
        }
    };
    let facts = server.as_ref().map(|(_, facts)| facts);
    let repository = match store {
        Ok(store) => {
            let store = store.with_retry(Retry::within(STORE_PATIENCE));
            repository::check(&mut log, request, &store, facts).await
        }
        Err(error) => {
            log.broke_off("repository", error.into());
            None
        }
    };
    let Some((sql, facts)) = &server else {
        return log.report;
    };
    if let Some(repository) = &repository {
        // The round trip moves the server on.
        match position(sql, repository, facts).await {
            Ok(check) => log.extend(check),
            Err(failure) => log.broke_off("server_position", failure),
        }
        match round_trip::check(sql, facts, repository, request).await {
            Ok(check) => log.add(check),
            Err(failure) => log.broke_off("round_trip", failure),
        }
        // Not before: what a server that was just promoted archives comes in turn.
        match restorable(repository, facts).await {
            Ok(checks) => log.extend(checks),
            Err(failure) => log.broke_off(gaps::NAME, failure),
        }
    }
    // Last, so that it tells what the round trip has left.
    match archiver::check(sql, facts, request).await {
        Ok(checks) => log.extend(checks),
        Err(failure) => log.broke_off("archiver", failure),
    }
    log.report
}

/// Whether the server is where it was.
async fn position(sql: &Sql, repository: &Repository, facts: &ServerFacts) -> Result<Option<Check>, Failure> {
    let info = ClusterInfo::read(repository.store(), facts.system).await?;
    // A standby may be behind.
    let Some(info) = info.filter(|_| !facts.in_recovery) else {
        return Ok(None);
    };
    let stored = Catalog::read(repository, info).await?.wal.end(facts.timeline);
    let row = sql.row("select pg_current_wal_insert_lsn() as lsn").await?;
    Ok(timeline::judge_position(stored, row.need("lsn")?, facts.timeline))
}

/// Whether what the server writes now can be restored.
async fn restorable(repository: &Repository, facts: &ServerFacts) -> Result<Vec<Check>, Failure> {
    let mut checks = Vec::new();
    for mut listing in list::list(repository, Some(facts.system)).await? {
        list::look_back(repository, &mut listing, facts.timeline).await?;
        checks.extend(timeline::judge(&listing, facts.timeline));
        checks.extend(gaps::judge(&listing, facts.timeline));
    }
    Ok(checks)
}

/// Connects and makes every check that needs the server alone. `None`: it is one of a version that
/// can't be asked more.
async fn reach_server(log: &mut Log<'_>, request: &Request, env: &Env) -> Result<Option<(Sql, ServerFacts)>, Failure> {
    let sql = Sql::connect(&request.server, env).await?;
    let major = match sql.version().await? {
        Ok(major) => major,
        Err(error) => {
            log.add(unsupported(&error));
            return Ok(None);
        }
    };
    let mut facts = facts::gather(&sql, major).await?;
    if facts.slots.iter().any(|slot| slot.left.is_some()) {
        facts.wal_rate = rate::measure(&sql, major).await?;
    }
    let facts = facts;
    log.extend(server::judge(&facts, &sql.address(), &request.archive_command));
    log.add(match identify(request, env).await {
        Ok(identity) => server::judge_identity(&facts, &identity),
        Err(failure) => {
            let fix = failure
                .hint()
                .unwrap_or_else(|| "look into the server's log".to_owned());
            Check::fails("replication_connection", failure.one_line(), fix)
        }
    });
    log.extend(slots::judge(&facts, request.slot.as_ref()));
    log.extend(synchronous::judge(&facts, request.slot.as_ref()));
    Ok(Some((sql, facts)))
}

fn unsupported(error: &VersionError) -> Check {
    let (oldest, newest) = (MajorVersion::OLDEST.number(), MajorVersion::NEWEST_KNOWN.number());
    Check::fails(
        "version",
        error.to_string(),
        format!("PostgreSQL {oldest} to {newest} are supported: upgrade the server"),
    )
}

/// Says hello over the replication protocol, as `backup` will.
async fn identify(request: &Request, env: &Env) -> Result<SystemIdentity, Failure> {
    let hello = async {
        let mut session = ReplicationSession::connect(&request.server, env).await?;
        session.identify_system().await
    };
    match tokio::time::timeout(sql::PATIENCE, hello).await {
        Ok(identity) => Ok(identity?),
        Err(_) => Err(CheckError::NoAnswer(sql::PATIENCE).into()),
    }
}
