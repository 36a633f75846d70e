//! One connection: from the first word to the server to the last.

use super::begin::{self, Begin, Unit};
use super::compare::what_is_stored;
use super::monitor::gaps_that_matter;
use super::server::{self, Server, Wanted};
use super::sink::Sink;
use super::spool::Spool;
use super::spooling::{Seam, Spooling};
use super::status::Gap;
use super::stream::Ended;
use super::tidy::tidy;
use super::writer::{Goal, Writer};
use super::{ReceiveError, Receiver, Until};
use crate::catalog::{Catalog, Coverage};
use crate::error::Failure;
use crate::ops::history;
use crate::pg::{Lsn, SegmentNumber, SegmentSize, SystemId, Timeline};
use crate::replication::{NextTimeline, ReplicationSession, Started, StreamStart};
use crate::repo::ClusterInfo;
use crate::repo::tail::Tail;

/// How many segments are asked for, one after the other, when the server has removed some.
const MOST_PROBES: u64 = 4096;

impl Receiver {
    /// One connection, from the first word to the last.
    pub(super) async fn connection(&mut self) -> Result<(), Failure> {
        let Some(prepared) = self.unless_stopped(async |receiver| receiver.prepare().await).await else {
            return Ok(());
        };
        let (mut server, mut session, mut from, stored) = prepared?;
        loop {
            match self.timeline(&mut server, session, from, stored.as_ref()).await? {
                Next::Stop => return Ok(()),
                Next::Go(next, again) => (from, session) = (next, *again),
            }
        }
    }

    /// What `work` gives; `None` where we are told to stop before it is done. Only for work that may be left half done.
    async fn unless_stopped<T>(&mut self, work: impl AsyncFnOnce(&mut Self) -> T) -> Option<T> {
        let stop = self.stop.clone();
        tokio::select! {
            done = work(self) => Some(done),
            () = stop.cancelled() => None,
        }
    }

    /// Everything before the first byte: who the server is, and where to begin.
    async fn prepare(&mut self) -> Result<(Server, ReplicationSession, From, Option<Coverage>), Failure> {
        let known = self.cluster.as_ref().map(|cluster| cluster.system);
        let wanted = Wanted {
            slot: self.options.slot.clone(),
            create_slot: self.options.create_slot,
            cluster: known.or(self.options.cluster),
        };
        let (mut server, mut session) = Server::connect(&self.info, self.env(), &wanted).await?;
        self.bind(&server).await?;
        if self.options.until == Some(Until::Now) {
            self.until.get_or_insert(server.offer.end);
        }
        self.store_histories(&server, &mut session).await?;
        if let Some(from) = self.resume(&server)? {
            return Ok((server, session, from, None));
        }
        let (repository, cluster) = (&self.repository, &server.cluster);
        let mut catalog = Catalog::read(repository, cluster.clone()).await?;
        if tidy(repository, cluster, &catalog.wal, self.options.level).await? {
            catalog = Catalog::read(repository, cluster.clone()).await?;
        }
        // The end that it told first is older than what was read of the repository, and others write there, too.
        let timeline = server.timeline;
        server.look_again(&mut session).await?;
        if server.timeline != timeline {
            self.store_histories(&server, &mut session).await?;
        }
        if let Some(gaps) = gaps_that_matter(&catalog, server.timeline) {
            self.monitor.gaps(gaps);
        }
        let unit = begin::to_compare(first_unit(&server, &catalog.wal)?, &catalog.wal);
        Ok((server, session, From::Segment(unit), Some(catalog.wal)))
    }

    /// Where the spool ends, there the server's WAL goes on. What the server's timelines left behind is passed over.
    fn resume(&mut self, server: &Server) -> Result<Option<From>, Failure> {
        let Some((timeline, at)) = self.spooling.as_ref().and_then(Spooling::at) else {
            return Ok(None);
        };
        let path = &server.offer.path;
        let Some(position) = path.iter().position(|leg| leg.timeline == timeline) else {
            tracing::warn!(%timeline, server = %server.timeline, "the spool's timeline is not in this server's history");
            return Ok(None);
        };
        match (path[position].to, path.get(position + 1)) {
            (Some(to), Some(next)) if at >= to => Ok(Some(From::Segment(Unit {
                timeline: next.timeline,
                number: SegmentNumber::holding(next.from, server.cluster.segment_size),
            }))),
            (None, _) if at > server.offer.end => Err(ahead(server, timeline, at)),
            _ => Ok(Some(From::Byte(timeline, at))),
        }
    }

