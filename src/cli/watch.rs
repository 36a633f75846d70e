//! `pgp-pitr watch`, and the following of a server that `restore --start` has started.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::args::WatchArgs;
use super::pitr::Session;
use super::progress::{Progress as Drawn, size};
use super::report;
use super::run::block_on;
use super::server::user_name;
use crate::error::{Class, Explain, Failure};
use crate::ops::watch::{self, Ended, Following, MayCome, Postmaster, Progress, State, Until, WatchError, Watcher};
use crate::pg::conninfo::Overrides;
use crate::pg::duration::Span;
use crate::pg::settings::shell_text;
use crate::pg::time::rfc3339;

/// How often to look, unless told otherwise.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// A pause shorter than this would keep a core busy.
const SHORTEST: Duration = Duration::from_millis(10);
/// A position that has not moved for so long is worth a word.
const STILL: Duration = Duration::from_secs(15);

/// What ends following from outside.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("--interval \"{text}\": {why}")]
    Interval { text: String, why: String },
    #[error("no longer watched before recovery had reached its target")]
    Interrupted { directory: PathBuf },
    #[error("signals can't be waited for")]
    Signals(#[source] std::io::Error),
}

impl Explain for FollowError {
    fn class(&self) -> Class {
        match self {
            Self::Interval { .. } => Class::Usage,
            Self::Interrupted { .. } | Self::Signals(_) => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Interrupted { directory } => Some(format!(
                "the server goes on; look again: pgp-pitr watch {}",
                shell_text(directory.as_os_str())
            )),
            _ => None,
        }
    }
}

impl Session {
    pub(super) fn watch(&self, args: &WatchArgs) -> Result<(), Failure> {
        let interval = interval(args.interval.as_deref())?;
        let here = std::env::current_dir().unwrap_or_default();
        let mut watcher = Watcher::new(&here.join(&args.directory))?;
        let until = if args.once { Until::Once } else { Until::Target };
        self.find_stop(&mut watcher);
        let ended = self.follow(&mut watcher, until, interval, args.user.as_deref(), None);
        let progress = match ended.inspect_err(tell_words)? {
            Ended::Reached(progress) => Some(progress),
            Ended::Interrupted(last) if watcher.goal().standby => last,
            Ended::Interrupted(_) => return Err(interrupted(&watcher)),
        };
        let Some(progress) = progress else {
            return Ok(());
        };
        let text = match args.json {
            true => format!("{}\n", document(&watcher, &progress, self.env.now())),
            false => format!("{}\n", words(watcher.goal(), &progress, self.env.now())),
        };
        Ok(report::answer(&text)?)
    }

    /// Follows a server and draws a line of progress on stderr.
    pub(super) fn follow(
        &self,
        watcher: &mut Watcher,
        until: Until,
        interval: Duration,
        user: Option<&str>,
        starting: Option<MayCome<'_>>,
    ) -> Result<Ended, Failure> {
        let user = user
            .map(str::to_owned)
            .or_else(|| self.env.var("PGUSER").map(str::to_owned))
            .or_else(|| owner(watcher.directory()));
        let connect = |postmaster: &Postmaster| {
            let overrides = Overrides {
                host: postmaster.host(),
                port: postmaster.port.map(|port| port.to_string()),
                user: user.clone(),
                over_conninfo: true,
            };
            self.resolve(Some("dbname=postgres connect_timeout=3"), &overrides)
        };
        let (goal, env) = (watcher.goal().clone(), &self.env);
        let mut drawn = Drawn::begin();
        let mut said_no_sql = None;
        let mut tell = |progress: &Progress| {
            if until == Until::Once {
                return;
            }
            let ready = progress.seen.postmaster.as_ref().map(|server| server.status) == Some(watch::Status::Ready);
            if let (Some(why), true, true) = (&progress.seen.no_sql, ready, said_no_sql != progress.seen.no_sql) {
                drawn.end();
                report::note(&format!(
                    "SQL does not answer ({why}); what is told comes from the process title and pg_control"
                ));
                said_no_sql.clone_from(&progress.seen.no_sql);
            }
            drawn.line(&words(&goal, progress, env.now()));
        };
        let ended = block_on(async {
            let stop = stopped()?;
            let how = Following {
                until,
                interval,
                connect: &connect,
                env,
                starting,
            };
            watch::follow(watcher, how, &mut tell, stop).await
        });
        drawn.end();
        ended
    }
}

/// What somebody who ends it before the target is told.
pub(super) fn interrupted(watcher: &Watcher) -> Failure {
    let directory = watcher.directory().to_path_buf();
    FollowError::Interrupted { directory }.into()
}

/// Shows the last words of the server's log, before the error itself.
pub(super) fn tell_words(failure: &Failure) {
    let words = failure.downcast_ref::<WatchError>().map_or(&[][..], WatchError::words);
    if !words.is_empty() {
        report::note("the end of the server's log:");
    }
    for word in words {
        report::note(&format!("  {word}"));
    }
}

