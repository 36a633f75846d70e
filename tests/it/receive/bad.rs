//! What a receiver can't work with is named, ends it or is waited for, and overwrites nothing.

use std::path::Path;

use crate::support::cluster::{Cluster, Stop};
use crate::support::ledger;
use crate::support::process::wait_for;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

use super::running::Receiver;
use super::{contents, copy, switch, wait_until_durable};

#[test]
fn a_slot_that_is_missing_logical_or_lost_is_named() {
    let vault = Vault::folder();
    let server = Cluster::builder(Major::usual())
        .initdb_args(["--wal-segsize=1"])
        .conf("wal_level", "logical")
        .conf("max_slot_wal_keep_size", "1MB")
        .conf("max_wal_size", "2MB")
        .conf("min_wal_size", "2MB")
        .build();
    let receiver = |slot| Receiver::new(&vault, &server.conninfo(), slot, &[]);
    let said = receiver("pgp").ends_with(2);
    assert!(
        said.contains("no replication slot \"pgp\"") && said.contains("--create-slot"),
        "{said}"
    );

    server.sql("select pg_create_logical_replication_slot('logical', 'pgoutput')");
    let said = receiver("logical").ends_with(2);
    assert!(
        said.contains("\"logical\"") && said.contains("not a physical one"),
        "{said}"
    );
    let mut making = Receiver::new(&vault, &server.conninfo(), "logical", &["--create-slot"]);
    assert!(making.ends_with(2).contains("not a physical one"));
    server.sql("select pg_drop_replication_slot('logical')");

    server.sql("select pg_create_physical_replication_slot('pgp', true)");
    wait_for("the slot is lost", || {
        for _ in 0..4 {
            switch(&server);
        }
        server.sql("checkpoint");
        (server.sql("select wal_status from pg_replication_slots") == "lost").then_some(())
    });
    let said = receiver("pgp").ends_with(3);
    assert!(
        said.contains("is lost") && said.contains("pg_drop_replication_slot('pgp')"),
        "{said}"
    );
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    assert_eq!(list["clusters"], serde_json::json!([]));
}

#[test]
fn the_wrong_cluster_repository_or_password_is_named() {
    let vault = Vault::folder();
    let server = Cluster::new();
    let mut receiver = Receiver::new(
        &vault,
        &server.conninfo(),
        "pgp",
        &["--create-slot", "--cluster", "7123456789012345678"],
    );
    let said = receiver.ends_with(2);
    assert!(said.contains("not 7123456789012345678"), "{said}");
    assert_eq!(server.sql("select count(*) from pg_replication_slots"), "0");

    server.sql("create role backup login replication password 'right'");
    server.set_hba("local all postgres trust\nhost all backup 127.0.0.1/32 scram-sha-256\nhost replication backup 127.0.0.1/32 scram-sha-256");
    let conninfo = |password: &str| {
        format!(
            "host=127.0.0.1 port={} user=backup dbname=postgres password={password}",
            server.port()
        )
    };
    let said = Receiver::new(&vault, &conninfo("wrong"), "pgp", &["--create-slot"]).ends_with(5);
    assert!(said.contains("password") && !said.contains("wrong"), "{said}");
    // One that becomes wrong while it runs may become right again.
    let mut receiver = Receiver::streaming(&vault, &conninfo("right"), &[]);
    server.sql("alter role backup password 'other'");
    server.sql("select pg_terminate_backend(pid) from pg_stat_replication");
    receiver.wait_for_state("server_unavailable");
    receiver.wait_for_log("password");
    server.sql("alter role backup password 'right'");
    receiver.wait_for_state("streaming");
    assert_eq!(receiver.stop().0, Some(0));
    assert!(!receiver.log().contains("right"));

    std::fs::remove_dir_all(Path::new(vault.repo())).unwrap();
    let said = Receiver::new(&vault, &server.conninfo(), "pgp", &[]).ends_with(5);
    assert!(said.contains("no repository at") && said.contains("mounted"), "{said}");
    assert!(!Path::new(vault.repo()).exists());
}

