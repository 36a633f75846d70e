//! Where a stretch of WAL ends, and the moments at its edges: from the indexes of its segments, the last ones first.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::stream::{self, StreamExt};

use crate::catalog::{Catalog, Coverage, Run};
use crate::error::{Class, Explain, Failure, on_one_line};
use crate::pg::{Leg, Lsn, SegmentNumber, Timeline};
use crate::repo::{ClusterInfo, Form, RepoError, Repository, StoredIndex, read_index};
use crate::wal::index::{Chain, Crossing, SegmentIndex, Told};
use crate::wal::{Event, EventKind, Extent};

/// How many segments from the end are looked at for the last commit, more each time that none is found. Two at least:
/// what ends in the last segment may have begun before, and commits of one moment may be told in another order. One
/// transaction may fill thousands of segments.
const BACK: [u64; 5] = [2, 16, 128, 1024, 8192];
/// As many of the last ones of a backup: it is a matter of clocks that differ.
const BACK_FROM_CONSISTENCY: [u64; 2] = [2, 16];
/// How many indexes are read at a time.
const READS_AT_ONCE: usize = 16;

/// So many of the last ones are kept for the next edge, which is often in the same place: at most 64 KiB each, and mostly
/// a few kilobytes.
const KEPT: u64 = 128;
/// Where more are kept, all are let go.
const KEPT_IN_ALL: usize = 1024;

/// Reads what is needed of one cluster's WAL.
pub(super) struct Edges<'a> {
    repository: &'a Repository,
    info: &'a ClusterInfo,
    wal: &'a Coverage,
    /// Indexes that were read: a window's end is its timeline's, too.
    known: HashMap<(Timeline, SegmentNumber), Arc<StoredIndex>>,
    /// What could not be read, in words.
    pub(super) warnings: Vec<String>,
}

/// Where a stretch ends.
#[derive(Debug, Default)]
pub(super) struct End {
    /// The last segment of which something can be replayed.
    pub(super) last: Option<SegmentNumber>,
    /// Where the last whole record ends; `None` where this version can't read the WAL.
    pub(super) lsn: Option<Lsn>,
    /// The latest time of a commit.
    pub(super) latest_commit: Option<DateTime<Utc>>,
    /// Where the last segment breaks off though there are pieces from behind that, and how far those go.
    pub(super) lost: Option<(Lsn, Lsn)>,
    /// Where a segment does not follow on the one before, and how far there is WAL from there on.
    pub(super) unlinked: Option<(Lsn, Lsn)>,
}

/// What segments that follow each other tell.
#[derive(Debug, Default)]
struct Stretch {
    extent: Option<Extent>,
    latest_commit: Option<DateTime<Utc>>,
    latest_end: Option<DateTime<Utc>>,
    lost: Option<(Lsn, Lsn)>,
    unlinked: Option<(Lsn, Lsn)>,
}

/// A segment that no server can fetch.
struct Damaged(SegmentNumber);

impl<'a> Edges<'a> {
    pub(super) fn new(repository: &'a Repository, catalog: &'a Catalog) -> Self {
        Self {
            repository,
            info: &catalog.info,
            wal: &catalog.wal,
            known: HashMap::new(),
            warnings: Vec::new(),
        }
    }

    /// Where the WAL of a run along a path ends. A damaged segment that is met ends it before.
    ///
    /// # Errors
    /// The store.
    pub(super) async fn end(&mut self, path: &[Leg], run: Run) -> Result<End, Failure> {
        let mut last = run.last;
        let mut backs = BACK.iter().copied().peekable();
        while let Some(back) = backs.peek().copied() {
            let first = reaching_back(last, back).max(run.first);
            let stretch = match self.read(path, first, last, None).await? {
                Ok(stretch) => stretch,
                Err(Damaged(number)) if number <= run.first => return Ok(End::default()),
                Err(Damaged(number)) => {
                    last = SegmentNumber::new(number.number() - 1);
                    continue;
                }
            };
            let told = stretch.latest_commit.is_some() && stretch.extent.is_some();
            if told || first == run.first || Some(&back) == BACK.last() {
                let end = stretch.extent.map(|extent| self.on_path(path, last, extent.end));
                let holding = |lsn| SegmentNumber::ending(lsn, self.info.segment_size).min(last);
                return Ok(End {
                    last: Some(end.map_or(last, holding)),
                    lsn: end,
                    latest_commit: stretch.latest_commit,
                    lost: stretch.lost,
                    unlinked: stretch.unlinked,
                });
            }
            backs.next();
        }
        Ok(End::default())
    }

    /// The latest time that a transaction's end tells before a backup is consistent. Recovery to an earlier time would
    /// stop there. Segments that are damaged or tell nothing are passed over.
    ///
    /// # Errors
    /// The store.
    pub(super) async fn latest_before(
        &mut self,
        path: &[Leg],
        from: Lsn,
        to: Lsn,
    ) -> Result<Option<DateTime<Utc>>, Failure> {
        let size = self.info.segment_size;
        let (begin, last) = (SegmentNumber::holding(from, size), SegmentNumber::ending(to, size));
        for back in BACK_FROM_CONSISTENCY {
            let first = reaching_back(last, back).max(begin);
            let latest = match self.read(path, first, last, Some(to)).await? {
                Ok(stretch) => stretch.latest_end,
                Err(Damaged(_)) => return Ok(None),
            };
            if latest.is_some() || first == begin {
                return Ok(latest);
            }
        }
        Ok(None)
    }

