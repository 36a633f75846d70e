//! Courses through made-up segments.

use std::path::PathBuf;

use super::*;
use crate::pg::ControlSettings;
use crate::wal::index::summary::summary;
use crate::wal::{Ended, ParameterChange, Xid};

const SLOT: u64 = 1 << 17;

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

/// Where the record in a slot begins; eight fill a segment.
fn lsn(slot: u64) -> Lsn {
    Lsn::new(size().bytes() + slot * SLOT)
}

fn second(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn commit(xid: u32, at: i64) -> EventKind {
    EventKind::Commit(Ended {
        xid: Xid::new(xid),
        at: second(at),
        database: None,
        subtransactions: 0,
        prepared: false,
    })
}

fn restart(max_connections: i32, max_wal_senders: i32, wal_level: WalLevel) -> EventKind {
    EventKind::ParameterChange(ParameterChange {
        settings: settings(max_connections, max_wal_senders),
        wal_level,
        wal_log_hints: false,
        track_commit_timestamp: false,
    })
}

fn settings(max_connections: i32, max_wal_senders: i32) -> ControlSettings {
    ControlSettings {
        max_connections,
        max_worker_processes: 8,
        max_wal_senders,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
    }
}

fn created(oid: u32, path: &str) -> EventKind {
    EventKind::TablespaceCreated {
        tablespace: oid,
        path: path.as_bytes().to_vec(),
    }
}

/// What a recovery finds that replays from `from` on, in as many segments as these events fill. Also, how many of the
/// segments were passed over.
fn follow(from: u64, target: Target, events: &[(u64, EventKind)]) -> (Findings, usize) {
    let mut course = Course::new(lsn(from), target, true, size());
    let segments = events.last().map_or(0, |(slot, _)| slot / 8) + 1;
    let mut passed = 0;
    for number in 0..segments {
        let slots = number * 8..(number + 1) * 8;
        let records: Vec<_> = slots.clone().map(|slot| (lsn(slot), lsn(slot + 1))).collect();
        let here = events.iter().filter(|(slot, _)| slots.contains(slot));
        let here: Vec<Event> = here
            .map(|(slot, kind)| Event {
                lsn: lsn(*slot),
                end_lsn: lsn(slot + 1),
                previous: Lsn::new(lsn(*slot).bytes() - SLOT),
                kind: kind.clone(),
            })
            .collect();
        let start = lsn(number * 8);
        let index = summary(start, Lsn::new(start.bytes() - SLOT), &records, &here, None);
        assert_eq!(course.enter(&index), None);
        assert!(course.follows());
        if course.may_pass_over(&index) {
            course.pass_over(&index);
            passed += 1;
        } else {
            course.see_all(&index, &here);
        }
        course.leave(None);
        if course.is_over() {
            break;
        }
    }
    (course.finish(None), passed)
}

#[test]
fn the_highest_settings_up_to_the_stop_are_needed() {
    let events = [
        (0, restart(900, 90, WalLevel::Replica)),
        (3, restart(150, 5, WalLevel::Replica)),
        (9, restart(120, 20, WalLevel::Logical)),
        (17, commit(7, 7)),
        (18, restart(500, 50, WalLevel::Replica)),
        (25, commit(8, 8)),
    ];
    let (found, passed) = follow(1, Target::Xid(Xid::new(7)), &events);
    assert_eq!(found.needs.settings, Some(settings(150, 20)));
    assert_eq!(
        (found.segments, passed),
        (3, 2),
        "the first and the third are looked at"
    );
    let needs = found.needs;
    assert_eq!(
        needs.above(&settings(100, 10)),
        [("max_connections", 150), ("max_wal_senders", 20)]
    );
    assert_eq!(needs.above(&settings(150, 20)), []);
    let (found, _) = follow(1, Target::EndOfWal, &events);
    assert_eq!(found.needs.settings, Some(settings(500, 50)));
}

#[test]
fn tablespaces_outside_are_needed_if_they_were_created_before_the_stop() {
    let events = [
        (0, created(1, "/before")),
        (4, created(2, "/here")),
        (5, created(3, "")),
        (12, EventKind::TablespaceDropped { tablespace: 2 }),
        (17, commit(7, 7)),
        (18, created(4, "/later")),
    ];
    let (found, _) = follow(1, Target::Xid(Xid::new(7)), &events);
    let paths: Vec<_> = found.needs.tablespaces.iter().map(|space| &space.path).collect();
    assert_eq!(paths, [&PathBuf::from("/here")]);
}

#[test]
fn recovery_ends_before_the_wal_of_a_server_that_was_started_with_too_low_a_level() {
    let events = [
        (2, commit(5, 5)),
        (9, restart(100, 10, WalLevel::Minimal)),
        (17, commit(7, 7)),
    ];
    let before = Extent {
        last_record: lsn(8),
        end: lsn(9),
    };
    for target in [
        Target::EndOfWal,
        Target::Time(second(6)),
        Target::Xid(Xid::new(7)),
        Target::Lsn(lsn(9)),
        Target::Lsn(lsn(20)),
    ] {
        let (found, _) = follow(1, target.clone(), &events);
        assert!(found.ends.is_some_and(|why| why.contains("wal_level")), "{target:?}");
        assert_eq!(found.extent, Some(before), "{target:?}");
        let stop = found.outcome.and_then(|outcome| outcome.stop);
        assert!(matches!(stop, None | Some(Stop::EndOfWal(_))), "{target:?}");
    }
    for target in [Target::Lsn(lsn(8)), Target::Xid(Xid::new(5)), Target::Time(second(4))] {
        let (found, _) = follow(1, target.clone(), &events);
        assert_eq!(found.ends, None, "{target:?}");
        assert!(found.outcome.unwrap().stop.is_some(), "{target:?}");
    }
}
