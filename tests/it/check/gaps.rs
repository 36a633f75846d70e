//! WAL that is missing: `check` fails where no recovery gets past it, and says what is lost where one does.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::cluster::{Cluster, Stop};
use crate::support::ledger;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::vault::Vault;

use super::{field, statuses};

#[test]
fn a_gap_after_the_newest_backup_fails_until_there_is_a_backup_after_it() {
    let vault = Vault::folder();
    let builder = Cluster::builder(Major::usual()).initdb_args(["--wal-segsize=1"]);
    let primary = vault.protect(builder.conf("autovacuum", "off"));
    let first = vault.backup(&primary);
    ledger::write(&primary, 1, 4);
    primary.archive_now();
    let conninfo = primary.conninfo();
    let check = |code| vault.pitr(["check", "--json", "-d", &conninfo]).with_code(code);
    assert_eq!(statuses(&check(0))["wal_gaps"], "ok");
    let list = || vault.pitr(["list"]).with_code(0).stdout;
    assert!(!list().contains("take a base backup now"));
    let files: Vec<String> = (0..3)
        .map(|_| {
            ledger::write(&primary, 1, 4);
            primary.archive_now()
        })
        .collect();
    let window = || vault.pitr(["list", "--json"]).with_code(0).json()["clusters"][0].clone();
    vault.lose(&files[1]);

    let answer = check(3);
    assert_eq!(statuses(&answer)["wal_gaps"], "fails");
    let detail = field(&answer, "wal_gaps", "detail");
    let last = window()["windows"][0]["to"].as_str().unwrap().to_owned();
    assert!(detail.contains(first["id"].as_str().unwrap()), "{detail}");
    assert!(detail.contains(&last), "{detail}");
    assert!(field(&answer, "wal_gaps", "fix").starts_with("pgp-pitr backup"));
    assert!(answer.stderr.contains("pgp-pitr backup"), "{}", answer.stderr);
    assert!(list().contains("take a base backup now"), "{}", list());
    assert_eq!(window()["gaps_after_newest_backup"].as_array().unwrap().len(), 1);

    let second = vault.backup(&primary);
    let answer = check(0);
    assert_eq!(statuses(&answer)["wal_gaps"], "warning");
    let detail = field(&answer, "wal_gaps", "detail");
    let opens = second["stopped_at"].as_str().unwrap();
    assert!(
        detail.contains(&format!("no moment between {last} and {opens}")),
        "{detail}"
    );
    assert!(!list().contains("take a base backup now"), "{}", list());
    // A second fault, and it is no longer the gap alone that decides the code.
    vault.lose(&primary.archive_now());
    primary.archive_now();
    primary.set("archive_command", "false");
    check(4);
}

#[test]
fn wal_that_does_not_follow_on_what_is_before_fails_until_there_is_a_backup_after_it() {
    let vault = Vault::folder();
    let builder = Cluster::builder(Major::usual()).initdb_args(["--wal-segsize=1"]);
    let mut server = vault.protect(builder.conf("autovacuum", "off"));
    vault.backup(&server);
    server.archive_now();
    server.stop(Stop::Fast);
    let image = server.data_dir().with_extension("image");
    let copy = |from: &Path, to: &Path| drop(Answer::of(Command::new("cp").arg("-a").arg(from).arg(to)).with_code(0));
    copy(server.data_dir(), &image);
    server.start();
    ledger::write(&server, 1, 4);
    server.archive_now();
    let set_back = |server: &mut Cluster| {
        server.stop(Stop::Fast);
        fs::remove_dir_all(server.data_dir()).unwrap();
        copy(&image, server.data_dir());
        server.start();
        server.set("archive_command", "/bin/true");
    };
    let command = server.sql("show archive_command");
    set_back(&mut server);
    let conninfo = server.conninfo();
    let check = |code| {
        vault
            .pitr(["check", "--json", "--wal-timeout", "5s", "-d", &conninfo])
            .with_code(code)
    };
    assert_eq!(statuses(&check(4))["server_position"], "fails");

    // The same segment of another history goes elsewhere; what follows comes here.
    set_back(&mut server);
    fs::remove_dir_all(&image).unwrap();
    ledger::write(&server, 1, 6);
    server.archive_now();
    server.set("archive_command", &command);
    ledger::write(&server, 1, 4);
    server.archive_now();

    let detail = field(&check(3), "wal_gaps", "detail");
    assert!(detail.contains("does not follow on what is before"), "{detail}");
    vault.backup(&server);
    check(0);
}
