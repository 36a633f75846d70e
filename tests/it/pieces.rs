//! Segments of which there are only pieces: listed, planned, searched and recovered to their last commit.

mod sweeps;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use pgp_pitr::env::Env;
use pgp_pitr::pg::{Lsn, SegmentNumber, Timeline};
use pgp_pitr::repo::tail::{self, Piece, PieceSource};
use pgp_pitr::repo::{ClusterInfo, Repository};
use pgp_pitr::store::{self, S3Settings};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::support::chance::Chance;
use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::ledger;
use crate::support::program::{Answer, Program};
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

#[test]
fn the_last_commit_in_pieces_is_listed_planned_found_and_restored_from_a_folder() {
    for major in [Major::usual(), Major::newest()] {
        let vault = Vault::folder();
        restores_the_last_commit(&vault, major, &[]);
    }
}

#[test]
fn the_last_commit_in_pieces_is_listed_planned_found_and_restored_from_a_bucket() {
    let s3 = S3Server::start();
    let vault = Vault::s3(&s3, "pieces");
    restores_the_last_commit(&vault, Major::usual(), &s3.env());
}

fn restores_the_last_commit(vault: &Vault, major: &'static Major, env: &[(&str, String)]) {
    let mut cluster = vault.protect(Cluster::builder(major).conf("autovacuum", "off"));
    ledger::write(&cluster, 2, 4);
    vault.backup(&cluster);
    ledger::write(&cluster, 2, 4);
    cluster.archive_now();
    ledger::write(&cluster, 3, 6);
    cluster.sql("select pg_create_restore_point('in pieces')");
    ledger::write(&cluster, 3, 6);
    let mut receiver = Receiver::of(vault, env);
    receiver.catch_up(&cluster);
    let (rows, end) = (ledger::rows(&cluster), receiver.at);
    let last_xid = cluster.sql("select max(xid::text::bigint) from ledger");
    cluster.stop(Stop::Immediate);

    let list = list(vault);
    let (wal, window) = (&list["wal"][0], &list["windows"][0]);
    assert_eq!(wal["end_lsn"], end.to_string());
    assert_eq!(window["to_lsn"], end.to_string());
    assert_eq!(window["to"], wal["last_commit_at"]);
    let text = vault.pitr(["list"]).with_code(0).stdout;
    assert!(text.contains("(the last is in pieces)"), "{text}");

    let plan = vault.pitr(["plan", "--latest", "--json"]).with_code(0).json();
    assert_eq!(plan["reaches"]["lsn"], end.to_string());
    assert!(!plan["warnings"].to_string().contains("damaged"), "{plan}");
    let found = vault.pitr(["find", "--json"]).with_code(0).json();
    let points = found["events"].as_array().unwrap();
    assert!(points.iter().any(|event| event["name"] == "in pieces"), "{found}");

    let newest = restored(vault, major, &["--latest"], Recovered::Open);
    assert_eq!(newest, rows);
    let xid = ["--target-xid", last_xid.as_str()];
    assert!(restored(vault, major, &xid, Recovered::Paused).contains(rows.last().unwrap()));
    let time = ["--target-time", window["to"].as_str().unwrap()];
    assert_eq!(restored(vault, major, &time, Recovered::Paused), rows);
    let name = ["--target-name", "in pieces"];
    assert!(restored(vault, major, &name, Recovered::Paused).len() < rows.len());
    let kept = receiver.runtime.block_on(async {
        let index = store::Name::from(format!("clusters/{}/index", receiver.info.system));
        receiver.repository.store().list_level(&index).await.unwrap()
    });
    assert!(kept.0.is_empty(), "an index of pieces was kept");
}

#[test]
fn a_standby_that_reads_only_the_repository_follows_as_pieces_grow() {
    let vault = Vault::folder();
    let cluster = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
    ledger::write(&cluster, 1, 2);
    vault.backup(&cluster);
    let mut receiver = Receiver::of(&vault, &[]);
    let scratch = Scratch::new();
    let to = scratch.join("standby");
    vault.restore(&to, &["--latest", "--archive", "off"]).with_code(0);
    fs::rename(to.join("recovery.signal"), to.join("standby.signal")).unwrap();
    let mut standby = Cluster::on_directory(cluster.major(), &to);
    standby.append("postgresql.auto.conf", "wal_retrieve_retry_interval = '100ms'\n");
    standby.start();
    for _ in 0..6 {
        ledger::write(&cluster, 2, 3);
        // Pieces of the next segment follow on a whole one and on pieces alike.
        if receiver.chance.below(3) == 0 {
            cluster.sql("select pg_switch_wal()");
        }
        receiver.catch_up(&cluster);
        let end = receiver.at;
        standby.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{end}'"));
        assert_eq!(ledger::rows(&standby), ledger::rows(&cluster));
    }
}

