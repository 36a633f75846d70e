//! The receiver through a spool: the store goes away, the server dies, the receiver is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use pgp_pitr::pg::Lsn;
use serde_json::Value;

use crate::support::chance::Chance;
use crate::support::cluster::{Cluster, Recovered};
use crate::support::process::{kill_with_descendants, wait_for};
use crate::support::program::Answer;
use crate::support::receiver::Receiver;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

/// A server that waits for its receiver, a repository that can be taken away, and a spool.
struct Stage {
    scratch: Scratch,
    vault: Vault,
    server: Cluster,
}

impl Stage {
    fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            vault: Vault::folder(),
            server: Cluster::new(),
        }
    }

    fn receive(&self, more: &[&str]) -> Answer {
        let mut command = self.vault.command();
        command.env("XDG_RUNTIME_DIR", self.scratch.path());
        Answer::of(command.args(["receive", "--slot", "pgp"]).args(more))
    }

    fn receiver(&self, more: &[&str]) -> Receiver {
        let mut command = self.vault.command();
        command
            .env("XDG_RUNTIME_DIR", self.scratch.path())
            .args([
                "receive",
                "--slot",
                "pgp",
                "--create-slot",
                "-d",
                &self.server.conninfo(),
            ])
            .arg("--spool")
            .arg(self.scratch.join("spool"))
            .args(more);
        Receiver::start(&mut command, self.scratch.join("log"))
    }

    fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.receive(&["--status", "--json"]).stdout).ok()
    }

    fn wait_for_state(&self, state: &str) -> Value {
        wait_for(&format!("the receiver is {state}"), || {
            self.status()
                .filter(|status| status["state"] == state && status["running"] == true)
        })
    }

    /// Without its marker a folder is no repository: as if it were not mounted.
    fn take_repository_away(&self) {
        fs::rename(self.marker("pgp.json"), self.marker("away")).unwrap();
    }

    fn bring_repository_back(&self) {
        fs::rename(self.marker("away"), self.marker("pgp.json")).unwrap();
    }

    fn marker(&self, name: &str) -> PathBuf {
        Path::new(self.vault.repo()).join(name)
    }

    fn reaches(&self) -> Option<Lsn> {
        let answer = self.vault.pitr(["plan", "--latest", "--json"]);
        let plan: Value = serde_json::from_str(&answer.stdout).ok()?;
        plan["reaches"]["lsn"].as_str()?.parse().ok()
    }
}

/// From here on commits wait for the receiver.
fn make_synchronous(server: &Cluster) {
    server.set("synchronous_standby_names", "\"pgp-pitr\"");
    server.reload();
    server.wait_until("select count(*) = 1 from pg_stat_replication where sync_state = 'sync'");
}

#[test]
fn what_the_spool_promised_is_restored_though_the_server_died_while_the_store_was_away() {
    let mut stage = Stage::new();
    let promised = ["--synchronous", "--durable", "spool"];
    let mut receiver = stage.receiver(&promised);
    stage.wait_for_state("streaming");
    make_synchronous(&stage.server);
    stage
        .vault
        .pitr(["backup", "--slot", "pgp", "-d", &stage.server.conninfo()])
        .with_code(0);

    stage.take_repository_away();
    stage.server.sql("create table t (n int)");
    for n in 0..20 {
        stage.server.sql(&format!("insert into t values ({n})"));
    }
    // More than a segment, so that the spool holds whole ones, too.
    stage.server.sql("select pg_switch_wal()");
    stage.server.sql("insert into t values (20)");
    let acknowledged: Lsn = stage.server.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
    let spooling = stage.wait_for_state("spooling");
    assert!(spooling["spool_bytes"].as_u64() > Some(0), "{spooling}");
    stage.receive(&["--status"]).with_code(5);

    stage.server.kill9();
    receiver.kill9();
    stage.bring_repository_back();
    let mut receiver = stage.receiver(&promised);
    wait_for("the spool is delivered with no server", || {
        stage.reaches().filter(|lsn| *lsn >= acknowledged)
    });
    assert_eq!(receiver.stop(), Some(0), "{}", receiver.log());

    let to = stage.scratch.join("restored");
    stage.vault.restore(&to, &["--latest", "--archive", "off"]).with_code(0);
    let mut restored = Cluster::on_directory(Major::usual(), &to);
    assert_eq!(restored.recover(), Recovered::Open);
    assert_eq!(restored.sql("select count(*), max(n) from t"), "21|20");
}

