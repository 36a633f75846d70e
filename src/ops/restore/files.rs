//! From packs to files.
//!
//! One pass over the packs, several at a time. Each frame is checked before any of it is written,
//! and each file must in the end have been covered to its last byte. `global/pg_control` is held
//! back: it comes last, after everything else is durable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::directory::{CONTROL, DirectoryError};
use crate::error::{Class, Explain, Failure};
use crate::repo::backup::BackupRecord;
use crate::repo::map::{FileEntry, FileKind, MappedFrame};
use crate::repo::reader::{self, PackReader};
use crate::repo::{PackRow, Repository};

/// Packs that are fetched from an object store at one time: each is held in memory, 32 MiB at most.
const DOWNLOADS: usize = 4;

/// A map that does not make whole files.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file of which bytes are missing, or come twice.
    #[error("backup {backup} is damaged: of {file}, {found} of {expected} bytes are in its packs")]
    Incomplete {
        /// The backup.
        backup: String,
        /// The file.
        file: String,
        /// Bytes found.
        found: u64,
        /// Bytes that it has.
        expected: u64,
    },
    /// A map that points at what isn't there.
    #[error("backup {backup} is damaged: its map points to {what}, which it does not have")]
    Dangling {
        /// The backup.
        backup: String,
        /// What.
        what: String,
    },
    /// A path that would lead out of the directory.
    #[error("backup {backup} has a file named {path}, which leads out of the data directory")]
    Outside {
        /// The backup.
        backup: String,
        /// The path.
        path: String,
    },
}

impl Explain for FilesError {
    fn class(&self) -> Class {
        Class::Damaged
    }

    fn hint(&self) -> Option<String> {
        Some("choose another backup with --backup; this directory can't be started and may be removed".to_owned())
    }
}

/// Where each file goes.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    /// OID and directory of each tablespace outside the data directory.
    pub(super) tablespaces: Vec<(u32, PathBuf)>,
}

impl Layout {
    fn path(&self, file: &FileEntry) -> PathBuf {
        let base = self
            .tablespaces
            .iter()
            .find(|(oid, _)| *oid == file.tablespace && file.tablespace != 0);
        match base {
            Some((_, folder)) => folder.join(file.path()),
            // A tablespace within the data directory.
            None if file.tablespace != 0 => self
                .root
                .join(format!("pg_tblspc/{}", file.tablespace))
                .join(file.path()),
            None => self.root.join(file.path()),
        }
    }

    /// Where the link of a tablespace points to; links of anything else keep their goal.
    fn link_target(&self, file: &FileEntry) -> PathBuf {
        let oid = file
            .path()
            .strip_prefix("pg_tblspc")
            .ok()
            .and_then(|name| name.to_str()?.parse::<u32>().ok());
        let mapped = self.tablespaces.iter().find(|(known, _)| Some(*known) == oid);
        match mapped {
            Some((_, folder)) => folder.clone(),
            None => PathBuf::from(std::ffi::OsStr::from_bytes(&file.target)),
        }
    }
}

/// Writes all files of a backup but `global/pg_control`, whose bytes are the answer. Nothing is
/// durable yet.
///
/// # Errors
/// A damaged backup, the store, or the file system.
pub(super) async fn unpack(
    repository: &Repository,
    record: &BackupRecord,
    layout: Layout,
    jobs: usize,
    tell: &mut dyn FnMut(u64),
) -> Result<Vec<u8>, Failure> {
    let files = reader::files(repository, record).await?;
    let packs = reader::packs(repository, record).await?;
    check_paths(record, &files)?;
    let work = Arc::new(Work {
        backup: record.id.to_string(),
        covered: files.iter().map(|_| AtomicU64::new(0)).collect(),
        control: Mutex::new(Vec::new()),
        written: AtomicU64::new(0),
        layout,
        files,
    });
    work.make_folders_and_links()?;
    let jobs = if repository.store().folder().is_some() {
        jobs
    } else {
        jobs.min(DOWNLOADS)
    };
    let mut running = FuturesUnordered::new();
    let mut part = 0;
    while let Some(frames) = reader::frames(repository, record, part).await? {
        part += 1;
        for group in by_pack(frames) {
            while running.len() >= jobs {
                joined(running.next().await)?;
                tell(work.written.load(Ordering::Relaxed));
            }
            let pack = packs
                .get(group[0].pack as usize)
                .cloned()
                .ok_or_else(|| work.dangling("a pack"))?;
            running.push(tokio::spawn(one_pack(
                repository.clone(),
                record.system_identifier,
                pack,
                group,
                work.clone(),
            )));
        }
    }
    while !running.is_empty() {
        joined(running.next().await)?;
        tell(work.written.load(Ordering::Relaxed));
    }
    work.finish()?;
    let control = std::mem::take(&mut *work.control.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(control)
}

async fn one_pack(
    repository: Repository,
    system: crate::pg::SystemId,
    pack: PackRow,
    frames: Vec<MappedFrame>,
    work: Arc<Work>,
) -> Result<(), Failure> {
    let refs: Vec<_> = frames.iter().map(|mapped| mapped.frame).collect();
    let mut reader = PackReader::open(&repository, system, &pack, &refs).await?;
    let written = tokio::task::spawn_blocking(move || {
        let mut open = None;
        frames.iter().try_for_each(|mapped| -> Result<(), Failure> {
            let content = reader.content(&mapped.frame)?;
            work.write(mapped, content, &mut open)
        })
    });
    joined(Some(written.await))
}

/// Frames of one part by pack, in order.
fn by_pack(frames: Vec<MappedFrame>) -> Vec<Vec<MappedFrame>> {
    let mut groups: Vec<Vec<MappedFrame>> = Vec::new();
    for frame in frames {
        match groups.last_mut() {
            Some(group) if group[0].pack == frame.pack => group.push(frame),
            _ => groups.push(vec![frame]),
        }
    }
    groups
}

/// A task's outcome. A panic in it goes on here; nobody cancels these tasks.
fn joined(outcome: Option<Result<Result<(), Failure>, tokio::task::JoinError>>) -> Result<(), Failure> {
    match outcome {
        None => Ok(()),
        Some(Ok(answer)) => answer,
        Some(Err(error)) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Ok(()),
        },
    }
}

