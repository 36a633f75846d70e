//! What is there: a cluster's backups and WAL, derived from names and immutable objects.

mod coverage;
mod gaps;

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt};

use crate::error::{Explain, Failure, on_one_line};
use crate::pg::{SegmentName, Timeline, TimelineHistory, WalFileName};
use crate::repo::backup::{self, BackupId, BackupRecord};
use crate::repo::{self, ClusterInfo, Doubt, Fetched, Form, Repository, names, tail};
use crate::store::Name;

pub use coverage::{Coverage, Run, StoredSegment, TimelineWal};
pub use gaps::{Entry, Gaps, OffPath};

/// How many backups' records are read at a time.
const RECORDS_AT_ONCE: usize = 16;

/// One cluster as the repository has it.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// What the cluster is.
    pub info: ClusterInfo,
    /// Its backups, oldest first.
    pub backups: Vec<BackupRecord>,
    /// Backups whose record is damaged, and how.
    pub damaged: Vec<(BackupId, String)>,
    /// Its WAL.
    pub wal: Coverage,
    /// The ancestry of each timeline of which a history file is there.
    pub histories: BTreeMap<Timeline, TimelineHistory>,
    /// What is doubtful about its WAL, by file.
    pub doubts: Vec<Doubt>,
    /// What could not be read, in words: it is passed over, and it is told.
    pub warnings: Vec<String>,
}

impl Catalog {
    /// Reads a cluster's catalogue.
    ///
    /// # Errors
    /// The store. A damaged backup record or history is a warning: the others are still good.
    pub async fn read(repository: &Repository, info: ClusterInfo) -> Result<Self, Failure> {
        let mut catalog = Self::of_nothing(info);
        catalog.doubts = repo::doubts(repository, catalog.info.system).await?;
        catalog.read_backups(repository).await?;
        catalog.read_wal(repository).await?;
        Ok(catalog)
    }

    fn of_nothing(info: ClusterInfo) -> Self {
        Self {
            backups: Vec::new(),
            damaged: Vec::new(),
            wal: Coverage::new(info.segment_size),
            histories: BTreeMap::new(),
            doubts: Vec::new(),
            warnings: Vec::new(),
            info,
        }
    }

    async fn read_backups(&mut self, repository: &Repository) -> Result<(), Failure> {
        let system = self.info.system;
        let ids = backup::ids(repository, system).await?;
        let mut records = stream::iter(ids)
            .map(async |id| (backup::read(repository, system, &id).await, id))
            .buffered(RECORDS_AT_ONCE);
        while let Some((record, id)) = records.next().await {
            match record {
                Ok(Some(record)) => self.backups.push(record),
                // Under way, or interrupted: not a backup.
                Ok(None) => {}
                Err(error) => {
                    self.warn(error)?;
                    self.damaged.extend(self.warnings.last().map(|how| (id, how.clone())));
                }
            }
        }
        self.backups
            .sort_by_key(|record| (record.stopped_at, record.id.clone()));
        Ok(())
    }

    async fn read_wal(&mut self, repository: &Repository) -> Result<(), Failure> {
        let store = repository.store();
        // Before the segments: of one that becomes whole meanwhile, this or that is seen.
        let in_pieces = tail::timelines(repository, self.info.system).await?;
        let mut folders = store.walk(&names::wal(self.info.system), wal_file);
        let (mut histories, mut partials) = (Vec::new(), BTreeMap::new());
        while let Some(files) = folders.next().await {
            for (file, size) in files? {
                match file {
                    WalFileName::History(timeline) => histories.push(timeline),
                    WalFileName::Segment(name) => self.wal.add(name, size, Form::Whole),
                    WalFileName::Partial(name) => drop(partials.insert(name, size)),
                    WalFileName::Backup(..) => {}
                }
            }
        }
        self.wal.sort();
        self.read_unfinished(repository, &in_pieces, partials).await?;
        histories.sort_unstable();
        for timeline in histories {
            let mut text = Vec::new();
            let file = WalFileName::History(timeline);
            match repo::fetch(store, self.info.system, file, &mut text).await {
                Ok(Fetched::Whole) => match TimelineHistory::parse(timeline, &text) {
                    Ok(history) => drop(self.histories.insert(timeline, history)),
                    Err(error) => self.warn(error)?,
                },
                Ok(Fetched::Missing) => {}
                Err(error) => self.warn(error)?,
            }
        }
        Ok(())
    }

    /// Adds the segments that are not whole: of those that are there in two forms, the one that has more.
    async fn read_unfinished(
        &mut self,
        repository: &Repository,
        in_pieces: &[Timeline],
        mut partials: BTreeMap<SegmentName, u64>,
    ) -> Result<(), Failure> {
        let size = self.info.segment_size;
        let mut all = Vec::new();
        for timeline in in_pieces {
            let wal = self.wal.timeline(*timeline);
            let whole = |number| Some(wal?.run_holding(number)?.last.next());
            let pieces = tail::pieces_to_read(repository, &self.info, *timeline, whole).await?;
            all.extend(tail::by_segment(&pieces, size));
            self.read_whole_by_now(repository, *timeline).await?;
        }
        self.wal.sort();
        for pieced in all {
            let name = pieced.name;
            let number = name.number(size);
            if number.is_some_and(|number| self.wal.segment(name.timeline(), number).is_some()) {
                continue;
            }
            if partials.contains_key(&name) {
                match repo::longer(repository, &self.info, name).await? {
                    Form::Pieces => drop(partials.remove(&name)),
                    Form::Whole | Form::Partial => continue,
                }
            }
            self.wal.add_pieces(&pieced);
        }
        for (name, stored_bytes) in partials {
            self.wal.add(name, stored_bytes, Form::Partial);
        }
        self.wal.sort();
        Ok(())
    }

    /// Adds the segments that a receiver has filled since a timeline was listed.
    async fn read_whole_by_now(&mut self, repository: &Repository, timeline: Timeline) -> Result<(), Failure> {
        let last = self.wal.timeline(timeline).and_then(|wal| wal.runs().last());
        let mut next = last.map(|run| run.last.next());
        while let Some(number) = next {
            let name = number.name(timeline, self.info.segment_size);
            let object = names::wal_file(self.info.system, WalFileName::Segment(name));
            next = None;
            if let Some(entry) = repository.store().head(&object).await? {
                self.wal.add(name, entry.size, Form::Whole);
                next = Some(number.next());
            }
        }
        Ok(())
    }

    /// Damage is told and passed over; anything else ends the reading.
    fn warn(&mut self, error: impl Explain) -> Result<(), Failure> {
        if error.class() != crate::error::Class::Damaged {
            return Err(error.into());
        }
        self.warnings.push(on_one_line(&error));
        Ok(())
    }

    /// A backup by its id.
    pub fn backup(&self, id: &BackupId) -> Option<&BackupRecord> {
        self.backups.iter().find(|record| record.id == *id)
    }

    /// Every timeline that something tells of.
    pub fn timelines(&self) -> Vec<Timeline> {
        let mut all: Vec<Timeline> = self.wal.timelines().collect();
        all.extend(self.histories.keys());
        all.extend(self.backups.iter().map(|record| record.timeline));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The ancestry of a timeline; one without a history file has none that we know of.
    pub fn history(&self, timeline: Timeline) -> TimelineHistory {
        self.histories
            .get(&timeline)
            .cloned()
            .unwrap_or(TimelineHistory::root(timeline))
    }
}

fn wal_file(folder: &Name, object: &str, size: u64) -> Option<(WalFileName, u64)> {
    Some((names::read_wal_file(folder, object)?, size))
}
