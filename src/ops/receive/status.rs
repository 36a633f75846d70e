//! What a receiver tells scripts: a small JSON file, replaced in one step at each change of state and at most once
//! a second otherwise.
//!
//! It is a view and nothing else: nothing of ours acts on it, it is not fsynced, and a receiver that can't write it
//! goes on. Beside it lies a lock that the receiver holds as long as it lives, so that a file which outlived its
//! process is known for what it is. It holds no secret.

mod place;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

pub use place::{find, place};

use super::risk::Lag;
use crate::disk::{self, Lock};
use crate::env::Env;
use crate::error::{Class, Explain};
use crate::pg::time::rfc3339;
use crate::pg::{Lsn, SystemId, Timeline};

/// Between two writes that tell of no change of state.
const INTERVAL: TimeDelta = TimeDelta::seconds(1);
/// A receiver writes every second; one that has not for so long does not do its work.
const STALLED: TimeDelta = TimeDelta::seconds(30);
/// A status of ours has a few kilobytes.
const LONGEST: u64 = 1 << 20;
/// More are counted no more: the newest are told.
const MOST_GAPS: usize = 100;
/// Whoever looks holds the lock for an instant; a receiver that starts then must not take it for another receiver.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Others who look are gone by then.
const LOOKS: u32 = 3;

/// What a receiver is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It connects to server and store for the first time.
    Connecting,
    /// WAL is received and stored as it comes.
    Streaming,
    /// WAL is received and stored, and the server, or the spool, holds more than that.
    CatchingUp,
    /// The store does not take WAL, and there is no spool.
    StoreUnavailable,
    /// The store does not take WAL; it goes into the spool.
    Spooling,
    /// The store does not take WAL, and the spool is full: nothing is read from the server.
    SpoolFull,
    /// The server can't be reached.
    ServerUnavailable,
    /// Another receiver has the slot, or it is not there.
    WaitingForSlot,
    /// WAL is missing that the server has removed, and it is decided where to go on.
    Gap,
    /// It was told to stop, and stores what it has received.
    Stopping,
    /// It has ended as it was told.
    Stopped,
    /// It has ended with an error.
    Failed,
}

/// What that means to whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Well,
    /// It runs, and is behind, stalled, or has a gap.
    Behind,
    /// None runs, or server or store are out of reach.
    Out,
}

impl State {
    /// The word for it, as in the JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Streaming => "streaming",
            Self::CatchingUp => "catching_up",
            Self::StoreUnavailable => "store_unavailable",
            Self::Spooling => "spooling",
            Self::SpoolFull => "spool_full",
            Self::ServerUnavailable => "server_unavailable",
            Self::WaitingForSlot => "waiting_for_slot",
            Self::Gap => "gap",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// The same for the log.
    const fn meaning(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Streaming => "WAL is stored as it comes",
            Self::CatchingUp => "catching up with the server",
            Self::StoreUnavailable => "the store does not take WAL; the server keeps it",
            Self::Spooling => "the store does not take WAL; it goes into the spool",
            Self::SpoolFull => "the store does not take WAL, and the spool is full; the server keeps it",
            Self::ServerUnavailable => "the server can't be reached",
            Self::WaitingForSlot => "waiting for the slot",
            Self::Gap => "WAL is missing",
            Self::Stopping => "told to stop; storing what was received",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// What that means to whoever watches.
    pub const fn health(self) -> Health {
        match self {
            Self::Streaming => Health::Well,
            Self::Connecting | Self::CatchingUp | Self::WaitingForSlot | Self::Gap | Self::Stopping => Health::Behind,
            Self::StoreUnavailable
            | Self::Spooling
            | Self::SpoolFull
            | Self::ServerUnavailable
            | Self::Stopped
            | Self::Failed => Health::Out,
        }
    }
}

/// WAL that can't be had any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Of this timeline.
    pub timeline: Timeline,
    /// Where it begins.
    #[serde(rename = "from_lsn")]
    pub from: Lsn,
    /// Where WAL goes on.
    #[serde(rename = "to_lsn")]
    pub to: Lsn,
}

/// The last thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// When.
    #[serde(serialize_with = "moment")]
    pub at: DateTime<Utc>,
    /// What, on one line.
    pub message: String,
}

