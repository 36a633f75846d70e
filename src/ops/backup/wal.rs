//! After a backup: is all its WAL in this repository?

use std::time::Duration;

use tokio::time::Instant;

use super::guard::Archiver;
use super::{BackupError, Options, Progress, Server};
use crate::error::Failure;
use crate::ops::history;
use crate::pg::{SegmentName, SegmentNumber, WalFileName};
use crate::replication::{BackupEnd, ReplicationSession};
use crate::repo::tail::tail;
use crate::repo::{self, Repository};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Waits until every segment from `start` to `end` is in the repository.
///
/// # Errors
/// One that did not arrive in time, or the store.
pub(super) async fn wait(
    repository: &Repository,
    session: &mut ReplicationSession,
    server: &Server,
    start: &BackupEnd,
    end: &BackupEnd,
    options: &Options,
    tell: &mut dyn FnMut(Progress),
) -> Result<(), Failure> {
    let size = server.cluster.segment_size;
    let begun = Instant::now();
    let mut next = SegmentNumber::holding(start.lsn, size);
    let last = SegmentNumber::ending(end.lsn, size);
    let mut pause = FIRST_PAUSE;
    // A server archives it only once, at the promotion, perhaps long before it knew this repository.
    history::store(repository, session, &server.cluster, start.timeline).await?;
    while next <= last {
        let segment = next.name(end.timeline, size);
        let received = async || received(repository, server, next, end).await;
        if is_there(repository, server, segment).await? || next == last && received().await? {
            (next, pause) = (next.next(), FIRST_PAUSE);
            continue;
        }
        tell(Progress::WaitingForWal(end.lsn));
        if begun.elapsed() + pause > options.wal_timeout {
            return Err(BackupError::WalMissing {
                segment,
                repository: repository.store().url().to_string(),
                waited: humantime::format_duration(options.wal_timeout).to_string(),
                why: why(server).await,
            }
            .into());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

async fn is_there(repository: &Repository, server: &Server, segment: SegmentName) -> Result<bool, Failure> {
    let file = WalFileName::Segment(segment);
    Ok(repo::identity(repository.store(), server.cluster.system, file)
        .await?
        .is_some())
}

/// Whether a receiver has brought the last segment up to the backup's end: a standby cannot switch to the next one.
async fn received(
    repository: &Repository,
    server: &Server,
    number: SegmentNumber,
    end: &BackupEnd,
) -> Result<bool, Failure> {
    let mut nowhere = std::io::sink();
    let tail = tail(repository, &server.cluster, end.timeline, number, &mut nowhere).await?;
    Ok(tail.end >= end.lsn)
}

async fn why(server: &Server) -> String {
    let Some(sql) = &server.sql else { return String::new() };
    match Archiver::ask(sql).await {
        Ok(archiver) if archiver.failing => {
            format!(
                ": the server's archiver fails, for {} last",
                archiver.last_failed.unwrap_or_default()
            )
        }
        _ => String::new(),
    }
}
