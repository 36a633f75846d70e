//! The decoder finds what `pg_waldump` of the same major finds, in WAL of real servers: the same records with the same
//! lengths, transactions, resource managers and blocks, the same meaning, and so the same ends of recoveries.

mod dump;
mod index;
pub mod workload;

use std::fs;
use std::path::PathBuf;

use pgp_pitr::pg::{Lsn, SegmentName, WalFileName, check_first_page};
use pgp_pitr::wal::{
    CommitPoint, Event, EventKind, Extent, Record, RecoveryEvents, RelFork, Step, WalDecoder, WalLayout, Walked, stop,
};
use proptest::prelude::{Strategy, any};
use proptest::test_runner::{Config, TestRunner};

use crate::support::cluster::Cluster;
use crate::support::tools::Major;

use dump::Line;

#[test]
fn records_and_their_meaning_are_those_of_pg_waldump() {
    for major in Major::all() {
        let cluster = workload::varied(major, 1);
        let segments = Segments::read(&cluster);
        let lines = dump::all(&cluster, segments.names);
        workload::assert_varied(&lines, major);
        segments.assert_same_records(&lines);
        segments.assert_same_events(&lines);
        segments.assert_same_ends_of_recoveries(&lines);
        segments.assert_indexes_tell_the_same();
    }
}

#[test]
fn records_are_found_in_large_segments() {
    let cluster = workload::plain(Major::newest(), 64);
    let segments = Segments::read(&cluster);
    let lines = dump::all(&cluster, segments.names);
    segments.assert_same_records(&lines);
    segments.assert_indexes_tell_the_same();
}

#[test]
fn records_are_found_on_a_timeline_that_began_in_the_middle_of_a_segment() {
    let cluster = workload::promoted(Major::usual(), 1);
    let segments = Segments::read(&cluster);
    assert_eq!(segments.names[0].timeline().number(), 2);
    let lines = dump::all(&cluster, segments.names);
    segments.assert_same_records(&lines);
    segments.assert_same_events(&lines);
    let (events, _) = segments.events();
    assert!(
        events
            .iter()
            .any(|event| matches!(event.kind, EventKind::EndOfRecovery { .. }))
    );
}

/// The segments of the newest timeline in a cluster's `pg_wal`, in order.
fn segments(cluster: &Cluster) -> Vec<(PathBuf, SegmentName)> {
    let mut segments: Vec<_> = fs::read_dir(cluster.data_dir().join("pg_wal"))
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name()?.to_str()?.parse().ok()?;
            Some((path, name))
        })
        .collect();
    let newest = segments
        .iter()
        .map(|(_, name): &(_, SegmentName)| name.timeline())
        .max();
    segments.retain(|(_, name)| Some(name.timeline()) == newest);
    segments.sort();
    segments
}

/// A cluster's WAL, one segment after the other.
pub struct Segments {
    layout: WalLayout,
    start: Lsn,
    /// The first and the last.
    names: [SegmentName; 2],
    segments: Vec<Vec<u8>>,
}

/// A record, told in the words of `pg_waldump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    start: Lsn,
    text: String,
}

impl Segments {
    pub fn read(cluster: &Cluster) -> Self {
        let files = segments(cluster);
        let segments: Vec<Vec<u8>> = files.iter().map(|(path, _)| fs::read(path).unwrap()).collect();
        let name = WalFileName::Segment(files[0].1);
        let first = check_first_page(name, &segments[0], segments[0].len() as u64).unwrap();
        assert_eq!(first.version.unwrap().number(), cluster.major().number() as u16);
        Self {
            layout: WalLayout::of(&first).unwrap(),
            start: first.header.page.address,
            names: [files[0].1, files[files.len() - 1].1],
            segments,
        }
    }

    /// All records that begin in the first of the segments, or later.
    pub fn each_record(&self, mut each: impl FnMut(&Record<'_>)) {
        let mut decoder = WalDecoder::new(self.start, self.layout);
        decoder.allow_timelines_up_to(self.names[0].timeline());
        for segment in &self.segments {
            decoder.push(decoder.wanted(), segment).unwrap();
            while let Step::Record(raw) = decoder.step() {
                each(&Record::parse(&raw).unwrap());
            }
        }
    }

    /// Where each segment begins.
    fn starts(&self) -> impl Iterator<Item = Lsn> + '_ {
        let size = self.layout.segment_size().bytes();
        (0..self.segments.len() as u64).map(move |number| self.start.plus(number * size))
    }