/// No path of a backup may lead out of its directory, whatever wrote the backup.
fn check_paths(record: &BackupRecord, files: &[FileEntry]) -> Result<(), FilesError> {
    use std::path::Component;
    let inside = |path: &Path| {
        path.components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    };
    match files.iter().find(|file| !inside(file.path())) {
        None => Ok(()),
        Some(file) => Err(FilesError::Outside {
            backup: record.id.to_string(),
            path: file.path().display().to_string(),
        }),
    }
}

struct Work {
    backup: String,
    layout: Layout,
    files: Vec<FileEntry>,
    covered: Vec<AtomicU64>,
    control: Mutex<Vec<u8>>,
    written: AtomicU64,
}

/// The file that was written last: large ones take many frames in a row.
type OpenFile = Option<(u32, File)>;

impl Work {
    fn is_control(&self, file: &FileEntry) -> bool {
        file.tablespace == 0 && file.path == CONTROL.as_bytes()
    }

    fn make_folders_and_links(&self) -> Result<(), DirectoryError> {
        let make = |path: &Path| {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(DirectoryError::io("make", path))
        };
        for file in &self.files {
            let path = self.layout.path(file);
            match file.kind {
                FileKind::Folder => make(&path)?,
                FileKind::Link => {
                    path.parent().map_or(Ok(()), make)?;
                    symlink(self.layout.link_target(file), &path).map_err(DirectoryError::io("link", &path))?;
                }
                FileKind::File if self.is_control(file) => path.parent().map_or(Ok(()), make)?,
                FileKind::File => {
                    // Most parents are there: they come before their files.
                    if let Err(error) = create(&path) {
                        if error.kind() != io::ErrorKind::NotFound {
                            return Err(DirectoryError::io("create", &path)(error));
                        }
                        path.parent().map_or(Ok(()), make)?;
                        create(&path).map_err(DirectoryError::io("create", &path))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&self, mapped: &MappedFrame, mut content: &[u8], open: &mut OpenFile) -> Result<(), Failure> {
        for piece in &mapped.pieces {
            // The map's rows were checked to cover the content exactly.
            let (bytes, rest) = content.split_at(piece.len as usize);
            content = rest;
            let number = piece.file as usize;
            let file = self.files.get(number).ok_or_else(|| self.dangling("a file"))?;
            self.covered[number].fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if self.is_control(file) {
                let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
                let end = piece.offset as usize + bytes.len();
                if end > file.size as usize {
                    return Err(self.dangling("bytes past the end of pg_control").into());
                }
                control.resize(file.size as usize, 0);
                control[piece.offset as usize..end].copy_from_slice(bytes);
                continue;
            }
            if open.as_ref().is_none_or(|(number, _)| *number != piece.file) {
                let path = self.layout.path(file);
                let opened = OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .map_err(DirectoryError::io("open", &path))?;
                *open = Some((piece.file, opened));
            }
            if let Some((_, opened)) = open {
                let path = || self.layout.path(file);
                opened
                    .write_all_at(bytes, piece.offset)
                    .map_err(|source| DirectoryError::Io {
                        doing: "write",
                        path: path(),
                        source,
                    })?;
            }
            self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Checks that every file is whole, and gives permissions and times; folders last and deepest
    /// first, because writing into them changes their time.
    fn finish(&self) -> Result<(), Failure> {
        for (file, covered) in self.files.iter().zip(&self.covered) {
            let found = covered.load(Ordering::Relaxed);
            if file.kind == FileKind::File && found != file.size {
                let name = file.path().display().to_string();
                return Err(FilesError::Incomplete {
                    backup: self.backup.clone(),
                    file: name,
                    found,
                    expected: file.size,
                }
                .into());
            }
        }
        let (folders, files): (Vec<_>, Vec<_>) = self.files.iter().partition(|file| file.kind == FileKind::Folder);
        for file in files
            .iter()
            .filter(|file| !self.is_control(file))
            .chain(folders.iter().rev())
        {
            let path = self.layout.path(file);
            let times = times(file.modified);
            if file.kind != FileKind::Link {
                fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))
                    .map_err(DirectoryError::io("set permissions of", &path))?;
            }
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| DirectoryError::io("set times of", &path)(error.into()))?;
        }
        Ok(())
    }

    fn dangling(&self, what: &str) -> FilesError {
        FilesError::Dangling {
            backup: self.backup.clone(),
            what: what.to_owned(),
        }
    }
}

fn create(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
}

fn times(seconds: i64) -> Timestamps {
    let at = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}
