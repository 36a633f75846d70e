//! The client's side of a login: requests in, answers out. Sans-io.
//!
//! Speaks what `pg_hba.conf` calls trust (and peer, cert), password, md5 and scram-sha-256, the last bound to the TLS
//! channel where both sides can. A server that skips a proof it owes (SCRAM is mutual), or that settles
//! for less than `channel_binding` or `require_auth` demand, is refused: it may be another server.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;

use super::message::AuthRequest;
use crate::pg::conninfo::{AuthMethod, AuthMethods, ChannelBinding, Secret};

/// Why a login failed on our side of it.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The server wants a password and there is none.
    #[error("the server asks for a password and none was given")]
    PasswordMissing,
    /// The server wants a method that this program does not speak.
    #[error("the server asks for authentication by {0}, which is not supported")]
    Unsupported(String),
    /// The server wants, or is content with, a method that `require_auth` excludes.
    #[error("the server wants authentication by {0}, which require_auth does not allow")]
    NotAllowed(AuthMethod),
    /// `channel_binding=require`, and the server did not bind the login to the TLS channel.
    #[error("channel binding is required and the server does not do it")]
    NoChannelBinding,
    /// Channel binding is offered where there is no channel to bind to: a sign of somebody between.
    #[error("the server offers channel binding on a connection without TLS")]
    BindingWithoutTls,
    /// The exchange broke a rule of SCRAM; the server may not know the password either.
    #[error("SCRAM authentication failed")]
    Scram(#[source] std::io::Error),
    /// A request that does not fit what went before.
    #[error("the server broke the order of the authentication exchange")]
    OutOfOrder,
    /// A text with a zero byte inside, which cannot be sent.
    #[error("the user name or password cannot be sent")]
    Unsendable(#[source] std::io::Error),
}

/// What the channel can be bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Channel {
    /// There is no TLS.
    Plain,
    /// TLS. The hash of the server's certificate that `tls-server-end-point` means, if it has one.
    Tls { end_point: Option<Vec<u8>> },
}

/// What the login is made with.
#[derive(Debug)]
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a Secret>,
    pub(super) channel: Channel,
    pub(super) binding: ChannelBinding,
    pub(super) allowed: &'a AuthMethods,
}

/// What to do after a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Send this.
    Send(BytesMut),
    /// Wait for the next request.
    Wait,
    /// The server has accepted us, and we it.
    Done,
}

enum State {
    Start,
    /// A password was sent; the server may accept it.
    PasswordSent,
    /// SCRAM's first message was sent.
    ScramBegun(ScramSha256),
    /// SCRAM's proof was sent.
    ScramProved(ScramSha256),
    /// The server has proved that it knows the password.
    ScramDone,
}

/// One login.
pub(super) struct Login<'a> {
    credentials: Credentials<'a>,
    state: State,
    bound: bool,
}

impl<'a> Login<'a> {
    pub(super) fn new(credentials: Credentials<'a>) -> Self {
        Self {
            credentials,
            state: State::Start,
            bound: false,
        }
    }

    /// Answers a request of the server.
    pub(super) fn answer(&mut self, request: AuthRequest) -> Result<Answer, AuthError> {
        match (std::mem::replace(&mut self.state, State::Start), request) {
            (State::Start, AuthRequest::Ok) => {
                self.allow(AuthMethod::None)?;
                self.accept()
            }
            (State::PasswordSent | State::ScramDone, AuthRequest::Ok) => self.accept(),
            (State::Start, AuthRequest::Cleartext) => {
                self.allow(AuthMethod::Password)?;
                self.refuse_unbound()?;
                let password = self.password()?.reveal().to_vec();
                self.send_password(&password)
            }
            (State::Start, AuthRequest::Md5 { salt }) => {
                self.allow(AuthMethod::Md5)?;
                self.refuse_unbound()?;
                let hash = md5_hash(self.credentials.user.as_bytes(), self.password()?.reveal(), salt);
                self.send_password(hash.as_bytes())
            }
            (State::Start, AuthRequest::Sasl { mechanisms }) => {
                self.allow(AuthMethod::ScramSha256)?;
                self.begin_scram(&mechanisms)
            }
            (State::ScramBegun(mut scram), AuthRequest::SaslContinue(data)) => {
                scram.update(&data).map_err(AuthError::Scram)?;
                let mut message = BytesMut::new();
                frontend::sasl_response(scram.message(), &mut message).map_err(AuthError::Scram)?;
                self.state = State::ScramProved(scram);
                Ok(Answer::Send(message))
            }
            (State::ScramProved(mut scram), AuthRequest::SaslFinal(data)) => {
                scram.finish(&data).map_err(AuthError::Scram)?;
                self.state = State::ScramDone;
                Ok(Answer::Wait)
            }
            (State::Start, AuthRequest::Other(method)) => Err(AuthError::Unsupported(method.to_owned())),
            _ => Err(AuthError::OutOfOrder),
        }
    }

    fn allow(&self, method: AuthMethod) -> Result<(), AuthError> {
        match self.credentials.allowed.allows(method) {
            true => Ok(()),
            false => Err(AuthError::NotAllowed(method)),
        }
    }

    /// Before a password leaves us in a form that whoever is in between could use.
    fn refuse_unbound(&self) -> Result<(), AuthError> {
        match self.credentials.binding {
            ChannelBinding::Require if !self.bound => Err(AuthError::NoChannelBinding),
            _ => Ok(()),
        }
    }

    fn accept(&self) -> Result<Answer, AuthError> {
        self.refuse_unbound().map(|()| Answer::Done)
    }

