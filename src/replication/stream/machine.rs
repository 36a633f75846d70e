//! The course of one `START_REPLICATION`: messages in, steps out. Sans-io, no clock.
//!
//! WAL is handed on only where it goes on exactly at the byte that was last handed on: a gap, an overlap or a
//! repetition is the server's fault and ends the stream. So whoever appends what comes out, in order, has the server's WAL.

use bytes::Bytes;

use super::message::CopyMessage;
use super::{NextTimeline, StreamEvent};
use crate::pg::{Lsn, Timeline};
use crate::replication::ServerError;
use crate::replication::message::{Backend, Row};
use crate::replication::server_error::Severity;
use crate::replication::session::Fields;

/// How many results a server may report for one command; real ones report two, the copy's and the command's.
const MOST_RESULTS: u32 = 3;

/// What follows from a message.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::replication) enum Step {
    /// Nothing yet.
    Wait,
    /// The copy has begun.
    Begun,
    /// For the caller.
    Event(StreamEvent),
    /// The server has ended the copy: it waits for our `CopyDone`.
    Answer,
    /// The command is over and the session ready for the next.
    Over(Outcome),
}

/// How a command ended that leaves the session of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::replication) enum Outcome {
    /// The timeline ended.
    TimelineEnd(NextTimeline),
    /// We have ended it.
    Finished,
    /// The server refused it, or gave it up.
    Refused(ServerError),
}

/// What ends the command, and the session with it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::replication) enum Fault {
    /// Not the protocol, or not this WAL.
    Protocol(String),
    /// The server ends the connection, of its own accord.
    ShutDown(Option<ServerError>),
}

/// Where the command stands.
#[derive(Debug)]
enum State {
    /// The server has not answered.
    Asked,
    /// WAL comes.
    Copying,
    /// The copy is over or never was; what is still to come is the rest of the answer.
    Ending(Rest),
    /// Refused; the session is ready with the next message.
    Refused(ServerError),
    /// Nothing more belongs to this command.
    Over,
}

/// What has come of the answer behind the copy.
#[derive(Debug, Default)]
struct Rest {
    columns: bool,
    next: Option<NextTimeline>,
    results: u32,
}

/// One command's course.
#[derive(Debug)]
pub(in crate::replication) struct Machine {
    timeline: Timeline,
    /// Where the next WAL must begin.
    expected: Lsn,
    state: State,
    /// Whether our `CopyDone` was sent unasked.
    we_finish: bool,
}

impl Machine {
    /// For WAL of this timeline from this position on.
    pub(in crate::replication) fn new(timeline: Timeline, at: Lsn) -> Self {
        Self {
            timeline,
            expected: at,
            state: State::Asked,
            we_finish: false,
        }
    }

    /// Where the next WAL begins: all before it was handed on.
    pub(in crate::replication) fn position(&self) -> Lsn {
        self.expected
    }

    /// Whether no more than the end of the answer is still to come, which real servers send at once.
    pub(in crate::replication) fn is_ending(&self) -> bool {
        !matches!(self.state, State::Asked | State::Copying) || self.we_finish
    }

    /// Notes that our `CopyDone` is on its way. False where the copy is over already.
    pub(in crate::replication) fn finish(&mut self) -> bool {
        self.we_finish = matches!(self.state, State::Copying);
        self.we_finish
    }

    /// Takes the next message.
    pub(in crate::replication) fn take(&mut self, message: Backend) -> Result<Step, Fault> {
        if let Backend::Error(error) = message {
            return self.refused(error);
        }
        let name = message.name();
        match (&mut self.state, message) {
            (State::Asked, Backend::CopyBoth) => {
                self.state = State::Copying;
                Ok(Step::Begun)
            }
            // Nothing to stream: the answer begins with the next timeline.
            (State::Asked, Backend::Columns) => {
                self.state = State::Ending(Rest {
                    columns: true,
                    ..Rest::default()
                });
                Ok(Step::Wait)
            }
            (State::Copying, Backend::CopyData(body)) => self.data(body).map(Step::Event),
            (State::Copying, Backend::CopyDone) => {
                self.state = State::Ending(Rest::default());
                Ok(if self.we_finish { Step::Wait } else { Step::Answer })
            }
            // Without an end of the copy: so a server ends the stream that shuts down.
            (State::Copying, Backend::CommandComplete) => Err(Fault::ShutDown(None)),
            (State::Ending(rest), Backend::Columns) if !rest.columns => {
                rest.columns = true;
                Ok(Step::Wait)
            }
            (State::Ending(_), Backend::Row(row)) => self.row(row),
            (State::Ending(rest), Backend::CommandComplete) if rest.results < MOST_RESULTS => {
                rest.results += 1;
                Ok(Step::Wait)
            }
            (State::Ending(rest), Backend::Ready) => {
                let outcome = match (rest.next, self.we_finish) {
                    (Some(next), _) => Outcome::TimelineEnd(next),
                    (None, true) => Outcome::Finished,
                    (None, false) => return Err(self.fault("no next timeline behind the end of this one")),
                };
                self.state = State::Over;
                Ok(Step::Over(outcome))
            }
            (State::Refused(error), Backend::Ready) => {
                let error = error.clone();
                self.state = State::Over;
                Ok(Step::Over(Outcome::Refused(error)))
            }
            (state, _) => {
                let when = match state {
                    State::Asked => "before the copy",
                    State::Copying => "within the copy",
                    State::Ending(_) => "behind the end of the copy",
                    State::Refused(_) => "behind an error",
                    State::Over => "behind the end of the command",
                };
                Err(self.fault(&format!("{name} {when}")))
            }
        }
    }

