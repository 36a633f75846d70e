//! Windows: what `list` promises can be restored, and what it costs to know it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use pgp_pitr::catalog::Catalog;
use pgp_pitr::env::Env;
use pgp_pitr::ops;
use pgp_pitr::pg::{Lsn, MajorVersion, SegmentNumber, SegmentSize, Timeline, WalFileName};
use pgp_pitr::repo::{ClusterInfo, Repository, names};
use pgp_pitr::store::{self, Name, S3Settings, Store};
use serde_json::Value;

use crate::support::cluster::{Cluster, Recovered};
use crate::support::faulty::FaultyStore;
use crate::support::ledger::{self, History, Target};
use crate::support::made_up::SYSTEM;
use crate::support::program::{Answer, Program};
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

/// One segment a minute.
const A_YEAR: u64 = 365 * 24 * 60;

#[tokio::test]
async fn a_year_of_wal_takes_one_listing_for_each_folder() {
    let size = SegmentSize::DEFAULT;
    let memory = Arc::new(InMemory::new());
    for number in 1..=A_YEAR {
        let file = WalFileName::Segment(SegmentNumber::new(number).name(Timeline::FIRST, size));
        let object = names::wal_file(SYSTEM, file);
        memory.put(&object, Bytes::new().into()).await.unwrap();
    }
    let counting = Arc::new(FaultyStore::new(memory, None));
    let objects: Arc<dyn ObjectStore> = counting.clone();
    let env = Arc::new(Env::made_up(&[], DateTime::UNIX_EPOCH, 7));
    let store = Store::new(objects, "s3://year".parse().unwrap(), env);
    let (_, repository) = Repository::init(&store).await.unwrap();
    let info = ClusterInfo {
        system: SYSTEM,
        major: MajorVersion::new(15).unwrap(),
        segment_size: size,
        wal_page_size: 8192,
    };
    let before = counting.calls();
    let catalog = Catalog::read(&repository, info).await.unwrap();
    let folders = A_YEAR.div_ceil(256);
    // And the folders of the doubts, of the backups, of the pieces, of all WAL and of the timeline.
    assert_eq!((counting.calls() - before) as u64, folders + 5);
    let wal = catalog.wal.timeline(Timeline::FIRST).unwrap();
    assert_eq!((wal.segments().len() as u64, wal.runs().len()), (A_YEAR, 1));
}

#[test]
fn a_gap_cuts_a_window_in_two_whose_edges_are_restored_as_printed() {
    let vault = Vault::folder();
    let server = Server::new(&vault);
    let before = vault.backup(&server.cluster);
    ledger::write(&server.cluster, 3, 6);
    server.cluster.archive_now();
    ledger::write(&server.cluster, 3, 6);
    let gap = server.cluster.archive_now();
    ledger::write(&server.cluster, 3, 6);
    server.cluster.archive_now();
    let after = vault.backup(&server.cluster);
    ledger::write(&server.cluster, 3, 6);
    server.cluster.archive_now();
    vault.lose(&gap);

    let list = list(&vault);
    let gaps = list["wal"][0]["gaps"].as_array().unwrap();
    assert_eq!(gaps.len(), 1);
    let windows = windows(&list);
    let backups: Vec<&str> = windows.iter().map(|window| window.backup.as_str()).collect();
    assert_eq!(backups, [before["id"].as_str().unwrap(), after["id"].as_str().unwrap()]);
    // A switch leaves the rest of the last segment before the gap empty.
    assert_eq!(windows[0].to_lsn.to_string(), gaps[0]["from_lsn"].as_str().unwrap());
    let history = server.history(1);
    let reachable = [windows[0].to_lsn, Lsn::new(u64::MAX)];
    for (window, end) in windows.iter().zip(reachable) {
        let commits = history.commits().filter(|commit| commit.lsn < end);
        assert_eq!(window.to, commits.map(|commit| commit.time).max().unwrap());
        window.assert_planned(&vault);
    }
    for target in [
        Target::Time(windows[0].to),
        Target::Lsn(windows[0].to_lsn),
        Target::Time(windows[1].from),
    ] {
        server.assert_restored(&vault, &history, 1, &target);
    }
    assert_eq!(
        history.expected(&Target::Time(windows[0].to), true),
        history.expected(&Target::Lsn(windows[0].to_lsn), false)
    );
}

