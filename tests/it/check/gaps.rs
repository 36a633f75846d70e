//! WAL that is missing: `check` fails where no recovery gets past it, and says what is lost where one does.

use crate::support::cluster::Cluster;
use crate::support::ledger;
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
