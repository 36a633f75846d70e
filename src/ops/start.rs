//! `restore --start`: the programs of the right major, the right user, and a server that is on its way.
//!
//! PostgreSQL refuses to run as root and in a directory of somebody else. Run by root, the restored files are
//! therefore given to the account that is to run the server. `pg_ctl` starts it, in a session of its own,
//! so that it outlives us; whoever follows it asks `pg_ctl` only whether it may still come.

mod rehearsal;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::watch::{Log, START_LOG};
use crate::env::Env;
use crate::error::{Class, Explain};
use crate::pg::settings::shell_word;
use crate::pg::{MajorVersion, VersionError};

/// `pg_ctl` gives up after a minute unless told otherwise; a recovery takes as long as it takes. A year:
/// ten times as many tenths of a second still fit its counter.
const PATIENCE: &str = "31536000";
/// Runs a program as somebody else, with all of that account's groups.
const SETPRIV: [&str; 2] = ["/usr/bin/setpriv", "/bin/setpriv"];
/// The account that packages make.
const USUAL_ACCOUNT: &str = "postgres";
/// The last major with a folder for statistics that two servers must not share.
const LAST_WITH_STATS_FOLDER: u16 = 14;

/// A server that can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There are no programs of the backup's major.
    #[error("PostgreSQL {wanted}, which the backup is of, was not found here{}", others(found))]
    NoPrograms {
        /// The major that is needed.
        wanted: MajorVersion,
        /// Which there are.
        found: Vec<String>,
    },
    /// The folder that was named holds another major.
    #[error("the backup is of PostgreSQL {wanted}, and the programs in {} are of {found}", folder.display())]
    OtherMajor {
        /// The major that is needed.
        wanted: MajorVersion,
        /// The folder.
        folder: PathBuf,
        /// The major that it holds.
        found: MajorVersion,
    },
    /// The folder that was named holds no PostgreSQL.
    #[error("{} holds no pg_ctl and postgres that can be run", folder.display())]
    NotPrograms {
        /// The folder.
        folder: PathBuf,
    },
    /// A backup whose major makes no sense.
    #[error("the backup's version can't be told")]
    Version(#[source] VersionError),
    /// No account to run it as.
    #[error("there is no account \"{0}\" to run the server as")]
    NoAccount(String),
    /// The server can't run as root.
    #[error("PostgreSQL does not run as root")]
    Root,
    /// Somebody else's name, and we are not root.
    #[error("only root can run the server as \"{0}\"")]
    NotRoot(String),
    /// The account that will run the server is refused what its recovery reads.
    #[error("\"{account}\", which is to run the server, can't read what its recovery needs: {why}")]
    Unreadable {
        /// The account.
        account: String,
        /// What refused it, and how.
        why: String,
    },
    /// The server would find no configuration.
    #[error("{} is restored and was not started: it has no postgresql.conf, which lay elsewhere on the original", path.display())]
    NoConfiguration {
        /// The data directory.
        path: PathBuf,
    },
    /// A path that can't be written down for the server.
    #[error("{} can't be given to the server", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The system says no.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// Of what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

fn others(found: &[String]) -> String {
    match found {
        [] => String::new(),
        _ => format!("; there is {}", found.join(", ")),
    }
}

impl StartError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source }
    }
}