#[test]
fn both_sides_of_a_fork_have_windows_whose_edges_are_restored_as_printed() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let first = Server::new(&vault);
    vault.backup(&first.cluster);
    ledger::write(&first.cluster, 3, 6);
    first.cluster.archive_now();
    let fork = first.history(1).commits().nth(20).unwrap().lsn.to_string();
    let to = scratch.join("second");
    let arguments = ["--target-lsn", &fork, "--target-action", "promote"];
    vault.restore(&to, &arguments).with_code(0);
    let mut second = Cluster::on_directory(first.cluster.major(), &to);
    assert_eq!(second.recover(), Recovered::Open, "{}", second.log());
    for cluster in [&second, &first.cluster] {
        ledger::write(cluster, 3, 6);
        cluster.archive_now();
    }
    let told = second.sql("select split_part(pg_read_file('pg_wal/00000002.history'), chr(9), 2)");
    let left: Lsn = told.parse().unwrap();
    let on_first = first.history(1);
    let on_second = on_first.then(left, &History::read(&second, 2, left));

    let windows = windows(&list(&vault));
    let timelines: Vec<u32> = windows.iter().map(|window| window.timeline).collect();
    assert_eq!(timelines, [1, 2]);
    for (window, history) in windows.iter().zip([&on_first, &on_second]) {
        assert_eq!(window.to, history.commits().map(|commit| commit.time).max().unwrap());
        window.assert_planned(&vault);
        first.assert_restored(&vault, history, window.timeline, &Target::Time(window.to));
    }
    assert_eq!(windows[0].from, windows[1].from);
}

#[test]
fn an_idle_tail_moves_no_edge_and_a_backup_alone_is_a_window() {
    let vault = Vault::folder();
    let server = Server::new(&vault);
    vault.backup(&server.cluster);
    // Nothing was written since: one moment, which can be had.
    let alone = &windows(&list(&vault))[..];
    let [window] = alone else { panic!("{alone:?}") };
    assert_eq!(window.from, window.to);
    window.assert_planned(&vault);
    let history = server.history(1);
    for target in [Target::Time(window.to), Target::Lsn(window.to_lsn)] {
        server.assert_restored(&vault, &history, 1, &target);
    }

    ledger::write(&server.cluster, 3, 6);
    // More segments without a commit than are looked at first.
    for _ in 0..20 {
        server.cluster.archive_now();
    }
    let history = server.history(1);
    let last = history.commits().map(|commit| commit.time).max().unwrap();
    let idle = &windows(&list(&vault))[..];
    let [window] = idle else { panic!("{idle:?}") };
    assert_eq!(window.to, last);
    window.assert_planned(&vault);
    let listed = &list(&vault)["wal"][0];
    assert_eq!(listed["last_commit_at"], rfc3339(last));
    server.assert_restored(&vault, &history, 1, &Target::Lsn(window.to_lsn));
    // Marker, cluster, its facts; doubts, backups, a record; all WAL, a timeline, a folder. Then frames, each once, and
    // the list of ends that the backup's own edge needs.
    let segments = listed["segments"].as_u64().unwrap();
    let calls = calls_of_a_listing(&vault);
    assert!(calls as u64 <= 9 + segments + 2, "{calls} for {segments} segments");
}

/// How often `list` asks the store for something, on a copy of the repository.
fn calls_of_a_listing(vault: &Vault) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let env = Arc::new(Env::made_up(&[], DateTime::UNIX_EPOCH, 7));
        let url = vault.repo().to_str().unwrap().parse().unwrap();
        let folder = store::open(&url, &S3Settings::default(), &env).unwrap();
        let memory = Arc::new(InMemory::new());
        let mut all = folder.list(&Name::default());
        while let Some(entry) = all.next().await {
            let entry = entry.unwrap();
            let bytes = folder.get(&entry.location, entry.size).await.unwrap().unwrap();
            memory.put(&entry.location, bytes.into()).await.unwrap();
        }
        let counting = Arc::new(FaultyStore::new(memory, None));
        let objects: Arc<dyn ObjectStore> = counting.clone();
        let store = Store::new(objects, "s3://copy".parse().unwrap(), env);
        let repository = Repository::open(&store).await.unwrap();
        let listings = ops::list::list(&repository, None).await.unwrap();
        assert_eq!(listings[0].windows.len(), 1);
        counting.calls()
    })
}

