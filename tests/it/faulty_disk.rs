//! Our binaries on a disk that breaks: at each call in turn, when the process is killed, when it is full.

mod backups;
mod spool;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pgp_pitr::env::Env;
use pgp_pitr::repo::{self, Fetched};
use pgp_pitr::store::{self, RepoUrl, S3Settings};

use crate::support::chance::Chance;
use crate::support::disk::SmallDisk;
use crate::support::made_up::{self, SYSTEM, Segment};
use crate::support::program::{Answer, Program};
use crate::support::strace::{self, Break, Broken};
use crate::support::user::Scratch;

#[test]
fn what_pgp_archive_acknowledged_is_there_wherever_the_disk_breaks() {
    let bench = Bench::new();
    let repo = bench.new_repo();
    let trace = strace::watch(&bench.archive(&repo), &repo);
    assert_eq!(trace.answer.code, 0);
    // The order in which it must reach the disk: content, name, folder.
    let content = trace.last(&["write(", ".zst#"]);
    let synced = trace.last(&["fsync(", ".zst#"]);
    let named = trace.last(&["renameat2(", ".zst#"]);
    let folder = trace.last(&["fsync(", "/00000000>"]);
    assert!(
        content < synced && synced < named && named < folder,
        "{:#?}",
        trace.lines
    );

    let mut felt = 0;
    for call in &trace.calls {
        for how in call.breaks() {
            let about = format!("{call:?} {how:?}");
            let repo = bench.new_repo();
            let Broken { answer, disk_failed } = strace::broken(&bench.archive(&repo), call, how);
            let found = bench.stored(&repo);
            assert!(
                found.as_ref().is_none_or(|found| *found == bench.segment.bytes),
                "{about}"
            );
            if answer.code == 0 {
                assert!(found.is_some(), "{about}: acknowledged, and not there");
                assert!(!(disk_failed && matters(call.name)), "{about}: an error was swallowed");
            } else {
                felt += 1;
                let expected = if how == Break::Kill { 137..=137 } else { 1..=125 };
                assert!(expected.contains(&answer.code), "{about}: {answer:?}");
            }
            Answer::of(&mut bench.archive(&repo)).with_code(0);
            assert_eq!(bench.stored(&repo).as_ref(), Some(&bench.segment.bytes), "{about}");
            fs::remove_dir_all(repo).unwrap();
        }
    }
    assert!(
        felt > trace.calls.len(),
        "{felt} of {} faults were felt",
        trace.calls.len()
    );
}

#[test]
fn what_pgp_restore_hands_out_is_whole_wherever_the_disk_breaks() {
    let bench = Bench::new();
    let repo = bench.new_repo();
    Answer::of(&mut bench.archive(&repo)).with_code(0);
    let data = bench.scratch.folder("data");
    fs::write(data.join("recovery.signal"), "").unwrap();
    let path = data.join("RECOVERYXLOG");
    let trace = strace::watch(&bench.fetch(&repo, &data), &data);
    assert_eq!(trace.answer.code, 0);
    for call in &trace.calls {
        for how in call.breaks() {
            let about = format!("{call:?} {how:?}");
            let _ = fs::remove_file(&path);
            let Broken { answer, disk_failed } = strace::broken(&bench.fetch(&repo, &data), call, how);
            let found = fs::read(&path).ok();
            assert!(
                found.as_ref().is_none_or(|found| *found == bench.segment.bytes),
                "{about}"
            );
            match answer.code {
                0 => assert!(found.is_some() && !(disk_failed && matters(call.name)), "{about}"),
                137 => assert_eq!(how, Break::Kill, "{about}"),
                code => assert!(code > 200, "{about}: {code} ends recovery early"),
            }
            Answer::of(&mut bench.fetch(&repo, &data)).with_code(0);
            assert!(fs::read(&path).unwrap() == bench.segment.bytes, "{about}");
            let names = fs::read_dir(&data).unwrap().count();
            assert_eq!(names, 2, "{about}: something was left in the data directory");
        }
    }
}

#[test]
fn pgp_archive_killed_at_any_moment_leaves_the_segment_whole_or_absent() {
    let bench = Bench::new();
    let chance = Chance::new();
    let once = |_| {
        let repo = bench.new_repo();
        let begun = Instant::now();
        Answer::of(&mut bench.archive(&repo)).with_code(0);
        begun.elapsed().as_micros()
    };
    // The quickest: on a busy machine others are kept waiting, and would be done before they are killed.
    let mut usual = usize::try_from((0..5).map(once).min().unwrap()).unwrap();
    let mut killed = 0;
    for _ in 0..40 {
        let repo = bench.new_repo();
        let moment = Duration::from_micros(chance.below(usual) as u64);
        let code = kill_after(&mut bench.archive(&repo), moment);
        let found = bench.stored(&repo);
        assert!(
            found.as_ref().is_none_or(|found| *found == bench.segment.bytes),
            "{moment:?}"
        );
        assert!(
            code != Some(0) || found.is_some(),
            "acknowledged and lost after {moment:?}"
        );
        match code {
            None => killed += 1,
            Some(_) => usual = usual / 4 * 3 + 1,
        }
        Answer::of(&mut bench.archive(&repo)).with_code(0);
        assert_eq!(bench.stored(&repo).as_ref(), Some(&bench.segment.bytes), "{moment:?}");
    }
    assert!(killed > 2, "only {killed} were killed");
}

