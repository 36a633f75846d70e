//! The server's archiver: is it failing, and how much WAL waits for it (rule 10)?

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::facts::ServerFacts;
use super::sql::Sql;
use super::{Check, Request, server, words};
use crate::disk;
use crate::error::Failure;
use crate::ops::local;
use crate::pg::conninfo::{Endpoint, Host, Server};
use crate::pg::size::Size;
use crate::pg::{Lsn, SegmentNumber, WalFileName};

/// A segment that waits longer than this is one too long: usually it takes seconds.
const LONG: Duration = Duration::from_secs(300);

/// As many segments wait only where archiving is slower than writing.
const MANY: u64 = 16;

/// What `pg_stat_archiver` tells.
#[derive(Debug, Clone, Default)]
pub(super) struct ArchiverFacts {
    pub(super) last_archived: Option<WalFileName>,
    /// Whether that was before the server last read its configuration.
    pub(super) last_is_stale: bool,
    pub(super) failed: u64,
    pub(super) last_failed: Option<String>,
    pub(super) last_failed_at: Option<String>,
    /// Whether the last failure is newer than the last success.
    pub(super) is_failing: bool,
}

/// WAL that waits to be archived.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    segments: u64,
    /// How long the oldest has waited, where the role may know.
    oldest: Option<Duration>,
}

