//! `watch`: which moment the recovery in a data directory has reached.
//!
//! Three sources tell, and each fills in where a better one is silent: SQL once the server lets us in, the
//! startup process's title, and `pg_control`. Nothing is written, and nothing is asked that a server would
//! log as an error. A position is always one that replay has passed, never one that it will pass.

mod follow;
mod goal;
mod identity;
mod log;
mod postmaster;
mod speed;
mod sql;
mod title;
mod wal;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::local::LocalCluster;
use super::restore::Action;
use crate::env::Env;
use crate::error::{Class, Explain, Failure};
use crate::pg::settings::shell_text;
use crate::pg::{ClusterState, ControlFile, Lsn, MajorVersion, SegmentName, SegmentNumber, Timeline};

pub use follow::{Ended, Following, MayCome, Progress, Until, follow};
pub use goal::Goal;
pub use log::Log;
pub use postmaster::{Postmaster, Status, running};
pub use speed::{Sample, Samples, Speed};
pub use sql::Connect;
pub use title::Doing;

/// From this major on the startup process reads ahead of what it replays: some hundred kilobytes, so that
/// its title names a segment before the end of the one before is replayed.
const FIRST_READING_AHEAD: u16 = 15;

/// The log of a server that `restore --start` has started, in its data directory.
pub const START_LOG: &str = "pgp-start.log";

/// What can't be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Nothing is there, or a file.
    #[error("{} is not a directory", path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// A directory without a cluster in it.
    #[error("{} is not a data directory: it has no {}", path.display(), ControlFile::PATH)]
    NoDataDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// It can't be looked into.
    #[error("could not look at {}", path.display())]
    Look {
        /// The directory.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// No server runs there.
    #[error("no server runs in {} ({state} when it was last written)", path.display())]
    NotRunning {
        /// The directory.
        path: PathBuf,
        /// What `pg_control` says.
        state: ClusterState,
        /// What its log ends with.
        words: Vec<String>,
    },
    /// It ran, and runs no more.
    #[error("the server in {} has stopped{}", path.display(), before(*reached))]
    Died {
        /// The directory.
        path: PathBuf,
        /// How far replay had come.
        reached: Option<Lsn>,
        /// What its log ends with.
        words: Vec<String>,
        /// Where its log is.
        log: Option<PathBuf>,
    },
}

fn before(reached: Option<Lsn>) -> String {
    reached.map_or_else(String::new, |lsn| format!("; it had replayed up to {lsn}"))
}

impl WatchError {
    /// What the server's log ends with.
    pub fn words(&self) -> &[String] {
        match self {
            Self::NotRunning { words, .. } | Self::Died { words, .. } => words,
            _ => &[],
        }
    }
}

impl Explain for WatchError {
    fn class(&self) -> Class {
        match self {
            Self::NoDirectory { .. } | Self::NoDataDirectory { .. } => Class::Usage,
            Self::NotRunning { .. } => Class::OutOfReach,
            Self::Look { .. } | Self::Died { .. } => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDirectory { .. } => "name the data directory of the server that recovers".to_owned(),
            Self::NoDataDirectory { .. } => "name the data directory of the server that recovers; where a restore was \
                                             interrupted, the same `pgp-pitr restore` again finishes it"
                .to_owned(),
            Self::Look { .. } => "run it as the user that owns the data directory".to_owned(),
            Self::NotRunning { path, .. } => format!("start it: pg_ctl -D {} start", shell_text(path.as_os_str())),
            Self::Died { path, log: None, .. } => format!(
                "its log, wherever it was told to write it, says why; then start it again: pg_ctl -D {} start",
                shell_text(path.as_os_str())
            ),
            Self::Died {
                path, log: Some(log), ..
            } => format!(
                "its log, {}, says why; then start it again, it goes on where it was: pg_ctl -D {} start",
                log.display(),
                shell_text(path.as_os_str())
            ),
        })
    }
}

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// None runs.
    NotRunning,
    /// It comes up and has not begun to replay.
    Starting,
    /// It replays WAL.
    Recovering,
    /// It has paused before its target, or without one: by hand, or for want of settings as high as those of
    /// the server that wrote the WAL.
    PausedEarly,
    /// It has paused at its target and can be read.
    Paused,
    /// Recovery is over and it takes writes.
    Running,
    /// It went down at its target, as it was told.
    StoppedAtTarget,
}

impl State {
    /// In one word, for JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotRunning => "not_running",
            Self::Starting => "starting",
            Self::Recovering => "recovering",
            Self::PausedEarly => "paused_early",
            Self::Paused => "paused",
            Self::Running => "running",
            Self::StoppedAtTarget => "stopped_at_target",
        }
    }

    /// Whether recovery has come to its end.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Paused | Self::Running | Self::StoppedAtTarget)
    }
}

/// Who told the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The server, to the record.
    Sql,
    /// The startup process's title: at least the beginning of the segment.
    Title,
    /// `pg_control`: at least the last position that it was flushed at.
    Control,
}