#[test]
fn a_timeline_whose_last_segment_is_in_pieces_is_restored_on_either_side_of_its_fork() {
    let vault = Vault::folder();
    let mut first = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
    ledger::write(&first, 1, 4);
    vault.backup(&first);
    ledger::write(&first, 2, 8);
    let fork = first.sql("select pg_current_wal_insert_lsn()");
    ledger::write(&first, 2, 8);
    Receiver::of(&vault, &[]).catch_up(&first);
    let on_first = ledger::rows(&first);
    first.stop(Stop::Immediate);

    let scratch = Scratch::new();
    let to = scratch.join("second");
    let target = ["--target-lsn", fork.as_str(), "--target-action", "promote"];
    vault.restore(&to, &target).with_code(0);
    let mut second = Cluster::on_directory(first.major(), &to);
    assert_eq!(second.recover(), Recovered::Open, "{}", second.log());
    ledger::write(&second, 2, 8);
    let mut receiver = Receiver::of(&vault, &[]);
    receiver.timeline = Timeline::new(2).unwrap();
    receiver.catch_up(&second);
    let on_second = ledger::rows(&second);
    second.stop(Stop::Immediate);

    let list = list(&vault);
    assert_eq!(list["wal"].as_array().unwrap().len(), 2, "{list}");
    for (timeline, rows) in [("1", on_first), ("2", on_second)] {
        let arguments = ["--latest", "--target-timeline", timeline];
        assert_eq!(
            restored(&vault, first.major(), &arguments, Recovered::Open),
            rows,
            "timeline {timeline}"
        );
    }
}

#[test]
fn of_a_part_and_pieces_the_one_with_more_wal_is_read() {
    for pieces_are_longer in [true, false] {
        let vault = Vault::folder();
        let cluster = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
        ledger::write(&cluster, 1, 2);
        vault.backup(&cluster);
        ledger::write(&cluster, 1, 2);
        let mut receiver = Receiver::of(&vault, &[]);
        let partial = |cluster: &Cluster| {
            let name = cluster.sql("select pg_walfile_name(pg_current_wal_flush_lsn())");
            let scratch = Scratch::new();
            let path = scratch.join(format!("{name}.partial"));
            fs::copy(cluster.data_dir().join("pg_wal").join(name), &path).unwrap();
            ServerUser::get().give(&path);
            let archive = &mut Program::Archive.command();
            archive.current_dir(cluster.data_dir());
            Answer::of(archive.arg(&path).arg("--repo").arg(vault.repo())).with_code(0);
        };
        if pieces_are_longer {
            partial(&cluster);
            ledger::write(&cluster, 1, 2);
            receiver.catch_up(&cluster);
        } else {
            receiver.catch_up(&cluster);
            ledger::write(&cluster, 1, 2);
            partial(&cluster);
        }
        let end: Lsn = cluster.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
        let plan = vault.pitr(["plan", "--latest", "--json"]).with_code(0).json();
        assert_eq!(plan["reaches"]["lsn"], end.to_string());
        let scratch = Scratch::new();
        let (name, fetched) = (
            cluster.sql("select pg_walfile_name(pg_current_wal_flush_lsn())"),
            scratch.join("f"),
        );
        vault.fetch(&cluster, &name, &fetched).with_code(0);
        let (fetched, written) = (fs::read(fetched).unwrap(), receiver.segment(&cluster, end));
        let valid = receiver.info.segment_size.offset(end) as usize;
        assert!(
            fetched[..valid] == written[..valid],
            "pieces longer: {pieces_are_longer}"
        );
        assert_eq!(fetched.len(), written.len());
    }
}

