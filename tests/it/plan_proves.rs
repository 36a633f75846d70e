//! Plans that prove: what a recovery would trip over is found, named and settled before a byte is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pgp_pitr::codec::Digest;
use pgp_pitr::repo::{IDENTITY_FRAME, Identity};
use serde_json::Value;

use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::ledger;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

fn majors() -> Vec<&'static Major> {
    Major::all().iter().collect()
}

pub(crate) fn builder(major: &'static Major) -> crate::support::cluster::Builder {
    Cluster::builder(major).conf("autovacuum", "off")
}

pub(crate) fn plan(vault: &Vault, arguments: &[&str]) -> Answer {
    vault.pitr([&["plan"][..], arguments].concat())
}

/// Restores and recovers up to a pause; the rows of the ledger.
#[track_caller]
fn restored(vault: &Vault, major: &'static Major, arguments: &[&str]) -> BTreeSet<i64> {
    let scratch = Scratch::new();
    let to = scratch.join("restored");
    let arguments = [arguments, &["--archive", "off"]].concat();
    vault.restore(&to, &arguments).with_code(0);
    let mut server = Cluster::on_directory(major, &to);
    assert_eq!(server.recover(), Recovered::Paused, "{arguments:?}\n{}", server.log());
    ledger::rows(&server)
}

/// The objects of a repository that end so, by name.
pub(crate) fn objects(vault: &Vault, end: &str) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![PathBuf::from(vault.repo())], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The objects of whole segments, oldest first.
pub(crate) fn segments(vault: &Vault) -> Vec<PathBuf> {
    let mut found = objects(vault, ".zst");
    let name = |path: &PathBuf| path.file_name().unwrap().len() == "000000010000000000000001.zst".len();
    found.retain(|path| path.to_str().unwrap().contains("/wal/") && name(path));
    found
}

pub(crate) fn segment_name(path: &Path) -> &str {
    path.file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .strip_suffix(".zst")
        .unwrap()
}

pub(crate) fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// The flags of the nearest moment on one side, as a refusal in JSON names it.
pub(crate) fn nearest(refused: &Value, side: &str) -> Vec<String> {
    let flags = refused[side]["flags"].as_array().unwrap_or_else(|| panic!("{refused}"));
    flags.iter().map(|flag| flag.as_str().unwrap().to_owned()).collect()
}

/// Five segments with commits in each but the last, behind a backup.
pub(crate) fn some_wal(vault: &Vault, major: &'static Major) -> Cluster {
    let primary = vault.protect(builder(major));
    ledger::write(&primary, 1, 1);
    vault.backup(&primary);
    for _ in 0..4 {
        ledger::write(&primary, 1, 5);
        primary.archive_now();
    }
    primary
}

#[test]
fn damage_on_the_way_is_found_before_a_byte_is_written_and_what_comes_before_it_can_be_had() {
    for major in majors() {
        let vault = Vault::folder();
        let scratch = Scratch::new();
        let primary = some_wal(&vault, major);
        let all = segments(&vault);
        let damaged = &all[all.len() - 2];
        plan(&vault, &["--latest"]).with_code(0);
        damage(damaged);
        let to = scratch.join("to");
        let answer = vault.restore(&to, &["--latest"]).with_code(4);
        assert!(answer.stderr.contains(segment_name(damaged)), "{}", answer.stderr);
        assert!(!to.exists());
        // The bytes in the middle are in no index.
        plan(&vault, &["--latest", "--trust-wal"]).with_code(0);
        let refused = plan(&vault, &["--latest", "--json"]).with_code(4).json();
        assert!(
            refused["error"].as_str().unwrap().contains(segment_name(damaged)),
            "{refused}"
        );
        let flags = nearest(&refused, "before");
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let before = plan(&vault, &[&flags[..], &["--json"]].concat()).with_code(0).json();
        // A server that reads ahead would take the damaged segment before it stops.
        let ahead = &before["recovery_settings"]["recovery_prefetch"];
        assert_eq!(ahead.as_str(), (major.number() >= 15).then_some("off"), "{before}");
        let xid = before["reaches"]["last_commit_xid"].as_u64().unwrap();
        let rows = primary.sql(&format!(
            "select count(*) from ledger where xmin::text::bigint <= {xid}"
        ));
        assert_eq!(restored(&vault, major, &flags).len().to_string(), rows);
    }
}

