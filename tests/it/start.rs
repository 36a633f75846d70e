//! `restore --start`: one command from a repository to a server that has arrived at its target.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::cluster::{Cluster, Stop};
use crate::support::ledger;
use crate::support::process::{free_port, signal, wait_for};
use crate::support::program::{Answer, Program};
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;
use crate::watch::{Scene, ended, slow_restore};

/// A server that the program under test has started; dropping it stops it.
struct Side<'a> {
    major: &'static Major,
    directory: PathBuf,
    port: u16,
    scratch: &'a Scratch,
}

impl<'a> Side<'a> {
    fn of(scene: &'a Scene, name: &str) -> Self {
        Self {
            major: scene.primary.major(),
            directory: scene.scratch.join(name),
            port: free_port(),
            scratch: &scene.scratch,
        }
    }

    /// Flags that start it with its major's programs, at a port and a socket of its own.
    fn flags(&self) -> Vec<String> {
        let programs = self.major.program("");
        let options = format!("-c listen_addresses= -k '{}'", self.scratch.path().display());
        let port = self.port.to_string();
        let flags = [
            "--start",
            "--archive",
            "off",
            "--port",
            &port,
            "--bindir",
            programs.to_str().unwrap(),
        ];
        let flags = flags.map(str::to_owned).into_iter();
        flags.chain([format!("--server-options={options}")]).collect()
    }

    fn restore(&self, vault: &Vault, more: &[&str]) -> Answer {
        Answer::of(&mut self.command(vault, more))
    }

    fn command(&self, vault: &Vault, more: &[&str]) -> Command {
        let mut command = vault.command();
        command
            .env("PGUSER", "postgres")
            .args(["restore", "--to"])
            .arg(&self.directory);
        command.args(self.flags()).args(more);
        command
    }

    fn sql(&self, text: &str) -> String {
        let mut psql = ServerUser::get().command(self.major.program("psql"));
        psql.arg("-XAtqh").arg(self.scratch.path());
        psql.args([
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-p",
            &self.port.to_string(),
            "-c",
            text,
        ]);
        Answer::of(&mut psql).with_code(0).stdout.trim().to_owned()
    }

    fn rows(&self) -> usize {
        self.sql("select count(*) from ledger").parse().unwrap()
    }

    fn clear(&self) {
        self.stop();
        fs::remove_dir_all(&self.directory).unwrap();
    }

