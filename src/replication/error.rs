//! What can go wrong between us and a server, and what to do about it.

use std::io;
use std::time::Duration;

use super::auth::AuthError;
use super::basebackup::{BackupEnd, BackupOptionsError};
use super::socket::ServerAddress;
use super::tar::TarError;
use super::tls::{CertificateFault, TlsSettingsError};
use super::{ServerError, SqlState};
use crate::error::{Class, Explain};
use crate::pg::conninfo::{SslMode, TargetSessionAttrs};
use crate::pg::{MajorVersion, VersionError};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum ConnectError {
    /// A host's name has no address.
    #[error("cannot find the address of host \"{host}\"")]
    Resolve { host: String, source: io::Error },
    /// Nobody listens there, or the way is cut.
    #[error("cannot connect to {at}")]
    Reach { at: ServerAddress, source: io::Error },
    /// It took too long.
    #[error("cannot connect to {at}: no answer within {} s", after.as_secs())]
    Timeout { at: ServerAddress, after: Duration },
    /// The connection broke before the login was done.
    #[error("{at} closed the connection during the login")]
    Closed {
        at: ServerAddress,
        source: Option<io::Error>,
    },
    /// What answers is no PostgreSQL server.
    #[error("what answers at {at} does not speak PostgreSQL's protocol: {what}")]
    Protocol { at: ServerAddress, what: String },
    /// The server does without TLS.
    #[error("{at} does not do TLS, and sslmode={mode} needs it")]
    NoTls { at: ServerAddress, mode: SslMode },
    /// The certificate of the server is refused.
    #[error("the certificate of {at} is refused: {fault}")]
    Certificate { at: ServerAddress, fault: CertificateFault },
    /// The handshake failed otherwise.
    #[error("TLS with {at} failed")]
    Tls { at: ServerAddress, source: io::Error },
    /// The handshake was not what the settings ask for.
    #[error("TLS with {at} is not as asked for: {what}")]
    TlsTerms { at: ServerAddress, what: &'static str },
    /// TLS settings that cannot be used.
    #[error(transparent)]
    TlsSettings(#[from] TlsSettingsError),
    /// A value that cannot be sent: it has a zero byte inside.
    #[error("user, database, application_name or options cannot be sent")]
    Setting { source: io::Error },
    /// The login failed on our side.
    #[error("cannot log in to {at} as \"{user}\"")]
    Auth {
        at: ServerAddress,
        user: String,
        source: AuthError,
    },
    /// Wrong password.
    #[error("{at} rejected the password of user \"{user}\"")]
    Password {
        at: ServerAddress,
        user: String,
        passfile: Option<std::path::PathBuf>,
        source: ServerError,
    },
    /// No line of `pg_hba.conf` lets us in.
    #[error("pg_hba.conf of {at} does not let user \"{user}\" in")]
    NoHbaEntry {
        at: ServerAddress,
        user: String,
        replication: bool,
        source: ServerError,
    },
    /// Another refusal of who we are: no such role, not permitted to log in, peer does not match.
    #[error("{at} refused user \"{user}\"")]
    User {
        at: ServerAddress,
        user: String,
        source: ServerError,
    },
    /// The role may not replicate, or not connect to the database.
    #[error("{at}: user \"{user}\" lacks the {}", if *replication { "REPLICATION privilege" } else { "right to connect" })]
    Privilege {
        at: ServerAddress,
        user: String,
        replication: bool,
        source: ServerError,
    },
    /// All walsenders are taken.
    #[error("{at} has no free walsender: max_wal_senders is exhausted")]
    WalSenders { at: ServerAddress, source: ServerError },
    /// All connections are taken.
    #[error("{at} takes no more connections")]
    TooManyConnections { at: ServerAddress, source: ServerError },
    /// The database does not exist.
    #[error("database \"{database}\" does not exist on {at}")]
    Database {
        at: ServerAddress,
        database: String,
        source: ServerError,
    },
    /// Starting up, shutting down or in recovery without hot standby.
    #[error("{at} does not take connections now")]
    NotReady { at: ServerAddress, source: ServerError },
    /// Another refusal.
    #[error("{at} refused the connection")]
    Server { at: ServerAddress, source: ServerError },
    /// The server is too old, or something else.
    #[error("{at} cannot be used")]
    Version { at: ServerAddress, source: VersionError },
    /// The server is not of the kind that `target_session_attrs` asks for.
    #[error("{at} is not what target_session_attrs={wanted} asks for")]
    Session {
        at: ServerAddress,
        wanted: TargetSessionAttrs,
    },
    /// No host of several would do; each with its own reason.
    #[error("none of the {} addresses would do: {}", attempts.len(), each_on_one_line(attempts))]
    NoHost { attempts: Vec<ConnectError> },
}

fn each_on_one_line(attempts: &[ConnectError]) -> String {
    let lines: Vec<String> = attempts.iter().map(|error| crate::error::on_one_line(error)).collect();
    lines.join("; ")
}

impl ConnectError {
    /// Whether the next host or address should be tried: nobody was asked for a login, or he is not
    /// ready for one. libpq goes on in the same cases: a wrong password is not tried elsewhere.
    pub(super) fn goes_on(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. }
                | Self::Reach { .. }
                | Self::Timeout { .. }
                | Self::Closed { .. }
                | Self::NotReady { .. }
                | Self::Session { .. }
        )
    }

    /// Whether the other of "with TLS" and "without" could do better, where `sslmode` leaves the choice.
    pub(super) fn may_be_about_tls(&self) -> bool {
        matches!(
            self,
            Self::Certificate { .. }
                | Self::Tls { .. }
                | Self::TlsTerms { .. }
                | Self::TlsSettings(_)
                | Self::NoTls { .. }
                | Self::Password { .. }
                | Self::NoHbaEntry { .. }
                | Self::User { .. }
                | Self::Privilege { .. }
                | Self::WalSenders { .. }
                | Self::TooManyConnections { .. }
                | Self::Database { .. }
                | Self::NotReady { .. }
                | Self::Server { .. }
        )
    }

    /// Sorts a refusal during the login by its SQLSTATE.
    pub(super) fn of_login(source: ServerError, login: LoginFacts) -> Self {
        let LoginFacts {
            at,
            user,
            database,
            passfile,
            replication,
        } = login;
        match source.sqlstate() {
            Some(SqlState::INVALID_PASSWORD) => Self::Password {
                at,
                user,
                passfile,
                source,
            },
            Some(SqlState::INVALID_AUTHORIZATION) if source.routine() == Some("ClientAuthentication") => {
                Self::NoHbaEntry {
                    at,
                    user,
                    replication,
                    source,
                }
            }
            Some(SqlState::INVALID_AUTHORIZATION) => Self::User { at, user, source },
            Some(SqlState::INSUFFICIENT_PRIVILEGE) => Self::Privilege {
                at,
                user,
                replication,
                source,
            },
            // The name of a setting is in the message in every language.
            Some(SqlState::TOO_MANY_CONNECTIONS) if source.message().contains("max_wal_senders") => {
                Self::WalSenders { at, source }
            }
            Some(SqlState::TOO_MANY_CONNECTIONS) => Self::TooManyConnections { at, source },
            Some(SqlState::INVALID_CATALOG_NAME) => Self::Database { at, database, source },
            Some(SqlState::CANNOT_CONNECT_NOW) => Self::NotReady { at, source },
            _ => Self::Server { at, source },
        }
    }
}

