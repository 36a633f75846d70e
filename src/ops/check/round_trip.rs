//! The round trip: a segment is ended on the server, and must come out of the repository.
//!
//! Nothing else proves that WAL is archived: an `archive_command` may say yes and do nothing.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::archiver::{self, ArchiverFacts};
use super::facts::ServerFacts;
use super::sql::Sql;
use super::{Check, Request, server, words};
use crate::error::Failure;
use crate::pg::{Lsn, SegmentName, SegmentNumber, Timeline, WalFileName};
use crate::repo::{self, Fetched, Repository};

const NAME: &str = "round_trip";

/// How long server and store may tell different things: a segment that the one calls archived and the other
/// does not have yet, or the other way round.
const SETTLING: Duration = Duration::from_secs(2);

/// Failures of the archiver that are waited for: one may be of a try that was under way.
const FAILURES: u64 = 2;

/// Between two looks: short at first, because a segment usually takes a moment.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Tries it out.
pub(super) async fn check(
    sql: &Sql,
    facts: &ServerFacts,
    repository: &Repository,
    request: &Request,
) -> Result<Check, Failure> {
    if facts.in_recovery {
        let why = "a standby can't end a segment";
        return without_switch(sql, facts, repository, why, "run check against the primary as well").await;
    }
    if !facts.archives_now() && facts.receivers == 0 {
        let why = "not tried: nothing brings WAL from this server into the repository";
        return Ok(Check::fails(NAME, why, "see archive_mode"));
    }
    if !facts.may_switch_wal {
        let role = server::identifier(&facts.role);
        let why = format!("{} may not call pg_switch_wal()", facts.role);
        let fix = format!("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {role}");
        return without_switch(sql, facts, repository, &why, &fix).await;
    }
    let before = archiver::facts(sql).await?;
    let since = Instant::now();
    let segment = end_segment(sql, facts).await?;
    wait(sql, facts, repository, request, &before, segment, since).await
}

/// Ends the segment that is being written, and tells which it was.
async fn end_segment(sql: &Sql, facts: &ServerFacts) -> Result<SegmentName, Failure> {
    // A segment in which nothing was written is not ended: the commit of a transaction id is a record.
    sql.row("select pg_current_xact_id()").await?;
    let row = sql
        .row("select pg_switch_wal() as lsn, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline")
        .await?;
    let lsn: Lsn = row.need("lsn")?;
    let timeline = row.text("timeline").and_then(Timeline::from_hex);
    let timeline = timeline.ok_or(super::CheckError::Answer("timeline"))?;
    // The position is the end of the record that ended the segment. pg_walfile_name() of it would be
    // another file's at a segment's border, and which depends on the version.
    Ok(SegmentNumber::ending(lsn, facts.segment_size).name(timeline, facts.segment_size))
}

/// Waits until the segment is in the repository, or it is clear that it will not come.
async fn wait(
    sql: &Sql,
    facts: &ServerFacts,
    repository: &Repository,
    request: &Request,
    before: &ArchiverFacts,
    segment: SegmentName,
    since: Instant,
) -> Result<Check, Failure> {
    let file = WalFileName::Segment(segment);
    let mut called_archived = None;
    let mut pause = FIRST_PAUSE;
    loop {
        if is_whole(repository, facts, file).await? {
            let took = since.elapsed().as_secs_f64();
            settle(sql, facts, segment).await?;
            let detail = format!("{segment} arrived and was read back whole after {took:.1} s");
            return Ok(Check::ok(NAME, detail));
        }
        let now = archiver::facts(sql).await?;
        if facts.archives_now() && is_archived(&now, segment) {
            let at = *called_archived.get_or_insert_with(Instant::now);
            if at.elapsed() >= SETTLING {
                return Ok(Check::fails(
                    NAME,
                    format!(
                        "the server says that {segment} was archived, but it is not in this repository: \
                         archive_command succeeds and does not bring WAL here"
                    ),
                    format!(
                        "put this line into postgresql.conf, then reload it:\narchive_command = {}",
                        request.archive_command
                    ),
                ));
            }
        }
        if now.failed >= before.failed + FAILURES {
            let last = now.last_failed.as_deref().unwrap_or("a file");
            return Ok(Check::fails(
                NAME,
                format!(
                    "archive_command fails: {last} was refused {} just now",
                    words::times(now.failed - before.failed)
                ),
                "look into the server's log for what it said",
            ));
        }
        if since.elapsed() >= request.wal_timeout {
            return Ok(Check::fails(
                NAME,
                format!(
                    "{segment} is not in the repository after {}",
                    humantime::format_duration(request.wal_timeout)
                ),
                "see archiver; more time can be given with --wal-timeout",
            ));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits until the server knows what we have seen, so that what it tells next of its archiver is not of the
/// time before: the segment is here a moment before its command ends.
async fn settle(sql: &Sql, facts: &ServerFacts, segment: SegmentName) -> Result<(), Failure> {
    let seen = Instant::now();
    while facts.archives_now() && seen.elapsed() < SETTLING && !is_archived(&archiver::facts(sql).await?, segment) {
        tokio::time::sleep(FIRST_PAUSE).await;
    }
    Ok(())
}

/// Whether the server's last word is of this segment or a later one of its timeline.
fn is_archived(archiver: &ArchiverFacts, segment: SegmentName) -> bool {
    let last = archiver.last_archived.and_then(WalFileName::segment);
    last.is_some_and(|last| last.timeline() == segment.timeline() && last >= segment)
}

/// Whether a file is in the repository; if it is, each of its bytes is checked.
async fn is_whole(repository: &Repository, facts: &ServerFacts, file: WalFileName) -> Result<bool, Failure> {
    let store = repository.store();
    if repo::identity(store, facts.system, file).await?.is_none() {
        return Ok(false);
    }
    Ok(repo::fetch(store, facts.system, file, &mut io::sink()).await? == Fetched::Whole)
}

/// Where no segment can be ended, the last one that the server calls archived is looked for.
async fn without_switch(
    sql: &Sql,
    facts: &ServerFacts,
    repository: &Repository,
    why: &str,
    fix: &str,
) -> Result<Check, Failure> {
    let archiver = match facts.archives_now() {
        true => archiver::facts(sql).await?,
        false => ArchiverFacts::default(),
    };
    let Some(last) = archiver.last_archived else {
        return Ok(Check::warning(NAME, format!("not tried: {why}"), fix));
    };
    if is_whole(repository, facts, last).await? {
        let detail = format!("not tried: {why}; {last}, the last file that this server archived, is here and whole");
        return Ok(Check::warning(NAME, detail, fix));
    }
    let detail = format!("{last}, the last file that this server archived, is not in this repository");
    Ok(match archiver.last_is_stale {
        // It may have gone elsewhere, by settings that are no more.
        true => Check::warning(NAME, format!("not tried: {why}; {detail}"), fix),
        false => Check::fails(NAME, detail, "see archive_command: it brings WAL to another place"),
    })
}
