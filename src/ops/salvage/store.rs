//! Does what a survey says.

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::compare::read_part;
use super::survey::read_text;
use super::{Step, Survey};
use crate::error::Failure;
use crate::pg::{LongHeader, Timeline, WalFileName};
use crate::repo::tail::{self, PieceSource};
use crate::repo::{self, ClusterInfo, RepoError, Repository, WalContent, WalHead, WalSource};

/// A piece holds so much at most, as the receiver's do.
const PIECE: u64 = 1 << 20;

/// Stores what a survey found, in the order of the WAL. `tell` is told of each step when it is durable.
///
/// Steps, and what a crash after each leaves:
/// 1. `cluster.json` is created: a cluster without WAL;
/// 2. each file, then each piece, is created in one step: a repository that goes so far.
///
/// # Errors
/// The store; a file that can't be read any more; a name that another writer has taken meanwhile.
pub async fn store(
    repository: &Repository,
    survey: &Survey,
    level: i32,
    tell: &mut dyn FnMut(&Step),
) -> Result<(), Failure> {
    let cluster = &survey.cluster;
    if survey.is_empty() {
        return Ok(());
    }
    let known = ClusterInfo::read(repository.store(), cluster.system).await?;
    cluster.bind(repository, known).await?;
    for on in &survey.timelines {
        for step in &on.steps {
            let stored = one(repository, cluster, on.timeline, step, level).await;
            stored.map_err(|error| {
                Failure::from(error).with_hint("what was stored before is safe: run the same command again")
            })?;
            tell(step);
        }
    }
    Ok(())
}

async fn one(
    repository: &Repository,
    cluster: &ClusterInfo,
    timeline: Timeline,
    step: &Step,
    level: i32,
) -> Result<(), RepoError> {
    match step {
        Step::File { file, path } => {
            let source = source(cluster, *file, path).map_err(|error| unreadable(path, error))?;
            repo::push(repository, &source, level, None).await?;
        }
        Step::Piece {
            path,
            segment,
            from,
            to,
        } => {
            let mut at = *from;
            while at < *to {
                let end = at.plus(PIECE.min(to.since(at)));
                let part = read_part(path, at.since(*segment), end.since(at));
                let content = [Bytes::from(part.map_err(|error| unreadable(path, error))?)];
                let source = PieceSource {
                    cluster,
                    timeline,
                    from: at,
                    content: &content,
                };
                let packed = tail::pack_piece(&source, level, now(repository))?;
                tail::put_piece(repository, packed).await?;
                at = end;
            }
        }
    }
    Ok(())
}

fn now(repository: &Repository) -> DateTime<Utc> {
    repository.store().env().now()
}

fn unreadable(path: &Path, source: io::Error) -> RepoError {
    RepoError::File {
        doing: "read",
        file: path.display().to_string(),
        source,
    }
}

fn source(cluster: &ClusterInfo, file: WalFileName, path: &Path) -> io::Result<WalSource> {
    let about = fs::metadata(path)?;
    let modified_at = about.modified().map(DateTime::<Utc>::from).unwrap_or_default();
    if let WalFileName::History(_) = file {
        return Ok(WalSource::of_text(cluster, file, read_text(path)?, modified_at));
    }
    let head = read_part(path, 0, LongHeader::BYTES as u64)?;
    let header = LongHeader::parse(&head).map_err(io::Error::other)?;
    Ok(WalSource {
        head: WalHead::of_segment(cluster, file, header.page.magic, about.len(), modified_at),
        content: WalContent::File(path.to_path_buf()),
    })
}
