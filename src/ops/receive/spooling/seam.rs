//! Where the spool ends, in the middle of a segment, the server sends that segment from its start once more: what the
//! repository has of it must be the same, or it is not the server that wrote it.

use std::time::Duration;

use bytes::Bytes;

use super::super::ReceiveError;
use super::super::begin::Unit;
use super::super::compare::what_is_stored;
use crate::codec::Hasher;
use crate::error::Failure;
use crate::pg::{Lsn, SegmentNumber, Timeline};
use crate::repo::tail::Tail;
use crate::repo::{ClusterInfo, Repository};

/// A store that does not answer must not hold up the stream.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stretch that is received again.
pub(in crate::ops::receive) struct Seam {
    server: String,
    timeline: Timeline,
    from: Lsn,
    /// Where the next bytes begin.
    at: Lsn,
    /// From here on all is new.
    to: Lsn,
    tail: Tail,
    hasher: Hasher,
}

impl Seam {
    /// For a stream that shall go on at `to`. `None` where nothing can be compared: at a segment's start, where the
    /// repository has nothing of the segment or more than that, or does not answer.
    pub(in crate::ops::receive) async fn of(
        repository: &Repository,
        cluster: &ClusterInfo,
        server: &str,
        (timeline, to): (Timeline, Lsn),
    ) -> Option<Self> {
        let number = SegmentNumber::holding(to, cluster.segment_size);
        let from = number.start(cluster.segment_size);
        if from == to {
            return None;
        }
        let stored = what_is_stored(repository, cluster, Unit { timeline, number });
        let tail = tokio::time::timeout(PATIENCE, stored).await.ok()?.ok()?;
        (tail.end > from && tail.end <= to).then(|| Self {
            server: server.to_owned(),
            timeline,
            from,
            at: from,
            to,
            tail,
            hasher: Hasher::default(),
        })
    }

    /// Where it begins.
    pub(in crate::ops::receive) const fn from(&self) -> Lsn {
        self.from
    }

    /// Takes what is known off the next bytes; answers whether the rest of them is new.
    ///
    /// # Errors
    /// The server sends something else.
    pub(super) fn take(&mut self, bytes: &mut Bytes) -> Result<bool, Failure> {
        let part = |to: Lsn, at: Lsn, len: usize| to.bytes().saturating_sub(at.bytes()).min(len as u64) as usize;
        let compared = part(self.tail.end, self.at, bytes.len());
        self.hasher.update(&bytes[..compared]);
        let known = bytes.split_to(part(self.to, self.at, bytes.len()));
        self.at = self.at.plus(known.len() as u64);
        if self.at < self.to {
            return Ok(false);
        }
        if self.hasher.digest() == self.tail.digest {
            return Ok(true);
        }
        Err(ReceiveError::Diverged {
            server: self.server.clone(),
            timeline: self.timeline,
            from: self.from,
            to: self.tail.end,
        }
        .into())
    }
}