/// The whole of it. Fields are added, never renamed. What is not known yet is null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The receiver's process.
    pub pid: u32,
    /// When it was started.
    #[serde(serialize_with = "moment")]
    pub started_at: DateTime<Utc>,
    /// When this was written.
    #[serde(serialize_with = "moment")]
    pub written_at: DateTime<Utc>,
    /// What it is doing.
    pub state: State,
    /// More about that, in one sentence.
    pub detail: Option<String>,
    /// The server, as messages name it.
    pub server: Option<String>,
    /// Its cluster.
    pub system_identifier: Option<SystemId>,
    /// The slot.
    pub slot: String,
    /// The timeline that is streamed.
    pub timeline: Option<Timeline>,
    /// Whether each piece is stored at once.
    pub synchronous: bool,
    /// What was received: everything before it.
    pub received_lsn: Option<Lsn>,
    /// What is durable, as it was promised to the server: in the repository or, with `--durable spool`, in the spool.
    pub durable_lsn: Option<Lsn>,
    /// What is durable in the repository.
    #[serde(default)]
    pub stored_lsn: Option<Lsn>,
    /// Where the server's WAL ends.
    pub server_lsn: Option<Lsn>,
    /// From what is durable to the server's end.
    pub lag_bytes: Option<u64>,
    /// From the newest commit that is durable to the newest that is known.
    pub lag_seconds: Option<f64>,
    /// The age of the oldest commit that is not durable.
    pub data_at_risk_seconds: Option<f64>,
    /// What the spool takes on its disk; null without one.
    pub spool_bytes: Option<u64>,
    /// What it may take.
    pub spool_limit_bytes: Option<u64>,
    /// How much more WAL the server may write before the slot is lost; null where that is unbounded or unknown.
    pub slot_bytes_left: Option<u64>,
    /// The server's word for the slot: `reserved`, `extended`, `unreserved` or `lost`.
    pub slot_wal_status: Option<String>,
    /// WAL that this receiver found missing; the newest hundred.
    pub gaps: Vec<Gap>,
    /// How often the connection was made anew.
    pub reconnects: u64,
    /// The last thing that went wrong, though it be mended.
    pub last_error: Option<LastError>,
    /// How many whole segments were stored.
    pub segments: u64,
    /// How many pieces of segments were stored.
    pub pieces: u64,
    /// How much WAL was received.
    pub bytes_received: u64,
    /// How much was stored, compressed, pieces and segments.
    pub bytes_stored: u64,
}

impl Status {
    /// Of a receiver that begins.
    pub fn new(slot: &str, synchronous: bool, now: DateTime<Utc>) -> Self {
        Self {
            pid: std::process::id(),
            started_at: now,
            written_at: now,
            state: State::Connecting,
            detail: None,
            server: None,
            system_identifier: None,
            slot: slot.to_owned(),
            timeline: None,
            synchronous,
            received_lsn: None,
            durable_lsn: None,
            stored_lsn: None,
            server_lsn: None,
            lag_bytes: None,
            lag_seconds: None,
            data_at_risk_seconds: None,
            spool_bytes: None,
            spool_limit_bytes: None,
            slot_bytes_left: None,
            slot_wal_status: None,
            gaps: Vec::new(),
            reconnects: 0,
            last_error: None,
            segments: 0,
            pieces: 0,
            bytes_received: 0,
            bytes_stored: 0,
        }
    }

    /// Takes in what [`super::risk::Risk`] says.
    pub fn set_lag(&mut self, lag: Lag) {
        let seconds = |span: Duration| Some(span.as_millis() as f64 / 1000.0);
        self.lag_bytes = Some(lag.bytes);
        self.lag_seconds = seconds(lag.commit_time);
        self.data_at_risk_seconds = seconds(lag.data_at_risk);
    }

    /// Takes in a gap; one that goes on where the last ended makes that longer.
    pub fn add_gap(&mut self, gap: Gap) {
        match self.gaps.last_mut() {
            Some(last) if last.timeline == gap.timeline && last.to == gap.from => last.to = gap.to,
            _ => self.gaps.push(gap),
        }
        if self.gaps.len() > MOST_GAPS {
            self.gaps.remove(0);
        }
    }

    /// Tells the log which state was entered. Between two of these events it is the same.
    pub fn log(&self) {
        let lsn = |lsn: Option<Lsn>| lsn.map(tracing::field::display);
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    state = self.state.word(),
                    slot = self.slot,
                    timeline = self.timeline.map(Timeline::number),
                    durable = lsn(self.durable_lsn),
                    received = lsn(self.received_lsn),
                    server_end = lsn(self.server_lsn),
                    detail = self.detail,
                    "{}",
                    self.state.meaning()
                )
            };
        }
        match self.state.health() {
            Health::Well | Health::Behind => event!(info),
            Health::Out if self.state == State::Stopped => event!(info),
            Health::Out => event!(warn),
        }
    }

    /// Whether somebody who waits for changes should know at once.
    fn differs(&self, before: &Self) -> bool {
        self.state != before.state
            || self.detail != before.detail
            || self.gaps != before.gaps
            || self.timeline != before.timeline
            || self.slot_wal_status != before.slot_wal_status
    }
}