impl Source {
    /// In one word, for JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sql => "sql",
            Self::Title => "title",
            Self::Control => "control",
        }
    }
}

/// One look at a data directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// What the server does.
    pub state: State,
    /// The server, if one runs.
    pub postmaster: Option<Postmaster>,
    /// What `pg_control` says.
    pub control: ControlFile,
    /// The timeline that is replayed, or written.
    pub timeline: Timeline,
    /// The segment that is replayed or waited for, where the title tells.
    pub segment: Option<SegmentName>,
    /// Everything before it is replayed; where recovery is over, written.
    pub replayed_lsn: Option<Lsn>,
    /// The time of the last transaction that is replayed.
    pub replayed_at: Option<DateTime<Utc>>,
    /// Who told the position.
    pub by: Option<Source>,
    /// Why SQL did not answer.
    pub no_sql: Option<String>,
    /// What the startup process does besides replaying, in its own words.
    pub busy_with: Option<String>,
}

/// Looks at one data directory, again and again.
pub struct Watcher {
    directory: PathBuf,
    cluster: LocalCluster,
    /// Whose the directory is, and so the server.
    owner: u32,
    goal: Goal,
    sql: sql::Sql,
    wal: wal::LocalWal,
    /// The farthest that this server was seen at: sources of different grain must not seem to go back.
    farthest: Option<(i32, Lsn, Option<DateTime<Utc>>)>,
    log: Option<Log>,
}

impl Watcher {
    /// Begins with a data directory.
    ///
    /// # Errors
    /// It is none, or can't be read.
    pub fn new(directory: &Path) -> Result<Self, Failure> {
        let path = directory.to_path_buf();
        let owner = match std::fs::metadata(directory) {
            Ok(metadata) if metadata.is_dir() => metadata.uid(),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(WatchError::Look { path, source }.into());
            }
            _ => return Err(WatchError::NoDirectory { path }.into()),
        };
        let cluster = match LocalCluster::read(directory) {
            Ok(Some(cluster)) => cluster,
            Ok(None) => return Err(WatchError::NoDataDirectory { path }.into()),
            Err(error) => return Err(error.into()),
        };
        let control = &cluster.control;
        Ok(Self {
            wal: wal::LocalWal::new(cluster.major, control.segment_size, control.wal_block_size),
            goal: Goal::read(directory),
            directory: path,
            owner,
            cluster,
            sql: sql::Sql::default(),
            farthest: None,
            log: Log::of_directory(directory),
        })
    }

    /// Knows the log, where whoever started the server does.
    #[must_use]
    pub fn with_log(mut self, log: Option<Log>) -> Self {
        self.log = log.or(self.log);
        self
    }

    /// Takes note of where the target lies, where somebody has found out.
    pub fn know_stop(&mut self, stop: Option<Lsn>, last_commit_at: Option<DateTime<Utc>>) {
        self.goal.stop_lsn = stop;
        self.goal.last_commit_at = last_commit_at;
    }

    /// Where the recovery is to stop.
    pub fn goal(&self) -> &Goal {
        &self.goal
    }

    /// The cluster.
    pub fn cluster(&self) -> &LocalCluster {
        &self.cluster
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The log, where it is known.
    pub fn log(&self) -> Option<&Log> {
        self.log.as_ref()
    }

    /// Looks.
    ///
    /// # Errors
    /// `pg_control` has gone or can't be read. That SQL is refused is no error.
    pub async fn look(&mut self, connect: &Connect<'_>, env: &Env) -> Result<Observation, Failure> {
        let control = super::local::control_file(&self.directory)?.ok_or_else(|| WatchError::NoDataDirectory {
            path: self.directory.clone(),
        })?;
        let Some(postmaster) = running(&self.directory) else {
            return Ok(self.without_server(control));
        };
        if let Some(log) = Log::of_server(&self.directory, postmaster.pid)
            && self.log.as_ref().is_none_or(|known| known.path != log.path)
        {
            self.log = Some(log);
        }
        let doing = title::of_server(postmaster.pid);
        let of = (self.cluster.major, self.owner);
        let answer = self.sql.ask(&postmaster, of, connect, env).await;
        let mut seen = Observation {
            state: State::Starting,
            timeline: timeline(doing.as_ref(), &control),
            segment: segment(doing.as_ref()),
            replayed_lsn: None,
            replayed_at: None,
            by: None,
            no_sql: answer.as_ref().err().cloned(),
            busy_with: match &doing {
                Some(Doing::Other(words)) if !words.is_empty() => Some(words.clone()),
                _ => None,
            },
            postmaster: Some(postmaster),
            control,
        };
        match answer {
            Ok(answer) => self.by_sql(&mut seen, answer),
            Err(_) => self.by_other_means(&mut seen, doing.as_ref()),
        }
        self.never_back(&mut seen);
        Ok(seen)
    }

    fn by_sql(&self, seen: &mut Observation, answer: sql::Answer) {
        seen.replayed_lsn = answer.lsn;
        seen.replayed_at = answer.at;
        seen.by = Some(Source::Sql);
        seen.timeline = answer.timeline.unwrap_or(seen.timeline);
        seen.state = match (answer.recovering, answer.paused) {
            (false, _) => State::Running,
            (true, false) => State::Recovering,
            (true, true) if self.goal.is_reached(answer.lsn) => State::Paused,
            (true, true) => State::PausedEarly,
        };
    }

    fn by_other_means(&mut self, seen: &mut Observation, doing: Option<&Doing>) {
        let status = seen.postmaster.as_ref().map(|postmaster| postmaster.status);
        if doing.is_none() && seen.control.state == ClusterState::InProduction && status == Some(Status::Ready) {
            seen.state = State::Running;
            seen.timeline = seen.control.timeline;
            return;
        }
        let Some((lsn, by)) = position(doing, &seen.control, self.cluster.major) else {
            return;
        };
        let lsn = self.goal.stop_lsn.map_or(lsn, |stop| lsn.min(stop));
        seen.replayed_lsn = Some(lsn);
        seen.by = Some(by);
        seen.state = match &self.log {
            Some(log) if status == Some(Status::Ready) && log.says_paused() => State::Paused,
            _ => State::Recovering,
        };
        let found = self.wal.last_commit(&self.directory, seen.timeline, lsn);
        seen.replayed_at = match (found, self.goal.last_commit_at) {
            (Some(found), Some(last)) => Some(found.min(last)),
            (found, _) => found,
        };
    }

    fn without_server(&self, control: ControlFile) -> Observation {
        let lsn = control.minimum_recovery;
        let by_goal = self.goal.action == Action::Shutdown
            && control.state == ClusterState::ShutDownInRecovery
            && self
                .log
                .as_ref()
                .map_or(self.goal.is_reached(lsn), Log::says_shut_down_at_target);
        Observation {
            state: match by_goal {
                true => State::StoppedAtTarget,
                false => State::NotRunning,
            },
            postmaster: None,
            timeline: timeline(None, &control),
            segment: None,
            replayed_lsn: self.goal.stop_lsn.filter(|_| by_goal).or(lsn),
            replayed_at: match by_goal {
                true => self.goal.last_commit_at,
                false => self.farthest.and_then(|(_, _, at)| at),
            },
            by: lsn.map(|_| Source::Control),
            no_sql: None,
            busy_with: None,
            control,
        }
    }

    fn never_back(&mut self, seen: &mut Observation) {
        let (Some(postmaster), Some(lsn)) = (&seen.postmaster, seen.replayed_lsn) else {
            return;
        };
        let before = self.farthest.filter(|(pid, ..)| *pid == postmaster.pid);
        let farthest = before.map_or(lsn, |(_, farthest, _)| farthest.max(lsn));
        let at = before.and_then(|(_, _, at)| at).max(seen.replayed_at);
        self.farthest = Some((postmaster.pid, farthest, at));
        seen.replayed_lsn = Some(farthest);
        seen.replayed_at = at;
    }

    fn words(&self) -> Vec<String> {
        self.log.as_ref().map(Log::last_words).unwrap_or_default()
    }
}

