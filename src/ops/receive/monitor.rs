//! How a receiver is: for its log, and for scripts.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant};

use super::cutter::Pace;
use super::risk::{Received, Risk};
use super::server::{Known, Server, slot_facts};
use super::sink::Sink;
use super::spooling::Spooling;
use super::status::{Gap, LastError, State, Status, StatusFile};
use super::writer::Trouble;
use super::{Options, ReceiveError};
use crate::catalog::Catalog;
use crate::env::Env;
use crate::error::Failure;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, Timeline};
use crate::replication::SlotName;
use crate::repo::{ClusterInfo, Repository};

/// How often the server is asked about the slot.
const SLOT_EVERY: Duration = Duration::from_secs(30);
/// A store that has not answered for so long is in trouble, whatever it will say.
const ANSWER: Duration = Duration::from_secs(3);
/// How often it is looked whether known gaps matter still: a backup, or the archive, may have mended them.
const GAPS_EVERY: Duration = Duration::from_secs(60);
/// Data at risk for longer than this is told in the log.
const AT_RISK: Duration = Duration::from_secs(10);
/// How often it is told again.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// What a receiver tells of itself.
pub(super) struct Monitor {
    status: Status,
    file: Option<StatusFile>,
    risk: Option<Risk>,
    env: Arc<Env>,
    slot: SlotName,
    info: ConnInfo,
    asking: Option<JoinHandle<Known>>,
    asked_at: Option<Instant>,
    looking: Option<JoinHandle<Option<Vec<Gap>>>>,
    looked_at: Instant,
    told_at: Option<Instant>,
    logged: Option<State>,
}

impl Monitor {
    pub(super) fn new(options: &Options, info: &ConnInfo, env: &Arc<Env>) -> Self {
        let status = Status::new(options.slot.as_str(), options.pace == Pace::Synchronous, env.now());
        let file = options.status_file.as_deref().and_then(|path| match StatusFile::open(path) {
            Ok(Some(file)) => Some(file),
            Ok(None) => {
                tracing::warn!(path = %path.display(), "another receiver tells its status there: this one tells none");
                None
            }
            Err(error) => {
                tracing::warn!(error = %error, "no status is told");
                None
            }
        });
        let mut monitor = Self {
            status,
            file,
            risk: None,
            env: env.clone(),
            slot: options.slot.clone(),
            info: info.clone(),
            asking: None,
            asked_at: None,
            looking: None,
            looked_at: Instant::now(),
            told_at: None,
            logged: None,
        };
        monitor.tell();
        monitor
    }

    /// A server was connected to.
    pub(super) fn connected(&mut self, server: &Server) {
        self.status.server = Some(server.name.clone());
        self.status.system_identifier = Some(server.cluster.system);
        self.status.server_lsn = Some(server.offer.end);
        self.asked_at = None;
    }

    /// A stream begins: everything before `durable` is.
    pub(super) fn streaming(&mut self, timeline: Timeline, durable: Lsn) {
        self.status.timeline = Some(timeline);
        self.risk.get_or_insert_with(|| Risk::new(timeline, durable));
    }

    /// The server has WAL up to here.
    pub(super) fn server(&mut self, end: Lsn, sent_at: DateTime<Utc>) {
        self.status.server_lsn = Some(end);
        let now = self.env.now();
        if let Some(risk) = &mut self.risk {
            risk.server(end, sent_at, now);
        }
    }

    /// Bytes came.
    pub(super) fn received(&mut self, bytes: u64) {
        self.status.bytes_received += bytes;
    }

    /// Takes in what has been done.
    pub(super) fn observe(&mut self, sink: &mut Sink<'_>) {
        let took = sink.took();
        if let Some(risk) = &mut self.risk {
            for (timeline, took) in took {
                risk.received(Received {
                    timeline,
                    to: took.to,
                    commits: took.commits,
                });
            }
            if let (Some(timeline), Some(durable)) = (self.status.timeline, sink.durable()) {
                risk.durable(timeline, durable);
            }
        }
        let written = sink.written();
        self.status.segments += written.segments;
        self.status.pieces += written.pieces;
        self.status.bytes_stored += written.stored_bytes;
        self.status.received_lsn = Some(sink.received());
        self.status.durable_lsn = sink.durable().or(self.status.durable_lsn);
        self.status.stored_lsn = sink.stored().or(self.status.stored_lsn);
    }

