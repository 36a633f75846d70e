//! Where a setting comes from: flag, then environment, then file, then default.
//!
//! One table, [`KEYS`], names every setting; `docs/settings.md` is tested against it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::env::Env;
use crate::error::{Class, Explain};
use crate::pg::conninfo::nearest;
use crate::store::{RepoUrl, S3Settings};

/// One setting: its name in the file (a table's after a dot), its environment variable, and what it
/// is when nobody says anything (empty: nothing).
pub struct Key {
    /// In the file; with `-` for `_`, the flag.
    pub name: &'static str,
    /// In the environment.
    pub variable: &'static str,
    /// When nobody says anything.
    pub default: &'static str,
    /// Whether it is never to be shown.
    pub secret: bool,
    /// One line for the documentation.
    pub meaning: &'static str,
}

const fn key(name: &'static str, variable: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        variable,
        default,
        secret: false,
        meaning,
    }
}

const fn secret(name: &'static str, variable: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        variable,
        default: "",
        secret: true,
        meaning,
    }
}

/// Every setting there is.
pub const KEYS: &[Key] = &[
    key(
        "repo",
        "PGP_REPO",
        "",
        "the repository: PATH, file:///PATH or s3://BUCKET/PREFIX",
    ),
    key(
        "cluster",
        "PGP_CLUSTER",
        "",
        "the cluster's system identifier, where the repository holds several",
    ),
    key(
        "compression_level",
        "PGP_COMPRESSION_LEVEL",
        "",
        "zstd's level, 1 to 19: unless set, 1 for WAL and 3 for backups",
    ),
    key(
        "restore_retry",
        "PGP_RESTORE_RETRY",
        "5min",
        "how long pgp-restore tries before it gives up",
    ),
    key(
        "jobs",
        "PGP_JOBS",
        "",
        "how many threads compress, decompress and write: unless set, one per core, 8 at most",
    ),
    key(
        "dbname",
        "PGP_DBNAME",
        "",
        "how to reach the server: a URI or key=value pairs, by libpq's rules",
    ),
    key("host", "PGP_HOST", "", "the server's host or socket folder"),
    key("port", "PGP_PORT", "", "the server's port"),
    key("user", "PGP_USER", "", "the role to connect as"),
    key("label", "PGP_LABEL", "", "a text that names the backup for people"),
    key(
        "checkpoint",
        "PGP_CHECKPOINT",
        "fast",
        "how the backup's first checkpoint is made: fast or spread",
    ),
    key(
        "max_rate",
        "PGP_MAX_RATE",
        "",
        "the most that a backup reads in a second (32kB to 1GB)",
    ),
    key(
        "slot",
        "PGP_SLOT",
        "",
        "a replication slot: the one to receive from, or the one that holds a backup's WAL",
    ),
    key(
        "create_slot",
        "PGP_CREATE_SLOT",
        "false",
        "whether receive makes the slot where it is missing",
    ),
    key(
        "synchronous",
        "PGP_SYNCHRONOUS",
        "false",
        "whether each piece of WAL leaves at once, for synchronous_standby_names",
    ),
    key(
        "tail_interval",
        "PGP_TAIL_INTERVAL",
        "1s",
        "how long received WAL may wait before it is stored",
    ),
    key(
        "status_interval",
        "PGP_STATUS_INTERVAL",
        "10s",
        "how often a receiver tells the server where it is",
    ),
    key(
        "spool",
        "PGP_SPOOL",
        "",
        "a folder on a local disk that takes received WAL while the repository can't be written to",
    ),
    key("spool_limit", "PGP_SPOOL_LIMIT", "1GB", "how much the spool may hold"),
    key(
        "durable",
        "PGP_DURABLE",
        "store",
        "what the server is told to be durable: what is in the store, or in the spool",
    ),
    key(
        "bindir",
        "PGP_BINDIR",
        "",
        "the folder of PostgreSQL's programs, for restore --start: unless set, it is looked for",
    ),
    key(
        "wal_timeout",
        "PGP_WAL_TIMEOUT",
        "5min",
        "how long a backup waits for its last WAL to arrive",
    ),
    key(
        "status_file",
        "PGP_STATUS_FILE",
        "",
        "where a receiver keeps its status: unless set, a file of this machine's run-time state",
    ),
    key(
        "log_format",
        "PGP_LOG_FORMAT",
        "text",
        "how a receiver's log is written: text or json",
    ),
    key(
        "log_level",
        "PGP_LOG_LEVEL",
        "info",
        "what a receiver's log tells: error, warn, info or debug",
    ),
    key("s3.access_key_id", "AWS_ACCESS_KEY_ID", "", "S3: the key's name"),
    secret(
        "s3.secret_access_key",
        "AWS_SECRET_ACCESS_KEY",
        "S3: the key; better as secret_access_key_file",
    ),
    secret("s3.session_token", "AWS_SESSION_TOKEN", "S3: a temporary key's token"),
    key("s3.region", "AWS_REGION", "us-east-1", "S3: the region"),
    key(
        "s3.endpoint_url",
        "AWS_ENDPOINT_URL",
        "",
        "S3: the endpoint of a store that is not Amazon's",
    ),
];

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Flag,
    /// In this variable.
    Environment(&'static str),
    /// In this file.
    File(PathBuf),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(variable) => f.write_str(variable),
            Self::File(path) => path.display().fmt(f),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Settings that make no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file can't be read.
    #[error("could not read the settings file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the settings file {} is not TOML: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// A key that doesn't exist.
    #[error("unknown setting \"{key}\" in {}{}", path.display(), near(nearest))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The known key nearest to it, if one is near.
        nearest: Option<String>,
    },
    /// A value that can't be read.
    #[error("{name} = \"{value}\" ({origin}): {why}")]
    Value {
        /// The setting.
        name: &'static str,
        /// Its text.
        value: String,
        /// Where it was found.
        origin: Origin,
        /// Why not.
        why: String,
    },
    /// No repository was named.
    #[error("no repository was named")]
    NoRepo,
}

