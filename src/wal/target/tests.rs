//! Targets in made-up WAL.

use super::super::events::Ended;
use super::*;
use crate::wal::index::summary::summary;
use proptest::prelude::*;

fn time(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn event(lsn: u64, previous: u64, kind: EventKind) -> Event {
    Event {
        lsn: Lsn::new(lsn),
        end_lsn: Lsn::new(lsn + 8),
        previous: Lsn::new(previous),
        kind,
    }
}

fn ended(xid: u32, second: i64) -> Ended {
    Ended {
        xid: Xid::new(xid),
        at: time(second),
        database: None,
        subtransactions: 0,
        prepared: false,
    }
}

fn named(name: &str, second: i64) -> EventKind {
    EventKind::RestorePoint {
        name: name.as_bytes().to_vec(),
        at: time(second),
    }
}

/// Records begin at every multiple of ten from 100 to 250; these of them are events. Times are out of order, and
/// two are the same.
fn wal() -> (Vec<Event>, Extent) {
    let (commit, abort) = (
        |x, t| EventKind::Commit(ended(x, t)),
        |x, t| EventKind::Abort(ended(x, t)),
    );
    let events = vec![
        event(110, 100, commit(1, 10)),
        event(130, 120, named("here", 12)),
        event(150, 140, commit(2, 30)),
        event(160, 150, commit(3, 20)),
        event(180, 170, abort(4, 40)),
        event(190, 180, named("here", 41)),
        event(200, 190, commit(5, 40)),
        event(210, 200, named("there", 50)),
        event(230, 220, commit(6, 60)),
    ];
    let extent = Extent {
        last_record: Lsn::new(250),
        end: Lsn::new(258),
    };
    (events, extent)
}

fn before(lsn: u64) -> Option<Stop> {
    Some(Stop::Before(Lsn::new(lsn)))
}

fn after(lsn: u64) -> Option<Stop> {
    let (lsn, end_lsn) = (Lsn::new(lsn), Lsn::new(lsn + 8));
    Some(Stop::After { lsn, end_lsn })
}

fn near(lsn: u64) -> Option<Stop> {
    Some(Stop::Near(Lsn::new(lsn)))
}

/// One line of a table: where recovery stops, the last commit's xid and the next one's; zero is none.
type Line = (Option<Stop>, u32, u32);

#[track_caller]
fn assert_outcome(target: Target, inclusive: bool, expected: Line) {
    let (events, extent) = wal();
    let outcome = stop(target.clone(), inclusive, &events, Some(extent));
    let xid = |point: Option<CommitPoint>| point.map_or(0, |point| point.xid.number());
    let found = (outcome.stop, xid(outcome.last_commit), xid(outcome.next_commit));
    assert_eq!(found, expected, "{target:?}, inclusive: {inclusive}");
}

#[test]
fn a_time_stops_before_the_first_end_that_tells_a_later_one() {
    for (second, inclusive, exclusive) in [
        (9, (before(110), 0, 1), (before(110), 0, 1)),
        (10, (before(150), 1, 2), (before(110), 0, 1)),
        // Xid 3 tells an earlier time than xid 2, and stays out all the same.
        (20, (before(150), 1, 2), (before(150), 1, 2)),
        (30, (before(180), 3, 5), (before(150), 1, 2)),
        // The abort at 180 stops it, too.
        (39, (before(180), 3, 5), (before(180), 3, 5)),
        (40, (before(230), 5, 6), (before(180), 3, 5)),
        // Restore points have times that don't count.
        (55, (before(230), 5, 6), (before(230), 5, 6)),
        (60, (None, 6, 0), (before(230), 5, 6)),
        (61, (None, 6, 0), (None, 6, 0)),
    ] {
        assert_outcome(Target::Time(time(second)), true, inclusive);
        assert_outcome(Target::Time(time(second)), false, exclusive);
    }
}

#[test]
fn an_xid_stops_at_the_end_of_that_transaction_only() {
    for (xid, inclusive, exclusive) in [
        (1, (after(110), 1, 2), (before(110), 0, 1)),
        (3, (after(160), 3, 5), (before(160), 2, 3)),
        (4, (after(180), 3, 5), (before(180), 3, 5)),
        (6, (after(230), 6, 0), (before(230), 5, 6)),
        (7, (None, 6, 0), (None, 6, 0)),
    ] {
        assert_outcome(Target::Xid(Xid::new(xid)), true, inclusive);
        assert_outcome(Target::Xid(Xid::new(xid)), false, exclusive);
    }
}

#[test]
fn an_lsn_stops_at_the_first_record_that_begins_there_or_later() {
    for (lsn, inclusive, exclusive) in [
        (0, (near(0), 0, 1), (near(0), 0, 1)),
        (100, (near(100), 0, 1), (near(100), 0, 1)),
        (101, (after(110), 1, 2), (before(110), 0, 1)),
        (110, (after(110), 1, 2), (before(110), 0, 1)),
        // The commit's end: the next record is replayed, and it is none that matters.
        (118, (near(118), 1, 2), (near(118), 1, 2)),
        (150, (after(150), 2, 3), (before(150), 1, 2)),
        // An inclusive LSN at a commit's end replays the next record, which is another commit.
        (158, (after(160), 3, 5), (before(160), 2, 3)),
        (231, (near(231), 6, 0), (near(231), 6, 0)),
        (250, (near(250), 6, 0), (near(250), 6, 0)),
        (251, (None, 6, 0), (None, 6, 0)),
    ] {
        assert_outcome(Target::Lsn(Lsn::new(lsn)), true, inclusive);
        assert_outcome(Target::Lsn(Lsn::new(lsn)), false, exclusive);
    }
}

#[test]
fn a_name_stops_after_the_first_restore_point_that_has_it() {
    for inclusive in [true, false] {
        let name = |name: &str| Target::Name(name.as_bytes().to_vec());
        assert_outcome(name("here"), inclusive, (after(130), 1, 2));
        assert_outcome(name("there"), inclusive, (after(210), 5, 6));
        assert_outcome(name("her"), inclusive, (None, 6, 0));
    }
}

#[test]
fn consistency_stops_as_soon_as_it_is_reached() {
    for inclusive in [true, false] {
        let consistent = |lsn| Target::Consistent(Lsn::new(lsn));
        assert_outcome(consistent(118), inclusive, (after(110), 1, 2));
        assert_outcome(consistent(120), inclusive, (near(120), 1, 2));
        assert_outcome(consistent(258), inclusive, (near(258), 6, 0));
        assert_outcome(consistent(259), inclusive, (None, 6, 0));
    }
}

#[test]
fn without_a_target_all_is_replayed() {
    let end = Some(Stop::EndOfWal(Lsn::new(258)));
    assert_outcome(Target::EndOfWal, true, (end, 6, 0));
    let nothing = stop(Target::EndOfWal, true, &[], None);
    assert_eq!((nothing.stop, nothing.last_commit), (None, None));
}

#[test]
fn a_transaction_that_was_prepared_stops_it_at_its_second_phase() {
    let prepare = EventKind::Prepare {
        xid: Xid::new(2),
        at: time(90),
        name: b"p".to_vec(),
    };
    let mut commit = ended(2, 20);
    commit.prepared = true;
    let events = [
        event(100, 90, EventKind::Commit(ended(1, 10))),
        event(110, 100, prepare),
        event(120, 110, EventKind::Commit(commit)),
    ];
    let stop = |target, inclusive| stop(target, inclusive, &events, None).stop;
    assert_eq!(stop(Target::Xid(Xid::new(2)), true), after(120));
    assert_eq!(stop(Target::Xid(Xid::new(2)), false), before(120));
    assert_eq!(stop(Target::Time(time(15)), true), before(120));
}

/// A piece of WAL: how many records it has, and which of them are events.
type Piece = Vec<Option<EventKind>>;

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let kind = prop_oneof![
        (1..9_u32, 0..9_i64).prop_map(|(xid, second)| EventKind::Commit(ended(xid, second))),
        (1..9_u32, 0..9_i64).prop_map(|(xid, second)| EventKind::Abort(ended(xid, second))),
        ("[ab]", 0..9_i64).prop_map(|(name, second)| named(&name, second)),
    ];
    prop::collection::vec(prop::collection::vec(prop::option::of(kind), 0..6), 1..6)
}

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        (0..9_i64).prop_map(|second| Target::Time(time(second))),
        (1..9_u32).prop_map(|xid| Target::Xid(Xid::new(xid))),
        (900..1400_u64).prop_map(|lsn| Target::Lsn(Lsn::new(lsn))),
        "[abc]".prop_map(|name| Target::Name(name.into_bytes())),
        (900..1400_u64).prop_map(|lsn| Target::Consistent(Lsn::new(lsn))),
        Just(Target::EndOfWal),
    ]
}

