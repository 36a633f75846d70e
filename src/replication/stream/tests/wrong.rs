//! What a server must not send: each time a named fault, and nothing handed on.

use bytes::{BufMut, BytesMut};

use super::*;
use crate::replication::ServerError;
use crate::replication::message::Row;
use crate::replication::stream::machine::Fault;

/// Where the streams begin.
const AT: Lsn = Lsn::new(0x300_0000);

fn wal_of(at: u64, server_end: u64, sent_at: i64, bytes: &[u8]) -> Backend {
    let mut body = BytesMut::new();
    body.put_u8(b'w');
    body.put_u64(at);
    body.put_u64(server_end);
    body.put_i64(sent_at);
    body.put_slice(bytes);
    Backend::CopyData(body.freeze())
}

/// WAL so far behind the start of the stream.
fn wal_at(offset: u64, length: usize) -> Backend {
    let at = AT.bytes() + offset;
    wal_of(at, at + length as u64, 0, &vec![7; length])
}

fn keepalive(server_end: u64, more: &[u8]) -> Backend {
    let mut body = BytesMut::new();
    body.put_u8(b'k');
    body.put_u64(server_end);
    body.put_i64(0);
    body.put_slice(more);
    Backend::CopyData(body.freeze())
}

fn copied(body: &'static [u8]) -> Backend {
    Backend::CopyData(Bytes::from_static(body))
}

fn row(timeline: &'static str, from: &'static str) -> Backend {
    let row: Row = [timeline, from]
        .map(|text| Some(Bytes::from_static(text.as_bytes())))
        .into();
    Backend::Row(row)
}

fn error(severity: &str) -> ServerError {
    ServerError::parse(format!("V{severity}\0C58P01\0Mgone\0\0").as_bytes()).unwrap()
}

/// A machine that has had these messages, none of them wrong.
fn after(messages: Vec<Backend>) -> Machine {
    let mut machine = Machine::new(Timeline::new(3).unwrap(), AT);
    for message in messages {
        let name = message.name();
        machine
            .take(message)
            .unwrap_or_else(|fault| panic!("{name}: {fault:?}"));
    }
    machine
}

/// Within the copy, with 100 bytes behind it.
fn copying() -> Vec<Backend> {
    vec![Backend::CopyBoth, wal_at(0, 100)]
}

fn then(mut before: Vec<Backend>, more: impl IntoIterator<Item = Backend>) -> Vec<Backend> {
    before.extend(more);
    before
}

/// At the end of the copy.
fn ended() -> Vec<Backend> {
    then(copying(), [Backend::CopyDone])
}

#[track_caller]
fn is_fault(before: Vec<Backend>, message: Backend, words: &str) {
    let mut machine = after(before);
    let position = machine.position();
    match machine.take(message) {
        Err(Fault::Protocol(what)) => {
            assert!(what.contains(words), "{what:?} is not about {words:?}");
            let expected = format!("(expected is WAL from {position} on)");
            assert!(what.ends_with(&expected), "{what:?}");
        }
        other => panic!("{words}: {other:?}"),
    }
    assert_eq!(machine.position(), position, "{words}");
}

#[test]
fn wal_that_does_not_go_on_where_it_ended_is_refused_with_both_positions() {
    is_fault(copying(), wal_at(101, 10), "WAL at 0/3000065, which leaves a gap");
    is_fault(copying(), wal_at(8192, 8192), "WAL at 0/3002000, which leaves a gap");
    is_fault(copying(), wal_at(0, 100), "WAL at 0/3000000, which was sent before");
    is_fault(copying(), wal_at(50, 100), "WAL at 0/3000032, which was sent before");
    is_fault(
        vec![Backend::CopyBoth],
        wal_at(1, 1),
        "WAL at 0/3000001, which leaves a gap",
    );
}

#[test]
fn wal_that_no_server_sends_is_refused() {
    let at = AT.bytes() + 100;
    is_fault(copying(), wal_at(100, 0), "no WAL in the message at 0/3000064");
    is_fault(
        copying(),
        wal_of(at, at + 9, 0, &[7; 10]),
        "behind the server's own end 0/300006D",
    );
    is_fault(copying(), wal_of(at, at, i64::MAX, &[7]), "a message sent at no time");
    is_fault(
        copying(),
        wal_at(100, (1 << 20) + 1),
        "1048577 bytes of WAL in one message",
    );
    is_fault(
        copying(),
        copied(b"w12345678901234567890123"),
        "a WAL message of 23 bytes",
    );
    is_fault(copying(), copied(b""), "a copy message without a type");
    for kind in [&b"W"[..], b"s12345678", b"\0"] {
        is_fault(copying(), copied(kind), "a copy message of the unknown type");
    }
    let last = Lsn::new(u64::MAX - 3);
    let mut machine = Machine::new(Timeline::FIRST, last);
    machine.take(Backend::CopyBoth).unwrap();
    let beyond = machine.take(wal_of(last.bytes(), u64::MAX, 0, &[7; 4]));
    assert!(matches!(beyond, Err(Fault::Protocol(what)) if what.contains("behind all positions")));
}

