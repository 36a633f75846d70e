//! Backend messages: bytes in, messages out. Sans-io.
//!
//! `CopyData` is nearly all that a replication connection carries, so it has a path of its own: one look
//! at the header, and its payload is a slice of the receive buffer. Everything else is small. A length
//! is believed only up to [`LIMIT`] (before the login is done, [`LIMIT_BEFORE_LOGIN`]), so that a server that is none
//! cannot make us allocate what it likes.

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::Header;

use super::ServerError;

/// The longest message believed. The longest real ones are WAL (128 KiB and a header), a piece of a
/// base backup (up to 32 KiB) and a timeline's history (a row of some bytes for each promotion).
const LIMIT: usize = 16 << 20;

/// The longest message believed before the login is done: libpq's limit for an error message then.
const LIMIT_BEFORE_LOGIN: usize = 30_000;

/// How much room the buffer is given when it runs short; eight messages of a base backup.
const RESERVE: usize = 256 << 10;

/// As [`RESERVE`], for a stream of WAL: eight of its messages, so that little is copied where one crosses into the
/// next buffer.
const RESERVE_FOR_WAL: usize = 1 << 20;

/// Below this much room the buffer is given more: a read into less would cost more than it brings.
const LOW: usize = 32 << 10;

const TAG_AND_LENGTH: usize = 5;

/// What the server asks for, or says, during the login.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AuthRequest {
    Ok,
    Cleartext,
    Md5 {
        salt: [u8; 4],
    },
    Sasl {
        mechanisms: Vec<String>,
    },
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    /// A method we do not speak, by its name in `pg_hba.conf`.
    Other(&'static str),
}

/// The values of one row, as text; `None` is SQL's null.
pub type Row = Vec<Option<Bytes>>;

/// A message from the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Auth(AuthRequest),
    KeyData(Bytes),
    Parameter {
        name: String,
        value: String,
    },
    Ready,
    Columns,
    Row(Row),
    CommandComplete,
    CopyIn,
    CopyOut,
    CopyBoth,
    CopyData(Bytes),
    CopyDone,
    Error(ServerError),
    Notice(ServerError),
    /// A query without a command, a notification: of no consequence here.
    Ignored,
}

impl Backend {
    /// What it is, for an error about a message that came at the wrong moment.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Auth(_) => "an authentication request",
            Self::KeyData(_) => "a cancellation key",
            Self::Parameter { .. } => "a parameter's value",
            Self::Ready => "the end of a command",
            Self::Columns => "the head of a result",
            Self::Row(_) => "a row",
            Self::CommandComplete => "a command's result",
            Self::CopyIn | Self::CopyOut | Self::CopyBoth => "the start of a copy",
            Self::CopyData(_) => "copied data",
            Self::CopyDone => "the end of a copy",
            Self::Error(_) => "an error",
            Self::Notice(_) | Self::Ignored => "a notice",
        }
    }
}

/// Bytes that are not what a PostgreSQL server sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length that no message of this kind has.
    #[error("message '{}' of {length} bytes", .tag.escape_ascii())]
    Length {
        /// The message's type byte.
        tag: u8,
        /// The length it claims.
        length: i64,
    },
    /// A type byte that does not exist.
    #[error("message of the unknown type '{}'", .0.escape_ascii())]
    Tag(u8),
    /// A message whose inside does not fit its length.
    #[error("malformed message '{}'", .0.escape_ascii())]
    Inside(u8),
}

/// Cuts a stream of bytes into messages. Push what arrives into [`Self::buffer`], then take messages
/// out until there is none.
#[derive(Debug)]
pub(super) struct Framer {
    buffer: BytesMut,
    limit: usize,
    reserve: usize,
}

