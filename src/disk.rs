//! Durable files: what was named here survives a power cut, whole or not at all.
//!
//! The one user of `fs2` (locks, free space). Names that end in `#` and digits are files in the
//! making; a crash may leave one behind, readers never take it for an object.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, RenameFlags};

use crate::env::Env;

/// A folder that was made this long ago has its entry on the disk, whoever made it: file systems
/// write what they owe within seconds (30 by default on Linux), not minutes.
const SETTLED: Duration = Duration::from_secs(600);

/// From now on this process makes nothing that others than the owner's group may read: a repository
/// holds everything that the database does.
pub fn keep_from_others() {
    use rustix::fs::Mode;
    let others = Mode::from_raw_mode(0o007);
    let before = rustix::process::umask(others);
    rustix::process::umask(before | others);
}

/// What became of a conditional creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is there now, durably.
    New,
    /// Something of that name was there before; it is untouched.
    Exists,
}

/// A file in the making, beside the name it will have. Dropped without being given that name, it is
/// removed again.
#[derive(Debug)]
pub struct Staged {
    goal: PathBuf,
    path: PathBuf,
    file: File,
    begun: SystemTime,
    named: bool,
}

impl Staged {
    /// Begins the file that will be `goal`; missing folders are made.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn beside(goal: &Path, mode: u32, env: &Env) -> io::Result<Self> {
        make_folders(parent(goal))?;
        Self::begin(goal, mode, env)
    }

    /// Begins the file that will be `goal`, somewhere below `root`. Only folders below that are made: where `root` itself
    /// has gone, it stays gone.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn below(root: &Path, goal: &Path, mode: u32, env: &Env) -> io::Result<Self> {
        make_folders_below(root, parent(goal))?;
        Self::begin(goal, mode, env)
    }

    fn begin(goal: &Path, mode: u32, env: &Env) -> io::Result<Self> {
        let mut name = goal.file_name().map(OsString::from).unwrap_or_default();
        name.push(format!("#{}", env.chance()));
        let path = goal.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)?;
        Ok(Self {
            goal: goal.to_path_buf(),
            path,
            file,
            begun: env.now().into(),
            named: false,
        })
    }

    /// The file, to be written.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it its name, durably, unless something of that name is there. `root` is the folder
    /// above which nothing was made.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. fsync the file: a leftover under a temporary name, that nobody reads;
    /// 2. give it its name, refusing to replace: the whole file, or (until 3) none;
    /// 3. fsync its folder and those above, up to `root`: the whole file.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn create(mut self, root: &Path) -> io::Result<Created> {
        self.file.sync_all()?;
        let created = match rename_new(&self.path, &self.goal) {
            Ok(()) => {
                self.named = true;
                Created::New
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Created::Exists,
            Err(error) => return Err(error),
        };
        // Also where it existed: whoever created it may have died before this step.
        sync_folders(parent(&self.goal), root, Some(self.begun))?;
        Ok(created)
    }

    /// As [`Self::create`], for one of many files in the same folder: the folders above are only made durable where
    /// `known` does not tell that they are.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn create_among(self, root: &Path, known: &KnownFolders) -> io::Result<Created> {
        let folder = parent(&self.goal).to_path_buf();
        if known.knows(&folder) {
            return self.create(&folder);
        }
        let created = self.create(root)?;
        known.remember(folder);
        Ok(created)
    }

    /// Puts it in the place of whatever has its name, durably, in one step.
    ///
    /// # Errors
    /// Whatever the file system says; what was there is untouched then.
    pub fn replace(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.goal)?;
        self.named = true;
        sync_folder(parent(&self.goal))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.named {
            // Best effort: a leftover costs space, never correctness.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Folders whose own entries this process has made durable. One that was removed and made again is another folder.
#[derive(Debug, Default)]
pub struct KnownFolders(Mutex<HashMap<PathBuf, FolderId>>);

/// Device, number and time of creation: numbers are used again.
type FolderId = (u64, u64, Option<SystemTime>);

impl KnownFolders {
    fn knows(&self, folder: &Path) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(folder)
            .is_some_and(|id| folder_id(folder).as_ref() == Some(id))
    }

    fn remember(&self, folder: PathBuf) {
        if let Some(id) = folder_id(&folder) {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(folder, id);
        }
    }
}

fn folder_id(folder: &Path) -> Option<FolderId> {
    let metadata = fs::metadata(folder).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.created().ok()))
}

/// Makes a folder and those above it, durably.
///
/// # Errors
/// Whatever the file system says.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    let Some(existing) = folder.ancestors().find(|above| above.is_dir()) else {
        return make_folders(folder);
    };
    make_folders(folder)?;
    sync_folders(folder, existing, None)
}