    /// Takes in what is delivered from the spool while there is no connection.
    pub(super) fn observe_spool(&mut self, spooling: &mut Spooling) {
        if let Some((timeline, _)) = spooling.at() {
            self.status.timeline = Some(timeline);
            let mut sink = Sink::Spooled(spooling);
            self.observe(&mut sink);
            self.measure_spool(&sink);
            self.tell();
        }
    }

    fn measure_spool(&mut self, sink: &Sink<'_>) {
        let spool = sink.spool();
        self.status.spool_bytes = spool.map(|(bytes, ..)| bytes);
        self.status.spool_limit_bytes = spool.map(|(_, limit, _)| limit);
    }

    /// From time to time, while a stream runs.
    pub(super) async fn tick(
        &mut self,
        repository: &Repository,
        cluster: Option<&ClusterInfo>,
        trouble: &Trouble,
        sink: &Sink<'_>,
    ) {
        self.ask_for_slot().await;
        if let Some(cluster) = cluster {
            self.look_at_gaps(repository, cluster).await;
        }
        let silent = sink.waits_for().filter(|silent| *silent > ANSWER);
        let silent = silent.map(|silent| format!("the store has not answered for {} s", silent.as_secs()));
        let trouble = trouble.now().or(silent);
        self.measure_spool(sink);
        self.status.state = match (&trouble, sink.spool()) {
            (_, Some((.., true))) => State::SpoolFull,
            (Some(_), None) => State::StoreUnavailable,
            (Some(_), Some(_)) => State::Spooling,
            (None, _) if sink.is_catching_up() => State::CatchingUp,
            (None, _) => State::Streaming,
        };
        if let Some(message) = &trouble {
            self.note(message.clone());
        }
        self.status.detail = trouble;
        self.warn();
        self.tell();
    }

    /// The gaps that no recovery gets past, as the catalogue has them.
    pub(super) fn gaps(&mut self, gaps: Vec<Gap>) {
        for gap in gaps.iter().filter(|gap| !self.status.gaps.contains(gap)) {
            tracing::error!(
                timeline = %gap.timeline, from = %gap.from, to = %gap.to,
                "gap: no recovery from the newest backup gets past it: take a base backup now"
            );
        }
        self.status.gaps = gaps;
    }

    /// Looks from time to time whether known gaps matter still.
    async fn look_at_gaps(&mut self, repository: &Repository, cluster: &ClusterInfo) {
        if self.looking.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(looking) = self.looking.take()
            && let Ok(Some(gaps)) = looking.await
        {
            self.gaps(gaps);
        }
        let due = !self.status.gaps.is_empty() && self.looked_at.elapsed() >= GAPS_EVERY;
        if due && let (None, Some(timeline)) = (&self.looking, self.status.timeline) {
            self.looked_at = Instant::now();
            let (repository, cluster) = (repository.clone(), cluster.clone());
            self.looking = Some(tokio::spawn(async move {
                let catalog = Catalog::read(&repository, cluster).await.ok()?;
                gaps_that_matter(&catalog, timeline)
            }));
        }
    }

    /// WAL is lost.
    pub(super) fn gap(&mut self, gap: Gap) {
        self.status.add_gap(gap);
        self.status.state = State::Gap;
        self.tell();
    }

    /// The repository can't be opened, and it is tried again.
    pub(super) fn no_repository(&mut self, failure: &Failure) {
        self.status.state = State::StoreUnavailable;
        self.status.detail = Some(failure.to_string());
        self.note(failure.to_string());
        self.tell();
    }