#[test]
fn wal_that_could_not_be_read_is_told_of_and_ends_a_window() {
    let vault = Vault::folder();
    let server = Server::new(&vault);
    vault.backup(&server.cluster);
    ledger::write(&server.cluster, 3, 6);
    let name = server.cluster.archive_now();
    ledger::write(&server.cluster, 3, 6);
    server.cluster.archive_now();
    let whole = list(&vault);
    assert_eq!(whole["doubtful"], serde_json::json!([]));
    let history = server.history(1);

    // As if the disk under pg_wal had gone bad before it was archived.
    let mut wal = fs::read(server.cluster.data_dir().join("pg_wal").join(&name)).unwrap();
    let size = wal.len() as u64;
    let number = u64::from_str_radix(&name[16..], 16).unwrap();
    let bad = history
        .commits()
        .filter(|commit| commit.lsn.bytes() / size == number)
        .nth(9);
    let bad = bad.unwrap().lsn;
    wal[(bad.bytes() % size) as usize + 30] ^= 1;
    vault.lose(&name);
    let scratch = Scratch::new();
    let damaged = scratch.join(&name);
    fs::write(&damaged, &wal).unwrap();
    ServerUser::get().give(&damaged);
    let mut archive = Program::Archive.command();
    archive
        .current_dir(server.cluster.data_dir())
        .arg(&damaged)
        .arg("--repo")
        .arg(vault.repo());
    let answer = Answer::of(&mut archive).with_code(0);
    assert!(answer.stderr.contains(&name), "{}", answer.stderr);

    let list = list(&vault);
    let doubtful = &list["doubtful"][0];
    assert_eq!(doubtful["file"], name);
    assert_eq!(doubtful["lsn"], bad.to_string());
    assert!(!doubtful["why"].as_str().unwrap().is_empty());
    let text = vault.pitr(["list"]).with_code(0).stdout;
    assert!(
        text.contains(&format!("warning: {name} can be read only up to {bad}")),
        "{text}"
    );
    let windows = windows(&list);
    assert_eq!((windows.len(), windows[0].to_lsn), (1, bad));
    windows[0].assert_planned(&vault);
    server.assert_restored(&vault, &history, 1, &Target::Time(windows[0].to));

    let check = vault.pitr(["check", "--json", "-d", &server.cluster.conninfo()]).json();
    let line = check["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["name"] == "wal_content");
    let line = line.unwrap();
    assert_eq!(line["status"], "warning");
    assert!(line["detail"].as_str().unwrap().contains(&name), "{line}");
}

/// A server whose ledger is known from `start` on. Nobody else commits.
struct Server {
    cluster: Cluster,
    start: Lsn,
    scratch: Scratch,
}

impl Server {
    fn new(vault: &Vault) -> Self {
        let cluster = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
        let start = cluster.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
        ledger::write(&cluster, 2, 4);
        Self {
            cluster,
            start,
            scratch: Scratch::new(),
        }
    }

    fn history(&self, timeline: u32) -> History {
        History::read(&self.cluster, timeline, self.start)
    }

    /// Restores to a target and compares the rows.
    #[track_caller]
    fn assert_restored(&self, vault: &Vault, history: &History, timeline: u32, target: &Target) {
        let to = self.scratch.join("restored");
        let (kind, value) = (format!("--target-{}", target.kind()), as_printed(target));
        let timeline = timeline.to_string();
        let arguments = [
            &kind,
            value.as_str(),
            "--target-timeline",
            &timeline,
            "--archive",
            "off",
        ];
        vault.restore(&to, &arguments).with_code(0);
        let mut server = Cluster::on_directory(self.cluster.major(), &to);
        assert_eq!(server.recover(), Recovered::Paused, "{target:?}\n{}", server.log());
        let rows: BTreeSet<i64> = ledger::rows(&server);
        drop(server);
        fs::remove_dir_all(&to).unwrap();
        assert_eq!(rows, history.expected(target, true), "{target:?}");
    }
}

/// A window as `list --json` prints it.
#[derive(Debug)]
struct Window {
    timeline: u32,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    from_lsn: Lsn,
    to_lsn: Lsn,
    backup: String,
}

impl Window {
    /// Each edge is a target that is planned, from a backup of this window.
    #[track_caller]
    fn assert_planned(&self, vault: &Vault) {
        let timeline = self.timeline.to_string();
        for target in [
            Target::Time(self.from),
            Target::Time(self.to),
            Target::Lsn(self.from_lsn),
            Target::Lsn(self.to_lsn),
        ] {
            let (kind, value) = (format!("--target-{}", target.kind()), as_printed(&target));
            let plan = ["plan", &kind, &value, "--target-timeline", &timeline, "--json"];
            let plan = vault.pitr(plan).with_code(0).json();
            let reached: Lsn = plan["reaches"]["lsn"].as_str().unwrap().parse().unwrap();
            assert!((self.from_lsn..=self.to_lsn).contains(&reached), "{self:?} {plan:#}");
        }
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

fn as_printed(target: &Target) -> String {
    match target {
        Target::Time(time) => rfc3339(*time),
        _ => target.value(),
    }
}

/// The one cluster of `list --json`.
fn list(vault: &Vault) -> Value {
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    list["clusters"][0].clone()
}

fn windows(cluster: &Value) -> Vec<Window> {
    let lsn = |value: &Value| value.as_str().unwrap().parse().unwrap();
    let time = |value: &Value| value.as_str().unwrap().parse().unwrap();
    let windows = cluster["windows"].as_array().unwrap().iter();
    windows
        .map(|window| Window {
            timeline: u32::try_from(window["timeline"].as_u64().unwrap()).unwrap(),
            from: time(&window["from"]),
            to: time(&window["to"]),
            from_lsn: lsn(&window["from_lsn"]),
            to_lsn: lsn(&window["to_lsn"]),
            backup: window["backup"].as_str().unwrap().to_owned(),
        })
        .collect()
}
