//! `receive`: streams WAL into the repository until told to stop, and loses nothing that it has acknowledged.
//!
//! One `connection` after the other: `server` looks at the server and its slot, `begin` finds where to begin, and
//! `stream` carries bytes from the server to the `writer`, or through a spool (`spooling`). Whatever breaks, the next connection begins where the
//! repository ends. Timelines are what the server says (its history, and what it answers at a timeline's end).

mod begin;
mod compare;
mod connection;
mod cutter;
mod durable;
mod error;
mod monitor;
mod packer;
pub mod risk;
mod server;
mod sink;
pub mod spool;
mod spooling;
pub mod status;
mod stream;
mod tidy;
mod writer;

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::env::Env;
use crate::error::{Class, Explain, Failure};
use crate::pg::conninfo::ConnInfo;
use crate::pg::size::Size;
use crate::pg::{Lsn, SystemId};
use crate::replication::SlotName;
use crate::repo::{ClusterInfo, RepoError, Repository};
use crate::store::Store;

pub use cutter::Pace;
pub use error::ReceiveError;
use monitor::Monitor;
pub use spooling::Promise;
use spooling::Spooling;
use status::Gap;
use writer::Trouble;

/// Between two connections, growing from the first to the longest while they fail.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A connection that held so long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(10);

/// How to receive.
#[derive(Debug, Clone)]
pub struct Options {
    /// The replication slot.
    pub slot: SlotName,
    /// Whether to make it where it is missing.
    pub create_slot: bool,
    /// The only cluster to receive from.
    pub cluster: Option<SystemId>,
    /// When pieces leave.
    pub pace: Pace,
    /// zstd's level.
    pub level: i32,
    /// How often the server is told where we are, if nothing else is to be told.
    pub status_interval: Duration,
    /// Where to stop, if not at a signal.
    pub until: Option<Until>,
    /// The local disk that WAL goes to first.
    pub spool: Option<SpoolOptions>,
    /// Where scripts are told how it is.
    pub status_file: Option<PathBuf>,
}

/// A spool.
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    /// Its folder; below it are one for each cluster, and in that one for each slot.
    pub folder: PathBuf,
    /// How much it may hold.
    pub limit: Size,
    /// What the server is told to be durable.
    pub promise: Promise,
}

/// Where to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When everything up to here is durable.
    Lsn(Lsn),
    /// When everything is durable that the server had at the first connection.
    Now,
}

/// Receives WAL until `stop`.
///
/// # Errors
/// What no later try can mend; at a stop, WAL that could not be stored in time.
pub async fn receive(
    store: &Store,
    info: &ConnInfo,
    options: &Options,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let mut monitor = Monitor::new(options, info, store.env());
    let Some(opened) = open(store, options, stop, &mut monitor).await else {
        return Ok(());
    };
    let repository = match opened {
        Ok(repository) => repository,
        Err(failure) => {
            let failed = Err(failure);
            monitor.ended(&failed);
            return failed;
        }
    };
    let mut receiver = Receiver {
        repository,
        info: info.clone(),
        options: options.clone(),
        stop: stop.clone(),
        trouble: Trouble::default(),
        cluster: None,
        spooling: None,
        monitor,
        gap: None,
        until: match options.until {
            Some(Until::Lsn(lsn)) => Some(lsn),
            _ => None,
        },
    };
    let received = match receiver.deliver_what_was_left().await {
        Ok(()) => receiver.run(store.env()).await,
        Err(failure) => Err(failure),
    };
    receiver.monitor.ended(&received);
    received
}

/// Opens the repository, however long that takes; `None` where we are told to stop before. Where there is none, that is
/// the answer, unless a spool shows that there was one.
async fn open(
    store: &Store,
    options: &Options,
    stop: &CancellationToken,
    monitor: &mut Monitor,
) -> Option<Result<Repository, Failure>> {
    let mut pause = FIRST_PAUSE;
    loop {
        let opened = tokio::select! {
            opened = Repository::open(store) => opened,
            () = stop.cancelled() => return None,
        };
        let error = match opened {
            Ok(repository) => return Some(Ok(repository)),
            Err(error) => error,
        };
        let used = options.spool.as_ref().is_some_and(|spool| spool.folder.is_dir());
        let passes = match &error {
            RepoError::Store(error) => error.class() == Class::Unavailable,
            RepoError::NoRepository { .. } => used,
            _ => false,
        };
        if !passes {
            return Some(Err(error.into()));
        }
        monitor.no_repository(&error.into());
        tokio::select! {
            () = tokio::time::sleep(store.env().jittered(pause)) => {}
            () = stop.cancelled() => return None,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What is known from one connection to the next.
struct Receiver {
    repository: Repository,
    info: ConnInfo,
    options: Options,
    stop: CancellationToken,
    trouble: Trouble,
    /// The cluster, once one was received from.
    cluster: Option<ClusterInfo>,
    spooling: Option<Spooling>,
    monitor: Monitor,
    /// WAL that the server has removed, as far as it was asked for.
    gap: Option<Gap>,
    until: Option<Lsn>,
}

impl Receiver {
    /// One connection after the other.
    async fn run(&mut self, env: &Env) -> Result<(), Failure> {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let failure = match self.connection().await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let drained = !matches!(
                failure.downcast_ref::<ReceiveError>(),
                Some(ReceiveError::Undrained { .. })
            );
            if self.stop.is_cancelled() {
                return if drained { Ok(()) } else { Err(failure) };
            }
            if !self.may_go_on(&failure) {
                return Err(failure);
            }
            if begun.elapsed() > GOOD {
                pause = FIRST_PAUSE;
            }
            self.monitor.failed(&failure);
            let wait = env.jittered(pause);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
            if let Some(spooling) = &mut self.spooling {
                self.monitor.observe_spool(spooling);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether a failure is one that passes.
    fn may_go_on(&self, failure: &Failure) -> bool {
        if self.cluster.is_none() {
            // Whoever starts it is there to read what is wrong.
            return failure.class() == Class::Unavailable && !server::is_refusal(failure);
        }
        failure.class() == Class::Unavailable
            || matches!(
                failure.downcast_ref::<ReceiveError>(),
                Some(ReceiveError::NoSlot { .. })
            )
            || matches!(failure.downcast_ref::<RepoError>(), Some(RepoError::Store(_)))
            || server::is_refusal(failure)
    }

    fn env(&self) -> &Env {
        self.repository.store().env()
    }
}
