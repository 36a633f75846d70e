//! Servers that write WAL of every kind.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use pgp_pitr::pg::{Lsn, SegmentNumber, SegmentSize, Timeline};

use super::dump::Line;
use crate::support::cluster::{Builder, Cluster, Stop};
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::Scratch;

const PAGE: u64 = 8192;

fn builder(major: &'static Major, mebibytes: u64) -> Builder {
    Cluster::builder(major)
        .initdb_args([format!("--wal-segsize={mebibytes}"), "--data-checksums".to_owned()])
        .conf("wal_level", "logical")
        .conf("max_prepared_transactions", "10")
        .conf("fsync", "off")
        // All WAL stays where it is, and no segment is recycled.
        .conf("wal_keep_size", "4GB")
        .conf("max_wal_size", "8GB")
        .conf("checkpoint_timeout", "1h")
}

/// A cluster with the WAL of pgbench, stopped.
pub fn plain(major: &'static Major, mebibytes: u64) -> Cluster {
    let mut cluster = builder(major, mebibytes).build();
    pgbench(&cluster);
    cluster.stop(Stop::Fast);
    cluster
}

/// A cluster that was promoted in the middle of a segment, stopped.
pub fn promoted(major: &'static Major, mebibytes: u64) -> Cluster {
    let mut cluster = builder(major, mebibytes).build();
    cluster.sql("create table plain as select generate_series(1, 2000) x");
    cluster.stop(Stop::Fast);
    fs::write(cluster.data_dir().join("standby.signal"), "").unwrap();
    cluster.start();
    cluster.promote();
    cluster.sql("insert into plain select generate_series(1, 20000)");
    cluster.stop(Stop::Fast);
    cluster
}

/// A cluster with WAL of every kind that a test can bring about, stopped.
pub fn varied(major: &'static Major, mebibytes: u64) -> Cluster {
    let mut cluster = builder(major, mebibytes).build();
    let tablespace = Scratch::new();
    let folder = tablespace.folder("tablespace");
    cluster.sql(ROWS);
    cluster.sql(TRANSACTIONS);
    cluster.sql(&format!("create tablespace elsewhere location '{}'", folder.display()));
    cluster.sql(FILES);
    if major.number() >= 15 {
        cluster.sql("create database copied strategy file_copy");
        // Not every build has every way.
        for way in ["lz4", "zstd"] {
            let _ = cluster.try_sql(&format!(
                "set wal_compression = {way}; checkpoint; update rows set a = a + 1"
            ));
        }
    }
    pgbench(&cluster);
    cluster.kill9();
    cluster.start();
    cluster.sql(MESSAGES);
    cluster.sql("alter system set max_connections = 50; alter system set track_commit_timestamp = on");
    cluster.restart(Stop::Fast);
    leave_a_record_unfinished(&mut cluster, mebibytes);
    cluster.sql("insert into plain select generate_series(1, 1000)");
    cluster.stop(Stop::Fast);
    cluster
}

/// Rows and indexes of every kind.
const ROWS: &str = "
    set client_min_messages = error;
    create table rows (id int primary key, a int, words text, numbers int[], place point);
    create index on rows using hash (a);
    create index on rows using gin (numbers);
    create index on rows using gist (place);
    create index on rows using brin (id);
    create index on rows using spgist (words);
    insert into rows select g, g % 100, md5(g::text), array[g, g + 1], point(g, g) from generate_series(1, 3000) g;
    update rows set a = a + 1 where id % 7 = 0;
    delete from rows where id % 5 = 0;
    vacuum (freeze) rows;
    set wal_compression = on;
    checkpoint;
    update rows set a = a + 1 where id % 11 = 0;
    create table plain (x int);
    copy plain from program 'seq 1 20000';
    create sequence numbers;
    select count(nextval('numbers')) from generate_series(1, 100);
    create unlogged table unlogged (x int primary key);
    vacuum full rows;
    truncate plain;
    create table gone as select generate_series(1, 1000) x;
    drop table gone;";

