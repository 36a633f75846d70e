//! The ledger's answers are PostgreSQL's: plain recoveries with `cp` give the rows it expects.

use std::process::Command;

use pgp_pitr::pg::Lsn;

use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::ledger::{self, History, Target};
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};

#[test]
fn a_recovery_gives_the_rows_that_the_ledger_expects() {
    let scratch = Scratch::new();
    let archive = scratch.folder("archive");
    let primary = Cluster::builder(Major::usual())
        .conf("archive_mode", "on")
        .conf("archive_command", format!("cp %p {}/%f", archive.display()))
        .conf("wal_keep_size", "1GB")
        .build();
    let start: Lsn = primary.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    ledger::write(&primary, 2, 4);
    let backup = scratch.join("backup");
    Answer::of(
        primary
            .client("pg_basebackup")
            .args(["-X", "none", "-c", "fast", "-D"])
            .arg(&backup),
    )
    .with_code(0);
    let consistent = primary.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    ledger::write(&primary, 4, 10);
    primary.sql("select pg_create_restore_point('between')");
    ledger::write(&primary, 4, 10);
    primary.archive_now();
    let history = History::read(&primary, 1, start);
    assert_eq!(
        history.expected(&Target::Name("never".to_owned()), true),
        ledger::rows(&primary)
    );

    let later: Vec<_> = history
        .commits()
        .filter(|commit| commit.lsn > consistent && !commit.rows.is_empty())
        .collect();
    assert_eq!(later.len(), 80);
    let [a, b, c, d] = [11, 29, 47, 71].map(|n| later[n]);
    let mut sizes = Vec::new();
    for (target, inclusive) in [
        (Target::Time(a.time), true),
        (Target::Time(a.time), false),
        (Target::Lsn(b.lsn), true),
        (Target::Lsn(b.lsn), false),
        (Target::Lsn(c.lsn.plus(1)), true),
        (Target::Xid(c.xid), true),
        (Target::Xid(d.xid), false),
        (Target::Name("between".to_owned()), true),
    ] {
        let data = scratch.join("restored");
        Answer::of(Command::new("cp").arg("-a").arg(&backup).arg(&data)).with_code(0);
        let mut restored = Cluster::on_directory(Major::usual(), &data);
        recover_to(&restored, &archive, &target, inclusive);
        assert_eq!(restored.recover(), Recovered::Paused, "{target:?}");
        assert_eq!(
            ledger::rows(&restored),
            history.expected(&target, inclusive),
            "{target:?} {inclusive}"
        );
        sizes.push(ledger::rows(&restored).len());
        restored.stop(Stop::Immediate);
        std::fs::remove_dir_all(&data).unwrap();
    }
    sizes.dedup();
    assert!(sizes.len() > 5, "the targets are too much alike: {sizes:?}");
}

#[test]
fn a_ledger_goes_on_over_a_fork() {
    let mut cluster = Cluster::builder(Major::newest()).conf("wal_keep_size", "1GB").build();
    let start: Lsn = cluster.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    ledger::write(&cluster, 2, 4);
    let first = History::read(&cluster, 1, start);
    cluster.stop(Stop::Fast);
    std::fs::write(cluster.data_dir().join("standby.signal"), "").unwrap();
    cluster.start();
    cluster.promote();
    let fork: Lsn = cluster
        .sql("select split_part(pg_read_file('pg_wal/00000002.history'), chr(9), 2)")
        .parse()
        .unwrap();
    ledger::write(&cluster, 2, 4);
    let both = first.then(fork, &History::read(&cluster, 2, fork));
    assert_eq!(
        both.expected(&Target::Name("never".to_owned()), true),
        ledger::rows(&cluster)
    );
    assert_eq!(
        both.expected(&Target::Lsn(fork), false),
        first.expected(&Target::Lsn(fork), false)
    );
}

fn recover_to(cluster: &Cluster, archive: &std::path::Path, target: &Target, inclusive: bool) {
    let signal = cluster.data_dir().join("recovery.signal");
    std::fs::write(&signal, "").unwrap();
    ServerUser::get().give(&signal);
    cluster.append(
        "postgresql.auto.conf",
        &format!(
            "restore_command = 'cp {}/%f %p'\narchive_mode = off\n\
             recovery_target_{} = '{}'\nrecovery_target_inclusive = {inclusive}\n",
            archive.display(),
            target.kind(),
            target.value()
        ),
    );
}