    fn assert_same_records(&self, lines: &[Line]) {
        let expected: Vec<Told> = lines.iter().map(|line| line.told.clone()).collect();
        let whole = self.told_from(0, usize::MAX);
        assert_same(&whole, &expected);
        // A segment by itself holds the records that begin and end in it.
        for (number, start) in self.starts().enumerate() {
            let end = start.plus(self.layout.segment_size().bytes());
            let alone = self.told_from(number, 1);
            let from = whole.partition_point(|told| told.start < start);
            let to = whole.partition_point(|told| told.start < end);
            assert_same(&alone, &whole[from..to.min(from + alone.len())]);
            assert!(
                to - from - alone.len() <= 1,
                "only the last record may cross into the next segment"
            );
        }
    }

    /// The records of some segments.
    fn told_from(&self, first: usize, count: usize) -> Vec<Told> {
        let at = self.starts().nth(first).unwrap();
        let mut decoder = WalDecoder::new(at, self.layout);
        decoder.allow_timelines_up_to(self.names[0].timeline());
        let mut found = Vec::new();
        for piece in self
            .segments
            .iter()
            .skip(first)
            .take(count)
            .flat_map(|s| s.chunks(100_000))
        {
            decoder.push(decoder.wanted(), piece).unwrap();
            while let Step::Record(raw) = decoder.step() {
                found.push(told(&Record::parse(&raw).unwrap()));
            }
        }
        found
    }

    fn events(&self) -> (Vec<Event>, Option<Extent>) {
        let mut walk = RecoveryEvents::new(self.start, self.layout);
        let mut events = Vec::new();
        for segment in &self.segments {
            walk.push(walk.wanted(), segment).unwrap();
            while let Walked::Event(event) = walk.walk().unwrap() {
                events.push(event);
            }
        }
        (events, walk.extent())
    }

    fn assert_same_events(&self, lines: &[Line]) {
        let (events, extent) = self.events();
        let expected: Vec<(Lsn, &str)> = lines
            .iter()
            .filter(|line| line.is_event())
            .map(|line| (line.told.start, line.desc.as_str()))
            .collect();
        let found: Vec<Lsn> = events.iter().map(|event| event.lsn).collect();
        assert_eq!(found, expected.iter().map(|(lsn, _)| *lsn).collect::<Vec<_>>());
        for (event, (_, desc)) in events.iter().zip(expected) {
            for word in words_of(&event.kind) {
                assert!(desc.contains(&word), "{event:?} tells \"{word}\", pg_waldump: {desc}");
            }
        }
        assert_eq!(
            extent.map(|extent| extent.last_record),
            lines.last().map(|line| line.told.start)
        );
    }

    /// Random targets, against a reading of every line by PostgreSQL's rules.
    fn assert_same_ends_of_recoveries(&self, lines: &[Line]) {
        let (events, extent) = self.events();
        let mut runner = TestRunner::new(Config::with_cases(150));
        let targets = (0..lines.len(), -1_i64..=1, 0_u8..6, any::<bool>())
            .prop_map(|(at, near, kind, inclusive)| (dump::target(lines, at, near, kind), inclusive));
        let outcome = runner.run(&targets, |(target, inclusive)| {
            let outcome = stop(target.clone(), inclusive, &events, extent);
            let expected = dump::recover(lines, &target, inclusive);
            let lsn = |point: Option<CommitPoint>| point.map(|point| point.lsn);
            assert_eq!(outcome.stop.is_some(), expected.reached, "{target:?} {inclusive}");
            assert_eq!(lsn(outcome.last_commit), expected.last_commit, "{target:?} {inclusive}");
            assert_eq!(lsn(outcome.next_commit), expected.next_commit, "{target:?} {inclusive}");
            Ok(())
        });
        outcome.unwrap();
    }
}

#[track_caller]
fn assert_same(found: &[Told], expected: &[Told]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
    let end = |told: &[Told]| told.last().cloned();
    assert_eq!((found.len(), end(found)), (expected.len(), end(expected)));
}

