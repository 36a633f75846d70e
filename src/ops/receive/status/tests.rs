//! The status file, written and read.

use super::*;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 123_456_000).unwrap()
}

fn env(seconds: i64) -> Env {
    Env::made_up(&[], at(seconds), 1)
}

#[test]
fn the_names_of_its_fields_are_an_interface() {
    let mut status = Status::new("pgp", true, at(0));
    status.received_lsn = Some(Lsn::new(0x500_0A10));
    status.set_lag(Lag {
        bytes: 7,
        commit_time: Duration::from_millis(1500),
        data_at_risk: Duration::ZERO,
    });
    status.add_gap(Gap {
        timeline: Timeline::FIRST,
        from: Lsn::new(0x100_0000),
        to: Lsn::new(0x200_0000),
    });
    let text = serde_json::to_string(&status).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let fields: Vec<&String> = document.as_object().unwrap().keys().collect();
    let mut expected = [
        "pid",
        "started_at",
        "written_at",
        "state",
        "stored_lsn",
        "detail",
        "server",
        "system_identifier",
        "slot",
        "timeline",
        "synchronous",
        "received_lsn",
        "durable_lsn",
        "server_lsn",
        "lag_bytes",
        "lag_seconds",
        "data_at_risk_seconds",
        "spool_bytes",
        "spool_limit_bytes",
        "slot_bytes_left",
        "slot_wal_status",
        "gaps",
        "reconnects",
        "last_error",
        "segments",
        "pieces",
        "bytes_received",
        "bytes_stored",
    ];
    expected.sort_unstable();
    assert_eq!(fields, expected);
    assert_eq!(document["started_at"], "2027-01-15T08:00:00.123456Z");
    assert_eq!(document["received_lsn"], "0/5000A10");
    assert_eq!(document["lag_seconds"], 1.5);
    assert_eq!(document["gaps"][0]["from_lsn"], "0/1000000");
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
}

#[test]
fn a_state_has_one_word() {
    for state in [
        State::Streaming,
        State::CatchingUp,
        State::SpoolFull,
        State::WaitingForSlot,
        State::Failed,
    ] {
        assert_eq!(serde_json::to_value(state).unwrap(), state.word());
    }
}

#[test]
fn it_is_written_at_changes_of_state_and_once_a_second_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("status.json");
    let mut file = StatusFile::open(&path).unwrap().unwrap();
    let mut status = Status::new("pgp", false, at(0));
    let mut tell = |status: &Status, seconds| {
        file.tell(status, &env(seconds)).unwrap();
        Seen::read(&path, at(seconds)).unwrap().status
    };
    assert_eq!(tell(&status, 0).written_at, at(0));
    status.pieces = 1;
    assert_eq!(tell(&status, 0).pieces, 0, "not within the second");
    status.state = State::Streaming;
    assert_eq!(tell(&status, 0).pieces, 1, "at once");
    status.pieces = 2;
    assert_eq!(tell(&status, 1).pieces, 2);
    status.pieces = 3;
    assert_eq!(tell(&status, -100).pieces, 3, "the clock was set back");
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["status.json", "status.json.lock"]);
}

#[test]
fn it_runs_as_long_as_its_process_holds_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("status.json");
    assert!(matches!(Seen::read(&path, at(0)), Err(StatusError::None(_))));
    let mut file = StatusFile::open(&path).unwrap().unwrap();
    assert!(StatusFile::open(&path).unwrap().is_none(), "one process has it");
    let mut status = Status::new("pgp", false, at(0));
    status.state = State::Streaming;
    file.tell(&status, &env(0)).unwrap();
    let health = |seconds| Seen::read(&path, at(seconds)).unwrap().health();
    assert_eq!(health(30), Health::Well);
    assert_eq!(health(31), Health::Behind, "stalled");
    status.add_gap(Gap {
        timeline: Timeline::FIRST,
        from: Lsn::new(1),
        to: Lsn::new(2),
    });
    file.tell(&status, &env(40)).unwrap();
    assert_eq!(health(40), Health::Behind, "a gap");
    status.state = State::ServerUnavailable;
    file.tell(&status, &env(41)).unwrap();
    assert_eq!(health(41), Health::Out);
    drop(file);
    // The process lives, as it happens, and it is no receiver any more.
    assert!(!Seen::read(&path, at(41)).unwrap().running);
    fs::write(&path, "{}").unwrap();
    assert!(matches!(Seen::read(&path, at(41)), Err(StatusError::Strange { .. })));
}

#[test]
fn gaps_are_told_once_and_not_without_end() {
    let mut status = Status::new("pgp", false, at(0));
    let gap = |from: u64, to: u64| Gap {
        timeline: Timeline::FIRST,
        from: Lsn::new(from),
        to: Lsn::new(to),
    };
    status.add_gap(gap(1, 2));
    status.add_gap(gap(2, 3));
    assert_eq!(status.gaps, [gap(1, 3)]);
    (2..200).for_each(|number| status.add_gap(gap(number * 10, number * 10 + 1)));
    assert_eq!(status.gaps.len(), MOST_GAPS);
    assert_eq!(status.gaps.last(), Some(&gap(1990, 1991)));
}
