//! What can be wrong with connection settings. No message shows a password, or a piece of a text that
//! may be one: positions and known keywords are named instead.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::error::{Class, Explain};

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The connection string.
    ConnInfo,
    /// A flag of the command line, as typed (`-h`).
    Flag(&'static str),
    /// A line of a service file.
    Service {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnInfo => f.write_str("the connection string"),
            Self::Flag(flag) => f.write_str(flag),
            Self::Service { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// What is wrong with a `postgresql://` URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UriFault {
    /// `[` without `]`.
    OpenBracket,
    /// `[]`.
    EmptyBrackets,
    /// Something other than `:`, `/`, `?`, `,` or the end after `]`.
    AfterBracket,
    /// `%` that two hexadecimal digits do not follow.
    Percent,
    /// `%00`.
    PercentZero,
    /// A second `@`, or one behind a `/` that may belong to a password.
    StrayAt,
    /// A port that is not a number.
    Port,
    /// A query parameter without `=`.
    NoEquals,
    /// A query parameter with two `=`.
    TwoEquals,
}

impl fmt::Display for UriFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenBracket => "\"[\" of an IPv6 address is never closed",
            Self::EmptyBrackets => "the IPv6 address between \"[\" and \"]\" is empty",
            Self::AfterBracket => "after \"]\" only \":\", \"/\", \"?\" or \",\" may follow",
            Self::Percent => "\"%\" must be followed by two hexadecimal digits",
            Self::PercentZero => "%00 is not allowed",
            Self::StrayAt => "\"@\" where none may stand",
            Self::Port => "the port is not a number",
            Self::NoEquals => "a query parameter has no \"=\"",
            Self::TwoEquals => "a query parameter has more than one \"=\"",
        })
    }
}

/// Connection settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnInfoError {
    /// `scheme://` of something else.
    #[error("the connection URI does not begin with postgresql:// or postgres://")]
    Scheme,
    /// A word without `=`.
    #[error("missing \"=\" in the connection string after the word at character {at}")]
    MissingEquals {
        /// Where the word begins, in characters from 1.
        at: usize,
    },
    /// A quote that is never closed.
    #[error("the quote at character {at} of the connection string is never closed")]
    UnterminatedQuote {
        /// Where the quoted value begins, in characters from 1.
        at: usize,
    },
    /// A malformed URI.
    #[error("the connection URI is malformed: {fault} (near character {at})")]
    Uri {
        /// What is wrong.
        fault: UriFault,
        /// About where, in characters from 1.
        at: usize,
    },
    /// A keyword libpq does not have either.
    #[error("unknown connection setting{}{} in {origin}", key.as_ref().map(|key| format!(" \"{key}\"")).unwrap_or_default(),
        at.map(|at| format!(" at character {at}")).unwrap_or_default())]
    UnknownKey {
        /// The keyword, unless it may be a piece of a password.
        key: Option<String>,
        /// Where it stands in a connection string.
        at: Option<usize>,
        /// The known keyword that looks most like it.
        nearest: Option<&'static str>,
        /// Where it was given.
        origin: Origin,
    },
    /// A value its keyword does not take.
    #[error("invalid {keyword} \"{value}\" (from {origin})")]
    Invalid {
        /// The keyword.
        keyword: &'static str,
        /// The value; never a secret's.
        value: String,
        /// Where it was given.
        origin: Origin,
        /// What may stand there, as the end of a sentence.
        allowed: &'static str,
    },
    /// A value that no server could be sent, or that is not text.
    #[error("the value of {keyword} (from {origin}) {why}")]
    Bytes {
        /// The keyword.
        keyword: &'static str,
        /// Where it was given.
        origin: Origin,
        /// What is wrong with its bytes.
        why: &'static str,
    },
    /// A setting that would change what happens, and that this program does not have.
    #[error("{keyword} (from {origin}) is not supported: {why}")]
    Unsupported {
        /// The keyword.
        keyword: &'static str,
        /// Where it was given.
        origin: Origin,
        /// Why not.
        why: &'static str,
    },
    /// Settings that contradict each other.
    #[error("{0}")]
    Contradiction(String),
    /// Lists of different lengths.
    #[error("could not match {count} {what} to {hosts} {whom}")]
    Counts {
        /// What there is too much or too little of.
        what: &'static str,
        /// How many of it were given.
        count: usize,
        /// What it must match.
        whom: &'static str,
        /// How many of that were given.
        hosts: usize,
    },
    /// No user anywhere.
    #[error("no user to connect as: none was given, and the operating system does not know who we are")]
    NoUser,
    /// A service file that was named and is not there, or that cannot be read.
    #[error("could not read service file {}", path.display())]
    ReadServiceFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A service that no file defines.
    #[error("no service file defines the service \"{service}\"")]
    UnknownService {
        /// Its name.
        service: String,
        /// The files that were read.
        read: Vec<PathBuf>,
    },
    /// A line of a service file that cannot be understood.
    #[error("{}, line {line}: {why}", path.display())]
    ServiceLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl ConnInfoError {
    /// Drops the unknown keyword where it may be a piece of a password.
    pub(super) fn without_key_if(mut self, doubtful: bool) -> Self {
        if let Self::UnknownKey { key, .. } = &mut self
            && doubtful
        {
            *key = None;
        }
        self
    }
}

impl Explain for ConnInfoError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Scheme => "Write it as postgresql://USER@HOST:PORT/DBNAME.".to_owned(),
            Self::MissingEquals { .. } | Self::UnterminatedQuote { .. } => {
                "Put a value with blanks in single quotes, and write \\' and \\\\ for a quote and a backslash in it."
                    .to_owned()
            }
            Self::Uri {
                fault: UriFault::NoEquals | UriFault::TwoEquals,
                ..
            } => "Write parameters as ?key=value&key=value, and %3D and %26 for \"=\" and \"&\" in a value.".to_owned(),
            Self::Uri { .. } => {
                "In user names and passwords write %25 for \"%\", %40 for \"@\", %2F for \"/\" and %3A for \":\"."
                    .to_owned()
            }
            Self::UnknownKey {
                nearest: Some(nearest), ..
            } => format!("Did you mean \"{nearest}\"?"),
            Self::Invalid { allowed, .. } => format!("Allowed: {allowed}."),
            Self::UnknownService { read, .. } if read.is_empty() => {
                "There is no service file: name one in PGSERVICEFILE, or write ~/.pg_service.conf.".to_owned()
            }
            Self::UnknownService { read, .. } => {
                let read: Vec<_> = read.iter().map(|path| path.display().to_string()).collect();
                format!("Read: {}.", read.join(", "))
            }
            Self::NoUser => "Name the user with -U, user= or PGUSER.".to_owned(),
            Self::Counts { .. } => "Give one for each host, separated by commas.".to_owned(),
            Self::UnknownKey { .. }
            | Self::Bytes { .. }
            | Self::Unsupported { .. }
            | Self::Contradiction(_)
            | Self::ReadServiceFile { .. }
            | Self::ServiceLine { .. } => return None,
        })
    }
}
