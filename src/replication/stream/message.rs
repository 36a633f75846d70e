//! What is inside the copy of a WAL stream: the server's two kinds of message, and our one. Pure.
//!
//! The formats are PostgreSQL's ("Streaming Replication Protocol" in its manual), the same from 13 to 18.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};

use super::StandbyStatus;
use crate::pg::Lsn;
use crate::pg::time::PgTimestamp;

/// The most WAL that one message is believed to carry. Real ones have up to 16 pages: 128 KiB with pages of
/// 8 KiB, and 1 MiB with the largest that PostgreSQL can be built with.
const MOST_WAL: usize = 1 << 20;

/// Start, the server's end and its time, before the WAL itself.
const WAL_HEAD: usize = 24;

/// The server's end, its time, and whether it wants an answer.
const KEEPALIVE: usize = 17;

/// How long our message is: the type byte and length of `CopyData`, `r`, three positions, a time, a flag.
pub(super) const STATUS: usize = 5 + 1 + 3 * 8 + 8 + 1;

/// `CopyDone`.
pub(super) const COPY_DONE: [u8; 5] = [b'c', 0, 0, 0, 4];

/// `Terminate`: the session ends in good order.
pub(super) const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// A message of the server within the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CopyMessage {
    Wal {
        at: Lsn,
        server_end: Lsn,
        sent_at: DateTime<Utc>,
        bytes: Bytes,
    },
    Keepalive {
        server_end: Lsn,
        sent_at: DateTime<Utc>,
        reply: bool,
    },
}

impl CopyMessage {
    /// Reads one, or says what is wrong with it. WAL is a slice of what is given.
    pub(super) fn parse(mut body: Bytes) -> Result<Self, String> {
        let kind = match body.first() {
            Some(_) => body.get_u8(),
            None => return Err("a copy message without a type".to_owned()),
        };
        match kind {
            b'w' if body.len() < WAL_HEAD => Err(format!("a WAL message of {} bytes", body.len())),
            b'w' if body.len() > WAL_HEAD + MOST_WAL => {
                Err(format!("{} bytes of WAL in one message", body.len() - WAL_HEAD))
            }
            b'w' => Ok(Self::Wal {
                at: lsn(&mut body),
                server_end: lsn(&mut body),
                sent_at: time(&mut body)?,
                bytes: body,
            }),
            b'k' if body.len() != KEEPALIVE => Err(format!("a keepalive of {} bytes", body.len())),
            b'k' => Ok(Self::Keepalive {
                server_end: lsn(&mut body),
                sent_at: time(&mut body)?,
                reply: match body.get_u8() {
                    0 => false,
                    1 => true,
                    flag => return Err(format!("a keepalive whose flag is {flag}")),
                },
            }),
            kind => Err(format!("a copy message of the unknown type '{}'", kind.escape_ascii())),
        }
    }
}

fn lsn(body: &mut Bytes) -> Lsn {
    Lsn::new(body.get_u64())
}

fn time(body: &mut Bytes) -> Result<DateTime<Utc>, String> {
    let sent_at = PgTimestamp::new(body.get_i64());
    sent_at
        .to_utc()
        .ok_or_else(|| format!("a message sent at no time: {sent_at}"))
}

/// The standby status update, as a whole `CopyData` message.
pub(super) fn status(status: &StandbyStatus, now: DateTime<Utc>) -> BytesMut {
    let mut message = BytesMut::with_capacity(STATUS);
    message.put_u8(b'd');
    message.put_u32(STATUS as u32 - 1);
    message.put_u8(b'r');
    for position in [status.written, status.flushed, status.applied] {
        message.put_u64(position.bytes());
    }
    // The server only shows it, so a clock beyond all calendars is sent as the year 2000.
    message.put_i64(PgTimestamp::from_utc(now).map_or(0, PgTimestamp::micros));
    message.put_u8(status.reply.into());
    message
}
