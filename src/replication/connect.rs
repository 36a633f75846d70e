//! Finds the server that will do: hosts in order or shuffled, each of their addresses, with or without
//! TLS as `sslmode` says, until one lets us in and is what `target_session_attrs` asks for.
//!
//! libpq's rules: what cannot be reached, does not answer in time, is not ready or is of the wrong kind is passed
//! over; a server that refuses *us* (wrong password, `pg_hba.conf`) ends the search.

use std::net::SocketAddr;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::auth::Channel;
use super::error::ConnectError;
use super::login::log_in;
use super::socket::{ServerAddress, Socket, connect_tcp};
use super::target;
use super::tls::{self, HandshakeError};
use super::wire::Wire;
use crate::env::Env;
use crate::pg::conninfo::{
    ConnInfo, Endpoint, Host, LoadBalanceHosts, Server, SslMode, SslNegotiation, TargetSessionAttrs,
};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Commands of the replication protocol.
    Replication,
    /// SQL.
    Sql,
}

/// Connects and logs in.
pub(super) async fn connect(info: &ConnInfo, env: &Env, purpose: Purpose) -> Result<Wire, ConnectError> {
    let wanted = info.target_session_attrs();
    // "Preferred" is a search for one, and then a search for any.
    let rounds = match wanted {
        TargetSessionAttrs::PreferStandby => vec![TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
        wanted => vec![wanted],
    };
    let mut attempts = Vec::new();
    for wanted in rounds {
        attempts.clear();
        match round(info, env, purpose, wanted, &mut attempts).await? {
            Some(wire) => return Ok(wire),
            None => continue,
        }
    }
    Err(match attempts.len() {
        1 => attempts.remove(0),
        _ => ConnectError::NoHost { attempts },
    })
}

/// Tries every address of every server once. `Ok(None)`: each was passed over, `attempts` says why.
async fn round(
    info: &ConnInfo,
    env: &Env,
    purpose: Purpose,
    wanted: TargetSessionAttrs,
    attempts: &mut Vec<ConnectError>,
) -> Result<Option<Wire>, ConnectError> {
    let shuffled = info.load_balance_hosts() == LoadBalanceHosts::Random;
    let mut servers: Vec<&Server> = info.servers().iter().collect();
    if shuffled {
        shuffle(&mut servers, env);
    }
    for server in servers {
        let mut addresses = match addresses(server).await {
            Ok(addresses) => addresses,
            Err(error) => {
                attempts.push(error);
                continue;
            }
        };
        if shuffled {
            shuffle(&mut addresses, env);
        }
        for at in addresses {
            match in_time(info, at.clone(), attempt(info, server, at, purpose, wanted)).await {
                Ok(wire) => return Ok(Some(wire)),
                Err(error) if error.goes_on() => attempts.push(error),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], env: &Env) {
    for last in (1..items.len()).rev() {
        items.swap(last, (env.chance() % (last as u64 + 1)) as usize);
    }
}

/// Gives up after `connect_timeout`.
async fn in_time(
    info: &ConnInfo,
    at: ServerAddress,
    attempt: impl Future<Output = Result<Wire, ConnectError>>,
) -> Result<Wire, ConnectError> {
    match info.connect_timeout() {
        None => attempt.await,
        Some(after) => match tokio::time::timeout(after, attempt).await {
            Ok(done) => done,
            Err(_) => Err(ConnectError::Timeout { at, after }),
        },
    }
}

/// What a server's name stands for.
async fn addresses(server: &Server) -> Result<Vec<ServerAddress>, ConnectError> {
    let port = |host: &str, address: SocketAddr| ServerAddress::Port {
        host: host.to_owned(),
        address,
    };
    match server.endpoint() {
        Endpoint::Socket(path) => Ok(vec![ServerAddress::Socket(path)]),
        Endpoint::Address(address) => {
            let host = match server.host() {
                Host::Tcp { name } if !name.is_empty() => name.clone(),
                _ => address.ip().to_string(),
            };
            Ok(vec![port(&host, address)])
        }
        Endpoint::Name(name, number) => match tokio::net::lookup_host((name, number)).await {
            Ok(found) => Ok(found.map(|address| port(name, address)).collect()),
            Err(source) => Err(ConnectError::Resolve {
                host: name.to_owned(),
                source,
            }),
        },
    }
}

/// One address, to the end.
async fn attempt(
    info: &ConnInfo,
    server: &Server,
    at: ServerAddress,
    purpose: Purpose,
    wanted: TargetSessionAttrs,
) -> Result<Wire, ConnectError> {
    let mut earlier = None;
    for &way in ways(info, &at) {
        let done = async {
            let (socket, channel) = open(info, server, &at, way).await?;
            log_in(socket, channel, at.clone(), info, server, purpose).await
        };
        match done.await {
            Ok(mut wire) => {
                return match target::will_do(&mut wire, wanted, purpose).await? {
                    true => Ok(wire),
                    false => Err(ConnectError::Session { at, wanted }),
                };
            }
            // "No entry in pg_hba.conf" says less than what the other way met.
            Err(error) if error.may_be_about_tls() => {
                earlier = match (earlier, error) {
                    (Some(earlier), ConnectError::NoHbaEntry { .. }) => Some(earlier),
                    (_, error) => Some(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(earlier.unwrap_or(ConnectError::NoHost { attempts: Vec::new() }))
}

/// How a stream is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Tls,
    /// Without it if the server says at once that it has none.
    TlsIfOffered,
}

/// The ways that `sslmode` allows, in its order.
fn ways(info: &ConnInfo, at: &ServerAddress) -> &'static [Way] {
    match (at, info.tls().mode()) {
        (ServerAddress::Socket(_), _) | (_, SslMode::Disable) => &[Way::Plain],
        (_, SslMode::Allow) => &[Way::Plain, Way::Tls],
        (_, SslMode::Prefer) => &[Way::TlsIfOffered, Way::Plain],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Way::Tls],
    }
}

/// Opens the stream.
async fn open(
    info: &ConnInfo,
    server: &Server,
    at: &ServerAddress,
    way: Way,
) -> Result<(Socket, Channel), ConnectError> {
    let reach = |source| ConnectError::Reach { at: at.clone(), source };
    let mut stream = match at {
        ServerAddress::Socket(path) => return Ok((Socket::unix(path).await.map_err(reach)?, Channel::Plain)),
        ServerAddress::Port { address, .. } => connect_tcp(*address, info.tcp()).await.map_err(reach)?,
    };
    let settings = info.tls();
    let offered = match (way, settings.negotiation()) {
        (Way::Plain, _) => false,
        (_, SslNegotiation::Direct) => true,
        (_, SslNegotiation::Postgres) => is_tls_offered(&mut stream, at, settings.mode()).await?,
    };
    match (way, offered) {
        (Way::Plain | Way::TlsIfOffered, false) => Ok((Socket::Tcp(stream), Channel::Plain)),
        (Way::Tls, false) => Err(ConnectError::NoTls {
            at: at.clone(),
            mode: settings.mode(),
        }),
        (_, true) => {
            let client = tls::Client::new(settings)?;
            let (stream, channel) = client
                .handshake(stream, settings, server)
                .await
                .map_err(|error| handshake_error(error, at))?;
            Ok((Socket::Tls(Box::new(stream)), channel))
        }
    }
}

/// Asks the server whether it does TLS. One byte answers, and no more than that is read: what came
/// behind it in clear must not be taken for something said under TLS.
async fn is_tls_offered(stream: &mut TcpStream, at: &ServerAddress, mode: SslMode) -> Result<bool, ConnectError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let answer = async {
        stream.write_all(&request).await?;
        stream.read_u8().await
    };
    match answer.await {
        Ok(b'S') => Ok(true),
        Ok(b'N') => Ok(false),
        // The beginning of an error message. Anybody could have sent it, so it is not shown; on a new
        // connection without TLS, if that is allowed, it may be heard.
        Ok(b'E') => Err(ConnectError::NoTls { at: at.clone(), mode }),
        Ok(byte) => Err(ConnectError::Protocol {
            at: at.clone(),
            what: format!("'{}' in answer to the request for TLS", byte.escape_ascii()),
        }),
        Err(source) => Err(ConnectError::Closed {
            at: at.clone(),
            source: Some(source),
        }),
    }
}

fn handshake_error(error: HandshakeError, at: &ServerAddress) -> ConnectError {
    let at = at.clone();
    match error {
        HandshakeError::Settings(error) => ConnectError::TlsSettings(error),
        HandshakeError::Certificate(fault) => ConnectError::Certificate { at, fault },
        HandshakeError::Failed(source) => ConnectError::Tls { at, source },
        HandshakeError::NoAlpn => ConnectError::TlsTerms {
            at,
            what: "the server does not take it for PostgreSQL's protocol",
        },
        HandshakeError::NoClientCertificate => ConnectError::TlsTerms {
            at,
            what: "no client certificate was asked for, or there is none to present",
        },
    }
}
