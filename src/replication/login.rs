//! From an open socket to a session: start-up packet, authentication, the server's greeting.

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use super::auth::{Answer, Channel, Credentials, Login};
use super::connect::Purpose;
use super::error::{ConnectError, LoginFacts};
use super::message::Backend;
use super::socket::{ServerAddress, Socket};
use super::wire::{Wire, WireError};
use crate::pg::conninfo::{ConnInfo, Server};

/// Logs in on a fresh socket.
pub(super) async fn log_in(
    socket: Socket,
    channel: Channel,
    at: ServerAddress,
    info: &ConnInfo,
    server: &Server,
    purpose: Purpose,
) -> Result<Wire, ConnectError> {
    let facts = LoginFacts {
        at: at.clone(),
        user: info.user().to_owned(),
        database: info.dbname().to_owned(),
        passfile: info.passfile_of(server).map(Into::into),
        replication: purpose == Purpose::Replication,
    };
    let failed = |error: WireError| wire_error(error, &facts);
    let auth_failed = |source| ConnectError::Auth {
        at: facts.at.clone(),
        user: facts.user.clone(),
        source,
    };
    let mut login = Login::new(Credentials {
        user: info.user(),
        password: info.password_for(server),
        channel,
        binding: info.channel_binding(),
        allowed: info.require_auth(),
    });
    let mut wire = Wire::new(socket, at);
    wire.send(&startup(info, purpose)?).await.map_err(failed)?;
    loop {
        match wire.receive().await.map_err(failed)? {
            Backend::Auth(request) => match login.answer(request).map_err(auth_failed)? {
                Answer::Send(message) => wire.send(&message).await.map_err(failed)?,
                Answer::Wait => {}
                Answer::Done => break,
            },
            Backend::Error(error) => return Err(failed(WireError::Server(error))),
            other => return Err(failed(WireError::Unexpected(other.name()))),
        }
    }
    wire.logged_in();
    // Who may log in may still not be let into the database, or be one too many.
    match wire.receive().await.map_err(failed)? {
        Backend::Ready => Ok(wire),
        Backend::Error(error) => Err(failed(WireError::Server(error))),
        other => Err(failed(WireError::Unexpected(other.name()))),
    }
}

/// The start-up packet.
fn startup(info: &ConnInfo, purpose: Purpose) -> Result<BytesMut, ConnectError> {
    let mut parameters = vec![("user", info.user())];
    match purpose {
        // No client_encoding: the server would then check that paths are valid in it, and they are bytes.
        Purpose::Replication => parameters.push(("replication", "true")),
        Purpose::Sql => parameters.extend([("database", info.dbname()), ("client_encoding", "UTF8")]),
    }
    let optional = [
        ("application_name", info.application_name()),
        ("options", info.options()),
    ];
    parameters.extend(optional.into_iter().filter(|(_, value)| !value.is_empty()));
    let mut packet = BytesMut::new();
    frontend::startup_message(parameters, &mut packet).map_err(|error| ConnectError::Setting { source: error })?;
    Ok(packet)
}

fn wire_error(error: WireError, facts: &LoginFacts) -> ConnectError {
    let at = facts.at.clone();
    match error {
        WireError::Lost(source) => ConnectError::Closed { at, source },
        WireError::Frame(error) => ConnectError::Protocol {
            at,
            what: error.to_string(),
        },
        WireError::Unexpected(what) => ConnectError::Protocol {
            at,
            what: format!("{what} during the login"),
        },
        WireError::Server(error) => ConnectError::of_login(error, facts.clone()),
    }
}
