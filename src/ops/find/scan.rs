//! One timeline's WAL from segment to segment: by the indexes, and by the segments themselves where those leave out
//! what matters.

mod databases;
mod rewritten;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures_util::{StreamExt, stream};
use rustc_hash::FxHashMap;

use super::classify::{self, Around, Lost};
use super::epoch;
use super::event::{Happened, Kind};
use super::filter::Filter;
use super::read;
use super::transaction::{End, Standing, Transaction};
use super::{FindError, Note};
use crate::catalog::StoredSegment;
use crate::error::{Class, Explain, Failure, on_one_line};
use crate::ops::names::{self, Names};
use crate::pg::{Lsn, SegmentNumber, Timeline};
use crate::repo::{self, ClusterInfo, Form, RepoError, Repository, SegmentFile};
use crate::wal::index::{Activity, Chain, Crossed, Crossing, Part, Rows, SegmentIndex, Tally, Told};
use crate::wal::{CatalogRow, Event, EventKind, Oid, RawRecord, Record, RelFile, WalLayout, Xid};

/// Indexes that are read at a time.
const AT_ONCE: usize = 32;
/// The catalogue of databases.
const PG_DATABASE: Oid = 1262;
/// Rewrites that are remembered while a transaction is open.
const REWRITES: usize = 10_000;
/// Events at most: 500 bytes each.
const EVENTS: usize = 50_000;

/// One timeline's segments, as far as they are searched.
pub(super) struct Line {
    pub(super) timeline: Timeline,
    pub(super) segments: Vec<StoredSegment>,
    /// What is before is told on the timeline that this one left.
    pub(super) floor: Lsn,
    /// Its last segment of all.
    pub(super) last: Option<SegmentNumber>,
    /// Where that ends.
    pub(super) end: Lsn,
    /// Timelines that leave this one, and the segment in which they do.
    pub(super) children: Vec<(SegmentNumber, Timeline)>,
}

