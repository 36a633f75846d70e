//! Major versions, and the one table of what differs between them.
//!
//! 13 to 18 are known. A newer major is let through, because most of what is told here has changed rarely; whoever
//! meets one warns ([`MajorVersion::is_newer_than_known`]). An older one is refused. The page magics and control
//! versions were read from files of real servers (`tests/golden`).

use std::fmt;

use crate::error::{Class, Explain};

/// A major version of PostgreSQL: 13 or newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MajorVersion(u16);

/// What the files of one major look like.
struct Facts {
    major: u16,
    /// `XLOG_PAGE_MAGIC`: the first two bytes of each WAL page.
    page_magic: u16,
    /// `PG_CONTROL_VERSION`: shared by majors that have the same layout of `pg_control`.
    control_version: u32,
    /// `PostgreSQL-Backup-Manifest-Version`.
    manifest_version: u32,
}

const fn facts(major: u16, page_magic: u16, control_version: u32, manifest_version: u32) -> Facts {
    Facts {
        major,
        page_magic,
        control_version,
        manifest_version,
    }
}

/// Oldest first.
const KNOWN: [Facts; 6] = [
    facts(13, 0xD106, 1300, 1),
    facts(14, 0xD10D, 1300, 1),
    facts(15, 0xD110, 1300, 1),
    facts(16, 0xD113, 1300, 1),
    facts(17, 0xD116, 1700, 2),
    facts(18, 0xD118, 1800, 2),
];

/// What a page magic tells of the server that wrote the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MagicMeaning {
    /// This major wrote it.
    Major(MajorVersion),
    /// Older than anything supported.
    TooOld,
    /// In the run of numbers that majors newer than the known ones will take.
    Newer,
    /// A known magic with its bytes swapped: a big-endian machine wrote it.
    BigEndian,
    /// No WAL page begins with it.
    NotWal,
}

impl MajorVersion {
    /// The oldest that is supported.
    pub const OLDEST: Self = Self(13);
    /// The newest that this program has been tested with.
    pub const NEWEST_KNOWN: Self = Self(18);

    /// The major version of this number.
    pub fn new(major: u16) -> Result<Self, VersionError> {
        if major < Self::OLDEST.0 {
            return Err(VersionError::TooOld(major.to_string()));
        }
        Ok(Self(major))
    }

    /// From `server_version_num`, for example 150020 of 15.20.
    pub fn from_server_version_num(number: u32) -> Result<Self, VersionError> {
        match u16::try_from(number / 10_000) {
            Ok(major) => Self::new(major),
            Err(_) => Err(VersionError::NotAVersion(number.to_string())),
        }
    }

    /// From the file `PG_VERSION` of a data directory.
    pub fn from_pg_version(text: &str) -> Result<Self, VersionError> {
        let text = text.trim_end();
        let (major, rest) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        // Before 10 the major had two parts ("9.6"): too old, and not nonsense.
        match major.parse::<u16>() {
            Ok(major) if digits(rest) && !text.starts_with('+') => Self::new(major),
            _ => Err(VersionError::NotAVersion(text.to_owned())),
        }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Whether this program has never been tested with it; worth a warning.
    pub const fn is_newer_than_known(self) -> bool {
        self.0 > Self::NEWEST_KNOWN.0
    }

    fn facts(self) -> Option<&'static Facts> {
        KNOWN.iter().find(|facts| facts.major == self.0)
    }

    /// The magic of its WAL pages; `None` for a major newer than the known ones.
    pub fn page_magic(self) -> Option<u16> {
        self.facts().map(|facts| facts.page_magic)
    }

    /// The version number in its `pg_control`; `None` for a major newer than the known ones.
    pub fn control_version(self) -> Option<u32> {
        self.facts().map(|facts| facts.control_version)
    }

    /// The version of its `backup_manifest`; `None` for a major newer than the known ones.
    pub fn manifest_version(self) -> Option<u32> {
        self.facts().map(|facts| facts.manifest_version)
    }

    /// Whether options of replication commands stand in parentheses with commas: `BASE_BACKUP (LABEL 'x', WAIT
    /// false)`. Before 15 they are words with spaces between: `BASE_BACKUP LABEL 'x' NOWAIT`.
    pub const fn has_command_options_in_parentheses(self) -> bool {
        self.0 >= 15
    }

    /// Whether a base backup comes as one stream of typed messages. Before 15 it is one stream per tablespace and
    /// one more for the manifest.
    pub const fn has_one_backup_stream(self) -> bool {
        self.0 >= 15
    }

    /// Whether the server can make incremental backups (`UPLOAD_MANIFEST`, `summarize_wal`).
    pub const fn has_incremental_backup(self) -> bool {
        self.0 >= 17
    }

    /// Whether a backslash in a path of `tablespace_map` stands behind another one. Before 14 only line breaks do.
    pub const fn escapes_backslashes_in_tablespace_map(self) -> bool {
        self.0 >= 14
    }

