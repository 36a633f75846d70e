//! `pgp-pitr plan` and `pgp-pitr restore`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::args::{RestoreArgs, TargetArgs};
use super::pitr::{PROGRAM, Session};
use super::progress::{Progress, size};
use super::report;
use super::run::{block_on, open_store};
use super::start::Started;
use crate::catalog::Catalog;
use crate::error::{Class, Explain, Failure};
use crate::ops::plan::{self, Request, TimelineChoice};
use crate::ops::restore::{self, Action, Goal, RestoreCommand};
use crate::ops::start::Start;
use crate::pg::conninfo::Overrides;
use crate::pg::settings::shell_text;
use crate::pg::time::{Clock, RecoveryTime, rfc3339};
use crate::pg::{Leg, Lsn, SystemId, Timeline};
use crate::plan::recovery::{Moment, Plan, Refusal, Requested};
use crate::repo::Repository;
use crate::repo::backup::BackupId;
use crate::wal::Xid;

/// Flags that don't go together, or say nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlagError {
    #[error("no target was named")]
    NoTarget,
    #[error("no data directory was named")]
    NoDirectory,
    #[error("{flag} \"{value}\": {why}")]
    Value {
        flag: &'static str,
        value: String,
        why: String,
    },
    #[error("--exclusive makes no sense with --{0}")]
    Exclusive(&'static str),
    #[error("where this program lies can't be told")]
    Program(#[source] std::io::Error),
}

impl Explain for FlagError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoTarget => Some(
                "give one of --target-time, --target-lsn, --target-xid, --target-name, --latest and --immediate"
                    .to_owned(),
            ),
            Self::NoDirectory => Some("give --to DIR, or set PGDATA".to_owned()),
            _ => None,
        }
    }
}

fn value(flag: &'static str, value: &str) -> impl FnOnce(String) -> FlagError {
    let value = value.to_owned();
    move |why| FlagError::Value { flag, value, why }
}

/// What a restore has done.
struct Done {
    plan: Plan,
    goal: Goal,
    answer: Value,
    start: Option<Start>,
}

impl Session {
    pub(super) fn plan_or_restore(&self, args: &RestoreArgs, act: bool) -> Result<(), Failure> {
        let restored = block_on(self.restored(args, act));
        if let (true, Err(failure)) = (args.json, &restored)
            && let Some(refusal) = failure.downcast_ref::<Refusal>()
        {
            report::answer(&format!("{}\n", refused(refusal)))?;
        }
        let Some(mut done) = restored? else {
            return Ok(());
        };
        let started = match &done.start {
            Some(start) => Some(self.start(start, &done.goal)?),
            None => None,
        };
        let text = if args.json {
            if let Some(started) = started {
                done.answer["started"] = started.document;
            }
            format!("{}\n", done.answer)
        } else {
            next_steps(&done.plan, &done.goal, started.as_ref())
        };
        Ok(report::answer(&text)?)
    }

