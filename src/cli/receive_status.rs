//! `pgp-pitr receive --status`: what a receiver on this machine is doing, for people and scripts.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::report::{self, printable};
use super::settings::Settings;
use crate::env::Env;
use crate::error::{Class, Explain, Failure};
use crate::ops::receive::status::{Health, Seen, Status, find, place};
use crate::pg::size::Size;
use crate::pg::time::rfc3339;
use crate::replication::SlotName;

/// Why the exit code is not 0, though the status was told.
#[derive(Debug, thiserror::Error)]
enum Unwell {
    #[error("no slot was named")]
    NoSlot,
    #[error("no receiver runs for the slot \"{slot}\": the last one is {state}")]
    NotRunning { slot: String, state: String },
    #[error("the receiver is {0}")]
    Out(String),
    #[error("the receiver is {0}")]
    Behind(String),
}

impl Explain for Unwell {
    fn class(&self) -> Class {
        match self {
            Self::NoSlot => Class::Usage,
            Self::NotRunning { .. } | Self::Out(_) => Class::Unavailable,
            Self::Behind(_) => Class::OutOfReach,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSlot => Some("give the receiver's --slot NAME, or its --status-file PATH".to_owned()),
            _ => None,
        }
    }
}

/// Where this command's receiver keeps its status: what the settings say, or else the usual place, which is made.
///
/// # Errors
/// No repository was named; no safe folder can be made.
pub fn status_file(settings: &Settings, slot: &SlotName, env: &Env) -> Result<PathBuf, Failure> {
    match settings.text("status_file") {
        Some((path, _)) => Ok(path.into()),
        None => {
            let here = std::env::current_dir().unwrap_or_default();
            Ok(place(slot, &settings.repo()?.from_folder(&here), env)?)
        }
    }
}

/// Tells the status on standard output; the exit code is in the error: 3 where the receiver runs and is behind,
/// stalled, or has a gap, 5 where none runs, or server or store are out of reach.
///
/// # Errors
/// That, and a status that can't be found or read.
pub fn receive_status(settings: &Settings, env: &Env, as_json: bool) -> Result<(), Failure> {
    let path = match (settings.text("status_file"), settings.read("slot", SlotName::new)?) {
        (Some((path, _)), _) => path.into(),
        (None, Some(slot)) => {
            let here = std::env::current_dir().unwrap_or_default();
            find(&slot, &settings.repo()?.from_folder(&here), env)
        }
        (None, None) => return Err(Unwell::NoSlot.into()),
    };
    let seen = Seen::read(&path, env.now())?;
    report::answer(&match as_json {
        true => format!("{}\n", document(&seen)),
        false => describe(&seen),
    })?;
    judged(&seen).map_err(Failure::from)
}

/// The receiver's own words, and what whoever looks adds.
fn document(seen: &Seen) -> Value {
    let mut document = json!(seen.status);
    document["running"] = json!(seen.running);
    document["stalled"] = json!(seen.stalled);
    document["healthy"] = json!(seen.health() == Health::Well);
    document
}

fn judged(seen: &Seen) -> Result<(), Unwell> {
    let status = &seen.status;
    let state = status.state.word().replace('_', " ");
    if !seen.running {
        return Err(Unwell::NotRunning {
            slot: printable(&status.slot),
            state: match status.state.health() {
                Health::Out => state,
                _ => format!("gone, and was {state}"),
            },
        });
    }
    let why = match status.state.health() {
        Health::Well if seen.stalled => format!("stalled: it has said nothing since {}", rfc3339(status.written_at)),
        Health::Well if !status.gaps.is_empty() => format!("{state}, with a gap behind it: take a base backup"),
        _ => match &status.detail {
            Some(detail) => format!("{state}: {}", printable(detail)),
            None => state,
        },
    };
    match seen.health() {
        Health::Well => Ok(()),
        Health::Behind => Err(Unwell::Behind(why)),
        Health::Out => Err(Unwell::Out(why)),
    }
}

fn describe(seen: &Seen) -> String {
    let status = &seen.status;
    let mut lines = vec![first_line(seen)];
    lines.extend(status.detail.as_deref().map(printable));
    lines.push(positions(status));
    lines.push(lag(status));
    if let (Some(held), Some(limit)) = (status.spool_bytes, status.spool_limit_bytes) {
        lines.push(format!(
            "spool: {} of {}",
            Size::new(held).short(),
            Size::new(limit).short()
        ));
    }
    lines.extend(slot(status));
    for gap in &status.gaps {
        lines.push(format!(
            "gap: {} to {} of timeline {} is missing",
            gap.from, gap.to, gap.timeline
        ));
    }
    lines.push(format!(
        "{} segments and {} pieces stored, {} received, {} stored, {} reconnects",
        status.segments,
        status.pieces,
        Size::new(status.bytes_received).short(),
        Size::new(status.bytes_stored).short(),
        status.reconnects,
    ));
    if let Some(error) = &status.last_error {
        lines.push(format!(
            "last error, at {}: {}",
            rfc3339(error.at),
            printable(&error.message)
        ));
    }
    format!("{}\n", lines.join("\n  "))
}

fn first_line(seen: &Seen) -> String {
    let status = &seen.status;
    let mut line = format!(
        "slot {}: {}",
        printable(&status.slot),
        status.state.word().replace('_', " ")
    );
    if !seen.running {
        line.push_str(", not running");
    } else if seen.stalled {
        line.push_str(", stalled");
    }
    if let Some(server) = &status.server {
        line.push_str(&format!(", from {}", printable(server)));
    }
    if let Some(system) = &status.system_identifier {
        line.push_str(&format!(", cluster {system}"));
    }
    if let Some(timeline) = &status.timeline {
        line.push_str(&format!(", timeline {timeline}"));
    }
    if status.synchronous {
        line.push_str(", synchronous");
    }
    let (started, written) = (rfc3339(status.started_at), rfc3339(status.written_at));
    format!("{line}\n  process {}, started {started}, as of {written}", status.pid)
}