impl Framer {
    /// For a connection that begins with the login.
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            limit: LIMIT_BEFORE_LOGIN,
            reserve: RESERVE,
        }
    }

    /// The login is done: longer messages are believed.
    pub(super) fn logged_in(&mut self) {
        self.limit = LIMIT;
    }

    /// WAL comes.
    pub(super) fn expect_wal(&mut self) {
        self.reserve = RESERVE_FOR_WAL;
    }

    /// Where the next bytes go, with room for them.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < LOW {
            self.buffer.reserve(self.reserve);
        }
        &mut self.buffer
    }

    /// Bytes that have arrived and are not yet part of a message handed out.
    pub(super) fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }

    /// The next message, or `None` until more bytes are there.
    pub(super) fn next(&mut self) -> Result<Option<Backend>, FrameError> {
        let Some(&tag) = self.buffer.first() else {
            return Ok(None);
        };
        if self.buffer.len() < TAG_AND_LENGTH {
            return Ok(None);
        }
        let Ok(Some(header)) = Header::parse(&self.buffer) else {
            return Err(FrameError::Length { tag, length: 0 });
        };
        // The length counts itself and not the tag; Header has made sure that it is 4 at least.
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if length > self.limit {
            return self.plain_text(tag, header.len());
        }
        let total = length + 1;
        if self.buffer.len() < total {
            let missing = total - self.buffer.len();
            if self.buffer.capacity() < total {
                self.buffer.reserve(missing.max(self.reserve));
            }
            return Ok(None);
        }
        let mut body = self.buffer.split_to(total).freeze();
        body.advance(TAG_AND_LENGTH);
        match tag {
            b'd' => Ok(Some(Backend::CopyData(body))),
            _ => parse(tag, body).map(Some),
        }
    }

    /// A server that cannot start a process for the session says so in plain text behind an `E`, in
    /// every version up to 18; its first letters are then read as a length beyond any limit.
    fn plain_text(&self, tag: u8, length: i32) -> Result<Option<Backend>, FrameError> {
        let text = self.buffer.get(1..).and_then(|text| std::str::from_utf8(text).ok());
        match text {
            Some(text) if tag == b'E' && self.limit == LIMIT_BEFORE_LOGIN && !text.contains(char::is_control) => {
                Ok(None)
            }
            Some(text) if tag == b'E' && self.limit == LIMIT_BEFORE_LOGIN => Ok(Some(Backend::Error(
                ServerError::plain(text.trim_end_matches(['\n', '\0'])),
            ))),
            _ => Err(FrameError::Length {
                tag,
                length: length.into(),
            }),
        }
    }
}

/// Reads the inside of a message that is not `CopyData`.
fn parse(tag: u8, body: Bytes) -> Result<Backend, FrameError> {
    let mut rest = Fields(body);
    let message = match tag {
        b'R' => rest.auth_request().map(Backend::Auth),
        b'K' => Some(Backend::KeyData(rest.all())),
        b'S' => rest.parameter(),
        b'Z' => rest.take(1).map(|_| Backend::Ready),
        b'T' => Some(Backend::Columns).filter(|_| !rest.all().is_empty()),
        b'D' => rest.row().map(Backend::Row),
        b'C' => rest.text().map(|_| Backend::CommandComplete),
        b'G' => Some(Backend::CopyIn).filter(|_| !rest.all().is_empty()),
        b'H' => Some(Backend::CopyOut).filter(|_| !rest.all().is_empty()),
        b'W' => Some(Backend::CopyBoth).filter(|_| !rest.all().is_empty()),
        b'c' => Some(Backend::CopyDone),
        b'E' => ServerError::parse(&rest.all()).map(Backend::Error),
        b'N' => ServerError::parse(&rest.all()).map(Backend::Notice),
        b'I' | b'A' => {
            rest.all();
            Some(Backend::Ignored)
        }
        _ => return Err(FrameError::Tag(tag)),
    };
    message.filter(|_| rest.0.is_empty()).ok_or(FrameError::Inside(tag))
}

/// The not yet read part of a message.
struct Fields(Bytes);

impl Fields {
    fn all(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    fn take(&mut self, bytes: usize) -> Option<Bytes> {
        (self.0.len() >= bytes).then(|| self.0.split_to(bytes))
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|mut bytes| bytes.get_u16())
    }

    fn i32(&mut self) -> Option<i32> {
        self.take(4).map(|mut bytes| bytes.get_i32())
    }