#[test]
fn a_store_that_comes_back_is_caught_up_with_and_the_spool_is_let_go() {
    let stage = Stage::new();
    let mut receiver = stage.receiver(&["--tail-interval", "100ms"]);
    stage.wait_for_state("streaming");
    stage.take_repository_away();
    stage
        .server
        .sql("create table t as select generate_series(1, 200000) as n");
    stage.server.sql("select pg_switch_wal()");
    let most = stage.wait_for_state("spooling");
    let flushed = "select flush_lsn from pg_stat_replication";
    let told: Lsn = stage.server.sql(flushed).parse().unwrap();
    stage.bring_repository_back();
    stage.server.sql("insert into t values (0)");
    let end: Lsn = stage.server.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
    assert!(told < end, "nothing was promised that was in the spool only");
    let well = wait_for("all is stored", || {
        let status = stage.status()?;
        let durable: Lsn = status["durable_lsn"].as_str()?.parse().ok()?;
        (status["state"] == "streaming" && durable >= end).then_some(status)
    });
    assert!(
        well["spool_bytes"].as_u64() <= most["spool_limit_bytes"].as_u64(),
        "{well}"
    );
    assert!(well["spool_bytes"].as_u64() < Some(32 << 20), "{well}");
    assert_eq!(receiver.stop(), Some(0), "{}", receiver.log());
    stage.vault.pitr(["list"]).with_code(0);
}

/// Does something when it goes.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Rounds of killing and taking away.
const ROUNDS: usize = 10;

#[test]
fn no_acknowledged_commit_is_lost_whatever_is_killed_and_taken_away() {
    let chance = Chance::new();
    let mut stage = Stage::new();
    let promised = ["--synchronous", "--durable", "spool"];
    let mut receiver = stage.receiver(&promised);
    stage.wait_for_state("streaming");
    make_synchronous(&stage.server);
    stage
        .vault
        .pitr(["backup", "--slot", "pgp", "-d", &stage.server.conninfo()])
        .with_code(0);
    stage.server.sql("create table t (n int)");
    let postmaster = fs::read_to_string(stage.server.data_dir().join("postmaster.pid")).unwrap();
    let postmaster = postmaster.lines().next().unwrap().parse().unwrap();
    let acknowledged = Mutex::new(Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            // Until the server is gone. Each row is a commit that waits for the receiver.
            for n in 0.. {
                // Now and then a segment ends.
                let switch = if n % 25 == 24 { "; select pg_switch_wal()" } else { "" };
                if stage
                    .server
                    .try_sql(&format!("insert into t values ({n}){switch}"))
                    .is_err()
                {
                    break;
                }
                acknowledged.lock().unwrap().push(n);
            }
        });
        // Also where something here fails: the writer ends when its server does.
        let _end = OnDrop(|| kill_with_descendants(postmaster));
        let mut away = false;
        for _ in 0..ROUNDS {
            if chance.below(2) == 0 {
                match away {
                    true => stage.bring_repository_back(),
                    false => stage.take_repository_away(),
                }
                away = !away;
            }
            thread::sleep(Duration::from_millis(chance.below(1500) as u64));
            // With the store away nothing is known of the cluster but what the spool says; that must do.
            if chance.below(2) == 0 {
                receiver.kill9();
                if away {
                    stage.bring_repository_back();
                    away = false;
                }
                receiver = stage.receiver(&promised);
            }
        }
        if away {
            stage.bring_repository_back();
        }
    });
    stage.server.has_exited();
    receiver.kill9();
    let mut receiver = stage.receiver(&promised);
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.len() > 10, "only {} rows", acknowledged.len());
    let mut reached = None;
    wait_for("nothing more comes out of the spool", || {
        thread::sleep(Duration::from_secs(1));
        let before = std::mem::replace(&mut reached, stage.reaches());
        (before.is_some() && before == reached).then_some(())
    });
    assert_eq!(receiver.stop(), Some(0), "{}", receiver.log());

    let to = stage.scratch.join("restored");
    stage.vault.restore(&to, &["--latest", "--archive", "off"]).with_code(0);
    let mut restored = Cluster::on_directory(Major::usual(), &to);
    assert_eq!(restored.recover(), Recovered::Open);
    let rows: Vec<i32> = restored
        .sql("select n from t order by n")
        .lines()
        .map(|n| n.parse().unwrap())
        .collect();
    let lost: Vec<&i32> = acknowledged.iter().filter(|n| !rows.contains(n)).collect();
    assert!(
        lost.is_empty(),
        "{lost:?} of {} are lost; {reached:?}",
        acknowledged.len()
    );
}
