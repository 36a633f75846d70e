//! `pgp-pitr check` against real servers, folders and an S3 server: what is fit passes, what isn't is
//! named, with a fix that mends it.

mod gaps;
mod slots;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::cluster::{Builder, Cluster, Stop};
use crate::support::process::free_port;
use crate::support::program::{Answer, Program};
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};

/// A folder that is a repository.
fn repository(scratch: &Scratch, name: &str) -> PathBuf {
    let folder = scratch.join(name);
    Program::Pitr
        .run(["init".as_ref(), "--repo".as_ref(), folder.as_os_str()])
        .with_code(0);
    folder
}

/// The command that archives into a repository; for paths without blanks.
fn archive_into(repository: &Path) -> String {
    format!(
        "{} %p --repo {}",
        Program::Archive.path().display(),
        repository.display()
    )
}

/// A cluster with nothing to find fault with, but for its archiving.
fn sound(major: &'static Major) -> Builder {
    Cluster::builder(major)
        .initdb_args(["--data-checksums"])
        .conf("archive_timeout", "1h")
        .conf("archive_mode", "on")
}

/// Runs `check` on a server and a repository.
fn check(server: &str, repository: &Path, more: &[&str]) -> Answer {
    let repository = repository.to_str().expect("test paths are text");
    Program::Pitr.run(["check", "-d", server, "--repo", repository].iter().chain(more))
}

/// What each check came to, by name.
#[track_caller]
fn statuses(answer: &Answer) -> BTreeMap<String, String> {
    let text = |check: &Value, field: &str| check[field].as_str().expect("a text").to_owned();
    let json = answer.json();
    let checks = json["checks"].as_array().expect("a list");
    checks
        .iter()
        .map(|check| {
            let (name, status) = (text(check, "name"), text(check, "status"));
            assert_eq!(check["fix"].is_null(), status == "ok", "{check}");
            (name, status)
        })
        .collect()
}

/// The names of all checks that are not ok, with what they came to.
#[track_caller]
fn faults(answer: &Answer) -> Vec<(String, String)> {
    statuses(answer)
        .into_iter()
        .filter(|(_, status)| status != "ok")
        .collect()
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs
        .map(|(name, status)| (name.to_owned(), status.to_owned()))
        .to_vec()
}

