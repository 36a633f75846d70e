//! A connection as messages: the socket, the framing, and what the server tells in passing.

use std::collections::BTreeMap;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ServerError;
use super::message::{Backend, FrameError, Framer, Row};
use super::server_error::Severity;
use super::socket::{ServerAddress, Socket};

/// How many warnings are kept. A base backup of a damaged cluster sends some for each damaged file.
const MOST_WARNINGS: usize = 1000;

/// How many settings a server may report; real ones report some fifteen.
const MOST_PARAMETERS: usize = 1000;

/// How many bytes the rows of an answer may have, each value and row counted as at least its place in
/// memory. The longest real answer is a timeline's history: some bytes for each promotion.
const MOST_ANSWER: usize = 32 << 20;

/// Why no message came, or none could be sent.
#[derive(Debug)]
pub(super) enum WireError {
    /// The connection broke; without a cause, the server closed it.
    Lost(Option<io::Error>),
    /// What came is no message.
    Frame(FrameError),
    /// A message that has no place here.
    Unexpected(&'static str),
    /// The server refused.
    Server(ServerError),
}

impl From<FrameError> for WireError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

/// A connection to a server. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    framer: Framer,
    at: ServerAddress,
    parameters: BTreeMap<String, String>,
    key: Bytes,
    warnings: Vec<ServerError>,
}

impl Wire {
    pub(super) fn new(socket: Socket, at: ServerAddress) -> Self {
        Self {
            socket,
            framer: Framer::new(),
            at,
            parameters: BTreeMap::new(),
            key: Bytes::new(),
            warnings: Vec::new(),
        }
    }

    /// Whom this is a connection to.
    pub(super) fn at(&self) -> &ServerAddress {
        &self.at
    }

    /// A setting that the server reports without being asked (`server_version`).
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The warnings that came since they were last taken, the first thousand of them.
    pub(super) fn take_warnings(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.warnings)
    }

    /// The socket, and the greeting for a client that has not seen it: the end of the login, the settings
    /// reported, the key, and that the session is ready. What arrived behind it comes last.
    pub(super) fn into_greeted(self) -> (Socket, Bytes) {
        let mut greeting = BytesMut::new();
        let mut put = |tag: u8, body: &[&[u8]]| {
            let body = body.concat();
            greeting.put_u8(tag);
            greeting.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
            greeting.put_slice(&body);
        };
        put(b'R', &[&[0; 4]]);
        for (name, value) in &self.parameters {
            put(b'S', &[name.as_bytes(), b"\0", value.as_bytes(), b"\0"]);
        }
        if !self.key.is_empty() {
            put(b'K', &[&self.key]);
        }
        put(b'Z', &[b"I"]);
        greeting.put(self.framer.into_rest());
        (self.socket, greeting.freeze())
    }

    /// The login is done: longer messages are believed.
    pub(super) fn logged_in(&mut self) {
        self.framer.logged_in();
    }

    /// What comes is WAL, or may be: long messages, and many.
    pub(super) fn expect_wal(&mut self) {
        self.framer.expect_wal();
    }

    /// Sends these bytes.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let sent = async {
            self.socket.write_all(bytes).await?;
            self.socket.flush().await
        };
        sent.await.map_err(|error| WireError::Lost(Some(error)))
    }

    /// The next message that is not told in passing (settings, keys, warnings). Cancel-safe: bytes that
    /// have arrived stay in the buffer.
    pub(super) async fn receive(&mut self) -> Result<Backend, WireError> {
        std::future::poll_fn(|context| self.poll_receive(context)).await
    }

    /// As [`Self::receive`], for who also has something to send meanwhile.
    pub(super) fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Backend, WireError>> {
        loop {
            while let Some(message) = self.framer.next()? {
                match message {
                    Backend::Parameter { name, value } => {
                        if self.parameters.len() < MOST_PARAMETERS || self.parameters.contains_key(&name) {
                            self.parameters.insert(name, value);
                        }
                    }
                    Backend::KeyData(key) => self.key = key,
                    Backend::Notice(notice) => {
                        if notice.severity() >= Severity::Warning && self.warnings.len() < MOST_WARNINGS {
                            self.warnings.push(notice);
                        }
                    }
                    Backend::Ignored => {}
                    message => return Poll::Ready(Ok(message)),
                }
            }
            // Reading keeps no state of its own, so a future may be made for each try.
            let read = pin!(self.socket.read_buf(self.framer.buffer()));
            match ready!(read.poll(context)) {
                Ok(0) => return Poll::Ready(Err(WireError::Lost(None))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(WireError::Lost(Some(error)))),
            }
        }
    }

    /// Sends the first of these bytes, as many as can be taken now.
    pub(super) fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    /// Has what was sent so far leave this process.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    /// Sends a query or replication command. Its answers are the caller's to receive.
    pub(super) async fn send_query(&mut self, query: &str) -> Result<(), WireError> {
        let mut message = BytesMut::new();
        frontend::query(query, &mut message).map_err(|error| WireError::Lost(Some(error)))?;
        self.send(&message).await
    }

    /// Sends a query or replication command and reads its answer to the end: its rows.
    pub(super) async fn query(&mut self, query: &str) -> Result<Vec<Row>, WireError> {
        self.send_query(query).await?;
        let mut rows = Vec::new();
        let mut size = 0;
        let mut refusal = None;
        loop {
            match self.receive().await? {
                Backend::Row(row) => {
                    size += bytes_of(&row);
                    if size > MOST_ANSWER {
                        return Err(WireError::Unexpected("an endless answer"));
                    }
                    rows.push(row);
                }
                Backend::Columns | Backend::CommandComplete => {}
                Backend::Error(error) if error.severity() == Severity::Fatal => return Err(WireError::Server(error)),
                // The session goes on; the end of the command is still to come.
                Backend::Error(error) => refusal = Some(error),
                Backend::Ready => {
                    return match refusal {
                        Some(error) => Err(WireError::Server(error)),
                        None => Ok(rows),
                    };
                }
                other => return Err(WireError::Unexpected(other.name())),
            }
        }
    }
}

/// How many bytes a row takes, about.
fn bytes_of(row: &Row) -> usize {
    let values: usize = row.iter().flatten().map(Bytes::len).sum();
    values + size_of_val(row.as_slice()) + size_of_val(row)
}
