//! `find`: where in the WAL something happened, each time with the moment just before it.
//!
//! The search goes by the indexes of the segments. A segment itself is read only where its index leaves out what may
//! matter, so that no number told is a guess. Timelines are searched one after the other, each from where it left
//! another one; transactions that were prepared before are followed into it.

mod classify;
mod epoch;
mod error;
mod event;
mod filter;
mod reach;
mod read;
mod scan;
#[cfg(test)]
mod tests;
mod transaction;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use self::filter::Filter;
use self::scan::{Line, Scan};
use self::window::{AROUND, Brief};
use super::names::Names;
use crate::catalog::{Catalog, TimelineWal};
use crate::error::{Class, Explain, Failure};
use crate::pg::{Leg, Lsn, SegmentNumber, Timeline};
use crate::repo::backup::{BackupId, BackupState};
use crate::repo::{ClusterInfo, Repository, SegmentFile};
use crate::wal::{RawRecord, WalLayout, Xid};

pub use error::FindError;
pub use event::{Happened, Kind, Relation};
pub use filter::Window;
pub use reach::Reach;

/// From so many rows of one relation on a transaction is told as a mass delete.
pub const MASS_DELETE: u64 = 1000;
/// So many segments are read themselves where every transaction is asked for.
pub const WHOLE: usize = 64;
/// So many segments before a window are searched for where its transactions began.
const BACK: u64 = 512;
/// So many segments are read again for the bytes of a transaction.
const AGAIN: usize = 16;

/// What to find.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Only these kinds of events.
    pub kinds: Vec<Kind>,
    /// From how many rows on a transaction is told as a mass delete.
    pub least: Option<u64>,
    /// Only this transaction, or the one that it is a part of.
    pub xid: Option<Xid>,
    /// How often the ids had gone round when it began, where that was said.
    pub epoch: Option<u32>,
    /// Only what was done to this relation (`public.orders`).
    pub relation: Option<String>,
    /// Only in the database of this name.
    pub database: Option<String>,
    /// Only there.
    pub window: Option<Window>,
    /// Only on this timeline.
    pub timeline: Option<Timeline>,
}

impl Request {
    /// Whether every transaction is asked for, and not only what is remarkable.
    fn tells_everything(&self) -> bool {
        let narrow = self.window.is_some() || self.relation.is_some();
        self.kinds.is_empty() && self.xid.is_none() && narrow
    }

    /// For the transaction alone, if more than that was asked for.
    fn for_transaction(&self) -> Option<Self> {
        let others = [self.relation.is_some(), self.database.is_some(), self.window.is_some()];
        let narrow = !self.kinds.is_empty() || others.contains(&true) || self.timeline.is_some();
        (narrow && self.xid.is_some()).then(|| Self {
            xid: self.xid,
            epoch: self.epoch,
            ..Self::default()
        })
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order of timelines, and of the WAL in each.
    pub events: Vec<Happened>,
    /// Commits by minute since 1970.
    pub minutes: BTreeMap<i64, u64>,
    /// WAL that could not be searched.
    pub notes: Vec<Note>,
    /// What else is to be said, in words.
    pub remarks: Vec<String>,
    /// Where nothing was found: the end of the transaction asked for, of which nothing else fits.
    pub unfit: Option<Happened>,
    /// Where nothing was found: the WAL that there is.
    pub reach: Vec<Reach>,
}

/// A stretch of WAL that could not be searched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// On this timeline.
    pub timeline: Timeline,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
    /// Why; `None`: it is missing.
    pub why: Option<String>,
}

impl Note {
    const fn gap(timeline: Timeline, from: Lsn, to: Lsn) -> Self {
        Self {
            timeline,
            from,
            to,
            why: None,
        }
    }

    const fn damage(timeline: Timeline, from: Lsn, to: Lsn, why: String) -> Self {
        Self {
            timeline,
            from,
            to,
            why: Some(why),
        }
    }
}