/// Asks the server how its archiver fares.
pub(super) async fn facts(sql: &Sql) -> Result<ArchiverFacts, Failure> {
    let row = sql
        .row(
            "select last_archived_wal, last_archived_time < pg_conf_load_time() as stale,
                    failed_count, last_failed_wal,
                    to_char(last_failed_time at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as last_failed_at,
                    coalesce(last_failed_time > last_archived_time, last_failed_time is not null) as failing
               from pg_stat_archiver",
        )
        .await?;
    Ok(ArchiverFacts {
        last_archived: row.get("last_archived_wal"),
        last_is_stale: row.is("stale"),
        failed: row.need("failed_count")?,
        last_failed: row.get("last_failed_wal"),
        last_failed_at: row.get("last_failed_at"),
        is_failing: row.is("failing"),
    })
}

/// Checks the archiver, where one runs, and the disk that fills while it fails, where that is here.
pub(super) async fn check(sql: &Sql, facts: &ServerFacts, request: &Request) -> Result<Vec<Check>, Failure> {
    let mut checks = Vec::new();
    let mut waiting = None;
    if facts.archives_now() {
        let archiver = self::facts(sql).await?;
        waiting = self::waiting(sql, facts, &archiver).await?;
        checks.push(judge(facts, &archiver, waiting));
    }
    if let Some(free) = free_space(facts, request) {
        checks.push(server::judge_disk(
            facts,
            free,
            waiting.and_then(|waiting| rate(facts, waiting)),
        ));
    }
    Ok(checks)
}

/// How much waits: by the archiver's own marks, or, where the role may not see those, by how far the
/// server has written since the last file that was archived.
async fn waiting(sql: &Sql, facts: &ServerFacts, archiver: &ArchiverFacts) -> Result<Option<Waiting>, Failure> {
    let marks = sql
        .row_if_permitted(
            "select count(*) as segments, extract(epoch from now() - min(modification))::bigint as oldest
               from pg_ls_archive_statusdir() where name ~ '^[0-9A-F]{24}\\.ready$'",
        )
        .await?;
    if let Some(marks) = marks {
        return Ok(Some(Waiting {
            segments: marks.need("segments")?,
            oldest: marks.seconds("oldest"),
        }));
    }
    let last = archiver.last_archived.and_then(WalFileName::segment);
    let last = last.and_then(|last| last.number(facts.segment_size));
    let (Some(last), false) = (last, facts.in_recovery) else {
        return Ok(None);
    };
    let at: Lsn = sql.row("select pg_current_wal_lsn() as lsn").await?.need("lsn")?;
    let current = SegmentNumber::holding(at, facts.segment_size).number();
    Ok(Some(Waiting {
        segments: current.saturating_sub(last.number() + 1),
        oldest: None,
    }))
}

fn judge(facts: &ServerFacts, archiver: &ArchiverFacts, waiting: Option<Waiting>) -> Check {
    let name = "archiver";
    let backlog = match waiting {
        None => "how many segments wait is shown to members of pg_monitor".to_owned(),
        Some(Waiting { segments: 0, .. }) => "nothing waits".to_owned(),
        Some(waiting) => backlog(facts, waiting),
    };
    if archiver.is_failing {
        let last = archiver.last_failed.as_deref().unwrap_or("a file");
        let at = archiver.last_failed_at.as_deref().unwrap_or("an unknown time");
        return Check::fails(
            name,
            format!(
                "failing: {last} at {at} ({}); {backlog}",
                words::count(archiver.failed, "failure")
            ),
            "look into the server's log for what archive_command said; until it works, pg_wal grows",
        );
    }
    let detail = match (&archiver.last_archived, archiver.failed) {
        (None, _) => format!("has archived nothing yet; {backlog}"),
        (Some(last), 0) => format!("last archived {last}; {backlog}"),
        (Some(last), failed) => format!(
            "last archived {last}; {backlog}; {} earlier, the last at {}",
            words::count(failed, "failure"),
            archiver.last_failed_at.as_deref().unwrap_or("an unknown time")
        ),
    };
    let is_behind = |waiting: Waiting| {
        waiting.segments >= MANY || (waiting.segments > 0 && waiting.oldest.is_some_and(|oldest| oldest > LONG))
    };
    match waiting.is_some_and(is_behind) {
        true => Check::warning(
            name,
            format!("falls behind: {detail}"),
            "the repository or the way to it is slower than the server writes; until it catches up, pg_wal grows",
        ),
        false => Check::ok(name, detail),
    }
}

fn backlog(facts: &ServerFacts, waiting: Waiting) -> String {
    let bytes = Size::new(waiting.segments.saturating_mul(facts.segment_size.bytes())).short();
    let oldest = waiting
        .oldest
        .map(|oldest| format!(", the oldest for {}", words::span(oldest)));
    let verb = if waiting.segments == 1 { "waits" } else { "wait" };
    format!(
        "{} ({bytes}) {verb}{}",
        words::count(waiting.segments, "segment"),
        oldest.unwrap_or_default()
    )
}

/// Bytes of WAL in a second, as told by what came up since the oldest that waits.
fn rate(facts: &ServerFacts, waiting: Waiting) -> Option<f64> {
    let since = waiting.oldest.filter(|oldest| !oldest.is_zero())?;
    let bytes = waiting.segments.saturating_mul(facts.segment_size.bytes());
    Some(bytes as f64 / since.as_secs_f64())
}

/// Bytes free on the disk of `pg_wal`, where the data directory is on this machine and can be read.
fn free_space(facts: &ServerFacts, request: &Request) -> Option<u64> {
    let is_here = |server: &Server| match (server.host(), server.endpoint()) {
        (Host::Unix(_), Endpoint::Socket(_)) => true,
        (_, Endpoint::Address(address)) => address.ip().is_loopback(),
        (_, Endpoint::Name(name, _)) => name == "localhost",
        _ => false,
    };
    let data = Path::new(facts.setting("data_directory"));
    if data.as_os_str().is_empty() || !request.server.servers().iter().all(is_here) {
        return None;
    }
    // A forwarded port looks like a server here: only the same cluster's directory tells of its disk.
    let control = local::control_file(data).ok().flatten()?;
    let wal: PathBuf = data.join("pg_wal");
    (control.system == facts.system)
        .then(|| disk::free_space(&wal).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::facts::tests::server;
    use super::*;

    fn waiting(segments: u64, minutes: u64) -> Option<Waiting> {
        Some(Waiting {
            segments,
            oldest: Some(Duration::from_secs(60 * minutes)),
        })
    }

    #[test]
    fn a_failing_archiver_is_told_with_its_file_and_what_waits() {
        let archiver = ArchiverFacts {
            failed: 7,
            last_failed: Some("000000010000000000000003".to_owned()),
            last_failed_at: Some("2026-11-21T10:15:00Z".to_owned()),
            is_failing: true,
            ..ArchiverFacts::default()
        };
        let check = judge(&server(), &archiver, waiting(12, 14));
        assert_eq!(check.status, Status::Fails);
        assert_eq!(
            check.detail,
            "failing: 000000010000000000000003 at 2026-11-21T10:15:00Z (7 failures); \
             12 segments (192 MiB) wait, the oldest for 14m"
        );
    }

    #[test]
    fn an_archiver_that_is_too_slow_is_a_warning_before_the_disk_is_full() {
        let archiver = ArchiverFacts::default();
        for (waiting, status) in [
            (None, Status::Ok),
            (waiting(1, 1), Status::Ok),
            (waiting(1, 6), Status::Warning),
            (waiting(16, 0), Status::Warning),
        ] {
            assert_eq!(judge(&server(), &archiver, waiting).status, status, "{waiting:?}");
        }
    }

    #[test]
    fn the_rate_is_what_came_up_since_the_oldest_that_waits() {
        let rate = waiting(12, 1).and_then(|waiting| rate(&server(), waiting));
        assert_eq!(rate, Some(f64::from(12 * (16 << 20)) / 60.0));
    }
}
