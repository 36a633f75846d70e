//! What can go wrong with the spool.

use std::io;
use std::path::PathBuf;

use crate::error::{Class, Explain};
use crate::pg::size::Size;
use crate::pg::{Lsn, Timeline};

/// A spool that can't do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// Less than it needs to work at all.
    #[error("the spool's limit of {limit} is too small")]
    Limit {
        /// The limit.
        limit: Size,
        /// The smallest that will do.
        least: Size,
    },
    /// Another process has it.
    #[error("another receiver uses the spool {}", folder.display())]
    InUse {
        /// The spool's folder.
        folder: PathBuf,
    },
    /// The file system refuses.
    #[error("could not {what} {}", path.display())]
    Io {
        /// What was to be done, as a verb.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// What was appended can't be made durable; it is taken back, and `end` says where to go on.
    #[error("could not make the spool file {} durable", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// A write or sync failed, and what it left could not be taken back. Only opening it anew helps.
    #[error("the spool {} can't be written to since an earlier error", folder.display())]
    Broken {
        /// The spool's folder.
        folder: PathBuf,
    },
    /// No room below the limit; nothing was appended.
    #[error("the spool is full: it holds {held} of {limit}")]
    Full {
        /// What it holds.
        held: Size,
        /// The limit.
        limit: Size,
    },
    /// The WAL does not go on where the spool ends; nothing was appended.
    #[error("WAL of timeline {timeline} from {found} does not follow what the spool holds, which ends at {expected}")]
    NotContiguous {
        /// The timeline.
        timeline: Timeline,
        /// Where the spool ends.
        expected: Lsn,
        /// Where the WAL begins.
        found: Lsn,
    },
    /// What was written is not what is read.
    #[error("the spool file {} is damaged at byte {offset}, WAL position {lsn} of timeline {timeline}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// The timeline of the WAL that should be there.
        timeline: Timeline,
        /// Its position.
        lsn: Lsn,
    },
}

impl Explain for SpoolError {
    fn class(&self) -> Class {
        match self {
            Self::Limit { .. } => Class::Usage,
            Self::InUse { .. } => Class::Unavailable,
            Self::Io { .. } | Self::Sync { .. } | Self::Broken { .. } | Self::Full { .. } => Class::Failed,
            Self::NotContiguous { .. } => Class::Failed,
            Self::Damaged { .. } => Class::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Limit { least, .. } => return Some(format!("give {least} or more")),
            Self::InUse { .. } => "give each receiver a slot or a --spool folder of its own",
            Self::Io { source, .. } | Self::Sync { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room there, or lower --spool-limit; the server keeps the WAL meanwhile"
            }
            Self::Io { .. } => "check the folder's owner and the disk",
            Self::Sync { .. } | Self::Broken { .. } => "check the disk; nothing beyond the last sync was acknowledged",
            Self::Full { .. } => "it is emptied as soon as the store takes WAL again",
            Self::Damaged { .. } => "the receiver asks the server for this WAL again, if the server still has it",
            Self::NotContiguous { .. } => return None,
        };
        Some(text.to_owned())
    }
}
