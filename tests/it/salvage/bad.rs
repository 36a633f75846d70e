//! What `salvage` refuses, names, or passes over: directories that are none, and WAL that is damaged, missing or another's.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use pgp_pitr::pg::Lsn;
use serde_json::Value;

use super::{archive_no_more, copy, fingerprint, protected, salvage};
use crate::support::cluster::Cluster;
use crate::support::ledger;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

/// A repository and a dead server's directory, to be copied for each case.
struct Scene {
    vault: Vault,
    primary: Cluster,
    scratch: Scratch,
    /// Segments that the repository lacks and that are filled, by name.
    lacking: Vec<String>,
    end: Lsn,
}

/// One case.
struct Case {
    vault: Vault,
    dead: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let vault = Vault::folder();
        let mut primary = protected(&vault, Major::usual(), 1);
        archive_no_more(&primary);
        primary.sql("checkpoint");
        archive_no_more(&primary);
        ledger::write(&primary, 1, 2);
        primary.kill9();
        let whole = salvage(&vault, primary.data_dir(), &["--dry-run"]).with_code(0).json();
        let names = whole["timelines"][0]["segments"].as_array().unwrap().iter();
        Self {
            lacking: names.map(|name| name.as_str().unwrap().to_owned()).collect(),
            end: lsn(&whole["latest"]["lsn"]),
            vault,
            primary,
            scratch: Scratch::new(),
        }
    }

    fn case(&self, name: &str) -> Case {
        let repo = self.scratch.join(format!("{name}-repo"));
        let dead = self.scratch.join(format!("{name}-data"));
        copy(Path::new(self.vault.repo()), &repo);
        copy(self.primary.data_dir(), &dead);
        Case {
            vault: Vault::at(&repo),
            dead,
        }
    }
}

impl Case {
    fn wal(&self, name: &str) -> PathBuf {
        self.dead.join("pg_wal").join(name)
    }

    fn run(&self, code: i32) -> Value {
        salvage(&self.vault, &self.dead, &[]).with_code(code).json()
    }

    /// Refused with a usage error, and nothing was stored.
    #[track_caller]
    fn refused(&self, says: &str) {
        let before = fingerprint(Path::new(self.vault.repo()));
        let answer = salvage(&self.vault, &self.dead, &[]).with_code(2);
        assert!(answer.stderr.contains(says), "{}", answer.stderr);
        assert_eq!(before, fingerprint(Path::new(self.vault.repo())));
    }
}

fn lsn(value: &Value) -> Lsn {
    value.as_str().unwrap().parse().unwrap()
}

fn kinds(answer: &Value) -> Vec<&str> {
    let problems = answer["problems"].as_array().unwrap().iter();
    problems.map(|problem| problem["kind"].as_str().unwrap()).collect()
}

fn segments(answer: &Value) -> Vec<&str> {
    let names = answer["timelines"][0]["segments"].as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap()).collect()
}

