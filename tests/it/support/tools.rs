//! The programs that tests need and do not build: PostgreSQL of several majors, an S3 server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use pgp_pitr::env::Env;

/// One installed PostgreSQL major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Major {
    number: u32,
    programs: PathBuf,
}

impl Major {
    /// Every major found, oldest first, one entry each: in the folder of test tools, then where
    /// Debian puts them. Panics where tests could not mean anything: none found, or, in CI, not 15
    /// and a newer one.
    pub fn all() -> &'static [Self] {
        static FOUND: OnceLock<Vec<Major>> = OnceLock::new();
        FOUND.get_or_init(|| {
            let mut found: Vec<Self> = Vec::new();
            for folder in postgres_folders() {
                if let Some(major) = Self::in_folder(&folder)
                    && found.iter().all(|known| known.number != major.number)
                {
                    found.push(major);
                }
            }
            found.sort_by_key(|major| major.number);
            let numbers: Vec<u32> = found.iter().map(|major| major.number).collect();
            assert!(
                !found.is_empty(),
                "no PostgreSQL found: run tests/run.sh, which installs it"
            );
            assert!(
                Env::of_process().var("CI").is_none() || (numbers.contains(&15) && numbers.iter().any(|&n| n > 15)),
                "CI needs PostgreSQL 15 and a newer one, found {numbers:?}: run tests/run.sh"
            );
            found
        })
    }

    /// The major that single tests use: 15, or the oldest one here if it is not.
    pub fn usual() -> &'static Self {
        let all = Self::all();
        all.iter().find(|major| major.number == 15).unwrap_or(&all[0])
    }

    /// The newest major found.
    pub fn newest() -> &'static Self {
        Self::all().last().expect("all() is never empty")
    }

    /// Its number, for example 17.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The path of one of its programs (`pg_waldump`, `pgbench`, …).
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    fn in_folder(programs: &Path) -> Option<Self> {
        let answer = Command::new(programs.join("postgres")).arg("--version").output().ok()?;
        // "postgres (PostgreSQL) 17.11 (Debian …)", "postgres (PostgreSQL) 19beta1"
        let text = String::from_utf8(answer.stdout).ok()?;
        let version = text.split_whitespace().nth(2)?;
        let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
        Some(Self {
            number: digits.parse().ok()?,
            programs: programs.to_owned(),
        })
    }
}

/// A program that one of `tests/tools/*.sh` installs. Panics with the script's name where it is missing.
pub fn tool(name: &str, installed_by: &str) -> PathBuf {
    installed(&format!("{name}-"))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run {installed_by}"))
}

/// Folders that may hold a `postgres`, in order of preference.
fn postgres_folders() -> Vec<PathBuf> {
    let debian = entries(Path::new("/usr/lib/postgresql"));
    installed("postgresql-")
        .chain(debian)
        .map(|home| home.join("bin"))
        .collect()
}

/// What tests/tools/*.sh have installed under names that begin so.
fn installed(prefix: &str) -> impl Iterator<Item = PathBuf> {
    entries(&folder()).into_iter().filter(move |entry| {
        let name = entry.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(prefix)
    })
}

/// Where tests/tools/*.sh put what they install; `tools_folder` in common.sh there says the same.
fn folder() -> PathBuf {
    let env = Env::of_process();
    let cache = || match (env.var_os("XDG_CACHE_HOME"), env.var_os("HOME")) {
        _ if rustix::process::geteuid().is_root() => PathBuf::from("/var/cache"),
        (Some(cache), _) => PathBuf::from(cache),
        (None, home) => Path::new(home.unwrap_or_default()).join(".cache"),
    };
    env.var_os("PGP_TEST_TOOLS")
        .map_or_else(|| cache().join("pgp-pitr/tools"), PathBuf::from)
}

/// The paths of all that is in a folder, sorted; none if it isn't there.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    entries
}