/// What `pg_waldump` prints of a record, its description left out.
fn told(record: &Record<'_>) -> Told {
    use std::fmt::Write;
    let raw = record.raw();
    let mut text = format!(
        "rmgr: {} len: {} tx: {} prev: {}",
        raw.manager(),
        raw.length(),
        raw.xid(),
        raw.previous()
    );
    for block in record.blocks() {
        let file = block.file;
        let (id, tablespace, database, number) = (block.id, file.tablespace, file.database, file.number);
        write!(text, ", blkref #{id}: rel {tablespace}/{database}/{number}").unwrap();
        match block.fork {
            RelFork::Main => {}
            RelFork::FreeSpaceMap => text.push_str(" fork fsm"),
            RelFork::VisibilityMap => text.push_str(" fork vm"),
            RelFork::Init => text.push_str(" fork init"),
        }
        write!(text, " blk {}", block.number).unwrap();
        match block.image {
            Some(image) if image.applied => text.push_str(" FPW"),
            Some(_) => text.push_str(" FPW for WAL verification"),
            None => {}
        }
    }
    Told {
        start: raw.start(),
        text,
    }
}

/// What `pg_waldump` must say of an event.
fn words_of(kind: &EventKind) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut words: Vec<String> = match kind {
        EventKind::Commit(end) | EventKind::Abort(end) => {
            let verb = if matches!(kind, EventKind::Commit(_)) {
                "COMMIT"
            } else {
                "ABORT"
            };
            if end.prepared {
                vec![format!("{verb}_PREPARED {}: ", end.xid)]
            } else {
                vec![format!("{verb} 2")]
            }
        }
        EventKind::Prepare { name, .. } => vec![format!("PREPARE gid {}: ", text(name))],
        EventKind::RestorePoint { name, .. } => return vec![format!("RESTORE_POINT {}", text(name))],
        EventKind::Checkpoint(point) => {
            let kind = if point.shutdown { "SHUTDOWN" } else { "ONLINE" };
            let (this, previous) = (point.timeline, point.previous_timeline);
            let (epoch, xid) = (point.next_xid_epoch, point.next_xid);
            // 17 and newer tell the redo LSN with eight digits behind the slash.
            return vec![
                format!("CHECKPOINT_{kind} redo "),
                format!("; tli {this}; prev tli {previous}; "),
                format!("; xid {epoch}:{xid}; "),
            ];
        }
        EventKind::ParameterChange(change) => {
            let settings = change.settings;
            return vec![
                format!("max_connections={} ", settings.max_connections),
                format!("max_worker_processes={} ", settings.max_worker_processes),
                format!("max_wal_senders={} ", settings.max_wal_senders),
                format!("max_prepared_xacts={} ", settings.max_prepared_transactions),
                format!("max_locks_per_xact={} ", settings.max_locks_per_transaction),
                format!("wal_level={} ", change.wal_level),
                format!("wal_log_hints={} ", on_off(change.wal_log_hints)),
                format!("track_commit_timestamp={}", on_off(change.track_commit_timestamp)),
            ];
        }
        EventKind::EndOfRecovery { timeline, .. } => vec![format!("END_OF_RECOVERY tli {timeline}; ")],
        EventKind::Switch => vec!["SWITCH".to_owned()],
        EventKind::BackupEnd { start } => vec![format!("BACKUP_END {start}")],
        EventKind::Overwrite { unfinished, .. } => vec![format!("OVERWRITE_CONTRECORD lsn {unfinished}; ")],
        EventKind::TablespaceCreated { tablespace, path } => {
            vec![format!("CREATE {tablespace} \"{}\"", text(path))]
        }
        EventKind::TablespaceDropped { tablespace } => vec![format!("DROP {tablespace}")],
        EventKind::DatabaseCreated { database, copied_from } => {
            let way = copied_from.map_or("create dir ".to_owned(), |from| format!("/{from} to "));
            vec!["CREATE".to_owned(), way, format!("/{database}")]
        }
        EventKind::DatabaseDropped { database } => vec!["DROP".to_owned(), format!("/{database}")],
    };
    if let Some(at) = kind.at() {
        words.push(at.format("%Y-%m-%d %H:%M:%S%.6f").to_string());
    }
    if let EventKind::Commit(end) | EventKind::Abort(end) = kind
        && end.subtransactions > 0
    {
        words.push("; subxacts: ".to_owned());
    }
    words
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}