impl Explain for StartError {
    fn class(&self) -> Class {
        match self {
            Self::Io { .. } => Class::Failed,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoPrograms { .. } | Self::OtherMajor { .. } | Self::NotPrograms { .. } => {
                "name the folder of the right programs with --bindir DIR; nothing was started"
            }
            Self::NoAccount(_) | Self::Root => "name the account that runs PostgreSQL with --run-as USER",
            Self::Unreadable { .. } => {
                "let that account read the repository and the settings file (chown -R, or a group that may), or name \
                 another with --run-as USER; what root's own receiver and backups write there belongs to root: run them as \
                 that account; nothing was restored"
            }
            Self::NotRoot(_) => "run it as that user, or as root",
            Self::NoConfiguration { .. } => {
                "next time name it with --server-config FILE; now start it with pg_ctl -o '-c config_file=FILE \
                 -c data_directory=DIR'"
            }
            Self::Version(_) | Self::Path { .. } | Self::Io { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The folder of PostgreSQL's programs, where it was named.
    pub bindir: Option<PathBuf>,
    /// The port, in the place of the configuration's.
    pub port: Option<u16>,
    /// The configuration file, where it lies outside the data directory.
    pub config: Option<PathBuf>,
    /// More for the server's command line, as `pg_ctl -o` takes it.
    pub more: Option<String>,
    /// The account to run it as, for root.
    pub run_as: Option<String>,
}

/// A start that nothing is known to stand in the way of.
#[derive(Debug)]
pub struct Start {
    pg_ctl: PathBuf,
    major: MajorVersion,
    directory: PathBuf,
    account: Option<Account>,
    /// Folders above the data directory that aren't there yet; who makes them owns them.
    missing: Vec<PathBuf>,
    options: Options,
}

/// An account of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Finds what a start needs, before anything is restored.
///
/// # Errors
/// No programs of that major, or nobody to run them as.
pub fn prepare(directory: &Path, pg_version: &str, options: Options, env: &Env) -> Result<Start, StartError> {
    let major = MajorVersion::from_pg_version(pg_version).map_err(StartError::Version)?;
    let folder = match &options.bindir {
        Some(folder) => named(folder, major)?,
        None => search(major, env)?,
    };
    let missing = directory.ancestors().skip(1).take_while(|above| !above.exists());
    Ok(Start {
        pg_ctl: folder.join("pg_ctl"),
        major,
        account: account(directory, options.run_as.as_deref())?,
        missing: missing.map(Path::to_path_buf).collect(),
        directory: directory.to_path_buf(),
        options,
    })
}

/// The folder that was named, if it holds that major.
fn named(folder: &Path, wanted: MajorVersion) -> Result<PathBuf, StartError> {
    let folder = std::path::absolute(folder).map_err(StartError::io("find", folder))?;
    match major_in(&folder) {
        Some(found) if found == wanted => Ok(folder),
        Some(found) => Err(StartError::OtherMajor { wanted, folder, found }),
        None => Err(StartError::NotPrograms { folder }),
    }
}

/// The first folder that holds that major: on the `PATH`, then where packages put it.
fn search(wanted: MajorVersion, env: &Env) -> Result<PathBuf, StartError> {
    let path = env.var_os("PATH").unwrap_or_default();
    let number = wanted.number();
    let usual = [
        format!("/usr/lib/postgresql/{number}/bin"),
        format!("/usr/pgsql-{number}/bin"),
        "/usr/local/pgsql/bin".to_owned(),
    ];
    let mut found = Vec::new();
    for folder in std::env::split_paths(path).chain(usual.map(PathBuf::from)) {
        match folder.is_absolute().then(|| major_in(&folder)).flatten() {
            Some(major) if major == wanted => return Ok(folder),
            Some(major) => found.push(format!("{major} in {}", folder.display())),
            None => {}
        }
    }
    Err(StartError::NoPrograms { wanted, found })
}

/// The major of the programs in a folder.
fn major_in(folder: &Path) -> Option<MajorVersion> {
    if !folder.join("pg_ctl").is_file() || !folder.join("postgres").is_file() {
        return None;
    }
    let answer = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    major_of(&String::from_utf8_lossy(&answer.stdout))
}

/// Reads what `postgres --version` prints: `postgres (PostgreSQL) 15.18 (Debian …)`, `… 19beta1`.
fn major_of(text: &str) -> Option<MajorVersion> {
    let version = text.strip_prefix("postgres (PostgreSQL) ")?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    MajorVersion::new(digits.parse().ok()?).ok()
}

/// Whom the server will run as; `None`: as ourselves.
fn account(directory: &Path, named: Option<&str>) -> Result<Option<Account>, StartError> {
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let by_name = |name: &str| find(&accounts, |account| account.name == name);
    if !rustix::process::geteuid().is_root() {
        let ours = |account: &Account| account.uid == rustix::process::geteuid().as_raw();
        return match named {
            Some(name) if !by_name(name).is_some_and(|account| ours(&account)) => {
                Err(StartError::NotRoot(name.to_owned()))
            }
            _ => Ok(None),
        };
    }
    if let Some(name) = named {
        let account = by_name(name).ok_or_else(|| StartError::NoAccount(name.to_owned()))?;
        return if account.uid == 0 {
            Err(StartError::Root)
        } else {
            Ok(Some(account))
        };
    }
    // Whoever owns the directory, or the folder that it will be in, was meant to.
    let there = directory.ancestors().find_map(|path| fs::metadata(path).ok());
    let owner = there.map(|about| about.uid()).filter(|uid| *uid != 0);
    let owner = owner.and_then(|uid| find(&accounts, |account| account.uid == uid));
    owner
        .or_else(|| by_name(USUAL_ACCOUNT))
        .map(Some)
        .ok_or_else(|| StartError::NoAccount(USUAL_ACCOUNT.to_owned()))
}

fn find(accounts: &str, wanted: impl Fn(&Account) -> bool) -> Option<Account> {
    let read = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        Some(Account {
            name: (*fields.first()?).to_owned(),
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: (*fields.get(5)?).to_owned(),
        })
    };
    accounts.lines().filter_map(read).find(wanted)
}

/// A server that is on its way.
#[derive(Debug)]
pub struct Launched {
    pg_ctl: Child,
    /// Its log.
    pub log: Log,
}

impl Launched {
    /// Whether a server that isn't there yet may still come.
    pub fn may_come(&mut self) -> bool {
        matches!(self.pg_ctl.try_wait(), Ok(None))
    }
}

impl Start {
    /// Whether the restored files will be given to somebody else than who restores them.
    pub fn gives_away(&self) -> Option<&str> {
        self.account.as_ref().map(|account| account.name.as_str())
    }

    /// Gives these folders away with the directory, too.
    pub fn gives_too(&mut self, folders: impl IntoIterator<Item = PathBuf>) {
        self.missing.extend(folders);
    }

    /// Starts the server in the directory, which is restored by now.
    ///
    /// # Errors
    /// No configuration, or the system. That the server itself fails shows afterwards.
    pub fn launch(&self) -> Result<Launched, StartError> {
        let directory = &self.directory;
        if self.options.config.is_none() && !directory.join("postgresql.conf").exists() {
            let path = directory.clone();
            return Err(StartError::NoConfiguration { path });
        }
        if let Some(account) = &self.account {
            give(directory, account)?;
            for folder in &self.missing {
                chown(folder, account)?;
            }
        }
        let path = directory.join(START_LOG);
        let from = fs::metadata(&path).map_or(0, |about| about.len());
        let pg_ctl = self.command()?.spawn().map_err(StartError::io("run", &self.pg_ctl))?;
        Ok(Launched {
            pg_ctl,
            log: Log { path, from },
        })
    }

    fn command(&self) -> Result<Command, StartError> {
        let mut command = match &self.account {
            Some(account) => as_account(&self.pg_ctl, account),
            None => Command::new(&self.pg_ctl),
        };
        command
            .args(["start", "-s", "-w", "-t", PATIENCE, "-l", START_LOG, "-o"])
            .arg(self.server_options()?)
            // Its log is named from here; and whoever runs the server may not enter where we are.
            .current_dir(&self.directory)
            .env("PGDATA", &self.directory)
            // A Ctrl-C that is meant for us must not reach it: it would stop the server.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // The shell reads the path within double quotes; where it can't stand there, PGDATA alone tells it.
        let plain = |b: &u8| !b"\"$`\\".contains(b);
        if self.directory.as_os_str().as_encoded_bytes().iter().all(plain) {
            command.arg("-D").arg(&self.directory);
        }
        Ok(command)
    }

    /// What goes on the server's own command line, by way of a shell.
    fn server_options(&self) -> Result<String, StartError> {
        let mut words = Vec::new();
        if let Some(port) = self.options.port {
            words.push(format!("-p {port}"));
        }
        if let Some(config) = &self.options.config {
            words.push(format!("-c config_file={}", word(config)?));
            // The file names the original's.
            words.push(format!("-c data_directory={}", word(&self.directory)?));
            words.push("-c external_pid_file=".to_owned());
            if self.major.number() <= LAST_WITH_STATS_FOLDER {
                words.push("-c stats_temp_directory=pg_stat_tmp".to_owned());
            }
        }
        words.extend(self.options.more.clone());
        Ok(words.join(" "))
    }
}

/// A path as the shell reads it back.
fn word(path: &Path) -> Result<String, StartError> {
    let refused = || StartError::Path {
        path: path.to_path_buf(),
    };
    let word = shell_word(path.as_os_str()).map_err(|_| refused())?;
    String::from_utf8(word).map_err(|_| refused())
}

/// A program that will run as an account. With all of its groups where `setpriv` is there: the group of a
/// TLS key may be among them.
fn as_account(program: &Path, account: &Account) -> Command {
    let mut command = match SETPRIV.iter().find(|setpriv| Path::new(setpriv).is_file()) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command
                .arg(format!("--reuid={}", account.uid))
                .arg(format!("--regid={}", account.gid))
                .args(["--init-groups", "--"])
                .arg(program);
            command
        }
        None => {
            let mut command = Command::new(program);
            command.uid(account.uid).gid(account.gid);
            command
        }
    };
    command
        .env("HOME", &account.home)
        .env("USER", &account.name)
        .env("LOGNAME", &account.name);
    command
}