#[test]
fn wal_that_is_lost_before_other_pieces_or_with_a_damaged_one_is_no_end_that_a_recovery_takes_unasked() {
    for damaged in [true, false] {
        let vault = Vault::folder();
        let cluster = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
        ledger::write(&cluster, 1, 2);
        vault.backup(&cluster);
        let mut receiver = Receiver::of(&vault, &[]);
        ledger::write(&cluster, 1, 2);
        receiver.catch_up(&cluster);
        let rows = ledger::rows(&cluster);
        let end = receiver.at;
        for _ in 0..3 {
            ledger::write(&cluster, 1, 2);
            receiver.catch_up(&cluster);
        }
        let pieces = receiver.pieces();
        let behind: Vec<&Piece> = pieces.iter().filter(|piece| piece.to > end).collect();
        let (last, before) = behind.split_last().unwrap();
        assert!(last.from > end.plus(300));
        let mut names = Vec::new();
        for piece in before.iter().filter(|piece| piece.from <= end.plus(300)) {
            let object = receiver.object(piece);
            names.push(object.file_name().unwrap().to_str().unwrap().to_owned());
            let mut bytes = fs::read(&object).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            match damaged {
                true => fs::write(&object, bytes).unwrap(),
                false => fs::remove_file(&object).unwrap(),
            }
        }
        assert!(!names.is_empty());

        let listed = vault.pitr(["list", "--json"]).with_code(0);
        let cluster_listed = &listed.json()["clusters"][0];
        assert_eq!(cluster_listed["windows"][0]["to_lsn"], end.to_string());
        assert_eq!(cluster_listed["wal"][0]["gaps"][0]["to_lsn"], last.to.to_string());
        assert_eq!(
            cluster_listed["gaps_after_newest_backup"][0]["to_lsn"],
            last.to.to_string()
        );
        if damaged {
            assert!(listed.stderr.contains(&names[0]), "{}", listed.stderr);
        }

        let refused = vault.pitr(["plan", "--latest"]).with_code(3);
        assert!(
            refused.stderr.contains("the repository has more of it up to"),
            "{}",
            refused.stderr
        );
        let to = format!("--target-lsn {end}");
        assert!(refused.stderr.contains(&to), "{}", refused.stderr);
        let xid = cluster.sql("select max(xid::text::bigint) from ledger");
        vault.pitr(["plan", "--target-xid", &xid]).with_code(3);
        let target = ["--target-lsn", &end.to_string()];
        assert_eq!(restored(&vault, cluster.major(), &target, Recovered::Paused), rows);

        // Asked for by a server that goes on to the end of the WAL, and by one that stops before.
        let scratch = Scratch::new();
        let name = cluster.sql("select pg_walfile_name(pg_current_wal_flush_lsn())");
        let fetch = || {
            let mut command = Program::Restore.command();
            command
                .current_dir(scratch.path())
                .args([name.as_str(), "fetched", "--retry-for", "0s", "--repo"]);
            Answer::of(command.arg(vault.repo()))
        };
        assert!(fetch().with_code(0).stderr.contains("pieces of it up to"));
        fs::write(scratch.join("recovery.signal"), "").unwrap();
        let refused = fetch().with_code(204);
        assert!(refused.stderr.contains("--target-lsn"), "{}", refused.stderr);
        fs::write(
            scratch.join("postgresql.auto.conf"),
            format!("recovery_target_lsn = '{end}'\n"),
        )
        .unwrap();
        fetch().with_code(0);
    }
}

#[test]
fn wal_behind_a_segment_of_which_pieces_are_missing_does_not_count() {
    let vault = Vault::folder();
    let cluster = vault.protect(Cluster::builder(Major::usual()).conf("autovacuum", "off"));
    ledger::write(&cluster, 1, 2);
    vault.backup(&cluster);
    let mut receiver = Receiver::of(&vault, &[]);
    ledger::write(&cluster, 1, 2);
    receiver.catch_up(&cluster);
    let (rows, end) = (ledger::rows(&cluster), receiver.at);
    ledger::write(&cluster, 1, 2);
    let lost = cluster.archive_now();
    ledger::write(&cluster, 1, 2);
    cluster.archive_now();
    vault.lose(&lost);

    let list = list(&vault);
    assert_eq!(list["wal"][0]["gaps"][0]["from_lsn"], end.to_string());
    assert_eq!(list["windows"][0]["to_lsn"], end.to_string());
    let refused = vault.pitr(["plan", "--latest"]).with_code(3);
    let told = format!("the rest of WAL segment {lost} is missing");
    assert!(refused.stderr.contains(&told), "{}", refused.stderr);
    let target = list["windows"][0]["to"].as_str().unwrap();
    let found = restored(&vault, cluster.major(), &["--target-time", target], Recovered::Paused);
    assert_eq!(found, rows);
}