#[test]
fn a_server_that_was_set_back_is_refused_and_overwrites_nothing() {
    // The repository ends in pieces, or with a whole segment.
    for pieces in [true, false] {
        let scratch = Scratch::new();
        let vault = Vault::folder();
        let mut server = Cluster::builder(Major::usual())
            .initdb_args(["--wal-segsize=1"])
            .conf("wal_keep_size", "64MB")
            .conf("autovacuum", "off")
            .build();
        let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &[]);
        ledger::write(&server, 1, 4);
        wait_until_durable(&server);
        receiver.kill9();
        server.stop(Stop::Fast);
        let old = scratch.join("old");
        copy(server.data_dir(), &old);
        server.start();
        receiver.start();
        for _ in 0..3 {
            ledger::write(&server, 1, 4);
            switch(&server);
        }
        if pieces {
            ledger::write(&server, 1, 4);
        }
        let end = wait_until_durable(&server);
        assert_eq!(receiver.stop().0, Some(0));
        server.stop(Stop::Immediate);

        let mut back = Cluster::on_directory(server.major(), &old);
        back.start();
        let repository = contents(Path::new(vault.repo()));
        let mut receiver = Receiver::new(&vault, &back.conninfo(), "pgp", &[]);
        let said = receiver.ends_with(3);
        assert!(said.contains("the repository has WAL of timeline 1 up to"), "{said}");
        assert!(said.contains("recovery.signal"), "{said}");
        assert!(
            repository == contents(Path::new(vault.repo())),
            "something was changed: {pieces}"
        );

        // It goes on writing, past that place: other WAL of the same timeline.
        while back.sql(&format!(
            "select pg_current_wal_flush_lsn() > '{end}'::pg_lsn + 1500000"
        )) == "f"
        {
            back.sql("create table if not exists other as select n from generate_series(1, 100) n");
            back.sql("insert into other select n from generate_series(1, 3000) n");
        }
        let said = receiver.ends_with(1);
        assert!(said.contains("sends other WAL of timeline 1"), "{pieces}: {said}");
        assert!(
            repository == contents(Path::new(vault.repo())),
            "something was changed: {pieces}"
        );
    }
}

#[test]
fn a_server_that_was_set_back_is_refused_where_wal_goes_through_a_spool() {
    let scratch = Scratch::new();
    let vault = Vault::folder();
    let spool = scratch.folder("spool");
    let spool = ["--spool", spool.to_str().unwrap()];
    let mut server = Cluster::builder(Major::usual())
        .initdb_args(["--wal-segsize=1"])
        .conf("wal_keep_size", "64MB")
        .conf("autovacuum", "off")
        .build();
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &spool);
    ledger::write(&server, 1, 4);
    wait_until_durable(&server);
    receiver.kill9();
    server.stop(Stop::Fast);
    let old = scratch.join("old");
    copy(server.data_dir(), &old);
    server.start();
    receiver.start();
    ledger::write(&server, 1, 4);
    let end = wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));
    server.stop(Stop::Immediate);
    let mut back = Cluster::on_directory(server.major(), &old);
    back.start();
    while back.sql(&format!(
        "select pg_current_wal_flush_lsn() > '{end}'::pg_lsn + 1500000"
    )) == "f"
    {
        back.sql("create table if not exists other as select n from generate_series(1, 100) n");
        back.sql("insert into other select n from generate_series(1, 3000) n");
    }
    let repository = contents(Path::new(vault.repo()));
    let more = [&spool[..], &["--until", "now"]].concat();
    let mut other = Receiver::new(&vault, &back.conninfo(), "pgp", &more);
    let said = other.ends_with(1);
    assert!(said.contains("sends other WAL of timeline 1"), "{said}");
    assert!(repository == contents(Path::new(vault.repo())), "something was changed");
}