#[test]
fn a_full_repository_refuses_a_segment_and_keeps_nothing_half() {
    let disk = SmallDisk::new(6 << 20);
    let bench = Bench::new();
    let repo = bench.repo_at(disk.path().join("repo"));
    for leave in [0, 4096, 16 << 10, 64 << 10, 256 << 10, 400 << 10] {
        disk.fill(leave);
        let answer = Answer::of(&mut bench.archive(&repo));
        assert!((1..=125).contains(&answer.code), "{leave}: {answer:?}");
        assert!(answer.stderr.contains("No space left on device"), "{answer:?}");
        assert!(answer.stderr.contains("room"), "no next step: {answer:?}");
        assert!((1..=3).contains(&answer.stderr.lines().count()), "{answer:?}");
        assert_eq!(bench.stored(&repo), None);
        assert_eq!(staged_below(&repo), Vec::<PathBuf>::new(), "something half was left");
        disk.unfill();
    }
    Answer::of(&mut bench.archive(&repo)).with_code(0);
    assert_eq!(bench.stored(&repo).as_ref(), Some(&bench.segment.bytes));
}

#[test]
fn a_full_disk_under_pg_wal_never_ends_a_recovery() {
    let disk = SmallDisk::new(4 << 20);
    let bench = Bench::new();
    let repo = bench.new_repo();
    Answer::of(&mut bench.archive(&repo)).with_code(0);
    fs::write(disk.path().join("recovery.signal"), "").unwrap();
    for leave in [0, 4096, 512 << 10, 1000 << 10] {
        disk.fill(leave);
        let answer = Answer::of(&mut bench.fetch(&repo, disk.path()));
        assert!(answer.code > 200, "{leave}: {answer:?}");
        assert!(answer.stderr.contains("No space left on device"), "{answer:?}");
        assert!((1..=3).contains(&answer.stderr.lines().count()), "{answer:?}");
        assert!(!disk.path().join("RECOVERYXLOG").exists());
        disk.unfill();
    }
    // A standby asks again: above 125 it would stop.
    fs::rename(disk.path().join("recovery.signal"), disk.path().join("standby.signal")).unwrap();
    disk.fill(0);
    let answer = Answer::of(&mut bench.fetch(&repo, disk.path()));
    assert!((1..=125).contains(&answer.code), "{answer:?}");
    disk.unfill();
    Answer::of(&mut bench.fetch(&repo, disk.path())).with_code(0);
    assert!(fs::read(disk.path().join("RECOVERYXLOG")).unwrap() == bench.segment.bytes);
}

/// Whether success after this would be a lie. Folders may be there already, and leftovers may stay; what
/// becomes of them is looked at.
fn matters(call: &str) -> bool {
    ["write", "fsync", "syncfs", "rename", "renameat2"].contains(&call)
}

/// A segment, and repositories to break on the way.
struct Bench {
    scratch: Scratch,
    segment: Segment,
    path: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let scratch = Scratch::new();
        let segment = made_up::segment(3, 1).readable();
        let path = segment.put_into(scratch.path());
        Self { scratch, segment, path }
    }

    fn new_repo(&self) -> PathBuf {
        let names = fs::read_dir(self.scratch.path()).unwrap().count();
        self.repo_at(self.scratch.join(format!("repo-{names}")))
    }

    fn repo_at(&self, repo: PathBuf) -> PathBuf {
        Program::Pitr
            .run(["init", "--repo", repo.to_str().unwrap()])
            .with_code(0);
        repo
    }

    fn archive(&self, repo: &Path) -> Command {
        let mut command = Program::Archive.command();
        command.arg(&self.path).arg("--repo").arg(repo);
        command
    }

    /// As a server that recovers in `data`.
    fn fetch(&self, repo: &Path, data: &Path) -> Command {
        let mut command = Program::Restore.command();
        command
            .current_dir(data)
            .args([self.segment.name.as_str(), "RECOVERYXLOG", "--retry-for", "0s"])
            .args(["--cluster", &SYSTEM.to_string(), "--repo"])
            .arg(repo);
        command
    }

    /// The segment's content in the repository, if it is there. A torn object is a panic.
    fn stored(&self, repo: &Path) -> Option<Vec<u8>> {
        let env = Arc::new(Env::of_process());
        let url: RepoUrl = repo.to_str().unwrap().parse().unwrap();
        let store = store::open(&url, &S3Settings::default(), &env).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut content = Vec::new();
        let fetched = repo::fetch(&store, SYSTEM, self.segment.name.parse().unwrap(), &mut content);
        (runtime.block_on(fetched).unwrap() == Fetched::Whole).then_some(content)
    }
}

/// Starts a command and kills it after a while; its exit code, if it was not killed.
fn kill_after(command: &mut Command, moment: Duration) -> Option<i32> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap().code()
}

/// Files in the making that were left somewhere below a folder.
fn staged_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(staged_below(&path));
        } else if path.file_name().unwrap().to_str().unwrap().contains('#') {
            found.push(path);
        }
    }
    found
}
