//! The ledger: a workload of which is known, for any recovery target, exactly which rows must be there.
//!
//! Concurrent writers insert rows that carry their transaction's id. What was committed when and where is
//! then read from the server's own WAL with `pg_waldump`, so the answer rests on the order of the records
//! and on PostgreSQL's rules for stopping, and on nothing of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use chrono::{DateTime, NaiveDateTime, Utc};
use pgp_pitr::pg::Lsn;

use super::cluster::Cluster;
use super::program::Answer;

/// Rows of all ledgers are numbered by one counter: a row keeps its number on every timeline, where
/// transaction ids are used again.
static NEXT_ROW: AtomicI64 = AtomicI64::new(1);

/// Where a recovery is to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `recovery_target_time`
    Time(DateTime<Utc>),
    /// `recovery_target_lsn`
    Lsn(Lsn),
    /// `recovery_target_xid`
    Xid(u32),
    /// `recovery_target_name`
    Name(String),
}

impl Target {
    /// Its kind, as in the names of settings and flags: `recovery_target_KIND`, `--target-KIND`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Time(_) => "time",
            Self::Lsn(_) => "lsn",
            Self::Xid(_) => "xid",
            Self::Name(_) => "name",
        }
    }

    /// Its value, as written into a setting or after a flag.
    pub fn value(&self) -> String {
        match self {
            Self::Time(time) => time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string(),
            Self::Lsn(lsn) => lsn.to_string(),
            Self::Xid(xid) => xid.to_string(),
            Self::Name(name) => name.clone(),
        }
    }
}

/// One transaction that was committed.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Where its commit record begins.
    pub lsn: Lsn,
    /// Its id.
    pub xid: u32,
    /// The time in its commit record. Not always later than the one before.
    pub time: DateTime<Utc>,
    /// The rows it has put into the ledger, often none: autovacuum commits, too.
    pub rows: BTreeSet<i64>,
}

/// Inserts rows from several sessions at once: each writer commits so many transactions, and a few more
/// that it rolls back. The table is made where it isn't there yet. Ends when all writers have.
pub fn write(cluster: &Cluster, writers: usize, transactions: usize) {
    cluster.sql(
        "set client_min_messages = error;
         create table if not exists ledger (id bigint primary key, xid xid8 not null default pg_current_xact_id())",
    );
    thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| cluster.sql(&script(transactions)));
        }
    });
}

/// What one writer does. The pauses mix the sessions: xids, times and places in the WAL come in different orders.
fn script(transactions: usize) -> String {
    let pause = "select pg_sleep(random() * 0.004)";
    (0..transactions)
        .map(|n| {
            let [a, b, c] = [(); 3].map(|()| NEXT_ROW.fetch_add(1, Ordering::Relaxed));
            let inserted = match n % 4 {
                0 => format!("insert into ledger values ({a}), ({b})"),
                1 => {
                    format!("insert into ledger values ({a}); savepoint s; insert into ledger values ({b}); release s")
                }
                2 => format!(
                    "insert into ledger values ({a}); savepoint s; insert into ledger values ({b}); rollback to s"
                ),
                _ => format!("insert into ledger values ({a}); rollback; begin; insert into ledger values ({b})"),
            };
            format!("begin; {inserted}; {pause}; insert into ledger values ({c}); commit;\n")
        })
        .collect()
}

/// The rows that are in the ledger now.
pub fn rows(cluster: &Cluster) -> BTreeSet<i64> {
    let ids = cluster.sql("select id from ledger");
    ids.lines().map(|id| id.parse().expect("a number")).collect()
}

/// What one timeline's WAL tells, in its order.
#[derive(Debug, Clone)]
pub struct History(Vec<(Lsn, Event)>);

/// What a record means to a recovery.
#[derive(Debug, Clone)]
enum Event {
    Commit(Commit),
    Abort { xid: u32, time: DateTime<Utc> },
    RestorePoint(String),
    Other,
}

impl History {
    /// Reads the WAL of a running cluster from `from` to its end on timeline `timeline`; all of it must
    /// still be in `pg_wal` (`wal_keep_size` takes care of that).
    pub fn read(cluster: &Cluster, timeline: u32, from: Lsn) -> Self {
        let mut rows: BTreeMap<u32, BTreeSet<i64>> = BTreeMap::new();
        for line in cluster.sql("select xid, id from ledger").lines() {
            let (xid, id) = line.split_once('|').expect("two columns");
            let committed = rows.entry(xid.parse().expect("an xid")).or_default();
            committed.insert(id.parse().expect("a number"));
        }
        let end = cluster.sql("select pg_current_wal_flush_lsn()");
        let dump = Answer::of(
            cluster
                .tool("pg_waldump")
                .args(["-t", &timeline.to_string(), "-s", &from.to_string(), "-e", &end, "-p"])
                .arg(cluster.data_dir().join("pg_wal")),
        )
        .with_code(0);
        let events: Vec<_> = dump.stdout.lines().filter_map(|line| record(line, &rows)).collect();
        let seen: usize = events
            .iter()
            .filter_map(|(_, event)| event.commit())
            .map(|commit| commit.rows.len())
            .sum();
        let all: usize = rows.values().map(BTreeSet::len).sum();
        assert!(
            seen <= all && !events.is_empty(),
            "the WAL from {from} to {end} was not understood"
        );
        Self(events)
    }