    /// What an earlier run has left in the spool goes to the repository, with a server or without.
    pub(super) async fn deliver_what_was_left(&mut self) -> Result<(), Failure> {
        let Some(options) = self.options.spool.clone() else {
            return Ok(());
        };
        let mut found = None;
        for entry in std::fs::read_dir(&options.folder).into_iter().flatten().flatten() {
            let system = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<SystemId>().ok());
            let wanted = system.filter(|system| self.options.cluster.is_none_or(|cluster| cluster == *system));
            if let Some(system) = wanted.filter(|_| entry.path().join(self.options.slot.as_str()).is_dir())
                && found.replace(system).is_some()
            {
                return Err(ReceiveError::SpoolOfSeveral {
                    folder: options.folder.display().to_string(),
                }
                .into());
            }
        }
        let Some(system) = found else { return Ok(()) };
        if let Some(cluster) = ClusterInfo::read(self.repository.store(), system).await? {
            self.open_spool(&cluster)?;
            if self.spooling.as_ref().is_some_and(|spooling| spooling.at().is_some()) {
                self.cluster = Some(cluster);
            }
        }
        Ok(())
    }

    fn open_spool(&mut self, cluster: &ClusterInfo) -> Result<(), Failure> {
        let Some(options) = self.options.spool.as_ref().filter(|_| self.spooling.is_none()) else {
            return Ok(());
        };
        let (spool, recovered) = Spool::open(&options.folder, cluster.system, &self.options.slot, options.limit)?;
        for stretch in &recovered.stretches {
            tracing::info!(timeline = %stretch.timeline, from = %stretch.from, to = %stretch.to, "the spool holds WAL");
        }
        for damage in &recovered.damaged {
            tracing::error!(path = %damage.path.display(), offset = damage.offset, "the spool is damaged: WAL is lost");
        }
        let first = Unit {
            timeline: Timeline::FIRST,
            number: SegmentNumber::new(0),
        };
        let goal = self.goal(cluster, first, "the spool");
        self.spooling = Some(Spooling::start(spool, goal, options.promise));
        Ok(())
    }

    fn goal(&self, cluster: &ClusterInfo, unit: Unit, server: &str) -> Goal {
        Goal {
            repository: self.repository.clone(),
            cluster: cluster.clone(),
            server: server.to_owned(),
            unit,
            pace: self.options.pace,
            level: self.options.level,
            trouble: self.trouble.clone(),
        }
    }

    /// The cluster must be the one that the repository knows, and the same as at the last connection.
    async fn bind(&mut self, server: &Server) -> Result<(), Failure> {
        if self.cluster.as_ref() != Some(&server.cluster) {
            let known = ClusterInfo::read(self.repository.store(), server.cluster.system).await?;
            server.cluster.bind(&self.repository, known).await?;
        }
        self.open_spool(&server.cluster)?;
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
            match &self.spooling {
                None => history::store(&self.repository, session, &server.cluster, leg.timeline).await?,
                // The store may be out, and must not hold up the stream.
                Some(_) if leg.timeline == Timeline::FIRST => {}
                Some(spooling) => {
                    if let Some(text) = session.timeline_history(leg.timeline).await? {
                        spooling.put_history(leg.timeline, text);
                    }
                }
            }
        }
        Ok(())
    }

    /// Streams one timeline from some place on.
    async fn timeline(
        &mut self,
        server: &mut Server,
        mut session: ReplicationSession,
        from: From,
        stored: Option<&Coverage>,
    ) -> Result<Next, Failure> {
        let (timeline, at) = from.place(server.cluster.segment_size);
        let tail = match from {
            From::Segment(unit) if self.spooling.is_none() => {
                let tail = self.unless_stopped(async |receiver| receiver.tail(server, &mut session, unit).await);
                let Some(tail) = tail.await else { return Ok(Next::Stop) };
                Some((unit, tail?))
            }
            _ => None,
        };
        let seam = match from {
            From::Byte(..) => Seam::of(&self.repository, &server.cluster, &server.name, (timeline, at)).await,
            From::Segment(_) => None,
        };
        let start = StreamStart {
            slot: Some(self.options.slot.clone()),
            timeline,
            at: seam.as_ref().map_or(at, Seam::from),
        };
        let mut stream = match session.start_physical(&start).await? {
            Started::Streaming(stream) => stream,
            Started::TimelineEnd(session, next) => return self.follow(server, *session, next).await,
            Started::Refused(_, error) => return Err(server::refused(error, &server.name, &self.options.slot)),
        };
        tracing::info!(%timeline, from = %at, "streaming");
        self.monitor
            .streaming(timeline, tail.as_ref().map_or(at, |(_, tail)| tail.end));
        // Taken out for as long as the stream lasts: both are used side by side.
        let mut spooling = self.spooling.take();
        let mut sink = match (&mut spooling, tail) {
            (Some(spooling), _) => {
                spooling.begin_at(timeline, at, seam);
                Sink::Spooled(spooling)
            }
            (None, Some((unit, tail))) => {
                let goal = self.goal(&server.cluster, unit, &server.name);
                Sink::Direct(Box::new(Writer::new(goal, tail)))
            }
            (None, None) => return Err(ReceiveError::PackerGone.into()),
        };
        let ended = self.stream(&mut stream, &mut sink).await;
        let nothing_came = sink.received() == at;
        drop(sink);
        self.spooling = spooling;
        match ended {
            Ok(Ended::Stopped) => {
                let _ = stream.finish().await;
                Ok(Next::Stop)
            }
            Ok(Ended::TimelineEnd(next)) => {
                tracing::info!(%timeline, at = %next.from, next = %next.timeline, "the timeline ends");
                self.follow(server, stream.into_session(), next).await
            }
            Err(failure) if server::is_removed(&failure) && nothing_came => {
                let next = self.skip(server, from, stored)?;
                Ok(Next::Go(From::Segment(next), Box::new(stream.into_session())))
            }
            Err(failure) => Err(failure),
        }
    }

    /// What the repository has of a segment, if the server has as much.
    async fn tail(&self, server: &mut Server, session: &mut ReplicationSession, unit: Unit) -> Result<Tail, Failure> {
        let tail = what_is_stored(&self.repository, &server.cluster, unit).await?;
        if tail.end > server.offer.end {
            // Another receiver may have been faster.
            server.look_again(session).await?;
        }
        match unit.timeline == server.timeline && tail.end > server.offer.end {
            true => Err(ahead(server, unit.timeline, tail.end)),
            false => Ok(tail),
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
        Ok(Next::Go(From::Segment(unit), Box::new(session)))
    }

    /// The server has removed this WAL: a gap, unless `archive_command` brings it. Answers which segment to ask for next.
    fn skip(&mut self, server: &Server, from: From, stored: Option<&Coverage>) -> Result<Unit, Failure> {
        let size = server.cluster.segment_size;
        let path = &server.offer.path;
        let (timeline, at) = from.place(size);
        let unit = Unit {
            timeline,
            number: SegmentNumber::holding(at, size),
        };
        let mut next = match stored {
            Some(stored) => begin::next_missing(path, stored, unit),
            None => begin::next(path, unit, size),
        };
        let is_whole = stored.is_some_and(|stored| begin::is_whole(stored, unit));
        if let Some(next) = next.filter(|_| is_whole) {
            tracing::warn!(
                segment = %unit.number.name(timeline, size),
                "the server has removed the last segment that the repository has: they can't be compared"
            );
            return Ok(next);
        }
        if let (Some(unit), Some(kept)) = (next, server.offer.kept_from) {
            let first = SegmentNumber::holding(kept, size).number().saturating_sub(MOST_PROBES);
            if first > unit.number.number() {
                next = begin::first_with(path, SegmentNumber::new(first), size);
            }
        }
        let Some(next) = next.filter(|next| next.number.start(size) <= server.offer.end) else {
            return Err(ReceiveError::NothingLeft {
                server: server.name.clone(),
                from: at,
            }
            .into());
        };
        self.note_gap(timeline, at, next.number.start(size));
        Ok(next)
    }

    /// Told when it is known how far it goes.
    fn note_gap(&mut self, timeline: Timeline, from: Lsn, to: Lsn) {
        match &mut self.gap {
            Some(gap) if gap.timeline == timeline && gap.to == from => gap.to = to,
            _ if from == to => {}
            _ => {
                self.tell_gap();
                self.gap = Some(Gap { timeline, from, to });
            }
        }
    }

    /// WAL goes on behind a gap.
    pub(super) fn tell_gap(&mut self) {
        if let Some(gap) = self.gap.take() {
            tracing::error!(
                timeline = %gap.timeline, from = %gap.from, to = %gap.to,
                "gap: the server has removed this WAL and the repository lacks it; no recovery gets past it: take a \
                 base backup now, unless archive_command still brings it"
            );
            self.monitor.gap(gap);
        }
    }
}

/// From where on to stream.
#[derive(Debug, Clone, Copy)]
enum From {
    /// A segment's first byte: what the repository has of it is compared.
    Segment(Unit),
    /// Any byte: where the spool ends.
    Byte(Timeline, Lsn),
}

impl From {
    fn place(self, size: SegmentSize) -> (Timeline, Lsn) {
        match self {
            Self::Segment(unit) => (unit.timeline, unit.number.start(size)),
            Self::Byte(timeline, at) => (timeline, at),
        }
    }
}

/// What a connection does next.
enum Next {
    Stop,
    Go(From, Box<ReplicationSession>),
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
