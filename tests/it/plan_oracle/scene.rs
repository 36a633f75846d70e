//! A server that writes WAL of every kind a target can be about, with base backups taken meanwhile, archived into a
//! folder by `pgp-archive`; and what that came to, as `pg_waldump` and the server tell it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use pgp_pitr::catalog::{Catalog, Coverage};
use pgp_pitr::env::Env;
use pgp_pitr::ops::plan::choose_cluster;
use pgp_pitr::pg::{SegmentNumber, Timeline};
use pgp_pitr::repo::Repository;
use pgp_pitr::repo::backup::BackupRecord;
use pgp_pitr::store::{self, S3Settings};
use rustix::process::Signal;
use tokio::runtime::Runtime;

use super::reading::{self, Record};
use super::rules::{Start, Wal};
use crate::support::cluster::{Builder, Cluster, Recovered};
use crate::support::process::signal;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

/// What was played, and what there is to know about it.
pub struct Scene {
    /// Where it was archived.
    pub vault: Vault,
    /// Who wrote it.
    pub major: &'static Major,
    /// Its segments.
    pub wal: Scratch,
    /// Those that lead to the newest timeline.
    path: Vec<(Timeline, SegmentNumber)>,
    /// All of the WAL on this path, from the first segment that was archived to the last.
    pub records: Vec<Record>,
    /// What the server told.
    pub facts: Facts,
    /// The repository, opened.
    pub repository: Repository,
    /// All that is in it.
    pub catalog: Catalog,
    /// What the calls run on.
    pub runtime: Runtime,
}

/// What the server told at the end of a scene.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The rows of each transaction that was committed.
    pub rows: BTreeMap<u32, BTreeSet<i64>>,
    /// The WAL tells of this moment, by its last restore point.
    pub told: DateTime<Utc>,
    /// It tells of no moment after this one.
    pub over: DateTime<Utc>,
    /// A transaction that was prepared, and never ended.
    pub left_prepared: u32,
}

/// The catalogue of a scene without some of its segments.
pub struct View {
    /// As the planner gets it.
    pub catalog: Catalog,
    missing: Vec<SegmentNumber>,
}

impl Scene {
    /// Plays it. `size` is the size of a segment in MiB, `much` how much is written at each stage.
    pub fn play(major: &'static Major, size: u32, much: usize) -> Self {
        let vault = Vault::folder();
        let primary = vault.protect(builder(major, size));
        primary.sql(SCHEMA);
        for number in 0..3 {
            stage(&primary, number, much, &|| vault.backup(&primary));
            primary.sql("select pg_create_restore_point('twice')");
        }
        let facts = epilogue(&primary, 3, much);
        let wal = Scratch::new();
        copy_wal(&primary, &wal);
        Self::of(vault, major, wal, facts)
    }

    /// Plays it on two timelines: the second leaves the first before that has its third backup.
    pub fn play_with_a_fork(major: &'static Major, much: usize) -> Self {
        let vault = Vault::folder();
        let primary = vault.protect(builder(major, 1));
        primary.sql(SCHEMA);
        stage(&primary, 0, much, &|| vault.backup(&primary));
        stage(&primary, 1, much, &|| vault.backup(&primary));
        primary.sql("select pg_create_restore_point('fork')");
        stage(&primary, 2, much, &|| vault.backup(&primary));
        primary.archive_now();
        let wal = Scratch::new();
        copy_wal(&primary, &wal);
        drop(primary);
        let to = wal.join("promoted");
        let arguments = ["--target-name", "fork", "--target-action", "promote"];
        vault.restore(&to, &arguments).with_code(0);
        let mut promoted = Cluster::on_directory(major, &to);
        assert_eq!(promoted.recover(), Recovered::Open, "{}", promoted.log());
        stage(&promoted, 3, much, &|| vault.backup(&promoted));
        let facts = epilogue(&promoted, 4, much);
        copy_wal(&promoted, &wal);
        drop(promoted);
        Self::of(vault, major, wal, facts)
    }

