//! The answer to `BASE_BACKUP`: messages in, events out. Sans-io.
//!
//! The answer is the start position; the tablespaces; the copies; the end position. Up to 14 there is one copy
//! for each tablespace, a plain tar, in the order of the list, and one more for the manifest. From 15 on there is
//! one copy for all, whose messages have a type byte: `n` a new archive, `m` the manifest, `d` their contents, `p` how far it is.

use bytes::{Buf, Bytes};

use super::{BackupEnd, BackupEvent, Tablespace};
use crate::pg::{Lsn, Timeline};
use crate::replication::message::{Backend, Row};
use crate::replication::server_error::Severity;
use crate::replication::session::Fields;
use crate::replication::tar::{TarError, TarEvent, TarReader};
use crate::replication::{ServerError, SqlState};

/// How many tablespaces are believed.
const MOST_TABLESPACES: usize = 10_000;

/// How long the path of one may be; PostgreSQL's own limit (`MAXPGPATH`) is 1024.
const LONGEST_PATH: usize = 4096;

/// Which of the two shapes the answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Up to 14.
    CopyEach,
    /// From 15 on.
    CopyAll,
}

/// Why the answer cannot be read on.
#[derive(Debug)]
pub(super) enum ParseError {
    /// The server gave up.
    Refused(ServerError),
    /// Pages failed their checksums; all the rest is as it should be.
    DamagedPages { end: Option<BackupEnd>, error: ServerError },
    /// The messages make no sense.
    Protocol(String),
    /// The archive is not one.
    Tar { archive: String, source: TarError },
    /// An entry that would lie outside the data directory.
    Path(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    Tablespaces,
    Copies,
    End,
    Done,
}

#[derive(Debug)]
enum Copy {
    None,
    /// A copy whose first archive has not begun.
    Waiting,
    Archive(TarReader),
    Manifest,
}

/// Reads one answer. Give it a message, then take events until there is none.
#[derive(Debug)]
pub(super) struct Parser {
    shape: Shape,
    /// Whether a manifest was asked for, and whether it came.
    manifest: (bool, bool),
    stage: Stage,
    copy: Copy,
    start: Option<(Lsn, Timeline)>,
    tablespaces: Vec<Tablespace>,
    /// How many archives have begun.
    archives: usize,
    /// The archive that is open, for messages and events.
    current: usize,
    end: Option<BackupEnd>,
    refusal: Option<ServerError>,
    /// At most two: the end of one archive and the beginning of the next.
    due: std::collections::VecDeque<BackupEvent>,
}

impl Parser {
    pub(super) fn new(shape: Shape, has_manifest: bool) -> Self {
        Self {
            shape,
            manifest: (has_manifest, false),
            stage: Stage::Start,
            copy: Copy::None,
            start: None,
            tablespaces: Vec::new(),
            archives: 0,
            current: 0,
            end: None,
            refusal: None,
            due: std::collections::VecDeque::new(),
        }
    }

    /// Whether the answer has been read to its end.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done && self.due.is_empty()
    }

    /// The next event that the messages so far contain.
    pub(super) fn next(&mut self) -> Result<Option<BackupEvent>, ParseError> {
        if let Some(event) = self.due.pop_front() {
            return Ok(Some(event));
        }
        let Copy::Archive(tar) = &mut self.copy else {
            return Ok(None);
        };
        match tar.next().map_err(|source| self.tar_error(source))? {
            None => Ok(None),
            Some(TarEvent::Entry(entry)) if leads_out(&entry.path) => Err(ParseError::Path(entry.path)),
            Some(TarEvent::Entry(entry)) => Ok(Some(BackupEvent::Entry(entry))),
            Some(TarEvent::Data(data)) => Ok(Some(BackupEvent::Data(data))),
            Some(TarEvent::EntryEnd) => Ok(Some(BackupEvent::EntryEnd)),
        }
    }