/// Searches a cluster's WAL.
///
/// # Errors
/// What can't be looked for, or the store. WAL that is missing or damaged is told in the answer.
pub async fn find(repository: &Repository, catalog: &Catalog, request: &Request) -> Result<Found, Failure> {
    let info = &catalog.info;
    let layout = WalLayout::new(info.major, info.segment_size, info.wal_page_size);
    let Ok(layout) = layout else {
        return Err(FindError::Unread(info.major).into());
    };
    let search = Search {
        repository,
        catalog,
        request,
        info,
        layout,
    };
    let mut found = search.run().await?;
    if found.events.is_empty() {
        if let Some(request) = request.for_transaction() {
            let all = Search {
                request: &request,
                ..search
            };
            found.unfit = all.run().await?.events.into_iter().next();
        }
        found.reach = reach::of(repository, info, &search.lines()?).await?;
    }
    Ok(found)
}

#[derive(Clone, Copy)]
struct Search<'a> {
    repository: &'a Repository,
    catalog: &'a Catalog,
    request: &'a Request,
    info: &'a ClusterInfo,
    layout: WalLayout,
}

impl Search<'_> {
    async fn run(&self) -> Result<Found, Failure> {
        let mut lines = self.lines()?;
        let mut filter = Filter::of(self.request);
        let mut names = Names::captured(self.repository, &self.catalog.backups).await;
        let mut found = Found::default();
        found.remarks.extend(self.catalog.warnings.iter().cloned());
        found.remarks.extend(names.warnings().iter().cloned());
        let database = self.request.database.as_deref();
        let known = |names: &Names| database.is_none_or(|name| names.knows_database(name));
        if self.request.relation.is_some() || !known(&names) {
            names = self.all_names(&lines, names).await?;
        }
        if let Some(name) = database.filter(|_| !known(&names)) {
            return Err(FindError::no_database(name, &names).into());
        }
        if let Some(relation) = &self.request.relation {
            let files = names.files_of(relation, database);
            if files.is_empty() {
                return Err(FindError::no_files(relation, database, &names).into());
            }
            filter.files = Some(files.into_iter().map(|(file, _)| file).collect());
        }
        if filter.window.is_some() || filter.files.is_some() {
            self.choose(&mut lines, &mut filter, &mut found).await?;
        }
        let mut scan = Scan::new(self.repository, self.info, self.layout, &filter, names);
        let tablespaces = self.catalog.backups.iter().flat_map(|backup| &backup.tablespaces);
        scan.tablespaces = tablespaces.map(|known| (known.oid, known.location.clone())).collect();
        for line in &lines {
            scan.line(line).await?;
        }
        self.check_epoch(&scan)?;
        self.conclude(scan, found).await
    }

    /// Refuses a transaction of 64 bits whose upper half is not that of the WAL.
    fn check_epoch(&self, scan: &Scan<'_>) -> Result<(), FindError> {
        let Some((xid, epoch)) = self.request.xid.zip(self.request.epoch) else {
            return Ok(());
        };
        let unchecked = scan.epochs.is_empty() && scan.found.is_empty();
        match unchecked || scan.epochs.contains(&epoch) {
            true => Ok(()),
            false => Err(FindError::epoch(xid, epoch, &scan.epochs)),
        }
    }

    async fn conclude(&self, scan: Scan<'_>, mut found: Found) -> Result<Found, Failure> {
        found.notes = scan.notes;
        found.minutes = scan.minutes;
        found.events = scan.found;
        found
            .events
            .sort_by_key(|event| (event.timeline, event.lsn, event.kind));
        if let Some(Window::Around(at)) = self.request.window {
            around(&mut found.events, at);
        }
        if scan.left_out > 0 {
            found.remarks.push(format!(
                "{} more events are not told: narrow the search, by --between for example",
                scan.left_out
            ));
        }
        if let Some(xid) = self.request.xid {
            for (timeline, standing) in &scan.ends {
                let open = standing.open().any(|(open, _)| open == xid);
                let how = match standing.prepared(xid) {
                    Some(_) => "is prepared and neither committed nor rolled back",
                    None if open => "had not ended",
                    None => continue,
                };
                let remark = format!("transaction {xid} {how} where the WAL of timeline {timeline} ends");
                found.remarks.push(remark);
            }
        }
        self.count_again(&mut found).await?;
        let paths = Paths::of(self.catalog, &found.notes);
        for event in &mut found.events {
            event.reachable = paths.lead_to(event.timeline, event.before);
        }
        // Before the window it was only searched for where transactions began.
        let (spans, size) = (&scan.filter.span, self.info.segment_size);
        let begins = |timeline: Timeline| spans.get(&timeline).map(|(first, _)| first.start(size));
        found
            .notes
            .retain(|note| begins(note.timeline).is_none_or(|begin| note.to > begin));
        Ok(found)
    }

    /// The timelines that are searched, oldest first.
    fn lines(&self) -> Result<Vec<Line>, Failure> {
        let wal = &self.catalog.wal;
        let all: Vec<Timeline> = wal.timelines().collect();
        if all.is_empty() {
            return Err(FindError::Empty(self.info.system).into());
        }
        let wanted = self.request.timeline;
        if let Some(wanted) = wanted.filter(|wanted| !all.contains(wanted)) {
            let known: Vec<String> = all.iter().map(Timeline::to_string).collect();
            let known = known.join(", ");
            return Err(FindError::Timeline { wanted, known }.into());
        }
        let asked = all
            .into_iter()
            .filter(|timeline| wanted.is_none_or(|wanted| wanted == *timeline));
        let lines = asked.filter_map(|timeline| Some(self.line(timeline, wal.timeline(timeline)?)));
        Ok(lines.collect())
    }

    fn line(&self, timeline: Timeline, wal: &TimelineWal) -> Line {
        let size = self.info.segment_size;
        let fork = self.catalog.history(timeline).forks().last().cloned();
        let (mut floor, mut segments) = (Lsn::ZERO, wal.segments().to_vec());
        if let Some(fork) = fork {
            let first = SegmentNumber::holding(fork.at, size);
            segments.retain(|segment| segment.number >= first);
            // Where the parent's own file is not there, this copy tells of both.
            let parents = self.catalog.wal.segment(fork.parent, first).is_some();
            floor = if parents { fork.at } else { first.start(size) };
        }
        let children = self.catalog.wal.timelines().filter_map(|child| {
            let fork = self.catalog.history(child).forks().last().cloned()?;
            (fork.parent == timeline).then(|| (SegmentNumber::holding(fork.at, size), child))
        });
        Line {
            timeline,
            floor,
            last: segments.last().map(|segment| segment.number),
            end: self.catalog.wal.end(timeline).unwrap_or(floor),
            children: children.collect(),
            segments,
        }
    }

    /// What all the WAL tells of names.
    async fn all_names(&self, lines: &[Line], names: Names) -> Result<Names, Failure> {
        let silent = Filter::silent();
        let mut scan = Scan::new(self.repository, self.info, self.layout, &silent, names);
        for line in lines {
            scan.line(line).await?;
        }
        Ok(scan.names)
    }

    /// Finds the segments that are asked for, and takes those away that matter to nothing in them.
    async fn choose(&self, lines: &mut [Line], filter: &mut Filter, found: &mut Found) -> Result<(), Failure> {
        let times = match filter.window {
            Some(Window::Times(from, to)) => Some((from, to)),
            Some(Window::Around(at)) => Some((at - AROUND, at + AROUND)),
            Some(Window::Places(..)) | None => None,
        };
        let mut chosen: Vec<Brief> = Vec::new();
        for line in lines.iter_mut() {
            if let Some((from, to)) = times {
                window::narrow(self.repository, self.info, line, from, to).await?;
            }
            if let Some(Window::Places(from, to)) = filter.window {
                let size = self.info.segment_size;
                let first = SegmentNumber::holding(from, size);
                let last = SegmentNumber::ending(to, size);
                self.cut(line, first, last);
                filter.span.insert(line.timeline, (first, last));
            }
            let mut briefs = window::survey(self.repository, self.info, line, filter.files.as_ref()).await?;
            match filter.window {
                Some(Window::Times(from, to)) => briefs.retain(|brief| brief.overlaps(from, to)),
                Some(Window::Around(at)) => near(&mut briefs, at),
                Some(Window::Places(from, to)) => {
                    let size = self.info.segment_size;
                    briefs.retain(|brief| brief.number.end(size) > from && brief.number.start(size) < to);
                }
                None => {}
            }
            if times.is_some() {
                let span = span(&briefs);
                self.cut(line, span.0, span.1);
                filter.span.insert(line.timeline, span);
            }
            chosen.extend(briefs);
        }
        if filter.files.is_some() {
            chosen.retain(|brief| brief.touched);
        }
        if filter.everything && chosen.len() > WHOLE {
            let all = chosen.len();
            match filter.window {
                Some(Window::Around(at)) => {
                    chosen.sort_by_key(|brief| distance(brief, at));
                    chosen.truncate(WHOLE);
                    found.remarks.push(format!(
                        "{all} WAL segments are around that moment: the transactions of the nearest {WHOLE} are told"
                    ));
                }
                _ => {
                    filter.everything = false;
                    found.remarks.push(format!(
                        "{all} WAL segments would have to be read to tell every transaction: only what is remarkable \
                         is told; at most {WHOLE} are read, narrow the search with --between or --around"
                    ));
                }
            }
        }
        if filter.everything {
            filter.read = chosen.iter().map(|brief| (brief.timeline, brief.number)).collect();
        }
        Ok(())
    }

    /// Leaves a line what lies in a span, and enough before it for what began there.
    fn cut(&self, line: &mut Line, first: SegmentNumber, last: SegmentNumber) {
        let from = SegmentNumber::new(first.number().saturating_sub(BACK));
        line.segments.retain(|segment| (from..=last).contains(&segment.number));
    }

    /// Adds the bytes that transactions wrote in segments whose index does not tell of them.
    async fn count_again(&self, found: &mut Found) -> Result<(), Failure> {
        let mut wanted: BTreeMap<(Timeline, SegmentNumber), Vec<usize>> = BTreeMap::new();
        for (number, event) in found.events.iter().enumerate() {
            let segments = &event.uncounted.1;
            if segments.len() <= AGAIN {
                for segment in segments {
                    wanted.entry((event.timeline, *segment)).or_default().push(number);
                }
            }
        }
        if wanted.len() > WHOLE {
            return Ok(());
        }
        for ((timeline, number), events) in wanted {
            let Some(file) = self.file_on_path(timeline, number) else {
                continue;
            };
            let mut bytes: BTreeMap<u32, u64> = BTreeMap::new();
            let xids: BTreeSet<u32> = events
                .iter()
                .flat_map(|event| found.events[*event].uncounted.0.iter().map(|xid| xid.number()))
                .collect();
            let mut see = |raw: &RawRecord<'_>| {
                let xid = raw.xid().number();
                if xids.contains(&xid) {
                    *bytes.entry(xid).or_default() += u64::from(raw.length());
                }
            };
            match read::records(self.repository, self.info, self.layout, &[file], &mut see).await {
                Ok(()) => {}
                Err(error) if error.class() == Class::Damaged => continue,
                Err(error) => return Err(error.into()),
            }
            for event in events {
                let event = &mut found.events[event];
                let own = event.uncounted.0.iter().filter_map(|xid| bytes.get(&xid.number()));
                let own: u64 = own.sum();
                event.wal_bytes = event.wal_bytes.map(|known| known + own);
                event.uncounted.1.retain(|segment| *segment != number);
            }
        }
        Ok(())
    }

    fn file_on_path(&self, timeline: Timeline, number: SegmentNumber) -> Option<SegmentFile> {
        let path = self.catalog.history(timeline).path();
        let (timeline, segment) = self.catalog.wal.between(&path, number, number).first().copied()?;
        Some(segment.file(timeline, self.info.segment_size))
    }
}

