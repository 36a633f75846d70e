//! The support code does what tests rely on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStore, PutMode};

use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::disk::SmallDisk;
use crate::support::faulty::{Fault, FaultyStore, every_call_and_fault};
use crate::support::program::{Answer, Program};
use crate::support::s3::{BUCKET, S3Server};
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};

#[test]
fn a_cluster_of_each_major_takes_settings_and_answers() {
    for major in Major::all() {
        let mut cluster = Cluster::builder(major)
            .initdb_args(["--wal-segsize=1"])
            .conf("cluster_name", "it's")
            .build();
        assert_eq!(cluster.sql("show wal_segment_size; show cluster_name"), "1MB\nit's");
        let number = cluster.sql("select current_setting('server_version_num')::int / 10000");
        assert_eq!(number, cluster.major().number().to_string());
        cluster.set("work_mem", "1MB");
        assert_eq!(cluster.sql("show work_mem"), "1MB");
        cluster.sql("create table t (n int); insert into t select generate_series(1, 10)");
        for stop in [Stop::Smart, Stop::Fast, Stop::Immediate] {
            cluster.restart(stop);
        }
        cluster.kill9();
        assert!(cluster.try_sql("select 1").is_err());
        assert!(cluster.data_dir().join("postmaster.pid").exists());
        cluster.start();
        assert_eq!(cluster.sql("select count(*) from t"), "10");
    }
}

#[test]
fn a_copied_directory_recovers_pauses_and_is_promoted() {
    let archive = Scratch::new();
    let files = archive.path().display();
    let primary = Cluster::builder(Major::newest())
        .conf("archive_mode", "on")
        .conf("archive_command", format!("cp %p {files}/%f"))
        .build();
    let copy = archive.join("copy");
    Answer::of(
        primary
            .client("pg_basebackup")
            .args(["-X", "none", "-c", "fast", "-D"])
            .arg(&copy),
    )
    .with_code(0);
    primary.sql("create table t (); select pg_create_restore_point('here'); drop table t");
    primary.archive_now();

    let mut restored = Cluster::on_directory(primary.major(), &copy);
    std::fs::write(copy.join("recovery.signal"), "").unwrap();
    restored.append(
        "postgresql.auto.conf",
        &format!("restore_command = 'cp {files}/%f %p'\nrecovery_target_name = 'here'\narchive_mode = off\n"),
    );
    assert_eq!(restored.recover(), Recovered::Paused);
    assert_eq!(restored.sql("select count(*) from t"), "0");
    restored.promote();
    restored.sql("drop table t");
    restored.stop(Stop::Fast);

    std::fs::write(copy.join("recovery.signal"), "").unwrap();
    restored.append("postgresql.auto.conf", "recovery_target_name = 'never'\n");
    assert_eq!(restored.recover(), Recovered::Stopped);
    assert!(
        restored
            .log()
            .contains("recovery ended before configured recovery target was reached")
    );
}

#[test]
fn settings_of_access_are_loaded_at_once() {
    let cluster = Cluster::new();
    let reached = |conninfo: &str| {
        Answer::of(
            cluster
                .tool("psql")
                .args(["-XAtc", "select inet_server_port()", conninfo]),
        )
    };
    assert_eq!(reached(&cluster.conninfo_tcp()).stdout, format!("{}\n", cluster.port()));
    cluster.set_hba("local all all trust\n");
    reached(&cluster.conninfo_tcp()).with_code(2);
    reached(&cluster.conninfo()).with_code(0);
}

#[test]
fn our_binaries_run_as_the_servers_user() {
    for program in [Program::Pitr, Program::Archive, Program::Restore] {
        program.run(["--help"]).with_code(0);
    }
    let answer = Answer::of(ServerUser::get().command("sh").args(["-c", "echo '[7]'; kill -9 $$"]));
    assert_eq!(answer.with_code(128 + 9).json()[0], 7);
}

#[test]
fn the_s3_server_is_silent_while_paused_and_keeps_objects_when_killed() {
    let mut s3 = S3Server::start();
    let answers = |s3: &S3Server| {
        let mut socket = TcpStream::connect(&s3.env()[0].1["http://".len()..]).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        socket.read(&mut [0; 16]).is_ok_and(|bytes| bytes > 0)
    };
    s3.pause();
    assert!(!answers(&s3));
    s3.resume();
    assert!(answers(&s3));
    std::fs::write(s3.file_of(BUCKET, "object"), "kept").unwrap();
    s3.kill9();
    assert!(TcpStream::connect(&s3.env()[0].1["http://".len()..]).is_err());
    s3.restart();
    assert!(answers(&s3));
    assert_eq!(std::fs::read(s3.file_of(BUCKET, "object")).unwrap(), b"kept");
}

