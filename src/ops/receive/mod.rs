//! `receive`: streams WAL into the repository until told to stop, and loses nothing that it has acknowledged.
//!
//! One connection after the other: [`server`] looks at the server and its slot, [`begin`] finds where to begin, and
//! [`stream`] carries bytes from the server to the [`writer`]. Whatever breaks, the next connection begins where the
//! repository ends. Timelines are what the server says (its history, and what it answers at a timeline's end).

mod begin;
mod cutter;
mod durable;
mod error;
mod monitor;
mod packer;
pub mod risk;
mod server;
pub mod spool;
pub mod status;
mod stream;
mod writer;

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Coverage};
use crate::env::Env;
use crate::error::{Class, Failure};
use crate::ops::history;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, SegmentNumber, SystemId, Timeline};
use crate::replication::{NextTimeline, ReplicationSession, SlotName, Started, StreamStart};
use crate::repo::tail::tail;
use crate::repo::{ClusterInfo, RepoError, Repository};
use crate::store::Store;

use begin::{Begin, Unit};
pub use cutter::Pace;
pub use error::ReceiveError;
use monitor::Monitor;
use server::{Server, Wanted};
use status::Gap;
use stream::Ended;
use writer::{Goal, Trouble, Writer};

/// Between two connections, growing from the first to the longest while they fail.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A connection that held so long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(10);
/// How many segments are asked for, one after the other, when the server has removed some.
const MOST_PROBES: u64 = 4096;

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
    /// Where scripts are told how it is.
    pub status_file: Option<PathBuf>,
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
    let mut receiver = Receiver {
        repository: Repository::open(store).await?,
        info: info.clone(),
        options: options.clone(),
        stop: stop.clone(),
        trouble: Trouble::default(),
        cluster: None,
        monitor: Monitor::new(options, info, store.env()),
        until: match options.until {
            Some(Until::Lsn(lsn)) => Some(lsn),
            _ => None,
        },
    };
    let received = receiver.run(store.env()).await;
    receiver.monitor.ended(&received);
    received
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
    monitor: Monitor,
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
            if self.stop.is_cancelled() && drained {
                return Ok(());
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

    /// One connection, from the first word to the last.
    async fn connection(&mut self) -> Result<(), Failure> {
        let wanted = Wanted {
            slot: self.options.slot.clone(),
            create_slot: self.options.create_slot,
            cluster: self
                .cluster
                .as_ref()
                .map(|cluster| cluster.system)
                .or(self.options.cluster),
        };
        let (mut server, mut session) = Server::connect(&self.info, self.env(), &wanted).await?;
        self.bind(&server).await?;
        if self.options.until == Some(Until::Now) {
            self.until.get_or_insert(server.offer.end);
        }
        self.store_histories(&server, &mut session).await?;
        let catalog = Catalog::read(&self.repository, server.cluster.clone()).await?;
        let mut unit = first_unit(&server, &catalog.wal)?;
        loop {
            match self.timeline(&mut server, session, unit, &catalog.wal).await? {
                Next::Stop => return Ok(()),
                Next::Unit(next, again) => (unit, session) = (next, *again),
            }
        }
    }

    /// The cluster must be the one that the repository knows, and the same as at the last connection.
    async fn bind(&mut self, server: &Server) -> Result<(), Failure> {
        let known = ClusterInfo::read(self.repository.store(), server.cluster.system).await?;
        server.cluster.bind(&self.repository, known).await?;
        tracing::info!(
            server = %server.name, system_identifier = %server.cluster.system, timeline = %server.timeline,
            end = %server.offer.end, standby = server.in_recovery, "connected"
        );
        self.cluster = Some(server.cluster.clone());
        self.monitor.connected(server);
        Ok(())
    }

    /// The histories of the server's timelines, durable before any of their WAL is.
    async fn store_histories(&self, server: &Server, session: &mut ReplicationSession) -> Result<(), Failure> {
        for leg in &server.offer.path {
            history::store(&self.repository, session, &server.cluster, leg.timeline).await?;
        }
        Ok(())
    }

    /// Streams one timeline from a segment on.
    async fn timeline(
        &mut self,
        server: &mut Server,
        session: ReplicationSession,
        unit: Unit,
        stored: &Coverage,
    ) -> Result<Next, Failure> {
        let start = unit.number.start(server.cluster.segment_size);
        let tail = tail(
            &self.repository,
            &server.cluster,
            unit.timeline,
            unit.number,
            &mut std::io::sink(),
        )
        .await?;
        for damaged in &tail.damaged {
            tracing::warn!(error = damaged, "a piece is damaged; it is received again");
        }
        if unit.timeline == server.timeline && tail.end > server.offer.end {
            return Err(ahead(server, unit.timeline, tail.end));
        }
        let start_at = StreamStart {
            slot: Some(self.options.slot.clone()),
            timeline: unit.timeline,
            at: start,
        };
        let mut stream = match session.start_physical(&start_at).await? {
            Started::Streaming(stream) => stream,
            Started::TimelineEnd(session, next) => return self.follow(server, *session, next).await,
            Started::Refused(_, error) => return Err(server::refused(error, &server.name, &self.options.slot)),
        };
        tracing::info!(timeline = %unit.timeline, from = %start, durable = %tail.end, "streaming");
        self.monitor.streaming(unit.timeline, tail.end);
        let mut writer = Writer::new(
            Goal {
                repository: self.repository.clone(),
                cluster: server.cluster.clone(),
                server: server.name.clone(),
                unit,
                pace: self.options.pace,
                level: self.options.level,
                trouble: self.trouble.clone(),
            },
            tail,
        );
        match self.stream(&mut stream, &mut writer).await {
            Ok(Ended::Stopped) => {
                let _ = stream.finish().await;
                Ok(Next::Stop)
            }
            Ok(Ended::TimelineEnd(next)) => {
                tracing::info!(timeline = %unit.timeline, at = %next.from, next = %next.timeline, "the timeline ends");
                self.follow(server, stream.into_session(), next).await
            }
            Err(failure) if server::is_removed(&failure) && writer.received() == start => {
                let next = self.skip(server, unit, stored)?;
                Ok(Next::Unit(next, Box::new(stream.into_session())))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Goes on with the timeline that the server says comes next.
    async fn follow(
        &mut self,
        server: &mut Server,
        mut session: ReplicationSession,
        next: NextTimeline,
    ) -> Result<Next, Failure> {
        server.look_again(&mut session).await?;
        self.store_histories(server, &mut session).await?;
        let unit = Unit {
            timeline: next.timeline,
            number: SegmentNumber::holding(next.from, server.cluster.segment_size),
        };
        Ok(Next::Unit(unit, Box::new(session)))
    }

    /// The server has removed this segment: a gap, unless `archive_command` brings it. Answers which one to ask for next.
    fn skip(&mut self, server: &Server, unit: Unit, stored: &Coverage) -> Result<Unit, Failure> {
        let size = server.cluster.segment_size;
        let path = &server.offer.path;
        let mut next = begin::next_missing(path, stored, unit);
        if let (Some(unit), Some(kept)) = (next, server.offer.kept_from) {
            let first = SegmentNumber::holding(kept, size).number().saturating_sub(MOST_PROBES);
            if first > unit.number.number() {
                next = begin::first_with(path, SegmentNumber::new(first), size);
            }
        }
        let Some(next) = next.filter(|next| next.number.start(size) <= server.offer.end) else {
            return Err(ReceiveError::NothingLeft {
                server: server.name.clone(),
                from: unit.number.start(size),
            }
            .into());
        };
        let to = next.number.start(size).min(server.offer.end);
        self.note_gap(unit.timeline, unit.number.start(size), to);
        Ok(next)
    }

    fn note_gap(&mut self, timeline: Timeline, from: Lsn, to: Lsn) {
        tracing::error!(
            timeline = %timeline, from = %from, to = %to,
            "gap: the server has removed this WAL and the repository lacks it; no recovery gets past it: take a base \
             backup now, unless archive_command still brings it"
        );
        self.monitor.gap(Gap { timeline, from, to });
    }
}

/// What a connection does next.
enum Next {
    Stop,
    Unit(Unit, Box<ReplicationSession>),
}

fn first_unit(server: &Server, stored: &Coverage) -> Result<Unit, Failure> {
    match begin::begin(&server.offer, stored) {
        Some(Begin::At(unit)) => Ok(unit),
        Some(Begin::Ahead(timeline, end)) => Err(ahead(server, timeline, end)),
        None => Err(ReceiveError::NotWal {
            server: server.name.clone(),
            why: format!("its end {} is on none of its timelines", server.offer.end),
        }
        .into()),
    }
}

fn ahead(server: &Server, timeline: Timeline, repository_end: Lsn) -> Failure {
    let (server_end, name) = (server.offer.end, server.name.clone());
    let error = match server.in_recovery {
        true => ReceiveError::StandbyBehind {
            server: name,
            timeline,
            repository_end,
            server_end,
        },
        false => ReceiveError::Ahead {
            server: name,
            timeline,
            repository_end,
            server_end,
        },
    };
    error.into()
}
