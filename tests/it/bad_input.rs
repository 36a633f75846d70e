//! What people and machines hand us by mistake: a clear answer in one to three lines, the right exit code,
//! nothing lost and nothing half-written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pgp_pitr::pg::SystemId;

use crate::support::cluster::{Cluster, Stop};
use crate::support::made_up::{self, SYSTEM, Segment};
use crate::support::process::free_port;
use crate::support::program::{Answer, Program};
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

/// Stands in every place where a secret may stand.
const SECRET: &str = "hush-hush-7391";

#[test]
fn a_file_that_is_not_what_its_name_says_is_refused_and_nothing_is_stored() {
    let desk = Desk::new();
    let segment = made_up::segment(3, 1);
    let other_name = "000000010000000000000004";
    let short = &segment.bytes[..segment.bytes.len() / 2];
    let garbage = made_up::noise(segment.bytes.len(), 9);
    let zeros = vec![0; segment.bytes.len()];
    let later_timeline = {
        let mut bytes = segment.bytes.clone();
        bytes[4] = 9;
        bytes
    };
    for (name, content, said) in [
        (other_name, segment.bytes.as_slice(), "0/300000"),
        (&segment.name, short, "bytes"),
        (&segment.name, &garbage, "magic"),
        (&segment.name, &zeros, "magic"),
        (&segment.name, &[], "bytes"),
        (&segment.name, &later_timeline, "timeline"),
        ("notes.txt", b"to do\n", "notes.txt"),
        ("00000001000000000000000Z", &segment.bytes, "00000001000000000000000Z"),
    ] {
        let path = desk.scratch.join(name);
        fs::write(&path, content).unwrap();
        let answer = explained(desk.archive(&path), 2);
        assert!(
            answer.stderr.contains(name) && answer.stderr.contains(said),
            "{answer:?}"
        );
        assert!(!desk.repo.join("clusters").exists(), "{name}: something was stored");
        fs::remove_file(path).unwrap();
    }
    let absent = explained(desk.archive(&desk.scratch.join(&segment.name)), 1);
    assert!(absent.stderr.contains(&segment.name), "{absent:?}");
    let folder = desk.scratch.folder(&segment.name);
    explained(desk.archive(&folder), 1);
    assert!(!desk.repo.join("clusters").exists());
}

#[test]
fn a_segment_of_another_cluster_is_refused_where_the_data_directory_tells() {
    let desk = Desk::new();
    let data = data_directory(&desk.scratch, "data");
    let segment = made_up::segment(3, 1);
    let path = segment.put_into(&data.join("pg_wal"));
    let answer = explained(desk.archive(&path), 2);
    assert!(answer.stderr.contains(&SYSTEM.to_string()), "{answer:?}");
    assert!(answer.stderr.contains("pg_control"), "{answer:?}");
    // Texts do not tell their cluster: it is the directory's, or nobody's.
    let history = desk.scratch.join("00000002.history");
    fs::write(&history, "1\t0/3000000\tno recovery target specified\n").unwrap();
    explained(desk.archive(&history), 2);
    assert!(!desk.repo.join("clusters").exists());
}

#[test]
fn two_clusters_work_side_by_side_in_one_repository() {
    let desk = Desk::new();
    let other = SystemId::new(7_000_000_000_000_000_002);
    let ours = made_up::segment(3, 1);
    let theirs = made_up::segment_of(other, 3, 2);
    for segment in [&ours, &theirs] {
        desk.archive(&segment.put_into(desk.scratch.path())).with_code(0);
    }
    assert!(desk.fetch(SYSTEM, &ours.name).unwrap() == ours.bytes);
    assert!(desk.fetch(other, &theirs.name).unwrap() == theirs.bytes);
    let list = desk.pitr(["list", "--json"]).with_code(0).json();
    assert_eq!(list["clusters"].as_array().unwrap().len(), 2);
    // Nobody is asked to guess.
    let to = desk.scratch.join("restored");
    let answer = explained(desk.pitr(["restore", "--latest", "--to", to.to_str().unwrap()]), 2);
    assert!(answer.stderr.contains("--cluster"), "{answer:?}");
    assert!(!to.exists());
}

#[test]
fn other_content_under_the_same_name_is_refused_and_the_first_is_untouched() {
    let desk = Desk::new();
    let (first, second) = (made_up::segment(3, 1), made_up::segment(3, 2));
    desk.archive(&first.put_into(desk.scratch.path())).with_code(0);
    desk.archive(&first.put_into(desk.scratch.path())).with_code(0);
    let answer = explained(desk.archive(&second.put_into(desk.scratch.path())), 1);
    assert!(
        answer.stderr.contains(&desk.object(&first).display().to_string()),
        "{answer:?}"
    );
    assert!(desk.fetch(SYSTEM, &first.name).unwrap() == first.bytes);
}