/// A status that can't be written, or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// The file system refuses.
    #[error("could not {what} {}", path.display())]
    Io {
        /// What was to be done, as a verb.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// Others could put their own file in its place.
    #[error("{} is not a folder of ours alone", .0.display())]
    Unsafe(PathBuf),
    /// Nothing to read.
    #[error("no receiver has left its status at {}", .0.display())]
    None(PathBuf),
    /// Something else is there.
    #[error("{} is not the status of a receiver: {why}", path.display())]
    Strange {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl Explain for StatusError {
    fn class(&self) -> Class {
        match self {
            Self::None(_) => Class::Unavailable,
            Self::Unsafe(_) => Class::Usage,
            Self::Io { .. } | Self::Strange { .. } => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::None(_) => {
                "none has been started with this slot and repository, or by a user whose folder is another: give \
                 --status-file to both"
            }
            _ => "give another place with --status-file",
        };
        Some(text.to_owned())
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StatusError + use<> {
    let path = path.to_path_buf();
    move |source| StatusError::Io { what, path, source }
}

/// A status file that this process writes.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    _lock: Lock,
    last: Option<Status>,
}

impl StatusFile {
    /// Takes the file for this process; `None` where another receiver has it. Waits a fifth of a second at most, for
    /// somebody who looks.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn open(path: &Path) -> Result<Option<Self>, StatusError> {
        let lock_path = lock_path(path);
        for attempt in 0..LOCK_TRIES {
            if attempt > 0 {
                thread::sleep(LOCK_PAUSE);
            }
            if let Some(lock) = disk::try_lock(&lock_path).map_err(io_error("lock", &lock_path))? {
                return Ok(Some(Self {
                    path: path.to_path_buf(),
                    _lock: lock,
                    last: None,
                }));
            }
        }
        Ok(None)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the status, if its state has changed or a second has passed. Whoever reads sees the old one or the new
    /// one, whole.
    ///
    /// # Errors
    /// Whatever the file system says; the old one is untouched then, and a call a second later tries again.
    pub fn tell(&mut self, status: &Status, env: &Env) -> Result<(), StatusError> {
        let now = env.now();
        let since = |last: &Status| now - last.written_at;
        let is_due = self.last.as_ref().is_none_or(|last| {
            // A clock that was set back must not silence it.
            status.differs(last) || since(last) >= INTERVAL || since(last) < TimeDelta::zero()
        });
        if !is_due {
            return Ok(());
        }
        let status = Status {
            written_at: now,
            ..status.clone()
        };
        let written = self.write(&status, env).map_err(io_error("write", &self.path));
        self.last = Some(status);
        written
    }

    fn write(&self, status: &Status, env: &Env) -> io::Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!("#{}", env.chance()));
        let staged = self.path.with_file_name(name);
        let mut bytes = serde_json::to_vec_pretty(status)?;
        bytes.push(b'\n');
        // A new file, never one that somebody has put there, nor what a link leads to.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&staged);
        let written = file
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&staged, &self.path));
        if written.is_err() {
            // Best effort: the error is told anyway.
            let _ = fs::remove_file(&staged);
        }
        written
    }
}

/// A status as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What the receiver has written last.
    pub status: Status,
    /// Whether its process lives.
    pub running: bool,
    /// Whether it lives and has not written for long.
    pub stalled: bool,
}

impl Seen {
    /// Reads a status.
    ///
    /// # Errors
    /// Nothing there, something else there, and whatever the file system says.
    pub fn read(path: &Path, now: DateTime<Utc>) -> Result<Self, StatusError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StatusError::None(path.to_path_buf())),
            Err(error) => return Err(io_error("read", path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(LONGEST)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", path))?;
        let status: Status = serde_json::from_slice(&bytes).map_err(|error| StatusError::Strange {
            path: path.to_path_buf(),
            why: error.to_string(),
        })?;
        let running = is_held(&lock_path(path), status.pid);
        Ok(Self {
            stalled: running && now - status.written_at > STALLED,
            running,
            status,
        })
    }

    /// What that means to whoever watches.
    pub fn health(&self) -> Health {
        match self.status.state.health() {
            _ if !self.running => Health::Out,
            Health::Well if self.stalled || !self.status.gaps.is_empty() => Health::Behind,
            health => health,
        }
    }
}

/// Whether a receiver holds the lock. Who looks must not make it: it would be a file of somebody else's to the receiver.
fn is_held(lock: &Path, pid: u32) -> bool {
    if !lock.exists() {
        return false;
    }
    for attempt in 0..LOOKS {
        if attempt > 0 {
            thread::sleep(LOCK_PAUSE);
        }
        match disk::try_lock(lock) {
            Ok(Some(_)) => return false,
            // A receiver, or somebody else who looks.
            Ok(None) => {}
            // Whoever may not open the lock can still tell by the process.
            Err(_) => return process_is_there(pid),
        }
    }
    true
}

fn process_is_there(pid: u32) -> bool {
    use rustix::process::{Pid, test_kill_process};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| matches!(test_kill_process(pid), Ok(()) | Err(rustix::io::Errno::PERM)))
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn moment<S: serde::Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*at))
}

#[cfg(test)]
mod tests;