/// What an error about a login names.
#[derive(Debug, Clone)]
pub(super) struct LoginFacts {
    pub(super) at: ServerAddress,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) passfile: Option<std::path::PathBuf>,
    pub(super) replication: bool,
}

impl Explain for ConnectError {
    fn class(&self) -> Class {
        match self {
            Self::Auth {
                source: AuthError::PasswordMissing | AuthError::Unsendable(_),
                ..
            }
            | Self::Database { .. }
            | Self::Setting { .. } => Class::Usage,
            Self::TlsSettings(error) => error.class(),
            Self::Version { source, .. } => source.class(),
            Self::NoHost { attempts } => match attempts.iter().all(|error| error.class() == Class::Usage) {
                true => Class::Usage,
                false => Class::Unavailable,
            },
            _ => Class::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        let line = |replication: &bool| if *replication { "replication" } else { "its database" };
        Some(match self {
            Self::Resolve { .. } => "check the host name in the connection settings".to_owned(),
            Self::Reach { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => {
                    "is the server running, and is this its socket folder (unix_socket_directories) and port?"
                }
                io::ErrorKind::PermissionDenied => "this user may not use that socket; see unix_socket_permissions",
                _ => "is the server running there, and does it listen on that address (listen_addresses, port)?",
            }
            .to_owned(),
            Self::Timeout { .. } => {
                "check that nothing between here and there drops the packets, or raise connect_timeout".to_owned()
            }
            Self::Closed { .. } => "look into the server's log".to_owned(),
            Self::Protocol { .. } => "check host and port".to_owned(),
            Self::Setting { .. } => return None,
            Self::TlsSettings(error) => return error.hint(),
            Self::NoTls { .. } => "switch TLS on at the server (ssl=on), or use sslmode=prefer".to_owned(),
            Self::Certificate {
                fault: CertificateFault::Name { .. },
                ..
            } => "connect by a name that the certificate has, or use sslmode=verify-ca".to_owned(),
            Self::Certificate { .. } => "check sslrootcert and the server's certificate (ssl_cert_file)".to_owned(),
            Self::Tls { .. } => "check ssl_min_protocol_version here and at the server, and its log".to_owned(),
            Self::TlsTerms { .. } => "check sslcertmode and sslnegotiation".to_owned(),
            Self::Auth { source, .. } => auth_hint(source)?,
            Self::Password {
                passfile: Some(path), ..
            } => format!("the password came from {}", path.display()),
            Self::Password { .. } => "check PGPASSWORD, the password file or the connection string".to_owned(),
            // "connection requires a valid client certificate": `clientcert` is a word of pg_hba.conf, too.
            Self::NoHbaEntry { source, .. } if source.message().contains("certificate") => {
                "name a client certificate and its key with sslcert and sslkey".to_owned()
            }
            Self::NoHbaEntry { user, replication, .. } => {
                format!(
                    "add a line for {}, user {user} and this client's address to pg_hba.conf and reload",
                    line(replication)
                )
            }
            Self::User { .. } => "check the user name, and what pg_hba.conf demands of it".to_owned(),
            Self::Privilege {
                user,
                replication: true,
                ..
            } => format!("ALTER ROLE \"{user}\" REPLICATION"),
            Self::Privilege {
                user,
                replication: false,
                ..
            } => format!("grant CONNECT on the database to {user}"),
            Self::WalSenders { .. } => {
                "raise max_wal_senders and restart the server, or end another replication connection".to_owned()
            }
            Self::TooManyConnections { .. } => "raise max_connections, or close other connections".to_owned(),
            Self::Database { .. } => "name an existing database with dbname".to_owned(),
            Self::NotReady { .. } => "try again when it has started; a standby must have hot_standby=on".to_owned(),
            Self::Server { source, .. } => return source.hint().map(str::to_owned),
            Self::Version { .. } => return None,
            Self::Session { .. } => "check host and target_session_attrs".to_owned(),
            Self::NoHost { attempts } => return attempts.first().and_then(Explain::hint),
        })
    }
}

fn auth_hint(error: &AuthError) -> Option<String> {
    let hint = match error {
        AuthError::PasswordMissing => "set PGPASSWORD or PGPASSFILE, or add a line to ~/.pgpass (mode 0600)",
        AuthError::Unsupported(_) => {
            "use scram-sha-256, md5, password, cert, peer or trust in pg_hba.conf for this user"
        }
        AuthError::NotAllowed(_) => "change require_auth, or the method in pg_hba.conf",
        AuthError::NoChannelBinding => {
            "channel binding needs TLS and scram-sha-256 on the server; else drop channel_binding=require"
        }
        AuthError::BindingWithoutTls => "somebody may be between here and the server: use sslmode=verify-full",
        AuthError::Scram(_) => "check the password; a scram_iterations above 100000 is not supported",
        AuthError::OutOfOrder => "what answers may not be a PostgreSQL server",
        AuthError::Unsendable(_) => return None,
    };
    Some(hint.to_owned())
}

/// What went wrong on a connection that was there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum ReplicationError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error("lost the connection to {at} during {doing}")]
    Lost {
        at: ServerAddress,
        doing: String,
        source: Option<io::Error>,
    },
    /// The server sent what it should not.
    #[error("{at} broke the replication protocol during {doing}: {what}")]
    Protocol {
        at: ServerAddress,
        doing: String,
        what: String,
    },
    /// The server refused a command, or gave it up.
    #[error("{at} refused {doing}")]
    Server {
        at: ServerAddress,
        doing: String,
        source: ServerError,
    },
    /// The server ended the connection in the middle of a stream: it shuts down, or somebody told it to.
    #[error("{at} ended {doing}: {}", if source.is_none() { "it shuts down" } else { "it closes the connection" })]
    Ended {
        at: ServerAddress,
        doing: String,
        source: Option<ServerError>,
    },
    /// The server did not answer in time.
    #[error("{at} did not answer {doing} within {} s", after.as_secs())]
    Timeout {
        at: ServerAddress,
        doing: String,
        after: Duration,
    },
    /// The command does not exist in the server's version.
    #[error("{at} runs PostgreSQL {version}, which has no {doing}")]
    Version {
        at: ServerAddress,
        doing: &'static str,
        version: MajorVersion,
    },
    /// An earlier command was abandoned half-way; the connection cannot be used any more.
    #[error("the connection to {at} was left in the middle of {doing}")]
    Abandoned { at: ServerAddress, doing: String },
    /// A name that no replication slot can have.
    #[error("\"{0}\" is not the name of a replication slot")]
    SlotName(String),
    /// A base backup was asked for in a way that no server does.
    #[error(transparent)]
    Options(#[from] BackupOptionsError),
    /// The tar of a base backup is not one.
    #[error("{at} sent a damaged archive \"{archive}\"")]
    Tar {
        at: ServerAddress,
        archive: String,
        source: TarError,
    },
    /// A path in a base backup that would lead out of the data directory.
    #[error("{at} sent a file named \"{}\", which lies outside the data directory", .path.escape_ascii())]
    Path { at: ServerAddress, path: bytes::Bytes },
    /// All was copied, but pages did not pass their checksums.
    #[error(
        "{at} found damaged pages while it sent the base backup: {}",
        damaged_pages(warnings)
    )]
    DamagedPages {
        /// The server.
        at: ServerAddress,
        /// What it told of each damaged page or file (it stops telling after a few per file).
        warnings: Vec<String>,
        /// Where the backup ended: it is complete, damage included.
        end: Option<BackupEnd>,
        /// Its final word.
        source: ServerError,
    },
}