    /// Takes the next message. All events of the one before must have been taken.
    pub(super) fn push(&mut self, message: Backend) -> Result<(), ParseError> {
        match (self.stage, message) {
            (Stage::Copies, Backend::CopyData(data)) => self.copy_data(data),
            (Stage::Copies, Backend::CopyOut) => self.begin_copy(),
            (Stage::Copies, Backend::CopyDone) => self.end_copy(),
            (Stage::Start, Backend::Row(row)) => {
                self.start = Some(position(row).ok_or_else(|| unreadable("start position"))?);
                Ok(())
            }
            (Stage::Start, Backend::CommandComplete) => self.turn_to(Stage::Tablespaces),
            (Stage::Tablespaces, Backend::Row(row)) if self.tablespaces.len() < MOST_TABLESPACES => {
                self.tablespaces
                    .push(tablespace(row).ok_or_else(|| unreadable("list of tablespaces"))?);
                Ok(())
            }
            (Stage::Tablespaces, Backend::CommandComplete) => self.begin(),
            (Stage::Copies | Stage::End, Backend::Row(row)) if matches!(self.copy, Copy::None) => {
                let (lsn, timeline) = position(row).ok_or_else(|| unreadable("end position"))?;
                self.end = Some(BackupEnd { lsn, timeline });
                self.turn_to(Stage::End)
            }
            (_, Backend::Columns) | (Stage::End, Backend::CommandComplete) => Ok(()),
            (_, Backend::Error(error)) if error.severity() == Severity::Fatal => Err(ParseError::Refused(error)),
            (_, Backend::Error(error)) => {
                self.refusal = Some(error);
                Ok(())
            }
            (_, Backend::Ready) => self.finish(),
            (_, other) => Err(ParseError::Protocol(format!("{} at the wrong moment", other.name()))),
        }
    }

    fn turn_to(&mut self, stage: Stage) -> Result<(), ParseError> {
        self.stage = stage;
        Ok(())
    }

    fn begin(&mut self) -> Result<(), ParseError> {
        let (start_lsn, timeline) = self.start.ok_or_else(|| unreadable("start position"))?;
        let bases = self.tablespaces.iter().filter(|space| space.oid.is_none()).count();
        if bases != 1 {
            return Err(unreadable("list of tablespaces"));
        }
        self.due.push_back(BackupEvent::Started {
            start_lsn,
            timeline,
            tablespaces: self.tablespaces.clone(),
        });
        self.turn_to(Stage::Copies)
    }

    fn begin_copy(&mut self) -> Result<(), ParseError> {
        match (&self.copy, self.shape) {
            (Copy::None, Shape::CopyAll) if self.archives == 0 => self.copy = Copy::Waiting,
            (Copy::None, Shape::CopyEach) if self.archives < self.tablespaces.len() => {
                self.begin_archive(self.archives)
            }
            (Copy::None, Shape::CopyEach) if self.manifest == (true, false) => self.begin_manifest(),
            _ => return Err(ParseError::Protocol("one copy too many".to_owned())),
        }
        Ok(())
    }

    fn begin_archive(&mut self, index: usize) {
        self.archives += 1;
        self.current = index;
        self.copy = Copy::Archive(TarReader::new());
        self.due.push_back(BackupEvent::ArchiveBegin { tablespace: index });
    }

    fn begin_manifest(&mut self) {
        self.manifest.1 = true;
        self.copy = Copy::Manifest;
    }

    fn end_copy(&mut self) -> Result<(), ParseError> {
        self.end_archive()?;
        match std::mem::replace(&mut self.copy, Copy::None) {
            Copy::None => Err(ParseError::Protocol("the end of a copy that never began".to_owned())),
            _ => Ok(()),
        }
    }

    /// Closes the archive, if one is open.
    fn end_archive(&mut self) -> Result<(), ParseError> {
        if let Copy::Archive(tar) = &self.copy {
            tar.finish().map_err(|source| self.tar_error(source))?;
            self.due.push_back(BackupEvent::ArchiveEnd);
        }
        Ok(())
    }

