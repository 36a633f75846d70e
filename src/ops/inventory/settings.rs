//! Captured configuration files: their shape in the repository, and their way back to a disk.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{Created, Staged, make_folder};
use crate::env::Env;
use crate::error::{Class, Explain};

const FORMAT: u32 = 1;

/// Passwords can stand in these files.
const MODE: u32 = 0o600;

/// Configuration files from outside the data directory, as they were when the backup was taken: the
/// object `settings.json`. **They may hold passwords** (`primary_conninfo`, `ssl_passphrase_command`),
/// as they do on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedSettings {
    format: u32,
    /// The files, those that name others before those that are named.
    pub files: Vec<CapturedFile>,
    /// Files that are known of and could not be read.
    pub unreadable: Vec<UnreadableFile>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedFile {
    /// Where it was.
    pub path: String,
    /// What named it.
    pub setting: SettingKind,
    /// What was in it.
    #[serde(flatten)]
    pub content: FileContent,
}

/// What names a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SettingKind {
    /// The setting `config_file`: `postgresql.conf`.
    ConfigFile,
    /// The setting `hba_file`: `pg_hba.conf`.
    HbaFile,
    /// The setting `ident_file`: `pg_ident.conf`.
    IdentFile,
    /// Another configuration file.
    Include,
}

/// What is in a file. Not shown by `Debug`: it may hold passwords.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileContent {
    /// Text, under the key `content`.
    #[serde(rename = "content")]
    Text(String),
    /// Bytes that are not UTF-8, in hexadecimal under the key `content_hex`.
    #[serde(rename = "content_hex", with = "hexadecimal")]
    Bytes(Vec<u8>),
}

/// A file that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableFile {
    /// Where it is.
    pub path: String,
    /// Why not.
    pub why: String,
}

/// Captured files that can't be read from the repository, or not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CapturedSettingsError {
    /// Of a format of a later version.
    #[error("the captured settings have format {found}, this version reads up to {FORMAT}")]
    NewerFormat {
        /// Their format.
        found: u32,
    },
    /// Not what they should be.
    #[error("the captured settings can't be read")]
    Damaged {
        /// Why not.
        source: serde_json::Error,
    },
    /// A path that would lead out of the folder.
    #[error("the captured file \"{path}\" has no place below a folder")]
    Escapes {
        /// The path.
        path: String,
    },
    /// Something else is there.
    #[error("{} is there already with other content", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The disk.
    #[error("could not write {}", path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
}

impl Explain for CapturedSettingsError {
    fn class(&self) -> Class {
        match self {
            Self::NewerFormat { .. } | Self::Exists { .. } => Class::Usage,
            Self::Damaged { .. } | Self::Escapes { .. } => Class::Damaged,
            Self::Write { .. } => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NewerFormat { .. } => "install the version of pgp-pitr that wrote them, or a later one",
            Self::Exists { .. } => "nothing was written over; name an empty folder",
            Self::Write { .. } => "check the folder's permissions and the room on its disk",
            Self::Damaged { .. } | Self::Escapes { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

impl CapturedSettings {
    /// These files.
    pub fn new(files: Vec<CapturedFile>, unreadable: Vec<UnreadableFile>) -> Self {
        Self {
            format: FORMAT,
            files,
            unreadable,
        }
    }

    /// The object's content.
    ///
    /// # Errors
    /// None that is known of: all is text.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads the object's content.
    ///
    /// # Errors
    /// Another format, or something else.
    pub fn from_json(bytes: &[u8]) -> Result<Self, CapturedSettingsError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |source| CapturedSettingsError::Damaged { source };
        let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format > FORMAT {
            return Err(CapturedSettingsError::NewerFormat { found: format });
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }

    /// Writes the files below `folder`, each under its whole path (`/etc/a.conf` becomes
    /// `FOLDER/etc/a.conf`), and gives the paths written. Only the owner may read them (mode 0600):
    /// **passwords can stand in them**. What is there is never written over; a file that is there with
    /// the same content is left.
    ///
    /// # Errors
    /// A path that leads out of the folder, a file with other content, or the disk.
    pub fn write_below(&self, folder: &Path, env: &Env) -> Result<Vec<PathBuf>, CapturedSettingsError> {
        // All places first: a refusal leaves nothing half written.
        let mut places = Vec::new();
        for file in &self.files {
            let place = folder.join(below(&file.path)?);
            if there(&place)?.is_some_and(|there| there != file.content.bytes()) {
                return Err(CapturedSettingsError::Exists { path: place });
            }
            places.push((place, file.content.bytes()));
        }
        let failed = |path: &Path, source| CapturedSettingsError::Write {
            path: path.to_path_buf(),
            source,
        };
        make_folder(folder).map_err(|source| failed(folder, source))?;
        for (place, bytes) in &places {
            match write(place, bytes, folder, env).map_err(|source| failed(place, source))? {
                Created::New => {}
                Created::Exists if there(place)?.as_deref() == Some(*bytes) => {}
                Created::Exists => return Err(CapturedSettingsError::Exists { path: place.clone() }),
            }
        }
        Ok(places.into_iter().map(|(place, _)| place).collect())
    }
}

impl FileContent {
    /// Of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Bytes(error.into_bytes()),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

/// The path below any folder.
fn below(path: &str) -> Result<PathBuf, CapturedSettingsError> {
    let escapes = || CapturedSettingsError::Escapes { path: path.to_owned() };
    let mut below = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => below.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(escapes()),
        }
    }
    if below.as_os_str().is_empty() {
        return Err(escapes());
    }
    Ok(below)
}

/// What is at a path.
fn there(path: &Path) -> Result<Option<Vec<u8>>, CapturedSettingsError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CapturedSettingsError::Write {
            path: path.to_path_buf(),
            source,
        }),
    }
}

