//! The directory that a restore makes: may we write there, and what an interrupted one left.
//!
//! Rule 5: only into an empty or absent directory, never where a server runs. A directory whose
//! restore was interrupted is known by its marker; until the very end it lacks `global/pg_control`, so
//! that no server starts on it. As long as none has, the same command begins anew there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::env::Env;
use crate::error::{Class, Explain};
use crate::repo::backup::BackupId;

/// Lies in the directory from the first step to the last.
const MARKER: &str = "pgp-restore-in-progress.json";
/// No server starts without it.
pub(super) const CONTROL: &str = "global/pg_control";
/// The server writes it at each start, and no backup holds it.
const STARTED: &str = "postmaster.opts";

/// A directory that a restore may not have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Something else is there.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Something is there that is no directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A server runs there.
    #[error("a server runs in {} (process {pid})", path.display())]
    Running {
        /// The directory.
        path: PathBuf,
        /// The postmaster.
        pid: i32,
    },
    /// Another restore is at work there.
    #[error("another restore is at work in {}", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The file system says no.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

impl DirectoryError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source }
    }
}

impl Explain for DirectoryError {
    fn class(&self) -> Class {
        match self {
            Self::Io { .. } => Class::Failed,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotEmpty { .. } => {
                "name an empty or absent directory with --to (a tablespace's with --tablespace-mapping OLD=NEW); \
                 nothing was written"
            }
            Self::NotADirectory { .. } => "name a directory; nothing was written",
            Self::Running { .. } => "stop it first, or name another directory; nothing was written",
            Self::Busy { .. } => "wait for it, or end it",
            Self::Io { .. } => "run it as the user that will run the server, and check the room on that disk",
        };
        Some(text.to_owned())
    }
}

#[derive(Serialize, Deserialize)]
struct Marker {
    format: u32,
    backup: BackupId,
}

/// What is at a path before a restore.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Free,
    Interrupted,
}

/// Says whether a restore may have a directory. Changes nothing.
///
/// # Errors
/// Something else is there, or a server.
pub fn check(path: &Path) -> Result<(), DirectoryError> {
    look(path).map(drop)
}

fn look(path: &Path) -> Result<Found, DirectoryError> {
    if let Some(pid) = running(path) {
        return Err(DirectoryError::Running {
            path: path.to_path_buf(),
            pid,
        });
    }
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Free),
        Err(error) => return Err(DirectoryError::io("look at", path)(error)),
        Ok(metadata) if !metadata.is_dir() => {
            return Err(DirectoryError::NotADirectory {
                path: path.to_path_buf(),
            });
        }
        Ok(_) => {}
    }
    if path.join(MARKER).exists() && !path.join(STARTED).exists() {
        return Ok(Found::Interrupted);
    }
    let mut found = Found::Free;
    for entry in fs::read_dir(path).map_err(DirectoryError::io("read", path))? {
        let name = entry.map_err(DirectoryError::io("read", path))?.file_name();
        // A marker in the making, and nothing that it could have been made for.
        if !disk::is_staged(&name) || !name.as_encoded_bytes().starts_with(MARKER.as_bytes()) {
            return Err(DirectoryError::NotEmpty {
                path: path.to_path_buf(),
            });
        }
        found = Found::Interrupted;
    }
    Ok(found)
}