#[test]
fn keepalives_that_no_server_sends_are_refused() {
    let end = AT.bytes() + 100;
    is_fault(copying(), keepalive(end, b""), "a keepalive of 16 bytes");
    is_fault(copying(), keepalive(end, b"\0\0"), "a keepalive of 18 bytes");
    is_fault(copying(), keepalive(end, b"\x02"), "a keepalive whose flag is 2");
    is_fault(
        copying(),
        keepalive(end - 1, b"\0"),
        "up to 0/3000063, which is before what was sent",
    );
    assert!(after(copying()).take(keepalive(end, b"\x01")).is_ok());
}

#[test]
fn messages_out_of_place_are_refused() {
    let refused = || vec![Backend::Error(error("ERROR"))];
    let next = || then(ended(), [Backend::Columns, row("4", "0/3000064")]);
    let results = || then(ended(), (0..3).map(|_| Backend::CommandComplete));
    for (before, message, words) in [
        (vec![], wal_at(0, 1), "copied data before the copy"),
        (vec![], Backend::CopyDone, "the end of a copy before the copy"),
        (vec![], Backend::CopyOut, "the start of a copy before the copy"),
        (vec![], Backend::Ready, "the end of a command before the copy"),
        (vec![], Backend::CommandComplete, "a command's result before the copy"),
        (copying(), Backend::CopyBoth, "the start of a copy within the copy"),
        (copying(), Backend::Ready, "the end of a command within the copy"),
        (copying(), Backend::Columns, "the head of a result within the copy"),
        (copying(), row("4", "0/3000064"), "a row within the copy"),
        (
            ended(),
            Backend::CopyDone,
            "the end of a copy behind the end of the copy",
        ),
        (ended(), wal_at(100, 1), "copied data behind the end of the copy"),
        (ended(), Backend::Ready, "no next timeline behind the end of this one"),
        (ended(), row("4", "0/3000064"), "a row too many"),
        (next(), row("5", "0/3000064"), "a row too many"),
        (
            next(),
            Backend::Columns,
            "the head of a result behind the end of the copy",
        ),
        (
            results(),
            Backend::CommandComplete,
            "a command's result behind the end of the copy",
        ),
        (refused(), Backend::Error(error("ERROR")), "a second error"),
        (refused(), wal_at(0, 1), "copied data behind an error"),
        (
            refused(),
            Backend::CommandComplete,
            "a command's result behind an error",
        ),
    ] {
        is_fault(before, message, words);
    }
}

#[test]
fn a_next_timeline_that_cannot_be_is_refused() {
    let columns = || then(ended(), [Backend::Columns]);
    is_fault(columns(), row("3", "0/3000064"), "timeline 3 as the next one");
    is_fault(columns(), row("2", "0/3000064"), "timeline 2 as the next one");
    is_fault(columns(), row("0", "0/3000064"), "an unreadable row");
    is_fault(columns(), row("4", "3000064"), "an unreadable row");
    is_fault(columns(), Backend::Row(vec![None, None]), "an unreadable row");
    is_fault(columns(), Backend::Row(vec![]), "an unreadable row");
    is_fault(
        columns(),
        row("4", "0/3000065"),
        "the end of the timeline at 0/3000065, before all WAL",
    );
    // A standby that had handed on half a record leaves the timeline before that.
    let mut machine = after(columns());
    assert_eq!(machine.take(row("4", "0/3000050")), Ok(Step::Wait));
    machine.take(Backend::CommandComplete).unwrap();
    let next = NextTimeline {
        timeline: Timeline::new(4).unwrap(),
        from: Lsn::new(0x300_0050),
    };
    assert_eq!(machine.take(Backend::Ready), Ok(Step::Over(Outcome::TimelineEnd(next))));
}

#[test]
fn a_server_that_ends_the_stream_is_told_from_one_that_refuses_it() {
    assert_eq!(
        after(copying()).take(Backend::CommandComplete),
        Err(Fault::ShutDown(None))
    );
    for before in [vec![], copying(), ended()] {
        let fatal = after(before).take(Backend::Error(error("FATAL")));
        assert_eq!(fatal, Err(Fault::ShutDown(Some(error("FATAL")))));
    }
    for before in [vec![], copying(), ended()] {
        let mut machine = after(before);
        assert_eq!(machine.take(Backend::Error(error("ERROR"))), Ok(Step::Wait));
        assert!(machine.is_ending());
        let over = Step::Over(Outcome::Refused(error("ERROR")));
        assert_eq!(machine.take(Backend::Ready), Ok(over));
        assert!(machine.take(Backend::Ready).is_err());
    }
}

proptest! {
    #[test]
    fn no_message_within_the_copy_makes_it_panic_or_lose_its_place(bodies: Vec<Vec<u8>>) {
        for kind in [&b""[..], b"w", b"k"] {
            let mut machine = after(copying());
            for body in &bodies {
                let position = machine.position();
                let body = [kind, &body[..]].concat();
                match machine.take(Backend::CopyData(body.into())) {
                    Ok(Step::Event(StreamEvent::Wal { at, bytes, .. })) => {
                        prop_assert_eq!(at, position);
                        prop_assert_eq!(machine.position(), at.plus(bytes.len() as u64));
                    }
                    _ => prop_assert_eq!(machine.position(), position),
                }
            }
        }
    }
}