    /// What was archived into a vault: these segments, in a folder `pg_wal`.
    pub fn of(vault: Vault, major: &'static Major, wal: Scratch, facts: Facts) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let url = vault.repo().to_str().unwrap().parse().unwrap();
        let store = store::open(&url, &S3Settings::default(), &Arc::new(Env::of_process())).unwrap();
        let (repository, catalog) = runtime.block_on(async {
            let repository = Repository::open(&store).await.unwrap();
            let info = choose_cluster(&repository, None).await.unwrap();
            let catalog = Catalog::read(&repository, info).await.unwrap();
            (repository, catalog)
        });
        assert_eq!(catalog.warnings, [""; 0]);
        let size = catalog.info.segment_size;
        let path = path(&catalog);
        let mut records: Vec<Record> = Vec::new();
        for timeline in catalog.wal.timelines() {
            let segments = catalog.wal.timeline(timeline).unwrap().segments();
            let ends = [segments[0], segments[segments.len() - 1]];
            let [first, last] = ends.map(|segment| segment.number.name(timeline, size));
            let read = reading::read(major, &wal.join("pg_wal"), [first, last], size);
            // A timeline's first segment begins with the last records of the one that it left.
            records.retain(|record| record.start < read[0].start);
            records.extend(read);
        }
        let scene = Self {
            vault,
            major,
            wal,
            path,
            records,
            facts,
            repository,
            catalog,
            runtime,
        };
        scene.assert_read();
        scene
    }

    /// The reading is whole, and its ends of records are those that the server told of.
    fn assert_read(&self) {
        let size = self.catalog.info.segment_size;
        let last = self.path[self.path.len() - 1].1;
        let tail = &self.records[self.records.len() - 3..];
        assert_eq!(tail[2].end, last.end(size), "no switch ends {tail:?}");
        for [record, next] in self.records.array_windows() {
            let header = next.start.bytes().checked_sub(record.end.bytes());
            assert!(
                matches!(header, Some(0 | 24 | 40)),
                "{record:?} is not followed by {next:?}"
            );
        }
        assert_eq!(self.backups().count(), 3);
        let commits: BTreeSet<u32> = self
            .records
            .iter()
            .filter_map(|record| Some(record.commit()?.xid))
            .collect();
        assert!(
            self.facts.rows.keys().all(|xid| commits.contains(xid)),
            "rows without a commit"
        );
    }

    /// The backups that have ended on the path.
    pub fn backups(&self) -> impl Iterator<Item = &BackupRecord> {
        let ends = |backup: &&BackupRecord| {
            let end = reading::Kind::BackupEnd(backup.start_lsn);
            let end = self.records.iter().find(|record| record.kind == end);
            end.is_some_and(|end| end.end == backup.stop_lsn)
        };
        self.catalog.backups.iter().filter(ends)
    }

    /// The catalogue without these segments.
    pub fn without(&self, missing: &[SegmentNumber]) -> View {
        let size = self.catalog.info.segment_size;
        let mut wal = Coverage::new(size);
        for timeline in self.catalog.wal.timelines() {
            for segment in self.catalog.wal.timeline(timeline).unwrap().segments() {
                if !missing.contains(&segment.number) {
                    let name = segment.number.name(timeline, size);
                    wal.add(name, segment.stored_bytes.into(), segment.form);
                }
            }
        }
        wal.sort();
        let mut catalog = self.catalog.clone();
        catalog.wal = wal;
        let mut missing = missing.to_vec();
        missing.push(self.path[self.path.len() - 1].1.next());
        missing.sort();
        View { catalog, missing }
    }

    /// Where a segment lies.
    pub fn segment_path(&self, segment: SegmentNumber) -> PathBuf {
        let (timeline, _) = self.path.iter().find(|(_, number)| *number == segment).unwrap();
        let name = segment.name(*timeline, self.catalog.info.segment_size);
        self.wal.join("pg_wal").join(name.to_string())
    }

    /// The segments there are, in order.
    pub fn segments(&self) -> Vec<SegmentNumber> {
        self.path.iter().map(|(_, number)| *number).collect()
    }

