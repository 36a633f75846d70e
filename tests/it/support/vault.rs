//! A repository, and what leads a server and our binaries to it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cluster::{Builder, Cluster};
use super::program::{Answer, Program};
use super::s3::S3Server;
use super::user::{Scratch, ServerUser};

/// A repository made by `pgp-pitr init`. One in a folder of its own goes when dropped.
#[derive(Debug)]
pub struct Vault {
    repo: OsString,
    /// Where keys stand that no command line may show.
    config: Option<PathBuf>,
    _scratch: Scratch,
}

impl Vault {
    /// A repository in a folder.
    #[track_caller]
    pub fn folder() -> Self {
        let scratch = Scratch::new();
        let repo = scratch.join("repo").into_os_string();
        Self::made(repo, None, scratch)
    }

    /// A repository in a folder at this very path.
    #[track_caller]
    pub fn at(path: &Path) -> Self {
        Self::made(path.as_os_str().to_owned(), None, Scratch::new())
    }

    /// A repository in the bucket of an S3 server, its key in a settings file.
    #[track_caller]
    pub fn s3(server: &S3Server, prefix: &str) -> Self {
        let scratch = Scratch::new();
        let config = scratch.join("pgp.toml");
        let settings: String = server
            .env()
            .map(|(name, value)| format!("{} = \"{value}\"\n", name.trim_start_matches("AWS_").to_lowercase()))
            .concat();
        fs::write(&config, format!("[s3]\n{settings}")).expect("a settings file");
        ServerUser::get().give(&config);
        Self::made(server.url(prefix).into(), Some(config), scratch)
    }

    #[track_caller]
    fn made(repo: OsString, config: Option<PathBuf>, scratch: Scratch) -> Self {
        let vault = Self {
            repo,
            config,
            _scratch: scratch,
        };
        vault.pitr(["init"]).with_code(0);
        vault
    }

    /// Its address, as after `--repo`.
    pub fn repo(&self) -> &OsStr {
        &self.repo
    }

    /// The settings file, where there is one.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Runs `pgp-pitr` with these arguments on this repository.
    pub fn pitr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Answer {
        Answer::of(self.command().args(arguments))
    }

    /// `pgp-pitr` on this repository, for more arguments and an environment of one's own.
    pub fn command(&self) -> Command {
        let mut command = Program::Pitr.command();
        command.args(self.with_repo::<&str>([]));
        command
    }

    /// Fetches a WAL file of `cluster` to a path with `pgp-restore`, as its server would.
    pub fn fetch(&self, cluster: &Cluster, file: &str, path: &Path) -> Answer {
        let mut command = Program::Restore.command();
        command.current_dir(cluster.data_dir());
        Answer::of(command.args(self.with_repo([OsStr::new(file), path.as_os_str()])))
    }

    /// Takes a WAL file away from a repository in a folder.
    #[track_caller]
    pub fn lose(&self, file: &str) {
        let mut folders = vec![PathBuf::from(&self.repo)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a readable repository") {
                let path = entry.expect("a readable entry").path();
                let named = path
                    .file_name()
                    .is_some_and(|name| name == format!("{file}.zst").as_str());
                if named {
                    return fs::remove_file(path).expect("removed");
                }
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        panic!("{file} is not in the repository");
    }

    /// Takes a base backup; the answer is its entry.
    #[track_caller]
    pub fn backup(&self, cluster: &Cluster) -> serde_json::Value {
        self.pitr(["backup", "--json", "-d", &cluster.conninfo()])
            .with_code(0)
            .json()
    }

    /// Restores into `to`, which the server's user must be able to make.
    pub fn restore(&self, to: &Path, arguments: &[&str]) -> Answer {
        let to = [OsStr::new("restore"), OsStr::new("--to"), to.as_os_str()];
        self.pitr(to.into_iter().chain(arguments.iter().map(OsStr::new)))
    }

    /// A cluster that archives into this repository and keeps all its WAL.
    pub fn protect(&self, builder: Builder) -> Cluster {
        builder
            .conf("archive_mode", "on")
            .conf("archive_command", self.archive_command())
            .conf("wal_keep_size", "1GB")
            .build()
    }

    /// What stands in `postgresql.conf`, as an administrator would write it.
    fn archive_command(&self) -> String {
        let words: Vec<String> = self
            .with_repo([Program::Archive.path().as_os_str(), OsStr::new("%p")])
            .iter()
            .map(|word| {
                let word = word.to_str().expect("a path of tests is UTF-8");
                match word {
                    "%p" => word.to_owned(),
                    // For the shell first, then for the server.
                    _ => format!("'{}'", word.replace('\'', r"'\''")).replace('%', "%%"),
                }
            })
            .collect();
        words.join(" ")
    }

    fn with_repo<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Vec<OsString> {
        let mut all: Vec<OsString> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
        all.extend(["--repo".into(), self.repo.clone()]);
        if let Some(config) = &self.config {
            all.extend(["--config".into(), config.as_os_str().to_owned()]);
        }
        all
    }
}
