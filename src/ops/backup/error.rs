//! Why there is no backup.

use crate::error::{Class, Explain};
use crate::pg::SegmentName;

/// A backup that could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Nothing brings WAL into the repository, so the backup could never be restored.
    #[error("no WAL of this server reaches {repository}: {why}")]
    NoWal {
        /// The repository.
        repository: String,
        /// What was seen.
        why: String,
    },
    /// The backup's own WAL did not arrive in time.
    #[error("WAL segment {segment}, which the backup needs, did not reach {repository} within {waited}{why}")]
    WalMissing {
        /// The first segment that is missing.
        segment: SegmentName,
        /// The repository.
        repository: String,
        /// How long was waited.
        waited: String,
        /// What the server's archiver says, with what goes in front of it.
        why: String,
    },
    /// The slot is not there.
    #[error("there is no replication slot \"{0}\"")]
    NoSlot(String),
    /// The stream ended without saying where.
    #[error("the server ended the backup without saying where it is consistent")]
    NoEnd,
    /// The manifest can't be compressed.
    #[error("could not compress backup_manifest")]
    Manifest(#[source] std::io::Error),
}

impl Explain for BackupError {
    fn class(&self) -> Class {
        match self {
            Self::NoWal { .. } | Self::WalMissing { .. } => Class::OutOfReach,
            Self::NoSlot(_) => Class::Usage,
            Self::NoEnd => Class::Unavailable,
            Self::Manifest(_) => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoWal { .. } => {
                "set archive_mode = on and archive_command = 'pgp-archive %p --repo URL' (`pgp-pitr check` tells the \
                 exact lines), then try again"
            }
            Self::WalMissing { .. } => {
                "the backup was not kept; see what the archiver says in the server's log, and `pgp-pitr check`"
            }
            Self::NoSlot(_) => "create it with pg_create_physical_replication_slot('NAME', true)",
            Self::NoEnd | Self::Manifest(_) => return None,
        };
        Some(text.to_owned())
    }
}
