//! A year of WAL: 525,600 segments, one a minute, and a backup a day. How long `list` takes, from a folder and from a
//! bucket that answers each request in 50 ms, how many requests that is, and how much memory. Called by run.sh.
//!
//! The segments are names of empty files, save the first and the last ones, which hold a commit each: `list` reads
//! only their indexes.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that can't go on must fail, and its answer is printed"
)]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use crc_fast::{CrcAlgorithm, Digest};
use futures_util::StreamExt;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, ObjectStoreExt};
use pgp_pitr::catalog::Catalog;
use pgp_pitr::env::Env;
use pgp_pitr::ops::list;
use pgp_pitr::pg::{Lsn, MajorVersion, SegmentNumber, SegmentSize, SystemId, Timeline, WalFileName};
use pgp_pitr::repo::backup::{self, BackupId, BackupKind, BackupRecord, BackupState};
use pgp_pitr::repo::{self, BackupWriter, ClusterInfo, Repository, WalContent, WalHead, WalSource, names};
use pgp_pitr::store::{self, Name, S3Settings, Store};
use pgp_pitr::wal::WalLayout;

#[path = "../it/support/faulty.rs"]
#[allow(dead_code, reason = "nothing is broken here, only counted")]
mod faulty;

use faulty::FaultyStore;

const SYSTEM: SystemId = SystemId::new(7_000_000_000_000_000_001);
const SIZE: SegmentSize = SegmentSize::DEFAULT;
const SEGMENTS: u64 = 365 * 24 * 60;
const BACKUP_EVERY: u64 = 24 * 60;
/// The first segment and so many of the last ones are whole.
const WHOLE: u64 = 4;
/// Where a segment's commit begins, and its switch.
const COMMIT: u64 = 40;
const SWITCH: u64 = 80;
const ANSWERS_IN: Duration = Duration::from_millis(50);
const ROUNDS: usize = 5;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let env = Arc::new(Env::of_process());
    let root = env.var("PGP_BENCH_DIR").unwrap_or("/var/tmp");
    let folder = tempfile::tempdir_in(root).unwrap();
    let mut requests = 0;
    let rows = runtime.block_on(async {
        let url = folder.path().display().to_string().parse().unwrap();
        let store = store::open(&url, &S3Settings::default(), &env).unwrap();
        make(&store, folder.path()).await;
        let mut rows = vec![
            measure("floor: find -printf %s", async || found(folder.path())).await,
            measure("object_store's own listing", async || general(&store).await).await,
            measure("Catalog::read", async || read(&store).await).await,
            measure("list", async || listed(&store).await).await,
        ];
        let (bucket, counting) = slow(copied(&store).await, &env);
        rows.push(measure("list, bucket that answers in 50 ms", async || listed(&bucket).await).await);
        requests = counting.calls() / ROUNDS;
        rows
    });
    let (folders, backups) = (SEGMENTS.div_ceil(256), SEGMENTS / BACKUP_EVERY);
    println!("\n{SEGMENTS} segments in {folders} folders, {backups} backups; requests to the bucket: {requests}");
    println!("{:36}  runs   wall s    CPU s  peak MB", "");
    for Row { name, wall, cpu, peak } in &rows {
        println!("{name:36}  {ROUNDS:4}  {wall:7.3}  {cpu:7.3}  {peak:7.1}");
    }
    if let Some(path) = env.var("PGP_BENCH_JSON") {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| serde_json::json!({"name": row.name, "wall_s": row.wall, "cpu_s": row.cpu, "peak_mb": row.peak}))
            .collect();
        fs::write(
            path,
            format!("{:#}\n", serde_json::json!({"rows": rows, "requests": requests})),
        )
        .unwrap();
        println!("\nwritten: {path}");
    }
}

/// What a few rounds took.
struct Row {
    name: &'static str,
    /// The median, in seconds.
    wall: f64,
    /// The mean, in seconds, of all threads.
    cpu: f64,
    /// The process's peak memory so far, in megabytes.
    peak: f64,
}