    /// Plans, answers where no more was asked for, else restores.
    async fn restored(&self, args: &RestoreArgs, act: bool) -> Result<Option<Done>, Failure> {
        let request = self.request(args)?;
        let goal = self.goal(args, act)?;
        let cluster = self.settings.get::<SystemId>("cluster")?;
        let store = open_store(PROGRAM, &self.settings, &self.env)?;
        if let (true, Some(goal)) = (act, &goal) {
            // Before anything is fetched: a directory that is in use is a slip of the hand.
            restore::check_directory(&goal.to)?;
        }
        let repository = Repository::open(&store).await?;
        let info = plan::choose_cluster(&repository, cluster).await?;
        let catalog = Catalog::read(&repository, info).await?;
        let mut plan = plan::plan(&repository, &catalog, &request).await?;
        if !args.trust_wal {
            let mut progress = Progress::begin();
            let mut tell = |done, total| progress.counted("checking WAL", done, total, "segments");
            plan::prove(&repository, &catalog, &request, &mut plan, &mut tell).await?;
            progress.end();
        }
        plan.warnings.extend(self.warnings(&request, goal.as_ref()));
        let settings = match &goal {
            Some(goal) => restore::recovery_settings(&plan, goal)?,
            None => Vec::new(),
        };
        let settings = self.without_passwords(settings)?;
        let start = match &goal {
            Some(goal) => self.prepare_start(args, goal, &plan),
            None => Ok(None),
        };
        if let (false, Some(goal)) = (act, &goal) {
            restore::check_mappings(&plan, goal)?;
            let refused = restore::check(&plan, goal).err().filter(|_| args.to.is_some());
            let refused = refused.map(|failure| failure.one_line());
            let refused = refused.into_iter().chain(start.as_ref().err().map(Failure::one_line));
            plan.warnings
                .extend(refused.map(|failure| format!("restore would refuse this: {failure}")));
        }
        if act && rustix::process::geteuid().is_root() {
            let owner = start.as_ref().ok().and_then(|start| start.as_ref()?.gives_away());
            plan.warnings.push(as_root(owner));
        }
        let mut answer = json(&plan, &settings);
        if !act {
            let text = if args.json {
                format!("{answer}\n")
            } else {
                describe(&plan, &settings, false)
            };
            report::answer(&text)?;
            return Ok(None);
        }
        let mut start = start?;
        let Some(goal) = goal else {
            return Err(FlagError::NoDirectory.into());
        };
        if let Some(start) = &mut start {
            start.gives_too(restore::folders_for_replay(&plan, &goal));
        }
        report::note(describe(&plan, &settings, true).trim_end());
        restore::check(&plan, &goal)?;
        let mut progress = Progress::begin();
        let total = plan.backup.size_bytes;
        let mut tell = |bytes: u64| progress.bytes(bytes, total, "");
        restore::restore(&repository, &plan, &goal, &self.env, &mut tell).await?;
        progress.end();
        let config = args.server_config.as_deref();
        if let (Some(names), None) = (restore::synchronous_standbys(&goal.to, config), &goal.standby) {
            let waits = commits_wait(&names);
            report::warning(PROGRAM, &waits);
            if let Some(warnings) = answer["warnings"].as_array_mut() {
                warnings.push(waits.into());
            }
        }
        Ok(Some(Done {
            plan,
            goal,
            answer,
            start,
        }))
    }

    /// The settings as they may be shown: how to reach the primary, without what opens it.
    fn without_passwords(&self, settings: restore::RecoverySettings) -> Result<restore::RecoverySettings, Failure> {
        let shown = |(name, value): (&'static str, Vec<u8>)| match name {
            "primary_conninfo" => {
                let info = self.resolve(Some(&String::from_utf8_lossy(&value)), &Overrides::default())?;
                Ok((name, info.to_string().into_bytes()))
            }
            _ => Ok((name, value)),
        };
        settings.into_iter().map(shown).collect()
    }

    fn request(&self, args: &RestoreArgs) -> Result<Request, Failure> {
        let requested = match self.requested(&args.target) {
            // A standby follows its primary: as far as there is WAL.
            Err(_) if args.standby.is_some() && args.target.is_none() => Requested::Latest,
            requested => requested?,
        };
        if args.exclusive && !matches!(requested, Requested::Time(..) | Requested::Lsn(_) | Requested::Xid(_)) {
            let kind = match requested {
                Requested::Name(_) => "target-name",
                _ => requested.kind(),
            };
            return Err(FlagError::Exclusive(kind).into());
        }
        let timeline = match args.target_timeline.as_str() {
            "latest" => TimelineChoice::Latest,
            number => TimelineChoice::Number(
                number
                    .parse::<Timeline>()
                    .map_err(|error| value("--target-timeline", number)(error.to_string()))?,
            ),
        };
        let backup = args.backup.as_deref().map(str::parse::<BackupId>).transpose();
        let backup =
            backup.map_err(|error| value("--backup", args.backup.as_deref().unwrap_or_default())(error.to_string()))?;
        Ok(Request {
            requested,
            inclusive: !args.exclusive,
            timeline,
            backup,
        })
    }

