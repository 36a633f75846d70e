//! From the server to the sink, and what is durable back to the server.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::cutter::Pace;
use super::sink::Sink;
use super::{ReceiveError, Receiver};
use crate::error::Failure;
use crate::pg::Lsn;
use crate::replication::{NextTimeline, StandbyStatus, StreamEvent, WalStream};

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(500);
/// A server that was silent for so long is asked whether it lives …
const ASK_AFTER: Duration = Duration::from_secs(20);
/// … and is given up after so long.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
/// While nothing is read, the server's requests for an answer are not read either: it is told this often that we live,
/// unasked. `wal_sender_timeout` may be a few seconds.
const UNASKED: Duration = Duration::from_secs(1);
/// How long storing what was received may take at a stop. A supervisor kills after ten seconds or more.
const DRAIN_WITHIN: Duration = Duration::from_secs(8);

/// How long tidying up may take at a stop.
const SETTLE_WITHIN: Duration = Duration::from_secs(1);

/// How a stream ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// We were told to stop, or have come to where we should; everything received is durable.
    Stopped,
    /// The timeline ends; everything of it is durable.
    TimelineEnd(NextTimeline),
}

/// What the server was told, and when it was last heard of.
struct Talk {
    reported: Option<StandbyStatus>,
    reported_at: Instant,
    heard_at: Instant,
    asked: bool,
}

impl Receiver {
    /// Streams until the timeline ends, or until we should stop. Where the connection breaks, what was received is
    /// made durable first: it may be the only copy.
    pub(super) async fn stream(&mut self, stream: &mut WalStream, sink: &mut Sink<'_>) -> Result<Ended, Failure> {
        let mut talk = Talk {
            reported: None,
            reported_at: Instant::now(),
            heard_at: Instant::now(),
            asked: false,
        };
        let carried = self.carry(stream, sink, &mut talk).await;
        match carried {
            Ok(None) => {
                self.monitor.stopping();
                let drained = timeout(DRAIN_WITHIN, self.drain(stream, sink, &mut talk)).await;
                match drained {
                    Ok(drained) => drained?,
                    Err(_) if sink.is_safe() => {
                        tracing::warn!(stored = ?sink.stored(), received = %sink.received(), "the rest stays in the spool");
                    }
                    Err(_) => return Err(undrained(sink)),
                }
                // Pieces that are not needed any more go, or else at the next start.
                let _ = timeout(SETTLE_WITHIN, sink.settle()).await;
                Ok(Ended::Stopped)
            }
            Ok(Some(next)) => {
                self.keep_what_came(sink).await?;
                let _ = self.talk(stream, sink, &mut talk, true, false).await;
                Ok(Ended::TimelineEnd(next))
            }
            Err(Broken::Connection(failure)) => {
                self.keep_what_came(sink).await?;
                Err(failure)
            }
            Err(Broken::Writing(failure)) => Err(failure),
        }
    }

    async fn carry(
        &mut self,
        stream: &mut WalStream,
        sink: &mut Sink<'_>,
        talk: &mut Talk,
    ) -> Result<Option<NextTimeline>, Broken> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = sink.has_room();
            let mut wanted = false;
            tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                event = stream.next(), if room => {
                    talk.heard_at = Instant::now();
                    talk.asked = false;
                    match event.map_err(|error| Broken::Connection(error.into()))? {
                        StreamEvent::Wal { bytes, server_end, sent_at, .. } => {
                            sink.server_has(server_end);
                            self.monitor.server(server_end, sent_at);
                            self.monitor.received(bytes.len() as u64);
                            self.tell_gap();
                            sink.take(bytes).map_err(Broken::Writing)?;
                        }
                        StreamEvent::Keepalive { server_end, reply, sent_at } => {
                            sink.server_has(server_end);
                            self.monitor.server(server_end, sent_at);
                            wanted = reply;
                        }
                        StreamEvent::TimelineEnd(next) => return Ok(Some(next)),
                    }
                }
                progress = sink.progress() => progress.map_err(Broken::Writing)?,
                _ = tick.tick() => {
                    sink.tick();
                    let cluster = self.cluster.as_ref();
                    self.monitor.tick(&self.repository, cluster, &self.trouble, sink).await;
                }
            }
            self.monitor.observe(sink);
            self.talk(stream, sink, talk, wanted, room)
                .await
                .map_err(Broken::Connection)?;
            if self.until.is_some_and(|until| sink.durable() >= Some(until)) {
                return Ok(None);
            }
        }
    }

    /// Tells the server what it should know by now.
    async fn talk(
        &self,
        stream: &mut WalStream,
        sink: &Sink<'_>,
        talk: &mut Talk,
        wanted: bool,
        reading: bool,
    ) -> Result<(), Failure> {
        let silent = talk.heard_at.elapsed();
        // While we do not read, its silence is ours.
        let ask = reading && silent > ASK_AFTER && !talk.asked;
        if reading && silent > GIVE_UP_AFTER {
            return Err(ReceiveError::Silent {
                server: stream.address().to_string(),
                seconds: silent.as_secs(),
            }
            .into());
        }
        let mut status = self.status(sink);
        let news = talk.reported.is_none_or(|reported| reported.flushed != status.flushed);
        let interval = match reading {
            true => self.options.status_interval,
            false => self.options.status_interval.min(UNASKED),
        };
        if !(news || wanted || ask || talk.reported_at.elapsed() >= interval) {
            return Ok(());
        }
        talk.reported = Some(status);
        talk.reported_at = Instant::now();
        talk.asked |= ask;
        status.reply = ask;
        Ok(stream.report(&status).await?)
    }

    /// Only durable bytes are flushed bytes (rule 1). Where commits wait for us, none of the three positions tells more:
    /// `remote_write` waits for durability as well, and `remote_apply` for nothing longer.
    fn status(&self, sink: &Sink<'_>) -> StandbyStatus {
        let durable = sink.durable().unwrap_or(Lsn::ZERO);
        let written = match self.options.pace {
            Pace::Synchronous => durable,
            Pace::Interval(_) => sink.received(),
        };
        StandbyStatus {
            written,
            flushed: durable,
            applied: durable,
            reply: false,
        }
    }

    /// Brings everything that was received into the repository, and tells the server.
    async fn drain(&mut self, stream: &mut WalStream, sink: &mut Sink<'_>, talk: &mut Talk) -> Result<(), Failure> {
        sink.hurry();
        while !sink.is_drained() {
            sink.progress().await?;
            self.monitor.observe(sink);
            // A connection that breaks meanwhile changes nothing.
            let _ = self.talk(stream, sink, talk, false, false).await;
        }
        let _ = self.talk(stream, sink, talk, true, false).await;
        Ok(())
    }

    /// Nothing more comes: what came is made durable, however long that takes, unless we are told to stop.
    async fn keep_what_came(&mut self, sink: &mut Sink<'_>) -> Result<(), Failure> {
        sink.hurry();
        let stop = self.stop.clone();
        let patience = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN_WITHIN).await;
        };
        let keep = async {
            while !sink.is_safe() {
                sink.progress().await?;
                self.monitor.observe(sink);
            }
            Ok(())
        };
        tokio::select! {
            kept = keep => return kept,
            () = patience => {}
        }
        Err(undrained(sink))
    }
}

/// Which end of it broke.
enum Broken {
    Connection(Failure),
    Writing(Failure),
}

fn undrained(sink: &Sink<'_>) -> Failure {
    ReceiveError::Undrained {
        durable: sink.durable().unwrap_or(Lsn::ZERO),
        received: sink.received(),
    }
    .into()
}
