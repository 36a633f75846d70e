//! `backup_manifest`: the server's list of all files of a base backup, with sizes and checksums.
//!
//! The list of a large cluster has hundreds of megabytes, so it is read piece by piece: [`ManifestReader`] keeps one
//! line and hands out each file as it comes. It reads the form that servers and `pg_combinebackup` write, one JSON
//! value on each line; another layout of the same JSON is refused. The manifest ends with the SHA-256 of everything
//! before its last line, so what was handed out is only to be trusted once [`ManifestReader::finish`] agrees.

use aws_lc_rs::digest::{Context, SHA256};
use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Deserialize;

use super::{Lsn, SystemId, Timeline};
use crate::error::{Class, Explain};

/// The longest line that is read, in bytes: a path of 4096 bytes in its longest encoding, and the rest, ten times over.
const MAX_LINE: usize = 256 << 10;

/// How the checksum of a file was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChecksumAlgorithm {
    /// CRC-32C, its four bytes lowest first.
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl ChecksumAlgorithm {
    /// The name in the manifest, and how many bytes a checksum has.
    const NAMES: [(&str, Self, usize); 5] = [
        ("CRC32C", Self::Crc32c, 4),
        ("SHA224", Self::Sha224, 28),
        ("SHA256", Self::Sha256, 32),
        ("SHA384", Self::Sha384, 48),
        ("SHA512", Self::Sha512, 64),
    ];
}

/// One file of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Its path below the data directory, tablespaces as `pg_tblspc/OID/…`. Bytes, not always UTF-8.
    pub path: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last changed.
    pub modified: DateTime<Utc>,
    /// Its checksum, unless the backup was made without.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
}

/// WAL that the backup needs to become consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline it is on.
    pub timeline: Timeline,
    /// Its first byte.
    pub start: Lsn,
    /// The byte after its last.
    pub end: Lsn,
}

/// What a manifest tells beside its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// 1, or 2 from major 17 on.
    pub version: u32,
    /// The cluster; told from version 2 on.
    pub system: Option<SystemId>,
    /// How many files it lists.
    pub files: u64,
    /// How many bytes they have together.
    pub bytes: u64,
    /// The WAL that the backup needs, one range for each timeline.
    pub wal: Vec<WalRange>,
    /// Its own SHA-256, verified.
    pub checksum: [u8; 32],
}

/// What the next line must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Version,
    System,
    FilesBegin,
    File,
    FilesEnd,
    WalBegin,
    Wal,
    WalEnd,
    Checksum,
    Nothing,
}

/// Reads a manifest piece by piece.
pub struct ManifestReader {
    place: Place,
    /// The line that is not whole yet.
    line: Vec<u8>,
    lines: u64,
    hash: Context,
    manifest: Manifest,
}

impl Default for ManifestReader {
    fn default() -> Self {
        Self {
            place: Place::Version,
            line: Vec::new(),
            lines: 0,
            hash: Context::new(&SHA256),
            manifest: Manifest {
                version: 0,
                system: None,
                files: 0,
                bytes: 0,
                wal: Vec::new(),
                checksum: [0; 32],
            },
        }
    }
}