    fn stop(&self) {
        if self.directory.join("postmaster.pid").exists() {
            let mut stop = ServerUser::get().command(self.major.program("pg_ctl"));
            Answer::of(stop.args(["stop", "-s", "-m", "immediate", "-D"]).arg(&self.directory));
        }
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn a_server_that_restore_starts_ends_paused_at_its_target_with_exactly_its_rows() {
    for major in [Major::usual(), Major::newest()] {
        let scene = Scene::play(major);
        let side = Side::of(&scene, "side \"$HOME\" it's");
        let time = scene.target.to_rfc3339();
        let answer = side
            .restore(&scene.vault, &["--target-time", &time, "--json"])
            .with_code(0);
        let document = answer.json();
        let started = &document["started"];
        assert_eq!(started["state"], "paused", "{document}");
        assert_eq!(started["port"], side.port);
        assert_eq!(started["replayed_lsn"], document["reaches"]["lsn"]);
        assert_eq!(started["replayed_at"], document["reaches"]["last_commit_at"]);
        assert!(fs::metadata(started["log"].as_str().unwrap()).unwrap().len() > 0);
        assert!(answer.stderr.contains("starting the server"), "{}", answer.stderr);
        assert_eq!(side.rows(), scene.rows);
        assert_eq!(side.sql("select pg_is_in_recovery(), pg_is_wal_replay_paused()"), "t|t");
    }
}

#[test]
fn what_the_server_could_not_read_is_told_before_anything_is_restored() {
    if !rustix::process::geteuid().is_root() {
        return; // Nobody else gives files away.
    }
    let scene = Scene::play(Major::usual());
    let side = Side::of(&scene, "side");
    // As a receiver leaves it that root runs; the marker and the rest are everybody's.
    let folder = scene.scratch.join("root's own");
    let copy = Answer::of(Command::new("cp").arg("-a").arg(scene.vault.repo()).arg(&folder));
    copy.with_code(0);
    let as_root = |what: &str| {
        let mut command = Command::new(Program::Pitr.path());
        command
            .args([what, "--latest", "--repo"])
            .arg(&folder)
            .arg("--to")
            .arg(&side.directory);
        Answer::of(command.args(side.flags()).env("PGUSER", "postgres"))
    };
    let wal = objects(&folder, ".zst");
    for path in &wal {
        std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let answer = as_root("restore").with_code(2);
    assert!(
        answer.stderr.contains("can't read what its recovery needs"),
        "{}",
        answer.stderr
    );
    assert!(answer.stderr.contains("--run-as"), "{}", answer.stderr);
    assert!(!side.directory.exists());
    let plan = as_root("plan").with_code(0);
    assert!(plan.stdout.contains("restore would refuse this: \""), "{}", plan.stdout);
    for path in &wal {
        ServerUser::get().give(path);
    }
    as_root("restore").with_code(0);
}

/// The files below a folder whose names end like this.
fn objects(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(objects(&path, ending)),
            false => found.extend(path.to_str().unwrap().ends_with(ending).then_some(path)),
        }
    }
    found
}

#[test]
fn each_way_to_end_a_recovery_is_an_arrival() {
    let scene = Scene::play(Major::usual());
    let time = scene.target.to_rfc3339();
    let primary = scene.primary.conninfo();
    for (name, more, said) in [
        (
            "promoted",
            &["--target-time", &time, "--target-action", "promote"][..],
            "takes writes on timeline 2",
        ),
        (
            "stopped",
            &["--target-time", &time, "--target-action", "shutdown"],
            "stopped at its target",
        ),
        ("latest", &["--latest"], "takes writes on timeline 2"),
        ("immediate", &["--immediate"], "paused at its target"),
        ("standby", &["--standby", &primary], "replayed up to"),
    ] {
        let side = Side::of(&scene, name);
        let answer = side.restore(&scene.vault, more).with_code(0);
        assert!(answer.stdout.contains(said), "{name}: {answer:?}");
        assert_eq!(
            answer.stdout.contains("look:        psql -h"),
            name != "stopped",
            "{answer:?}"
        );
        match name {
            "promoted" => assert_eq!(side.rows(), scene.rows),
            "latest" | "standby" => side_has(&side, ledger::rows(&scene.primary).len()),
            _ => {}
        }
    }
}

fn side_has(side: &Side<'_>, rows: usize) {
    wait_for("every row is there", || (side.rows() == rows).then_some(()));
}

#[test]
fn programs_of_another_major_are_refused_before_anything_is_restored() {
    let scene = Scene::play(Major::usual());
    let side = Side::of(&scene, "side");
    let other = scene.scratch.join("other");
    fs::create_dir(&other).unwrap();
    for name in ["postgres", "pg_ctl"] {
        fs::write(other.join(name), "#!/bin/sh\necho 'postgres (PostgreSQL) 17.2'\n").unwrap();
        fs::set_permissions(other.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let refused = |flags: &[&str]| {
        let restore = [
            std::ffi::OsStr::new("restore"),
            "--to".as_ref(),
            side.directory.as_os_str(),
        ];
        let answer = scene
            .vault
            .pitr(restore.into_iter().chain(flags.iter().map(AsRef::as_ref)))
            .with_code(2);
        assert!(!side.directory.exists(), "{answer:?}");
        answer.stderr
    };
    let bindir = other.to_str().unwrap();
    let said = refused(&["--immediate", "--start", "--bindir", bindir]);
    assert!(
        said.contains("PostgreSQL 15") && said.contains("17") && said.contains(bindir),
        "{said}"
    );
    let nothing = scene.scratch.path().to_str().unwrap();
    assert!(refused(&["--immediate", "--start", "--bindir", nothing]).contains("holds no pg_ctl"));
    for flag in ["--port=5433", "--bindir=/x", "--run-as=postgres"] {
        assert!(refused(&["--immediate", flag]).contains("--start"), "{flag}");
    }
    refused(&["--immediate", "--start", "--port", "70000"]);
    // A plan says it, and is a plan all the same.
    let plan = ["plan", "--immediate", "--start", "--bindir", bindir, "--json"];
    let warnings = scene.vault.pitr(plan).with_code(0).json()["warnings"].to_string();
    assert!(
        warnings.contains("would refuse this") && warnings.contains("17"),
        "{warnings}"
    );
}

#[test]
fn a_server_that_does_not_come_up_is_told_with_the_end_of_its_log() {
    let scene = Scene::play(Major::usual());
    let side = Side::of(&scene, "side");
    side.restore(&scene.vault, &["--immediate"]).with_code(0);
    // Its socket is in the same folder, so that the port is taken.
    let mut taken = Side::of(&scene, "taken");
    taken.port = side.port;
    let answer = taken.restore(&scene.vault, &["--immediate"]).with_code(1);
    assert!(
        answer.stdout.is_empty() && answer.stderr.contains("FATAL"),
        "{answer:?}"
    );
    assert!(answer.stderr.contains("--port"), "{answer:?}");
    assert_eq!(side.sql("select pg_is_in_recovery()"), "t");
    taken.clear();
    let mut command = scene.vault.command();
    let flags = taken.flags();
    command.args(["restore", "--immediate", "--to"]).arg(&taken.directory);
    command
        .args(&flags[..flags.len() - 1])
        .args(["--server-options", "-c nonsense=1"]);
    assert!(Answer::of(&mut command).with_code(1).stderr.contains("nonsense"));
}

#[test]
fn who_ends_the_following_does_not_end_the_server() {
    let scene = Scene::play(Major::usual());
    let side = Side::of(&scene, "side");
    let slow = format!(
        "{} %f %p --repo {}",
        slow_restore(&scene.scratch).display(),
        scene.vault.repo().display()
    );
    let socket = scene.scratch.path().display();
    let options = format!("-c listen_addresses= -k {socket} -c 'restore_command={slow}'");
    let time = scene.target.to_rfc3339();
    let mut command = scene.vault.command();
    command
        .env("PGUSER", "postgres")
        .args(["restore", "--to"])
        .arg(&side.directory);
    let flags = side.flags();
    command.args(&flags[..flags.len() - 1]);
    command.args(["--target-time", &time, "--server-options", &options]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for("the server is there", || {
        side.directory.join("postmaster.pid").exists().then_some(())
    });
    std::thread::sleep(std::time::Duration::from_millis(600));
    signal(child.id(), Signal::INT);
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(
        stderr.contains("the server goes on") && stderr.contains("pgp-pitr watch"),
        "{stderr}"
    );
    // It is a process of its own, and what was begun can be followed by another.
    let pid = fs::read_to_string(side.directory.join("postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap();
    assert!(Path::new("/proc").join(pid).exists());
    let mut watch = Program::Pitr.command();
    let answer = Answer::of(watch.arg("watch").arg(&side.directory).args(["-U", "postgres"])).with_code(0);
    assert!(answer.stdout.contains("paused at its target"), "{answer:?}");
    assert_eq!(side.rows(), scene.rows);
}

#[test]
fn a_configuration_outside_the_data_directory_is_named_and_the_server_starts_where_it_was_restored() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let mut primary = vault.protect(Cluster::builder(Major::usual()));
    primary.stop(Stop::Fast);
    let conf = scratch.join("postgresql.conf");
    let text = fs::read_to_string(primary.data_dir().join("postgresql.conf")).unwrap();
    fs::remove_file(primary.data_dir().join("postgresql.conf")).unwrap();
    let data = primary.data_dir().display();
    fs::write(
        &conf,
        format!("{text}\ndata_directory = '{data}'\nexternal_pid_file = '/nowhere/pid'\n"),
    )
    .unwrap();
    primary.start_with("config_file", conf.to_str().unwrap());
    primary.start_with("external_pid_file", "");
    primary.start();
    vault.backup(&primary);
    let side = Side {
        major: primary.major(),
        directory: scratch.join("side"),
        port: free_port(),
        scratch: &scratch,
    };
    let answer = side.restore(&vault, &["--immediate"]).with_code(2);
    assert!(
        answer.stderr.contains("no postgresql.conf") && answer.stderr.contains("--server-config"),
        "{answer:?}"
    );
    assert!(side.directory.join("global/pg_control").exists() && !side.directory.join("postmaster.pid").exists());
    side.clear();
    side.restore(&vault, &["--immediate", "--server-config", conf.to_str().unwrap()])
        .with_code(0);
    assert_eq!(side.sql("show data_directory"), side.directory.display().to_string());
    assert_eq!(side.sql("show config_file"), conf.display().to_string());
    assert_eq!(
        primary.sql("show data_directory"),
        primary.data_dir().display().to_string()
    );
}

#[test]
fn root_gives_the_restored_files_to_whoever_runs_the_server() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let scene = Scene::play(Major::usual());
    let owner = fs::metadata(scene.scratch.path()).unwrap().uid();
    let side = Side::of(&scene, "new/side");
    // As packages write it.
    let hba = scene.scratch.join("pg_hba.conf");
    fs::write(&hba, "local all all peer\n").unwrap();
    ServerUser::get().give(&hba);
    let mut flags = side.flags();
    flags
        .last_mut()
        .unwrap()
        .push_str(&format!(" -c hba_file={}", hba.display()));
    let mut command = Command::new(Program::Pitr.path());
    command
        .args(["restore", "--immediate", "--json", "--to"])
        .arg(&side.directory);
    command
        .args(flags)
        .arg("--repo")
        .arg(scene.vault.repo())
        .env_remove("PGUSER");
    let document: Value = Answer::of(&mut command).with_code(0).json();
    let started = &document["started"];
    assert_eq!(
        (&started["state"], &started["by"]),
        (&"paused".into(), &"sql".into()),
        "{document}"
    );
    for path in [
        "",
        "..",
        "postgresql.conf",
        "base/1",
        "global/pg_control",
        "pgp-start.log",
    ] {
        assert_eq!(fs::metadata(side.directory.join(path)).unwrap().uid(), owner, "{path}");
    }
    let refused = |name: &str| {
        let mut command = Command::new(Program::Pitr.path());
        command
            .args(["restore", "--immediate", "--to"])
            .arg(scene.scratch.join("refused"));
        command
            .args(side.flags())
            .args(["--run-as", name, "--repo"])
            .arg(scene.vault.repo());
        let answer = Answer::of(&mut command).with_code(2);
        assert!(!scene.scratch.join("refused").exists());
        answer.stderr
    };
    assert!(refused("root").contains("does not run as root"));
    assert!(refused("no-such-account").contains("no-such-account"));
}

#[test]
fn whom_the_commits_of_a_restored_server_will_wait_for_is_told() {
    let vault = Vault::folder();
    let cluster = vault.protect(Cluster::builder(Major::usual()));
    cluster.set("synchronous_standby_names", "\"pgp-pitr\"");
    vault.backup(&cluster);
    let scratch = Scratch::new();
    let answer = vault
        .restore(&scratch.join("restored"), &["--immediate", "--json"])
        .with_code(0);
    let told = "commits on the restored server will wait for \"pgp-pitr\"";
    assert!(answer.stderr.contains(told), "{}", answer.stderr);
    let warnings = answer.json()["warnings"].clone();
    assert!(
        warnings
            .as_array()
            .unwrap()
            .iter()
            .any(|said| said.as_str().unwrap().starts_with(told))
    );
}