async fn measure(name: &'static str, work: impl AsyncFn()) -> Row {
    let (mut times, cpu) = (Vec::new(), cpu());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        work().await;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Row {
        name,
        wall: times[ROUNDS / 2],
        cpu: (self::cpu() - cpu) / ROUNDS as f64,
        peak: peak(),
    }
}

fn found(folder: &Path) {
    let mut find = Command::new("find");
    let answer = find.arg(folder).args(["-name", "0*.zst", "-printf", "%s\\n"]).output();
    let lines = answer.unwrap().stdout.split(|byte| *byte == b'\n').count() - 1;
    assert_eq!(lines as u64, SEGMENTS);
}

async fn general(store: &Store) {
    let objects = store.list(&names::wal(SYSTEM)).count().await;
    assert_eq!(objects as u64, SEGMENTS);
}

async fn read(store: &Store) {
    let repository = Repository::open(store).await.unwrap();
    let info = ClusterInfo::read(store, SYSTEM).await.unwrap().unwrap();
    let catalog = Catalog::read(&repository, info).await.unwrap();
    assert_eq!(catalog.backups.len() as u64, SEGMENTS / BACKUP_EVERY);
}

async fn listed(store: &Store) {
    let repository = Repository::open(store).await.unwrap();
    let listings = list::list(&repository, None).await.unwrap();
    let [listing] = &listings[..] else {
        unreachable!("one cluster")
    };
    assert!(listing.catalog.warnings.is_empty(), "{:?}", listing.catalog.warnings);
    assert!(listing.catalog.doubts.is_empty(), "{:?}", listing.catalog.doubts);
    assert_eq!(listing.wal[0].segments as u64, SEGMENTS);
    assert_eq!(listing.windows.len(), 1);
    assert_eq!(listing.windows[0].to, written_at(SEGMENTS));
}

/// Seconds of CPU so far, of children too: from the 14th field on, in hundredths.
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.split_whitespace().collect();
    fields[13..17]
        .iter()
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}

fn peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1000.0
}

fn written_at(segment: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_720_000, 0).unwrap() + TimeDelta::minutes(segment as i64)
}

async fn make(store: &Store, folder: &Path) {
    let (_, repository) = Repository::init(store).await.unwrap();
    let info = ClusterInfo {
        system: SYSTEM,
        major: MajorVersion::new(15).unwrap(),
        segment_size: SIZE,
        wal_page_size: 8192,
    };
    info.bind(&repository, None).await.unwrap();
    for number in 1..=SEGMENTS {
        let file = WalFileName::Segment(SegmentNumber::new(number).name(Timeline::FIRST, SIZE));
        if number == 1 || number + WHOLE > SEGMENTS {
            push(&repository, file, number).await;
            continue;
        }
        let path = folder.join(names::wal_file(SYSTEM, file).as_ref());
        if File::create(&path).is_err() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(&path).unwrap();
        }
    }
    for day in 0..SEGMENTS / BACKUP_EVERY {
        back_up(&repository, day * BACKUP_EVERY + 1).await;
    }
}