fn write(path: &Path, bytes: &[u8], root: &Path, env: &Env) -> io::Result<Created> {
    let mut staged = Staged::beside(path, MODE, env)?;
    staged.file().write_all(bytes)?;
    staged.create(root)
}

mod hexadecimal {
    //! Bytes as pairs of hexadecimal digits.

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let digits = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let pairs = digits.as_bytes().chunks(2);
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some((char::from(*high).to_digit(16)? << 4 | char::from(*low).to_digit(16)?) as u8),
            _ => None,
        };
        pairs
            .map(|pair| byte(pair).ok_or_else(|| D::Error::custom("not pairs of hexadecimal digits")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use chrono::DateTime;

    fn captured(path: &str, bytes: &[u8]) -> CapturedFile {
        CapturedFile {
            path: path.to_owned(),
            setting: SettingKind::HbaFile,
            content: FileContent::new(bytes.to_vec()),
        }
    }

    fn env() -> Env {
        Env::made_up(&[], DateTime::UNIX_EPOCH, 1)
    }

    #[test]
    fn the_object_has_this_shape() {
        let settings = CapturedSettings::new(
            vec![captured("/etc/a.conf", b"a = 'b'\n"), captured("/etc/b.conf", b"\xFFb")],
            vec![UnreadableFile {
                path: "/etc/c.conf".to_owned(),
                why: "permission denied".to_owned(),
            }],
        );
        let text = String::from_utf8(settings.to_json().unwrap()).unwrap();
        assert_eq!(
            text,
            "{\"format\":1,\"files\":[{\"path\":\"/etc/a.conf\",\"setting\":\"hba_file\",\"content\":\"a = 'b'\\n\"},\
             {\"path\":\"/etc/b.conf\",\"setting\":\"hba_file\",\"content_hex\":\"ff62\"}],\
             \"unreadable\":[{\"path\":\"/etc/c.conf\",\"why\":\"permission denied\"}]}\n"
        );
        assert_eq!(CapturedSettings::from_json(text.as_bytes()).unwrap(), settings);
    }

    #[test]
    fn a_later_format_and_damage_are_told_apart() {
        let class = |text: &str| CapturedSettings::from_json(text.as_bytes()).unwrap_err().class();
        assert_eq!(class("{\"format\":2,\"files\":7}"), Class::Usage);
        assert_eq!(class("{\"format\":1,\"files\":7}"), Class::Damaged);
        let odd = "{\"format\":1,\"files\":[{\"path\":\"a\",\"setting\":\"include\",\"content_hex\":\"abc\"}],\"unreadable\":[]}";
        assert_eq!(class(odd), Class::Damaged);
    }

    #[test]
    fn files_come_back_below_the_folder_for_their_owner_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("new/folder");
        let settings = CapturedSettings::new(vec![captured("/etc/it's here/a.conf", b"\xFFsecret")], Vec::new());
        for _ in 0..2 {
            let written = settings.write_below(&folder, &env()).unwrap();
            assert_eq!(written, [folder.join("etc/it's here/a.conf")]);
            assert_eq!(fs::read(&written[0]).unwrap(), b"\xFFsecret");
            assert_eq!(fs::metadata(&written[0]).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn no_path_leads_out_of_the_folder() {
        let scratch = tempfile::tempdir().unwrap();
        for path in ["/etc/../../x", "../x", "", "/", "a/.."] {
            let settings = CapturedSettings::new(vec![captured("/fine", b"a"), captured(path, b"b")], Vec::new());
            let error = settings.write_below(scratch.path(), &env()).unwrap_err();
            assert!(
                matches!(error, CapturedSettingsError::Escapes { .. }),
                "{path}: {error}"
            );
        }
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing was written");
    }

    #[test]
    fn what_is_there_is_never_written_over() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("b"), "old").unwrap();
        let settings = CapturedSettings::new(vec![captured("/a", b"new"), captured("/b", b"new")], Vec::new());
        let error = settings.write_below(scratch.path(), &env()).unwrap_err();
        assert_eq!(error.class(), Class::Usage);
        assert_eq!(fs::read(scratch.path().join("b")).unwrap(), b"old");
        assert!(!scratch.path().join("a").exists());
    }

    #[test]
    fn content_is_not_shown_by_debug() {
        let shown = format!("{:?}", captured("/a", b"password=hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