impl ManifestReader {
    /// A reader at the start of a manifest.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and hands each file in them to `on_file`, in the manifest's order.
    pub fn push(&mut self, mut bytes: &[u8], on_file: &mut dyn FnMut(ManifestFile)) -> Result<(), ManifestError> {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (head, tail) = bytes.split_at(end + 1);
            bytes = tail;
            self.extend_line(head)?;
            let line = std::mem::take(&mut self.line);
            self.lines += 1;
            self.take_line(&line, on_file)?;
            self.line = line;
            self.line.clear();
        }
        self.extend_line(bytes)
    }

    /// Says that the manifest has ended. Fails if it has not, or if its checksum is wrong.
    pub fn finish(self) -> Result<Manifest, ManifestError> {
        if self.place != Place::Nothing || !self.line.is_empty() {
            return Err(ManifestError::Unfinished { line: self.lines + 1 });
        }
        Ok(self.manifest)
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), ManifestError> {
        if self.line.len() + bytes.len() > MAX_LINE {
            return Err(ManifestError::LineTooLong { line: self.lines + 1 });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], on_file: &mut dyn FnMut(ManifestFile)) -> Result<(), ManifestError> {
        if self.place == Place::Checksum {
            return self.take_checksum(line);
        }
        self.hash.update(line);
        let text = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n'));
        let next = text.and_then(|text| self.take_text(text, on_file));
        self.place = next.ok_or_else(|| self.bad_line(line))?;
        Ok(())
    }

    /// Takes a line before the last; answers with what the one after it must be.
    fn take_text(&mut self, text: &str, on_file: &mut dyn FnMut(ManifestFile)) -> Option<Place> {
        // What stands on a line of its own has a comma, unless it is the last of a list.
        let (value, more) = text.strip_suffix(',').map_or((text, false), |value| (value, true));
        match (self.place, text) {
            (Place::Version, _) => {
                let version = value.strip_prefix(r#"{ "PostgreSQL-Backup-Manifest-Version": "#)?;
                self.manifest.version = version.parse().ok().filter(|version| (1..=2).contains(version))?;
                Some(if version == "1" {
                    Place::FilesBegin
                } else {
                    Place::System
                })
            }
            (Place::System, _) => {
                let system = value.strip_prefix(r#""System-Identifier": "#)?;
                self.manifest.system = Some(system.parse().ok()?);
                Some(Place::FilesBegin)
            }
            (Place::FilesBegin, r#""Files": ["#) => Some(Place::File),
            (Place::File, _) => {
                let file = read_file(value)?;
                self.manifest.files += 1;
                self.manifest.bytes = self.manifest.bytes.saturating_add(file.size);
                on_file(file);
                Some(if more { Place::File } else { Place::FilesEnd })
            }
            (Place::FilesEnd, "],") => Some(Place::WalBegin),
            (Place::WalBegin, r#""WAL-Ranges": ["#) => Some(Place::Wal),
            (Place::Wal, _) => {
                self.manifest.wal.push(read_range(value)?);
                Some(if more { Place::Wal } else { Place::WalEnd })
            }
            (Place::WalEnd, "],") => Some(Place::Checksum),
            _ => None,
        }
    }

    /// Takes the last line and compares what it tells with the lines before it.
    fn take_checksum(&mut self, line: &[u8]) -> Result<(), ManifestError> {
        let told = line
            .strip_prefix(br#""Manifest-Checksum": ""#)
            .and_then(|rest| rest.strip_suffix(b"\"}\n"))
            .and_then(|digits| <[u8; 32]>::try_from(unhex(digits)?).ok());
        let told = told.ok_or_else(|| self.bad_line(line))?;
        let computed = std::mem::replace(&mut self.hash, Context::new(&SHA256)).finish();
        if computed.as_ref() != told {
            return Err(ManifestError::Checksum);
        }
        self.manifest.checksum = told;
        self.place = Place::Nothing;
        Ok(())
    }

    fn bad_line(&self, line: &[u8]) -> ManifestError {
        let text = String::from_utf8_lossy(line);
        match (
            self.place,
            text.strip_prefix(r#"{ "PostgreSQL-Backup-Manifest-Version": "#),
        ) {
            (Place::Version, Some(version)) => ManifestError::Version(version.trim_end_matches(",\n").to_owned()),
            _ => ManifestError::Line {
                line: self.lines,
                // Enough to recognize it by.
                text: text.trim_end().chars().take(200).collect(),
            },
        }
    }
}

/// A file's line, as JSON.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct FileLine {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    checksum_algorithm: Option<String>,
    checksum: Option<String>,
}

fn read_file(json: &str) -> Option<ManifestFile> {
    let line: FileLine = serde_json::from_str(json).ok()?;
    let path = match (line.path, line.encoded_path) {
        (Some(path), None) => path.into_bytes(),
        (None, Some(hex)) => unhex(hex.as_bytes())?,
        _ => return None,
    };
    let checksum = match (line.checksum_algorithm, line.checksum) {
        (None, None) => None,
        (Some(name), Some(hex)) => {
            let mut names = ChecksumAlgorithm::NAMES.into_iter();
            let (_, algorithm, length) = names.find(|(known, ..)| *known == name)?;
            Some((algorithm, unhex(hex.as_bytes()).filter(|bytes| bytes.len() == length)?))
        }
        _ => return None,
    };
    let modified = NaiveDateTime::parse_from_str(&line.last_modified, "%Y-%m-%d %H:%M:%S GMT").ok()?;
    Some(ManifestFile {
        path: Some(path).filter(|path| !path.is_empty())?,
        size: line.size,
        modified: modified.and_utc(),
        checksum,
    })
}

/// A WAL range's line, as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeLine {
    #[serde(rename = "Timeline")]
    timeline: Timeline,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

fn read_range(json: &str) -> Option<WalRange> {
    let RangeLine { timeline, start, end } = serde_json::from_str(json).ok()?;
    (start <= end).then_some(WalRange { timeline, start, end })
}

fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    let pairs = digits.chunks(2).map(|pair| match *pair {
        [high, low] => u8::try_from(value(high)? << 4 | value(low)?).ok(),
        _ => None,
    });
    pairs.collect()
}

/// Why a manifest can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A version that is not known.
    #[error("backup_manifest has version {0}; only 1 and 2 are known")]
    Version(String),
    /// A line that can't stand there.
    #[error("line {line} of backup_manifest is damaged: {text}")]
    Line {
        /// Which line, from 1.
        line: u64,
        /// How it begins.
        text: String,
    },
    /// A line longer than any that a server writes.
    #[error("line {line} of backup_manifest is longer than {MAX_LINE} bytes")]
    LineTooLong {
        /// Which line, from 1.
        line: u64,
    },
    /// It ends too early, or something follows its end.
    #[error("backup_manifest ends before its line {line} is whole")]
    Unfinished {
        /// Which line, from 1.
        line: u64,
    },
    /// Its lines are not those that the server wrote.
    #[error("backup_manifest fails its own checksum")]
    Checksum,
}

impl Explain for ManifestError {
    fn class(&self) -> Class {
        match self {
            Self::Version(_) => Class::Usage,
            _ => Class::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        matches!(self, Self::Version(_)).then(|| "look for a newer version of this program.".to_owned())
    }
}

#[cfg(test)]
mod tests;
