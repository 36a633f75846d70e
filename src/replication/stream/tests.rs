//! Recorded sessions with real servers, replayed in pieces of every size.
//!
//! `tests/golden/streams/N.zst` is what the server and we said, `N.txt` what the server's own files say of it.

mod wrong;

use std::fmt::Write;
use std::path::PathBuf;

use bytes::Buf;
use proptest::prelude::*;

use super::machine::{Machine, Outcome, Step};
use super::message::{COPY_DONE, status};
use super::*;
use crate::pg::time::PgTimestamp;
use crate::replication::message::{Backend, Framer};

/// The majors that there are recordings of.
const MAJORS: [u16; 6] = [13, 14, 15, 16, 17, 18];

/// One `START_REPLICATION`, as it was asked and answered.
#[derive(Debug)]
struct Command {
    timeline: Timeline,
    at: Lsn,
    /// All that the server sent in answer.
    answer: Vec<u8>,
    /// What we sent within the copy.
    statuses: Vec<Vec<u8>>,
    /// Whether it was us who ended the copy; `None` if there was none, or nobody did.
    we_ended: Option<bool>,
}

fn golden(file: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/streams");
    std::fs::read(folder.join(file)).unwrap()
}

/// The streams of a recording.
fn commands(major: u16) -> Vec<Command> {
    let mut recording = Bytes::from(zstd::decode_all(&golden(&format!("{major}.zst"))[..]).unwrap());
    let mut commands: Vec<Command> = Vec::new();
    // The start-up packet alone has no type byte.
    let mut ours = vec![0];
    let mut running = false;
    while recording.has_remaining() {
        let (who, length) = (recording.get_u8(), recording.get_u32());
        let bytes = recording.split_to(usize::try_from(length).unwrap());
        if who == b'S' {
            if let Some(command) = commands.last_mut().filter(|_| running) {
                command.answer.extend_from_slice(&bytes);
            }
            continue;
        }
        ours.extend_from_slice(&bytes);
        while let Some(length) = ours.get(1..5) {
            let length = 1 + u32::from_be_bytes(length.try_into().unwrap()) as usize;
            let message: Vec<u8> = ours.drain(..length).collect();
            match (message[0], commands.last_mut()) {
                (b'Q', _) => {
                    let begun = begun(&message);
                    running = begun.is_some();
                    commands.extend(begun);
                }
                (b'd', Some(command)) => command.statuses.push(message),
                (b'c', Some(command)) => {
                    assert_eq!(message, COPY_DONE);
                    let over = |message: &Backend| *message == Backend::CopyDone;
                    command.we_ended = Some(!messages(&command.answer, &[]).iter().any(over));
                }
                _ => {}
            }
        }
    }
    commands
}

/// The stream that a query asks for, if it does.
fn begun(query: &[u8]) -> Option<Command> {
    let text = std::str::from_utf8(&query[5..]).unwrap().trim_end_matches('\0');
    let mut words = text.strip_prefix("START_REPLICATION PHYSICAL ")?.split(' ');
    Some(Command {
        at: words.next()?.parse().unwrap(),
        timeline: words.nth(1)?.parse().unwrap(),
        answer: Vec::new(),
        statuses: Vec::new(),
        we_ended: None,
    })
}

/// The messages in bytes that arrive cut at these places.
fn messages(bytes: &[u8], cuts: &[usize]) -> Vec<Backend> {
    let mut framer = Framer::new();
    framer.logged_in();
    framer.expect_wal();
    let mut messages = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&bytes.len()]) {
        framer.buffer().extend_from_slice(&bytes[from..to]);
        from = to;
        while let Some(message) = framer.next().unwrap() {
            messages.push(message);
        }
    }
    messages
}

