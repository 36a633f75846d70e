//! Repositories that lack something: what is damage and what is no loss, and what can be had all the same.

use std::fs;

use serde_json::Value;

use crate::plan_proves::{builder, damage, nearest, objects, plan, segment_name, segments, some_wal};
use crate::support::ledger;
use crate::support::tools::Major;
use crate::support::vault::Vault;

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn an_object_too_short_for_any_wal_is_damage_and_ends_a_window_wherever_it_lies() {
    let vault = Vault::folder();
    let _primary = some_wal(&vault, Major::usual());
    let list = || vault.pitr(["list", "--json"]).with_code(0).json()["clusters"][0].clone();
    let whole = list();
    let all = segments(&vault);
    let short = &all[all.len() - 3];
    let content = fs::read(short).unwrap();
    let mut told = Vec::new();
    for bytes in [0, 100, 190] {
        fs::write(short, &content[..bytes]).unwrap();
        let refused = plan(&vault, &["--latest", "--json"]).with_code(4).json();
        assert!(text(&refused["error"]).contains(segment_name(short)), "{refused}");
        let flags = nearest(&refused, "before");
        plan(&vault, &flags.iter().map(String::as_str).collect::<Vec<_>>()).with_code(0);
        let found = vault.pitr(["find", "--mass-delete", "1000"]);
        assert!(found.stderr.contains(segment_name(short)), "{}", found.stderr);
        assert_ne!(found.code, 5, "{}", found.stderr);
        let listed = list();
        let window = &listed["windows"][0];
        assert!(text(&window["to"]) < text(&whole["windows"][0]["to"]), "{window}");
        for (flag, edge) in [("--target-lsn", "to_lsn"), ("--target-time", "to")] {
            plan(&vault, &[flag, text(&window[edge])]).with_code(0);
        }
        told.push(window.clone());
    }
    assert_eq!(told[0], told[1]);
    let answer = vault.pitr(["list"]).with_code(0);
    assert!(answer.stderr.contains(segment_name(short)), "{answer:?}");
}

#[test]
fn what_no_restore_reads_may_be_gone_and_is_named() {
    let vault = Vault::folder();
    let primary = vault.protect(builder(Major::usual()));
    vault.backup(&primary);
    for name in ["relations.jsonl.zst", "manifest.json", "settings.json"] {
        // Settings are an object of their own only where files of them lie outside the data directory.
        let Some(object) = objects(&vault, name).pop() else {
            assert_eq!(name, "settings.json");
            continue;
        };
        fs::remove_file(object).unwrap();
        let planned = plan(&vault, &["--latest", "--json"]).with_code(0).json();
        let warned = planned["warnings"].as_array().unwrap();
        assert!(warned.iter().any(|warning| text(warning).contains(name)), "{planned}");
    }
    let to = crate::support::user::Scratch::new();
    vault
        .restore(&to.join("to"), &["--latest", "--archive", "off"])
        .with_code(0);
}

#[test]
fn a_pack_that_is_missing_is_damage_where_no_other_backup_serves() {
    let vault = Vault::folder();
    let primary = vault.protect(builder(Major::usual()));
    vault.backup(&primary);
    ledger::write(&primary, 1, 1);
    primary.archive_now();
    let pack = &objects(&vault, ".pack")[0];
    fs::remove_file(pack).unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap();
    for target in [&["--latest"][..], &["--immediate"]] {
        let answer = plan(&vault, target).with_code(4);
        assert!(answer.stderr.contains(name), "{}", answer.stderr);
    }
}

/// The last bytes of an object are the index's own.
#[test]
fn damage_behind_the_content_of_a_segment_is_a_warning() {
    let vault = Vault::folder();
    let _primary = some_wal(&vault, Major::usual());
    let all = segments(&vault);
    let object = &all[all.len() - 2];
    let mut bytes = fs::read(object).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(object, bytes).unwrap();
    let planned = plan(&vault, &["--latest", "--json"]).with_code(0).json();
    let warned = planned["warnings"].as_array().unwrap();
    let told = |warning: &&Value| text(warning).contains(segment_name(object)) && text(warning).contains("sound");
    assert_eq!(warned.iter().filter(told).count(), 1, "{planned}");
    damage(object);
    plan(&vault, &["--latest"]).with_code(4);
}
