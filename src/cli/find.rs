//! `pgp-pitr find`.

mod bars;
mod text;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::Path;

use serde_json::{Value, json};

use super::args::FindArgs;
use super::pitr::{PROGRAM, Session};
use super::report;
use super::run::{block_on, open_store};
use super::settings::Origin;
use crate::catalog::Catalog;
use crate::error::{Class, Explain, Failure};
use crate::ops::find::{self, Found, Happened, Kind, Note, Reach, Request, Window};
use crate::ops::plan;
use crate::pg::settings::shell_text;
use crate::pg::time::{Clock, RecoveryTime, rfc3339};
use crate::pg::{Lsn, SystemId, Timeline};
use crate::repo::Repository;
use crate::wal::Xid;

/// What stands in commands for the directory that somebody must choose.
const DIRECTORY: &str = "/path/to/new/directory";
/// The settings file that is found without being named.
const USUAL_FILE: &str = "/etc/pgp/pgp.toml";

/// Flags that say nothing that can be found.
#[derive(Debug, thiserror::Error)]
enum FlagError {
    #[error("{flag} \"{value}\": {why}")]
    Value {
        flag: &'static str,
        value: String,
        why: String,
    },
    #[error("--between ends before it begins: {from} is not before {to}")]
    Reversed { from: String, to: String },
    #[error("--between takes two times or two positions in the WAL, not one of each")]
    Mixed,
}

impl Explain for FlagError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Reversed { .. } => Some("give the earlier one first".to_owned()),
            Self::Value { .. } | Self::Mixed => None,
        }
    }
}

fn value(flag: &'static str, value: &str, why: impl ToString) -> FlagError {
    FlagError::Value {
        flag,
        value: value.to_owned(),
        why: why.to_string(),
    }
}

impl Session {
    pub(super) fn find(&self, args: &FindArgs) -> Result<(), Failure> {
        let request = self.find_request(args)?;
        let cluster = self.settings.get::<SystemId>("cluster")?;
        let store = open_store(PROGRAM, &self.settings, &self.env)?;
        let (found, info) = block_on(async {
            let repository = Repository::open(&store).await?;
            let info = plan::choose_cluster(&repository, cluster).await?;
            let catalog = Catalog::read(&repository, info).await?;
            Ok((find::find(&repository, &catalog, &request).await?, catalog.info))
        })?;
        for remark in &found.remarks {
            report::warning(PROGRAM, remark);
        }
        for note in &found.notes {
            report::warning(PROGRAM, &words(note));
        }
        if found.events.is_empty() {
            report::note(&nothing(&request, &found));
        }
        let command = self.command(cluster)?;
        if args.json {
            let events: Vec<Value> = found.events.iter().map(|event| json(event, &command)).collect();
            let gaps: Vec<Value> = found.notes.iter().map(gap).collect();
            let answer = json!({
                "system_identifier": info.system, "events": events, "gaps": gaps, "notes": found.remarks,
            });
            return Ok(report::answer(&format!("{answer}\n"))?);
        }
        let terminal = io::stdout().is_terminal();
        let head = format!("cluster {}, PostgreSQL {}\n", info.system, info.major.number());
        let mut answer = String::new();
        if terminal {
            answer.push_str(&head);
            answer.push_str(&self.bars(&found, &request));
        }
        answer.push_str(&text::events(&found.events, &self.env, &command));
        Ok(report::answer(&answer)?)
    }

    fn bars(&self, found: &Found, request: &Request) -> String {
        let span = match request.window {
            Some(Window::Times(from, to)) => Some((from, to)),
            _ => None,
        };
        bars::draw(found, span, bars::width(&self.env), &self.env)
    }