    /// A zero-terminated text; bytes that are not UTF-8 are replaced.
    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|&b| b == 0)?;
        let text = self.take(end)?;
        self.0.advance(1);
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    fn parameter(&mut self) -> Option<Backend> {
        let name = self.text()?;
        let value = self.text()?;
        Some(Backend::Parameter { name, value })
    }

    fn row(&mut self) -> Option<Row> {
        let columns = self.u16()?;
        let mut row = Row::with_capacity(columns.into());
        for _ in 0..columns {
            let length = self.i32()?;
            row.push(match length {
                -1 => None,
                length => Some(self.take(usize::try_from(length).ok()?)?),
            });
        }
        Some(row)
    }

    fn auth_request(&mut self) -> Option<AuthRequest> {
        Some(match self.i32()? {
            0 => AuthRequest::Ok,
            3 => AuthRequest::Cleartext,
            5 => AuthRequest::Md5 {
                salt: self.take(4)?.as_ref().try_into().ok()?,
            },
            10 => {
                let mut mechanisms = Vec::new();
                loop {
                    match self.text()? {
                        name if name.is_empty() => break AuthRequest::Sasl { mechanisms },
                        name => mechanisms.push(name),
                    }
                }
            }
            11 => AuthRequest::SaslContinue(self.all()),
            12 => AuthRequest::SaslFinal(self.all()),
            code => {
                self.all();
                AuthRequest::Other(match code {
                    2 => "krb5",
                    6 => "creds",
                    7 | 8 => "gss",
                    9 => "sspi",
                    _ => "unknown",
                })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend((body.len() as u32 + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn all_messages(pieces: &[&[u8]]) -> Result<Vec<Backend>, FrameError> {
        let mut framer = Framer::new();
        framer.logged_in();
        let mut messages = Vec::new();
        for piece in pieces {
            framer.buffer().extend_from_slice(piece);
            while let Some(message) = framer.next()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    fn session() -> Vec<u8> {
        [
            framed(b'R', &[0, 0, 0, 0]),
            framed(b'S', b"server_version\x0015.20\0"),
            framed(b'K', &[0; 8]),
            framed(b'Z', b"I"),
            framed(b'T', &[0, 0]),
            framed(b'D', b"\0\x02\0\0\0\x01x\xFF\xFF\xFF\xFF"),
            framed(b'W', &[0, 0, 0]),
            framed(b'd', &[7; 70_000]),
            framed(b'd', b""),
            framed(b'c', b""),
            framed(b'C', b"SELECT\0"),
            framed(b'E', b"C28000\0Mno\0\0"),
        ]
        .concat()
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_the_messages(mut cuts in proptest::collection::vec(0..70_000usize, 0..9)) {
            let bytes = session();
            cuts.extend([0, bytes.len()]);
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(bytes.len()));
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(all_messages(&pieces), all_messages(&[&bytes]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, tag in proptest::sample::select(b"RSKZTDCGHWdcENIAv".to_vec())) {
            let _ = all_messages(&[&bytes]);
            let _ = all_messages(&[&framed(tag, &bytes)]);
        }
    }

    #[test]
    fn rows_keep_null_apart_from_empty() {
        let bytes = framed(b'D', b"\0\x02\0\0\0\0\xFF\xFF\xFF\xFF");
        assert_eq!(
            all_messages(&[&bytes]),
            Ok(vec![Backend::Row(vec![Some(Bytes::new()), None])])
        );
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() {
        let mut bytes = vec![b'd'];
        bytes.extend(0x7FFF_FFFFu32.to_be_bytes());
        assert_eq!(
            all_messages(&[&bytes]),
            Err(FrameError::Length {
                tag: b'd',
                length: 0x7FFF_FFFF
            })
        );
    }

    #[test]
    fn a_server_without_processes_to_spare_is_understood() {
        let mut framer = Framer::new();
        framer.buffer().extend_from_slice(b"Ecould not fork new process");
        assert_eq!(framer.next(), Ok(None));
        framer.buffer().extend_from_slice(b" for connection: no memory\n\0");
        let Ok(Some(Backend::Error(error))) = framer.next() else {
            unreachable!()
        };
        assert_eq!(error.message(), "could not fork new process for connection: no memory");
    }
}