proptest! {
    #[test]
    fn segments_that_are_passed_over_make_no_difference(
        pieces in pieces(),
        target in targets(),
        inclusive: bool,
    ) {
        // Segments of 100 bytes from 1000 on, a record at every tenth.
        let (mut all, mut passed, mut previous) = (Vec::new(), StopFinder::new(target.clone(), inclusive), 990);
        let mut extent = None;
        for (piece, number) in pieces.iter().zip(10..) {
            let start = number * 100;
            let first_previous = previous;
            let (mut records, mut events) = (Vec::new(), Vec::new());
            for (kind, at) in piece.iter().zip(0..) {
                let lsn = start + at * 10;
                records.push((Lsn::new(lsn), Lsn::new(lsn + 8)));
                events.extend(kind.clone().map(|kind| event(lsn, previous, kind)));
                previous = lsn;
            }
            let index = summary(Lsn::new(start), Lsn::new(first_previous), &records, &events, None);
            if passed.may_pass_over(&index) {
                passed.pass_over(&index);
            } else {
                events.iter().for_each(|event| passed.see(event));
            }
            extent = index.extent.or(extent);
            if let Some(extent) = extent {
                passed.reach(extent);
            }
            all.extend(events);
        }
        prop_assert_eq!(passed.finish(extent), stop(target, inclusive, &all, extent));
    }
}