/// Transactions of every shape.
const TRANSACTIONS: &str = "
    begin; insert into plain values (1); prepare transaction 'kept'; commit prepared 'kept';
    begin; create table never (x int); savepoint a; insert into never values (1);
    prepare transaction 'dropped'; rollback prepared 'dropped';
    begin; insert into plain values (2); savepoint a; insert into plain values (3); savepoint b;
    insert into plain values (4); rollback to b; commit;
    begin; insert into plain values (5); savepoint a; insert into plain values (6); rollback;
    do $$ begin for i in 1..100 loop begin insert into plain values (i); exception when division_by_zero then null;
    end; end loop; end $$;
    begin; select from rows where id = 1 for share; savepoint a; update rows set a = 0 where id = 1; commit;
    begin; lock table rows; insert into plain values (7); commit;
    select pg_create_restore_point('a point, in time');
    select pg_replication_origin_create('origin');
    select pg_replication_origin_session_setup('origin');
    begin; insert into plain values (8); select pg_replication_origin_xact_setup('0/AA', now()); commit;
    begin; insert into plain values (9); rollback;
    select pg_switch_wal();
    select pg_switch_wal();
    select pg_create_restore_point('another');";

/// Files, databases, tablespaces.
const FILES: &str = "
    create table there (x int) tablespace elsewhere;
    insert into there select generate_series(1, 100);
    drop table there;
    drop tablespace elsewhere;
    create database made;
    drop database made;
    begin; truncate rows, plain; rollback;
    insert into plain select generate_series(1, 20000);
    delete from plain where x > 10;
    vacuum plain;
    checkpoint;";

/// Records of all lengths; the longest is longer than two segments of 1 MiB.
const MESSAGES: &str = "
    select pg_logical_emit_message(false, 'a', repeat('x', n)) from generate_series(1, 20000, 371) n;
    select pg_logical_emit_message(true, 'b', repeat('y', 3000000));
    select pg_logical_emit_message(false, 'c', '');";

fn pgbench(cluster: &Cluster) {
    let run = |arguments: &[&str]| Answer::of(cluster.client("pgbench").args(arguments)).with_code(0);
    run(&["-i", "-q", "-s", "1"]);
    run(&["-n", "-c", "3", "-t", "100"]);
}

/// Kills the server behind a long record and takes the end of that record away, as a crash of the machine does.
fn leave_a_record_unfinished(cluster: &mut Cluster, mebibytes: u64) {
    cluster.sql("checkpoint");
    let at: Lsn = cluster.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    cluster.sql("select pg_logical_emit_message(true, 'unfinished', repeat('z', 300000))");
    cluster.kill9();
    // From a page on that lies in the middle of the record, whatever else came before it.
    let cut = (at.bytes() + 150_000) / PAGE * PAGE;
    let size = SegmentSize::new(mebibytes << 20).unwrap();
    let segment = SegmentNumber::holding(Lsn::new(cut), size);
    let from = cut % size.bytes();
    let path = |segment: SegmentNumber| {
        let name = segment.name(Timeline::FIRST, size).to_string();
        cluster.data_dir().join("pg_wal").join(name)
    };
    let file = OpenOptions::new().write(true).open(path(segment)).unwrap();
    file.write_all_at(&vec![0; (size.bytes() - from) as usize], from)
        .unwrap();
    let mut later = segment.next();
    while fs::remove_file(path(later)).is_ok() {
        later = later.next();
    }
    cluster.start();
}

/// The workload has brought about what it is there for.
pub fn assert_varied(lines: &[Line], major: &Major) {
    for wanted in [
        "rmgr: Gin",
        "rmgr: Hash",
        "rmgr: SPGist",
        "rmgr: BRIN",
        "rmgr: MultiXact",
        "rmgr: LogicalMessage",
        "fork vm",
        "fork fsm",
        "fork init",
        "FPW",
    ] {
        let found = lines.iter().any(|line| line.told.text.contains(wanted));
        assert!(found, "{wanted} is missing in the WAL of {}", major.number());
    }
    for wanted in [
        "COMMIT_PREPARED",
        "ABORT_PREPARED",
        "; subxacts: ",
        "; origin: ",
        "OVERWRITE_CONTRECORD",
        "PARAMETER_CHANGE",
        "CHECKPOINT_SHUTDOWN",
        "CHECKPOINT_ONLINE",
    ] {
        let found = lines.iter().any(|line| line.desc.contains(wanted));
        assert!(found, "{wanted} is missing in the WAL of {}", major.number());
    }
    assert!(lines.iter().any(|line| line.length() > 3_000_000));
}
