//! What leads to a segment, and what may lead on from one: the chain of records before it, wherever that lies.

use std::path::Path;

use super::{Link, Walk};
use crate::error::{Class, Explain, Failure};
use crate::ops::salvage::ProblemKind;
use crate::ops::salvage::files::{self, Looks};
use crate::ops::salvage::survey::path_of;
use crate::pg::{Leg, SegmentNumber, Timeline, WalFileName};
use crate::repo;
use crate::wal::Rest;
use crate::wal::index::{Chain, SegmentIndex};

impl Walk<'_> {
    /// The chain of records that leads to a segment; `None` where none does and the segment can't be taken without.
    pub(super) async fn chain_to(&mut self, number: SegmentNumber, path: &Path) -> Result<Option<Box<Chain>>, Failure> {
        let start = self.start(number);
        let ended = match std::mem::replace(&mut self.link, Link::Ended) {
            Link::Chain(chain) => return Ok(Some(chain)),
            Link::Stored(timeline, before) => match self.chain_of_stored(timeline, before).await? {
                Some(chain) => return Ok(Some(chain)),
                None => false,
            },
            Link::Unknown => match self.chain_before(number).await? {
                Some(chain) => return Ok(Some(chain)),
                None => false,
            },
            Link::Ended => true,
            Link::Refused => {
                self.link = Link::Refused;
                return Ok(None);
            }
        };
        let before = self.ground.stored_before(self.timeline, Some(number));
        let before = before.max(self.on.stretches.last().map(|(_, to)| *to));
        let before = before.max(self.pieces.iter().map(|piece| piece.to).filter(|to| *to <= start).max());
        let proven = self.ground.is_proven(self.timeline, number);
        match before.filter(|before| *before < start) {
            Some(before) if proven => {
                let about = format!("is the first file after a gap: the WAL from {before} to {start} is nowhere");
                self.tell(ProblemKind::Gap, path, before, Some(start), &about);
            }
            _ if !proven && !ended => {
                let about = "was not taken: nothing shows that it continues the cluster's WAL";
                self.tell(ProblemKind::Unproven, path, start, None, about);
            }
            _ => {}
        }
        Ok(proven.then(Box::default))
    }

    /// The chain at the end of the segment before `number`, which lies in the repository, whole or in pieces, or on the
    /// parent timeline.
    pub(super) async fn chain_before(&self, number: SegmentNumber) -> Result<Option<Box<Chain>>, Failure> {
        let Some(before) = number.number().checked_sub(1).map(SegmentNumber::new) else {
            return Ok(None);
        };
        let size = self.ground.cluster().segment_size;
        let path = self.ground.path(self.timeline);
        let begun = |leg: &&Leg| SegmentNumber::holding(leg.from, size) <= before;
        let Some(timeline) = path.iter().rev().find(begun).map(|leg| leg.timeline) else {
            return Ok(None);
        };
        if let Some(chain) = self.chain_of_stored(timeline, before).await? {
            return Ok(Some(chain));
        }
        let file = WalFileName::Segment(before.name(timeline, size));
        let Some(path) = path_of(&self.ground.files, timeline, before) else {
            return Ok(None);
        };
        let index = self.index_of_local(&path, file, timeline, before);
        Ok(index
            .map(|index| chain_of(&index, size.bytes()))
            .filter(|chain| chain.broken().is_none()))
    }

    pub(super) async fn chain_of_stored(
        &self,
        timeline: Timeline,
        number: SegmentNumber,
    ) -> Result<Option<Box<Chain>>, Failure> {
        let Some(index) = self.index_of_stored(timeline, number).await? else {
            return Ok(None);
        };
        let size = self.ground.cluster().segment_size.bytes();
        let mut chain = chain_of(&index, size);
        // A switch that crosses into the segment explains why nothing follows it there.
        let before = number.number().checked_sub(1).map(SegmentNumber::new);
        if let (true, Some(before)) = (chain.broken().is_some() && index.rest.is_some(), before)
            && let Some(before) = self.index_of_stored(timeline, before).await?
        {
            chain = chain_of(&before, size);
            let _ = chain.follow(&index, size);
        }
        Ok(Some(chain).filter(|chain| chain.broken().is_none()))
    }

    pub(super) async fn index_of_stored(
        &self,
        timeline: Timeline,
        number: SegmentNumber,
    ) -> Result<Option<SegmentIndex>, Failure> {
        let (repository, cluster) = (self.ground.repository, self.ground.cluster());
        let Some(segment) = self.ground.catalog.wal.segment(timeline, number) else {
            return Ok(None);
        };
        let file = segment.file(timeline, cluster.segment_size);
        match repo::read_index(repository, cluster, file, segment.stored_bytes.into()).await {
            Ok(index) => Ok(index.map(|index| index.core)),
            Err(error) if error.class() == Class::Damaged => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn index_of_local(
        &self,
        path: &Path,
        file: WalFileName,
        timeline: Timeline,
        number: SegmentNumber,
    ) -> Option<SegmentIndex> {
        let is_wal = matches!(files::look(path, file, self.ground.cluster()), Looks::Wal);
        is_wal.then(|| files::index(path, timeline, self.start(number), self.ground.layout).0)
    }

    /// Indexes of what may continue the timeline in a segment of which there is no file of its own: what a promotion left
    /// of it, or what a timeline that begins there took along.
    pub(super) async fn continuations(&self, number: SegmentNumber) -> Result<Vec<SegmentIndex>, Failure> {
        let ground = self.ground;
        let size = ground.cluster().segment_size;
        let mut found = Vec::new();
        found.extend(self.index_of_stored(self.timeline, number).await?);
        if let Some(path) = ground.files.partials.get(&(self.timeline, number)) {
            let file = WalFileName::Partial(number.name(self.timeline, size));
            found.extend(self.index_of_local(path, file, self.timeline, number));
        }
        for (timeline, files) in ground.files.segments.range(self.timeline..) {
            let left = ground
                .path(*timeline)
                .into_iter()
                .find(|leg| leg.timeline == self.timeline);
            let here = left.and_then(|leg| leg.to).map(|to| SegmentNumber::holding(to, size));
            if here != Some(number) {
                continue;
            }
            if let Some(path) = files.get(&number) {
                let file = WalFileName::Segment(number.name(*timeline, size));
                found.extend(self.index_of_local(path, file, *timeline, number));
            }
        }
        Ok(found)
    }
}

/// Whether the record that crosses into a segment is whole there, or was given up there, or there is none.
pub(super) fn is_resolved(index: &SegmentIndex) -> bool {
    index.overwrites || index.rest.as_ref().is_none_or(Rest::ends)
}

/// Whether a segment continues a chain, and ends the record that crosses into it.
pub(super) fn goes_on(chain: &mut Chain, index: &SegmentIndex, segment_bytes: u64) -> bool {
    let _ = chain.follow(index, segment_bytes);
    let at_border = chain
        .broken()
        .is_some_and(|broken| Some(broken) != index.broken.as_ref());
    !at_border && is_resolved(index)
}

pub(super) fn chain_of(index: &SegmentIndex, segment_bytes: u64) -> Box<Chain> {
    let mut chain = Box::<Chain>::default();
    let _ = chain.follow(index, segment_bytes);
    chain
}
