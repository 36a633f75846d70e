//! `salvage` and timelines: what a promotion left on either side of a fork.

use std::fs;

use super::{archive_no_more, assert_nothing_missing, protected, salvage, standby_of};
use crate::support::cluster::{Cluster, Recovered};
use crate::support::ledger;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

#[test]
fn a_promoted_standby_that_died_gives_both_timelines() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let mut primary = protected(&vault, Major::usual(), 1);
    let mut standby = standby_of(&primary, &scratch);
    archive_no_more(&primary);
    ledger::write(&primary, 2, 8);
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    standby.wait_until(&format!("select pg_last_wal_replay_lsn() >= '{end}'"));
    let on_first = ledger::rows(&primary);
    primary.kill9();
    standby.set("archive_command", "false");
    standby.promote();
    ledger::write(&standby, 2, 8);
    let on_second = ledger::rows(&standby);
    standby.kill9();

    // The promoted one had received all; the primary's own directory adds nothing that disagrees.
    let saved = salvage(&vault, standby.data_dir(), &[]).with_code(0).json();
    assert_eq!(saved["latest"]["timeline"], 2);
    assert_eq!(saved["timelines"][1]["other_files"][0], "00000002.history");
    let partial = saved["timelines"][0]["other_files"][0].as_str().unwrap();
    assert!(partial.ends_with(".partial"), "{saved:#}");
    assert_nothing_missing(&vault, standby.data_dir(), &saved);
    salvage(&vault, primary.data_dir(), &[]).with_code(0);

    for (timeline, rows) in [("latest", on_second), ("1", on_first)] {
        let to = scratch.join("restored");
        let arguments = ["--latest", "--target-timeline", timeline, "--archive", "off"];
        vault.restore(&to, &arguments).with_code(0);
        let mut restored = Cluster::on_directory(Major::usual(), &to);
        assert_eq!(restored.recover(), Recovered::Open, "{}", restored.log());
        assert_eq!(ledger::rows(&restored), rows, "timeline {timeline}");
        drop(restored);
        fs::remove_dir_all(&to).unwrap();
    }

    // Another server that has begun a timeline of the same number.
    let history = standby.data_dir().join("pg_wal/00000002.history");
    let text = fs::read_to_string(&history).unwrap();
    fs::write(&history, text.replace("no recovery target", "another day")).unwrap();
    let answer = salvage(&vault, standby.data_dir(), &[]).with_code(1);
    assert!(answer.stderr.contains("00000002.history"), "{}", answer.stderr);
}