    /// The timeline that is followed.
    pub fn timeline(&self) -> Timeline {
        self.path[self.path.len() - 1].0
    }

    /// A view's backups, in the order of the WAL, and how much of the WAL leads on from each.
    pub fn starts<'a>(&'a self, view: &'a View) -> Vec<Start<'a>> {
        let size = self.catalog.info.segment_size;
        let start = |backup| -> Start<'a> {
            let backup: &BackupRecord = backup;
            let first = SegmentNumber::holding(backup.start_lsn, size);
            let missing = view.missing.iter().find(|missing| **missing >= first).unwrap();
            let wal = Wal {
                records: &self.records,
                readable: self.records.partition_point(|record| record.end <= missing.start(size)),
            };
            let there = |segment: &SegmentNumber| !view.missing.contains(segment);
            let gap = self
                .segments()
                .iter()
                .any(|segment| segment > missing && there(segment));
            Start { backup, wal, gap }
        };
        let mut starts: Vec<Start<'a>> = view.catalog.backups.iter().map(start).collect();
        starts.sort_by_key(|start| start.backup.stop_lsn);
        starts
    }
}

impl View {
    /// Whether nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.missing.len() == 1
    }
}

/// The segments that lead to the newest timeline, each with the timeline whose file it is.
fn path(catalog: &Catalog) -> Vec<(Timeline, SegmentNumber)> {
    let mut path: Vec<(Timeline, SegmentNumber)> = Vec::new();
    for timeline in catalog.wal.timelines() {
        let segments = catalog.wal.timeline(timeline).expect("WAL").segments();
        path.retain(|(_, number)| *number < segments[0].number);
        path.extend(segments.iter().map(|segment| (timeline, segment.number)));
    }
    path
}

fn builder(major: &'static Major, size: u32) -> Builder {
    Cluster::builder(major)
        .initdb_args([format!("--wal-segsize={size}")])
        .conf("autovacuum", "off")
        .conf("fsync", "off")
        .conf("checkpoint_timeout", "1h")
        .conf("max_connections", "20")
        .conf("max_prepared_transactions", "10")
}

/// What comes last, and what the server tells then.
fn epilogue(primary: &Cluster, number: usize, much: usize) -> Facts {
    let xid = "begin; insert into ledger default values; select pg_current_xact_id();";
    let left_prepared = primary.sql(&format!("{xid} prepare transaction 'left'"));
    primary.sql(&one_session(number, much));
    primary.sql("select pg_create_restore_point('twice')");
    // Reading may write, too: with checksums the bits that say who has committed are logged.
    let rows = rows(primary);
    let told = clock(primary);
    primary.archive_now();
    Facts {
        rows,
        told,
        over: clock(primary),
        left_prepared: left_prepared.parse().unwrap(),
    }
}

fn copy_wal(from: &Cluster, to: &Scratch) {
    let mut copy = Command::new("cp");
    // What one server has archived stays as it is, whatever a later one made of its own copy.
    copy.args(["-a", "-n"])
        .arg(from.data_dir().join("pg_wal"))
        .arg(to.path());
    Answer::of(&mut copy).with_code(0);
}

fn clock(primary: &Cluster) -> DateTime<Utc> {
    let micros = primary.sql("select (extract(epoch from clock_timestamp()) * 1000000)::bigint");
    DateTime::from_timestamp_micros(micros.parse().unwrap()).unwrap()
}

fn rows(primary: &Cluster) -> BTreeMap<u32, BTreeSet<i64>> {
    let mut rows: BTreeMap<u32, BTreeSet<i64>> = BTreeMap::new();
    for line in primary.sql("select xid, id from ledger").lines() {
        let (xid, id) = line.split_once('|').unwrap();
        let of_xid = rows.entry(xid.parse().unwrap()).or_default();
        of_xid.insert(id.parse().unwrap());
    }
    rows
}

/// Rows are only ever added, and carry the id of the whole transaction, in a subtransaction too.
const SCHEMA: &str = "
    create table ledger (id bigserial, xid xid8 not null default pg_current_xact_id());
    create table noise (x text);";