/// A segment with two records, a commit and a switch.
async fn push(repository: &Repository, file: WalFileName, number: u64) {
    let start = SegmentNumber::new(number).start(SIZE);
    let before = SegmentNumber::new(number - 1).start(SIZE);
    let since_2000 = written_at(number).timestamp_micros() - 946_684_800_000_000;
    let told = [&[255, 8][..], &since_2000.to_le_bytes()].concat();
    // XLOG_XACT_COMMIT of the resource manager for transactions, XLOG_SWITCH of that for the log itself.
    let commit = record(before.plus(SWITCH), [0, 1], number as u32, &told);
    let switch = record(start.plus(COMMIT), [0x40, 0], 0, &[]);

    let mut bytes = Vec::new();
    bytes.extend(0xD110_u16.to_le_bytes());
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(start.bytes().to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(SYSTEM.to_string().parse::<u64>().unwrap().to_le_bytes());
    bytes.extend((SIZE.bytes() as u32).to_le_bytes());
    bytes.extend(8192_u32.to_le_bytes());
    bytes.extend(commit);
    bytes.resize(SWITCH as usize, 0);
    bytes.extend(switch);
    bytes.resize(SIZE.bytes() as usize, 0);
    let source = WalSource {
        head: WalHead {
            file,
            system: SYSTEM,
            segment_size: SIZE.bytes() as u32,
            page_magic: 0xD110,
            len: bytes.len() as u64,
            modified_at: written_at(number),
            layout: WalLayout::new(MajorVersion::new(15).unwrap(), SIZE, 8192).ok(),
        },
        content: WalContent::Bytes(bytes.into()),
    };
    let stored = repo::push(repository, &source, 1, None).await.unwrap();
    assert_eq!(stored.doubt, None);
}

fn record(previous: Lsn, kind: [u8; 2], xid: u32, body: &[u8]) -> Vec<u8> {
    let mut record = (24 + body.len() as u32).to_le_bytes().to_vec();
    record.extend(xid.to_le_bytes());
    record.extend(previous.bytes().to_le_bytes());
    record.extend(kind);
    record.extend([0, 0]);
    let mut crc = Digest::new(CrcAlgorithm::Crc32Iscsi);
    crc.update(body);
    crc.update(&record);
    record.extend((crc.finalize() as u32).to_le_bytes());
    record.extend(body);
    record
}

/// A backup without a file.
async fn back_up(repository: &Repository, segment: u64) {
    let at = written_at(segment);
    let id = BackupId::new(at, segment);
    let mut writer = BackupWriter::new(repository, SYSTEM, id.clone(), 1, 1);
    let manifest = zstd::bulk::compress(b"{}\n", 1).unwrap();
    writer.put_part(backup::MANIFEST, Bytes::from(manifest)).await.unwrap();
    let start = SegmentNumber::new(segment).start(SIZE);
    let record = BackupRecord {
        id,
        system_identifier: SYSTEM,
        label: None,
        kind: BackupKind::Full,
        state: BackupState::Complete,
        pg_version: "15".to_owned(),
        server_version: "15.20".to_owned(),
        timeline: Timeline::FIRST,
        start_lsn: start.plus(0x28),
        stop_lsn: Lsn::new(start.bytes() + 0x100),
        started_at: at,
        stopped_at: at,
        size_bytes: 0,
        stored_bytes: 0,
        entries: 0,
        tablespaces: Vec::new(),
        from_standby: false,
        warnings: Vec::new(),
        parts: Vec::new(),
    };
    writer.commit(record).await.unwrap();
}

/// The same objects in memory.
async fn copied(store: &Store) -> InMemory {
    let memory = InMemory::new();
    let mut all = store.list(&Name::default());
    while let Some(entry) = all.next().await {
        let entry = entry.unwrap();
        let bytes = match entry.size {
            0 => Bytes::new(),
            size => store.get(&entry.location, size).await.unwrap().unwrap(),
        };
        memory.put(&entry.location, bytes.into()).await.unwrap();
    }
    memory
}

/// A bucket with these objects that takes its time, and counts.
fn slow(memory: InMemory, env: &Arc<Env>) -> (Store, Arc<FaultyStore>) {
    let config = ThrottleConfig {
        wait_list_per_call: ANSWERS_IN,
        wait_list_with_delimiter_per_call: ANSWERS_IN,
        wait_get_per_call: ANSWERS_IN,
        ..ThrottleConfig::default()
    };
    let slow = Arc::new(ThrottledStore::new(memory, config));
    let counting = Arc::new(FaultyStore::new(slow, None));
    let objects: Arc<dyn ObjectStore> = counting.clone();
    let url = "s3://year".parse().unwrap();
    (Store::new(objects, url, env.clone()), counting)
}
