//! What a repository can refuse.

use crate::codec::{CompressError, Digest};
use crate::error::{Class, Explain};
use crate::pg::{Lsn, SystemId, Timeline, WalFileName};
use crate::store::StoreError;

/// A repository that could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// The store answers, and there is no marker.
    #[error("no repository at {url}")]
    NoRepository {
        /// Where it should be.
        url: String,
    },
    /// An object in a format of a later version.
    #[error("{object} has format {found}, this version reads up to {known}")]
    NewerFormat {
        /// The object.
        object: String,
        /// Its format.
        found: u32,
        /// The newest that we read.
        known: u32,
    },
    /// An object that fails its checksum, or isn't what its name says.
    #[error("{object} is damaged: {why}")]
    Damaged {
        /// The object.
        object: String,
        /// What was found.
        why: String,
    },
    /// The same name with other content.
    #[error(
        "{file} of cluster {system} is in the repository already with other content ({object} holds {stored}, the new file has {new})"
    )]
    Conflict {
        /// The WAL file.
        file: WalFileName,
        /// Its cluster.
        system: SystemId,
        /// The object that is there.
        object: String,
        /// Its content's digest.
        stored: Digest,
        /// The new content's digest.
        new: Digest,
    },
    /// The same stretch of WAL with other content.
    #[error(
        "the WAL from {from} to {to} on timeline {timeline} of cluster {system} is in the repository already with \
         other content ({object} holds {stored}, the new piece has {new})"
    )]
    PieceConflict {
        /// The cluster.
        system: SystemId,
        /// The timeline.
        timeline: Timeline,
        /// Where the stretch begins.
        from: Lsn,
        /// Where it ends.
        to: Lsn,
        /// The object that is there.
        object: String,
        /// Its content's digest.
        stored: Digest,
        /// The new content's digest.
        new: Digest,
    },
    /// Bytes that are no piece of one segment.
    #[error("the WAL from {from} to {to} can't be stored as one piece: {why}")]
    NoPiece {
        /// Where they begin.
        from: Lsn,
        /// Where they end.
        to: Lsn,
        /// Why not.
        why: &'static str,
    },
    /// A cluster that is bound to other facts.
    #[error("cluster {system} is in the repository with {what} {bound}, but this file tells {found}")]
    ClusterMismatch {
        /// The cluster.
        system: SystemId,
        /// Which fact.
        what: &'static str,
        /// What the repository has.
        bound: String,
        /// What was found now.
        found: String,
    },
    /// An object that must be new is there with other content.
    #[error("{object} is there already with other content")]
    Taken {
        /// The object.
        object: String,
    },
    /// The file that is to be stored can't be read, or the one to be written can't be written.
    #[error("could not {doing} {file}")]
    File {
        /// The verb.
        doing: &'static str,
        /// The file.
        file: String,
        /// What the file system says.
        source: std::io::Error,
    },
    /// Compression failed.
    #[error("could not compress {file}")]
    Compress {
        /// The file.
        file: String,
        /// What zstd says.
        source: CompressError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Explain for RepoError {
    fn class(&self) -> Class {
        match self {
            Self::NoRepository { .. } => Class::Unavailable,
            Self::NewerFormat { .. } | Self::ClusterMismatch { .. } => Class::Usage,
            Self::Damaged { .. } => Class::Damaged,
            Self::Conflict { .. }
            | Self::PieceConflict { .. }
            | Self::NoPiece { .. }
            | Self::Taken { .. }
            | Self::File { .. }
            | Self::Compress { .. } => Class::Failed,
            Self::Store(error) => error.class(),
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoRepository { .. } => "mounted? else `pgp-pitr init`",
            Self::NewerFormat { .. } => "install the version of pgp-pitr that wrote it, or a later one",
            Self::Damaged { .. } => {
                "restore that object from a copy of the repository, or choose another backup or target"
            }
            Self::Conflict { .. } | Self::PieceConflict { .. } => {
                "the first copy is untouched: is another server, or a copy of this one that was promoted, archiving \
                 into this repository?"
            }
            Self::ClusterMismatch { .. } => "after pg_resetwal --wal-segsize, archive into a new repository",
            Self::Taken { .. } => "another run writes the same thing: try again",
            Self::File { .. } => "check its permissions and the room on its disk",
            Self::Compress { .. } | Self::NoPiece { .. } => return None,
            Self::Store(error) => return error.hint(),
        };
        Some(text.to_owned())
    }
}
