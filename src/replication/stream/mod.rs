//! WAL as the server writes it: `START_REPLICATION` of a physical stream, on every version from 13 on.
//!
//! [`WalStream::next`] pulls one event at a time: who takes none makes the server wait, so memory is bounded by what the
//! caller keeps and one receive buffer. What decides is in `machine` (sans-io); here are only the socket and the
//! deadlines. A silent server is the caller's to judge: `next` waits for ever where nothing is due, and only
//! the ends of an answer, which real servers send at once, have a bounded time.
//!
//! Hot standby feedback is not sent: who archives holds no snapshot that the server should mind.

mod machine;
mod message;
mod outgoing;

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::time::{Instant, timeout, timeout_at};

use self::machine::{Fault, Machine, Outcome, Step};
use self::outgoing::Outgoing;
use super::ServerError;
use super::error::ReplicationError;
use super::session::{ReplicationSession, SlotName};
use super::socket::ServerAddress;
use super::wire::WireError;
use crate::pg::{Lsn, Timeline};

/// How long the server may take to begin, or to come to the end of an answer, before the connection counts as
/// dead. `wal_sender_timeout` is the same unless changed.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How long [`WalStream::finish`] waits: who stops has ten seconds for all of it.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// Which WAL to stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStart {
    /// The physical slot to stream through, if any: it then keeps the WAL that was not reported as flushed.
    pub slot: Option<SlotName>,
    /// On which timeline.
    pub timeline: Timeline,
    /// From which byte on.
    pub at: Lsn,
}

/// What came of [`ReplicationSession::start_physical`].
#[derive(Debug)]
pub enum Started {
    /// The copy has begun. The server may still refuse the position: WAL that it has removed, or does not have yet, it
    /// reports only now, and [`WalStream::next`] tells.
    Streaming(Box<WalStream>),
    /// The timeline ended at the position asked: there is nothing to stream, and this comes next.
    TimelineEnd(Box<ReplicationSession>, NextTimeline),
    /// The server refused before the copy began (no such slot, slot in use, timeline not in its history), with
    /// [`ReplicationError::Server`]; the session is ready for the next command.
    Refused(Box<ReplicationSession>, ReplicationError),
}

/// What follows the end of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    /// The next timeline in the server's history, greater than the one that ended.
    pub timeline: Timeline,
    /// Where the old one was left. Not behind what was streamed, but it can lie before: a standby hands on what it
    /// receives at once, and at its promotion leaves the timeline at the end of the last whole record.
    pub from: Lsn,
}

/// What a stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// WAL, which goes on exactly where the last ended (the first at the position asked).
    Wal {
        /// Where it begins.
        at: Lsn,
        /// The bytes: never empty, at most 1 MiB. They share the receive buffer, so keeping few of them keeps more.
        bytes: Bytes,
        /// How far the server could stream when it sent this.
        server_end: Lsn,
        /// When that was, by the server's clock.
        sent_at: DateTime<Utc>,
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has streamed.
        server_end: Lsn,
        /// When it was sent, by the server's clock.
        sent_at: DateTime<Utc>,
        /// Whether the server wants a status at once: else it ends the connection after `wal_sender_timeout`.
        reply: bool,
    },
    /// The server has ended the copy, for the timeline ends here. [`WalStream::into_session`] gives a
    /// session that is ready for the next command.
    TimelineEnd(NextTimeline),
}

/// How far the WAL has come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Received and written; the end of it, not the last byte.
    pub written: Lsn,
    /// Durable: a slot lets go of what is before, and commits that wait for `synchronous_commit = on` go on.
    pub flushed: Lsn,
    /// Applied, for `remote_apply`.
    pub applied: Lsn,
    /// Whether the server should answer with a keepalive.
    pub reply: bool,
}

/// WAL on its way. Dropping it closes the connection.
#[derive(Debug)]
pub struct WalStream {
    session: ReplicationSession,
    /// What errors call the command.
    doing: String,
    machine: Machine,
    outgoing: Outgoing,
    /// When the end of the answer is due; none while WAL may come.
    due: Option<Instant>,
    /// How the command ended.
    outcome: Option<Outcome>,
    /// Why nothing can be sent any more. What the server had sent before is still worth reading.
    unsendable: Option<io::Error>,
    /// Whether an error ended the stream, and the connection with it.
    broken: bool,
}