    /// Every commit, in the order of the WAL.
    pub fn commits(&self) -> impl Iterator<Item = &Commit> {
        self.0.iter().filter_map(|(_, event)| event.commit())
    }

    /// This history up to `fork`, and from there on that of a timeline which left it there.
    #[must_use]
    pub fn then(&self, fork: Lsn, later: &Self) -> Self {
        let before = self.0.iter().filter(|(lsn, _)| *lsn < fork);
        Self(before.chain(&later.0).cloned().collect())
    }

    /// When each transaction that was rolled back and had an id was, with that id, in the order of the WAL.
    pub fn aborts(&self) -> impl Iterator<Item = (Lsn, u32)> {
        self.0.iter().filter_map(|(lsn, event)| match event {
            Event::Abort { xid, .. } => Some((*lsn, *xid)),
            _ => None,
        })
    }

    /// The last commit that a recovery to `target` replays, and the first that it leaves out.
    pub fn around(&self, target: &Target, inclusive: bool) -> (Option<&Commit>, Option<&Commit>) {
        let (before, after) = self.0.split_at(self.replayed(target, inclusive));
        let commit = |(_, event): &'_ (Lsn, Event)| event.commit().is_some();
        let last = before.iter().rfind(|entry| commit(entry));
        let next = after.iter().find(|entry| commit(entry));
        (
            last.and_then(|(_, event)| event.commit()),
            next.and_then(|(_, event)| event.commit()),
        )
    }

    /// The rows that a recovery to `target` must give, of those whose commit this history knows. A target
    /// that the WAL does not reach gives them all.
    pub fn expected(&self, target: &Target, inclusive: bool) -> BTreeSet<i64> {
        let replayed = self.replayed(target, inclusive);
        let commits = self.0[..replayed].iter().filter_map(|(_, event)| event.commit());
        commits.flat_map(|commit| &commit.rows).copied().collect()
    }

    /// How many records are replayed: `recoveryStopsBefore` and `recoveryStopsAfter` of PostgreSQL's
    /// `xlogrecovery.c` in other words.
    fn replayed(&self, target: &Target, inclusive: bool) -> usize {
        let first = |stops: &dyn Fn(Lsn, &Event) -> bool| self.0.iter().position(|(lsn, event)| stops(*lsn, event));
        let (found, and_it_too) = match target {
            // Never the record itself: its time is later, or not wanted any more.
            Target::Time(target) => {
                let stops = |time| if inclusive { time > *target } else { time >= *target };
                (first(&|_, event| event.time().is_some_and(stops)), false)
            }
            Target::Lsn(target) => (first(&|lsn, _| lsn >= *target), inclusive),
            Target::Xid(target) => (first(&|_, event| event.xid() == Some(*target)), inclusive),
            Target::Name(target) => (
                first(&|_, event| matches!(event, Event::RestorePoint(name) if name == target)),
                true,
            ),
        };
        found.map_or(self.0.len(), |at| at + usize::from(and_it_too))
    }
}

impl Event {
    fn commit(&self) -> Option<&Commit> {
        if let Self::Commit(commit) = self {
            Some(commit)
        } else {
            None
        }
    }

    fn time(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Commit(Commit { time, .. }) | Self::Abort { time, .. } => Some(*time),
            _ => None,
        }
    }

    fn xid(&self) -> Option<u32> {
        match self {
            Self::Commit(Commit { xid, .. }) | Self::Abort { xid, .. } => Some(*xid),
            _ => None,
        }
    }
}

/// Reads a line of `pg_waldump`: `rmgr: Transaction len (rec/tot): 34/34, tx: 735, lsn: 0/01568E30, prev
/// 0/01568DF8, desc: COMMIT 2026-11-21 12:00:14.123456 UTC; …`
fn record(line: &str, rows: &BTreeMap<u32, BTreeSet<i64>>) -> Option<(Lsn, Event)> {
    let (head, description) = line.split_once(", desc: ")?;
    let field = |name: &str| {
        head.split(", ")
            .find_map(|field| field.strip_prefix(name))
            .map(str::trim)
    };
    let lsn: Lsn = field("lsn: ")?.parse().ok()?;
    let xid: u32 = field("tx: ")?.parse().ok()?;
    let (what, about) = description.split_once(' ').unwrap_or((description, ""));
    let time = || {
        let (text, _) = about.split_once(" UTC").expect("a time in UTC");
        NaiveDateTime::parse_from_str(text, "%F %T%.f")
            .expect("a time")
            .and_utc()
    };
    let event = match what {
        "COMMIT" => Event::Commit(Commit {
            lsn,
            xid,
            time: time(),
            rows: rows.get(&xid).cloned().unwrap_or_default(),
        }),
        "ABORT" => Event::Abort { xid, time: time() },
        "RESTORE_POINT" => Event::RestorePoint(about.to_owned()),
        _ => Event::Other,
    };
    Some((lsn, event))
}
