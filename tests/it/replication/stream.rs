//! WAL streams from real servers, held against the server's own files.

mod record;
mod scripted;

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use pgp_pitr::error::{Class, Explain};
use pgp_pitr::pg::{Lsn, Timeline};
use pgp_pitr::replication::{
    NextTimeline, ReplicationError, ReplicationSession, SlotName, SqlState, StandbyStatus, Started, StreamEvent,
    StreamStart, WalStream,
};
use tokio::time::timeout;

use super::certificates::Folder;
use super::{conninfo, env, standby_of};
use crate::support::cluster::{Builder, Cluster, Stop};
use crate::support::process::PATIENCE;
use crate::support::tools::Major;

/// The segments of the test clusters.
const SEGMENT: u64 = 1 << 20;

/// A cluster with small segments.
fn small(major: &'static Major) -> Builder {
    Cluster::builder(major)
        .initdb_args(["--wal-segsize=1"])
        .conf("autovacuum", "off")
        .conf("min_wal_size", "2MB")
        .conf("wal_keep_size", "64MB")
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

/// The start of the segment that a position lies in.
fn segment_start(at: Lsn) -> Lsn {
    Lsn::new(at.bytes() / SEGMENT * SEGMENT)
}

fn start(timeline: u32, at: Lsn) -> StreamStart {
    StreamStart {
        slot: None,
        timeline: Timeline::new(timeline).unwrap(),
        at,
    }
}

async fn session(cluster: &Cluster) -> ReplicationSession {
    let info = conninfo(&cluster.conninfo());
    let mut session = ReplicationSession::connect(&info, &env()).await.unwrap();
    session.identify_system().await.unwrap();
    session
}

/// A stream that has begun.
async fn streaming(session: ReplicationSession, start: &StreamStart) -> WalStream {
    match session.start_physical(start).await.unwrap() {
        Started::Streaming(stream) => *stream,
        other => panic!("{start:?}: {other:?}"),
    }
}

async fn next(stream: &mut WalStream) -> Result<StreamEvent, ReplicationError> {
    timeout(PATIENCE, stream.next()).await.expect("an event in time")
}

/// Says that all up to a position is durable.
async fn durable(stream: &mut WalStream, at: Lsn) {
    let status = StandbyStatus {
        written: at,
        flushed: at,
        applied: at,
        reply: false,
    };
    stream.report(&status).await.unwrap();
}

/// Streams until the server has sent all up to a position.
async fn wal_up_to(stream: &mut WalStream, end: Lsn) -> Vec<u8> {
    let mut wal = Vec::new();
    while stream.position() < end {
        match next(stream).await.unwrap() {
            StreamEvent::Wal {
                at, bytes, server_end, ..
            } => {
                wal.extend_from_slice(&bytes);
                let position = at.plus(bytes.len() as u64);
                assert!(server_end >= position);
                assert_eq!(position, stream.position());
                durable(stream, position).await;
            }
            StreamEvent::Keepalive { reply, .. } if reply => {
                let position = stream.position();
                durable(stream, position).await;
            }
            StreamEvent::Keepalive { .. } => {}
            StreamEvent::TimelineEnd(next) => panic!("{next:?}"),
        }
    }
    wal
}

/// Streams to the end of the timeline.
async fn wal_of_the_rest(stream: &mut WalStream) -> (Vec<u8>, NextTimeline) {
    let mut wal = Vec::new();
    loop {
        match next(stream).await.unwrap() {
            StreamEvent::Wal { bytes, .. } => wal.extend_from_slice(&bytes),
            StreamEvent::Keepalive { .. } => {}
            StreamEvent::TimelineEnd(next) => return (wal, next),
        }
    }
}

/// What the server has in its own files, from one position to another.
fn in_files(cluster: &Cluster, timeline: u32, from: Lsn, to: Lsn) -> Vec<u8> {
    let per_file = 0x1_0000_0000 / SEGMENT;
    let mut wal = Vec::new();
    for segment in from.bytes() / SEGMENT..to.bytes().div_ceil(SEGMENT) {
        let name = format!("{timeline:08X}{:08X}{:08X}", segment / per_file, segment % per_file);
        let folder = cluster.data_dir().join("pg_wal");
        // The last one of a timeline is renamed when it is archived.
        let file = fs::read(folder.join(&name)).or_else(|_| fs::read(folder.join(format!("{name}.partial"))));
        wal.extend(file.unwrap_or_else(|error| panic!("{name}: {error}")));
    }
    let skipped = usize::try_from(from.bytes() % SEGMENT).unwrap();
    wal[skipped..][..usize::try_from(to.since(from)).unwrap()].to_vec()
}

fn write(cluster: &Cluster, rows: u32) {
    cluster.sql(&format!(
        "create table if not exists t (n int, x text); insert into t select n, md5(n::text) from generate_series(1, {rows}) n"
    ));
}

fn flushed(cluster: &Cluster) -> Lsn {
    lsn(&cluster.sql("select pg_current_wal_flush_lsn()"))
}

#[tokio::test]
async fn what_is_streamed_is_what_the_server_has_in_its_files() {
    for major in Major::all() {
        let cluster = small(major).build();
        write(&cluster, 1);
        let from = segment_start(flushed(&cluster));
        let slot = SlotName::new("pgp").unwrap();
        let mut session = session(&cluster).await;
        assert!(!session.is_in_recovery().await.unwrap());
        session.create_physical_slot(&slot, false, true).await.unwrap();
        let from_slot = StreamStart {
            slot: Some(slot),
            ..start(1, from)
        };
        let mut stream = streaming(session, &from_slot).await;
        write(&cluster, 30_000);
        let to = flushed(&cluster);
        assert!(to.since(from) > 2 * SEGMENT);
        let wal = wal_up_to(&mut stream, to).await;
        let end = stream.position();
        assert!(wal == in_files(&cluster, 1, from, end), "{major:?}");
        cluster.wait_until(&format!(
            "select application_name = 'pgp-pitr' and state = 'streaming' and flush_lsn >= '{to}' and replay_lsn >= '{to}'
               and reply_time > now() - interval '1 minute' and reply_time < now() + interval '1 minute'
               from pg_stat_replication"
        ));
        cluster.wait_until(&format!(
            "select restart_lsn >= '{to}' and active from pg_replication_slots"
        ));
        stream.finish().await.unwrap();
        cluster.wait_until("select count(*) = 0 from pg_stat_replication");
        assert!(!cluster.log().contains("unexpected EOF"), "{}", cluster.log());
    }
}

#[tokio::test]
async fn over_tls_a_stream_is_the_same_both_ways() {
    let folder = Folder::new();
    folder.ensure("leaf");
    let cluster = small(Major::usual())
        .conf("ssl", "on")
        .conf("ssl_cert_file", folder.path("leaf.crt").display().to_string())
        .conf("ssl_key_file", folder.path("leaf.key").display().to_string())
        .build();
    let from = segment_start(flushed(&cluster));
    let info = conninfo(&format!(
        "{} sslmode=require application_name=other",
        cluster.conninfo_tcp()
    ));
    let session = ReplicationSession::connect(&info, &env()).await.unwrap();
    let mut stream = streaming(session, &start(1, from)).await;
    write(&cluster, 40_000);
    let to = flushed(&cluster);
    let wal = wal_up_to(&mut stream, to).await;
    assert!(wal == in_files(&cluster, 1, from, stream.position()));
    cluster.wait_until(&format!(
        "select flush_lsn >= '{to}' and application_name = 'other' and ssl
           from pg_stat_replication join pg_stat_ssl using (pid)"
    ));
    stream.finish().await.unwrap();
}

#[tokio::test]
async fn a_promotion_ends_the_timeline_and_the_session_goes_on_with_the_next() {
    for major in Major::all() {
        let primary = small(major).build();
        write(&primary, 1000);
        let mut standby = standby_of(&primary);
        // Without the settings that pg_basebackup writes: not every libpq that a server may find here knows them.
        standby.set("primary_conninfo", &primary.conninfo());
        let from = segment_start(flushed(&primary));
        let mut session = session(&standby).await;
        assert!(session.is_in_recovery().await.unwrap());
        let identity = session.identify_system().await.unwrap();
        let mut stream = streaming(session, &start(1, from)).await;
        write(&primary, 10_000);
        let to = flushed(&primary);
        let mut wal = wal_up_to(&mut stream, to).await;
        standby.promote();
        write(&standby, 3000);
        let (rest, followed_by) = wal_of_the_rest(&mut stream).await;
        wal.extend(rest);
        assert_eq!(followed_by.timeline.number(), 2);
        assert!(followed_by.from >= to && followed_by.from <= stream.position());
        assert_eq!(next(&mut stream).await.unwrap(), StreamEvent::TimelineEnd(followed_by));
        durable(&mut stream, to).await;
        let end = stream.position();
        assert!(wal == in_files(&standby, 1, from, end), "{major:?}");

        let mut session = stream.into_session();
        assert!(!session.is_in_recovery().await.unwrap());
        let now = session.identify_system().await.unwrap();
        assert_eq!((now.system_id, now.timeline.number()), (identity.system_id, 2));
        let history = session.timeline_history(followed_by.timeline).await.unwrap().unwrap();
        let history = String::from_utf8(history.to_vec()).unwrap();
        assert!(history.starts_with(&format!("1\t{}\t", followed_by.from)), "{history}");

        // At the end of a timeline there is nothing to stream of it.
        let Started::TimelineEnd(session, same) = session.start_physical(&start(1, followed_by.from)).await.unwrap()
        else {
            panic!("a stream beyond the end of its timeline")
        };
        assert_eq!(same, followed_by);
        let again = segment_start(followed_by.from);
        let mut stream = streaming(*session, &start(2, again)).await;
        let to = flushed(&standby);
        let wal = wal_up_to(&mut stream, to).await;
        assert!(wal == in_files(&standby, 2, again, stream.position()), "{major:?}");
        stream.finish().await.unwrap();

        // Long after the switch, from before it.
        let mut stream = streaming(self::session(&standby).await, &start(1, from)).await;
        let (wal, same) = wal_of_the_rest(&mut stream).await;
        assert_eq!(same, followed_by);
        assert!(wal == in_files(&standby, 1, from, followed_by.from), "{major:?}");
    }
}

#[tokio::test]
async fn a_standby_that_lost_its_primary_in_the_middle_of_a_record_leaves_the_timeline_before_that() {
    for major in [Major::usual(), Major::newest()] {
        let mut primary = small(major)
            .conf("max_wal_size", "2GB")
            .conf("wal_keep_size", "1GB")
            .build();
        let mut standby = standby_of(&primary);
        standby.set("primary_conninfo", &primary.conninfo());
        let from = flushed(&primary);
        let mut stream = streaming(session(&standby).await, &start(1, from)).await;
        // One record, which takes the server a while.
        let message = "select pg_logical_emit_message(false, 'long', repeat('x', 400000000))";
        let mut writing = primary.client("psql");
        let mut writing = writing.args(["-XAtqc", message]).stderr(Stdio::null()).spawn().unwrap();
        standby.wait_until(&format!("select pg_last_wal_receive_lsn() - '{from}' > 3000000"));
        primary.kill9();
        writing.wait().unwrap();
        standby.promote();
        write(&standby, 10);
        let (wal, followed_by) = wal_of_the_rest(&mut stream).await;
        // What it had sent of the record belongs to no timeline that goes on.
        assert!(followed_by.from < stream.position());
        let shared = usize::try_from(followed_by.from.since(from)).unwrap();
        assert!(
            wal[..shared] == in_files(&standby, 1, from, followed_by.from),
            "{major:?}"
        );
        let mut stream = streaming(stream.into_session(), &start(2, followed_by.from)).await;
        let wal = wal_up_to(&mut stream, flushed(&standby)).await;
        assert!(
            wal == in_files(&standby, 2, followed_by.from, stream.position()),
            "{major:?}"
        );
    }
}

#[tokio::test]
async fn after_each_refusal_the_session_is_ready_for_the_next_command() {
    for major in Major::all() {
        let cluster = small(major).conf("wal_keep_size", "0").build();
        let mut session = session(&cluster).await;
        let oldest = segment_start(flushed(&cluster));
        let none = SlotName::new("none").unwrap();
        for (refused, state) in [
            (
                StreamStart {
                    slot: Some(none.clone()),
                    ..start(1, oldest)
                },
                Some(SqlState::UNDEFINED_OBJECT),
            ),
            (start(7, oldest), None),
        ] {
            let Started::Refused(back, error) = session.start_physical(&refused).await.unwrap() else {
                panic!("{refused:?}")
            };
            assert_eq!(error.class(), Class::Unavailable);
            let said = error.server_error().unwrap();
            assert!(state.is_none_or(|state| said.is(state)), "{error:?}");
            session = *back;
            session.identify_system().await.unwrap();
        }
        for _ in 0..4 {
            cluster.sql("create table if not exists x (); select pg_switch_wal(); drop table x");
        }
        cluster.sql("checkpoint");
        cluster.wait_until(&format!(
            "select min(name) > '0000000100000000000000{:02X}' from pg_ls_waldir() where length(name) = 24",
            oldest.bytes() / SEGMENT
        ));
        let ahead = flushed(&cluster).plus(100 * SEGMENT);
        for (at, words, state) in [
            (oldest, "has already been removed", Some(SqlState::UNDEFINED_FILE)),
            (ahead, "is ahead of the WAL flush position", None),
        ] {
            let mut stream = streaming(session, &start(1, at)).await;
            let error = next(&mut stream).await.unwrap_err();
            let said = error.server_error().unwrap_or_else(|| panic!("{error:?}"));
            assert!(said.message().contains(words), "{error:?}");
            assert!(
                state.is_none_or(|state| said.is(state)),
                "{major:?}: {:?}",
                said.sqlstate()
            );
            assert_eq!(stream.position(), at);
            session = stream.into_session();
            assert_eq!(session.identify_system().await.unwrap().timeline.number(), 1);
        }
        let mut stream = streaming(session, &start(1, segment_start(flushed(&cluster)))).await;
        wal_up_to(&mut stream, flushed(&cluster)).await;
        stream.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_shuts_down_sends_all_its_wal_and_then_says_so() {
    for major in Major::all() {
        let mut cluster = small(major).build();
        let from = segment_start(flushed(&cluster));
        let mut stream = streaming(session(&cluster).await, &start(1, from)).await;
        write(&cluster, 1000);
        let stopping = tokio::task::spawn_blocking(move || {
            cluster.stop(Stop::Fast);
            cluster
        });
        let mut wal = Vec::new();
        let error = loop {
            match next(&mut stream).await {
                Ok(StreamEvent::Wal { bytes, .. }) => wal.extend_from_slice(&bytes),
                Ok(_) => {}
                Err(error) => break error,
            }
            let position = stream.position();
            durable(&mut stream, position).await;
        };
        assert!(
            matches!(error, ReplicationError::Ended { source: None, .. }),
            "{error:?}"
        );
        assert_eq!(error.class(), Class::Unavailable);
        let cluster = stopping.await.unwrap();
        // The last record is the checkpoint of the shutdown.
        assert!(wal == in_files(&cluster, 1, from, stream.position()));
        let told = crate::support::program::Answer::of(cluster.tool("pg_controldata").arg(cluster.data_dir()));
        let last = told
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("Latest checkpoint location:"));
        assert!(stream.position() > lsn(last.unwrap().trim()));
        assert!(matches!(
            next(&mut stream).await,
            Err(ReplicationError::Abandoned { .. })
        ));
    }
}

#[tokio::test]
async fn a_stream_that_somebody_ends_or_kills_is_told_apart() {
    let mut cluster = small(Major::usual()).build();
    let from = segment_start(flushed(&cluster));
    let mut stream = streaming(session(&cluster).await, &start(1, from)).await;
    wal_up_to(&mut stream, flushed(&cluster)).await;
    cluster.sql("select pg_terminate_backend(pid) from pg_stat_replication");
    let error = loop {
        match next(&mut stream).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, ReplicationError::Ended { source: Some(_), .. }),
        "{error:?}"
    );
    let mut stream = streaming(session(&cluster).await, &start(1, from)).await;
    cluster.kill9();
    let error = loop {
        match next(&mut stream).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReplicationError::Lost { .. }), "{error:?}");
}

#[tokio::test]
async fn a_call_that_is_dropped_loses_no_byte() {
    let cluster = small(Major::usual()).build();
    let from = segment_start(flushed(&cluster));
    let mut stream = streaming(session(&cluster).await, &start(1, from)).await;
    let writer = tokio::task::spawn_blocking(move || {
        for _ in 0..20 {
            write(&cluster, 500);
        }
        cluster
    });
    let mut wal = Vec::new();
    let mut dropped = 0;
    while !writer.is_finished() || dropped < 100 {
        match timeout(Duration::from_micros(300), stream.next()).await {
            Ok(event) => {
                if let StreamEvent::Wal { bytes, .. } = event.unwrap() {
                    wal.extend_from_slice(&bytes);
                }
                let position = stream.position();
                durable(&mut stream, position).await;
            }
            Err(_) => dropped += 1,
        }
    }
    let cluster = writer.await.unwrap();
    wal.extend(wal_up_to(&mut stream, flushed(&cluster)).await);
    assert!(wal == in_files(&cluster, 1, from, stream.position()));
}
