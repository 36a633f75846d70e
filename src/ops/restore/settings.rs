//! What makes a restored directory recover: `postgresql.auto.conf` and a signal file.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::directory::DirectoryError;
use crate::disk;
use crate::env::Env;
use crate::error::Failure;
use crate::pg::settings::{AutoConf, RECOVERY_SETTINGS, STANDBY_SETTINGS, SettingsError, Word, server_command};

const AUTO_CONF: &str = "postgresql.auto.conf";
const SIGNALS: [&str; 2] = ["recovery.signal", "standby.signal"];

/// What the server does when it has arrived at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It pauses, and can be read.
    Pause,
    /// It begins a new timeline.
    Promote,
    /// It stops.
    Shutdown,
}

impl Action {
    /// PostgreSQL's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

impl std::str::FromStr for Action {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Pause, Self::Promote, Self::Shutdown]
            .into_iter()
            .find(|action| action.word() == text)
            .ok_or("an action is pause, promote or shutdown")
    }
}

/// How the restored server fetches its WAL.
#[derive(Debug, Clone)]
pub struct RestoreCommand {
    /// `pgp-restore`, by its absolute path.
    pub program: PathBuf,
    /// The repository, findable from any directory.
    pub repo: String,
    /// The settings file, by its absolute path.
    pub config: Option<PathBuf>,
}

impl RestoreCommand {
    /// The command, quoted for the shell that the server calls.
    ///
    /// # Errors
    /// A path that can't be quoted.
    pub fn command(&self) -> Result<Vec<u8>, SettingsError> {
        let repo = OsString::from(&self.repo);
        let mut words = vec![
            Word::Exact(self.program.as_os_str()),
            Word::WalFile,
            Word::WalPath,
            Word::Exact("--repo".as_ref()),
            Word::Exact(&repo),
        ];
        if let Some(config) = &self.config {
            words.extend([Word::Exact("--config".as_ref()), Word::Exact(config.as_os_str())]);
        }
        server_command(&words)
    }
}

/// Settings by name, in the order in which they are written.
pub type RecoverySettings = Vec<(&'static str, Vec<u8>)>;

/// Whom commits will wait for on the restored server: its `synchronous_standby_names`, where it is set. `config` is its
/// configuration file, where that lies outside the directory.
pub fn synchronous_standbys(directory: &Path, config: Option<&Path>) -> Option<String> {
    let own = directory.join("postgresql.conf");
    let mut all = Vec::new();
    for file in [config.unwrap_or(&own), &directory.join(AUTO_CONF)] {
        all.extend(fs::read(file).unwrap_or_default());
        all.push(b'\n');
    }
    let value = AutoConf::new(all).value("synchronous_standby_names")?;
    Some(String::from_utf8_lossy(&value).trim().to_owned()).filter(|names| !names.is_empty())
}

/// Writes the settings into the directory's `postgresql.auto.conf`, in the place of those of earlier
/// recoveries, and the signal file. `mode` is their permissions.
///
/// # Errors
/// A value that can't be quoted, or the file system.
pub(super) fn write(
    root: &Path,
    settings: &RecoverySettings,
    standby: bool,
    mode: u32,
    env: &Env,
) -> Result<(), Failure> {
    let path = root.join(AUTO_CONF);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(DirectoryError::io("read", &path)(error).into()),
    };
    let mut auto_conf = AutoConf::new(text);
    auto_conf.remove(RECOVERY_SETTINGS);
    auto_conf.remove(STANDBY_SETTINGS);
    let names: Vec<&str> = settings.iter().map(|(name, _)| *name).collect();
    auto_conf.remove(&names);
    let values: Vec<(&str, &[u8])> = settings.iter().map(|(name, value)| (*name, value.as_slice())).collect();
    auto_conf.append(&values)?;
    disk::write(&path, auto_conf.bytes(), mode, env).map_err(DirectoryError::io("write", &path))?;
    for (signal, wanted) in SIGNALS.iter().zip([!standby, standby]) {
        let path = root.join(signal);
        if wanted {
            disk::write(&path, b"", mode, env).map_err(DirectoryError::io("write", &path))?;
        } else if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(DirectoryError::io("remove", &path)(error).into());
        }
    }
    Ok(())
}
