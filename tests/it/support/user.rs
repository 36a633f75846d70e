//! Whom servers run as: PostgreSQL refuses root, and tests often run as root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use pgp_pitr::env::Env;

/// The account that owns data directories and runs servers and our binaries in tests.
#[derive(Debug, Clone, Copy)]
pub struct ServerUser {
    /// `None`: we are not root, so everything runs as ourselves.
    ids: Option<(u32, u32)>,
}

impl ServerUser {
    /// Ourselves, or the account `postgres` where we are root.
    pub fn get() -> Self {
        static USER: OnceLock<ServerUser> = OnceLock::new();
        *USER.get_or_init(|| {
            let ids = rustix::process::geteuid().is_root().then(|| {
                ids_of("postgres").expect("no account `postgres` to run servers as: run tests/run.sh, which makes it")
            });
            Self { ids }
        })
    }

    /// A command that will run as this user, in a quiet environment: no `PG*`, `PGP_*` or `AWS_*`
    /// of the caller, English messages, UTC.
    pub fn command(self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", std::env::temp_dir())
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .current_dir("/");
        if let Some((uid, gid)) = self.ids {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Gives a file, link or whole folder to this user, following the links of `pg_tblspc`.
    pub fn give(self, path: &Path) {
        let Some((uid, gid)) = self.ids else { return };
        let about = path.symlink_metadata().expect("a path to give away exists");
        lchown(path, Some(uid), Some(gid)).expect("chown");
        if about.is_dir() {
            for entry in fs::read_dir(path).expect("readable folder") {
                self.give(&entry.expect("readable entry").path());
            }
        } else if about.is_symlink() && path.parent().is_some_and(|folder| folder.ends_with("pg_tblspc")) {
            self.give(&fs::canonicalize(path).expect("a tablespace link leads somewhere"));
        }
    }
}

/// User and group id of an account of this machine.
fn ids_of(account: &str) -> Option<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> = accounts
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == account)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

/// Bytes: with so much to spare, a handful of small clusters (60 MB each) may live in memory.
const PLENTY: u64 = 6 << 30;

/// How many bytes of memory this machine could give to us.
fn free_memory() -> u64 {
    let about = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = about.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes: Option<u64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// A folder of the server's user, removed with everything in it when dropped.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new, empty folder, in memory where there is plenty: a server syncs each file of its directory
    /// when it recovers, which takes seconds on a busy disk. `TMPDIR` overrides that. The path is short,
    /// because a Unix socket in it may not exceed 107 bytes.
    pub fn new() -> Self {
        let chosen = Env::of_process().var_os("TMPDIR").is_some();
        let memory = Path::new("/dev/shm");
        if !chosen && free_memory() >= PLENTY && fs2::available_space(memory).is_ok_and(|free| free >= PLENTY) {
            Self::below(memory)
        } else {
            Self::on_disk()
        }
    }

    /// A new, empty folder where temporary files usually go.
    pub fn on_disk() -> Self {
        Self::below(&std::env::temp_dir())
    }

    fn below(parent: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("pgp-it-")
            .tempdir_in(parent)
            .expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        if let Some((uid, gid)) = ServerUser::get().ids {
            chown(folder.path(), Some(uid), Some(gid)).expect("chown");
        }
        Self(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path inside it; nothing is made.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a folder inside it, owned by the server's user, mode 0700 as for a data directory.
    pub fn folder(&self, name: impl AsRef<Path>) -> PathBuf {
        let folder = self.join(name);
        fs::create_dir(&folder).expect("a new folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("chmod");
        ServerUser::get().give(&folder);
        folder
    }
}
