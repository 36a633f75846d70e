//! Where a repository is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Class, Explain};

/// A repository's address: `PATH`, `file:///PATH` or `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepoUrl {
    /// A folder on this machine.
    Folder(PathBuf),
    /// A prefix (may be empty) in a bucket of S3 or a store that speaks its protocol.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// Without slashes at either end.
        prefix: String,
    },
}

impl RepoUrl {
    /// The folder, where it is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(path) => Some(path),
            Self::S3 { .. } => None,
        }
    }

    /// The same repository, named so that it is found from any working directory.
    #[must_use]
    pub fn from_folder(self, current: &Path) -> Self {
        match self {
            Self::Folder(path) => Self::Folder(current.join(path)),
            other => other,
        }
    }
}

impl fmt::Display for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// A text that names no repository we can open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" names no repository: {why}")]
pub struct ParseUrlError {
    text: String,
    why: &'static str,
}

impl Explain for ParseUrlError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("write a folder's path, file:///PATH, or s3://BUCKET/PREFIX".to_owned())
    }
}

impl FromStr for RepoUrl {
    type Err = ParseUrlError;

    fn from_str(text: &str) -> Result<Self, ParseUrlError> {
        let refused = |why| ParseUrlError {
            text: text.to_owned(),
            why,
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return if text.is_empty() {
                Err(refused("it is empty"))
            } else {
                Ok(Self::Folder(PathBuf::from(text)))
            };
        };
        match scheme {
            "file" => match rest.strip_prefix("localhost").unwrap_or(rest) {
                path if path.starts_with('/') => Ok(Self::Folder(PathBuf::from(path))),
                _ => Err(refused("after file:// comes an absolute path, so three slashes in all")),
            },
            "s3" => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(refused("the bucket is missing"));
                }
                if bucket.contains('@') || rest.contains('?') {
                    // What stands there may be a key: it is not repeated.
                    let text = "s3://…".to_owned();
                    let why = "credentials and options don't belong into the address";
                    return Err(ParseUrlError { text, why });
                }
                Ok(Self::S3 {
                    bucket: bucket.to_owned(),
                    prefix: prefix.trim_matches('/').to_owned(),
                })
            }
            "gs" | "az" | "sftp" => Err(refused("stores of this kind are not supported by this version")),
            _ => Err(refused("its scheme is unknown")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        for (text, printed) in [
            ("/var/backups/pg", "/var/backups/pg"),
            ("file:///var/backups/pg", "/var/backups/pg"),
            ("backups", "backups"),
            ("s3://b", "s3://b"),
            ("s3://b/", "s3://b"),
            ("s3://b/a/c/", "s3://b/a/c"),
        ] {
            assert_eq!(
                text.parse::<RepoUrl>().map(|url| url.to_string()),
                Ok(printed.to_owned())
            );
        }
        for text in [
            "",
            "s3://",
            "s3:///x",
            "file://x",
            "ftp://h/p",
            "sftp://h/p",
            "s3://k:s@b/p",
        ] {
            assert!(text.parse::<RepoUrl>().is_err(), "{text}");
        }
    }
}