#[test]
fn a_repository_of_a_later_format_is_left_alone() {
    let desk = Desk::new();
    let segment = made_up::segment(3, 1);
    let path = segment.put_into(desk.scratch.path());
    let marker = desk.repo.join("pgp.json");
    let later = fs::read_to_string(&marker)
        .unwrap()
        .replace("\"format\": 1", "\"format\": 2");
    fs::write(&marker, &later).unwrap();
    for answer in [desk.archive(&path), desk.pitr(["list"]), desk.pitr(["init"])] {
        let answer = explained(answer, 2);
        assert!(
            answer.stderr.contains("format") && answer.stderr.contains("install"),
            "{answer:?}"
        );
    }
    fs::write(desk.scratch.join("recovery.signal"), "").unwrap();
    explained(desk.fetched(SYSTEM, &segment.name), 202);
    assert!(!desk.repo.join("clusters").exists());
    assert_eq!(fs::read_to_string(&marker).unwrap(), later);
}

#[test]
fn a_place_that_is_no_repository_never_becomes_one() {
    let scratch = Scratch::new();
    let segment = made_up::segment(3, 1);
    let path = segment.put_into(scratch.path());
    let empty = scratch.folder("empty");
    for place in [&empty, &scratch.join("unmounted")] {
        let place = place.to_str().unwrap();
        for answer in [
            Program::Archive.run([path.to_str().unwrap(), "--repo", place]),
            Program::Pitr.run(["list", "--repo", place]),
            Program::Pitr.run(["restore", "--latest", "--to", "/nowhere", "--repo", place]),
        ] {
            let answer = explained(answer, 5);
            assert!(
                answer.stderr.contains(&format!("no repository at {place}")),
                "{answer:?}"
            );
            assert!(answer.stderr.contains("mounted? else `pgp-pitr init`"), "{answer:?}");
        }
    }
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    assert!(!scratch.join("unmounted").exists());
    explained(Program::Archive.run([path.to_str().unwrap()]), 2);
}

#[test]
fn a_misspelt_setting_is_named_with_the_one_that_was_meant() {
    let desk = Desk::new();
    let config = desk.scratch.join("pgp.toml");
    let segment = made_up::segment(3, 1).put_into(desk.scratch.path());
    for (text, said) in [
        ("compresion_level = 3\n", "compression_level"),
        ("[s3]\nsecret_acces_key = \"hush-hush-7391\"\n", "secret_access_key"),
        ("compression_level = \"very\"\n", "compression_level"),
        ("repo = [\n", "TOML"),
    ] {
        fs::write(&config, text).unwrap();
        let path = config.to_str().unwrap();
        for answer in [
            desk.pitr(["list", "--config", path]),
            Answer::of(desk.archiving(&segment).args(["--config", path])),
        ] {
            // A listing compresses nothing.
            if text.contains("very") && answer.code == 0 {
                continue;
            }
            let answer = explained(answer, 2);
            assert!(
                answer.stderr.contains(path) && answer.stderr.contains(said),
                "{answer:?}"
            );
        }
    }
    assert!(!desk.repo.join("clusters").exists());
}

#[test]
fn a_directory_that_is_in_use_is_not_restored_into() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()));
    vault.backup(&primary);
    let running = explained(vault.restore(primary.data_dir(), &["--immediate"]), 2);
    assert!(running.stderr.contains("a server runs in"), "{running:?}");
    let scratch = Scratch::new();
    let to = scratch.folder("full");
    fs::write(to.join("diary"), "dear").unwrap();
    let full = explained(vault.restore(&to, &["--immediate"]), 2);
    assert!(full.stderr.contains("is not empty"), "{full:?}");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    explained(vault.restore(&to.join("diary"), &["--immediate"]), 2);
    assert_eq!(fs::read(to.join("diary")).unwrap(), b"dear");
    assert_eq!(primary.sql("select 1"), "1");
}

