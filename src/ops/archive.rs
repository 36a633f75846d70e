//! `pgp-archive`: one WAL file becomes durable in the repository.
//!
//! Nothing is believed but the file itself: its first page must tell the cluster, the address and
//! the segment size that its name and the data directory tell (rule 4). What this returns `Ok` for
//! is in the repository for good (rule 1), and never in the place of something else (rule 2).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::local::{LocalCluster, LocalError};
use crate::error::{Class, Explain, Failure};
use crate::pg::{
    FirstPage, LongHeader, MajorVersion, PageError, ParseWalNameError, SegmentSize, WalFileName, check_first_page,
};
use crate::repo::{self, ClusterInfo, Repository, Stored, WalContent, WalHead, WalSource};
use crate::store::Store;
use crate::wal::WalLayout;

/// zstd's level for WAL unless told otherwise: the archiver must keep up with the server.
pub const LEVEL: i32 = 1;

/// A text about WAL (history, backup) is some lines; a larger file is something else.
const TEXT_LIMIT: u64 = 1 << 20;

/// A file that is not what the archive takes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// A name that PostgreSQL gives to no file it archives.
    #[error("{} was refused", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ParseWalNameError,
    },
    /// The file can't be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// Its first page contradicts its name or its size.
    #[error("{} was refused", path.display())]
    Page {
        /// The file.
        path: PathBuf,
        /// How.
        source: PageError,
    },
    /// The data directory tells otherwise.
    #[error("{} was refused: its {what} is {found}, but global/pg_control tells {expected}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Which fact.
        what: &'static str,
        /// In the file.
        found: String,
        /// In the data directory.
        expected: String,
    },
    /// Nothing tells whose file it is.
    #[error("{} does not tell its cluster, and no global/pg_control is at hand", path.display())]
    NoCluster {
        /// The file.
        path: PathBuf,
    },
    /// A text that is no text.
    #[error("{} was refused: {len} bytes are too many for such a file", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
}

impl Explain for ArchiveError {
    fn class(&self) -> Class {
        match self {
            Self::Read { .. } => Class::Failed,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Name { .. } => "archive_command = 'pgp-archive %p' passes the right names",
            Self::Read { .. } => "PostgreSQL runs archive_command in the data directory: %p is relative to it",
            Self::Page { .. } | Self::TooLong { .. } => {
                "the file was renamed, cut or damaged; nothing was stored, and the server keeps its copy"
            }
            Self::Foreign { .. } => "the file belongs to another cluster than this data directory",
            Self::NoCluster { .. } => "run it in the data directory, as PostgreSQL does",
        };
        Some(text.to_owned())
    }
}

/// Archives the file at `path`. `data_directory` is where PostgreSQL runs the command.
///
/// Steps, and what a crash after each leaves:
/// 1. marker, cluster and identity are read: nothing;
/// 2. `cluster.json` is created: a cluster without WAL;
/// 3. the object is created in one step: the file, whole.
///
/// # Errors
/// A file that is not what its name says, other content under the same name, or the store.
pub async fn archive(store: &Store, path: &Path, data_directory: &Path, level: i32) -> Result<Stored, Failure> {
    let (source, info) = inspect(path, data_directory)?;
    let (repository, known_cluster, known_file) = tokio::join!(
        Repository::open(store),
        ClusterInfo::read(store, info.system),
        repo::identity(store, source.head.system, source.head.file),
    );
    // The marker first: without it, what the others say means nothing.
    let repository = repository?;
    info.bind(&repository, known_cluster?).await?;
    Ok(repo::push(&repository, &source, level, known_file?).await?)
}

/// Reads of the file all that decides where it belongs.
fn inspect(path: &Path, data_directory: &Path) -> Result<(WalSource, ClusterInfo), Failure> {
    let file = name_of(path)?;
    let read = |source| ArchiveError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut opened = File::open(path).map_err(read)?;
    let metadata = opened.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(read(io::Error::other("it is not a regular file")).into());
    }
    let local = at_hand(path, data_directory)?;
    let (info, page_magic) = if file.is_wal() {
        let mut page = [0; LongHeader::BYTES];
        let len = read_up_to(&mut opened, &mut page).map_err(read)?;
        let first = check_first_page(file, &page[..len], metadata.len()).map_err(|source| ArchiveError::Page {
            path: path.to_path_buf(),
            source,
        })?;
        (info_of(path, &first, local.as_ref())?, first.header.page.magic)
    } else {
        let local = local.ok_or_else(|| ArchiveError::NoCluster {
            path: path.to_path_buf(),
        })?;
        if metadata.len() > TEXT_LIMIT {
            return Err(ArchiveError::TooLong {
                path: path.to_path_buf(),
                len: metadata.len(),
            }
            .into());
        }
        (local.info(), 0)
    };
    let head = WalHead {
        file,
        system: info.system,
        segment_size: info.segment_size.bytes() as u32,
        page_magic,
        len: metadata.len(),
        modified_at: metadata.modified().map(DateTime::<Utc>::from).unwrap_or_default(),
        layout: WalLayout::new(info.major, info.segment_size, info.wal_page_size)
            .ok()
            .filter(|_| file.is_wal()),
    };
    let content = WalContent::File(path.to_path_buf());
    Ok((WalSource { head, content }, info))
}

/// The cluster that a segment's first page tells of; where a data directory is at hand, it must tell
/// the same.
fn info_of(path: &Path, first: &FirstPage, local: Option<&LocalCluster>) -> Result<ClusterInfo, ArchiveError> {
    // A page magic of a later major is archived all the same, if something tells which major it is.
    let major = first.version.or(local.map(|local| local.major));
    let info = ClusterInfo {
        system: first.header.system,
        major: major.ok_or_else(|| ArchiveError::NoCluster {
            path: path.to_path_buf(),
        })?,
        segment_size: first.header.segment_size,
        wal_page_size: first.header.page_size,
    };
    let foreign = |what, found: String, expected: String| {
        Err(ArchiveError::Foreign {
            path: path.to_path_buf(),
            what,
            found,
            expected,
        })
    };
    let Some(expected) = local.map(LocalCluster::info) else {
        return Ok(info);
    };
    if info.system != expected.system {
        return foreign(
            "system identifier",
            info.system.to_string(),
            expected.system.to_string(),
        );
    }
    if info.segment_size != expected.segment_size {
        let text = |size: SegmentSize| format!("{} bytes", size.bytes());
        return foreign("segment size", text(info.segment_size), text(expected.segment_size));
    }
    if info.major != expected.major {
        let text = |major: MajorVersion| format!("PostgreSQL {}", major.number());
        return foreign("version", text(info.major), text(expected.major));
    }
    Ok(info)
}

fn name_of(path: &Path) -> Result<WalFileName, ArchiveError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.parse().map_err(|source| ArchiveError::Name {
        path: path.to_path_buf(),
        source,
    })
}

/// The cluster of the directory we run in, or of the one whose `pg_wal` the file lies in.
fn at_hand(path: &Path, data_directory: &Path) -> Result<Option<LocalCluster>, LocalError> {
    if let Some(local) = LocalCluster::read(data_directory)? {
        return Ok(Some(local));
    }
    match path.parent().and_then(Path::parent) {
        Some(above) if path.is_absolute() => LocalCluster::read(above),
        _ => Ok(None),
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..])? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}
