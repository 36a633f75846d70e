//! What we have to send during a stream, and the server has not taken yet: never more than one message that has
//! begun to leave, one status behind it, and the end of the copy.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};

use super::StandbyStatus;
use super::message::{COPY_DONE, status};
use crate::env::Clock;
use crate::replication::wire::Wire;

/// Messages on their way out.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// The rest of the message that has begun to leave.
    begun: Bytes,
    status: Option<StandbyStatus>,
    end: bool,
    /// Whether something may still lie in a buffer of the connection (TLS).
    unflushed: bool,
}

impl Outgoing {
    /// A status to send, in the place of one that has not begun to leave.
    pub(super) fn put(&mut self, status: StandbyStatus) {
        let asks = self.status.is_some_and(|earlier| earlier.reply);
        self.status = Some(StandbyStatus {
            reply: status.reply || asks,
            ..status
        });
    }

    /// The end of the copy, behind all else.
    pub(super) fn put_end(&mut self) {
        self.end = true;
    }

    /// Drops what has not begun to leave.
    pub(super) fn cut(&mut self) {
        self.status = None;
        self.end = false;
    }

    /// Sends what can be taken now; ready when nothing is left.
    pub(super) fn poll_send(
        &mut self,
        clock: Clock,
        wire: &mut Wire,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.begun.is_empty() {
                match ready!(wire.poll_send(context, &self.begun))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    sent => self.begun.advance(sent),
                }
                self.unflushed = true;
            } else if let Some(next) = self.status.take() {
                self.begun = status(&next, clock.now()).freeze();
            } else if std::mem::take(&mut self.end) {
                self.begun = Bytes::from_static(&COPY_DONE);
            } else if self.unflushed {
                ready!(wire.poll_flush(context))?;
                self.unflushed = false;
            } else {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