impl Happened {
    /// Whether the transaction wrote more bytes than were counted.
    pub fn wrote_more(&self) -> bool {
        !self.uncounted.1.is_empty() || !self.complete
    }
}

/// The first and the last segment, and their neighbours: a record that crosses into one is told with it.
fn span(briefs: &[Brief]) -> (SegmentNumber, SegmentNumber) {
    match (briefs.first(), briefs.last()) {
        (Some(first), Some(last)) => {
            let before = first.number.number().saturating_sub(1);
            (SegmentNumber::new(before), last.number.next())
        }
        // None: the last is before the first.
        _ => (SegmentNumber::new(1), SegmentNumber::new(0)),
    }
}

fn distance(brief: &Brief, at: DateTime<Utc>) -> i64 {
    let Some((earliest, latest)) = brief.times else {
        return i64::MAX;
    };
    match (at < earliest, at > latest) {
        (true, _) => (earliest - at).num_milliseconds(),
        (_, true) => (at - latest).num_milliseconds(),
        _ => 0,
    }
}

/// Keeps the segments around a moment, and at least the nearest with an end of a transaction on each side.
fn near(briefs: &mut Vec<Brief>, at: DateTime<Utc>) {
    let first = briefs.iter().position(|brief| brief.overlaps(at - AROUND, at + AROUND));
    let last = briefs
        .iter()
        .rposition(|brief| brief.overlaps(at - AROUND, at + AROUND));
    let ends_before = |brief: &Brief| brief.ends && brief.times.is_some_and(|(earliest, _)| earliest <= at);
    let ends_after = |brief: &Brief| brief.ends && brief.times.is_some_and(|(_, latest)| latest >= at);
    let before = briefs.iter().rposition(ends_before);
    let after = briefs.iter().position(ends_after);
    let all = [first, last, before, after];
    let (Some(from), Some(to)) = (all.iter().flatten().min(), all.iter().flatten().max()) else {
        briefs.clear();
        return;
    };
    *briefs = briefs[*from..=*to].to_vec();
    let mut position = *from;
    briefs.retain(|brief| {
        position += 1;
        let nearest = [before, after].contains(&Some(position - 1));
        nearest || brief.overlaps(at - AROUND, at + AROUND)
    });
}

