//! Guards that a black-box review asked for: what must not be lost, shown or overlooked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::cluster::{Cluster, Recovered};
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

#[test]
fn a_transaction_prepared_after_the_last_commit_is_not_lost_at_the_end_of_the_wal() {
    let vault = Vault::folder();
    let builder = Cluster::builder(Major::usual());
    let primary = vault.protect(builder.conf("autovacuum", "off").conf("max_prepared_transactions", "5"));
    primary.sql("create table t (n int)");
    vault.backup(&primary);
    primary.sql("insert into t values (1)");
    primary.sql("begin; insert into t values (2); prepare transaction 'kept'");
    primary.archive_now();
    // The end of the WAL, where PostgreSQL itself would call an LSN not reached.
    let latest = vault.pitr(["plan", "--latest", "--json"]).with_code(0).json();
    let end = latest["reaches"]["lsn"].as_str().unwrap();
    let folder = Scratch::new();
    let to = folder.join("here");
    let arguments = ["--target-lsn", end, "--target-action", "promote", "--archive", "off"];
    vault.restore(&to, &arguments).with_code(0);
    let mut server = Cluster::on_directory(primary.major(), to);
    assert_eq!(server.recover(), Recovered::Open, "{}", server.log());
    assert_eq!(server.sql("select gid from pg_prepared_xacts"), "kept");
}

#[test]
fn a_damaged_segment_on_the_way_is_told_by_the_plan() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()));
    vault.backup(&primary);
    let xid = primary.sql("create table t (n int); select pg_current_xact_id()");
    primary.archive_now();
    let segment = newest(&vault, ".zst");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    // Many bytes: one byte in a hundred of a compressed file can change and still give the same content.
    bytes[middle - 32..middle + 32].iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(&segment, bytes).unwrap();
    let name = segment.file_name().unwrap().to_str().unwrap();
    for target in [vec!["--latest"], vec!["--target-xid", xid.as_str()]] {
        let answer = vault.pitr(["plan"].into_iter().chain(target)).with_code(4);
        assert!(answer.stderr.contains(name), "{}", answer.stderr);
    }
}

#[test]
fn a_damaged_record_of_a_backup_is_damage_and_not_absence() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()));
    let backup = vault.backup(&primary);
    let id = backup["id"].as_str().unwrap();
    fs::write(newest(&vault, "backup.json"), "garbage").unwrap();
    vault.pitr(["plan", "--latest"]).with_code(4);
    vault.pitr(["plan", "--latest", "--backup", id]).with_code(4);
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    assert_eq!(list["clusters"][0]["backups"][0]["state"], "damaged");
    assert_eq!(list["clusters"][0]["backups"][0]["id"], id);
    fs::remove_file(newest(&vault, "cluster.json")).unwrap();
    vault.pitr(["list"]).with_code(4);
    vault.pitr(["plan", "--latest"]).with_code(4);
}

#[test]
fn nothing_in_a_repository_can_be_read_by_everybody() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()));
    vault.backup(&primary);
    for path in below(Path::new(vault.repo())) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{} has mode {mode:o}", path.display());
    }
}

#[test]
fn a_password_for_the_primary_is_not_shown() {
    let vault = Vault::folder();
    let primary = vault.protect(Cluster::builder(Major::usual()));
    vault.backup(&primary);
    let folder = Scratch::new();
    let to = folder.join("standby");
    let conninfo = "host=db1 user=replicator password=HUSH";
    let answer = vault.restore(&to, &["--standby", conninfo, "--json"]).with_code(0);
    assert!(
        !answer.stdout.contains("HUSH") && !answer.stderr.contains("HUSH"),
        "{answer:?}"
    );
    let settings = fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
    assert!(
        settings.contains("password=HUSH"),
        "the server was not told: {settings}"
    );
    assert!(to.join("standby.signal").exists());
}

/// The last of the repository's files, by path, whose name ends like this.
fn newest(vault: &Vault, end: &str) -> PathBuf {
    let wal = |path: &PathBuf| end != ".zst" || path.components().any(|part| part.as_os_str() == "wal");
    let matches = |path: &PathBuf| path.is_file() && path.to_string_lossy().ends_with(end) && wal(path);
    let mut found: Vec<PathBuf> = below(Path::new(vault.repo())).into_iter().filter(matches).collect();
    found.retain(|path| !path.to_string_lossy().contains(".backup."));
    found.sort();
    found.pop().unwrap()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_path_buf()];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(below(&path));
        } else {
            all.push(path);
        }
    }
    all
}
