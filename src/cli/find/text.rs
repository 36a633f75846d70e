//! Events for people: a block for each that loses something, a line for each of the many that do not.

use chrono::{DateTime, SecondsFormat, Utc};

use super::super::progress::size;
use super::super::report::printable;
use super::Command;
use crate::env::Env;
use crate::ops::find::{Happened, Kind, Relation};

/// All events, one after the other.
pub(super) fn events(events: &[Happened], env: &Env, command: &Command) -> String {
    let mut text = String::new();
    let mut line_before = true;
    for event in events {
        let is_line = matches!(event.kind, Kind::Commit | Kind::Abort | Kind::Checkpoint);
        if !(text.is_empty() || is_line && line_before) {
            text.push('\n');
        }
        text.push_str(&match is_line {
            true => line(event, env),
            false => block(event, env, command),
        });
        line_before = is_line;
    }
    text
}

fn line(event: &Happened, env: &Env) -> String {
    let about = |relation: &Relation| about(relation, event);
    let relations: Vec<String> = event.relations.iter().map(about).collect();
    let relations = match relations.is_empty() {
        true => String::new(),
        false => format!("; {}", relations.join("; ")),
    };
    format!("{}{}: {}{relations}\n", title(event), when(event.at, env), who(event))
}

fn block(event: &Happened, env: &Env, command: &Command) -> String {
    let mut text = format!("{}{}\n", title(event), when(event.at, env));
    text.push_str(&format!("  {}\n", who(event)));
    if event.uncertain {
        text.push_str("  not all of these need be meant: the transaction both dropped and truncated tables\n");
    }
    for relation in &event.relations {
        text.push_str(&format!("  {}\n", about(relation, event)));
    }
    match event.reachable {
        true => text.push_str(&format!("  just before it: {}\n", command.before(event))),
        false => text.push_str("  no backup and unbroken WAL lead to the moment before it\n"),
    }
    text
}

fn title(event: &Happened) -> String {
    let name = &printable(event.name.as_deref().unwrap_or_default());
    let database = || match (&event.database_name, event.database) {
        (Some(name), _) => printable(name),
        (None, Some(oid)) => format!("of oid {oid}"),
        (None, None) => String::new(),
    };
    match event.kind {
        Kind::Commit => "commit".to_owned(),
        Kind::Abort => "rollback".to_owned(),
        Kind::Prepare => format!("prepared as \"{name}\""),
        Kind::Drop => "DROP".to_owned(),
        Kind::Truncate => "TRUNCATE".to_owned(),
        Kind::MassDelete => "mass DELETE".to_owned(),
        Kind::RestorePoint => format!("restore point \"{name}\""),
        Kind::Checkpoint => "checkpoint".to_owned(),
        Kind::EndOfRecovery => format!("promoted: timeline {} begins", event.timeline),
        Kind::ParameterChange => "started with other settings".to_owned(),
        Kind::Crash => "began anew after a crash".to_owned(),
        Kind::CreateDatabase => format!("CREATE DATABASE {}", database()),
        Kind::DropDatabase => format!("DROP DATABASE {}", database()),
        Kind::CreateTablespace => format!("CREATE TABLESPACE at {name}"),
        Kind::DropTablespace if name.starts_with('/') => format!("DROP TABLESPACE at {name}"),
        Kind::DropTablespace => format!("DROP TABLESPACE of oid {name}"),
    }
}

/// In this machine's zone and in UTC.
fn when(at: Option<DateTime<Utc>>, env: &Env) -> String {
    at.map_or_else(String::new, |at| {
        let local = env.local(at).format("%Y-%m-%d %H:%M:%S%.6f %:z");
        format!(" at {local} ({})", at.to_rfc3339_opts(SecondsFormat::Micros, true))
    })
}

fn who(event: &Happened) -> String {
    let mut words = Vec::new();
    if let Some(xid) = event.xid {
        words.push(format!("transaction {xid}"));
        if let Some(database) = &event.database_name {
            words.push(format!("in database {}", printable(database)));
        }
    }
    words.push(format!("timeline {}", event.timeline));
    words.push(format!("at {}", event.lsn));
    if let Some(bytes) = event.wal_bytes {
        words.push(format!("{}{} of WAL", least(event), size(bytes)));
    }
    words.join(", ")
}

/// What stands before numbers that are too low.
fn least(event: &Happened) -> &'static str {
    match event.wrote_more() {
        true => "at least ",
        false => "",
    }
}

fn about(relation: &Relation, event: &Happened) -> String {
    let oid = relation.oid.map_or_else(String::new, |oid| format!(" (oid {oid})"));
    let rows = [
        (relation.rows.inserts, "inserted"),
        (relation.rows.updates, "updated"),
        (relation.rows.deletes, "deleted"),
    ];
    let rows: Vec<String> = rows
        .iter()
        .filter(|(rows, _)| *rows > 0)
        .map(|(rows, what)| format!("{rows} {what}"))
        .collect();
    let least = least(event);
    let rows = match (rows.is_empty(), event.kind) {
        (true, _) => String::new(),
        (false, Kind::Drop | Kind::Truncate) => format!(", before that {least}{}", rows.join(", ")),
        (false, _) => format!(": {least}{}", rows.join(", ")),
    };
    format!("{}{oid}{rows}", printable(&relation.name))
}