fn list(vault: &Vault) -> Value {
    let answer = vault.pitr(["list", "--json"]).with_code(0);
    assert_eq!(answer.stderr, "");
    answer.json()["clusters"][0].clone()
}

/// Restores and recovers; the rows of the ledger.
#[track_caller]
fn restored(vault: &Vault, major: &'static Major, arguments: &[&str], becomes: Recovered) -> BTreeSet<i64> {
    let scratch = Scratch::new();
    let to = scratch.join("restored");
    let arguments = [arguments, &["--archive", "off"]].concat();
    vault.restore(&to, &arguments).with_code(0);
    let mut server = Cluster::on_directory(major, &to);
    assert_eq!(server.recover(), becomes, "{arguments:?}\n{}", server.log());
    ledger::rows(&server)
}

/// Stands for a receiver: cuts what a server has written into pieces, somehow.
struct Receiver {
    runtime: Runtime,
    repository: Repository,
    info: ClusterInfo,
    timeline: Timeline,
    /// Up to where all is in the repository.
    at: Lsn,
    chance: Chance,
}

impl Receiver {
    /// For the only cluster of a repository; `env` leads to its bucket.
    fn of(vault: &Vault, env: &[(&str, String)]) -> Self {
        let variables: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let env = Arc::new(Env::made_up(&variables, DateTime::UNIX_EPOCH, 7));
        let url = vault.repo().to_str().unwrap().parse().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (repository, info) = runtime.block_on(async {
            let store = store::open(&url, &S3Settings::of_environment(&env), &env).unwrap();
            let repository = Repository::open(&store).await.unwrap();
            let system = ClusterInfo::systems(&repository).await.unwrap()[0];
            let info = ClusterInfo::read(&store, system).await.unwrap().unwrap();
            (repository, info)
        });
        Self {
            runtime,
            repository,
            info,
            timeline: Timeline::FIRST,
            at: Lsn::ZERO,
            chance: Chance::new(),
        }
    }

    /// The bytes of the segment that the server writes to, or has just filled.
    fn segment(&self, cluster: &Cluster, end: Lsn) -> Vec<u8> {
        let number = SegmentNumber::ending(end, self.info.segment_size);
        let name = number.name(self.timeline, self.info.segment_size);
        fs::read(cluster.data_dir().join("pg_wal").join(name.to_string())).unwrap()
    }

    /// Stores what the server has flushed, from the last segment's start on where nothing was stored of that before.
    fn catch_up(&mut self, cluster: &Cluster) {
        let size = self.info.segment_size;
        let end: Lsn = cluster.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
        let last = SegmentNumber::ending(end, size);
        if self.at == Lsn::ZERO {
            self.at = last.start(size);
        }
        while self.at < end {
            let number = SegmentNumber::holding(self.at, size);
            let content = self.segment(cluster, number.end(size).min(end));
            let until = number.end(size).min(end);
            // Some begin before where the one before ended.
            let back = self.chance.below(300) as u64;
            let from = Lsn::new(self.at.bytes().saturating_sub(back)).max(number.start(size));
            let to = self.at.plus(1 + self.chance.below(40_000) as u64).min(until);
            let offset = |lsn: Lsn| lsn.since(number.start(size)) as usize;
            let source = PieceSource {
                cluster: &self.info,
                timeline: self.timeline,
                from,
                content: &[Bytes::copy_from_slice(&content[offset(from)..offset(to)])],
            };
            let packed = tail::pack_piece(&source, 3, DateTime::UNIX_EPOCH).unwrap();
            self.runtime
                .block_on(tail::put_piece(&self.repository, packed))
                .unwrap();
            self.at = to;
        }
    }

    fn pieces(&self) -> Vec<Piece> {
        let pieces = tail::pieces(&self.repository, self.info.system, self.timeline);
        self.runtime.block_on(pieces).unwrap()
    }

    fn object(&self, piece: &Piece) -> PathBuf {
        let (system, name) = (self.info.system, pgp_pitr::repo::names::piece);
        let name = name(system, piece.timeline, piece.from, piece.to);
        self.repository.store().file(&name).unwrap()
    }
}
