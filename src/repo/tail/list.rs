//! Which pieces are there.
//!
//! A bucket that forbids deletes keeps all pieces that ever were, millions of them. So readers list only those of
//! segments that are not whole: names are in the order of the WAL, and a bucket lists from any name on.

use futures_util::StreamExt;

use super::Piece;
use crate::pg::{Lsn, SegmentNumber, SystemId, Timeline};
use crate::repo::{ClusterInfo, RepoError, Repository, names};
use crate::store::{Entry, Name};

/// One timeline's pieces, by where they begin and end.
///
/// # Errors
/// The store.
pub async fn pieces(repository: &Repository, system: SystemId, timeline: Timeline) -> Result<Vec<Piece>, RepoError> {
    below(repository, &names::tail_timeline(system, timeline)).await
}

/// One segment's pieces, by where they begin and end.
///
/// # Errors
/// The store.
pub async fn pieces_of(
    repository: &Repository,
    cluster: &ClusterInfo,
    timeline: Timeline,
    number: SegmentNumber,
) -> Result<Vec<Piece>, RepoError> {
    let (store, system, size) = (repository.store(), cluster.system, cluster.segment_size);
    let mut found = if store.folder().is_some() {
        pieces(repository, system, timeline).await?
    } else {
        let end = number.end(size);
        let wanted = |entry: &Entry| read(entry).is_none_or(|piece| piece.from < end);
        let folder = names::tail_timeline(system, timeline);
        let (entries, _) = store
            .list_after(&folder, &before(&folder, number.start(size)), wanted)
            .await?;
        entries.iter().filter_map(read).collect()
    };
    found.retain(|piece| piece.segment(size) == Some(number));
    Ok(found)
}

/// The timelines of which there may be pieces.
///
/// # Errors
/// The store.
pub async fn timelines(repository: &Repository, system: SystemId) -> Result<Vec<Timeline>, RepoError> {
    let (folders, _) = repository.store().list_level(&names::tail(system)).await?;
    let timelines = folders
        .iter()
        .filter_map(|folder| Timeline::from_hex(folder.filename()?));
    Ok(timelines.collect())
}

/// A timeline's pieces, by where they begin and end. Those of segments that are whole may be left out: `whole` tells the
/// first segment behind one that is not, and nothing for one that is not itself.
///
/// # Errors
/// The store.
pub async fn pieces_to_read(
    repository: &Repository,
    cluster: &ClusterInfo,
    timeline: Timeline,
    whole: impl Fn(SegmentNumber) -> Option<SegmentNumber> + Sync,
) -> Result<Vec<Piece>, RepoError> {
    let (store, system, size) = (repository.store(), cluster.system, cluster.segment_size);
    if store.folder().is_some() {
        return pieces(repository, system, timeline).await;
    }
    let folder = names::tail_timeline(system, timeline);
    let whole_after = |piece: &Piece| whole(SegmentNumber::holding(piece.from, size));
    let wanted = |entry: &Entry| read(entry).is_none_or(|piece| whole_after(&piece).is_none());
    let (mut found, mut from) = (Vec::new(), Lsn::ZERO);
    loop {
        let (entries, beyond) = store.list_after(&folder, &before(&folder, from), wanted).await?;
        found.extend(entries.iter().filter_map(read));
        let Some(next) = beyond.as_ref().and_then(read).and_then(|piece| whole_after(&piece)) else {
            break;
        };
        // Onward, whatever the order is in which the store lists.
        from = next.start(size).max(from.plus(1));
    }
    found.sort_unstable();
    Ok(found)
}

/// What comes before the names of all pieces that begin there.
fn before(folder: &Name, from: Lsn) -> Name {
    folder.clone().join(format!("{:016X}", from.bytes()))
}

fn read(entry: &Entry) -> Option<Piece> {
    let (folder, object) = entry.location.as_ref().rsplit_once('/')?;
    of_name(&Name::from(folder), object, entry.size)
}

fn of_name(folder: &Name, object: &str, stored_bytes: u64) -> Option<Piece> {
    let (timeline, from, to) = names::read_piece(folder, object)?;
    Some(Piece {
        timeline,
        from,
        to,
        stored_bytes,
    })
}

async fn below(repository: &Repository, folder: &Name) -> Result<Vec<Piece>, RepoError> {
    let mut levels = repository.store().walk(folder, of_name);
    let mut pieces = Vec::new();
    while let Some(level) = levels.next().await {
        pieces.extend(level?);
    }
    pieces.sort_unstable();
    Ok(pieces)
}
