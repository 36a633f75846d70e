//! A receiver lives on for weeks: outages, restarts, stops, and what it takes of the machine meanwhile.

use std::fs;
use std::path::PathBuf;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, Stop};
use crate::support::ledger;
use crate::support::process::{freeze, signal, wait_for};
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

use super::load::Load;
use super::running::Receiver;
use super::{backup, restored_rows, wait_until_durable};

/// What a supervisor waits before it kills.
const DRAINED_WITHIN: Duration = Duration::from_secs(10);

fn small_segments() -> Cluster {
    Cluster::builder(Major::usual())
        .initdb_args(["--wal-segsize=1"])
        .conf("autovacuum", "off")
        .conf("wal_sender_timeout", "3s")
        .build()
}

#[test]
fn a_stop_in_the_middle_of_load_stores_everything_that_came() {
    for arguments in [&["--synchronous"][..], &["--tail-interval", "5s"]] {
        let vault = Vault::folder();
        let server = small_segments();
        let mut receiver = Receiver::streaming(&vault, &server.conninfo(), arguments);
        let load = Load::start(&server, 4, "local");
        for _ in 0..3 {
            load.wait_for_more(300);
            let (code, took) = receiver.stop();
            assert_eq!(code, Some(0), "{}", receiver.log());
            assert!(took < DRAINED_WITHIN, "{took:?}");
            let status = receiver.status().json();
            assert_eq!(status["state"], "stopped");
            assert_eq!(status["durable_lsn"], status["received_lsn"], "{status}");
            receiver.start();
            receiver.wait_for_state("streaming");
        }
        load.stop();
        wait_until_durable(&server);
    }
}

#[test]
fn a_store_that_is_away_is_waited_for_and_the_server_is_kept() {
    let mut s3 = S3Server::start();
    let vault = Vault::s3(&s3, "away");
    let mut server = small_segments();
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &["--synchronous"]);
    backup(&vault, &server);
    let walsender = "select pid from pg_stat_replication where application_name = 'pgp-pitr'";
    let before = server.sql(walsender);
    let load = Load::start(&server, 2, "local");
    load.wait_for_more(100);
    s3.kill9();
    receiver.wait_for_state("store_unavailable");
    receiver.status().with_code(5);
    // Longer than wal_sender_timeout, with more WAL than is held in memory.
    server.sql("create table bulk as select repeat(md5(n::text), 60) from generate_series(1, 10000) n");
    sleep(Duration::from_secs(5));
    load.wait_for_more(100);
    assert_eq!(
        server.sql(walsender),
        before,
        "the connection was lost: {}",
        server.log()
    );
    s3.restart();
    receiver.wait_for_state("streaming");
    let told = load.stop();
    wait_until_durable(&server);
    assert_eq!(server.sql(walsender), before);
    // Stopped while the store is away, it does not wait for it, and tells what is missing.
    server.sql("insert into ledger values (-1)");
    s3.kill9();
    server.sql("insert into ledger values (-2)");
    sleep(Duration::from_secs(1));
    let (code, took) = receiver.stop();
    assert_eq!(code, Some(5), "{}", receiver.log());
    assert!(took < DRAINED_WITHIN, "{took:?}");
    s3.restart();
    receiver.start();
    receiver.wait_for_state("streaming");
    wait_until_durable(&server);
    receiver.kill9();
    server.stop(Stop::Immediate);
    let rows = restored_rows(&vault, server.major(), &["--latest"]);
    assert!(told.keys().all(|id| rows.contains(id)) && rows.contains(&-2));
}

