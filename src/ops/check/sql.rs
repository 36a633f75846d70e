//! Queries whose answers are texts, each within a bounded time.

use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::CheckError;
use crate::env::Env;
use crate::error::Failure;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{MajorVersion, VersionError};
use crate::replication::{SqlError, SqlSession, SqlState};

/// How long the server may take for one answer: each of ours is quick, or something is wrong.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A connection for queries.
pub(super) struct Sql(SqlSession);

impl Sql {
    /// Connects.
    pub(super) async fn connect(info: &ConnInfo, env: &Env) -> Result<Self, Failure> {
        let session = in_time(SqlSession::connect_any(info, env)).await??;
        let sql = Self(session);
        // What a role or a database was told to find first must not stand in for the server's own.
        sql.rows("set search_path = pg_catalog").await?;
        Ok(sql)
    }

    /// Which server of several it is.
    pub(super) fn address(&self) -> String {
        self.0.address().to_string()
    }

    /// The server's major version, or why it is none that is supported.
    pub(super) async fn version(&self) -> Result<Result<MajorVersion, VersionError>, Failure> {
        let row = self
            .row("select current_setting('server_version_num') as number")
            .await?;
        Ok(MajorVersion::from_server_version_num(row.need("number")?))
    }

    /// The rows that a query answers.
    pub(super) async fn rows(&self, query: &str) -> Result<Vec<Row>, Failure> {
        let answer = in_time(self.0.simple_query(query)).await?;
        let messages = answer.map_err(|error| self.0.failed(error))?;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some(Row(row)),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// The one row that a query answers.
    pub(super) async fn row(&self, query: &str) -> Result<Row, Failure> {
        let first = self.rows(query).await?.into_iter().next();
        Ok(first.ok_or(CheckError::Answer("row"))?)
    }

    /// The one row that a query answers; `None` where the role may not ask.
    pub(super) async fn row_if_permitted(&self, query: &str) -> Result<Option<Row>, Failure> {
        let may_not = |failure: &Failure| {
            let refused = failure.downcast_ref::<SqlError>()?.server_error()?;
            refused.is(SqlState::INSUFFICIENT_PRIVILEGE).then_some(())
        };
        match self.row(query).await {
            Err(failure) if may_not(&failure).is_some() => Ok(None),
            answer => answer.map(Some),
        }
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, CheckError> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| CheckError::NoAnswer(PATIENCE))
}

/// One row of an answer; its values are read by the columns' names.
pub(super) struct Row(SimpleQueryRow);

impl Row {
    /// A value's text; `None` for null.
    pub(super) fn text(&self, column: &str) -> Option<&str> {
        self.0.try_get(column).ok().flatten()
    }

    /// A value; `None` for null, and for what can't be read.
    pub(super) fn get<T: FromStr>(&self, column: &str) -> Option<T> {
        self.text(column)?.parse().ok()
    }

    /// A value that must be there.
    pub(super) fn need<T: FromStr>(&self, column: &'static str) -> Result<T, CheckError> {
        self.get(column).ok_or(CheckError::Answer(column))
    }

    /// Whether a value is true.
    pub(super) fn is(&self, column: &str) -> bool {
        self.text(column) == Some("t")
    }

    /// A number of seconds; below zero, where clocks were turned, counts as none.
    pub(super) fn seconds(&self, column: &str) -> Option<Duration> {
        let seconds: i64 = self.get(column)?;
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }
}