/// The process of the server that runs in a directory, if its process is alive.
fn running(path: &Path) -> Option<i32> {
    let text = fs::read_to_string(path.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    // A negative number is a single-user backend.
    let process = rustix::process::Pid::from_raw(pid.abs())?;
    match rustix::process::test_kill_process(process) {
        Ok(()) | Err(rustix::io::Errno::PERM) => Some(pid),
        Err(_) => None,
    }
}

/// Directories that a restore has taken possession of.
#[derive(Debug)]
pub(super) struct Claimed {
    root: PathBuf,
    _lock: disk::Lock,
}

impl Claimed {
    /// Makes the directories, empty, with a marker in the first of them; what an interrupted restore
    /// left goes.
    pub(super) fn take(root: &Path, others: &[PathBuf], backup: &BackupId, env: &Env) -> Result<Self, DirectoryError> {
        let found = look(root)?;
        disk::make_folder(root).map_err(DirectoryError::io("make", root))?;
        let marker = root.join(MARKER);
        let lock = disk::try_lock(&marker)
            .map_err(DirectoryError::io("lock", &marker))?
            .ok_or_else(|| DirectoryError::Busy {
                path: root.to_path_buf(),
            })?;
        let text = serde_json::to_vec(&Marker {
            format: 1,
            backup: backup.clone(),
        })
        .unwrap_or_default();
        // In place: to replace the file would be to lose the lock on it.
        fs::write(&marker, text)
            .and_then(|()| disk::sync_folder(root))
            .map_err(DirectoryError::io("write", &marker))?;
        if found == Found::Interrupted {
            empty(root, MARKER).map_err(DirectoryError::io("empty", root))?;
        }
        for other in others {
            match look(other) {
                Ok(Found::Free) => {}
                // A tablespace's directory is ours again if it holds nothing but what the interrupted
                // restore of this very directory put there; its marker says so.
                Ok(Found::Interrupted) => empty(other, MARKER).map_err(DirectoryError::io("empty", other))?,
                Err(error) => return Err(error),
            }
            disk::make_folder(other).map_err(DirectoryError::io("make", other))?;
            let marker = other.join(MARKER);
            disk::write(&marker, b"{}\n", 0o600, env).map_err(DirectoryError::io("write", &marker))?;
        }
        Ok(Self {
            root: root.to_path_buf(),
            _lock: lock,
        })
    }

    /// Gives the directories their freedom: the restore is whole. The data directory's marker goes first:
    /// one that has it is taken for interrupted, and then the others' must be there as well.
    pub(super) fn release(self, others: &[PathBuf]) -> Result<(), DirectoryError> {
        for folder in [&self.root].into_iter().chain(others) {
            let marker = folder.join(MARKER);
            disk::remove(&marker).map_err(DirectoryError::io("remove", &marker))?;
        }
        Ok(())
    }
}

/// Removes all but `keep`. What lets a server start goes first, durably: half of the rest may be gone
/// when this is interrupted.
fn empty(folder: &Path, keep: &str) -> io::Result<()> {
    match disk::remove(&folder.join(CONTROL)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == keep {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> BackupId {
        BackupId::new(chrono::DateTime::UNIX_EPOCH, 1)
    }

    fn env() -> Env {
        Env::made_up(&[], chrono::DateTime::UNIX_EPOCH, 1)
    }

    #[test]
    fn an_empty_or_absent_directory_is_free_and_any_other_is_not() {
        let root = tempfile::tempdir().unwrap();
        assert!(check(root.path()).is_ok());
        assert!(check(&root.path().join("absent")).is_ok());
        fs::write(root.path().join("x"), "").unwrap();
        assert!(matches!(check(root.path()), Err(DirectoryError::NotEmpty { .. })));
        assert!(matches!(
            check(&root.path().join("x")),
            Err(DirectoryError::NotADirectory { .. })
        ));
    }

    #[test]
    fn where_a_server_runs_nothing_is_written() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert!(matches!(check(root.path()), Err(DirectoryError::Running { .. })));
        // Far above pid_max: nobody.
        fs::write(root.path().join("postmaster.pid"), "999999999\n").unwrap();
        assert!(matches!(check(root.path()), Err(DirectoryError::NotEmpty { .. })));
    }

    #[test]
    fn an_interrupted_restore_is_begun_anew_and_a_finished_one_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let claimed = Claimed::take(root.path(), &[], &id(), &env()).unwrap();
        assert!(matches!(
            Claimed::take(root.path(), &[], &id(), &env()),
            Err(DirectoryError::Busy { .. })
        ));
        fs::create_dir(root.path().join("base")).unwrap();
        drop(claimed);
        let claimed = Claimed::take(root.path(), &[], &id(), &env()).unwrap();
        assert!(!root.path().join("base").exists());
        fs::create_dir(root.path().join("global")).unwrap();
        fs::write(root.path().join(CONTROL), "").unwrap();
        drop(claimed);
        // Whole but for its marker, and never started.
        assert!(check(root.path()).is_ok());
        fs::write(root.path().join(STARTED), "").unwrap();
        assert!(matches!(check(root.path()), Err(DirectoryError::NotEmpty { .. })));
        fs::remove_file(root.path().join(STARTED)).unwrap();
        let claimed = Claimed::take(root.path(), &[], &id(), &env()).unwrap();
        assert!(!root.path().join(CONTROL).exists());
        fs::create_dir(root.path().join("global")).unwrap();
        fs::write(root.path().join(CONTROL), "").unwrap();
        claimed.release(&[]).unwrap();
        assert!(matches!(check(root.path()), Err(DirectoryError::NotEmpty { .. })));
    }

    #[test]
    fn a_marker_in_the_making_is_no_content() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(format!("{MARKER}#17")), "").unwrap();
        assert!(check(root.path()).is_ok());
        fs::write(root.path().join("x#17"), "").unwrap();
        assert!(matches!(check(root.path()), Err(DirectoryError::NotEmpty { .. })));
    }
}
