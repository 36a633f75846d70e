//! What the repository has of the first segment that is received: the server must send the same, or it is not the
//! server that wrote it.

use super::begin::Unit;
use crate::pg::WalFileName;
use crate::repo::tail::{Tail, tail};
use crate::repo::{ClusterInfo, RepoError, Repository, identity};

/// The stretch that the repository has of a segment, from its first byte on, whole or in pieces.
pub(super) async fn what_is_stored(
    repository: &Repository,
    cluster: &ClusterInfo,
    unit: Unit,
) -> Result<Tail, RepoError> {
    let size = cluster.segment_size;
    let file = WalFileName::Segment(unit.number.name(unit.timeline, size));
    if let Some(whole) = identity(repository.store(), cluster.system, file).await? {
        return Ok(Tail {
            end: unit.number.end(size),
            beyond: None,
            digest: whole.content,
            damaged: Vec::new(),
        });
    }
    let mut nowhere = std::io::sink();
    let tail = tail(repository, cluster, unit.timeline, unit.number, &mut nowhere).await?;
    for damaged in &tail.damaged {
        tracing::warn!(error = damaged, "a piece is damaged; it is received again");
    }
    Ok(tail)
}