/// Sessions of every kind at once, a base backup in their midst, and a little more.
fn stage(primary: &Cluster, number: usize, much: usize, back_up: &(dyn Fn() -> serde_json::Value + Sync)) {
    primary.sql(&one_session(number, much / 4));
    let over = AtomicBool::new(false);
    // A backup takes the better part of a second: each session goes on until it has ended.
    let until_over = |script: &dyn Fn(usize) -> String| {
        for round in 0.. {
            primary.sql(&script(round));
            if over.load(Ordering::Relaxed) {
                break;
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| until_over(&|round| every_shape(&format!("a{number}_{round}"), much / 40)));
        scope.spawn(|| until_over(&|_| tiny_commits(much)));
        scope.spawn(|| until_over(&|_| format!("set application_name = frozen; {}", tiny_commits(much))));
        scope.spawn(|| until_over(&|round| bulk(number, round)));
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                freeze_a_session(primary);
            }
        });
        let backup = scope.spawn(back_up).join();
        over.store(true, Ordering::Relaxed);
        backup.unwrap();
    });
}

/// Holds a session up for a moment. One that has just taken the time of its commit writes it late: after commits of
/// later times.
fn freeze_a_session(primary: &Cluster) {
    let pids = "select pid from pg_stat_activity where application_name = 'frozen'";
    let pid = primary.sql(pids);
    let Some(pid) = pid.lines().next().map(|pid| pid.parse().unwrap()) else {
        return;
    };
    for pause in 0..8 {
        signal(pid, Signal::STOP);
        thread::sleep(Duration::from_millis(12));
        signal(pid, Signal::CONT);
        thread::sleep(Duration::from_micros(900 + 370 * pause));
    }
}

/// Commits as fast as a server can, so that some have the same microsecond.
fn tiny_commits(count: usize) -> String {
    format!(
        "set synchronous_commit = off;
         do $$ begin for i in 1..{count} loop insert into ledger default values; commit; end loop; end $$;"
    )
}

/// Transactions of every shape.
fn every_shape(name: &str, count: usize) -> String {
    let shapes = |n: usize| {
        let name = format!("{name}_{n}");
        format!(
            "begin; insert into ledger default values; savepoint a; insert into ledger default values; release a; commit;
             begin; insert into ledger default values; savepoint a; insert into ledger default values; rollback to a;
             insert into ledger default values; commit;
             begin; insert into ledger default values; savepoint a; insert into ledger default values; rollback;
             begin; savepoint a; insert into ledger default values; savepoint b; insert into ledger default values;
             prepare transaction 'c{name}';
             begin; insert into ledger default values; savepoint a; insert into ledger default values;
             prepare transaction 'r{name}';
             insert into ledger default values;
             rollback prepared 'r{name}'; commit prepared 'c{name}';
             select pg_create_restore_point('point {name}');
             begin; create table t_{name} (x int primary key); insert into ledger default values; commit;
             begin; drop table t_{name}; insert into ledger default values; commit;
             begin; lock table noise; insert into ledger default values; rollback;\n"
        )
    };
    (0..count.max(1)).map(shapes).collect()
}

/// Much at a time: records that cross segments, full segments between two commits, segments left early.
fn bulk(number: usize, round: usize) -> String {
    let length = [300_000, 20_000, 1_300_000][(number + round) % 3];
    format!(
        "copy noise from program 'seq 1 6000';
         select pg_logical_emit_message(true, 'bulk', repeat('x', {length}));
         begin; insert into ledger default values; truncate noise; commit;
         select pg_logical_emit_message(false, 'bulk', repeat('y', 3000)) from generate_series(1, 100);
         {};
         select pg_sleep(0.05);",
        ["select pg_switch_wal()", "checkpoint", "vacuum noise"][round % 3],
    )
}

/// The same, one after the other.
fn one_session(number: usize, much: usize) -> String {
    let name = format!("b{number}");
    [every_shape(&name, much / 40), tiny_commits(much), bulk(number, number)].concat()
}