fn damaged_pages(warnings: &[String]) -> String {
    match warnings {
        [] => "it does not say which".to_owned(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}

impl ReplicationError {
    /// The server's own words, where it was the server who refused.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server { source, .. } | Self::DamagedPages { source, .. } => Some(source),
            Self::Ended { source, .. } => source.as_ref(),
            _ => None,
        }
    }
}

impl Explain for ReplicationError {
    fn class(&self) -> Class {
        match self {
            Self::Connect(error) => error.class(),
            Self::SlotName(_) | Self::Options(_) => Class::Usage,
            Self::Lost { .. }
            | Self::Protocol { .. }
            | Self::Server { .. }
            | Self::Ended { .. }
            | Self::Timeout { .. }
            | Self::Version { .. } => Class::Unavailable,
            Self::Abandoned { .. } | Self::Tar { .. } | Self::Path { .. } => Class::Failed,
            Self::DamagedPages { .. } => Class::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connect(error) => return error.hint(),
            Self::Lost { .. } => "look into the server's log; wal_sender_timeout may be too short for this network",
            Self::Server { source, .. } => return source.hint().map(str::to_owned),
            Self::Ended { .. } => "the stream can go on when the server takes connections again",
            Self::Timeout { .. } => "look into the server's log, and whether the network drops its packets",
            Self::SlotName(_) => "slot names have 1 to 63 lower-case letters, digits and underscores",
            Self::DamagedPages { .. } => {
                "restore the files named from an older backup, or check the disk; pg_checksums --check tells more"
            }
            Self::Version { .. } | Self::Options(_) => return None,
            Self::Protocol { .. } | Self::Abandoned { .. } | Self::Tar { .. } | Self::Path { .. } => {
                "this should not happen: please report it"
            }
        };
        Some(hint.to_owned())
    }
}

#[cfg(test)]
mod tests;
