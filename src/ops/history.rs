//! A timeline's history, from the server into the repository: no recovery finds its way to that timeline without it.

use crate::error::Failure;
use crate::pg::{Timeline, WalFileName};
use crate::replication::ReplicationSession;
use crate::repo::{self, ClusterInfo, Repository, WalSource};

/// zstd's level: some lines.
const LEVEL: i32 = 1;

/// Makes the history of a timeline durable in the repository, where it lacks it and the server has it.
///
/// # Errors
/// The server, or the store.
pub(super) async fn store(
    repository: &Repository,
    session: &mut ReplicationSession,
    cluster: &ClusterInfo,
    timeline: Timeline,
) -> Result<(), Failure> {
    let file = WalFileName::History(timeline);
    let is_there = async || repo::identity(repository.store(), cluster.system, file).await;
    if timeline == Timeline::FIRST || is_there().await?.is_some() {
        return Ok(());
    }
    let Some(history) = session.timeline_history(timeline).await? else {
        return Ok(());
    };
    let source = WalSource::of_text(cluster, file, history, repository.store().env().now());
    repo::push(repository, &source, LEVEL, None).await?;
    Ok(())
}