/// Keeps the events around a moment, and at least the nearest commit on each side.
fn around(events: &mut Vec<Happened>, at: DateTime<Utc>) {
    let commit = |event: &&Happened| event.kind == Kind::Commit;
    let before = events
        .iter()
        .filter(commit)
        .filter_map(|event| event.at)
        .filter(|time| *time <= at)
        .max();
    let after = events
        .iter()
        .filter(commit)
        .filter_map(|event| event.at)
        .filter(|time| *time > at)
        .min();
    let from = before.map_or(at - AROUND, |before| before.min(at - AROUND));
    let to = after.map_or(at + AROUND, |after| after.max(at + AROUND));
    events.retain(|event| event.at.is_none_or(|time| (from..=to).contains(&time)));
}

/// Which moments backups and unbroken WAL lead to, by the catalogue.
struct Paths<'a> {
    catalog: &'a Catalog,
    paths: BTreeMap<Timeline, Vec<Leg>>,
    /// Where each backup's way ends, by timeline.
    ends: BTreeMap<(Timeline, BackupId), Option<SegmentNumber>>,
    notes: &'a [Note],
}

impl<'a> Paths<'a> {
    fn of(catalog: &'a Catalog, notes: &'a [Note]) -> Self {
        let timelines = catalog.wal.timelines();
        let paths: BTreeMap<Timeline, Vec<Leg>> = timelines
            .map(|timeline| (timeline, catalog.history(timeline).path()))
            .collect();
        let mut ends = BTreeMap::new();
        for (timeline, path) in &paths {
            for backup in &catalog.backups {
                let end = catalog.wal.end_along(path, backup.start_lsn);
                ends.insert((*timeline, backup.id.clone()), end);
            }
        }
        Self {
            catalog,
            paths,
            ends,
            notes,
        }
    }

    /// Whether a recovery can end just before this place.
    fn lead_to(&self, timeline: Timeline, lsn: Lsn) -> bool {
        let Some(path) = self.paths.get(&timeline) else {
            return false;
        };
        let holding = SegmentNumber::holding(lsn, self.catalog.info.segment_size);
        self.catalog.backups.iter().any(|backup| {
            let usable = |leg: &Leg| leg.timeline == backup.timeline && leg.to.is_none_or(|to| backup.stop_lsn <= to);
            let end = self.ends.get(&(timeline, backup.id.clone())).copied().flatten();
            let broken = |note: &Note| {
                let on_path = path.iter().any(|leg| {
                    leg.timeline == note.timeline && leg.to.is_none_or(|to| note.from < to) && note.to > leg.from
                });
                on_path && note.from < lsn && note.to > backup.start_lsn
            };
            backup.state != BackupState::Damaged
                && backup.stop_lsn <= lsn
                && path.iter().any(usable)
                && end.is_some_and(|end| end >= holding)
                && !self.notes.iter().any(broken)
        })
    }
}