    fn find_request(&self, args: &FindArgs) -> Result<Request, Failure> {
        let mut kinds = Vec::new();
        let asked = [
            (args.drop, &[Kind::Drop, Kind::DropDatabase, Kind::DropTablespace][..]),
            (args.truncate, &[Kind::Truncate]),
            (args.mass_delete.is_some(), &[Kind::MassDelete]),
            (args.restore_points, &[Kind::RestorePoint]),
        ];
        for (_, more) in asked.iter().filter(|(asked, _)| *asked) {
            kinds.extend_from_slice(more);
        }
        let least = args.mass_delete.as_deref().map(rows).transpose()?;
        let (epoch, xid) = args.xid.as_deref().map(xid).transpose()?.unzip();
        let timeline = args.timeline.as_deref().map(|text| {
            let timeline = text.parse::<Timeline>();
            timeline.map_err(|error| value("--timeline", text, error))
        });
        let relation = args.relation.as_deref().map(|name| match name {
            "" => Err(value("--relation", name, "it is empty")),
            name if name.contains('.') => Ok(name.to_owned()),
            name => Ok(format!("public.{name}")),
        });
        let window = match (&args.between, &args.around) {
            (Some(ends), _) => match &ends[..] {
                [from, to] => Some(self.between(from, to)?),
                _ => None,
            },
            (None, Some(at)) => Some(Window::Around(self.time(at)?.instant())),
            (None, None) => None,
        };
        Ok(Request {
            kinds,
            least,
            xid,
            epoch: epoch.flatten(),
            relation: relation.transpose()?,
            database: args.database.clone(),
            window,
            timeline: timeline.transpose()?,
        })
    }

    fn between(&self, from: &str, to: &str) -> Result<Window, Failure> {
        let reversed = || FlagError::Reversed {
            from: from.to_owned(),
            to: to.to_owned(),
        };
        match (from.parse::<Lsn>(), to.parse::<Lsn>()) {
            (Ok(first), Ok(last)) if first < last => Ok(Window::Places(first, last)),
            (Ok(_), Ok(_)) => Err(reversed().into()),
            (Err(_), Err(_)) => {
                let (first, last) = (self.time(from)?.instant(), self.time(to)?.instant());
                match first < last {
                    true => Ok(Window::Times(first, last)),
                    false => Err(reversed().into()),
                }
            }
            (first, _) => {
                let other = if first.is_ok() { to } else { from };
                match is_like_lsn(other) {
                    true => Err(value("--between", other, "it is no position in the WAL").into()),
                    false => Err(FlagError::Mixed.into()),
                }
            }
        }
    }

    fn time(&self, text: &str) -> Result<RecoveryTime, Failure> {
        let clock = Clock {
            now: self.env.local(self.env.now()),
            local_offset: &|wall| self.env.local_offset_at(wall),
        };
        Ok(RecoveryTime::parse(text, &clock)?)
    }

    /// The command that restores to the moment just before an event.
    fn command(&self, cluster: Option<SystemId>) -> Result<Command, Failure> {
        let here = std::env::current_dir().unwrap_or_default();
        let mut common: Vec<OsString> = Vec::new();
        let from_file = matches!(self.settings.text("repo"), Some((_, Origin::File(_))));
        if !from_file {
            common.extend([
                "--repo".into(),
                self.settings.repo()?.from_folder(&here).to_string().into(),
            ]);
        }
        if let Some(file) = self.settings.file().filter(|file| *file != Path::new(USUAL_FILE)) {
            common.extend(["--config".into(), here.join(file).into()]);
        }
        if let Some(cluster) = cluster {
            common.extend(["--cluster".into(), cluster.to_string().into()]);
        }
        Ok(Command { common })
    }
}

/// The restore to a moment, but for the moment.
struct Command {
    common: Vec<OsString>,
}