    /// What the flags ask for.
    pub(super) fn requested(&self, target: &TargetArgs) -> Result<Requested, Failure> {
        if let Some(text) = &target.target_time {
            let clock = Clock {
                now: self.env.local(self.env.now()),
                local_offset: &|wall| self.env.local_offset_at(wall),
            };
            return Ok(Requested::Time(RecoveryTime::parse(text, &clock)?, text.clone()));
        }
        if let Some(text) = &target.target_lsn {
            let lsn = text
                .parse::<Lsn>()
                .map_err(|error| value("--target-lsn", text)(error.to_string()))?;
            return Ok(Requested::Lsn(lsn));
        }
        if let Some(text) = &target.target_xid {
            // The server shows 64 bits and logs 32; the upper half counts how often the ids went round.
            let xid = text.parse::<u64>().ok().map(|xid| xid as u32).filter(|xid| *xid >= 3);
            let why = || "a transaction's id is a number from 3 on".to_owned();
            return Ok(Requested::Xid(Xid::new(
                xid.ok_or_else(|| value("--target-xid", text)(why()))?,
            )));
        }
        if let Some(name) = &target.target_name {
            return match name.len() {
                1..=63 => Ok(Requested::Name(name.clone())),
                _ => Err(value("--target-name", name)("a restore point's name has 1 to 63 bytes".to_owned()).into()),
            };
        }
        match (target.latest, target.immediate) {
            (true, _) => Ok(Requested::Latest),
            (_, true) => Ok(Requested::Immediate),
            _ => Err(FlagError::NoTarget.into()),
        }
    }

    /// Where to; a plan may do without a directory.
    fn goal(&self, args: &RestoreArgs, act: bool) -> Result<Option<Goal>, Failure> {
        let here = std::env::current_dir().unwrap_or_default();
        let to = args.to.clone().or_else(|| self.env.var_os("PGDATA").map(PathBuf::from));
        let to = match to {
            Some(to) => here.join(to),
            None if act => return Err(FlagError::NoDirectory.into()),
            None => here.join("PGDATA"),
        };
        let mappings = args
            .tablespace_mapping
            .iter()
            .map(|text| mapping(text))
            .collect::<Result<_, _>>()?;
        let action = args
            .target_action
            .parse::<Action>()
            .map_err(|why| value("--target-action", &args.target_action)(why.to_owned()))?;
        let archive_off = match args.archive.as_str() {
            "off" => true,
            "keep" => false,
            other => return Err(value("--archive", other)("it is off or keep".to_owned()).into()),
        };
        let command = RestoreCommand {
            program: program("pgp-restore").map_err(FlagError::Program)?,
            repo: self.settings.repo()?.from_folder(&here).to_string(),
            config: self.settings.file().map(|file| here.join(file)),
        };
        let jobs = self.jobs()?;
        Ok(Some(Goal {
            to,
            mappings,
            action,
            command,
            standby: args.standby.clone(),
            archive_off,
            jobs,
        }))
    }

    fn warnings(&self, request: &Request, goal: Option<&Goal>) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.settings.repo().is_ok_and(|url| url.folder().is_none()) && self.settings.s3_key_only_in_environment() {
            warnings.push(
                "the store's credentials come from the environment: the server's environment must have them too \
                 (or put them into the settings file)"
                    .to_owned(),
            );
        }
        if request.requested == Requested::Latest && goal.is_some_and(|goal| goal.standby.is_none()) {
            warnings.push("without a target to stop at, the server promotes at the end of the WAL".to_owned());
        }
        if goal.is_some_and(|goal| !goal.archive_off && goal.standby.is_none()) {
            warnings.push(
                "archiving is kept as the backup has it: once promoted, this server archives its new timeline to where \
                 the original one did; for a copy on the side use --archive off"
                    .to_owned(),
            );
        }
        if let Requested::Time(time, _) = &request.requested {
            warnings.push(format!(
                "the target is {} ({}), {} here",
                rfc3339(time.instant()),
                time.understood(),
                self.env.local(time.instant()).to_rfc3339(),
            ));
        }
        warnings
    }
}

/// What root is told about who owns the files.
fn as_root(given_to: Option<&str>) -> String {
    match given_to {
        Some(owner) => format!("this runs as root: the restored files are given to \"{owner}\", which runs the server"),
        None => "this runs as root: PostgreSQL starts only in a directory that its own user owns (chown -R, or run it \
                 as that user)"
            .to_owned(),
    }
}