impl Explain for SettingsError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoRepo => {
                Some("give --repo URL, set PGP_REPO, or write repo = \"URL\" into the settings file".to_owned())
            }
            Self::Read { .. } => Some("check its path and permissions".to_owned()),
            Self::Unknown { nearest: None, .. } => {
                let known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
                Some(format!("known are {}", known.join(", ")))
            }
            Self::Syntax { .. } | Self::Unknown { .. } | Self::Value { .. } => None,
        }
    }
}

/// All settings in their layers.
pub struct Settings {
    flags: BTreeMap<&'static str, String>,
    env: Arc<Env>,
    file: Option<(PathBuf, BTreeMap<&'static str, String>)>,
}

impl Settings {
    /// Gathers the layers. `config` is the file named by flag; without one `PGP_CONFIG`, then the
    /// first of the standard places that exists.
    ///
    /// # Errors
    /// A file that was named and can't be read, isn't TOML, or has an unknown key.
    pub fn gather(
        flags: BTreeMap<&'static str, String>,
        config: Option<&Path>,
        env: &Arc<Env>,
    ) -> Result<Self, SettingsError> {
        let named = config
            .map(Path::to_path_buf)
            .or_else(|| env.var_os("PGP_CONFIG").map(PathBuf::from));
        let file = match named {
            Some(path) => Some(read_file(&path)?),
            None => match standard_places(env).into_iter().find(|path| path.exists()) {
                Some(path) => Some(read_file(&path)?),
                None => None,
            },
        };
        Ok(Self {
            flags,
            env: env.clone(),
            file,
        })
    }

