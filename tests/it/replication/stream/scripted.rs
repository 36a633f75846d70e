//! A server that says whatever a script has it say: slowly, twice, cut off anywhere, and wrongly.
//!
//! Each call of ours has a limit of time, so a test that hangs fails.

use std::time::{Duration, Instant};

use pgp_pitr::error::{Class, Explain};
use pgp_pitr::pg::{Lsn, Timeline};
use pgp_pitr::replication::{ReplicationError, ReplicationSession, StandbyStatus, Started, StreamEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::super::{conninfo, env};
use super::{durable, start, streaming};
use crate::support::chance::Chance;

/// Where the streams begin.
const AT: u64 = 0x300_0000;

/// How long any one call may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What the server does next.
enum Act {
    Say(Vec<u8>),
    /// One byte at a time.
    Spell(Vec<u8>),
    /// Reads until a message of this type has come.
    Hear(u8),
    /// Does nothing for so long.
    Idle(Duration),
    /// Reads and says nothing until the other side goes.
    Hold,
}

use Act::{Hear, Hold, Idle, Say, Spell};

/// A server with one client, whose first command is followed by the script.
struct Server {
    port: u16,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    async fn with(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            play(socket, script).await;
        });
        Self {
            port,
            _task: AbortOnDropHandle::new(task),
        }
    }

    async fn session(&self) -> ReplicationSession {
        let settings = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", self.port);
        ReplicationSession::connect(&conninfo(&settings), &env()).await.unwrap()
    }
}