    /// Where one of these segments does not follow on the one before, and how far there is WAL from there on.
    ///
    /// # Errors
    /// The store.
    pub(super) async fn unlinked(
        &mut self,
        path: &[Leg],
        first: SegmentNumber,
        last: SegmentNumber,
    ) -> Result<Option<(Lsn, Lsn)>, Failure> {
        let stretch = self.read(path, first, last, None).await?;
        Ok(stretch.ok().and_then(|stretch| stretch.unlinked))
    }

    /// What the segments tell, of records that begin before `before`.
    async fn read(
        &mut self,
        path: &[Leg],
        first: SegmentNumber,
        last: SegmentNumber,
        before: Option<Lsn>,
    ) -> Result<Result<Stretch, Damaged>, Failure> {
        let (repository, info, wal, known) = (self.repository, self.info, self.wal, &self.known);
        let mut indexes = stream::iter(self.wal.between(path, first, last))
            .map(async |(timeline, segment)| {
                let at = (timeline, segment.number);
                if let Some(index) = known.get(&at) {
                    return (at, Ok(Some(index.clone())));
                }
                let file = segment.file(timeline, info.segment_size);
                let index = read_index(repository, info, file, segment.stored_bytes.into()).await;
                (at, index.map(|index| index.map(Arc::new)))
            })
            .buffered(READS_AT_ONCE);
        let (mut stretch, mut chain) = (Stretch::default(), Chain::default());
        let (mut kept, mut damaged, mut troubles) = (Vec::new(), None, Vec::new());
        while let Some((at, index)) = indexes.next().await {
            let left = path.iter().find(|leg| leg.timeline == at.0).and_then(|leg| leg.to);
            let bound = before.into_iter().chain(left).min();
            let own = match &index {
                Ok(Some(index)) => index.core.broken.clone(),
                _ => None,
            };
            let added = match index {
                Ok(Some(index)) => {
                    if index.file.form == Form::Pieces {
                        troubles.extend(index.core.troubles.iter().cloned());
                    }
                    if at.1 >= reaching_back(last, KEPT) {
                        kept.push((at, index.clone()));
                    }
                    stretch.lost = index.lost.filter(|_| at.1 == last);
                    stretch.follow(&mut chain, &index, bound, repository, info).await
                }
                // Of a version that can't be read.
                Ok(None) => break,
                Err(error) => Err(error),
            };
            match added {
                Ok(()) if chain.broken().is_some() => {
                    if let Some(broken) = chain.broken().filter(|broken| own.as_ref() != Some(broken)) {
                        stretch.unlinked = Some((broken.at, wal.segment_end(at.0, last)));
                    }
                    break;
                }
                Ok(()) => {}
                Err(error) if error.class() == Class::Damaged => {
                    damaged = Some((Damaged(at.1), error));
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        drop(indexes);
        if self.known.len() > KEPT_IN_ALL {
            self.known.clear();
        }
        self.known.extend(kept);
        troubles.into_iter().for_each(|how| self.warn(how));
        if let Some((damaged, error)) = damaged {
            self.warn(on_one_line(&error));
            return Ok(Err(damaged));
        }
        stretch.extent = chain.extent();
        Ok(Ok(stretch))
    }

    fn warn(&mut self, how: String) {
        if !self.warnings.contains(&how) {
            self.warnings.push(how);
        }
    }

    /// What a timeline wrote after it was left is on another path.
    fn on_path(&self, path: &[Leg], last: SegmentNumber, end: Lsn) -> Lsn {
        let taken = self.wal.on_path(path, last).map(|(timeline, _)| timeline);
        let leg = path.iter().find(|leg| Some(leg.timeline) == taken);
        leg.and_then(|leg| leg.to).map_or(end, |left| left.min(end))
    }
}

impl Stretch {
    /// Adds the next segment. What `chain` finds to break off before it counts no more.
    async fn follow(
        &mut self,
        chain: &mut Chain,
        index: &StoredIndex,
        bound: Option<Lsn>,
        repository: &Repository,
        info: &ClusterInfo,
    ) -> Result<(), RepoError> {
        let core: &SegmentIndex = &index.core;
        let segment_bytes = info.segment_size.bytes();
        if let Crossing::Record(record) = chain.follow(core, segment_bytes)
            && let Ok(Told::Event(event)) = record.event()
        {
            self.see(&event, bound);
        }
        if chain
            .broken()
            .is_some_and(|broken| Some(broken) != core.broken.as_ref())
        {
            return Ok(());
        }
        match bound.filter(|bound| *bound < core.start.plus(segment_bytes)) {
            None => {
                self.latest_commit = self.latest_commit.max(core.ends.latest_commit);
                self.latest_end = self.latest_end.max(core.ends.latest_end);
            }
            bound => {
                for event in index.ends(repository, info).await? {
                    self.see(&event, bound);
                }
            }
        }
        Ok(())
    }

    fn see(&mut self, event: &Event, bound: Option<Lsn>) {
        if bound.is_some_and(|bound| event.lsn >= bound) {
            return;
        }
        match event.kind {
            EventKind::Commit(end) => {
                self.latest_commit = self.latest_commit.max(Some(end.at));
                self.latest_end = self.latest_end.max(Some(end.at));
            }
            EventKind::Abort(end) => self.latest_end = self.latest_end.max(Some(end.at)),
            _ => {}
        }
    }
}

/// The first of so many segments of which `last` is the last.
fn reaching_back(last: SegmentNumber, count: u64) -> SegmentNumber {
    SegmentNumber::new((last.number() + 1).saturating_sub(count))
}