    /// The session ends with a fatal error, the command with another.
    fn refused(&mut self, error: ServerError) -> Result<Step, Fault> {
        match &self.state {
            _ if error.severity() >= Severity::Fatal => Err(Fault::ShutDown(Some(error))),
            State::Asked | State::Copying | State::Ending(_) => {
                self.state = State::Refused(error);
                Ok(Step::Wait)
            }
            State::Refused(_) => Err(self.fault("a second error")),
            State::Over => Err(self.fault("an error behind the end of the command")),
        }
    }

    /// What came within the copy.
    fn data(&mut self, body: Bytes) -> Result<StreamEvent, Fault> {
        match CopyMessage::parse(body).map_err(|what| self.fault(&what))? {
            CopyMessage::Wal {
                at,
                server_end,
                sent_at,
                bytes,
            } => {
                let end = self.end_of(at, server_end, bytes.len())?;
                self.expected = end;
                Ok(StreamEvent::Wal {
                    at,
                    bytes,
                    server_end,
                    sent_at,
                })
            }
            CopyMessage::Keepalive { server_end, .. } if server_end < self.expected => Err(self.fault(&format!(
                "a keepalive that tells of WAL up to {server_end}, which is before what was sent"
            ))),
            CopyMessage::Keepalive {
                server_end,
                sent_at,
                reply,
            } => Ok(StreamEvent::Keepalive {
                server_end,
                sent_at,
                reply,
            }),
        }
    }

    /// Where these bytes of WAL end, if they may be taken.
    fn end_of(&self, at: Lsn, server_end: Lsn, length: usize) -> Result<Lsn, Fault> {
        if at != self.expected {
            let how = if at > self.expected {
                "leaves a gap"
            } else {
                "was sent before"
            };
            return Err(self.fault(&format!("WAL at {at}, which {how}")));
        }
        let end = at.bytes().checked_add(length as u64).map(Lsn::new);
        match end {
            _ if length == 0 => Err(self.fault(&format!("no WAL in the message at {at}"))),
            None => Err(self.fault(&format!("WAL at {at} that ends behind all positions"))),
            Some(end) if server_end < end => Err(self.fault(&format!(
                "WAL up to {end}, which is behind the server's own end {server_end}"
            ))),
            Some(end) => Ok(end),
        }
    }

    /// The row that names the next timeline.
    fn row(&mut self, row: Row) -> Result<Step, Fault> {
        let next = next_timeline(row).ok_or_else(|| self.fault("an unreadable row about the next timeline"))?;
        if next.timeline <= self.timeline {
            return Err(self.fault(&format!("timeline {} as the next one", next.timeline)));
        }
        // It may lie before: a standby streams what it has received, and leaves the timeline at the end of the
        // last whole record of that. Behind, WAL would be missing (unless it was us who ended the copy).
        if next.from > self.expected && !self.we_finish {
            let what = format!(
                "the end of the timeline at {}, before all WAL up to it was sent",
                next.from
            );
            return Err(self.fault(&what));
        }
        match &mut self.state {
            State::Ending(rest) if rest.columns && rest.next.is_none() => {
                rest.next = Some(next);
                Ok(Step::Wait)
            }
            _ => Err(self.fault("a row too many")),
        }
    }

    fn fault(&self, what: &str) -> Fault {
        Fault::Protocol(format!("{what} (expected is WAL from {} on)", self.expected))
    }
}

fn next_timeline(row: Row) -> Option<NextTimeline> {
    (row.len() == 2).then_some(())?;
    let fields = Fields(row);
    Some(NextTimeline {
        timeline: fields.parsed(0)?,
        from: fields.parsed(1)?,
    })
}