    fn password(&self) -> Result<&'a Secret, AuthError> {
        // An empty password cannot be set on a server, and libpq takes one for none.
        self.credentials
            .password
            .filter(|password| !password.reveal().is_empty())
            .ok_or(AuthError::PasswordMissing)
    }

    fn send_password(&mut self, password: &[u8]) -> Result<Answer, AuthError> {
        let mut message = BytesMut::new();
        frontend::password_message(password, &mut message).map_err(AuthError::Unsendable)?;
        self.state = State::PasswordSent;
        Ok(Answer::Send(message))
    }

    fn begin_scram(&mut self, mechanisms: &[String]) -> Result<Answer, AuthError> {
        let offered = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
        let wanted = self.credentials.binding != ChannelBinding::Disable;
        let end_point = match &self.credentials.channel {
            Channel::Plain if offered(SCRAM_SHA_256_PLUS) => return Err(AuthError::BindingWithoutTls),
            Channel::Tls { end_point: Some(hash) } if wanted => Some(hash.clone()),
            Channel::Plain | Channel::Tls { .. } => None,
        };
        let (mechanism, binding) = match end_point {
            Some(hash) if offered(SCRAM_SHA_256_PLUS) => {
                self.bound = true;
                (SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash))
            }
            // Tells the server that we could have; one that could too then knows that its offer was cut out.
            Some(_) => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        self.refuse_unbound()?;
        if !offered(mechanism) {
            return Err(AuthError::Unsupported(format!("SASL ({})", mechanisms.join(", "))));
        }
        let scram = ScramSha256::new(self.password()?.reveal(), binding);
        let mut message = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut message).map_err(AuthError::Scram)?;
        self.state = State::ScramBegun(scram);
        Ok(Answer::Send(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn login<'a>(
        password: Option<&'a Secret>,
        channel: Channel,
        binding: ChannelBinding,
        allowed: &'a AuthMethods,
    ) -> Login<'a> {
        Login::new(Credentials {
            user: "rep",
            password,
            channel,
            binding,
            allowed,
        })
    }

    fn sasl(mechanisms: &[&str]) -> AuthRequest {
        AuthRequest::Sasl {
            mechanisms: mechanisms.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    const TLS: Channel = Channel::Tls { end_point: None };

    #[test]
    fn a_server_that_asks_nothing_is_accepted_unless_a_proof_is_required() {
        let any = AuthMethods::default();
        let ok = |binding| login(None, Channel::Plain, binding, &any).answer(AuthRequest::Ok);
        assert_eq!(ok(ChannelBinding::Prefer).unwrap(), Answer::Done);
        assert!(matches!(ok(ChannelBinding::Require), Err(AuthError::NoChannelBinding)));
    }

    #[test]
    fn no_password_leaves_us_where_channel_binding_is_required() {
        let any = AuthMethods::default();
        let secret = Secret::new("x");
        for request in [
            AuthRequest::Cleartext,
            AuthRequest::Md5 { salt: [0; 4] },
            sasl(&["SCRAM-SHA-256"]),
        ] {
            let mut login = login(Some(&secret), TLS, ChannelBinding::Require, &any);
            assert!(matches!(login.answer(request), Err(AuthError::NoChannelBinding)));
        }
    }

    #[test]
    fn a_server_that_skips_its_own_proof_is_refused() {
        let any = AuthMethods::default();
        let secret = Secret::new("x");
        let mut login = login(Some(&secret), Channel::Plain, ChannelBinding::Prefer, &any);
        assert!(matches!(login.answer(sasl(&["SCRAM-SHA-256"])), Ok(Answer::Send(_))));
        assert!(matches!(login.answer(AuthRequest::Ok), Err(AuthError::OutOfOrder)));
    }

    #[test]
    fn the_channel_is_bound_where_both_sides_can() {
        let any = AuthMethods::default();
        let secret = Secret::new("x");
        let first = |channel, binding, mechanisms: &[&str]| match login(Some(&secret), channel, binding, &any)
            .answer(sasl(mechanisms))
            .unwrap()
        {
            Answer::Send(message) => String::from_utf8_lossy(&message).into_owned(),
            other => panic!("{other:?}"),
        };
        let tls = || Channel::Tls {
            end_point: Some(vec![1; 32]),
        };
        let both = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"];
        let bound = first(tls(), ChannelBinding::Prefer, &both);
        assert!(bound.contains("SCRAM-SHA-256-PLUS\0") && bound.contains("p=tls-server-end-point,,n=,r="));
        assert!(first(tls(), ChannelBinding::Disable, &both).contains("n,,n=,r="));
        assert!(first(tls(), ChannelBinding::Prefer, &both[1..]).contains("y,,n=,r="));
        assert!(first(TLS, ChannelBinding::Prefer, &both).contains("n,,n=,r="));
        let mut stripped = login(Some(&secret), Channel::Plain, ChannelBinding::Prefer, &any);
        assert!(matches!(
            stripped.answer(sasl(&both)),
            Err(AuthError::BindingWithoutTls)
        ));
    }

    #[test]
    fn a_request_out_of_order_is_refused() {
        let any = AuthMethods::default();
        for request in [
            AuthRequest::SaslContinue(Bytes::new()),
            AuthRequest::SaslFinal(Bytes::new()),
        ] {
            let mut login = login(None, Channel::Plain, ChannelBinding::Prefer, &any);
            assert!(matches!(login.answer(request), Err(AuthError::OutOfOrder)));
        }
    }
}