impl ReplicationSession {
    /// Begins to stream WAL. Ask for [`Self::identify_system`] first, once in a session: a standby of 13 refuses otherwise.
    ///
    /// # Errors
    /// Where the connection fails. What the server refuses is a [`Started::Refused`], or told by
    /// [`WalStream::next`]: in both cases the session can be had back.
    pub async fn start_physical(mut self, start: &StreamStart) -> Result<Started, ReplicationError> {
        let StreamStart { slot, timeline, at } = start;
        let slot = slot.as_ref().map_or(String::new(), |slot| format!("SLOT \"{slot}\" "));
        let command = format!("START_REPLICATION {slot}PHYSICAL {at} TIMELINE {timeline}");
        let doing = command.replace('"', "");
        self.begin(&doing)?;
        if let Err(error) = self.wire().send_query(&command).await {
            return Err(self.failed(error));
        }
        self.wire().expect_wal();
        let mut stream = WalStream {
            doing,
            machine: Machine::new(*timeline, *at),
            outgoing: Outgoing::default(),
            due: None,
            outcome: None,
            unsendable: None,
            broken: false,
            session: self,
        };
        match timeout(ANSWER_WITHIN, stream.begun()).await {
            Ok(Ok(None)) => Ok(Started::Streaming(Box::new(stream))),
            Ok(Ok(Some(Outcome::TimelineEnd(next)))) => Ok(Started::TimelineEnd(Box::new(stream.session), next)),
            Ok(Ok(Some(Outcome::Refused(source)))) => {
                let error = stream.refused(source);
                Ok(Started::Refused(Box::new(stream.session), error))
            }
            Ok(Ok(Some(Outcome::Finished))) => Err(stream.over()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(stream.late(ANSWER_WITHIN)),
        }
    }
}

impl WalStream {
    /// Which server it comes from.
    pub fn address(&self) -> &ServerAddress {
        self.session.address()
    }

    /// Where the next WAL will begin; all before it was handed on.
    pub fn position(&self) -> Lsn {
        self.machine.position()
    }

    /// The next event. May be dropped and called again; sends what is left of a status meanwhile. After
    /// [`StreamEvent::TimelineEnd`] it gives that again.
    ///
    /// # Errors
    /// [`ReplicationError::Server`] where the server refuses to go on (WAL removed, position ahead of its own):
    /// [`Self::into_session`] then gives a session that is ready for the next command. All others end the
    /// connection: [`ReplicationError::Ended`] where the server shuts down, [`ReplicationError::Protocol`] where it sent what it
    /// must not, naming the position where WAL was expected; nothing of the bad message is handed on.
    pub async fn next(&mut self) -> Result<StreamEvent, ReplicationError> {
        if self.broken {
            return Err(self.over());
        }
        while self.outcome.is_none() {
            if let Step::Event(event) = self.step_in_time().await? {
                return Ok(event);
            }
        }
        self.settle().await?;
        match self.outcome.clone() {
            Some(Outcome::TimelineEnd(next)) => Ok(StreamEvent::TimelineEnd(next)),
            Some(Outcome::Refused(source)) => Err(self.refused(source)),
            Some(Outcome::Finished) | None => Err(self.over()),
        }
    }

    /// Tells the server how far the WAL has come. Never waits for the server: what it does not take at once goes on its
    /// way during [`Self::next`], and a later status takes the place of one that has not begun to leave.
    ///
    /// # Errors
    /// Where an error has ended the stream. A connection that breaks now is told by [`Self::next`], after all WAL that has
    /// arrived; where the copy is at its end, nothing is sent and that is fine.
    pub async fn report(&mut self, status: &StandbyStatus) -> Result<(), ReplicationError> {
        if self.broken {
            return Err(self.over());
        }
        if self.machine.is_ending() {
            return Ok(());
        }
        self.outgoing.put(*status);
        std::future::poll_fn(|context| {
            self.send(context);
            Poll::Ready(())
        })
        .await;
        Ok(())
    }

    /// Ends the stream in good order: tells the server, reads to the end of its answer (WAL that comes meanwhile is dropped),
    /// and closes the connection. What was reported before is sent first.
    ///
    /// # Errors
    /// Where the server does not come to an end within five seconds, or the connection fails first. A server
    /// that shuts down at this moment is fine.
    pub async fn finish(mut self) -> Result<(), ReplicationError> {
        if self.broken {
            return Err(self.over());
        }
        if self.machine.finish() {
            self.outgoing.put_end();
        }
        match timeout(FINISH_WITHIN, self.read_to_end()).await {
            Ok(Ok(()) | Err(ReplicationError::Ended { .. })) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.late(FINISH_WITHIN)),
        }
    }