fn positions(status: &Status) -> String {
    let told = |lsn: Option<crate::pg::Lsn>| lsn.map_or_else(|| "unknown".to_owned(), |lsn| lsn.to_string());
    let stored = match status.stored_lsn == status.durable_lsn {
        true => String::new(),
        false => format!(" (in the repository {})", told(status.stored_lsn)),
    };
    format!(
        "durable {}{stored}, received {}, server at {}",
        told(status.durable_lsn),
        told(status.received_lsn),
        told(status.server_lsn),
    )
}

fn lag(status: &Status) -> String {
    let (Some(bytes), Some(seconds), Some(risk)) = (status.lag_bytes, status.lag_seconds, status.data_at_risk_seconds)
    else {
        return "lag unknown: nothing was received yet".to_owned();
    };
    let at_risk = match risk {
        0.0 => "no data at risk".to_owned(),
        risk => format!("data at risk: the last {risk:.1} s"),
    };
    format!(
        "behind by {} and {seconds:.1} s of commits; {at_risk}",
        Size::new(bytes).short()
    )
}

fn slot(status: &Status) -> Option<String> {
    let word = status.slot_wal_status.as_deref()?;
    let left = status.slot_bytes_left.map_or_else(
        || "nothing limits what the server keeps for it: set max_slot_wal_keep_size".to_owned(),
        |left| format!("lost after {} more of WAL", Size::new(left).short()),
    );
    Some(format!("the slot's WAL is {}; {left}", printable(word)))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::ops::receive::risk::Lag;
    use crate::ops::receive::status::{Gap, LastError, State};
    use crate::pg::{Lsn, Timeline};

    fn seen(state: State) -> Seen {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let mut status = Status::new("pgp", true, at);
        status.pid = 4711;
        status.state = state;
        Seen {
            status,
            running: true,
            stalled: false,
        }
    }

    fn code(seen: &Seen) -> u8 {
        judged(seen).map_or_else(|unwell| unwell.class().code(), |()| 0)
    }

    #[test]
    fn the_exit_code_says_how_the_receiver_is() {
        assert_eq!(code(&seen(State::Streaming)), 0);
        for state in [
            State::Connecting,
            State::CatchingUp,
            State::WaitingForSlot,
            State::Gap,
            State::Stopping,
        ] {
            assert_eq!(code(&seen(state)), 3, "{state:?}");
        }
        for state in [
            State::StoreUnavailable,
            State::Spooling,
            State::SpoolFull,
            State::ServerUnavailable,
        ] {
            assert_eq!(code(&seen(state)), 5, "{state:?}");
        }
        let mut gone = seen(State::Streaming);
        gone.running = false;
        assert_eq!(code(&gone), 5);
        let words = judged(&gone).unwrap_err().to_string();
        assert_eq!(
            words,
            "no receiver runs for the slot \"pgp\": the last one is gone, and was streaming"
        );
        let mut with_gap = seen(State::Streaming);
        with_gap.status.add_gap(Gap {
            timeline: Timeline::FIRST,
            from: Lsn::new(1),
            to: Lsn::new(2),
        });
        assert_eq!(code(&with_gap), 3);
        let mut stalled = seen(State::Streaming);
        stalled.stalled = true;
        assert_eq!(code(&stalled), 3);
    }

    #[test]
    fn people_are_told_in_lines() {
        let mut seen = seen(State::Spooling);
        let status = &mut seen.status;
        status.detail = Some("the store does not answer\u{1b}[2K".to_owned());
        status.server = Some("db1:5432".to_owned());
        status.timeline = Timeline::new(3);
        status.received_lsn = Some(Lsn::new(0x500_0A10));
        status.server_lsn = status.received_lsn;
        status.durable_lsn = Some(Lsn::new(0x400_0000));
        status.stored_lsn = status.durable_lsn;
        status.set_lag(Lag {
            bytes: 16_780_816,
            commit_time: std::time::Duration::from_millis(2500),
            data_at_risk: std::time::Duration::from_secs(7),
        });
        (status.spool_bytes, status.spool_limit_bytes) = (Some(16 << 20), Some(1 << 30));
        (status.slot_bytes_left, status.slot_wal_status) = (Some(3 << 30), Some("reserved".to_owned()));
        status.last_error = Some(LastError {
            at: status.started_at,
            message: "timed out".to_owned(),
        });
        assert_eq!(
            describe(&seen),
            "slot pgp: spooling, from db1:5432, timeline 3, synchronous\n  \
             process 4711, started 2027-01-15T08:00:00.000000Z, as of 2027-01-15T08:00:00.000000Z\n  \
             the store does not answer\\u{1b}[2K\n  \
             durable 0/4000000, received 0/5000A10, server at 0/5000A10\n  \
             behind by 16.0 MiB and 2.5 s of commits; data at risk: the last 7.0 s\n  \
             spool: 16.0 MiB of 1.00 GiB\n  \
             the slot's WAL is reserved; lost after 3.00 GiB more of WAL\n  \
             0 segments and 0 pieces stored, 0 B received, 0 B stored, 0 reconnects\n  \
             last error, at 2027-01-15T08:00:00.000000Z: timed out\n"
        );
        let document = document(&seen);
        assert_eq!(
            (&document["running"], &document["healthy"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(document["state"], "spooling");
    }
}
