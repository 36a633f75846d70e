//! Which segments and events a moment chooses.

use super::*;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(second, 0).unwrap()
}

fn brief(number: u64, times: Option<(i64, i64)>, ends: bool) -> Brief {
    Brief {
        timeline: Timeline::FIRST,
        number: SegmentNumber::new(number),
        times: times.map(|(from, to)| (at(from), at(to))),
        ends,
        touched: false,
    }
}

fn event(kind: Kind, second: i64) -> Happened {
    Happened {
        kind,
        timeline: Timeline::FIRST,
        lsn: Lsn::new(second as u64),
        before: Lsn::new(second as u64),
        end_lsn: Lsn::new(second as u64 + 8),
        xid: None,
        at: Some(at(second)),
        database: None,
        database_name: None,
        relations: Vec::new(),
        name: None,
        wal_bytes: None,
        files: Vec::new(),
        complete: true,
        uncertain: false,
        reachable: true,
        uncounted: (Vec::new(), Vec::new()),
    }
}

#[test]
fn around_a_moment_are_the_segments_near_it_and_the_nearest_that_end_a_transaction() {
    let all = [
        brief(1, Some((0, 1000)), true),
        brief(2, Some((1000, 2000)), true),
        // Idle: checkpoints only.
        brief(3, Some((2300, 2300)), false),
        brief(4, None, false),
        brief(5, Some((4950, 4990)), false),
        brief(6, Some((9000, 9500)), true),
        brief(7, Some((9500, 9600)), true),
    ];
    let near = |second| {
        let mut briefs = all.to_vec();
        super::near(&mut briefs, at(second));
        briefs.iter().map(|brief| brief.number.number()).collect::<Vec<_>>()
    };
    assert_eq!(near(5000), [2, 5, 6]);
    assert_eq!(near(1500), [2]);
    assert_eq!(near(1050), [1, 2]);
    assert_eq!(near(-5000), [1]);
    assert_eq!(near(20_000), [7]);
    let mut none = Vec::new();
    super::near(&mut none, at(5));
    assert!(none.is_empty());
}

#[test]
fn around_a_moment_are_two_minutes_or_the_nearest_commits() {
    let around = |second| {
        let mut events: Vec<Happened> = [100, 500, 550, 1000, 5000]
            .map(|second| event(Kind::Commit, second))
            .to_vec();
        events.push(event(Kind::Abort, 3000));
        super::around(&mut events, at(second));
        events.iter().map(|event| event.lsn.bytes()).collect::<Vec<_>>()
    };
    assert_eq!(around(520), [500, 550]);
    assert_eq!(around(1100), [1000, 5000, 3000]);
    assert_eq!(around(50), [100]);
    assert_eq!(around(9000), [5000]);
}

#[test]
fn kinds_that_are_asked_for_are_told_and_no_others() {
    let kinds = |request: &Request| {
        let filter = Filter::of(request);
        let all = [
            Kind::Commit,
            Kind::Drop,
            Kind::MassDelete,
            Kind::RestorePoint,
            Kind::Checkpoint,
        ];
        all.map(|kind| filter.asks_for(kind))
    };
    assert_eq!(kinds(&Request::default()), [false, true, true, true, false]);
    let drops = Request {
        kinds: vec![Kind::Drop],
        window: Some(Window::Places(Lsn::ZERO, Lsn::new(1))),
        ..Request::default()
    };
    assert_eq!(kinds(&drops), [false, true, false, false, false]);
    let all = Request {
        kinds: Vec::new(),
        ..drops
    };
    assert_eq!(kinds(&all), [true; 5]);
    let one = Request {
        xid: Some(Xid::new(7)),
        ..Request::default()
    };
    assert_eq!(kinds(&one), [true; 5]);
}