#[test]
fn a_missing_segment_is_named_with_what_comes_before_it() {
    let vault = Vault::folder();
    let _primary = some_wal(&vault, Major::usual());
    let all = segments(&vault);
    let lost = segment_name(&all[all.len() - 2]);
    vault.lose(lost);
    let refused = plan(&vault, &["--latest", "--json"]).with_code(3).json();
    assert!(refused["error"].as_str().unwrap().contains(lost), "{refused}");
    let before = nearest(&refused, "before");
    plan(&vault, &before.iter().map(String::as_str).collect::<Vec<_>>()).with_code(0);
    let early = plan(&vault, &["--target-time", "2001-01-01 00:00Z", "--json"])
        .with_code(3)
        .json();
    assert_eq!(early["before"], Value::Null);
    let after = nearest(&early, "after");
    let after: Vec<&str> = after.iter().map(String::as_str).collect();
    plan(&vault, &after).with_code(0);
    restored(&vault, Major::usual(), &after);
}

#[test]
fn a_backup_that_lacks_a_pack_is_passed_over_by_name() {
    let vault = Vault::folder();
    let primary = vault.protect(builder(Major::usual()));
    let [first, second] = [vault.backup(&primary), vault.backup(&primary)];
    let [first, second] = [&first, &second].map(|backup| backup["id"].as_str().unwrap());
    // Ids of one second have no order.
    let mut packs = objects(&vault, ".pack").into_iter();
    let pack = packs.find(|path| path.to_str().unwrap().contains(second)).unwrap();
    let content = fs::read(&pack).unwrap();
    fs::write(&pack, &content[1..]).unwrap();
    for _ in 0..2 {
        let planned = plan(&vault, &["--latest", "--json"]).with_code(0).json();
        assert_eq!(planned["backup"], first);
        assert_eq!(planned["passed_over"][0]["backup"], second);
        assert!(
            planned["passed_over"][0]["reason"].as_str().unwrap().contains("pack"),
            "{planned}"
        );
        let text = plan(&vault, &["--latest"]).with_code(0).stdout;
        assert!(text.contains(&format!("passed over      {second}")), "{text}");
        plan(&vault, &["--latest", "--backup", second]).with_code(4);
        // Shorter first, then gone.
        let _ = fs::remove_file(&pack);
    }
}

#[test]
fn settings_that_were_raised_after_the_backup_are_raised_for_the_restored_server() {
    for major in majors() {
        let vault = Vault::folder();
        let conf = builder(major)
            .conf("max_connections", "30")
            .conf("max_prepared_transactions", "5");
        let mut primary = vault.protect(conf);
        vault.backup(&primary);
        ledger::write(&primary, 1, 3);
        primary.sql("select pg_create_restore_point('low')");
        primary.set("max_connections", "77");
        primary.set("max_locks_per_transaction", "99");
        primary.set("max_prepared_transactions", "2");
        primary.restart(Stop::Fast);
        ledger::write(&primary, 1, 3);
        primary.sql("select pg_create_restore_point('high')");
        primary.archive_now();
        let settings = |name: &str| {
            let planned = plan(&vault, &["--target-name", name, "--json"]).with_code(0).json();
            [
                "max_connections",
                "max_locks_per_transaction",
                "max_prepared_transactions",
            ]
            .map(|name| planned["recovery_settings"][name].as_str().map(str::to_owned))
        };
        assert_eq!(settings("low"), [None, None, None]);
        let some = |value: &str| Some(value.to_owned());
        assert_eq!(settings("high"), [some("77"), some("99"), None]);
        assert_eq!(
            restored(&vault, major, &["--target-name", "high"]),
            ledger::rows(&primary)
        );
    }
}

#[test]
fn nothing_is_promised_past_the_start_of_a_server_with_a_level_that_cannot_be_recovered() {
    for major in majors() {
        let vault = Vault::folder();
        let mut primary = vault.protect(builder(major));
        vault.backup(&primary);
        ledger::write(&primary, 1, 3);
        let rows = ledger::rows(&primary);
        let [mode, level, senders] = ["archive_mode", "wal_level", "max_wal_senders"];
        for (name, value) in [(mode, "off"), (level, "minimal"), (senders, "0")] {
            primary.set(name, value);
        }
        primary.restart(Stop::Fast);
        for name in [mode, level, senders] {
            primary.sql(&format!("alter system reset {name}"));
        }
        primary.restart(Stop::Fast);
        ledger::write(&primary, 1, 3);
        primary.archive_now();
        let refused = plan(&vault, &["--latest", "--json"]).with_code(3).json();
        assert!(refused["error"].as_str().unwrap().contains("wal_level"), "{refused}");
        let before = nearest(&refused, "before");
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        assert_eq!(restored(&vault, major, &before), rows);
    }
}