    /// Whether `archive_library` can stand in the place of `archive_command`.
    pub const fn has_archive_library(self) -> bool {
        self.0 >= 15
    }

    /// Whether slots that are not used for some time can be dropped by the server (`idle_replication_slot_timeout`).
    pub const fn has_idle_slot_timeout(self) -> bool {
        self.0 >= 18
    }

    /// The SQL function that begins a backup by hand.
    pub const fn backup_start_function(self) -> &'static str {
        if self.0 >= 15 {
            "pg_backup_start"
        } else {
            "pg_start_backup"
        }
    }

    /// The SQL function that ends a backup by hand.
    pub const fn backup_stop_function(self) -> &'static str {
        if self.0 >= 15 {
            "pg_backup_stop"
        } else {
            "pg_stop_backup"
        }
    }
}

impl fmt::Display for MajorVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl MagicMeaning {
    /// What `magic`, the first two bytes of a page read as little-endian, tells.
    pub fn of(magic: u16) -> Self {
        let known = |magic| KNOWN.iter().find(|facts| facts.page_magic == magic);
        if let Some(facts) = known(magic) {
            return Self::Major(MajorVersion(facts.major));
        }
        if known(magic.swap_bytes()).is_some() {
            return Self::BigEndian;
        }
        let [oldest, .., newest] = &KNOWN;
        // Magics rise by a few with each major; those of the 8.x series began with 0xD05.
        if (0xD050..oldest.page_magic).contains(&magic) {
            Self::TooOld
        } else if (newest.page_magic..0xD200).contains(&magic) {
            Self::Newer
        } else {
            Self::NotWal
        }
    }
}

/// A version that is none, or that is not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// Before [`MajorVersion::OLDEST`].
    #[error("PostgreSQL {0} is older than {oldest}, the oldest that is supported", oldest = MajorVersion::OLDEST)]
    TooOld(String),
    /// Not the number or text of a version.
    #[error("\"{0}\" is not a version of PostgreSQL")]
    NotAVersion(String),
}

impl Explain for VersionError {
    fn class(&self) -> Class {
        Class::Usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::golden;
    use proptest::prelude::*;

    #[test]
    fn the_table_is_in_order_and_whole() {
        for (facts, major) in KNOWN.iter().zip(MajorVersion::OLDEST.0..) {
            assert_eq!(facts.major, major);
        }
        assert_eq!(KNOWN.last().unwrap().major, MajorVersion::NEWEST_KNOWN.0);
        assert!(KNOWN.is_sorted_by_key(|facts| facts.page_magic));
    }

    #[test]
    fn real_servers_write_the_magic_and_the_versions_of_the_table() {
        for major in golden::MAJORS {
            let page = golden::read(major, "segment.page");
            let magic = u16::from_le_bytes([page[0], page[1]]);
            let version = MajorVersion::new(major).unwrap();
            assert_eq!(version.page_magic(), Some(magic), "{major}");
            assert_eq!(MagicMeaning::of(magic), MagicMeaning::Major(version));
            let control = golden::told(major, "stopped.txt", "pg_control version number");
            assert_eq!(version.control_version().unwrap().to_string(), control, "{major}");
            let manifest = golden::text(major, "backup_manifest");
            let first = format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": {},",
                version.manifest_version().unwrap()
            );
            assert!(manifest.starts_with(&first), "{major}");
        }
    }

    #[test]
    fn a_version_is_read_in_each_of_its_forms() {
        let v = |major| MajorVersion::new(major);
        assert_eq!(MajorVersion::from_server_version_num(150_020), v(15));
        assert_eq!(MajorVersion::from_pg_version("18\n"), v(18));
        assert!(v(19).unwrap().is_newer_than_known() && !v(18).unwrap().is_newer_than_known());
        for text in ["9.6\n", "12"] {
            assert!(matches!(
                MajorVersion::from_pg_version(text),
                Err(VersionError::TooOld(_))
            ));
        }
        for text in ["", "x", "+15", "15.x", "-1", "99999999"] {
            assert!(matches!(
                MajorVersion::from_pg_version(text),
                Err(VersionError::NotAVersion(_))
            ));
        }
    }

    #[test]
    fn magics_that_no_known_server_writes_are_told_apart() {
        let meaning = MagicMeaning::of;
        assert_eq!(meaning(0xD101), MagicMeaning::TooOld); // PostgreSQL 12
        assert_eq!(meaning(0xD119), MagicMeaning::Newer);
        assert_eq!(meaning(0x10D1), MagicMeaning::BigEndian);
        assert_eq!(meaning(0xD10A), MagicMeaning::NotWal);
        assert_eq!(meaning(0), MagicMeaning::NotWal);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_version_parser_panic(text in ".{0,12}") {
            let _ = MajorVersion::from_pg_version(&text);
        }
    }
}