    fn copy_data(&mut self, mut data: Bytes) -> Result<(), ParseError> {
        if self.shape == Shape::CopyEach {
            return self.contents(data);
        }
        if data.is_empty() {
            return Err(unreadable("empty piece"));
        }
        match data.get_u8() {
            b'd' => self.contents(data),
            b'p' if data.len() == 8 => {
                self.due.push_back(BackupEvent::Progress { bytes: data.get_u64() });
                Ok(())
            }
            b'm' if self.manifest == (true, false) => {
                self.end_archive()?;
                self.begin_manifest();
                Ok(())
            }
            b'n' if matches!(self.copy, Copy::Waiting | Copy::Archive(_)) => {
                self.end_archive()?;
                let index = self
                    .named_archive(&data)
                    .ok_or_else(|| unreadable("head of an archive"))?;
                self.begin_archive(index);
                Ok(())
            }
            kind => Err(ParseError::Protocol(format!(
                "a piece of type '{}'",
                kind.escape_ascii()
            ))),
        }
    }

    fn contents(&mut self, data: Bytes) -> Result<(), ParseError> {
        match &mut self.copy {
            Copy::Archive(tar) => tar.push(data),
            Copy::Manifest => self.due.push_back(BackupEvent::ManifestData(data)),
            Copy::None | Copy::Waiting => return Err(ParseError::Protocol("contents without an archive".to_owned())),
        }
        Ok(())
    }

    /// Which tablespace an archive named `base.tar` or `OID.tar` holds.
    fn named_archive(&self, head: &[u8]) -> Option<usize> {
        let name = std::str::from_utf8(head.split(|&b| b == 0).next()?).ok()?;
        let oid = match name.strip_suffix(".tar")? {
            "base" => None,
            oid => Some(oid.parse().ok()?),
        };
        self.tablespaces.iter().position(|space| space.oid == oid)
    }

    fn finish(&mut self) -> Result<(), ParseError> {
        self.stage = Stage::Done;
        match (self.refusal.take(), self.end) {
            (Some(error), end) if error.is(SqlState::DATA_CORRUPTED) && matches!(self.copy, Copy::None) => {
                Err(ParseError::DamagedPages { end, error })
            }
            (Some(error), _) => Err(ParseError::Refused(error)),
            (None, Some(end)) if self.archives == self.tablespaces.len() && self.manifest.0 == self.manifest.1 => {
                self.due.push_back(BackupEvent::Finished(end));
                Ok(())
            }
            (None, _) => Err(ParseError::Protocol(
                "the backup ended before it was complete".to_owned(),
            )),
        }
    }

    fn tar_error(&self, source: TarError) -> ParseError {
        let oid = self.tablespaces.get(self.current).and_then(|space| space.oid);
        ParseError::Tar {
            archive: oid.map_or_else(|| "base.tar".to_owned(), |oid| format!("{oid}.tar")),
            source,
        }
    }
}

fn unreadable(what: &str) -> ParseError {
    ParseError::Protocol(format!("an unreadable {what}"))
}

fn position(row: Row) -> Option<(Lsn, Timeline)> {
    let row = Fields(row);
    Some((row.parsed(0)?, row.parsed(1)?))
}

/// The data directory itself has neither number nor path.
fn tablespace(row: Row) -> Option<Tablespace> {
    let row = Fields(row);
    let oid = match row.0.first()? {
        None => None,
        Some(_) => Some(row.parsed(0)?),
    };
    let size_kb = match row.0.get(2)? {
        None => None,
        Some(_) => Some(row.parsed(2)?),
    };
    let path = row.0.get(1)?.clone().unwrap_or_default();
    (path.len() <= LONGEST_PATH).then_some(Tablespace { oid, path, size_kb })
}

/// Whether an entry of this name would be written outside the directory it belongs to. No server sends
/// such a name; one that does is after our files.
fn leads_out(path: &[u8]) -> bool {
    path.split(|&b| b == b'/').any(|part| part.is_empty() || part == b"..")
}

#[cfg(test)]
mod tests;