#[test]
fn a_full_spool_stops_the_reading_and_not_the_connection() {
    let (vault, scratch) = (Vault::folder(), Scratch::new());
    let spool = scratch.folder("spool");
    let server = small_segments();
    let least = [
        "--spool",
        spool.to_str().unwrap(),
        "--spool-limit",
        "64MB",
        "--durable",
        "spool",
    ];
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &least);
    backup(&vault, &server);
    let walsender = "select pid from pg_stat_replication where application_name = 'pgp-pitr'";
    let before = server.sql(walsender);
    let here = PathBuf::from(vault.repo());
    let away = here.with_extension("away");
    fs::rename(&here, &away).unwrap();
    ledger::write(&server, 1, 4);
    wait_until_durable(&server);
    server.sql("create table bulk as select repeat(md5(n::text), 60) from generate_series(1, 100000) n");
    let full = receiver.wait_for_state("spool_full");
    let size = full["spool_bytes"].as_u64().unwrap();
    assert!(size <= full["spool_limit_bytes"].as_u64().unwrap(), "{full}");
    sleep(Duration::from_secs(7));
    assert_eq!(
        server.sql(walsender),
        before,
        "the connection was lost: {}",
        server.log()
    );
    receiver.wait_for_state("spool_full");
    fs::rename(&away, &here).unwrap();
    receiver.wait_for_state("streaming");
    ledger::write(&server, 1, 4);
    wait_until_durable(&server);
    assert_eq!(server.sql(walsender), before);
    assert_eq!(receiver.stop().0, Some(0));
    assert_eq!(
        restored_rows(&vault, server.major(), &["--latest"]),
        ledger::rows(&server)
    );
}

#[test]
fn a_server_is_stopped_and_started_under_load() {
    let vault = Vault::folder();
    let mut server = small_segments();
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &[]);
    let load = Load::start(&server, 3, "local");
    load.wait_for_more(200);
    let since = Instant::now();
    // The server waits until its walsenders have sent everything and were told that it is flushed.
    server.restart(Stop::Fast);
    assert!(since.elapsed() < DRAINED_WITHIN, "{:?}", since.elapsed());
    load.wait_for_more(100);
    server.restart(Stop::Immediate);
    load.wait_for_more(100);
    load.stop();
    receiver.wait_for_state("streaming");
    wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));
}

#[test]
fn a_server_that_is_stopped_while_the_store_is_away_is_let_go_with_the_receiver() {
    let vault = Vault::folder();
    let mut server = small_segments();
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &[]);
    let here = PathBuf::from(vault.repo());
    let away = here.with_extension("away");
    fs::rename(&here, &away).unwrap();
    ledger::write(&server, 1, 4);
    receiver.wait_for_state("store_unavailable");
    let stopped_at = thread::scope(|scope| {
        // It waits until its walsender was told that everything is flushed, or is gone.
        let stopping = scope.spawn(|| {
            server.stop(Stop::Fast);
            Instant::now()
        });
        sleep(Duration::from_secs(2));
        let since = Instant::now();
        assert_eq!(receiver.stop().0, Some(5));
        assert!(stopping.join().unwrap() > since, "nothing was waited for");
        since
    });
    assert!(stopped_at.elapsed() < DRAINED_WITHIN + Duration::from_secs(2));
    fs::rename(&away, &here).unwrap();
    server.start();
    receiver.start();
    receiver.wait_for_state("streaming");
    wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));
}

#[test]
fn a_receiver_that_was_frozen_goes_on_where_it_was() {
    let vault = Vault::folder();
    let server = small_segments();
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &["--synchronous"]);
    let load = Load::start(&server, 3, "local");
    for _ in 0..2 {
        load.wait_for_more(100);
        freeze(receiver.pid());
        server.wait_until("select count(*) = 0 from pg_stat_replication where application_name = 'pgp-pitr'");
        load.wait_for_more(100);
        signal(receiver.pid(), rustix::process::Signal::CONT);
        receiver.wait_for_state("server_unavailable");
        receiver.wait_for_state("streaming");
    }
    load.stop();
    wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));
}

#[test]
fn memory_stays_small_while_much_is_caught_up_with_that_does_not_compress() {
    catch_up(false);
}

#[test]
fn memory_stays_small_while_the_same_comes_through_a_spool() {
    catch_up(true);
}