impl Command {
    fn before(&self, event: &Happened) -> String {
        let own = [
            PROGRAM,
            "restore",
            "--target-lsn",
            &event.before.to_string(),
            "--exclusive",
            "--target-timeline",
            &event.timeline.to_string(),
        ]
        .map(OsString::from);
        let to = ["--to", DIRECTORY].map(OsString::from);
        let words = own.iter().chain(&self.common).chain(&to).map(|word| shell_text(word));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Whether somebody meant this to be a position in the WAL.
fn is_like_lsn(text: &str) -> bool {
    let is_number = |half: &str| !half.is_empty() && half.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.split_once('/')
        .is_some_and(|(high, low)| is_number(high) && is_number(low))
}

fn rows(text: &str) -> Result<u64, FlagError> {
    let rows = text.parse::<u64>().ok().filter(|rows| *rows > 0);
    rows.ok_or_else(|| value("--mass-delete", text, "a number of rows from 1 on"))
}

/// The id as the WAL has it, and how often the ids had gone round, where that is said.
fn xid(text: &str) -> Result<(Option<u32>, Xid), FlagError> {
    // The server shows 64 bits and logs 32; the upper half counts how often the ids went round.
    let whole = text.parse::<u64>().ok();
    let halves = whole.map(|xid| ((xid >> 32) as u32, xid as u32));
    let why = match halves {
        Some((epoch, xid @ 3..)) => return Ok(((epoch > 0).then_some(epoch), Xid::new(xid))),
        Some((1.., _)) => "no transaction has this id: the lower 32 bits are a number from 3 on",
        _ => "a transaction's id is a number from 3 on",
    };
    Err(value("--xid", text, why))
}

fn words(note: &Note) -> String {
    let Note {
        timeline,
        from,
        to,
        why,
    } = note;
    match why {
        Some(why) => format!("WAL of timeline {timeline} from {from} to {to} was not searched: {why}"),
        None => format!("WAL of timeline {timeline} from {from} to {to} is missing"),
    }
}

fn nothing(request: &Request, found: &Found) -> String {
    let said = match (request.xid, &found.unfit) {
        (Some(xid), Some(end)) => {
            return format!(
                "nothing found: transaction {xid} is in the WAL ({} at {} on timeline {}), but nothing of it fits what \
                 was asked for; --xid alone tells what it did",
                end.kind.name(),
                end.lsn,
                end.timeline
            );
        }
        (Some(xid), None) => format!("transaction {xid} is not in the WAL that was searched"),
        (None, _) => "nothing found".to_owned(),
    };
    let reaches: Vec<String> = found.reach.iter().map(reach).collect();
    match reaches.is_empty() {
        true => said,
        false => format!("{said}; the archived WAL reaches {}", reaches.join(", ")),
    }
}

fn reach(reach: &Reach) -> String {
    let Reach { timeline, from, to, .. } = reach;
    let (earliest, latest) = reach.times.unzip();
    let time = |at: Option<_>| at.map_or_else(String::new, |at| format!(" ({})", rfc3339(at)));
    format!(
        "from {from}{} to {to}{} on timeline {timeline}",
        time(earliest),
        time(latest)
    )
}

fn gap(note: &Note) -> Value {
    json!({"timeline": note.timeline, "from_lsn": note.from, "to_lsn": note.to, "reason": note.why})
}

/// An event as the contract has it, and more.
fn json(event: &Happened, command: &Command) -> Value {
    let relations: Vec<Value> = event
        .relations
        .iter()
        .map(|relation| {
            json!({
                "name": relation.name, "oid": relation.oid, "inserts": relation.rows.inserts,
                "updates": relation.rows.updates, "deletes": relation.rows.deletes,
            })
        })
        .collect();
    json!({
        "kind": event.kind.name(),
        "lsn": event.lsn,
        "end_lsn": event.end_lsn,
        "timeline": event.timeline,
        "xid": event.xid,
        "at": event.at.map(rfc3339),
        "database": event.database_name,
        "database_oid": event.database,
        "relations": relations,
        "name": event.name,
        "wal_bytes": event.wal_bytes,
        "files": event.files,
        "complete": !event.wrote_more(),
        "uncertain": event.uncertain,
        "target": {"recovery_target_lsn": event.before, "recovery_target_inclusive": false},
        "reachable": event.reachable,
        "command": command.before(event),
    })
}