    /// A connection failed, and is made anew.
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.status.reconnects += 1;
        self.status.state = match failure.downcast_ref::<ReceiveError>() {
            Some(ReceiveError::SlotInUse { .. } | ReceiveError::NoSlot { .. }) => State::WaitingForSlot,
            _ if failure.downcast_ref::<crate::repo::RepoError>().is_some() => State::StoreUnavailable,
            _ => State::ServerUnavailable,
        };
        let message = match failure.hint() {
            Some(hint) => format!("{failure} ({hint})"),
            None => failure.to_string(),
        };
        // Entering a state is told anyway; another cause in the same state is news, too.
        if self.logged == Some(self.status.state) && self.status.detail.as_ref() != Some(&message) {
            tracing::warn!(error = %message, "still trying");
        }
        self.status.detail = Some(message.clone());
        self.note(message);
        self.tell();
    }

    /// It is told to stop.
    pub(super) fn stopping(&mut self) {
        self.status.state = State::Stopping;
        self.tell();
    }

    /// It has ended.
    pub(super) fn ended(&mut self, how: &Result<(), Failure>) {
        match how {
            Ok(()) => {
                self.status.state = State::Stopped;
                self.status.detail = None;
            }
            Err(failure) => {
                self.status.state = State::Failed;
                self.status.detail = Some(failure.to_string());
                self.note(failure.to_string());
            }
        }
        self.tell();
    }

    /// Asks the server about the slot, beside the stream.
    async fn ask_for_slot(&mut self) {
        if self.asking.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(asking) = self.asking.take()
            && let Ok(Known::Slot(facts)) = asking.await
        {
            self.status.slot_bytes_left = facts.bytes_left;
            self.status.slot_wal_status = facts.wal_status;
        }
        if self.asking.is_none() && self.asked_at.is_none_or(|at| at.elapsed() >= SLOT_EVERY) {
            self.asked_at = Some(Instant::now());
            let (info, env, slot) = (self.info.clone(), self.env.clone(), self.slot.clone());
            self.asking = Some(tokio::spawn(async move { slot_facts(&info, &env, &slot).await }));
        }
    }

    /// Tells of data at risk, and of a slot that is about to be lost (rule 10).
    fn warn(&mut self) {
        let Some(risk) = &self.risk else { return };
        let lag = risk.lag(self.env.now());
        self.status.set_lag(lag);
        let at_risk = lag.data_at_risk > AT_RISK || self.status.slot_wal_status.as_deref() == Some("unreserved");
        if at_risk && self.told_at.is_none_or(|at| at.elapsed() > TELL_AGAIN) {
            self.told_at = Some(Instant::now());
            tracing::warn!(
                lag_bytes = lag.bytes,
                data_at_risk_seconds = lag.data_at_risk.as_secs_f64(),
                slot_bytes_left = self.status.slot_bytes_left,
                slot_wal_status = self.status.slot_wal_status,
                "commits are not durable in the repository yet"
            );
        }
    }

    fn note(&mut self, message: String) {
        self.status.last_error = Some(LastError {
            at: self.env.now(),
            message,
        });
    }

    fn tell(&mut self) {
        if self.logged.replace(self.status.state) != Some(self.status.state) {
            self.status.log();
        }
        if let Some(file) = &mut self.file
            && let Err(error) = file.tell(&self.status, &self.env)
        {
            tracing::debug!(error = %error, "the status could not be told");
        }
    }
}

/// The gaps behind the newest backup that serves a timeline; `None` where there is none.
pub(super) fn gaps_that_matter(catalog: &Catalog, timeline: Timeline) -> Option<Vec<Gap>> {
    let path = catalog.history(timeline).path();
    let on = |lsn: Lsn| path.iter().rev().find(|leg| leg.from <= lsn).map(|leg| leg.timeline);
    let gaps = catalog.gaps(timeline)?.after.into_iter();
    let gap = |(from, to)| Gap {
        timeline: on(from).unwrap_or(timeline),
        from,
        to,
    };
    Some(gaps.map(gap).collect())
}
