//! The search over made-up catalogues, against a model that reads every record.
//!
//! A world has segments of eight records each, timelines that fork from each other, backups, and files that are missing
//! or damaged. The model knows nothing of indexes, sums or the order in which things are read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::catalog::Coverage;
use crate::error::Explain;
use crate::pg::time::{RecoveryTime, rfc3339};
use crate::pg::{MajorVersion, SegmentSize, SystemId};
use crate::plan::recovery::Moment;
use crate::repo::ClusterInfo;
use crate::repo::backup::BackupKind;
use crate::wal::index::summary::summary;
use crate::wal::{Ended, EventKind};

mod model;

use model::{Expected, expected};

const SLOTS: u64 = 8;
const SEGMENTS: u64 = 6;

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

/// Where the record in a slot begins; the first slot is that of segment 1.
fn lsn(slot: u64) -> Lsn {
    Lsn::new(size().bytes() + slot * (size().bytes() / SLOTS))
}

fn second(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

/// What there is.
#[derive(Debug)]
struct World {
    /// By timeline and slot: what that timeline wrote there.
    events: BTreeMap<(u32, u64), EventKind>,
    /// By timeline: its parent, and the slot from which on it is on its own.
    forks: BTreeMap<u32, (u32, u64)>,
    missing: BTreeSet<(u32, u64)>,
    damaged: BTreeSet<(u32, u64)>,
    /// Those that lack something of their own.
    lacking: BTreeSet<BackupId>,
    backups: Vec<BackupRecord>,
    /// The segments of which the content was asked for.
    read: RefCell<BTreeSet<(u32, u64)>>,
}

impl World {
    /// The timeline that wrote the record in a slot, in the history of this one.
    fn writer(&self, of: u32, slot: u64) -> u32 {
        match self.forks.get(&of) {
            Some((parent, from)) if slot < *from => self.writer(*parent, slot),
            _ => of,
        }
    }

    /// The events of the file of a segment, in order.
    fn file(&self, on: u32, number: u64) -> Vec<Event> {
        let slots = (number - 1) * SLOTS..number * SLOTS;
        let event = |slot: u64| {
            Some(Event {
                lsn: lsn(slot),
                end_lsn: lsn(slot + 1),
                previous: Lsn::new(lsn(slot).bytes() - size().bytes() / SLOTS),
                kind: self.events.get(&(self.writer(on, slot), slot))?.clone(),
            })
        };
        slots.filter_map(event).collect()
    }

    fn history(&self, of: u32) -> TimelineHistory {
        let mut lines = String::new();
        let mut at = of;
        while let Some((parent, from)) = self.forks.get(&at) {
            lines.insert_str(0, &format!("{parent}\t{}\tfork\n", lsn(*from)));
            at = *parent;
        }
        match lines.is_empty() {
            true => TimelineHistory::root(timeline(of)),
            false => TimelineHistory::parse(timeline(of), lines.as_bytes()).unwrap(),
        }
    }

    /// Timelines and segments that were written: a timeline begins with the segment in which it forked.
    fn files(&self) -> impl Iterator<Item = (u32, u64)> {
        let first = |on: u32| self.forks.get(&on).map_or(1, |(_, from)| from / SLOTS + 1);
        (1..=self.forks.len() as u32 + 1)
            .flat_map(move |on| (first(on)..=SEGMENTS).map(move |number| (on, number)))
            .filter(|file| !self.missing.contains(file))
    }

    fn catalog(&self) -> Catalog {
        let mut wal = Coverage::new(size());
        for (on, number) in self.files() {
            wal.add(SegmentNumber::new(number).name(timeline(on), size()), 100, Form::Whole);
        }
        wal.sort();
        let histories = self.forks.keys().map(|on| (timeline(*on), self.history(*on)));
        Catalog {
            info: ClusterInfo {
                system: SystemId::new(7),
                major: MajorVersion::new(17).unwrap(),
                segment_size: size(),
                wal_page_size: 8192,
            },
            backups: self.backups.clone(),
            damaged: Vec::new(),
            wal,
            histories: histories.collect(),
            doubts: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn look(&self, (on, segment): OnPath) -> Result<(u32, u64), Failure> {
        let file = (on.number(), segment.number.number());
        match self.damaged.contains(&file) {
            true => Err(Broken.into()),
            false => Ok(file),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it fails its checksum")]
struct Broken;

impl Explain for Broken {
    fn class(&self) -> Class {
        Class::Damaged
    }
}

struct Index(SegmentIndex, (u32, u64));

impl AsRef<SegmentIndex> for Index {
    fn as_ref(&self) -> &SegmentIndex {
        &self.0
    }
}

impl Source for World {
    type Index = Index;

    fn lost(&self, _: &Index) -> Option<(Lsn, Lsn)> {
        None
    }

    async fn index(&self, segment: OnPath) -> Result<Option<Index>, Failure> {
        let (on, number) = self.look(segment)?;
        let first = (number - 1) * SLOTS;
        let records: Vec<_> = (first..first + SLOTS).map(|slot| (lsn(slot), lsn(slot + 1))).collect();
        let previous = Lsn::new(lsn(first).bytes() - size().bytes() / SLOTS);
        let index = summary(lsn(first), previous, &records, &self.file(on, number), None);
        Ok(Some(Index(index, (on, number))))
    }

    async fn events(&self, Index(_, (on, number)): &Index) -> Result<Vec<Event>, Failure> {
        self.read.borrow_mut().insert((*on, *number));
        Ok(self.file(*on, *number))
    }

    async fn stretch(&self, segments: &[OnPath], until: Lsn) -> Result<Stretch, Failure> {
        let (on, number) = self.look(segments[0])?;
        let mut events = self.file(on, number);
        events.retain(|event| event.end_lsn <= until);
        let whole = |slot: &u64| lsn(slot + 1) <= until;
        let last = ((number - 1) * SLOTS..number * SLOTS).rfind(whole);
        let extent = last.map(|slot| Extent {
            last_record: lsn(slot),
            end: lsn(slot + 1),
        });
        Ok(Stretch { events, extent })
    }

    async fn whole_transaction(&self, _: OnPath, _: Xid) -> Result<Option<Xid>, Failure> {
        Ok(None)
    }

    async fn lacks(&self, backup: &BackupRecord) -> Result<Lacks, Failure> {
        let lacks = self.lacking.contains(&backup.id);
        Ok(Lacks {
            needed: lacks.then(|| "a pack is missing".to_owned()),
            others: Vec::new(),
        })
    }

    async fn settings(&self, _: &BackupRecord) -> Result<Option<ControlSettings>, Failure> {
        Ok(None)
    }

    async fn history(&self, of: Timeline) -> Result<bool, Failure> {
        Ok(self.forks.contains_key(&of.number()))
    }
}

fn ask(world: &World, catalog: &Catalog, request: &Request) -> Result<Plan, Failure> {
    let search = Search::new(world, catalog, request)?;
    search.run().now_or_never().expect("nothing waits")
}

fn backup(world: &World, number: u64, (on, start, length, at, damaged): (u32, u64, u64, i64, bool)) -> BackupRecord {
    let on = on.min(world.forks.len() as u32 + 1);
    let start = start.max(world.forks.get(&on).map_or(0, |(_, from)| *from));
    let stop = (start + length).min(SEGMENTS * SLOTS);
    // The clock runs with the WAL, more or less.
    let stopped_at = second(stop as i64 + at);
    BackupRecord {
        id: BackupId::new(stopped_at, number),
        system_identifier: SystemId::new(7),
        label: None,
        kind: BackupKind::Full,
        state: if damaged {
            BackupState::Damaged
        } else {
            BackupState::Complete
        },
        pg_version: "17".to_owned(),
        server_version: "17.5".to_owned(),
        timeline: timeline(on),
        start_lsn: lsn(start),
        stop_lsn: lsn(stop),
        started_at: stopped_at,
        stopped_at,
        size_bytes: 1,
        stored_bytes: 1,
        entries: 1,
        tablespaces: vec![],
        from_standby: false,
        warnings: vec![],
        parts: vec![],
    }
}

fn kinds() -> impl Strategy<Value = Option<(u8, i64, u8)>> {
    prop::option::of((0..8_u8, -4..5_i64, 0..3_u8))
}

fn kind(on: u32, slot: u64, (what, jitter, name): (u8, i64, u8)) -> EventKind {
    let at = second(slot as i64 + jitter);
    let end = Ended {
        xid: Xid::new(100 * on + slot as u32),
        at,
        database: None,
        subtransactions: 0,
        prepared: false,
    };
    match what {
        0 => EventKind::Abort(end),
        1 => EventKind::RestorePoint {
            name: vec![b'a' + name],
            at,
        },
        _ => EventKind::Commit(end),
    }
}

prop_compose! {
    fn worlds()(
        forks in prop::collection::vec((0..2_u32, 1..SEGMENTS * SLOTS - 1), 0..3),
        events in prop::collection::vec(kinds(), 3 * (SEGMENTS * SLOTS) as usize),
        missing in prop::collection::btree_set((1..4_u32, 1..=SEGMENTS), 0..4),
        damaged in prop::collection::btree_set((1..4_u32, 1..=SEGMENTS), 0..2),
        backups in prop::collection::vec((1..4_u32, 0..40_u64, 1..9_u64, 0..3_i64, prop::bool::weighted(0.1)), 1..4),
        lacking in prop::collection::vec(prop::bool::weighted(0.1), 4),
    ) -> World {
        let forks = forks.iter().zip(2_u32..).map(|((parent, from), on)| (on, ((parent + 1).min(on - 1), *from)));
        let mut world = World {
            events: BTreeMap::new(),
            forks: forks.collect(),
            missing,
            damaged,
            lacking: BTreeSet::new(),
            backups: Vec::new(),
            read: RefCell::default(),
        };
        for (told, place) in events.iter().zip(0..) {
            let (on, slot) = (place / (SEGMENTS * SLOTS) + 1, place % (SEGMENTS * SLOTS));
            if let Some(told) = told {
                world.events.insert((on as u32, slot), kind(on as u32, slot, *told));
            }
        }
        world.backups = backups.iter().zip(0..).map(|(told, number)| backup(&world, number, *told)).collect();
        world.backups.sort_by_key(|backup| (backup.stopped_at, backup.id.clone()));
        let lacks = world.backups.iter().zip(&lacking).filter(|(_, lacks)| **lacks);
        world.lacking = lacks.map(|(backup, _)| backup.id.clone()).collect();
        world
    }
}

fn requests() -> impl Strategy<Value = (Requested, bool, u32, Option<usize>)> {
    let time = |at: i64| Requested::Time(RecoveryTime::of(second(at)), rfc3339(second(at)));
    let half = size().bytes() / SLOTS / 2;
    let requested = prop_oneof![
        3 => (-5..60_i64).prop_map(time),
        3 => (0..SEGMENTS * SLOTS * 2 + 2).prop_map(move |at| Requested::Lsn(lsn(0).plus(at * half))),
        2 => (1..4_u32, 0..48_u32).prop_map(|(on, slot)| Requested::Xid(Xid::new(100 * on + slot))),
        1 => "[abcd]".prop_map(Requested::Name),
        1 => Just(Requested::Immediate),
        1 => Just(Requested::Latest),
    ];
    let named = prop::option::weighted(0.2, 0..4_usize);
    (requested, any::<bool>(), 0..4_u32, named)
}

fn request(world: &World, (requested, exclusive, on, named): (Requested, bool, u32, Option<usize>)) -> Request {
    let may_exclude = matches!(requested, Requested::Time(..) | Requested::Lsn(_) | Requested::Xid(_));
    let newest = world.files().map(|(on, _)| on).chain(world.forks.keys().copied()).max();
    Request {
        requested,
        inclusive: !(may_exclude && exclusive),
        timeline: match on.min(newest.unwrap_or(0)) {
            0 => TimelineChoice::Latest,
            number => TimelineChoice::Number(timeline(number)),
        },
        backup: named.and_then(|number| Some(world.backups.get(number)?.id.clone())),
    }
}

/// What is asked for by the flags of a moment.
fn again(request: &Request, moment: &Moment) -> Request {
    let mut again = request.clone();
    again.inclusive = true;
    let value = |flag: &str| {
        let at = moment.flags.iter().position(|word| word == flag)?;
        moment.flags.get(at + 1)
    };
    if let Some(id) = value("--backup") {
        again.backup = Some(id.parse().unwrap());
    }
    again.requested = if let Some(at) = value("--target-time") {
        let at: DateTime<Utc> = at.parse().unwrap();
        Requested::Time(RecoveryTime::of(at), rfc3339(at))
    } else if let Some(lsn) = value("--target-lsn") {
        Requested::Lsn(lsn.parse().unwrap())
    } else if moment.flags.contains(&"--latest".to_owned()) {
        Requested::Latest
    } else {
        assert!(moment.flags.contains(&"--immediate".to_owned()), "{moment:?}");
        Requested::Immediate
    };
    again
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_search_finds_what_a_reading_of_every_record_finds(world in worlds(), asked in prop::collection::vec(requests(), 8)) {
        let catalog = world.catalog();
        for asked in asked {
            let request = request(&world, asked);
            world.read.borrow_mut().clear();
            let answer = ask(&world, &catalog, &request);
            let about = format!("{request:?}\n{answer:?}");
            if answer.is_ok() && request.requested == Requested::Latest {
                // Only where replay begins; the rest is told by sums.
                prop_assert!(world.read.borrow().len() <= world.backups.len(), "{:?}", world.read);
            }
            match (&answer, expected(&world, &request)) {
                (Ok(plan), Expected::Plan { backup, last, next, segments }) => {
                    prop_assert_eq!(&plan.backup.id, &backup, "{}", about);
                    let xid = |point: Option<crate::wal::CommitPoint>| point.map(|point| point.xid.number());
                    prop_assert_eq!(xid(plan.reaches.last_commit), last, "the last of {}", about);
                    prop_assert_eq!(xid(plan.reaches.next_commit), next, "the next of {}", about);
                    prop_assert_eq!(plan.segments, segments, "{}", about);
                }
                (Err(failure), Expected::Refused(class)) => {
                    prop_assert_eq!(failure.class(), class, "{}", about);
                    let nearest = failure.downcast_ref::<Refusal>().expect("a refusal").nearest().unwrap_or_default();
                    for moment in [nearest.before, nearest.after].into_iter().flatten() {
                        let answer = ask(&world, &catalog, &again(&request, &moment));
                        prop_assert!(answer.is_ok(), "{moment:?} {answer:?} of {about}");
                    }
                }
                (_, expected) => prop_assert!(false, "{expected:?} of {about}"),
            }
        }
    }
}