/// Puts `bytes` at `path`, durably, in the place of what is there.
///
/// # Errors
/// Whatever the file system says; what was there is untouched then.
pub fn write(path: &Path, bytes: &[u8], mode: u32, env: &Env) -> io::Result<()> {
    let mut staged = Staged::beside(path, mode, env)?;
    staged.file().write_all(bytes)?;
    staged.replace()
}

/// Removes what an earlier process left in the making of `goal`. For goals that one process at a
/// time makes.
///
/// # Errors
/// Whatever the file system says.
pub fn sweep(goal: &Path) -> io::Result<()> {
    let name = goal.file_name().unwrap_or_default().as_encoded_bytes();
    for entry in fs::read_dir(parent(goal))? {
        let entry = entry?;
        if is_staged(&entry.file_name()) && entry.file_name().as_encoded_bytes().starts_with(&[name, b"#"].concat()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file durably.
///
/// # Errors
/// Whatever the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync_folder(parent(path))
}

/// Makes the entries of a folder durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes everything written to the file system under `path` durable, in one go (`syncfs`): for a
/// restore's thousands of files that is one journal commit in place of thousands.
///
/// # Errors
/// Whatever the file system says; since Linux 5.8 that includes write-back errors of any file.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Bytes that an unprivileged user may still write to the file system under `path`.
///
/// # Errors
/// Whatever the file system says.
pub fn free_space(path: &Path) -> io::Result<u64> {
    fs2::available_space(path)
}

/// A file that is locked as long as this value lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Locks `path` for this process alone, making the file where it is missing; `None` where somebody
/// else holds it.
///
/// # Errors
/// Whatever the file system says, save that somebody else holds the lock.
pub fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    match fs2::FileExt::try_lock_exclusive(&file) {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a name is that of a file in the making.
pub fn is_staged(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    match name.iter().rposition(|b| *b == b'#') {
        Some(at) => at + 1 < name.len() && name[at + 1..].iter().all(u8::is_ascii_digit),
        None => false,
    }
}

/// Renames without replacing. File systems that lack the flag (NFS among them) are served with a
/// hard link, which refuses to replace as well.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        Err(error) => Err(error.into()),
    }
}

fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o777).create(folder)
}

fn make_folders_below(root: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let below = folder.strip_prefix(root).map_err(io::Error::other)?;
    let mut path = root.to_path_buf();
    for part in below.components() {
        path.push(part);
        match fs::DirBuilder::new().mode(0o777).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Fsyncs `folder`, and the folders above it up to and including `root` as far as they may hold an
/// entry that is not durable: one of the folders may have been made just now, by us or by another
/// process that has not come to its own fsync. Even where there is nothing to write, an fsync waits
/// for the disk, so folders that were [`SETTLED`] at `now` are trusted.
fn sync_folders(folder: &Path, root: &Path, now: Option<SystemTime>) -> io::Result<()> {
    sync_folder(folder)?;
    for below in folder.ancestors().take_while(|below| *below != root) {
        let age = || now?.duration_since(fs::metadata(below).ok()?.created().ok()?).ok();
        if age().is_none_or(|age| age < SETTLED) {
            sync_folder(parent(below))?;
        }
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        Env::made_up(&[], chrono::DateTime::UNIX_EPOCH, 1)
    }

    #[test]
    fn what_is_there_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        let put = |text: &'static str| {
            let mut staged = Staged::beside(&path, 0o600, &env()).unwrap();
            staged.file().write_all(text.as_bytes()).unwrap();
            staged.create(root.path()).unwrap()
        };
        assert_eq!(put("first"), Created::New);
        assert_eq!(put("second"), Created::Exists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "a staged file was left"
        );
    }

    #[test]
    fn what_is_given_up_leaves_nothing_and_leftovers_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        drop(Staged::beside(&path, 0o600, &env()).unwrap());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        for name in ["a#17", "b#17", "a", "a#x"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        sweep(&path).unwrap();
        let mut left: Vec<_> = fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["a", "a#x", "b#17"]);
    }

    #[test]
    fn a_root_that_is_gone_stays_gone() {
        let above = tempfile::tempdir().unwrap();
        let root = above.path().join("mounted");
        let goal = root.join("a/b");
        let error = Staged::below(&root, &goal, 0o600, &env()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!root.exists());
        fs::create_dir(&root).unwrap();
        Staged::below(&root, &goal, 0o600, &env())
            .unwrap()
            .create(&root)
            .unwrap();
        assert!(goal.exists());
    }

    #[test]
    fn a_lock_is_held_by_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let held = try_lock(&path).unwrap();
        assert!(held.is_some());
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }

    #[test]
    fn only_names_in_the_making_are_staged() {
        for (name, staged) in [
            ("a#1", true),
            ("a#", false),
            ("a#1b", false),
            ("a", false),
            ("#12", true),
        ] {
            assert_eq!(is_staged(OsStr::new(name)), staged, "{name}");
        }
    }
}