    /// The settings file in use.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// A setting's text and where it was found; `None` where nobody said anything and there is no
    /// default.
    pub fn text(&self, name: &str) -> Option<(String, Origin)> {
        let key = KEYS.iter().find(|key| key.name == name)?;
        if let Some(value) = self.flags.get(key.name) {
            return Some((value.clone(), Origin::Flag));
        }
        if let Some(value) = self.env.var(key.variable) {
            return Some((value.to_owned(), Origin::Environment(key.variable)));
        }
        if let Some((path, values)) = &self.file
            && let Some(value) = values.get(key.name)
        {
            return Some((value.clone(), Origin::File(path.clone())));
        }
        (!key.default.is_empty()).then(|| (key.default.to_owned(), Origin::Default))
    }

    /// A setting as a value, read by `read`.
    ///
    /// # Errors
    /// A text that `read` refuses; the error says where it was found.
    pub fn read<T, E: fmt::Display>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, SettingsError> {
        self.text(name)
            .map(|(value, origin)| {
                read(&value).map_err(|error| SettingsError::Value {
                    name,
                    value: without_userinfo(&value),
                    origin,
                    why: error.to_string(),
                })
            })
            .transpose()
    }

    /// A setting as a value of a type that reads itself.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn get<T: FromStr<Err: fmt::Display>>(&self, name: &'static str) -> Result<Option<T>, SettingsError> {
        self.read(name, str::parse)
    }

    /// The repository's address.
    ///
    /// # Errors
    /// None was named, or it names nothing.
    pub fn repo(&self) -> Result<RepoUrl, SettingsError> {
        self.get("repo")?.ok_or(SettingsError::NoRepo)
    }

    /// The level for zstd, or `default`.
    ///
    /// # Errors
    /// No number from 1 to 19.
    pub fn compression_level(&self, default: i32) -> Result<i32, SettingsError> {
        let read = |text: &str| match text.parse() {
            Ok(level) if (1..=crate::codec::MAX_LEVEL).contains(&level) => Ok(level),
            _ => Err(format!("a level is a number from 1 to {}", crate::codec::MAX_LEVEL)),
        };
        Ok(self.read("compression_level", read)?.unwrap_or(default))
    }

    /// S3's settings: all `AWS_*` variables, and below them what the file says.
    pub fn s3(&self) -> S3Settings {
        let mut s3 = S3Settings::of_environment(&self.env);
        if let Some((_, values)) = &self.file {
            for (name, value) in values {
                if let Some(name) = name.strip_prefix("s3.") {
                    s3.set_default(&format!("aws_{name}"), value.clone());
                }
            }
        }
        s3
    }

    /// Whether S3's key stands in the environment and nowhere else: then a server that calls
    /// `pgp-restore` must have it in its own.
    pub fn s3_key_only_in_environment(&self) -> bool {
        matches!(self.text("s3.secret_access_key"), Some((_, Origin::Environment(_))))
    }
}

/// What stands before an `@` in an address may be a password.
fn without_userinfo(value: &str) -> String {
    match (value.find("://"), value.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &value[..scheme], &value[at..]),
        _ => value.to_owned(),
    }
}

fn standard_places(env: &Env) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/etc/pgp/pgp.toml")];
    let home = || env.var_os("HOME").map(|home| Path::new(home).join(".config"));
    if let Some(folder) = env.var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home) {
        places.push(folder.join("pgp/pgp.toml"));
    }
    places
}

fn read_file(path: &Path) -> Result<(PathBuf, BTreeMap<&'static str, String>), SettingsError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_path_buf(),
            source,
        })
    };
    let table: toml::Table = read(path)?
        .parse()
        .map_err(|error: toml::de::Error| SettingsError::Syntax {
            path: path.to_path_buf(),
            why: error.to_string().trim_end().replace('\n', " "),
        })?;
    let mut values = BTreeMap::new();
    for (name, value) in flatten(table) {
        if let Some(key) = KEYS.iter().find(|key| key.name == name) {
            values.insert(key.name, value);
        } else if let Some(key) = name.strip_suffix("_file").and_then(|name| secret_key(name)) {
            // Relative to the settings file: it is where the author of the path was looking.
            let secret = read(&path.parent().unwrap_or(Path::new(".")).join(&value))?;
            values
                .entry(key.name)
                .or_insert_with(|| secret.trim_end_matches(['\r', '\n']).to_owned());
        } else {
            return Err(SettingsError::Unknown {
                path: path.to_path_buf(),
                nearest: nearest_key(&name),
                key: name,
            });
        }
    }
    Ok((path.to_path_buf(), values))
}