/// What is told of a server that would wait for others that are not there.
fn commits_wait(names: &str) -> String {
    format!(
        "commits on the restored server will wait for {names}, and hang until that is connected to it: start its own receiver \
         or standby, or put synchronous_standby_names = '' into its postgresql.auto.conf"
    )
}

/// `OLD=NEW`; a `=` within a path is written `\=`, as for `pg_basebackup`.
fn mapping(text: &str) -> Result<(PathBuf, PathBuf), FlagError> {
    let mut sides = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.peek() == Some(&'=') => {
                characters.next();
                push(&mut sides, '=');
            }
            '=' => sides.push(String::new()),
            other => push(&mut sides, other),
        }
    }
    match &sides[..] {
        [old, new] if !old.is_empty() && !new.is_empty() => Ok((PathBuf::from(old), PathBuf::from(new))),
        _ => Err(value("--tablespace-mapping", text)(
            "write OLD=NEW, a = within a path as \\=".to_owned(),
        )),
    }
}

fn push(sides: &mut [String], character: char) {
    if let Some(side) = sides.last_mut() {
        side.push(character);
    }
}

/// A binary that was installed beside this one.
pub(super) fn program(name: &str) -> std::io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

fn path_of(path: &[Leg]) -> Vec<u32> {
    path.iter().map(|leg| leg.timeline.number()).collect()
}

fn json(plan: &Plan, settings: &restore::RecoverySettings) -> Value {
    let commit_at = |point: Option<crate::wal::CommitPoint>| point.map(|point| rfc3339(point.at));
    let reaches = &plan.reaches;
    let settings: serde_json::Map<String, Value> = settings
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(String::from_utf8_lossy(value))))
        .collect();
    json!({
        "system_identifier": plan.backup.system_identifier,
        "backup": plan.backup.id,
        "timeline": plan.timeline,
        "timeline_path": path_of(&plan.path),
        "target": {
            "kind": plan.requested.kind(),
            "requested": plan.requested.text(),
            "value": plan.requested.value(),
            "inclusive": plan.inclusive,
        },
        "reaches": {
            "lsn": reaches.lsn,
            "last_commit_at": commit_at(reaches.last_commit),
            "last_commit_xid": reaches.last_commit.map(|point| point.xid.number()),
            "last_commit_lsn": reaches.last_commit.map(|point| point.lsn),
            "next_commit_at": commit_at(reaches.next_commit),
            "next_commit_xid": reaches.next_commit.map(|point| point.xid.number()),
            "next_commit_lsn": reaches.next_commit.map(|point| point.lsn),
        },
        "wal": {"from_lsn": plan.backup.start_lsn, "to_lsn": reaches.lsn, "segments": plan.segments},
        "fetch_bytes": plan.fetch_bytes,
        "restore_bytes": plan.backup.size_bytes,
        "passed_over": plan.passed_over.iter().map(|(id, why)| json!({"backup": id, "reason": why})).collect::<Vec<_>>(),
        "tablespaces": plan.tablespaces.iter().map(|space| json!({
            "oid": space.oid,
            "path": space.path.to_string_lossy(),
            "created_at_lsn": space.lsn,
        })).collect::<Vec<_>>(),
        "warnings": plan.warnings,
        "recovery_settings": settings,
    })
}

/// A refusal, for programs.
fn refused(refusal: &Refusal) -> Value {
    let nearest = refusal.nearest().unwrap_or_default();
    let moment = |moment: &Moment| {
        json!({
            "at": moment.at.map(rfc3339),
            "lsn": moment.lsn,
            "backup": moment.backup,
            "flags": moment.flags,
        })
    };
    json!({
        "error": refusal.to_string(),
        "before": nearest.before.as_ref().map(moment),
        "after": nearest.after.as_ref().map(moment),
        "elsewhere": nearest.elsewhere.iter().map(|(_, end)| moment(end)).collect::<Vec<_>>(),
    })
}

