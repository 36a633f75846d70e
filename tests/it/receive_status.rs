//! What a receiver tells: its status to scripts, its log to people and machines.

use serde_json::Value;

use crate::support::cluster::{Cluster, Stop};
use crate::support::process::wait_for;
use crate::support::program::Answer;
use crate::support::receiver::Receiver;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

/// The events of a log in JSON.
fn events(receiver: &Receiver) -> Vec<Value> {
    let log = receiver.log();
    let event = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    log.lines().map(event).collect()
}

#[test]
fn a_receiver_tells_scripts_and_its_log_how_it_is_until_it_ends() {
    let (scratch, vault) = (Scratch::new(), Vault::folder());
    let mut server = Cluster::new();
    let receive = |more: &[&str]| {
        let mut command = vault.command();
        // The place of the status follows from these; a test must not meet another's.
        command
            .env("XDG_RUNTIME_DIR", scratch.path())
            .args(["receive", "--slot", "pgp"])
            .args(more);
        command
    };
    let status = |more: &[&str]| Answer::of(receive(&["--status"]).args(more));
    let told = |code: i32| {
        wait_for("a status with that exit code", || {
            let answer = status(&["--json"]);
            (answer.code == code && !answer.stdout.is_empty()).then(|| answer.json())
        })
    };
    assert!(
        status(&[])
            .with_code(5)
            .stderr
            .contains("no receiver has left its status")
    );

    let mut start = receive(&["--create-slot", "--log-format", "json", "-d", &server.conninfo()]);
    let mut running = Receiver::start(&mut start, scratch.join("log"));
    let well = told(0);
    assert_eq!(
        (&well["running"], &well["healthy"]),
        (&true.into(), &true.into()),
        "{well}"
    );
    assert_eq!(
        (&well["state"], &well["slot"]),
        (&"streaming".into(), &"pgp".into()),
        "{well}"
    );
    assert_eq!(well["pid"], running.id());
    server.sql("create table t (n int); insert into t values (1)");
    let end = server.sql("select pg_current_wal_flush_lsn()");
    let caught_up = wait_for("everything is durable", || {
        let status = told(0);
        (status["durable_lsn"] == end.as_str() && status["data_at_risk_seconds"] == 0.0).then_some(status)
    });
    assert_eq!(caught_up["received_lsn"], end.as_str());
    assert!(caught_up["pieces"].as_u64() >= Some(1), "{caught_up}");
    let words = status(&[]).with_code(0).stdout;
    assert!(
        words.starts_with("slot pgp: streaming, from ") && words.contains("no data at risk"),
        "{words}"
    );

    server.stop(Stop::Immediate);
    let out = told(5);
    assert_eq!(
        (&out["state"], &out["running"]),
        (&"server_unavailable".into(), &true.into()),
        "{out}"
    );
    assert!(
        out["last_error"]["message"].is_string() && out["reconnects"].as_u64() >= Some(1),
        "{out}"
    );
    server.start();
    told(0);

    assert_eq!(running.stop(), Some(0));
    let stopped = told(5);
    assert_eq!(
        (&stopped["state"], &stopped["running"]),
        (&"stopped".into(), &false.into()),
        "{stopped}"
    );
    let states: Vec<Value> = events(&running)
        .iter()
        .map(|event| event["state"].clone())
        .filter(Value::is_string)
        .collect();
    for state in ["connecting", "streaming", "server_unavailable", "stopping", "stopped"] {
        assert!(states.contains(&state.into()), "{state} is not in {states:?}");
    }
    assert!(
        events(&running)
            .iter()
            .all(|event| event["timestamp"].is_string() && event["level"].is_string())
    );

    // Killed, it can't say that it is gone: its lock does.
    let status_file = scratch.join("elsewhere.json");
    let here = ["--status-file", status_file.to_str().unwrap()];
    let mut start = receive(&[&here[..], &["-d", &server.conninfo()]].concat());
    let mut running = Receiver::start(&mut start, scratch.join("log-2"));
    wait_for("it streams", || (status(&here).code == 0).then_some(()));
    assert_eq!(
        told(5)["state"],
        "stopped",
        "the usual place is not the one that was named"
    );
    running.kill9();
    let answer = status(&here).with_code(5);
    assert!(answer.stderr.contains("gone, and was streaming"), "{answer:?}");
}