fn segment(doing: Option<&Doing>) -> Option<SegmentName> {
    match doing? {
        Doing::Recovering(segment) | Doing::WaitingFor(segment) => Some(*segment),
        Doing::Other(_) => None,
    }
}

fn timeline(doing: Option<&Doing>, control: &ControlFile) -> Timeline {
    segment(doing)
        .map(SegmentName::timeline)
        .or(control.minimum_recovery_timeline)
        .unwrap_or(control.timeline)
}

/// A position that replay has passed, from the title and `pg_control`.
fn position(doing: Option<&Doing>, control: &ControlFile, major: MajorVersion) -> Option<(Lsn, Source)> {
    if !matches!(
        control.state,
        ClusterState::InArchiveRecovery | ClusterState::InCrashRecovery
    ) {
        return None;
    }
    // Until a backup is whole again, its end stands where later the position does.
    let whole = control.backup_start.is_none() && control.backup_end.is_none();
    let flushed = control.minimum_recovery.filter(|_| whole);
    let size = control.segment_size;
    let ahead = u64::from(major.number() >= FIRST_READING_AHEAD);
    let before = |number: SegmentNumber, by| SegmentNumber::new(number.number().saturating_sub(by)).start(size);
    let titled = match doing {
        Some(Doing::Recovering(name)) => {
            let number = name.number(size);
            number.map(|number| (before(number, ahead), number.end(size)))
        }
        Some(Doing::WaitingFor(name)) => {
            let number = name.number(size);
            number.map(|number| (before(number, 1 + ahead), number.start(size)))
        }
        _ => None,
    };
    Some(match (titled, flushed) {
        // After a restart of the recovery the flushed position lies ahead, in another segment.
        (Some((from, to)), Some(flushed)) if (from..=to).contains(&flushed) => (flushed, Source::Title),
        (Some((from, _)), _) => (from.max(control.redo), Source::Title),
        (None, flushed) => (flushed.unwrap_or(control.redo).max(control.redo), Source::Control),
    })
}

#[cfg(test)]
mod tests;