fn describe(plan: &Plan, settings: &restore::RecoverySettings, act: bool) -> String {
    let moment = |point: &crate::wal::CommitPoint| {
        format!("{} (xid {}, at {})", rfc3339(point.at), point.xid.number(), point.lsn)
    };
    let path: Vec<String> = path_of(&plan.path).iter().map(u32::to_string).collect();
    let reaches = &plan.reaches;
    let mut text = format!(
        "cluster          {}, PostgreSQL {}\nbackup           {} (consistent at {}, {})\ntimeline         {} (by way of {})\n",
        plan.backup.system_identifier,
        plan.backup.pg_version,
        plan.backup.id,
        plan.backup.stop_lsn,
        rfc3339(plan.backup.stopped_at),
        plan.timeline,
        path.join(", "),
    );
    for (id, why) in &plan.passed_over {
        text.push_str(&format!("passed over      {id}: {why}\n"));
    }
    let target = plan
        .requested
        .value()
        .map(|value| format!(" {value}"))
        .unwrap_or_default();
    let inclusive = if plan.inclusive { "" } else { ", exclusive" };
    text.push_str(&format!(
        "target           {}{target}{inclusive}\n",
        plan.requested.kind()
    ));
    if let Some(lsn) = reaches.lsn {
        text.push_str(&format!("ends at          {lsn}\n"));
    }
    let last = reaches
        .last_commit
        .as_ref()
        .map_or_else(|| "none since the backup was begun".to_owned(), moment);
    text.push_str(&format!("last commit      {last}\n"));
    let next = reaches
        .next_commit
        .as_ref()
        .map_or_else(|| "none that is in the WAL".to_owned(), moment);
    text.push_str(&format!("first left out   {next}\n"));
    text.push_str(&format!(
        "to fetch         {} ({} WAL segments included), to write {}\n",
        size(plan.fetch_bytes),
        plan.segments,
        size(plan.backup.size_bytes),
    ));
    for space in &plan.tablespaces {
        text.push_str(&format!(
            "tablespace       {}, created at {} during replay: its folder is made ready\n",
            space.path.display(),
            space.lsn,
        ));
    }
    for (name, value) in settings {
        text.push_str(&format!("  {name} = {}\n", String::from_utf8_lossy(value)));
    }
    for warning in &plan.warnings {
        text.push_str(&format!("note: {warning}\n"));
    }
    if !act {
        text.push_str("nothing was done: `pgp-pitr restore` with the same flags does it\n");
    }
    text
}

fn next_steps(plan: &Plan, goal: &Goal, started: Option<&Started>) -> String {
    let mut text = format!("restored {} to {}\n", plan.backup.id, goal.to.display());
    let connect = match started {
        None => {
            text.push_str(&format!(
                "start it:    pg_ctl -D {} start\n",
                shell_text(goal.to.as_os_str())
            ));
            Some(String::new())
        }
        Some(started) => {
            text.push_str(&format!("started:     {}\n", started.text));
            started.connect.as_ref().map(|connect| format!(" {connect}"))
        }
    };
    if let Some(connect) = connect {
        text.push_str(&format!(
            "look:        psql{connect} -c 'select pg_is_in_recovery(), pg_last_wal_replay_lsn()'\n"
        ));
    }
    let promoted = goal.action == Action::Promote || plan.requested == Requested::Latest;
    if started.is_some() && goal.standby.is_none() && promoted {
        return text;
    }
    match (goal.action, &goal.standby, &plan.requested) {
        (_, Some(_), _) => text.push_str("go on:       it follows its primary; pg_ctl promote ends that\n"),
        (_, _, Requested::Latest) => text.push_str("go on:       it promotes by itself at the end of the WAL\n"),
        (Action::Pause, ..) => text.push_str(
            "go on:       it pauses at the target; select pg_wal_replay_resume() opens it for writing\n\
             note: while it is paused, the locks of the transaction it stopped before are still held: a table that was \
             just about to be dropped can't be read until then\n",
        ),
        (Action::Promote, ..) => text.push_str("go on:       it promotes by itself at the target\n"),
        (Action::Shutdown, ..) => text.push_str(
            "go on:       it stops by itself at the target; to open it for writing, set recovery_target_action = \
             'promote' in its postgresql.auto.conf and start it again\n\
             note: never remove recovery.signal: the server would replay the WAL past the target\n",
        ),
    }
    text
}