#[test]
fn a_transaction_that_can_not_be_a_target_is_refused_with_what_can() {
    let vault = Vault::folder();
    let primary = vault.protect(builder(Major::usual()).conf("max_prepared_transactions", "2"));
    let early = primary.sql("create table early (n int); begin; select pg_current_xact_id(); select pg_create_restore_point('early'); insert into early values (1); commit");
    let early = early.lines().next().unwrap().to_owned();
    let backup = vault.backup(&primary);
    let whole = "create table t (n int); begin; insert into t values (1); select pg_current_xact_id(); savepoint s;";
    let ids = primary.sql(&format!(
        "{whole} insert into t values (2); select max(xmin::text::int) from t; commit"
    ));
    let [whole, part] = ids.lines().collect::<Vec<_>>()[..] else {
        panic!("{ids}");
    };
    let prepared =
        primary.sql("begin; insert into t values (3); select pg_current_xact_id(); prepare transaction 'left'");
    let aborted = primary.sql("begin; insert into t values (4); select pg_current_xact_id(); rollback");
    primary.archive_now();
    let answer = plan(&vault, &["--target-xid", part]).with_code(3);
    assert!(
        answer.stderr.contains(&format!("--target-xid {whole}")),
        "{}",
        answer.stderr
    );
    plan(&vault, &["--target-xid", whole]).with_code(0);
    let refused = plan(&vault, &["--target-xid", part, "--json"]).with_code(3).json();
    assert_eq!(nearest(&refused, "before"), ["--target-xid", whole, "--exclusive"]);
    assert_eq!(nearest(&refused, "after"), ["--target-xid", whole]);
    // Before the only backup, and in the WAL.
    for target in [["--target-xid", &early], ["--target-name", "early"]] {
        let refused = plan(&vault, &[&target[..], &["--json"]].concat()).with_code(3).json();
        assert_eq!(refused["before"], Value::Null, "{refused}");
        let id = backup["id"].as_str().unwrap();
        assert_eq!(nearest(&refused, "after"), ["--immediate", "--backup", id]);
    }
    let answer = plan(&vault, &["--target-xid", &prepared]).with_code(3);
    assert!(
        answer.stderr.contains("prepared") && answer.stderr.contains("'left'"),
        "{}",
        answer.stderr
    );
    let answer = plan(&vault, &["--target-xid", &aborted]).with_code(0);
    assert!(answer.stdout.contains("rolled back"), "{}", answer.stdout);
}

/// The record of such a commit is longer than what an index keeps of one that crosses into the next segment.
#[test]
fn a_commit_with_thousands_of_subtransactions_is_found_wherever_its_record_lies() {
    let vault = Vault::folder();
    let primary = vault.protect(builder(Major::usual()).initdb_args(["--wal-segsize=1"]));
    primary.sql("create table whole (xid bigint)");
    vault.backup(&primary);
    let many = "do $$ begin
        insert into whole values (pg_current_xact_id()::text::bigint);
        for i in 1..4000 loop
            begin insert into unlogged values (i); exception when others then null; end;
        end loop; end $$;";
    // A temporary table gives each an id, and writes no WAL itself.
    primary.sql(&format!("create temp table unlogged (n int); {}", many.repeat(80)));
    primary.archive_now();
    let crossing = segments(&vault).len() - 2;
    assert!(crossing > 2, "{crossing}");
    let xids = primary.sql("select xid from whole order by xid");
    let mut last = None;
    for xid in xids.lines() {
        let planned = plan(&vault, &["--target-xid", xid, "--exclusive", "--trust-wal", "--json"])
            .with_code(0)
            .json();
        let told = |name: &str| planned["reaches"][name].as_u64().map(|xid| xid.to_string());
        assert_eq!(told("next_commit_xid").as_deref(), Some(xid));
        if let Some(last) = last {
            assert_eq!(told("last_commit_xid").as_deref(), Some(last));
        }
        last = Some(xid);
    }
}