/// What the machine makes of an answer that arrives in pieces.
fn replay(command: &Command, cuts: &[usize]) -> (Vec<StreamEvent>, Outcome) {
    let mut machine = Machine::new(command.timeline, command.at);
    let mut events = Vec::new();
    let mut outcome = None;
    let mut answered = false;
    for message in messages(&command.answer, cuts) {
        if message == Backend::CopyDone && command.we_ended == Some(true) {
            assert!(machine.finish());
        }
        if matches!(message, Backend::Parameter { .. }) {
            continue;
        }
        assert_eq!(outcome, None, "{message:?}");
        match machine.take(message).unwrap() {
            Step::Event(event) => events.push(event),
            Step::Answer => answered = true,
            Step::Over(over) => outcome = Some(over),
            Step::Begun | Step::Wait => {}
        }
    }
    assert_eq!(answered, command.we_ended == Some(false));
    (events, outcome.unwrap())
}

/// The WAL of a stream.
fn wal(events: &[StreamEvent]) -> Vec<u8> {
    let bytes = |event: &StreamEvent| match event {
        StreamEvent::Wal { bytes, .. } => bytes.to_vec(),
        _ => Vec::new(),
    };
    events.iter().flat_map(bytes).collect()
}

#[test]
fn recorded_sessions_are_what_the_servers_files_say() {
    for major in MAJORS {
        let mut read = String::new();
        let commands = commands(major);
        assert_eq!(commands.len(), 3, "{major}");
        for command in &commands {
            let (events, outcome) = replay(command, &[]);
            let wal = wal(&events);
            if !wal.is_empty() {
                let (timeline, from, to) = (command.timeline, command.at, command.at.plus(wal.len() as u64));
                writeln!(read, "wal: {timeline} {from} {to} {}", blake3::hash(&wal)).unwrap();
            }
            match outcome {
                Outcome::TimelineEnd(next) => writeln!(read, "next: {} {}", next.timeline, next.from).unwrap(),
                outcome => assert_eq!(outcome, Outcome::Finished),
            }
        }
        assert_eq!(
            read,
            String::from_utf8(golden(&format!("{major}.txt"))).unwrap(),
            "{major}"
        );

        let (events, _) = replay(&commands[0], &[]);
        for asks in [false, true] {
            let is_such = |event: &StreamEvent| matches!(event, StreamEvent::Keepalive { reply, .. } if *reply == asks);
            assert!(events.iter().any(is_such), "{major}: {asks}");
        }
        let ended: Vec<_> = commands.iter().map(|command| command.we_ended).collect();
        assert_eq!(ended, [Some(false), None, Some(true)], "{major}");
    }
}

#[test]
fn what_we_sent_to_servers_is_what_we_send() {
    for command in MAJORS.into_iter().flat_map(commands) {
        for sent in command.statuses {
            let mut fields = &sent[6..];
            let again = StandbyStatus {
                written: Lsn::new(fields.get_u64()),
                flushed: Lsn::new(fields.get_u64()),
                applied: Lsn::new(fields.get_u64()),
                reply: sent[sent.len() - 1] == 1,
            };
            let at = PgTimestamp::new(fields.get_i64()).to_utc().unwrap();
            assert_eq!(status(&again, at)[..], sent[..]);
        }
    }
}

#[test]
fn answers_that_arrive_byte_by_byte_or_in_two_pieces_bring_the_same_events() {
    for major in MAJORS {
        for command in commands(major) {
            let whole = replay(&command, &[]);
            let each: Vec<usize> = (0..command.answer.len()).collect();
            assert!(replay(&command, &each) == whole, "{major}");
            let places = (0..command.answer.len()).step_by(1 + command.answer.len() / 500);
            for place in places {
                assert!(replay(&command, &[place]) == whole, "{major}: {place}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn pieces_do_not_change_the_events(major in 0..MAJORS.len(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        for command in commands(MAJORS[major]) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(command.answer.len() + 1)).collect();
            cuts.sort_unstable();
            prop_assert!(replay(&command, &cuts) == replay(&command, &[]));
        }
    }
}