/// A search on its way.
pub(super) struct Scan<'a> {
    pub(super) repository: &'a Repository,
    pub(super) info: &'a ClusterInfo,
    pub(super) layout: WalLayout,
    pub(super) filter: &'a Filter,
    pub(super) names: Names,
    pub(super) found: Vec<Happened>,
    pub(super) left_out: u64,
    pub(super) notes: Vec<Note>,
    /// Commits by minute since 1970.
    pub(super) minutes: BTreeMap<i64, u64>,
    /// Where transactions stood when a timeline was left.
    pub(super) forks: BTreeMap<Timeline, Standing>,
    /// Each timeline's end: where its transactions stand.
    pub(super) ends: BTreeMap<Timeline, Standing>,
    /// The folders of tablespaces.
    pub(super) tablespaces: BTreeMap<Oid, String>,
    /// Which epochs the transaction asked for is of, by the checkpoints.
    pub(super) epochs: BTreeSet<u32>,
    line: Timeline,
    /// Its segments that are not whole.
    unfinished: BTreeMap<SegmentNumber, Form>,
    floor: Lsn,
    standing: Standing,
    /// Segments that were read themselves.
    read: BTreeSet<SegmentNumber>,
    /// What was done to files that transactions created which have not ended.
    fresh: FxHashMap<RelFile, Activity>,
    rewrites: VecDeque<(Lsn, (Oid, Oid))>,
    /// Databases that were dropped by transactions whose end was not met yet.
    databases: Vec<Happened>,
    /// Those whose transaction is known.
    settled: Vec<Happened>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        info: &'a ClusterInfo,
        layout: WalLayout,
        filter: &'a Filter,
        names: Names,
    ) -> Self {
        Self {
            repository,
            info,
            layout,
            filter,
            names,
            found: Vec::new(),
            left_out: 0,
            notes: Vec::new(),
            minutes: BTreeMap::new(),
            forks: BTreeMap::new(),
            ends: BTreeMap::new(),
            tablespaces: BTreeMap::new(),
            epochs: BTreeSet::new(),
            line: Timeline::FIRST,
            unfinished: BTreeMap::new(),
            floor: Lsn::ZERO,
            standing: Standing::default(),
            read: BTreeSet::new(),
            fresh: FxHashMap::default(),
            rewrites: VecDeque::new(),
            databases: Vec::new(),
            settled: Vec::new(),
        }
    }

    /// Searches one timeline; those that it left must have been searched before.
    pub(super) async fn line(&mut self, line: &Line) -> Result<(), Failure> {
        self.line = line.timeline;
        self.floor = line.floor;
        let unfinished = line.segments.iter().filter(|segment| segment.form != Form::Whole);
        self.unfinished = unfinished.map(|segment| (segment.number, segment.form)).collect();
        self.standing = self.forks.remove(&line.timeline).unwrap_or_default();
        self.read.clear();
        self.fresh.clear();
        let (repository, info, timeline) = (self.repository, self.info, line.timeline);
        let mut indexes = stream::iter(&line.segments)
            .map(|segment| async move {
                let file = segment.file(timeline, info.segment_size);
                let index = repo::read_index(repository, info, file, segment.stored_bytes.into()).await;
                (segment, file, index)
            })
            .buffered(AT_ONCE);
        let mut before: Option<SegmentNumber> = None;
        while let Some((segment, file, index)) = indexes.next().await {
            for (_, child) in line.children.iter().filter(|(at, _)| *at == segment.number) {
                self.forks.insert(*child, self.standing.clone());
            }
            if let Some(before) = before.filter(|before| before.next() != segment.number) {
                let size = info.segment_size;
                self.notes
                    .push(Note::gap(timeline, before.end(size), segment.number.start(size)));
                self.standing.break_off();
            }
            before = Some(segment.number);
            match index {
                Ok(Some(stored)) => {
                    let last = line.last == Some(segment.number);
                    self.segment(segment.number, file, stored.core, last).await?;
                }
                Ok(None) => return Err(FindError::Unread(info.major).into()),
                Err(error) if error.class() == Class::Damaged => self.damaged(segment.number, &error),
                Err(error) => return Err(error.into()),
            }
        }
        for happened in std::mem::take(&mut self.databases) {
            self.push(happened);
        }
        let standing = std::mem::take(&mut self.standing);
        self.ends.insert(timeline, standing);
        Ok(())
    }

    fn damaged(&mut self, number: SegmentNumber, error: &RepoError) {
        let size = self.info.segment_size;
        let note = Note::damage(self.line, number.start(size), number.end(size), on_one_line(error));
        self.notes.push(note);
        self.standing.break_off();
    }

    async fn segment(
        &mut self,
        number: SegmentNumber,
        file: SegmentFile,
        mut core: SegmentIndex,
        last: bool,
    ) -> Result<(), Failure> {
        if let Some(crossed) = self.follow(number, &core, last) {
            self.crossed(&crossed, number).await?;
        }
        let left = core.left_out;
        if left.relations > 0 || left.catalog > 0 || left.events > 0 {
            match repo::reindex(self.repository, self.info, file, true).await {
                Ok(indexed) => core = indexed.core,
                Err(error) if error.class() == Class::Damaged => self.damaged(number, &error),
                Err(error) => return Err(error.into()),
            }
        }
        self.learn(&core);
        self.learn_from_rewritten(number, file, &core).await?;
        for event in &core.events {
            self.event(event, None);
        }
        let whole = self.filter.reads(self.line, number) || self.is_wanting(&core);
        if !(whole && self.read_through(number, file).await?) {
            self.by_index(number, &mut core);
        }
        for event in &core.events {
            self.stops(event);
        }
        self.rewrites_kept();
        self.settle_databases().await
    }

    /// Where the WAL breaks off, the search goes on behind that place.
    fn follow(&mut self, number: SegmentNumber, core: &SegmentIndex, last: bool) -> Option<Box<Crossed>> {
        let bytes = self.info.segment_size.bytes();
        if self.standing.chain.broken().is_some() {
            self.standing.break_off();
        }
        let mut crossing = self.standing.chain.follow(core, bytes);
        let broken = self.standing.chain.broken().cloned();
        if let Some(broken) = broken.filter(|broken| !(last && broken.unwritten)) {
            let size = self.info.segment_size;
            let inside = core.broken.as_ref().is_some_and(|own| own.at == broken.at);
            let end = if inside { number.end(size) } else { number.start(size) };
            self.notes
                .push(Note::damage(self.line, broken.at, end.max(broken.at), broken.why));
            if !inside {
                self.standing.break_off();
                let mut anew = Chain::default();
                crossing = anew.follow(core, bytes);
                self.standing.chain = anew;
            }
        }
        match crossing {
            Crossing::Record(crossed) => Some(crossed),
            Crossing::Nothing => None,
        }
    }

    /// The file of a segment of the timeline that is searched.
    fn file(&self, number: SegmentNumber) -> SegmentFile {
        SegmentFile {
            name: number.name(self.line, self.info.segment_size),
            form: self.unfinished.get(&number).copied().unwrap_or(Form::Whole),
        }
    }

    /// A record that begins in an earlier segment and ends in this one.
    async fn crossed(&mut self, crossed: &Crossed, number: SegmentNumber) -> Result<(), Failure> {
        if crossed.is_whole() || !matches!(crossed.event(), Ok(Told::TooLong)) {
            self.record(&crossed.raw());
            return Ok(());
        }
        let size = self.info.segment_size;
        let first = SegmentNumber::holding(crossed.start(), size);
        let files: Vec<SegmentFile> = (first.number()..=number.number())
            .map(|number| self.file(SegmentNumber::new(number)))
            .collect();
        let (repository, info, layout, start) = (self.repository, self.info, self.layout, crossed.start());
        let mut see = |raw: &RawRecord<'_>| {
            if raw.start() == start {
                self.record(raw);
            }
        };
        match read::records(repository, info, layout, &files, &mut see).await {
            Ok(()) => Ok(()),
            Err(error) if error.class() == Class::Damaged => {
                let note = Note::damage(self.line, start, crossed.end(), on_one_line(&error));
                self.notes.push(note);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn record(&mut self, raw: &RawRecord<'_>) {
        let number = SegmentNumber::holding(raw.start(), self.info.segment_size);
        let mut tally = Tally::default();
        // One that is not kept whole is an image of a page or a row: its headers are there.
        let _ = tally.see(raw);
        if let Ok(record) = Record::parse(raw) {
            let mut rows = Vec::new();
            let _ = CatalogRow::of(&record, &mut |row| rows.push((raw.start(), row)));
            rows.iter().for_each(|(at, row)| self.learn_row(*at, row));
        }
        if let Some(end) = read::end_of(raw) {
            let part = tally.end(end.ended.xid, end.subtransactions.iter().copied());
            if end.committed {
                *self.minutes.entry(end.ended.at.timestamp().div_euclid(60)).or_default() += 1;
            }
            return self.end(end, part, number);
        }
        for part in tally.finish().2 {
            self.open(part, number);
        }
        if let Ok(Some(kind)) = EventKind::of(raw) {
            let event = Event {
                lsn: raw.start(),
                end_lsn: raw.end(),
                previous: raw.previous(),
                kind,
            };
            self.event(&event, Some(raw.xid()));
            self.stops(&event);
        }
    }

    /// Whether the index leaves out what may matter.
    fn is_wanting(&self, core: &SegmentIndex) -> bool {
        let drops_database = |event: &Event| matches!(event.kind, EventKind::DatabaseDropped { .. });
        if !self.databases.is_empty() || core.events.iter().any(drops_database) {
            return true;
        }
        let left = &core.left_out;
        if left.large_parts > 0 || left.notable > 0 || core.notable.iter().any(|notable| notable.left_out > 0) {
            return true;
        }
        if self
            .filter
            .xid
            .is_some_and(|xid| core.ended.contains(xid) || core.ended_within.contains(xid))
        {
            return true;
        }
        let Some(least) = self.filter.mass_delete() else {
            return false;
        };
        let unseen = if left.parts > 0 { Part::ROWS - 1 } else { 0 };
        let many = |activity: &Activity| activity.rows.deletes >= least;
        if unseen >= least && core.relations.iter().any(many) {
            return true;
        }
        // Those that end here and are not told, as if they were one.
        let told = |xid: Xid| {
            core.notable.iter().any(|notable| {
                let own =
                    matches!(&notable.event.kind, EventKind::Commit(end) | EventKind::Abort(end) if end.xid == xid);
                own || notable.subtransactions.contains(&xid)
            })
        };
        let mut deletes: FxHashMap<RelFile, u64> = FxHashMap::default();
        for (xid, did) in self.standing.open() {
            let over = core.ended.contains(xid) || core.ended_within.contains(xid);
            if over && did.relations.values().any(|rows| rows.deletes > 0) && !told(xid) {
                for (file, rows) in &did.relations {
                    *deletes.entry(*file).or_default() += rows.deletes;
                }
            }
        }
        deletes.values().any(|deletes| deletes + unseen >= least)
    }

    /// What the rows of the server's catalogues tell, and what was done to new files.
    fn learn(&mut self, core: &SegmentIndex) {
        for (at, row) in &core.catalog {
            self.learn_row(*at, row);
        }
        let created = core.parts.iter().flat_map(|part| &part.created);
        for file in created {
            self.fresh.entry(*file).or_insert(Activity {
                file: *file,
                rows: Rows::default(),
                references: 0,
            });
        }
        for activity in &core.relations {
            if self.fresh.is_empty() {
                break;
            }
            if let Some(sum) = self.fresh.get_mut(&activity.file) {
                sum.rows.add(&activity.rows);
                sum.references += activity.references;
            }
        }
        // Until the fork these are another timeline's.
        if core.start >= self.floor {
            for (minute, commits) in &core.minutes {
                *self.minutes.entry(*minute).or_default() += u64::from(*commits);
            }
        }
    }

    fn learn_row(&mut self, at: Lsn, row: &CatalogRow) {
        self.names.learn_row(at, row);
        if let CatalogRow::Relation { name, file, .. } = row
            && let Some(number) = name.strip_prefix(b"pg_temp_")
            && let Some(oid) = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok())
        {
            self.rewrites.push_back((at, (file.database, oid)));
            if self.rewrites.len() > REWRITES {
                self.rewrites.pop_front();
            }
        }
    }

    /// Forgets rewrites of transactions that have ended.
    fn rewrites_kept(&mut self) {
        let oldest = self.standing.open().filter_map(|(_, did)| did.first).min();
        while let Some((at, _)) = self.rewrites.front()
            && oldest.is_none_or(|oldest| *at < oldest)
        {
            self.rewrites.pop_front();
        }
    }

    fn open(&mut self, part: Part, number: SegmentNumber) {
        self.standing.add(part, number);
    }

    fn by_index(&mut self, number: SegmentNumber, core: &mut SegmentIndex) {
        let mut ended: FxHashMap<u32, Part> = FxHashMap::default();
        for part in std::mem::take(&mut core.parts) {
            if core.ended.contains(part.xid) {
                ended.insert(part.xid.number(), part);
            } else {
                self.open(part, number);
            }
        }
        for notable in &core.notable {
            if let Some(end) = End::noted(notable) {
                let part = ended.remove(&end.ended.xid.number());
                self.end(end, part, number);
            }
        }
        self.standing.forget(&[&core.ended, &core.ended_within]);
    }

    /// Reads the segment itself; false where that is not possible.
    async fn read_through(&mut self, number: SegmentNumber, file: SegmentFile) -> Result<bool, Failure> {
        let (repository, info, layout) = (self.repository, self.info, self.layout);
        let mut each = |end: End, part: Option<Part>| self.end(end, part, number);
        match read::transactions(repository, info, layout, file, &mut each).await {
            Ok(open) => {
                for part in open {
                    self.open(part, number);
                }
                self.read.insert(number);
                Ok(true)
            }
            Err(error) if error.class() == Class::Damaged => {
                self.damaged(number, &error);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a stop of the server means to transactions.
    fn stops(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Checkpoint(checkpoint) if checkpoint.shutdown => self.standing.stopped(event.lsn),
            EventKind::EndOfRecovery { .. } => self.standing.stopped(event.lsn),
            _ => {}
        }
    }

    fn end(&mut self, end: End, part: Option<Part>, number: SegmentNumber) {
        let transaction = self.standing.end(end, part, number);
        let lost = match transaction.end.committed && !transaction.end.dropped.is_empty() {
            true => self.lost(&transaction),
            false => (Lost::default(), Lost::default()),
        };
        if transaction.end.committed && !transaction.did.created.is_empty() {
            let mut replaced = transaction.end.dropped.clone();
            if !lost.0.uncertain {
                let dropped: BTreeSet<&RelFile> = lost.0.files.iter().collect();
                replaced.retain(|file| !dropped.contains(file));
            }
            // While it went on, rows may have told of files as they changed hands.
            let at = classify::before(&transaction);
            self.names.learn_new_files(at, &transaction.did.created, &replaced);
        }
        self.database_dropped(&transaction);
        if transaction.end.event.lsn >= self.floor {
            self.tell(&transaction, lost);
        }
        for file in &transaction.did.created {
            self.fresh.remove(file);
        }
    }

    /// The relations that a transaction dropped, and those that it emptied.
    fn lost(&mut self, transaction: &Transaction) -> (Lost, Lost) {
        let fresh = &self.fresh;
        let around = Around {
            names: &self.names,
            activity: &|file| {
                fresh.get(file).copied().unwrap_or(Activity {
                    file: *file,
                    rows: Rows::default(),
                    references: 0,
                })
            },
            rewrites: self.rewrites.make_contiguous(),
        };
        classify::lost(transaction, &around)
    }

    fn tell(&mut self, transaction: &Transaction, (dropped, emptied): (Lost, Lost)) {
        if !self.filter.may_tell(transaction) {
            return;
        }
        let filter = self.filter;
        let own = |file: &RelFile| filter.is_asked_for(file);
        let rows = classify::rows(transaction, &self.names, &own);
        let mut told = Vec::new();
        for (kind, lost) in [(Kind::Drop, dropped), (Kind::Truncate, emptied)] {
            if !lost.relations.is_empty() {
                told.push((kind, lost.relations, lost.files, lost.uncertain));
            }
        }
        if let Some(least) = filter.mass_delete().filter(|_| transaction.end.committed) {
            let relations = classify::mass_delete(transaction, &self.names, least, &own);
            if !relations.is_empty() {
                told.push((Kind::MassDelete, relations, Vec::new(), false));
            }
        }
        let kind = match transaction.end.committed {
            true => Kind::Commit,
            false => Kind::Abort,
        };
        let files = match transaction.end.committed {
            true => transaction.end.dropped.clone(),
            false => Vec::new(),
        };
        told.push((kind, rows, files, false));
        for (kind, relations, files, uncertain) in told {
            if filter.asks_for(kind) {
                let happened = self.happened(transaction, kind);
                self.push(Happened {
                    relations,
                    files: files.iter().map(names::path).collect(),
                    uncertain,
                    ..happened
                });
            }
        }
    }

    fn happened(&self, transaction: &Transaction, kind: Kind) -> Happened {
        let (end, did) = (&transaction.end, &transaction.did);
        let of_files = did.relations.keys().chain(&end.dropped).map(|file| file.database);
        let database = end.ended.database.or_else(|| of_files.max().filter(|oid| *oid != 0));
        let size = self.info.segment_size;
        let mut xids = vec![end.ended.xid];
        xids.extend(&end.subtransactions);
        let uncounted = did.first.map_or_else(Vec::new, |first| {
            let first = SegmentNumber::holding(first, size).number();
            let last = SegmentNumber::holding(end.event.lsn, size).number();
            let unknown = |number: &SegmentNumber| !did.counted.contains(number) && !self.read.contains(number);
            (first..=last).map(SegmentNumber::new).filter(unknown).collect()
        });
        Happened {
            xid: Some(end.ended.xid),
            at: Some(end.ended.at),
            database,
            wal_bytes: Some(did.wal_bytes),
            complete: transaction.complete,
            uncounted: (xids, uncounted),
            ..self.plain(&end.event, kind)
        }
    }

    fn plain(&self, event: &Event, kind: Kind) -> Happened {
        Happened {
            kind,
            timeline: self.line,
            lsn: event.lsn,
            before: event.lsn,
            end_lsn: event.end_lsn,
            xid: None,
            at: event.kind.at(),
            database: None,
            database_name: None,
            relations: Vec::new(),
            name: None,
            wal_bytes: None,
            files: Vec::new(),
            complete: true,
            uncertain: false,
            reachable: false,
            uncounted: (Vec::new(), Vec::new()),
        }
    }

    /// What is no end of a transaction.
    fn event(&mut self, event: &Event, xid: Option<Xid>) {
        let text = |bytes: &[u8]| Some(String::from_utf8_lossy(bytes).into_owned());
        let (mut name, mut database, mut xid) = (None, None, xid.filter(|xid| *xid != Xid::NONE));
        let kind = match &event.kind {
            EventKind::Commit(_) | EventKind::Abort(_) | EventKind::Switch | EventKind::BackupEnd { .. } => return,
            EventKind::Prepare {
                xid: prepared,
                name: under,
                ..
            } => {
                self.standing.prepare(*prepared, event.clone());
                (name, xid) = (text(under), Some(*prepared));
                Kind::Prepare
            }
            EventKind::RestorePoint { name: given, .. } => {
                name = text(given);
                Kind::RestorePoint
            }
            EventKind::Checkpoint(checkpoint) => {
                self.standing.next_xid(checkpoint.next_xid);
                let epoch = self.filter.xid.map(|xid| epoch::near(xid, checkpoint));
                self.epochs.extend(epoch);
                Kind::Checkpoint
            }
            EventKind::ParameterChange(_) => Kind::ParameterChange,
            EventKind::EndOfRecovery { .. } => Kind::EndOfRecovery,
            EventKind::Overwrite { .. } => Kind::Crash,
            EventKind::TablespaceCreated { path, tablespace } => {
                let folder = text(path).filter(|path| !path.is_empty());
                if let Some(folder) = &folder {
                    self.tablespaces.insert(*tablespace, folder.clone());
                }
                name = folder.or(Some(tablespace.to_string()));
                Kind::CreateTablespace
            }
            EventKind::TablespaceDropped { tablespace } => {
                let folder = self.tablespaces.get(tablespace).cloned();
                name = folder.or(Some(tablespace.to_string()));
                Kind::DropTablespace
            }
            EventKind::DatabaseCreated { database: oid, .. } => {
                database = Some(*oid);
                Kind::CreateDatabase
            }
            EventKind::DatabaseDropped { database: oid } => {
                database = Some(*oid);
                Kind::DropDatabase
            }
        };
        if event.lsn >= self.floor && self.filter.asks_for(kind) && self.filter.is_for_plain_events(kind, xid) {
            let happened = Happened {
                name,
                database,
                xid,
                ..self.plain(event, kind)
            };
            if kind != Kind::DropDatabase {
                return self.push(happened);
            }
            // A database has one folder in each tablespace, and a record for each.
            if self.databases.iter().all(|known| known.database != database) {
                self.databases.push(happened);
            }
        }
    }

    fn push(&mut self, mut happened: Happened) {
        happened.database_name = happened
            .database
            .and_then(|oid| self.names.database(oid))
            .map(str::to_owned);
        let number = SegmentNumber::holding(happened.lsn, self.info.segment_size);
        if !self.filter.is_where_asked(&happened, number, &self.names) {
            return;
        }
        if self.found.len() >= EVENTS {
            self.left_out += 1;
            return;
        }
        self.found.push(happened);
    }
}
