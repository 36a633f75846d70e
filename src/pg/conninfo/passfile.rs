//! The password file: lines of `host:port:database:user:password`, the first that matches counts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::types::Secret;

/// Something to tell the user; the connection may work all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The password file was not read: others than its owner may read it.
    PassfileOpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The password file was not read: it is a folder, a pipe or the like.
    PassfileNotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The password file could not be read.
    PassfileUnreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PassfileOpenToOthers { path, mode } => write!(
                f,
                "password file {} ignored: its mode is {mode:04o}, so others can read it; run: chmod 0600 {}",
                path.display(),
                path.display()
            ),
            Self::PassfileNotAFile { path } => {
                write!(f, "password file {} ignored: it is not a plain file", path.display())
            }
            Self::PassfileUnreadable { path, why } => {
                write!(f, "password file {} could not be read: {why}", path.display())
            }
        }
    }
}

/// The lines of a password file. Has no `Debug`: it holds passwords.
pub(super) struct Passfile {
    content: Vec<u8>,
}

const FILE_TYPE: u32 = 0o170_000;
const REGULAR_FILE: u32 = 0o100_000;

impl Passfile {
    /// Takes the file as read, with its `st_mode`. `named`: the user named it, so its absence is worth
    /// a warning.
    pub(super) fn open(
        path: &Path,
        named: bool,
        read: io::Result<(Vec<u8>, u32)>,
        warnings: &mut Vec<Warning>,
    ) -> Option<Self> {
        let path = || path.to_owned();
        match read {
            Ok((_, mode)) if mode & FILE_TYPE != 0 && mode & FILE_TYPE != REGULAR_FILE => {
                warnings.push(Warning::PassfileNotAFile { path: path() });
                None
            }
            Ok((_, mode)) if mode & 0o077 != 0 => {
                let mode = mode & 0o7777;
                warnings.push(Warning::PassfileOpenToOthers { path: path(), mode });
                None
            }
            Ok((content, _)) => Some(Self { content }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => None,
            Err(error) => {
                let why = error.to_string();
                warnings.push(Warning::PassfileUnreadable { path: path(), why });
                None
            }
        }
    }

    /// The password of the first line that matches all four, unless that is empty.
    pub(super) fn password(&self, host: &str, port: u16, dbname: &str, user: &str) -> Option<Secret> {
        let port = port.to_string();
        self.content
            .split(|b| *b == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .filter(|line| !line.starts_with(b"#"))
            .find_map(|line| {
                let rest = after_field(line, host.as_bytes())?;
                let rest = after_field(rest, port.as_bytes())?;
                let rest = after_field(rest, dbname.as_bytes())?;
                let rest = after_field(rest, user.as_bytes())?;
                Some(unescape(rest))
            })
            .filter(|password| !password.is_empty())
            .map(Secret::new)
    }
}

/// What follows the first field, if that field is `*` or, unescaped, the wanted text.
fn after_field<'a>(line: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let (mut rest, mut wanted) = (line, wanted);
    loop {
        let (&byte, after) = rest.split_first()?;
        if byte == b':' && wanted.is_empty() {
            return Some(after);
        }
        let (byte, after) = match (byte, after.split_first()) {
            (b'\\', Some((&escaped, after))) => (escaped, after),
            _ => (byte, after),
        };
        let (&expected, left) = wanted.split_first()?;
        if byte != expected {
            return None;
        }
        (rest, wanted) = (after, left);
    }
}

/// The password itself: up to the next bare `:`, which allows for fields to come.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = field.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            b':' => break,
            b'\\' => plain.push(rest.next().unwrap_or(b'\\')),
            byte => plain.push(byte),
        }
    }
    plain
}
