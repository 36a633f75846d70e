//! The byte stream to a server: Unix socket, TCP, or TLS on TCP.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::pg::conninfo::Tcp;

/// Where a server listens, as a person would name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// A Unix socket.
    Socket(PathBuf),
    /// A port of a host that was given by name or address, and the address that was tried.
    Port {
        /// The host as it was given.
        host: String,
        /// What the name stands for, and the port.
        address: SocketAddr,
    },
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => match path.as_os_str().as_bytes().strip_prefix(b"\0") {
                // An abstract socket: `@` is how people write the zero byte.
                Some(name) => write!(f, "socket @{}", String::from_utf8_lossy(name)),
                None => write!(f, "socket {}", path.display()),
            },
            Self::Port { host, address } => {
                match host.contains(':') {
                    true => write!(f, "[{host}]:{}", address.port())?,
                    false => write!(f, "{host}:{}", address.port())?,
                }
                match address.ip().to_string() {
                    ip if ip == *host => Ok(()),
                    ip => write!(f, " ({ip})"),
                }
            }
        }
    }
}

/// A connected stream.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Connects to a Unix socket; a leading zero byte names one in the abstract namespace.
    pub(super) async fn unix(path: &Path) -> io::Result<Self> {
        UnixStream::connect(path).await.map(Self::Unix)
    }
}

/// Connects to a TCP port.
pub(super) async fn connect_tcp(address: SocketAddr, settings: Tcp) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // The protocol is question and answer: waiting to fill a packet only delays.
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, settings.keepalives)?;
    if settings.keepalives {
        if let Some(idle) = settings.keepalives_idle {
            sockopt::set_tcp_keepidle(&stream, idle)?;
        }
        if let Some(interval) = settings.keepalives_interval {
            sockopt::set_tcp_keepintvl(&stream, interval)?;
        }
        if let Some(count) = settings.keepalives_count {
            sockopt::set_tcp_keepcnt(&stream, count)?;
        }
    }
    if let Some(timeout) = settings.user_timeout {
        let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&stream, milliseconds)?;
    }
    Ok(stream)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_people_write_it() {
        let port = |host: &str, address: &str| {
            let address = address.parse().unwrap();
            ServerAddress::Port {
                host: host.to_owned(),
                address,
            }
            .to_string()
        };
        assert_eq!(port("db", "10.0.0.1:5432"), "db:5432 (10.0.0.1)");
        assert_eq!(port("10.0.0.1", "10.0.0.1:5432"), "10.0.0.1:5432");
        assert_eq!(port("::1", "[::1]:5432"), "[::1]:5432");
        let socket = |path: &str| ServerAddress::Socket(path.into()).to_string();
        assert_eq!(socket("/run/pg/.s.PGSQL.5432"), "socket /run/pg/.s.PGSQL.5432");
        assert_eq!(socket("\0pg/.s.PGSQL.5432"), "socket @pg/.s.PGSQL.5432");
    }
}