/// Gives a data directory to an account, tablespaces included; no other link is followed.
fn give(path: &Path, account: &Account) -> Result<(), StartError> {
    chown(path, account)?;
    let kind = fs::symlink_metadata(path).map_err(StartError::io("look at", path))?;
    if kind.is_dir() {
        for entry in fs::read_dir(path).map_err(StartError::io("read", path))? {
            let entry = entry.map_err(StartError::io("read", path))?;
            give(&entry.path(), account)?;
        }
    } else if kind.is_symlink() && path.parent().is_some_and(|folder| folder.ends_with("pg_tblspc")) {
        give(
            &fs::canonicalize(path).map_err(StartError::io("follow", path))?,
            account,
        )?;
    }
    Ok(())
}

fn chown(path: &Path, account: &Account) -> Result<(), StartError> {
    lchown(path, Some(account.uid), Some(account.gid)).map_err(StartError::io("give away", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(directory: &str, options: Options) -> Start {
        Start {
            pg_ctl: PathBuf::from("/usr/lib/postgresql/14/bin/pg_ctl"),
            major: MajorVersion::new(14).unwrap(),
            directory: PathBuf::from(directory),
            account: None,
            missing: Vec::new(),
            options,
        }
    }

    #[test]
    fn the_version_is_read_from_what_postgres_prints() {
        let number = |text| major_of(text).map(MajorVersion::number);
        assert_eq!(
            number("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(number("postgres (PostgreSQL) 19beta1\n"), Some(19));
        assert_eq!(number("pg_ctl (PostgreSQL) 15.1\n"), None);
        assert_eq!(number(""), None);
    }

    #[test]
    fn options_are_quoted_for_the_shell_that_reads_them() {
        let options = Options {
            port: Some(5433),
            config: Some(PathBuf::from("/etc/it's here/postgresql.conf")),
            more: Some("-c fsync=off".to_owned()),
            ..Options::default()
        };
        assert_eq!(
            start("/srv/a b", options).server_options().unwrap(),
            "-p 5433 -c config_file='/etc/it'\\''s here/postgresql.conf' -c data_directory='/srv/a b' \
             -c external_pid_file= -c stats_temp_directory=pg_stat_tmp -c fsync=off"
        );
        assert_eq!(start("/srv", Options::default()).server_options().unwrap(), "");
    }

    #[test]
    fn a_directory_that_the_shell_would_misread_goes_by_the_environment() {
        let has_flag = |directory: &str| {
            let command = start(directory, Options::default()).command().unwrap();
            assert_eq!(
                command
                    .get_envs()
                    .find(|(name, _)| *name == "PGDATA")
                    .unwrap()
                    .1
                    .unwrap(),
                directory
            );
            command.get_args().any(|argument| argument == "-D")
        };
        assert!(has_flag("/srv/it's a b"));
        assert!(!has_flag("/srv/$HOME") && !has_flag("/srv/\"x\"") && !has_flag("/srv/a\\b"));
    }

    #[test]
    fn an_account_is_read_with_its_group_and_home() {
        let accounts = "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:103:105:,,,:/var/lib/postgresql:/bin/bash\n";
        let found = find(accounts, |account| account.name == "postgres").unwrap();
        assert_eq!(
            (found.uid, found.gid, found.home.as_str()),
            (103, 105, "/var/lib/postgresql")
        );
        assert_eq!(find(accounts, |account| account.uid == 7), None);
    }

    #[test]
    fn programs_of_another_major_are_told_with_both() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for name in ["postgres", "pg_ctl"] {
            let path = folder.path().join(name);
            fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let options = || Options {
            bindir: Some(folder.path().to_path_buf()),
            ..Options::default()
        };
        let env = Env::made_up(
            &[("PATH", folder.path().to_str().unwrap())],
            chrono::DateTime::UNIX_EPOCH,
            1,
        );
        let error = prepare(Path::new("/nowhere/d"), "99", options(), &env)
            .unwrap_err()
            .to_string();
        assert!(error.contains("99") && error.contains("14"), "{error}");
        let error = prepare(Path::new("/nowhere/d"), "99", Options::default(), &env)
            .unwrap_err()
            .to_string();
        assert!(error.contains("14 in "), "{error}");
        let found = prepare(folder.path(), "14", options(), &env);
        assert!(found.is_ok() || rustix::process::geteuid().is_root(), "{found:?}");
    }
}
