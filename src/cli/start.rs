//! `restore --start`: the restored server is started and followed.

use std::ffi::OsString;

use serde_json::Value;

use super::args::RestoreArgs;
use super::pitr::Session;
use super::report;
use super::restore::FlagError;
use super::watch::{INTERVAL, document, interrupted, tell_words, words};
use crate::error::Failure;
use crate::ops::restore::Goal;
use crate::ops::start::{self, Launched, Start};
use crate::ops::watch::{Ended, Postmaster, Until, WatchError, Watcher};
use crate::plan::recovery::Plan;

/// A server that was started, when it had arrived.
pub(super) struct Started {
    /// What `watch --json` would tell of it, and its log.
    pub(super) document: Value,
    /// The same in words.
    pub(super) text: String,
    /// How to connect, while it runs: what goes behind `psql`.
    pub(super) connect: Option<String>,
}

impl Session {
    /// Finds what a start will need, before anything is restored; `None` where none was asked for.
    pub(super) fn prepare_start(&self, args: &RestoreArgs, goal: &Goal, plan: &Plan) -> Result<Option<Start>, Failure> {
        if !args.start {
            return Ok(None);
        }
        let here = std::env::current_dir().unwrap_or_default();
        let options = start::Options {
            bindir: self.settings.get("bindir")?,
            port: args.port,
            config: args.server_config.as_ref().map(|file| here.join(file)),
            more: args.server_options.clone(),
            run_as: args.run_as.clone(),
        };
        let start = start::prepare(&goal.to, &plan.backup.pg_version, options, &self.env)?;
        if start.gives_away().is_some() {
            let program = super::restore::program("pgp-pitr").map_err(FlagError::Program)?;
            start.rehearse(&program, &same_plan(plan, goal))?;
        }
        Ok(Some(start))
    }

    /// Starts the server and follows it to its target; a standby until it takes connections.
    pub(super) fn start(&self, start: &Start, goal: &Goal) -> Result<Started, Failure> {
        let mut launched = start.launch()?;
        let log = launched.log.path.display().to_string();
        report::note(&format!("starting the server; its log is {log}"));
        let until = match goal.standby {
            Some(_) => Until::Connections,
            None => Until::Target,
        };
        let mut watcher = Watcher::new(&goal.to)?.with_log(Some(launched.log.clone()));
        let starting = Box::new(|| Launched::may_come(&mut launched));
        let ended = self.follow(&mut watcher, until, INTERVAL, None, Some(starting));
        let progress = match ended.inspect_err(tell_words).map_err(port_taken)? {
            Ended::Reached(progress) => progress,
            Ended::Interrupted(_) => return Err(interrupted(&watcher)),
        };
        let now = self.env.now();
        let mut document = document(&watcher, &progress, now);
        document["log"] = log.clone().into();
        let server = progress.seen.postmaster.as_ref();
        let process = server.map_or_else(String::new, |server| format!("process {}, ", server.pid));
        Ok(Started {
            text: format!("{} ({process}log {log})", words(watcher.goal(), &progress, now)),
            connect: server.map(connect),
            document,
        })
    }
}

/// The arguments that plan the same once more, with the settings that the server's `restore_command` will have. It opens
/// every object on the way, and needs not read them whole.
fn same_plan(plan: &Plan, goal: &Goal) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["plan", "--json", "--trust-wal", "--repo", &goal.command.repo]
        .map(OsString::from)
        .to_vec();
    if let Some(config) = &goal.command.config {
        words.extend(["--config".into(), config.into()]);
    }
    let mut flag = |name: String, value: String| words.push(format!("--{name}={value}").into());
    flag("cluster".to_owned(), plan.backup.system_identifier.to_string());
    flag("backup".to_owned(), plan.backup.id.to_string());
    flag("target-timeline".to_owned(), plan.timeline.to_string());
    match plan.requested.value() {
        Some(value) => flag(format!("target-{}", plan.requested.kind()), value),
        None => words.push(format!("--{}", plan.requested.kind()).into()),
    }
    words.extend((!plan.inclusive).then(|| "--exclusive".into()));
    words
}

fn connect(server: &Postmaster) -> String {
    let host = server.host().map_or_else(String::new, |host| format!("-h {host} "));
    let port = server.port.map_or_else(String::new, |port| format!("-p {port} "));
    format!("{host}{port}-d postgres")
}

/// The commonest reason of all has a remedy of its own.
fn port_taken(failure: Failure) -> Failure {
    let words = failure.downcast_ref::<WatchError>().map_or(&[][..], WatchError::words);
    let taken =
        |word: &String| word.contains("Is another postmaster already running on port") || word.contains("lock file \"");
    match words.iter().any(taken) {
        true => failure
            .with_hint("another server has its port: start it with pg_ctl -o '-p PORT', next time with --port PORT"),
        false => failure,
    }
}
