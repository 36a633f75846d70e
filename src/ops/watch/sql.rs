//! What the server itself answers, once it lets us in. One connection is kept, so that its log does not
//! fill with ours; it holds no snapshot, so that replay never waits for it.

use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDateTime, Utc};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::identity::Borrowed;
use super::postmaster::{Postmaster, Status};
use crate::env::Env;
use crate::error::{Failure, on_one_line};
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, MajorVersion, Timeline};
use crate::replication::{ConnectError, SqlSession};

/// An answer that takes longer is no help to somebody who watches.
const PATIENCE: Duration = Duration::from_secs(3);
/// A server that is busy is asked again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// From 14 on the server tells whether it has paused, before only whether it was asked to.
const FIRST_WITH_PAUSE_STATE: u16 = 14;

/// How to connect to a server, from what its `postmaster.pid` says.
pub type Connect<'a> = dyn Fn(&Postmaster) -> Result<ConnInfo, Failure> + 'a;

/// What the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) recovering: bool,
    pub(super) paused: bool,
    pub(super) lsn: Option<Lsn>,
    pub(super) at: Option<DateTime<Utc>>,
    pub(super) timeline: Option<Timeline>,
}

/// The way to ask.
#[derive(Default)]
pub(super) struct Sql {
    session: Option<(i32, SqlSession)>,
    /// Whom not to ask before when, and why; for ever where there is no such moment.
    silent: Option<(i32, Option<Instant>, String)>,
}

impl Sql {
    /// Asks; else says in words why there is no answer.
    pub(super) async fn ask(
        &mut self,
        postmaster: &Postmaster,
        (major, owner): (MajorVersion, u32),
        connect: &Connect<'_>,
        env: &Env,
    ) -> Result<Answer, String> {
        let pid = postmaster.pid;
        self.session = self.session.take().filter(|(of, _)| *of == pid);
        if postmaster.status != Status::Ready {
            // Each try before would be a FATAL in its log.
            return Err("the server takes no connections yet".to_owned());
        }
        if let Some((of, until, why)) = &self.silent
            && *of == pid
            && until.is_none_or(|until| Instant::now() < until)
        {
            return Err(why.clone());
        }
        let again = Some(Instant::now() + AGAIN);
        let session = match self.session.take() {
            Some((_, session)) => session,
            None => match open(postmaster, owner, connect, env).await {
                Ok(session) => session,
                Err((why, passes)) => {
                    self.silent = Some((pid, again.filter(|_| passes), why.clone()));
                    return Err(why);
                }
            },
        };
        match in_time(query(&session, major)).await {
            Ok(Ok(answer)) => {
                self.session = Some((pid, session));
                Ok(answer)
            }
            Ok(Err(why)) | Err(why) => Err(why),
        }
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let late = || format!("the server did not answer within {} s", PATIENCE.as_secs());
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| late())
}

/// Connects; else why not, and whether that may pass.
async fn open(
    postmaster: &Postmaster,
    owner: u32,
    connect: &Connect<'_>,
    env: &Env,
) -> Result<SqlSession, (String, bool)> {
    let info = connect(postmaster).map_err(|failure| (failure.one_line(), false))?;
    let connected = {
        let _as_owner = Borrowed::of(owner);
        in_time(SqlSession::connect_any(&info, env)).await
    };
    match connected {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(error)) => {
            let passes = matches!(
                error,
                ConnectError::NotReady { .. }
                    | ConnectError::Reach { .. }
                    | ConnectError::Timeout { .. }
                    | ConnectError::Closed { .. }
                    | ConnectError::TooManyConnections { .. }
            );
            Err((on_one_line(&error), passes))
        }
        Err(late) => Err((late, true)),
    }
}

async fn query(session: &SqlSession, major: MajorVersion) -> Result<Answer, String> {
    let messages = session.simple_query(&question(major)).await;
    let messages = messages.map_err(|error| on_one_line(&session.failed(error)))?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    row.and_then(read)
        .ok_or_else(|| "the server's answer was not understood".to_owned())
}

/// Functions that are an error outside of recovery, or inside, are called only where they are none.
fn question(major: MajorVersion) -> String {
    let paused = match major.number() >= FIRST_WITH_PAUSE_STATE {
        true => "pg_catalog.pg_get_wal_replay_pause_state() = 'paused'",
        false => "pg_catalog.pg_is_wal_replay_paused()",
    };
    format!(
        "select r.recovering, case when r.recovering then {paused} end as paused, \
         case when r.recovering then pg_catalog.pg_last_wal_replay_lsn() \
         else pg_catalog.pg_current_wal_lsn() end as lsn, \
         case when not r.recovering then pg_catalog.substr(pg_catalog.pg_walfile_name(\
         pg_catalog.pg_current_wal_lsn()), 1, 8) end as timeline, \
         pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.pg_last_xact_replay_timestamp()), \
         'YYYY-MM-DD HH24:MI:SS.US') as moment \
         from (select pg_catalog.pg_is_in_recovery() as recovering) as r"
    )
}

fn read(row: &SimpleQueryRow) -> Option<Answer> {
    let text = |column: &str| row.try_get(column).ok().flatten();
    let moment = |text: &str| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.6f").ok();
    Some(Answer {
        recovering: text("recovering")? == "t",
        paused: text("paused") == Some("t"),
        lsn: text("lsn").and_then(|lsn| lsn.parse().ok()),
        at: text("moment").and_then(moment).map(|moment| moment.and_utc()),
        timeline: text("timeline")
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .and_then(Timeline::new),
    })
}
