//! Base backups over the replication protocol, on every version from 13 on.
//!
//! [`BaseBackup::next`] pulls one event at a time: who takes none makes the server wait, so memory is bounded by one
//! message. Nothing is final before [`BackupEvent::Finished`]: the server may find at the very end that pages were damaged.

mod options;
mod parser;

use bytes::Bytes;

pub use options::{BackupOptionsError, BaseBackupOptions, Checkpoint, ManifestChecksum};

use super::ServerError;
use super::error::ReplicationError;
use super::session::ReplicationSession;
use super::tar::TarEntry;
use crate::pg::{Lsn, Timeline};
use parser::{ParseError, Parser, Shape};

/// A tablespace, or the data directory itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its number, which is also the name of its link in `pg_tblspc`; none for the data directory.
    pub oid: Option<u32>,
    /// Where it lies on the server, in bytes; empty for the data directory. A relative path is one within
    /// the data directory (`allow_in_place_tablespaces`).
    pub path: Bytes,
    /// About how large it is, in kB, if progress was asked for.
    pub size_kb: Option<u64>,
}

/// Where a base backup ended: it is consistent once WAL is replayed up to here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupEnd {
    /// The position.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
}

/// What a base backup brings, in this order; [`Self::Progress`] comes in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// The backup has begun: the checkpoint is made.
    Started {
        /// Where replay must begin.
        start_lsn: Lsn,
        /// On which timeline.
        timeline: Timeline,
        /// The data directory and all tablespaces.
        tablespaces: Vec<Tablespace>,
    },
    /// The contents of one of the tablespaces follow.
    ArchiveBegin {
        /// Which one: an index into the list of [`Self::Started`].
        tablespace: usize,
    },
    /// A file, directory or link. In the data directory, `pg_tblspc/OID` is a link for each tablespace
    /// (unless a map of them was asked for).
    Entry(TarEntry),
    /// A piece of the file's contents.
    Data(Bytes),
    /// The entry is complete.
    EntryEnd,
    /// The tablespace is complete.
    ArchiveEnd,
    /// How many bytes the server has sent; only from 15 on.
    Progress {
        /// Since the backup began.
        bytes: u64,
    },
    /// A piece of the `backup_manifest`.
    ManifestData(Bytes),
    /// All is there.
    Finished(BackupEnd),
}

/// A base backup on its way.
#[derive(Debug)]
pub struct BaseBackup<'a> {
    session: &'a mut ReplicationSession,
    parser: Parser,
    warnings: Vec<ServerError>,
}

/// What errors call the command.
const DOING: &str = "BASE_BACKUP";

impl ReplicationSession {
    /// Begins a base backup. The server answers when it has made its checkpoint, which may take long
    /// ([`Checkpoint::Spread`]).
    ///
    /// # Errors
    /// For options that no server takes, or when the command cannot be sent. What the server refuses is
    /// told by [`BaseBackup::next`].
    pub async fn base_backup(&mut self, options: &BaseBackupOptions) -> Result<BaseBackup<'_>, ReplicationError> {
        let command = options.command(self.server_version().major())?;
        let shape = match self.server_version().major().has_one_backup_stream() {
            true => Shape::CopyAll,
            false => Shape::CopyEach,
        };
        self.begin(DOING)?;
        if let Err(error) = self.wire().send_query(&command).await {
            return Err(self.failed(error));
        }
        Ok(BaseBackup {
            session: self,
            parser: Parser::new(shape, options.manifest.is_some()),
            warnings: Vec::new(),
        })
    }
}

impl BaseBackup<'_> {
    /// The next event; `None` after the last. May be dropped and called again.
    ///
    /// # Errors
    /// Where the server refuses or breaks off, sends what is no base backup, or found damaged pages.
    pub async fn next(&mut self) -> Result<Option<BackupEvent>, ReplicationError> {
        loop {
            match self.parser.next() {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) if self.parser.is_done() => {
                    self.session.ended();
                    return Ok(None);
                }
                Ok(None) => {}
                Err(error) => return Err(self.failed(error)),
            }
            let message = match self.session.wire().receive().await {
                Ok(message) => message,
                Err(error) => return Err(self.session.failed(error)),
            };
            if let Err(error) = self.parser.push(message) {
                return Err(self.failed(error));
            }
        }
    }

    /// The server's warnings so far, no more than the first thousand.
    pub fn warnings(&mut self) -> &[ServerError] {
        self.gather_warnings();
        &self.warnings
    }

    fn gather_warnings(&mut self) {
        self.warnings.extend(self.session.take_warnings());
    }

    fn failed(&mut self, error: ParseError) -> ReplicationError {
        self.gather_warnings();
        let at = self.session.address().clone();
        let doing = DOING.to_owned();
        if self.parser.is_done() {
            self.session.ended();
        }
        match error {
            ParseError::Refused(source) => ReplicationError::Server { at, doing, source },
            ParseError::DamagedPages { end, error } => ReplicationError::DamagedPages {
                at,
                warnings: self
                    .warnings
                    .iter()
                    .map(|warning| warning.message().to_owned())
                    .collect(),
                end,
                source: error,
            },
            ParseError::Protocol(what) => ReplicationError::Protocol { at, doing, what },
            ParseError::Tar { archive, source } => ReplicationError::Tar { at, archive, source },
            ParseError::Path(path) => ReplicationError::Path { at, path },
        }
    }
}