/// One field of the check with this name.
#[track_caller]
fn field(answer: &Answer, name: &str, field: &str) -> String {
    let json = answer.json();
    let checks = json["checks"].as_array().expect("a list");
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no check {name} in {json}"));
    check[field].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_sound_server_of_each_major_passes_and_its_segment_arrives() {
    let scratch = Scratch::new();
    let folder = repository(&scratch, "repo");
    for (major, megabytes) in Major::all().iter().zip([16, 1, 64, 4].into_iter().cycle()) {
        let cluster = sound(major)
            .initdb_args([format!("--wal-segsize={megabytes}")])
            .conf("archive_command", archive_into(&folder))
            .build();
        // The second time the repository knows the cluster, and nothing was written in between.
        for _ in 0..2 {
            let answer = check(&cluster.conninfo(), &folder, &["--json"]).with_code(0);
            assert_eq!(answer.json()["ok"], true);
            assert_eq!(
                faults(&answer),
                pairs([("newest_backup", "warning")]),
                "{}",
                answer.stdout
            );
            assert_eq!(answer.stderr, "");
            assert!(field(&answer, "version", "detail").contains(&major.number().to_string()));
            assert!(field(&answer, "round_trip", "detail").contains("read back whole"));
            let archiver = field(&answer, "archiver", "detail");
            assert!(archiver.ends_with("; nothing waits"), "{archiver}");
            assert!(statuses(&answer).contains_key("wal_disk"));
        }
    }
}

#[test]
fn the_fix_for_a_server_that_does_not_archive_mends_it_whatever_its_paths() {
    let scratch = Scratch::new();
    let folder = repository(&scratch, "it's a \"100%p\" repo");
    let mut cluster = sound(Major::usual()).conf("archive_mode", "off").build();
    let answer = check(&cluster.conninfo(), &folder, &["--json"]).with_code(4);
    assert_eq!(
        faults(&answer),
        pairs([
            ("archive_mode", "fails"),
            ("newest_backup", "warning"),
            ("round_trip", "fails")
        ])
    );
    assert!(answer.stderr.contains("2 of "), "{}", answer.stderr);

    let fix = field(&answer, "archive_mode", "fix");
    let lines: Vec<&str> = fix.lines().skip(1).collect();
    assert_eq!(lines.len(), 2, "{fix}");
    cluster.append("postgresql.conf", &format!("{}\n", lines.join("\n")));
    cluster.restart(Stop::Fast);
    check(&cluster.conninfo(), &folder, &["--json"]).with_code(0);
}

#[test]
fn a_command_that_brings_nothing_here_fails_whether_it_says_yes_or_no() {
    let scratch = Scratch::new();
    let (folder, other) = (repository(&scratch, "repo"), repository(&scratch, "other"));
    let cluster = sound(Major::usual()).conf("archive_command", "true").build();
    let names = |answer: &Answer| -> Vec<String> {
        let failed = faults(answer).into_iter().filter(|(_, status)| status == "fails");
        failed.map(|(name, _)| name).collect()
    };

    let answer = check(&cluster.conninfo(), &folder, &["--json"]).with_code(4);
    assert_eq!(names(&answer), ["archive_command", "round_trip"]);
    let detail = field(&answer, "round_trip", "detail");
    assert!(detail.contains("does not bring WAL here"), "{detail}");

    cluster.set("archive_command", &archive_into(&other));
    let answer = check(&cluster.conninfo(), &folder, &["--json"]).with_code(4);
    assert_eq!(names(&answer), ["round_trip"]);

    cluster.set("archive_command", "exec /bin/false");
    let answer = check(&cluster.conninfo(), &folder, &["--json"]).with_code(4);
    assert_eq!(names(&answer), ["archiver", "round_trip"]);
    let detail = field(&answer, "archiver", "detail");
    assert!(detail.starts_with("failing: 0000000100000000000000"), "{detail}");
    assert!(detail.contains("1 segment (16.0 MiB) waits"), "{detail}");

    cluster.set("archive_command", "sleep 60 && false");
    let answer = check(&cluster.conninfo(), &folder, &["--json", "--wal-timeout", "300ms"]).with_code(4);
    let detail = field(&answer, "round_trip", "detail");
    assert!(detail.ends_with("is not in the repository after 300ms"), "{detail}");
}

#[test]
fn roles_slots_and_leftovers_are_looked_at() {
    let scratch = Scratch::new();
    let folder = repository(&scratch, "repo");
    let cluster = sound(Major::usual())
        .conf("archive_command", archive_into(&folder))
        .build();
    cluster.sql(
        "create role plain login; create role backup login replication password 'hunter2';
         select pg_create_physical_replication_slot('left_behind', true)",
    );
    let as_role = |role: &str| {
        cluster
            .conninfo()
            .replace("user=postgres dbname=postgres", &format!("user={role}"))
    };

    // Neither role has a database of its own name.
    let answer = check(&as_role("plain"), &folder, &["--json"]).with_code(4);
    assert_eq!(
        faults(&answer),
        pairs([
            ("config_files", "warning"),
            ("newest_backup", "warning"),
            ("replication_connection", "fails"),
            ("role", "fails"),
            ("round_trip", "warning"),
            ("slot:left_behind", "warning"),
        ])
    );
    assert_eq!(field(&answer, "role", "fix"), "ALTER ROLE \"plain\" REPLICATION");
    let detail = field(&answer, "slot:left_behind", "detail");
    assert!(detail.contains("with no limit but the disk"), "{detail}");

    cluster.archive_now();
    let with_password = format!("{} password=hunter2", as_role("backup"));
    let answer = check(&with_password, &folder, &["--json", "--slot", "left_behind"]).with_code(0);
    let detail = field(&answer, "round_trip", "detail");
    assert!(detail.ends_with("is here and whole"), "{detail}");
    let detail = field(&answer, "archiver", "detail");
    assert!(detail.contains("nothing waits"), "{detail}");
    let settings = answer.json()["settings"].clone();
    let row = |name: &str| {
        let mut rows = settings.as_array().expect("a list").iter();
        rows.find(|row| row["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(row("password")["value"], "***");
    assert_eq!(row("user")["value"], "backup");
    assert_eq!(row("repo")["origin"], "flag");
    assert_eq!(
        (&row("wal_timeout")["value"], &row("wal_timeout")["origin"]),
        (&"1m".into(), &"default".into())
    );

    let text = check(&with_password, &folder, &["--slot", "nowhere"]).with_code(4);
    assert!(text.stdout.contains("fails    slot:nowhere "), "{}", text.stdout);
    assert!(text.stdout.contains("settings in use:"), "{}", text.stdout);
    for answer in [&answer, &text] {
        assert!(!answer.stdout.contains("hunter2") && !answer.stderr.contains("hunter2"));
    }

    cluster.set("max_slot_wal_keep_size", "160MB");
    let detail = field(
        &check(&cluster.conninfo(), &folder, &["--json"]),
        "slot:left_behind",
        "detail",
    );
    assert!(
        detail.contains("MiB of WAL, 1") && detail.contains("MiB left"),
        "{detail}"
    );

    cluster.set_hba("local all all trust\n");
    let stale = folder.join("clusters/half#17");
    File::create(&stale)
        .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)))
        .unwrap();
    let answer = check(&cluster.conninfo(), &folder, &["--json"]).with_code(4);
    let fix = field(&answer, "replication_connection", "fix");
    assert!(fix.contains("add a line for replication"), "{fix}");
    assert!(field(&answer, "leftovers", "detail").starts_with("swept 1 unfinished file"));
    assert!(!stale.exists());
}

#[test]
fn what_is_out_of_reach_ends_with_5_and_the_rest_is_still_checked() {
    let scratch = Scratch::new();
    let folder = repository(&scratch, "repo");
    let nobody = format!("host=127.0.0.1 port={} user=postgres", free_port());
    let answer = check(&nobody, &folder, &["--json"]).with_code(5);
    assert_eq!(faults(&answer), pairs([("server", "fails")]));
    assert!(statuses(&answer).contains_key("repository_write"));
    assert!(
        answer.stderr.contains("cannot connect to 127.0.0.1"),
        "{}",
        answer.stderr
    );

    let cluster = sound(Major::usual())
        .conf("archive_command", archive_into(&folder))
        .build();
    for place in [scratch.folder("no-marker"), scratch.join("not-there")] {
        let answer = check(&cluster.conninfo(), &place, &["--json"]).with_code(5);
        assert_eq!(faults(&answer), pairs([("repository", "fails")]));
        assert!(statuses(&answer).contains_key("wal_level"));
        assert!(answer.stderr.contains("no repository at"), "{}", answer.stderr);
    }
    check(&cluster.conninfo(), &folder, &["--slot", "Not A Slot"]).with_code(2);
}

#[test]
fn a_standby_is_checked_as_far_as_a_standby_can_be() {
    let scratch = Scratch::new();
    let folder = repository(&scratch, "repo");
    let primary = sound(Major::newest())
        .conf("archive_command", archive_into(&folder))
        .build();
    let copy = scratch.join("copy");
    Answer::of(
        primary
            .client("pg_basebackup")
            .args(["-R", "-c", "fast", "-D"])
            .arg(&copy),
    )
    .with_code(0);
    let mut standby = Cluster::on_directory(primary.major(), &copy);
    standby.start();
    let answer = check(&standby.conninfo(), &folder, &["--json"]).with_code(0);
    assert_eq!(
        faults(&answer),
        pairs([("newest_backup", "warning"), ("round_trip", "warning")])
    );
    assert!(field(&answer, "server", "detail").starts_with("a standby at "));
}

#[test]
fn on_s3_all_is_checked_and_no_secret_is_shown() {
    let mut s3 = S3Server::start();
    let url = s3.url("pg");
    let scratch = Scratch::new();
    let env: BTreeMap<_, _> = s3.env().into();
    let config = scratch.join("pgp.toml");
    let text = format!(
        "repo = '{url}'\n[s3]\nendpoint_url = '{}'\naccess_key_id = '{}'\nsecret_access_key = '{}'\n",
        env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
    );
    fs::write(&config, text).unwrap();
    ServerUser::get().give(&config);
    let config = config.to_str().unwrap();
    Program::Pitr.run(["init", "--config", config]).with_code(0);

    let archive = format!("{} %p --config {config}", Program::Archive.path().display());
    let cluster = sound(Major::usual()).conf("archive_command", archive).build();
    let conninfo = cluster.conninfo();
    let run = |arguments: &[&str], env: &BTreeMap<&str, String>| {
        let mut command = Program::Pitr.command();
        Answer::of(
            command
                .args(["check", "--json", "-d", &conninfo])
                .args(arguments)
                .envs(env),
        )
    };
    let by_file = run(&["--config", config], &BTreeMap::new()).with_code(0);
    assert_eq!(faults(&by_file), pairs([("newest_backup", "warning")]));
    let by_environment = run(&["--repo", &url], &env).with_code(0);
    assert_eq!(
        faults(&by_environment),
        pairs([("credentials", "warning"), ("newest_backup", "warning")])
    );
    for (answer, origin) in [(&by_file, config), (&by_environment, "AWS_SECRET_ACCESS_KEY")] {
        assert!(!answer.stdout.contains(&env["AWS_SECRET_ACCESS_KEY"]));
        let row = serde_json::json!({"name": "s3.secret_access_key", "value": "***", "origin": origin});
        assert!(
            answer.json()["settings"].as_array().unwrap().contains(&row),
            "{}",
            answer.stdout
        );
    }

    s3.kill9();
    let answer = run(&["--config", config], &BTreeMap::new()).with_code(5);
    assert_eq!(faults(&answer), pairs([("repository", "fails")]));
}