/// Changes some bytes of a file.
fn spoil(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_directory_that_tells_no_cluster_or_runs_a_server_is_refused() {
    let scene = Scene::new();
    let case = scene.case("control");
    let control = case.dead.join("global/pg_control");
    let good = fs::read(&control).unwrap();
    fs::write(&control, [7; 8192]).unwrap();
    case.refused("does not tell its cluster");
    fs::remove_file(&control).unwrap();
    case.refused("is not a data directory");
    fs::write(&control, good).unwrap();
    fs::rename(case.dead.join("PG_VERSION"), case.dead.join("PG_VERSIO")).unwrap();
    case.refused("PG_VERSION");
    fs::rename(case.dead.join("PG_VERSIO"), case.dead.join("PG_VERSION")).unwrap();

    let (wal, elsewhere) = (case.dead.join("pg_wal"), scene.scratch.join("elsewhere"));
    fs::rename(&wal, &elsewhere).unwrap();
    case.refused("pg_wal is not there");
    symlink(scene.scratch.join("nowhere"), &wal).unwrap();
    case.refused("pg_wal is not there");
    let named = salvage(
        &case.vault,
        &case.dead,
        &["--dry-run", "--wal", elsewhere.to_str().unwrap()],
    );
    assert_eq!(segments(&named.with_code(0).json()), scene.lacking);
    let nothing = Case {
        vault: Vault::folder(),
        dead: scene.scratch.join("absent"),
    };
    nothing.refused("is not a data directory");
    // A link that leads somewhere is as good as a folder.
    fs::remove_file(&wal).unwrap();
    symlink(&elsewhere, &wal).unwrap();
    assert_eq!(segments(&case.run(0)), scene.lacking);

    let mut server = Cluster::on_directory(Major::usual(), &case.dead);
    server.start();
    case.refused("pgp-pitr receive");
    // Without a repository nothing is found missing.
    let mut command = scene.vault.command();
    let answer = Answer::of(
        command
            .args(["salvage", "--repo", "/nowhere"])
            .arg(scene.primary.data_dir()),
    );
    assert!(answer.code == 2 || answer.code == 5, "{answer:?}");
}

#[test]
fn what_lies_before_damage_is_saved_and_what_lies_behind_is_told() {
    let scene = Scene::new();
    let case = scene.case("checksum");
    let damaged = &scene.lacking[1];
    let good = fs::read(case.wal(damaged)).unwrap();
    spoil(&case.wal(damaged), 500_000, &[0xA5; 16]);
    let answer = case.run(4);
    assert!(segments(&answer).contains(&scene.lacking[0].as_str()));
    assert!(!segments(&answer).contains(&damaged.as_str()));
    assert!(
        answer["timelines"][0]["piece_bytes"].as_u64().unwrap() > 100_000,
        "{answer:#}"
    );
    let told = &answer["problems"][0];
    assert_eq!(
        (&told["kind"], &told["file"]),
        (&"damaged".into(), &damaged.as_str().into())
    );
    assert!(lsn(&told["to_lsn"]) > lsn(&told["from_lsn"]));
    // A good copy of that file is found: the rest is saved, the damaged place included.
    fs::write(case.wal(damaged), good).unwrap();
    let answer = case.run(0);
    assert!(segments(&answer).contains(&damaged.as_str()));
    assert_eq!(lsn(&answer["latest"]["lsn"]), scene.end);

    let case = scene.case("cut");
    OpenOptions::new()
        .write(true)
        .open(case.wal(damaged))
        .unwrap()
        .set_len(700_000)
        .unwrap();
    let answer = case.run(4);
    assert!(
        answer["problems"][0]["detail"]
            .as_str()
            .unwrap()
            .contains("the file ends there")
    );

    // The first page: nothing shows that this file is more than one kept ready, save what lies behind it.
    let case = scene.case("page");
    spoil(&case.wal(damaged), 0, &[0; 8192]);
    assert_eq!(kinds(&case.run(4))[0], "damaged");

    let case = scene.case("unreadable");
    fs::set_permissions(case.wal(damaged), fs::Permissions::from_mode(0o000)).unwrap();
    let answer = case.run(1);
    assert_eq!(kinds(&answer)[0], "unreadable");
    assert!(answer["timelines"][0]["saved"][0]["from_lsn"].is_string(), "{answer:#}");
}

#[test]
fn a_record_that_is_torn_at_the_end_is_left_out_and_no_segment_is_filled_up_with_it() {
    let scene = Scene::new();
    let case = scene.case("torn");
    let last = super::wal_files(&case.dead);
    let size = 1 << 20;
    let holding = format!("{:024X}", (1_u128 << 64) + u128::from(scene.end.bytes() / size));
    let path = last.iter().find(|path| path.ends_with(&holding)).unwrap();
    spoil(path, scene.end.bytes() % size - 40, &[0; 32]);
    let answer = case.run(0);
    assert!(lsn(&answer["latest"]["lsn"]) < scene.end, "{answer:#}");
    assert_eq!(segments(&answer), scene.lacking);

    // The record that crosses into a segment that was never written: the segment before stays open.
    let case = scene.case("border");
    let kept = &scene.lacking[2];
    let later: Vec<PathBuf> = super::wal_files(&case.dead)
        .into_iter()
        .filter(|path| path.file_name().unwrap().to_str().unwrap() > kept.as_str())
        .collect();
    for path in &later {
        fs::write(path, vec![0; size as usize]).unwrap();
    }
    // The control file knows of a checkpoint behind that place, so this is a loss, and told.
    let answer = case.run(3);
    assert_eq!(kinds(&answer), ["lost"]);
    assert_eq!(segments(&answer), scene.lacking[..2]);
    assert!(
        answer["timelines"][0]["piece_bytes"].as_u64().unwrap() > 900_000,
        "{answer:#}"
    );
    for path in &later {
        fs::copy(
            scene.primary.data_dir().join("pg_wal").join(path.file_name().unwrap()),
            path,
        )
        .unwrap();
    }
    ServerUser::get().give(&case.dead);
    let answer = case.run(0);
    assert_eq!(segments(&answer), scene.lacking[2..]);
    assert_eq!(lsn(&answer["latest"]["lsn"]), scene.end);
}

#[test]
fn a_gap_is_told_and_what_is_there_is_saved_all_the_same() {
    let scene = Scene::new();
    let case = scene.case("gap");
    fs::remove_file(case.wal(&scene.lacking[0])).unwrap();
    let answer = case.run(3);
    assert_eq!(kinds(&answer), ["gap"]);
    assert_eq!(segments(&answer), scene.lacking[1..]);
    // No backup leads to what lies behind it.
    assert!(answer["latest"].is_null(), "{answer:#}");
    let gaps = case.vault.pitr(["list", "--json"]).with_code(0).json();
    assert_eq!(
        gaps["clusters"][0]["wal"][0]["gaps"].as_array().unwrap().len(),
        1,
        "{gaps:#}"
    );

    // Behind the last checkpoint nothing shows that a file is not left over from before a crash.
    let case = scene.case("unproven");
    let missing = scene.lacking.len() - 2;
    fs::remove_file(case.wal(&scene.lacking[missing])).unwrap();
    let answer = case.run(3);
    assert_eq!(kinds(&answer), ["unproven"]);
    assert_eq!(segments(&answer).len(), missing - 1, "{answer:#}");
}

#[test]
fn another_clusters_wal_is_refused_by_name_and_the_rest_is_saved() {
    let scene = Scene::new();
    let mut other = Cluster::builder(Major::usual())
        .initdb_args(["--wal-segsize=1"])
        .build();
    other.kill9();
    let case = scene.case("foreign");
    let strange = super::wal_files(other.data_dir())[0].clone();
    let name = strange.file_name().unwrap().to_str().unwrap();
    // Under its own name, and in the place of one that is needed.
    fs::copy(&strange, case.wal(name)).unwrap();
    fs::copy(&strange, case.wal(&scene.lacking[1])).unwrap();
    ServerUser::get().give(&case.dead);
    let answer = case.run(2);
    let foreign = kinds(&answer).iter().filter(|kind| **kind == "foreign").count();
    assert_eq!(foreign, 2, "{answer:#}");
    assert!(
        answer["timelines"][0]["piece_bytes"].as_u64().unwrap() > 900_000,
        "{answer:#}"
    );
    assert!(segments(&answer).contains(&scene.lacking[2].as_str()));
    assert!(!segments(&answer).contains(&scene.lacking[1].as_str()));
}

#[test]
fn another_history_of_the_same_wal_is_named_and_nothing_is_overwritten() {
    let scene = Scene::new();
    let case = scene.case("first");
    // Two copies of one server go on by themselves: the same names, with other content.
    let go_on = |data: &Path, rows: usize| {
        let mut server = Cluster::on_directory(Major::usual(), data);
        server.start();
        ledger::write(&server, 1, rows);
        server.sql("insert into bulk select n, md5(random()::text) from generate_series(1, 20000) n");
        server.kill9();
    };
    let second = scene.scratch.join("second");
    copy(&case.dead, &second);
    go_on(&case.dead, 3);
    go_on(&second, 5);
    case.run(0);
    let before = fingerprint(Path::new(case.vault.repo()));
    let answer = salvage(&case.vault, &second, &[]).with_code(1);
    assert!(
        answer.stdout.contains("already with other content"),
        "{}",
        answer.stdout
    );
    assert!(kinds(&answer.json()).iter().all(|kind| *kind == "conflict"));
    assert_eq!(segments(&answer.json()), [""; 0]);
    assert_eq!(before, fingerprint(Path::new(case.vault.repo())));

    // The same where the repository has nothing but pieces of the segment in question.
    let case = scene.case("pieces");
    let (third, fourth) = (scene.scratch.join("third"), scene.scratch.join("fourth"));
    for (data, rows) in [(&third, 1), (&fourth, 2)] {
        copy(&case.dead, data);
        let mut server = Cluster::on_directory(Major::usual(), data);
        server.start();
        ledger::write(&server, 1, rows);
        server.kill9();
    }
    salvage(&case.vault, &third, &[]).with_code(0);
    let answer = salvage(&case.vault, &fourth, &[]).with_code(1);
    assert_eq!(kinds(&answer.json()), ["conflict"]);
    assert!(answer.stderr.contains("in pieces"), "{}", answer.stderr);
}
