//! What a store can refuse.

use std::fmt;
use std::io;
use std::time::Duration;

use super::RepoUrl;
use crate::error::{Class, Explain, on_one_line};

const ROOM: &str = "make room there; nothing was stored half";

/// A store that could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store answered that we may not.
    #[error("the store refused to {doing} {object}")]
    Refused {
        /// The verb.
        doing: &'static str,
        /// The object, with the store's name in front.
        object: String,
        /// Whether it is a bucket (credentials) or a folder (permissions).
        bucket: bool,
        /// What it said.
        source: Said,
    },
    /// No answer, or one that says "not now".
    #[error("could not {doing} {object}")]
    Unreachable {
        /// The verb.
        doing: &'static str,
        /// The object, with the store's name in front.
        object: String,
        /// What happened.
        source: Said,
    },
    /// The time for the operation, retries included, is over.
    #[error("no answer from the store within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The store can't do what we need at all.
    #[error("the store cannot {doing} {object}")]
    Unsupported {
        /// The verb.
        doing: &'static str,
        /// The object, with the store's name in front.
        object: String,
        /// What it said.
        source: Said,
    },
    /// A file of the store's folder.
    #[error("could not {doing} {object}")]
    Io {
        /// The verb.
        doing: &'static str,
        /// The object, with the store's name in front.
        object: String,
        /// What the file system says.
        source: io::Error,
    },
    /// An object that must be small isn't.
    #[error("{object} has {size} bytes where at most {limit} make sense")]
    TooLarge {
        /// The object, with the store's name in front.
        object: String,
        /// Its size in bytes.
        size: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The folder of a folder repository can't be used.
    #[error("no repository at {url}")]
    NoFolder {
        /// The repository.
        url: RepoUrl,
        /// What the file system says.
        source: Said,
    },
    /// Settings from which no client can be made.
    #[error("the settings for {url} do not make sense")]
    Settings {
        /// The repository.
        url: RepoUrl,
        /// Why not.
        source: Said,
    },
}

impl StoreError {
    pub(super) fn of(doing: &'static str, object: &str, url: &RepoUrl, error: object_store::Error) -> Self {
        use object_store::Error as E;
        let object = object.to_owned();
        match error {
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Self::Refused {
                doing,
                object,
                bucket: url.folder().is_none(),
                source: Said(error),
            },
            E::NotSupported { .. } | E::NotImplemented { .. } | E::InvalidPath { .. } => Self::Unsupported {
                doing,
                object,
                source: Said(error),
            },
            _ => Self::Unreachable {
                doing,
                object,
                source: Said(error),
            },
        }
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            // A full or read-only disk stays so for longer than a retry; a network may come back.
            Self::Unreachable { source, .. } => io_cause(source).is_none_or(|error| {
                !matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull
                        | io::ErrorKind::QuotaExceeded
                        | io::ErrorKind::ReadOnlyFilesystem
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::FileTooLarge
                )
            }),
            _ => false,
        }
    }
}

/// What a store said, shortened: an S3 server's answer is a page of XML, of which a code and a
/// sentence are for people.
#[derive(Debug)]
pub struct Said(object_store::Error);

impl From<object_store::Error> for Said {
    fn from(error: object_store::Error) -> Self {
        Self(error)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = on_one_line(&self.0);
        let Some(at) = text.find("<?xml").or_else(|| text.find("<Error>")) else {
            return f.write_str(&text);
        };
        let within = |tag: &str| {
            let (_, rest) = text[at..].split_once(&format!("<{tag}>"))?;
            Some(rest.split_once(&format!("</{tag}>"))?.0)
        };
        let before = text[..at].trim_end_matches([' ', ':']);
        match (within("Code"), within("Message")) {
            (Some(code), Some(message)) => write!(f, "{before}: {code}: {message}"),
            _ => f.write_str(before),
        }
    }
}

/// Its causes are in its text already.
impl std::error::Error for Said {}

fn io_cause(error: &Said) -> Option<&io::Error> {
    let mut next = std::error::Error::source(&error.0);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = cause.source();
    }
    None
}

impl Explain for StoreError {
    fn class(&self) -> Class {
        match self {
            Self::Settings { .. } | Self::Unsupported { .. } => Class::Usage,
            Self::TooLarge { .. } => Class::Damaged,
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::Timeout(_)
            | Self::Io { .. }
            | Self::NoFolder { .. } => Class::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { bucket: true, .. } => Some(
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (in the environment of this process, or as \
                 [s3] in pgp.toml) and what the key may do in that bucket"
                    .to_owned(),
            ),
            Self::Refused { bucket: false, .. } => {
                Some("check the owner and the permissions of the repository's folder".to_owned())
            }
            Self::Unreachable { source, .. }
                if io_cause(source).is_some_and(|e| e.kind() == io::ErrorKind::StorageFull) =>
            {
                Some(ROOM.to_owned())
            }
            Self::Unreachable { source, .. } if source.to_string().contains("169.254.") => Some(
                "no credentials were given and no instance role answered: set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY"
                    .to_owned(),
            ),
            Self::Unreachable { .. } | Self::Timeout(_) => {
                Some("check that the store is up and that this host reaches it, then try again".to_owned())
            }
            Self::NoFolder { .. } => Some("mounted? else `pgp-pitr init`".to_owned()),
            Self::TooLarge { .. } => Some("something else lies at that name: look at it by hand".to_owned()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Some(ROOM.to_owned()),
            Self::Io { .. } => {
                Some("check the disk, and the owner and the permissions of the repository's folder".to_owned())
            }
            Self::Settings { .. } => Some(
                "check the AWS_* variables of this process and [s3] in pgp.toml: a key has an id and a secret"
                    .to_owned(),
            ),
            Self::Unsupported { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_page_of_xml_a_code_and_a_sentence_are_told() {
        let source = "403 Forbidden: <?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code>\
                      <Message>Not you.</Message><StringToSign>AWS4</StringToSign></Error>";
        let error = object_store::Error::PermissionDenied {
            path: "pgp.json".to_owned(),
            source: source.into(),
        };
        let text = Said(error).to_string();
        assert!(text.ends_with("403 Forbidden: AccessDenied: Not you."), "{text}");
        let plain = object_store::Error::Generic {
            store: "S3",
            source: "connection refused".into(),
        };
        assert_eq!(Said(plain).to_string(), "Generic S3 error: connection refused");
    }
}