#[test]
fn a_tablespace_that_replay_creates_never_takes_a_folder_that_is_in_use() {
    for major in majors() {
        let vault = Vault::folder();
        let scratch = Scratch::new();
        let mut primary = vault.protect(builder(major));
        vault.backup(&primary);
        ledger::write(&primary, 1, 3);
        let space = scratch.folder("space");
        primary.sql(&format!("create tablespace s location '{}'", space.display()));
        primary.sql("create table t tablespace s as select generate_series(1, 500) as n");
        primary.sql("select pg_create_restore_point('with')");
        primary.archive_now();
        let planned = plan(&vault, &["--target-name", "with", "--json"]).with_code(0).json();
        let created = &planned["tablespaces"][0];
        assert_eq!(created["path"].as_str(), space.to_str());

        // Beside the live server its folder is in use.
        let (to, elsewhere) = (scratch.join("to"), scratch.join("elsewhere"));
        let target = ["--target-name", "with", "--archive", "off"];
        let refused = vault.restore(&to, &target).with_code(2);
        assert!(refused.stderr.contains(space.to_str().unwrap()), "{}", refused.stderr);
        let mapping = format!("{}={}", space.display(), elsewhere.display());
        let mapped = [&target[..], &["--tablespace-mapping", &mapping]].concat();
        let refused = vault.restore(&to, &mapped).with_code(2);
        for path in [&space, &elsewhere] {
            assert!(refused.stderr.contains(path.to_str().unwrap()), "{}", refused.stderr);
        }
        assert!(!to.exists() && !elsewhere.exists());
        assert_eq!(primary.sql("select count(*) from t"), "500");
        let before = [
            "--target-lsn",
            created["created_at_lsn"].as_str().unwrap(),
            "--exclusive",
        ];
        assert_eq!(restored(&vault, major, &before), ledger::rows(&primary));

        // As on another machine: nothing is at the path.
        primary.stop(Stop::Fast);
        let aside = scratch.join("aside");
        fs::rename(&space, &aside).unwrap();
        let kept = tree(&aside);
        vault.restore(&to, &mapped).with_code(0);
        assert_eq!(fs::read_link(&space).unwrap(), elsewhere);
        let counted = |to: &Path| {
            let mut server = Cluster::on_directory(major, to);
            assert_eq!(server.recover(), Recovered::Paused, "{}", server.log());
            server.sql("select count(*) from t")
        };
        ServerUser::get().give(&elsewhere);
        assert_eq!(counted(&to), "500");
        assert!(!tree(&elsewhere).is_empty());
        fs::remove_file(&space).unwrap();
        let second = scratch.join("second");
        vault.restore(&second, &target).with_code(0);
        ServerUser::get().give(&space);
        assert_eq!(counted(&second), "500");
        assert_eq!(tree(&aside), kept);
    }
}

/// The names of all that is in a folder.
fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let (mut folders, mut found) = (vec![folder.to_path_buf()], BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            folders.extend(path.is_dir().then(|| path.clone()));
            found.insert(path);
        }
    }
    found
}

#[test]
fn wal_that_came_without_an_index_is_planned_with_all_the_same() {
    let vault = Vault::folder();
    let _primary = some_wal(&vault, Major::usual());
    let planned = || plan(&vault, &["--latest", "--json"]).with_code(0).json();
    let with = planned();
    segments(&vault).iter().for_each(|path| strip(path));
    assert!(objects(&vault, ".idx").is_empty());
    let without = planned();
    assert_eq!(with["reaches"], without["reaches"]);
    assert!(!objects(&vault, ".idx").is_empty());
    assert_eq!(planned()["reaches"], with["reaches"]);
}

/// Takes the index away from a WAL object, as if a version without one had made it.
fn strip(path: &Path) {
    const FOOTER: usize = 120;
    let bytes = fs::read(path).unwrap();
    let mut identity = Identity::read(&bytes).unwrap();
    let footer = &bytes[bytes.len() - FOOTER..];
    assert_eq!(&footer[..6], b"PGPIDX");
    let payload = u64::from_le_bytes(footer[8..16].try_into().unwrap());
    let body = &bytes[IDENTITY_FRAME..bytes.len() - payload as usize - 8];
    (identity.stored_len, identity.stored) = (body.len() as u64, Digest::of(body));
    fs::write(path, [&identity.frame(), body].concat()).unwrap();
}
