//! How fast a server writes WAL: what is left until a slot is given up means little without it.

use std::time::Duration;

use super::sql::Sql;
use crate::error::Failure;
use crate::pg::MajorVersion;

/// Between two looks at the server's position: a person waits.
const SAMPLE: Duration = Duration::from_secs(1);
/// Older majors have no `pg_stat_wal`.
const FIRST_WITH_STATISTICS: u16 = 14;

/// Bytes per second: now, or on the average since statistics were last reset, whichever is more. `None` where the server
/// tells neither.
pub(super) async fn measure(sql: &Sql, major: MajorVersion) -> Result<Option<u64>, Failure> {
    let average = match major.number() {
        FIRST_WITH_STATISTICS.. => average(sql).await?,
        _ => None,
    };
    let before = position(sql).await?;
    tokio::time::sleep(SAMPLE).await;
    let after = position(sql).await?;
    let now = before.zip(after).and_then(|((from, began), (to, ended))| {
        let seconds = ended - began;
        (seconds > 0.0 && to >= from).then(|| ((to - from) as f64 / seconds).ceil() as u64)
    });
    Ok(now.max(average))
}

async fn average(sql: &Sql) -> Result<Option<u64>, Failure> {
    let row = sql
        .row(
            "select ceil(wal_bytes / greatest(extract(epoch from clock_timestamp() - stats_reset), 1))::bigint as rate
               from pg_stat_wal",
        )
        .await?;
    Ok(row.get("rate"))
}

/// The position in bytes, and when it was read in seconds, by the server's clock.
async fn position(sql: &Sql) -> Result<Option<(u64, f64)>, Failure> {
    let row = sql
        .row(
            "select pg_wal_lsn_diff(
                      case when pg_is_in_recovery()
                           then coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                           else pg_current_wal_lsn() end, '0/0') as position,
                    extract(epoch from clock_timestamp())::float8 as at",
        )
        .await?;
    Ok(row.get("position").zip(row.get("at")))
}