/// Comes when somebody wants no more: Ctrl-C, or whoever stops services.
fn stopped() -> Result<impl Future<Output = ()>, FollowError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(FollowError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(FollowError::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn interval(text: Option<&str>) -> Result<Duration, FollowError> {
    let Some(text) = text else {
        return Ok(INTERVAL);
    };
    let refused = |why: String| FollowError::Interval {
        text: text.to_owned(),
        why,
    };
    let span: Span = text
        .parse()
        .map_err(|_| refused("write for example 1s or 500ms".to_owned()))?;
    match span.length() {
        short if short < SHORTEST => Err(refused("10ms is the shortest".to_owned())),
        length => Ok(length),
    }
}

/// The name of the user that owns a directory: whoever runs the server, and most often its superuser.
fn owner(directory: &Path) -> Option<String> {
    user_name(std::fs::metadata(directory).ok()?.uid())
}

/// A moment for people, to the second.
fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// One line for people: the moment first.
pub(super) fn words(goal: &watch::Goal, progress: &Progress, now: DateTime<Utc>) -> String {
    let seen = &progress.seen;
    let lsn = seen.replayed_lsn.map(|lsn| lsn.to_string());
    let place = match (seen.replayed_at, &lsn) {
        (Some(at), Some(lsn)) => format!("{} ({lsn})", moment(at)),
        (None, Some(lsn)) => lsn.clone(),
        _ => "nothing yet".to_owned(),
    };
    match seen.state {
        State::NotRunning => "no server runs".to_owned(),
        State::Starting => match (&seen.busy_with, seen.segment) {
            (Some(words), _) => format!("starting: {words}"),
            (None, Some(segment)) => format!("starting: fetches WAL segment {segment}"),
            (None, None) => "starting".to_owned(),
        },
        State::Paused => format!("paused at its target: replayed up to {place}"),
        State::StoppedAtTarget => format!("stopped at its target: replayed up to {place}"),
        State::Running => format!(
            "recovery is over: the server takes writes on timeline {}",
            seen.timeline
        ),
        State::PausedEarly => format!(
            "paused before any target, replayed up to {place}: select pg_wal_replay_resume() lets it go on, unless its \
             log asks for higher settings first"
        ),
        State::Recovering => {
            let mut text = format!("replayed up to {place}");
            text.push_str(&pace(progress));
            text.push_str(&rest(goal, progress, now));
            if let Some(words) = &seen.busy_with {
                text.push_str(&format!(", {words}"));
            }
            text
        }
    }
}

/// How fast.
fn pace(progress: &Progress) -> String {
    let speed = &progress.speed;
    if speed.still_for >= STILL {
        return format!(", at rest for {}", span(speed.still_for));
    }
    let mut text = String::new();
    if let Some(rate) = speed.bytes_per_second {
        text.push_str(&format!(", {}/s", size(rate as u64)));
    }
    if let Some(rate) = speed.data_seconds_per_second
        && let Ok(rate) = Duration::try_from_secs_f64(rate)
    {
        text.push_str(&format!(", {} of data per s", span(rate)));
    }
    text
}

/// How far still: to the target, or, without one, behind the present.
fn rest(goal: &watch::Goal, progress: &Progress, now: DateTime<Utc>) -> String {
    let behind = |at: DateTime<Utc>| {
        (now - at)
            .to_std()
            .map(|behind| format!(", {} behind now", span(behind)))
    };
    match (progress.left_bytes, progress.left, progress.seen.replayed_at) {
        (Some(bytes), Some(left), _) => format!(", {} and {} left", size(bytes), span(left)),
        (Some(bytes), None, _) => format!(", {} left", size(bytes)),
        (None, _, Some(at)) if goal.target.is_none() => behind(at).unwrap_or_default(),
        _ => String::new(),
    }
}

/// A length of time in its two largest units.
fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0 => format!("{:.1}s", length.as_secs_f64()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}min {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The observation as `watch --json` tells it; fields are added, never renamed.
pub(super) fn document(watcher: &Watcher, progress: &Progress, now: DateTime<Utc>) -> Value {
    let (seen, goal) = (&progress.seen, watcher.goal());
    let server = seen.postmaster.as_ref();
    let recovering = seen.state == State::Recovering;
    let speed = |rate: Option<f64>| rate.filter(|_| recovering).map(|rate| (rate * 1000.0).round() / 1000.0);
    let arrives = progress.left.and_then(|left| TimeDelta::from_std(left).ok());
    let arrives = arrives
        .and_then(|left| now.checked_add_signed(left))
        .filter(|_| recovering);
    json!({
        "directory": watcher.directory().to_string_lossy(),
        "system_identifier": seen.control.system,
        "pg_version": watcher.cluster().major.number().to_string(),
        "state": seen.state.word(),
        "standby": goal.standby,
        "pid": server.map(|server| server.pid),
        "started_at": server.and_then(|server| server.started_at).map(rfc3339),
        "port": server.and_then(|server| server.port),
        "socket_directory": server.and_then(|server| server.socket_directory.as_ref()).map(|path| path.to_string_lossy()),
        "timeline": seen.timeline,
        "segment": seen.segment.map(|segment| segment.to_string()),
        "replayed_lsn": seen.replayed_lsn,
        "replayed_at": seen.replayed_at.map(rfc3339),
        "by": seen.by.map(watch::Source::word),
        "no_sql": seen.no_sql,
        "target": goal.target.as_ref().map(|target| json!({
            "kind": target.kind,
            "value": target.value,
            "inclusive": target.inclusive,
            "lsn": goal.stop_lsn,
            "last_commit_at": goal.last_commit_at.map(rfc3339),
            "action": goal.action.word(),
        })),
        "left_bytes": progress.left_bytes,
        "left_seconds": progress.left.filter(|_| recovering).map(|left| left.as_secs()),
        "arrives_at": arrives.map(rfc3339),
        "bytes_per_second": speed(progress.speed.bytes_per_second),
        "data_seconds_per_second": speed(progress.speed.data_seconds_per_second),
    })
}