fn secret_key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.secret && key.name == name)
}

fn flatten(table: toml::Table) -> Vec<(String, String)> {
    let text = |value: toml::Value| match value {
        toml::Value::String(text) => text,
        other => other.to_string(),
    };
    let mut flat = Vec::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) => {
                flat.extend(
                    inner
                        .into_iter()
                        .map(|(key, value)| (format!("{name}.{key}"), text(value))),
                );
            }
            value => flat.push((name, text(value))),
        }
    }
    flat
}

fn near(key: &Option<String>) -> String {
    key.as_ref()
        .map(|key| format!("; the nearest known one is \"{key}\""))
        .unwrap_or_default()
}

fn nearest_key(name: &str) -> Option<String> {
    let files: Vec<String> = KEYS
        .iter()
        .filter(|key| key.secret)
        .map(|key| format!("{}_file", key.name))
        .collect();
    let known = KEYS.iter().map(|key| key.name).chain(files.iter().map(String::as_str));
    nearest(name, known).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(file: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgp.toml");
        fs::write(&path, file).unwrap();
        fs::write(folder.path().join("key"), "hush\n").unwrap();
        let env = Arc::new(Env::made_up(variables, chrono::DateTime::UNIX_EPOCH, 1));
        let flags = BTreeMap::from([("jobs", "3".to_owned())]);
        Settings::gather(flags, Some(&path), &env)
    }

    #[test]
    fn a_flag_beats_the_environment_and_that_the_file() {
        let settings = gather(
            "jobs = 1\nrepo = '/file'\nuser = 'f'",
            &[("PGP_JOBS", "2"), ("PGP_REPO", "/env")],
        )
        .unwrap();
        assert_eq!(settings.get::<u32>("jobs").unwrap(), Some(3));
        assert_eq!(
            settings.text("repo").unwrap(),
            ("/env".to_owned(), Origin::Environment("PGP_REPO"))
        );
        assert!(matches!(settings.text("user"), Some((user, Origin::File(_))) if user == "f"));
        assert_eq!(settings.text("checkpoint").unwrap().1, Origin::Default);
    }

    #[test]
    fn a_misspelt_key_is_told_with_the_nearest_known_one() {
        for (line, key, near) in [
            ("rep = '/x'", "rep", "repo"),
            ("restore-retry = '1s'", "restore-retry", "restore_retry"),
            (
                "[s3]\nsecret_access_key_fil = 'x'",
                "s3.secret_access_key_fil",
                "s3.secret_access_key_file",
            ),
        ] {
            match gather(line, &[]) {
                Err(SettingsError::Unknown {
                    key: found, nearest, ..
                }) => assert_eq!((&*found, nearest.as_deref()), (key, Some(near))),
                _ => panic!("{line} was taken"),
            }
        }
    }

    #[test]
    fn a_secret_may_stand_in_a_file_of_its_own() {
        let settings = gather("[s3]\nsecret_access_key_file = 'key'", &[]).unwrap();
        assert_eq!(settings.s3().get("aws_secret_access_key"), Some("hush"));
        assert!(!settings.s3_key_only_in_environment());
    }

    #[test]
    fn a_value_that_makes_no_sense_is_told_with_its_place() {
        let settings = gather("", &[("PGP_COMPRESSION_LEVEL", "99")]).unwrap();
        let error = settings.compression_level(1).unwrap_err().to_string();
        assert!(
            error.contains("PGP_COMPRESSION_LEVEL") && error.contains("1 to 19"),
            "{error}"
        );
    }
}
