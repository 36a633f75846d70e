//! Two receivers of one cluster at once.

use std::thread::sleep;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::ledger;
use crate::support::tools::Major;
use crate::support::vault::Vault;

use super::load::Load;
use super::running::Receiver;
use super::{backup, restored_rows, wait_until_durable};

#[test]
fn two_with_a_slot_each_share_the_work() {
    let vault = Vault::folder();
    let server = Cluster::builder(Major::usual())
        .initdb_args(["--wal-segsize=1"])
        .conf("autovacuum", "off")
        .build();
    let mut one = Receiver::streaming(&vault, &server.conninfo(), &["--synchronous"]);
    let mut other = Receiver::new(
        &vault,
        &server.conninfo(),
        "other",
        &["--create-slot", "--tail-interval", "100ms"],
    );
    other.start();
    other.wait_for_state("streaming");
    backup(&vault, &server);
    let load = Load::start(&server, 4, "on");
    for _ in 0..2 {
        load.wait_for_more(300);
        one.kill9();
        load.wait_for_more(200);
        one.start();
        load.wait_for_more(200);
        other.kill9();
        load.wait_for_more(200);
        other.start();
    }
    one.wait_for_state("streaming");
    other.wait_for_state("streaming");
    let told = load.stop();
    wait_until_durable(&server);
    assert_eq!((one.stop().0, other.stop().0), (Some(0), Some(0)));
    for receiver in [&one, &other] {
        let log = receiver.log();
        assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    }
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    assert_eq!(list["clusters"][0]["wal"][0]["gaps"], serde_json::json!([]), "{list:#}");
    let rows = restored_rows(&vault, server.major(), &["--latest"]);
    assert!(told.keys().all(|id| rows.contains(id)));
    assert_eq!(rows, ledger::rows(&server));
}

#[test]
fn the_second_with_the_same_slot_waits_until_the_first_is_gone() {
    let vault = Vault::folder();
    let server = Cluster::new();
    let mut first = Receiver::streaming(&vault, &server.conninfo(), &[]);
    let mut second = Receiver::new(&vault, &server.conninfo(), "pgp", &["--create-slot"]);
    second.start();
    let waiting = second.wait_for_state("waiting_for_slot");
    assert!(
        waiting["detail"]
            .as_str()
            .unwrap()
            .contains("in use by another receiver"),
        "{waiting}"
    );
    second.status().with_code(3);
    second.wait_for_log("in use by another receiver; waiting until it is free");
    first.kill9();
    second.wait_for_state("streaming");
    server.sql("create table t (n int)");
    wait_until_durable(&server);

    first.start();
    first.wait_for_state("waiting_for_slot");
    // It waits for long, and is not worn out by it.
    sleep(Duration::from_secs(3));
    assert_eq!(second.stop().0, Some(0));
    first.wait_for_state("streaming");
    server.sql("insert into t values (1)");
    wait_until_durable(&server);
    assert_eq!(first.stop().0, Some(0));
    assert!(!second.log().contains(" ERROR "), "{}", second.log());
}