    /// The session, ready for the next command after [`StreamEvent::TimelineEnd`], and after a
    /// [`ReplicationError::Server`] of [`Self::next`]. In the middle of a stream it refuses all commands.
    pub fn into_session(self) -> ReplicationSession {
        self.session
    }

    /// Reads until the copy has begun or the command is over.
    async fn begun(&mut self) -> Result<Option<Outcome>, ReplicationError> {
        loop {
            match self.step().await? {
                Step::Begun => return Ok(None),
                Step::Over(outcome) => {
                    self.settle().await?;
                    return Ok(Some(outcome));
                }
                _ => {}
            }
        }
    }

    async fn read_to_end(&mut self) -> Result<(), ReplicationError> {
        while self.outcome.is_none() {
            self.step().await?;
        }
        // A courtesy: without it the server logs a connection that broke.
        let _ = self.session.wire().send(&message::TERMINATE).await;
        Ok(())
    }

    /// One message, in a bounded time where it is the end of an answer.
    async fn step_in_time(&mut self) -> Result<Step, ReplicationError> {
        if !self.machine.is_ending() && self.unsendable.is_none() {
            return self.step().await;
        }
        let due = *self.due.get_or_insert_with(|| Instant::now() + ANSWER_WITHIN);
        match timeout_at(due, self.step()).await {
            Ok(step) => step,
            Err(_) => Err(match self.unsendable.take() {
                Some(error) => self.lost(WireError::Lost(Some(error))),
                None => self.late(ANSWER_WITHIN),
            }),
        }
    }

    /// Takes one message and does what it asks of us. Cancel-safe: between the message's arrival and the return nothing waits.
    async fn step(&mut self) -> Result<Step, ReplicationError> {
        let received = std::future::poll_fn(|context| {
            let could_send = self.unsendable.is_none();
            self.send(context);
            match self.session.wire().poll_receive(context) {
                // From now on there is a limit to the waiting.
                Poll::Pending if could_send && self.unsendable.is_some() => Poll::Ready(None),
                received => received.map(Some),
            }
        });
        let message = match received.await {
            Some(received) => received.map_err(|error| self.lost(error))?,
            None => return Ok(Step::Wait),
        };
        let step = self.machine.take(message).map_err(|fault| self.faulty(fault))?;
        match &step {
            Step::Answer => self.outgoing.put_end(),
            Step::Over(outcome) => {
                self.outgoing.cut();
                self.outcome = Some(outcome.clone());
            }
            _ => {}
        }
        Ok(step)
    }

    /// Makes the session ready for the next command: a message that has begun to leave must leave whole.
    async fn settle(&mut self) -> Result<(), ReplicationError> {
        let left = std::future::poll_fn(|context| {
            let clock = self.session.clock();
            self.outgoing.poll_send(clock, self.session.wire(), context)
        });
        match timeout(ANSWER_WITHIN, left).await {
            Ok(Ok(())) => {
                self.session.ended();
                Ok(())
            }
            Ok(Err(error)) => Err(self.lost(WireError::Lost(Some(error)))),
            Err(_) => Err(self.late(ANSWER_WITHIN)),
        }
    }

    /// Sends what the server takes now.
    fn send(&mut self, context: &mut Context<'_>) {
        if self.unsendable.is_none()
            && let Poll::Ready(Err(error)) = self
                .outgoing
                .poll_send(self.session.clock(), self.session.wire(), context)
        {
            self.unsendable = Some(error);
        }
    }

    fn faulty(&mut self, fault: Fault) -> ReplicationError {
        self.broken = true;
        let (at, doing) = (self.address().clone(), self.doing.clone());
        match fault {
            Fault::Protocol(what) => ReplicationError::Protocol { at, doing, what },
            Fault::ShutDown(source) => ReplicationError::Ended { at, doing, source },
        }
    }

    fn lost(&mut self, error: WireError) -> ReplicationError {
        self.broken = true;
        self.session.failed(error)
    }

    fn late(&mut self, after: Duration) -> ReplicationError {
        self.broken = true;
        let (at, doing) = (self.address().clone(), self.doing.clone());
        ReplicationError::Timeout { at, doing, after }
    }

    /// For a call that comes after the end.
    fn over(&self) -> ReplicationError {
        let (at, doing) = (self.address().clone(), self.doing.clone());
        ReplicationError::Abandoned { at, doing }
    }

    fn refused(&self, source: ServerError) -> ReplicationError {
        let (at, doing) = (self.address().clone(), self.doing.clone());
        ReplicationError::Server { at, doing, source }
    }
}

#[cfg(test)]
mod tests;
