//! Records whole sessions with real servers: what both sides say while a stream takes its course.
//!
//! `PGP_RECORD_STREAMS=FOLDER` keeps what is recorded; so are `tests/golden/streams` made, which the state machine's own
//! tests replay.

use std::path::Path;
use std::sync::{Arc, Mutex};

use pgp_pitr::pg::Lsn;
use pgp_pitr::replication::{ReplicationSession, StandbyStatus, Started, StreamEvent, WalStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::super::{conninfo, env, standby_of};
use super::{flushed, in_files, lsn, next, small, start, streaming, wal_of_the_rest, wal_up_to, write};
use crate::support::tools::Major;

/// What was said: who said it (`S` the server, `C` we), and the bytes, in the order in which a client that reads
/// before it writes has seen them.
type Said = Arc<Mutex<Vec<(u8, Vec<u8>)>>>;

/// A port in front of a server that writes down what passes.
struct Recorder {
    port: u16,
    said: Said,
    _task: AbortOnDropHandle<()>,
}

impl Recorder {
    async fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let said = Said::default();
        let copy = said.clone();
        let task = tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            let (from_client, to_client) = client.into_split();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (from_server, to_server) = server.into_split();
            tokio::join!(
                pass(b'S', from_server, to_client, copy.clone()),
                pass(b'C', from_client, to_server, copy),
            );
        });
        Self {
            port,
            said,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// All that was said: of each piece, who said it, its length (four bytes, big-endian), and its bytes.
    fn recording(&self) -> Vec<u8> {
        let said = self.said.lock().unwrap();
        let piece = |(who, bytes): &(u8, Vec<u8>)| [&[*who][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat();
        said.iter().flat_map(piece).collect()
    }
}

async fn pass(who: u8, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, said: Said) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(length) if length > 0 => {
                said.lock().unwrap().push((who, buffer[..length].to_vec()));
                if to.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
            _ => return drop(to.shutdown().await),
        }
    }
}

/// What a recording must be understood as, found out without our own reading of it.
#[derive(Default)]
struct Truth(String);

impl Truth {
    fn wal(&mut self, timeline: u32, from: Lsn, wal: &[u8]) {
        let to = from.plus(wal.len() as u64);
        let hash = blake3::hash(wal);
        self.0.push_str(&format!("wal: {timeline} {from} {to} {hash}\n"));
    }
}

#[tokio::test]
async fn the_whole_course_of_a_stream_is_understood_on_every_major() {
    for major in Major::all() {
        let primary = small(major).conf("full_page_writes", "off").build();
        write(&primary, 10);
        let mut standby = standby_of(&primary);
        standby.set("primary_conninfo", &primary.conninfo());
        let recorder = Recorder::before(standby.port()).await;
        let settings = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", recorder.port);
        let mut session = ReplicationSession::connect(&conninfo(&settings), &env()).await.unwrap();
        session.identify_system().await.unwrap();
        let mut truth = Truth::default();

        let from = flushed(&primary);
        let mut stream = streaming(session, &start(1, from)).await;
        write(&primary, 200);
        wal_up_to(&mut stream, flushed(&primary)).await;
        // Half of it after our last word the server wants another.
        standby.set("wal_sender_timeout", "6s");
        both_kinds_of_keepalive(&mut stream).await;
        standby.set("wal_sender_timeout", "60s");
        write(&primary, 100);
        wal_up_to(&mut stream, flushed(&primary)).await;
        standby.promote();
        let (_, followed_by) = wal_of_the_rest(&mut stream).await;
        truth.wal(1, from, &in_files(&standby, 1, from, stream.position()));
        let history = standby.sql("select pg_read_file('pg_wal/00000002.history')");
        let left = lsn(history.split('\t').nth(1).unwrap());
        assert_eq!((followed_by.timeline.number(), followed_by.from), (2, left));
        truth.0.push_str(&format!("next: 2 {left}\n"));

        let mut session = stream.into_session();
        session.timeline_history(followed_by.timeline).await.unwrap();
        let Started::TimelineEnd(session, again) = session.start_physical(&start(1, left)).await.unwrap() else {
            panic!("{major:?}")
        };
        assert_eq!(again, followed_by);
        truth.0.push_str(&format!("next: 2 {left}\n"));
        let mut stream = streaming(*session, &start(2, left)).await;
        write(&standby, 100);
        wal_up_to(&mut stream, flushed(&standby)).await;
        truth.wal(2, left, &in_files(&standby, 2, left, stream.position()));
        stream.finish().await.unwrap();

        if let Some(folder) = env().var("PGP_RECORD_STREAMS") {
            let file = |ending: &str| Path::new(folder).join(format!("{}.{ending}", major.number()));
            let packed = zstd::encode_all(&recorder.recording()[..], 19).unwrap();
            std::fs::write(file("zst"), packed).unwrap();
            std::fs::write(file("txt"), truth.0).unwrap();
        }
    }
}

/// Waits for one that asks, then asks for one that does not.
async fn both_kinds_of_keepalive(stream: &mut WalStream) {
    let keepalive = async |stream: &mut WalStream, asks: bool| {
        loop {
            match next(stream).await.unwrap() {
                StreamEvent::Keepalive { reply, server_end, .. } if reply == asks => {
                    assert!(server_end >= stream.position());
                    return;
                }
                StreamEvent::TimelineEnd(_) => panic!("too early"),
                _ => {}
            }
        }
    };
    keepalive(stream, true).await;
    let at = stream.position();
    let status = StandbyStatus {
        written: at,
        flushed: at,
        applied: Lsn::ZERO,
        reply: true,
    };
    stream.report(&status).await.unwrap();
    keepalive(stream, false).await;
}