/// Writing fails where the client has gone already; that is its right.
async fn play(mut socket: TcpStream, script: Vec<Act>) {
    let length = socket.read_u32().await.unwrap();
    socket.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
    let greeting = [
        frame(b'R', &[0; 4]),
        frame(b'S', b"server_version\x0017.1\0"),
        frame(b'K', &[0; 8]),
        ready(),
    ];
    socket.write_all(&greeting.concat()).await.unwrap();
    for act in [Hear(b'Q')].into_iter().chain(script) {
        match act {
            Say(bytes) => drop(socket.write_all(&bytes).await),
            Spell(bytes) => {
                for byte in bytes {
                    let _ = socket.write_all(&[byte]).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Hear(tag) => while hear(&mut socket).await.is_some_and(|heard| heard != tag) {},
            Idle(time) => tokio::time::sleep(time).await,
            Hold => while hear(&mut socket).await.is_some() {},
        }
    }
}

/// The next message's type; none when the client has gone. What is no message at all ends the test.
async fn hear(socket: &mut TcpStream) -> Option<u8> {
    let tag = socket.read_u8().await.ok()?;
    let length = socket.read_u32().await.ok()? as usize;
    assert!(
        b"QdcX".contains(&tag) && length < 1000,
        "'{}' of {length} bytes",
        tag.escape_ascii()
    );
    socket.read_exact(&mut vec![0; length - 4]).await.ok()?;
    Some(tag)
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

fn copy() -> Vec<u8> {
    frame(b'W', &[0; 3])
}

fn copy_done() -> Vec<u8> {
    frame(b'c', b"")
}

fn complete() -> Vec<u8> {
    frame(b'C', b"START_STREAMING\0")
}

/// WAL so far behind the start, of the server's end so far behind that.
fn wal_with(offset: u64, server_end: u64, bytes: &[u8]) -> Vec<u8> {
    let head = [AT + offset, AT + server_end, 0].map(u64::to_be_bytes).concat();
    frame(b'd', &[b"w", &head[..], bytes].concat())
}

fn wal(offset: u64, length: usize) -> Vec<u8> {
    wal_with(offset, offset + length as u64, &contents(offset, length))
}

/// What the WAL holds there: no byte can be taken for its neighbour.
fn contents(offset: u64, length: usize) -> Vec<u8> {
    (offset..offset + length as u64).map(|at| (at % 251) as u8).collect()
}

fn keepalive(offset: u64, reply: &[u8]) -> Vec<u8> {
    let head = [AT + offset, 0].map(u64::to_be_bytes).concat();
    frame(b'd', &[b"k", &head[..], reply].concat())
}

fn columns() -> Vec<u8> {
    let column = |name: &[u8]| [name, b"\0", &[0; 18]].concat();
    frame(
        b'T',
        &[&[0, 2][..], &column(b"next_tli"), &column(b"next_tli_startpos")].concat(),
    )
}

fn row(values: &[&str]) -> Vec<u8> {
    let value = |text: &&str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let values: Vec<u8> = [
        (values.len() as u16).to_be_bytes().to_vec(),
        values.iter().flat_map(value).collect(),
    ]
    .concat();
    frame(b'D', &values)
}

fn error(severity: &str) -> Vec<u8> {
    frame(
        b'E',
        format!("S{severity}\0V{severity}\0C58P01\0Mno such WAL\0\0").as_bytes(),
    )
}

/// The end of timeline 1 behind so much WAL; 2 comes next.
fn end_at(offset: u64) -> Vec<u8> {
    let from = Lsn::new(AT + offset).to_string();
    [columns(), row(&["2", &from]), complete(), complete(), ready()].concat()
}

fn identity() -> Vec<u8> {
    [
        frame(b'T', &[0, 0]),
        row(&["7489000000000000001", "2", "0/3000000", ""]),
        frame(b'C', b"IDENTIFY_SYSTEM\0"),
        ready(),
    ]
    .concat()
}

/// Some of what a server sends in a stream that nothing ends.
fn good() -> Vec<u8> {
    [
        copy(),
        wal(0, 100),
        keepalive(100, &[0]),
        frame(b'S', b"in_hot_standby\0off\0"),
        frame(b'N', b"SWARNING\0VWARNING\0C01000\0Mbeware\0\0"),
        wal(100, 3000),
        keepalive(5000, &[1]),
    ]
    .concat()
}

/// How much WAL is in that.
const GOOD: usize = 3100;

/// Streams until something ends it: the WAL, and what did.
async fn stream(server: &Server) -> (Vec<u8>, Result<StreamEvent, ReplicationError>) {
    let session = server.session().await;
    let mut taken = Vec::new();
    let asked = start(1, Lsn::new(AT));
    let begun = timeout(LIMIT, session.start_physical(&asked));
    let mut stream = match begun.await.expect("an answer in time") {
        Ok(Started::Streaming(stream)) => stream,
        Ok(Started::TimelineEnd(_, next)) => return (taken, Ok(StreamEvent::TimelineEnd(next))),
        Ok(Started::Refused(_, error)) | Err(error) => return (taken, Err(error)),
    };
    loop {
        match timeout(LIMIT, stream.next()).await.expect("an event in time") {
            Ok(StreamEvent::Wal { at, bytes, .. }) => {
                assert_eq!(at, Lsn::new(AT + taken.len() as u64));
                taken.extend_from_slice(&bytes);
                assert_eq!(stream.position(), Lsn::new(AT + taken.len() as u64));
            }
            Ok(StreamEvent::Keepalive { .. }) => {}
            end => {
                if end.is_err() {
                    let again = timeout(LIMIT, stream.next()).await.expect("an error in time");
                    assert!(again.is_err(), "{again:?} after {end:?}");
                }
                return (taken, end);
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_spells_every_byte_is_understood() {
    let answer = [good(), copy_done()].concat();
    let script = vec![
        Spell(answer),
        Hear(b'c'),
        Spell(end_at(3100)),
        Hear(b'Q'),
        Spell(identity()),
        Hold,
    ];
    let server = Server::with(script).await;
    let mut stream = streaming(server.session().await, &start(1, Lsn::new(AT))).await;
    let mut seen = String::new();
    let next = loop {
        match stream.next().await.unwrap() {
            StreamEvent::Wal { bytes, .. } => seen += &format!("wal {} ", bytes.len()),
            StreamEvent::Keepalive { reply, server_end, .. } => seen += &format!("{server_end} {reply} "),
            StreamEvent::TimelineEnd(next) => break next,
        }
    };
    assert_eq!(seen, "wal 100 0/3000064 false wal 3000 0/3001388 true ");
    assert_eq!((next.timeline.number(), next.from), (2, Lsn::new(AT + 3100)));
    let mut session = stream.into_session();
    assert_eq!(
        session.identify_system().await.unwrap().timeline,
        Timeline::new(2).unwrap()
    );
    assert_eq!(session.take_warnings().len(), 1);
}

#[tokio::test]
async fn a_stream_that_is_cut_off_anywhere_brings_what_was_whole_and_an_error() {
    let answer = [good(), copy_done()].concat();
    let step = 1 + answer.len() / 300;
    for place in (0..answer.len()).step_by(step) {
        let server = Server::with(vec![Say(answer[..place].to_vec())]).await;
        let (taken, end) = stream(&server).await;
        assert!([0, 100, GOOD].contains(&taken.len()), "{place}");
        assert!(taken == contents(0, taken.len()), "{place}");
        let error = end.unwrap_err();
        assert!(matches!(error, ReplicationError::Lost { .. }), "{place}: {error:?}");
        assert_eq!(error.class(), Class::Unavailable);
    }
    // Behind the copy's end, too.
    let rest = end_at(3100);
    for place in 0..rest.len() {
        let script = vec![Say(answer.clone()), Hear(b'c'), Say(rest[..place].to_vec())];
        let (taken, end) = stream(&Server::with(script).await).await;
        assert!(taken == contents(0, GOOD), "{place}");
        let error = end.unwrap_err();
        assert!(matches!(error, ReplicationError::Lost { .. }), "{place}: {error:?}");
    }
}

#[tokio::test]
async fn each_wrong_behaviour_is_named_and_none_of_its_bytes_handed_on() {
    let at = |offset: u64| Lsn::new(AT + offset).to_string();
    let length = |tag: u8, length: u32| [&[tag][..], &length.to_be_bytes()].concat();
    for (wrong, words) in [
        (good(), "the start of a copy within the copy".to_owned()),
        (
            wal(3101, 10),
            format!(
                "WAL at {}, which leaves a gap (expected is WAL from {} on)",
                at(3101),
                at(3100)
            ),
        ),
        (
            wal(3099, 10),
            format!(
                "WAL at {}, which was sent before (expected is WAL from {} on)",
                at(3099),
                at(3100)
            ),
        ),
        (wal(100, 3000), format!("WAL at {}, which was sent before", at(100))),
        (wal(3100, 0), "no WAL in the message".to_owned()),
        (wal_with(3100, 3105, &[7; 10]), "behind the server's own end".to_owned()),
        (
            wal(3100, (1 << 20) + 1),
            "1048577 bytes of WAL in one message".to_owned(),
        ),
        (frame(b'd', b"w"), "a WAL message of 0 bytes".to_owned()),
        (frame(b'd', b""), "a copy message without a type".to_owned()),
        (
            frame(b'd', b"x123"),
            "a copy message of the unknown type 'x'".to_owned(),
        ),
        (keepalive(3100, &[]), "a keepalive of 16 bytes".to_owned()),
        (keepalive(3100, &[0, 0]), "a keepalive of 18 bytes".to_owned()),
        (keepalive(3099, &[0]), "which is before what was sent".to_owned()),
        (length(b'd', u32::MAX), "message 'd'".to_owned()),
        (length(b'd', 0x7FFF_FFFF), "message 'd' of 2147483647 bytes".to_owned()),
        (length(b'd', 3), "message 'd'".to_owned()),
        (frame(b'?', b""), "message of the unknown type '?'".to_owned()),
        (frame(b'D', b"\0\x02\0"), "malformed message 'D'".to_owned()),
        (row(&["2", &at(3100)]), "a row within the copy".to_owned()),
        (columns(), "the head of a result within the copy".to_owned()),
        (ready(), "the end of a command within the copy".to_owned()),
        (
            frame(b'R', &[0; 4]),
            "an authentication request within the copy".to_owned(),
        ),
        (
            [copy_done(), copy_done()].concat(),
            "the end of a copy behind the end of the copy".to_owned(),
        ),
        (
            [copy_done(), wal(3100, 10)].concat(),
            "copied data behind the end of the copy".to_owned(),
        ),
        (
            [copy_done(), ready()].concat(),
            "no next timeline behind the end of this one".to_owned(),
        ),
        (
            [copy_done(), end_at(3101)].concat(),
            "the end of the timeline at".to_owned(),
        ),
        (
            [copy_done(), complete().repeat(4)].concat(),
            "a command's result behind the end of the copy".to_owned(),
        ),
        (
            [copy_done(), columns(), row(&["1", "0/0"])].concat(),
            "timeline 1 as the next one".to_owned(),
        ),
        ([error("ERROR"), error("ERROR")].concat(), "a second error".to_owned()),
    ] {
        // What comes behind it does not heal it.
        let script = vec![Say([good(), wrong, wal(3100, 10)].concat()), Hold];
        let (taken, end) = stream(&Server::with(script).await).await;
        assert!(taken == contents(0, GOOD), "{words}: {} bytes", taken.len());
        match end.unwrap_err() {
            ReplicationError::Protocol { what, .. } => assert!(what.contains(&words), "{what:?} for {words:?}"),
            other => panic!("{words}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn bytes_that_are_changed_on_the_way_never_hang_a_stream_or_shift_it() {
    let chance = Chance::new();
    let answer = [good(), copy_done(), end_at(3100)].concat();
    for _ in 0..300 {
        let mut answer = answer.clone();
        for _ in 0..1 + chance.below(3) {
            let place = chance.below(answer.len());
            answer[place] ^= 1 << chance.below(8);
        }
        let (taken, _) = stream(&Server::with(vec![Say(answer)]).await).await;
        assert!(taken.len() <= GOOD);
    }
}

#[tokio::test]
async fn a_server_that_reads_nothing_holds_nobody_up() {
    let begun = [good(), error("ERROR"), ready()].concat();
    let script = vec![
        Say(copy()),
        // By then our words have filled what lies between us.
        Idle(Duration::from_secs(4)),
        Say(begun[copy().len()..].to_vec()),
        Idle(Duration::from_secs(1)),
        Hear(b'Q'),
        Say(identity()),
        Hold,
    ];
    let server = Server::with(script).await;
    let mut stream = streaming(server.session().await, &start(1, Lsn::new(AT))).await;
    let since = Instant::now();
    for position in 0..200_000 {
        durable(&mut stream, Lsn::new(AT + position)).await;
        if position % 64 == 0 {
            // A task that never does is not let through to its sockets.
            tokio::task::yield_now().await;
        }
    }
    assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
    let mut taken = 0;
    let error = loop {
        match timeout(LIMIT, stream.next()).await.unwrap() {
            Ok(StreamEvent::Wal { bytes, .. }) => taken += bytes.len(),
            Ok(_) => {}
            Err(error) => break error,
        }
        durable(&mut stream, Lsn::new(AT + taken as u64)).await;
    };
    assert!(matches!(error, ReplicationError::Server { .. }), "{error:?}");
    assert_eq!(taken, GOOD);
    // A message that had begun to leave has left whole: the server hears the next command.
    let mut session = stream.into_session();
    timeout(LIMIT, session.identify_system()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_come_to_an_end_is_left_in_time() {
    for script in [
        vec![Say(good()), Hold],
        vec![Say(good()), Hear(b'c'), Say(copy_done()), Hold],
    ] {
        let server = Server::with(script).await;
        let stream = streaming(server.session().await, &start(1, Lsn::new(AT))).await;
        let error = timeout(LIMIT, stream.finish()).await.unwrap().unwrap_err();
        assert!(matches!(error, ReplicationError::Timeout { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Unavailable);
    }
    // One that shuts down meanwhile has come to its end as well.
    let ends = vec![Say(good()), Hear(b'c'), Say([wal(3100, 10), complete()].concat())];
    let server = Server::with(ends).await;
    let mut stream = streaming(server.session().await, &start(1, Lsn::new(AT))).await;
    let status = StandbyStatus {
        written: Lsn::new(AT),
        flushed: Lsn::new(AT),
        applied: Lsn::ZERO,
        reply: true,
    };
    stream.report(&status).await.unwrap();
    timeout(LIMIT, stream.finish()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_session_in_the_middle_of_a_stream_takes_no_command() {
    let server = Server::with(vec![Say(good()), Hold]).await;
    let stream = streaming(server.session().await, &start(1, Lsn::new(AT))).await;
    let error = stream.into_session().identify_system().await.unwrap_err();
    assert!(matches!(error, ReplicationError::Abandoned { .. }), "{error:?}");
}
