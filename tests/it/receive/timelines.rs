//! Failover: the receiver follows to the next timeline, and each timeline can be restored from the repository alone.

use std::collections::BTreeSet;
use std::fs;

use crate::support::cluster::{Cluster, Stop};
use crate::support::ledger;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

use super::running::Receiver;
use super::{backup, restored_rows, switch, wait_until_durable};

/// A primary that receives commits, and a standby of it.
struct Pair {
    primary: Option<Cluster>,
    standby: Cluster,
    _scratch: Scratch,
}

impl Pair {
    fn new(major: &'static Major) -> Self {
        let scratch = Scratch::new();
        let primary = Cluster::builder(major)
            .initdb_args(["--wal-segsize=1"])
            .conf("autovacuum", "off")
            .conf("wal_keep_size", "64MB")
            .conf("wal_receiver_status_interval", "1")
            .build();
        let data = scratch.join("standby");
        let mut base = primary.client("pg_basebackup");
        Answer::of(base.args(["-R", "-X", "stream", "-c", "fast", "-D"]).arg(&data)).with_code(0);
        let mut standby = Cluster::on_directory(major, &data);
        // What -R writes may be for a newer libpq than the server's.
        standby.start_with("primary_conninfo", &primary.conninfo());
        standby.start();
        Self {
            primary: Some(primary),
            standby,
            _scratch: scratch,
        }
    }

    fn primary(&self) -> &Cluster {
        self.primary.as_ref().unwrap()
    }

    /// Both, of which the one that takes writes is wanted.
    fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=postgres target_session_attrs=read-write",
            self.primary().port(),
            self.standby.port()
        )
    }

    /// Writes on the primary and waits until the standby has it all: the rows, and where the WAL ends.
    fn write_on_both(&self) -> (BTreeSet<i64>, String) {
        ledger::write(self.primary(), 2, 8);
        let end = self.primary().sql("select pg_current_wal_flush_lsn()");
        self.standby
            .wait_until(&format!("select pg_last_wal_receive_lsn() >= '{end}'"));
        (ledger::rows(self.primary()), end)
    }

    /// The primary is gone for good, and the standby takes its place.
    fn fail_over(&mut self) {
        let mut primary = self.primary.take().unwrap();
        primary.kill9();
        drop(primary);
        self.standby.promote();
    }
}

/// Both timelines are there without a gap, with the segment in which the second begins; and can be restored.
fn assert_both_timelines(vault: &Vault, server: &Cluster, first: (BTreeSet<i64>, String)) {
    let scratch = Scratch::new();
    ledger::write(server, 2, 8);
    let (rows, end) = (ledger::rows(server), server.sql("select pg_current_wal_flush_lsn()"));
    ledger::write(server, 2, 4);
    switch(server);
    wait_until_durable(server);

    let history = scratch.join("history");
    vault.fetch(server, "00000002.history", &history).with_code(0);
    let history = fs::read_to_string(history).unwrap();
    assert_eq!(
        history,
        server.sql("select pg_read_file('pg_wal/00000002.history')") + "\n"
    );
    let fork = history.split('\t').nth(1).unwrap();
    let name = server.sql(&format!("select pg_walfile_name('{fork}'::pg_lsn)"));
    for timeline in ["00000001", "00000002"] {
        let name = format!("{timeline}{}", &name[8..]);
        vault.fetch(server, &name, &scratch.join(&name)).with_code(0);
    }
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    let wal = list["clusters"][0]["wal"].as_array().unwrap();
    assert_eq!(wal.len(), 2, "{list:#}");
    assert!(wal.iter().all(|on| on["gaps"] == serde_json::json!([])), "{list:#}");

    let major = server.major();
    let on_first = restored_rows(vault, major, &["--target-lsn", &first.1, "--target-timeline", "1"]);
    assert_eq!(on_first, first.0, "timeline 1");
    assert!(restored_rows(vault, major, &["--latest", "--target-timeline", "1"]).is_superset(&first.0));
    assert_eq!(restored_rows(vault, major, &["--target-lsn", &end]), rows, "timeline 2");
    assert_eq!(
        restored_rows(vault, major, &["--latest"]),
        ledger::rows(server),
        "the end"
    );
}

#[test]
fn a_promotion_is_followed_to_the_other_host() {
    for major in [Major::usual(), Major::newest()] {
        let vault = Vault::folder();
        let mut pair = Pair::new(major);
        let mut receiver = Receiver::streaming(&vault, &pair.conninfo(), &[]);
        backup(&vault, pair.primary());
        let first = pair.write_on_both();
        wait_until_durable(pair.primary());
        pair.fail_over();
        ledger::write(&pair.standby, 1, 2);
        assert_both_timelines(&vault, &pair.standby, first);
        assert_eq!(receiver.wait_for_state("streaming")["timeline"], 2);
        assert_eq!(receiver.stop().0, Some(0));
        assert!(!receiver.log().contains(" ERROR "), "{}", receiver.log());
    }
}

#[test]
fn a_receiver_that_was_away_during_the_failover_gets_both_timelines_of_the_new_server() {
    let vault = Vault::folder();
    let mut pair = Pair::new(Major::usual());
    let conninfo = pair.conninfo();
    let mut receiver = Receiver::streaming(&vault, &conninfo, &[]);
    backup(&vault, pair.primary());
    receiver.kill9();
    for _ in 0..3 {
        ledger::write(pair.primary(), 1, 4);
        switch(pair.primary());
    }
    let first = pair.write_on_both();
    pair.fail_over();
    for _ in 0..4 {
        ledger::write(&pair.standby, 1, 4);
        switch(&pair.standby);
    }
    pair.standby.sql("checkpoint");
    receiver.start();
    receiver.wait_for_state("streaming");
    assert_both_timelines(&vault, &pair.standby, first);
    assert_eq!(receiver.stop().0, Some(0));
    assert!(!receiver.log().contains(" ERROR "), "{}", receiver.log());
}

#[test]
fn a_standby_is_received_from_and_promoted_meanwhile() {
    let vault = Vault::folder();
    let mut pair = Pair::new(Major::usual());
    let mut receiver = Receiver::streaming(&vault, &pair.standby.conninfo(), &[]);
    ledger::write(pair.primary(), 1, 4);
    backup(&vault, &pair.standby);
    let first = pair.write_on_both();
    pair.fail_over();
    ledger::write(&pair.standby, 1, 2);
    assert_both_timelines(&vault, &pair.standby, first);
    assert_eq!(receiver.wait_for_state("streaming")["timeline"], 2);
    assert_eq!(receiver.stop().0, Some(0));
    assert!(!receiver.log().contains(" ERROR "), "{}", receiver.log());
    pair.standby.stop(Stop::Fast);
}