#[test]
fn a_server_that_refuses_a_backup_is_quoted_with_what_to_do() {
    let vault = Vault::folder();
    let mut primary = vault.protect(Cluster::builder(Major::usual()));
    primary.sql(&format!(
        "create role good login replication password '{SECRET}'; create role weak login password '{SECRET}'"
    ));
    primary.set_hba(
        "local all,replication all trust\nhost all all all scram-sha-256\nhost replication all all scram-sha-256\n",
    );
    let over_tcp = |user: &str, password: &str| {
        let port = primary.port();
        format!("host=127.0.0.1 port={port} dbname=postgres user={user} password={password}")
    };
    let wrong = explained(
        vault.pitr(["backup", "-d", &over_tcp("good", &format!("{SECRET}-not"))]),
        5,
    );
    assert!(
        wrong.stderr.contains("rejected the password of user \"good\""),
        "{wrong:?}"
    );
    let weak = explained(vault.pitr(["backup", "-d", &over_tcp("weak", SECRET)]), 5);
    assert!(weak.stderr.contains("REPLICATION"), "{weak:?}");
    let nobody = format!("host=127.0.0.1 port={} user=good password={SECRET}", free_port());
    explained(vault.pitr(["backup", "-d", &nobody]), 5);

    primary.sql("alter system set max_wal_senders = 0");
    primary.restart(Stop::Fast);
    let none = explained(vault.pitr(["backup", "-d", &primary.conninfo()]), 5);
    assert!(none.stderr.contains("max_wal_senders"), "{none:?}");
    primary.sql("alter system reset max_wal_senders");

    // Nothing brings its WAL here: told within seconds, not after a backup of hours.
    primary.set("archive_command", "true");
    primary.restart(Stop::Fast);
    let begun = Instant::now();
    let elsewhere = explained(vault.pitr(["backup", "-d", &primary.conninfo()]), 3);
    assert!(elsewhere.stderr.contains("archive_command"), "{elsewhere:?}");
    primary.sql("alter system set archive_mode = off");
    primary.restart(Stop::Fast);
    let off = explained(vault.pitr(["backup", "-d", &primary.conninfo()]), 3);
    assert!(off.stderr.contains("archive_mode is off"), "{off:?}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    let backups = |cluster: &serde_json::Value| cluster["backups"].as_array().unwrap().len();
    assert_eq!(
        list["clusters"].as_array().unwrap().iter().map(backups).sum::<usize>(),
        0
    );
}

#[test]
fn a_bucket_or_a_key_that_is_missing_is_told_soon() {
    let s3 = S3Server::start();
    let with = |leave_out: &str, url: &str, code: i32| {
        let mut command = Program::Pitr.command();
        command.envs(
            s3.env()
                .into_iter()
                .filter(|(name, _)| !(name.contains("KEY") && name.ends_with(leave_out))),
        );
        command.args(["list", "--repo", url]);
        let begun = Instant::now();
        let answer = explained(Answer::of(&mut command), code);
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
        assert!(!answer.stderr.contains("pgp-test-secret"), "{answer:?}");
        answer
    };
    let bucket = with("NOTHING", "s3://no-such-bucket/r", 5);
    assert!(
        bucket.stderr.contains("no repository at s3://no-such-bucket/r"),
        "{bucket:?}"
    );
    for half in ["_KEY_ID", "_ACCESS_KEY"] {
        let key = with(half, &s3.url("r"), 2);
        assert!(key.stderr.contains("AWS_"), "{key:?}");
    }
    // Without any key a role of this machine may do; it is asked for, and not for ever.
    let none = with("", &s3.url("r"), 5);
    assert!(none.stderr.contains("AWS_SECRET_ACCESS_KEY"), "{none:?}");
}

/// An answer that must have this code, say why in one to three lines, and tell no secret.
#[track_caller]
fn explained(answer: Answer, code: i32) -> Answer {
    let answer = answer.with_code(code);
    let said: Vec<&str> = answer
        .stderr
        .lines()
        // Progress is no part of the error.
        .skip_while(|line| !line.contains(": error: "))
        .collect();
    assert!((1..=3).contains(&said.len()), "{}", answer.stderr);
    assert!(said.iter().all(|line| line.len() < 600), "{}", answer.stderr);
    assert!(!answer.stderr.contains("panicked"), "{}", answer.stderr);
    assert!(
        !(answer.stderr.clone() + &answer.stdout).contains(SECRET),
        "a secret is shown"
    );
    answer
}

/// A data directory as far as it tells its cluster.
fn data_directory(scratch: &Scratch, name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/15");
    let data = scratch.folder(name);
    fs::create_dir(data.join("global")).unwrap();
    fs::create_dir(data.join("pg_wal")).unwrap();
    fs::copy(golden.join("stopped.control"), data.join("global/pg_control")).unwrap();
    fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    ServerUser::get().give(&data);
    data
}

/// A repository in a folder, and a folder to put things into.
struct Desk {
    scratch: Scratch,
    repo: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let scratch = Scratch::new();
        let repo = scratch.join("repo");
        Program::Pitr
            .run(["init", "--repo", repo.to_str().unwrap()])
            .with_code(0);
        Self { scratch, repo }
    }

    fn pitr<const N: usize>(&self, arguments: [&str; N]) -> Answer {
        Answer::of(Program::Pitr.command().args(arguments).arg("--repo").arg(&self.repo))
    }

    fn archive(&self, path: &Path) -> Answer {
        Answer::of(&mut self.archiving(path))
    }

    fn archiving(&self, path: &Path) -> Command {
        let mut command = Program::Archive.command();
        command.arg(path).arg("--repo").arg(&self.repo);
        command
    }

    /// A segment as the repository has it, if it has.
    fn fetch(&self, system: SystemId, name: &str) -> Option<Vec<u8>> {
        let answer = self.fetched(system, name);
        (answer.code == 0).then(|| fs::read(self.scratch.join("RECOVERYXLOG")).unwrap())
    }

    fn fetched(&self, system: SystemId, name: &str) -> Answer {
        let mut command = Program::Restore.command();
        command
            .current_dir(self.scratch.path())
            .args([name, "RECOVERYXLOG", "--retry-for", "0s"])
            .args(["--cluster", &system.to_string(), "--repo"])
            .arg(&self.repo);
        Answer::of(&mut command)
    }

    fn object(&self, segment: &Segment) -> PathBuf {
        let folder = format!("clusters/{SYSTEM}/wal/00000001/00000000");
        self.repo.join(folder).join(format!("{}.zst", segment.name))
    }
}
