//! SQL on a connection made like every other one here.
//!
//! `tokio-postgres` knows neither libpq's hosts and TLS modes nor our errors, so the login is ours. It
//! is then given a stream that is logged in already: its start-up packet goes nowhere, and what it
//! reads first is the greeting that the server gave us.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::ServerError;
use super::connect::{self, Purpose};
use super::error::ConnectError;
use super::socket::{ServerAddress, Socket};
use super::wire::Wire;
use crate::env::Env;
use crate::error::{Class, Explain};
use crate::pg::conninfo::ConnInfo;

/// Databases that `initdb` makes.
const USUAL_DATABASES: [&str; 2] = ["postgres", "template1"];

/// A SQL connection: a [`Client`] and the task that drives it. Dropping it ends both.
pub struct SqlSession {
    client: Client,
    at: ServerAddress,
    _driver: AbortOnDropHandle<()>,
}

/// A statement that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqlError {
    /// The server refused it.
    #[error("{at} refused a statement")]
    Refused {
        /// The server.
        at: ServerAddress,
        /// Its words.
        source: ServerError,
    },
    /// The connection broke, or the answer was not what was expected.
    #[error("a statement on {at} failed")]
    Client {
        /// The server.
        at: ServerAddress,
        /// Why.
        source: tokio_postgres::Error,
    },
}

impl SqlError {
    /// The server's own words, where it was the server who refused.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Refused { source, .. } => Some(source),
            Self::Client { .. } => None,
        }
    }
}

impl Explain for SqlError {
    fn class(&self) -> Class {
        Class::Unavailable
    }

    fn hint(&self) -> Option<String> {
        self.server_error()?.hint().map(str::to_owned)
    }
}

impl SqlSession {
    /// Connects to the database that the settings name or, if that isn't there or does not let us in, to
    /// one that every cluster has: for what the whole cluster shares. The default, a database named
    /// after the role, is rarely there for a role that takes backups.
    pub async fn connect_any(info: &ConnInfo, env: &Env) -> Result<Self, ConnectError> {
        let mut session = Self::connect(info, env).await;
        for database in USUAL_DATABASES {
            match session {
                Err(ConnectError::Database { .. } | ConnectError::Privilege { .. }) => {
                    session = Self::connect(&info.with_dbname(database), env).await;
                }
                _ => break,
            }
        }
        session
    }

    /// Connects to the database that the settings name.
    pub async fn connect(info: &ConnInfo, env: &Env) -> Result<Self, ConnectError> {
        let wire = connect::connect(info, env, Purpose::Sql).await?;
        let at = wire.at().clone();
        let mut config = tokio_postgres::Config::new();
        config
            .user(info.user())
            .ssl_mode(tokio_postgres::config::SslMode::Disable);
        let (client, connection) =
            config
                .connect_raw(LoggedIn::new(wire), NoTls)
                .await
                .map_err(|error| ConnectError::Protocol {
                    at: at.clone(),
                    what: error.to_string(),
                })?;
        // What ends the connection is told by the statement that was waiting for it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self {
            client,
            at,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// Which server of several it is.
    pub fn address(&self) -> &ServerAddress {
        &self.at
    }

    /// Says on which server a statement failed: for `map_err`.
    pub fn failed(&self, error: tokio_postgres::Error) -> SqlError {
        let at = self.at.clone();
        match error.as_db_error() {
            Some(error) => SqlError::Refused {
                at,
                source: error.into(),
            },
            None => SqlError::Client { at, source: error },
        }
    }
}

impl Deref for SqlSession {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl fmt::Debug for SqlSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqlSession").field(&self.at).finish()
    }
}

/// A stream on which the login is done, for a client that wants to do it itself.
struct LoggedIn {
    socket: Socket,
    /// The server's greeting, to be read once more.
    greeting: Bytes,
    /// The start-up packet on its way to nowhere.
    startup: StartupPacket,
}

enum StartupPacket {
    /// Its length, as far as it is known.
    Length(BytesMut),
    /// So much of it is still to come.
    Left(usize),
}

impl LoggedIn {
    fn new(wire: Wire) -> Self {
        let (socket, greeting) = wire.into_greeted();
        Self {
            socket,
            greeting,
            startup: StartupPacket::Length(BytesMut::new()),
        }
    }

    /// How many of these bytes belong to the start-up packet.
    fn swallow(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.startup {
            StartupPacket::Left(left) => {
                let swallowed = bytes.len().min(*left);
                *left -= swallowed;
                Ok(swallowed)
            }
            StartupPacket::Length(known) => {
                let swallowed = bytes.len().min(4 - known.len());
                known.put_slice(&bytes[..swallowed]);
                if known.len() == 4 {
                    let length = usize::try_from(known.get_u32()).ok();
                    let left = length.and_then(|length| length.checked_sub(4));
                    self.startup = StartupPacket::Left(left.ok_or(io::ErrorKind::InvalidInput)?);
                }
                Ok(swallowed)
            }
        }
    }
}

impl AsyncRead for LoggedIn {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.greeting.is_empty() {
            return Pin::new(&mut this.socket).poll_read(context, buffer);
        }
        let length = this.greeting.len().min(buffer.remaining());
        buffer.put_slice(&this.greeting.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LoggedIn {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.startup {
            StartupPacket::Left(0) => Pin::new(&mut this.socket).poll_write(context, bytes),
            _ => Poll::Ready(this.swallow(bytes)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}