#[tokio::test]
async fn the_s3_server_creates_an_object_only_once() {
    let s3 = S3Server::start();
    s3.make_bucket("second");
    let options = s3
        .env()
        .map(|(name, value)| (name.to_lowercase().parse().unwrap(), value));
    let store = options
        .into_iter()
        .fold(AmazonS3Builder::new(), |store, (name, value)| {
            store.with_config(name, value)
        })
        .with_bucket_name("second")
        .with_allow_http(true)
        .build()
        .unwrap();
    let object = Path::from("a/b");
    let create = |text: &'static str| store.put_opts(&object, text.into(), PutMode::Create.into());
    create("first").await.unwrap();
    let refused = create("other").await.unwrap_err();
    assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
    assert_eq!(std::fs::read(s3.file_of("second", "a/b")).unwrap(), b"first");
    assert_eq!(s3.url("a"), format!("s3://{BUCKET}/a"));
}

/// Three calls of three kinds; how many of them the caller believes to have worked.
async fn put_list_get(store: &dyn ObjectStore) -> (bool, bool, bool) {
    let object = Path::from("a");
    let put = store.put_opts(&object, "whole".into(), PutMode::Create.into()).await;
    let listed = store.list(None).try_collect::<Vec<_>>().await;
    let got = async { store.get_opts(&object, GetOptions::default()).await?.bytes().await };
    let got = got.await;
    assert!(got.as_ref().is_err() || got.as_deref().unwrap() == b"whole");
    (put.is_ok(), listed.is_ok(), got.is_ok())
}

#[tokio::test]
async fn a_faulty_store_breaks_the_call_it_was_told_to() {
    let unbroken = FaultyStore::new(Arc::new(InMemory::new()), None);
    assert_eq!(put_list_get(&unbroken).await, (true, true, true));
    assert_eq!((unbroken.calls(), unbroken.to_string().as_str()), (3, "unbroken store"));
    for (call, fault) in every_call_and_fault(3) {
        let inner = Arc::new(InMemory::new());
        let store = FaultyStore::new(inner.clone(), Some((call, fault)));
        let believed = put_list_get(&store).await;
        let expected = match (call, fault) {
            (0, Fault::Crash) => (false, false, false),
            (0, Fault::AnswerLost) => (false, true, true),
            // What was never put can't be got, with the store working again.
            (0, Fault::Refused) => (false, true, false),
            (1, Fault::Crash) => (true, false, false),
            (1, _) => (true, false, true),
            _ => (true, true, false),
        };
        assert_eq!(believed, expected, "{store}");
        let stored = inner.get_opts(&Path::from("a"), GetOptions::default()).await.is_ok();
        assert_eq!(stored, call > 0 || fault == Fault::AnswerLost, "{store}");
    }
}

#[tokio::test]
async fn a_lost_answer_breaks_a_file_off_half_way() {
    let folder = Scratch::new();
    let disk = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    std::fs::write(folder.join("a"), vec![7; 1001]).unwrap();
    let store = FaultyStore::new(disk, Some((0, Fault::AnswerLost)));
    let mut pieces = store
        .get_opts(&Path::from("a"), GetOptions::default())
        .await
        .unwrap()
        .into_stream();
    let mut received = 0;
    let broken = loop {
        match pieces.next().await.expect("an error, not an end") {
            Ok(piece) => received += piece.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(received, 500, "{broken}");
}

#[tokio::test]
async fn each_part_of_an_upload_can_break() {
    for call in 0..4 {
        let inner = Arc::new(InMemory::new());
        let store = FaultyStore::new(inner.clone(), Some((call, Fault::Refused)));
        let upload = async {
            let mut upload = store.put_multipart_opts(&Path::from("a"), Default::default()).await?;
            upload.put_part("whole".into()).await?;
            upload.complete().await?;
            upload.abort().await
        };
        assert!(upload.await.is_err(), "{store}");
        let stored = inner.get_opts(&Path::from("a"), GetOptions::default()).await.is_ok();
        assert_eq!(stored, call == 3, "{store}");
    }
}

#[test]
fn a_small_disk_can_be_filled_and_freed() {
    let disk = SmallDisk::new(1 << 20);
    let write = || std::fs::write(disk.path().join("file"), vec![1; 100_000]);
    disk.fill(50_000);
    assert!(disk.free() <= 50_000);
    assert_eq!(write().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    disk.unfill();
    write().unwrap();
    let place = disk.path().to_owned();
    drop(disk);
    assert!(!place.exists());
}
