//! Asking the server: carefully, and no more than there is time and room for.
//!
//! Each query answers rows of one JSON text, made by the server (`row_to_json`), so that one reading
//! serves all shapes. Names in a cluster need not be valid UTF-8; such bytes become U+FFFD here.

use std::error::Error;
use std::pin::pin;

use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::{FromSql, ToSql, Type};

use crate::pg::SystemId;
use crate::replication::SqlSession;

/// So many warnings are told; a hundred closed databases need not be a hundred lines.
const WARNINGS: usize = 20;

/// What every session here is told first. The empty search path keeps objects of users from being
/// called by our queries; a statement that waits for a lock or works for long is given up.
const CAREFULLY: &str = "\
    SELECT pg_catalog.set_config('search_path', '', false);
    SET default_transaction_read_only = on;
    SET statement_timeout = '5s';
    SET lock_timeout = '1s';
    SET idle_in_transaction_session_timeout = '10s';
    SET jit = off;
    SET TimeZone = 'UTC';
    SELECT pg_catalog.set_config('client_encoding', 'SQL_ASCII', false)
     WHERE pg_catalog.current_setting('server_encoding') OPERATOR(pg_catalog.=) 'SQL_ASCII'";

/// Sets a session up.
pub(super) async fn prepare(session: &SqlSession) -> Result<(), tokio_postgres::Error> {
    session.batch_execute(CAREFULLY).await
}

/// Which cluster it is; `None` where the role may not ask.
pub(super) async fn system_identifier(session: &SqlSession, until: Instant) -> Option<SystemId> {
    let sql = "SELECT system_identifier::text FROM pg_control_system()";
    let row = timeout_at(until, session.query_one(sql, &[])).await.ok()?.ok()?;
    row.try_get::<_, Text>(0).ok()?.0.parse().ok()
}

/// Why an answer is not whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The server refused, or the connection broke.
    #[error("{}", words(.0))]
    Server(#[from] tokio_postgres::Error),
    /// What came is not what was asked for.
    #[error("the server's answer was not understood: {0}")]
    Odd(#[from] serde_json::Error),
    /// No time is left.
    #[error("it takes too long")]
    Late,
    /// No room is left.
    #[error("there is too much of it")]
    Full,
}

/// The server's own words, without the frills.
fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => error.message().to_owned(),
        None => crate::error::on_one_line(error),
    }
}

/// How many bytes may still be read, and until when.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
    until: Instant,
}

impl Budget {
    pub(super) fn new(bytes: usize, until: Instant) -> Self {
        Self { bytes, until }
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Takes `bytes` out of it.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Trouble> {
        match self.bytes.checked_sub(bytes) {
            Some(left) => {
                self.bytes = left;
                Ok(())
            }
            None => {
                self.bytes = 0;
                Err(Trouble::Full)
            }
        }
    }

    /// Whether there is nothing left of it.
    pub(super) fn is_spent(&self) -> bool {
        self.bytes == 0 || Instant::now() >= self.until
    }

    /// What to say when it is spent.
    pub(super) fn trouble(&self) -> Trouble {
        if self.bytes == 0 { Trouble::Full } else { Trouble::Late }
    }
}

/// All rows of a query as values, as far as they could be read; and why no further.
pub(super) async fn rows<T: DeserializeOwned>(
    session: &SqlSession,
    sql: &str,
    budget: &mut Budget,
) -> (Vec<T>, Option<Trouble>) {
    let mut rows = Vec::new();
    let trouble = read_rows(session, sql, budget, &mut rows).await.err();
    (rows, trouble)
}

async fn read_rows<T: DeserializeOwned>(
    session: &SqlSession,
    sql: &str,
    budget: &mut Budget,
    rows: &mut Vec<T>,
) -> Result<(), Trouble> {
    each_row(session, sql, budget, &mut |row| {
        rows.push(row);
        Ok(())
    })
    .await
}

/// Hands out the rows of a query one by one, as they come.
pub(super) async fn each_row<T: DeserializeOwned>(
    session: &SqlSession,
    sql: &str,
    budget: &mut Budget,
    each: &mut impl FnMut(T) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let nothing: [&(dyn ToSql + Sync); 0] = [];
    let until = budget.until;
    let stream = timeout_at(until, session.query_raw(sql, nothing)).await;
    let mut stream = pin!(stream.map_err(|_| Trouble::Late)??);
    while let Some(row) = timeout_at(until, stream.next()).await.map_err(|_| Trouble::Late)? {
        let Text(text) = row?.try_get(0)?;
        budget.take(text.len())?;
        each(serde_json::from_str(&text)?)?;
    }
    Ok(())
}

/// The one row of a query.
pub(super) async fn row<T: DeserializeOwned + Default>(
    session: &SqlSession,
    sql: &str,
    budget: &mut Budget,
) -> Result<T, Trouble> {
    match rows(session, sql, budget).await {
        (_, Some(trouble)) => Err(trouble),
        (rows, None) => Ok(rows.into_iter().next().unwrap_or_default()),
    }
}

/// Text from the server, whatever its bytes are.
pub(super) struct Text(pub(super) String);

impl<'a> FromSql<'a> for Text {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// What could not be read.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    texts: Vec<String>,
    more: usize,
}

impl Warnings {
    pub(super) fn add(&mut self, text: String) {
        if self.texts.len() < WARNINGS {
            self.texts.push(text);
        } else {
            self.more += 1;
        }
    }

    /// Adds "`what`: why" if there was trouble.
    pub(super) fn add_trouble(&mut self, what: &str, trouble: Option<Trouble>) {
        if let Some(trouble) = trouble {
            self.add(format!("{what}: {trouble}"));
        }
    }

    pub(super) fn into_texts(mut self) -> Vec<String> {
        if self.more > 0 {
            self.texts.push(format!("and {} more like these", self.more));
        }
        self.texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_exceeds_the_budget_spends_it() {
        let now = Instant::now();
        let mut budget = Budget::new(10, now + std::time::Duration::from_secs(60));
        assert!(budget.take(9).is_ok() && !budget.is_spent());
        assert!(matches!(budget.take(2), Err(Trouble::Full)));
        assert!(budget.is_spent() && matches!(budget.trouble(), Trouble::Full));
        let late = Budget::new(10, now);
        assert!(late.is_spent() && matches!(late.trouble(), Trouble::Late));
    }

    #[test]
    fn a_hundred_warnings_are_twenty_and_a_number() {
        let mut warnings = Warnings::default();
        for number in 0..100 {
            warnings.add_trouble(&number.to_string(), Some(Trouble::Late));
        }
        let texts = warnings.into_texts();
        assert_eq!(texts.len(), WARNINGS + 1);
        assert_eq!(texts[0], "0: it takes too long");
        assert_eq!(texts[WARNINGS], "and 80 more like these");
    }
}