fn catch_up(spooled: bool) {
    let (vault, scratch) = (Vault::folder(), Scratch::new());
    let noise = scratch.join("noise");
    let mut random = fs::File::open("/dev/urandom").unwrap();
    std::io::copy(
        &mut std::io::Read::take(&mut random, 64 << 20),
        &mut fs::File::create(&noise).unwrap(),
    )
    .unwrap();
    ServerUser::get().give(&noise);
    let server = Cluster::builder(Major::usual()).conf("max_wal_size", "2GB").build();
    let spool = scratch.join("spool");
    let more = ["--spool", spool.to_str().unwrap()];
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), if spooled { &more } else { &[] });
    let idle = receiver.proc_status("VmHWM");
    assert_eq!(receiver.stop().0, Some(0));
    let emit = format!(
        "select count(pg_logical_emit_message(false, 'noise', pg_read_binary_file('{}', (n % 64) << 20, 1 << 20)))
         from generate_series(1, 512) n",
        noise.display()
    );
    server.sql(&emit);
    receiver.start();
    let end = wait_until_durable(&server);
    let peak = receiver.proc_status("VmHWM");
    eprintln!("up to {end}: {peak} KiB at most, {idle} before, spooled: {spooled}");
    // The program's own pages count, too, and in a debug build they are many.
    assert!(peak - idle <= 48 << 10, "{peak} KiB after {idle}, spooled: {spooled}");
    assert_eq!(receiver.stop().0, Some(0));
}

#[test]
fn reconnecting_leaves_nothing_behind() {
    let vault = Vault::folder();
    let server = Cluster::new();
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &[]);
    let mut taken = Vec::new();
    for _ in 0..7 {
        server.sql("create table if not exists t (n int); insert into t values (1)");
        wait_until_durable(&server);
        taken.push((receiver.open_files(), receiver.proc_status("Threads")));
        server.sql("select pg_terminate_backend(pid) from pg_stat_replication");
        server.wait_until("select count(*) = 0 from pg_stat_replication where state = 'streaming'");
        wait_for("it streams again", || {
            (server.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "1").then_some(())
        });
    }
    let files = taken.iter().map(|(files, _)| *files);
    assert!(files.max() <= Some(taken[0].0 + 2), "{taken:?}");
    // Threads that have nothing to do linger for ten seconds.
    wait_for("idle threads end", || {
        (receiver.proc_status("Threads") <= taken[0].1 + 1).then_some(())
    });
    assert_eq!(receiver.stop().0, Some(0));
}

#[test]
fn a_store_or_a_server_that_hangs_does_not_hold_up_a_stop() {
    let s3 = S3Server::start();
    let vault = Vault::s3(&s3, "hangs");
    let server = small_segments();
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &["--synchronous"]);
    s3.pause();
    ledger::write(&server, 1, 4);
    sleep(Duration::from_secs(1));
    let (code, took) = receiver.stop();
    assert_eq!(code, Some(5), "{}", receiver.log());
    assert!(took < DRAINED_WITHIN, "{took:?}");
    // It can't even begin.
    receiver.start();
    sleep(Duration::from_secs(1));
    let (code, took) = receiver.stop();
    assert_eq!(code, Some(0), "{}", receiver.log());
    assert!(took < DRAINED_WITHIN / 5, "{took:?}");
    s3.resume();

    let lock = fs::read_to_string(server.data_dir().join("postmaster.pid")).unwrap();
    let postmaster: u32 = lock.lines().next().unwrap().parse().unwrap();
    freeze(postmaster);
    receiver.start();
    sleep(Duration::from_secs(1));
    let (code, took) = receiver.stop();
    signal(postmaster, rustix::process::Signal::CONT);
    assert_eq!(code, Some(0), "{}", receiver.log());
    assert!(took < DRAINED_WITHIN / 5, "{took:?}");
    receiver.start();
    receiver.wait_for_state("streaming");
    wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));
}
