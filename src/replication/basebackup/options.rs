//! What a base backup is asked for, and the command that says so in each version's words.

use crate::error::{Class, Explain};
use crate::pg::MajorVersion;

/// How the server makes the checkpoint that a base backup begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once, at the cost of a burst of writes.
    Fast,
    /// Spread out like any other (`checkpoint_completion_target`): minutes, as a rule.
    Spread,
}

/// The checksum of each file in the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestChecksum {
    /// None: sizes only.
    None,
    /// CRC-32C, the server's default.
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl ManifestChecksum {
    const fn word(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }
}

/// What a base backup is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Goes into `backup_label` and the server's log.
    pub label: String,
    /// How the checkpoint before it is made.
    pub checkpoint: Checkpoint,
    /// The most that the server sends, in kB (1024 bytes) a second; `None` for no limit.
    pub max_rate: Option<u32>,
    /// Whether the server adds up sizes first (some seconds on a large cluster) and reports how far it is.
    pub progress: bool,
    /// Whether the server makes a `backup_manifest`, and with which checksums.
    pub manifest: Option<ManifestChecksum>,
    /// Whether the server waits until its own archiver has the last WAL file.
    pub wait: bool,
    /// Whether the server checks the checksum of each page that it sends, if the cluster has them.
    pub verify_checksums: bool,
    /// Whether tablespaces are listed in a file `tablespace_map` instead of being links in `pg_tblspc`.
    pub tablespace_map: bool,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        Self {
            label: "pgp-pitr".to_owned(),
            checkpoint: Checkpoint::Fast,
            max_rate: None,
            progress: true,
            manifest: Some(ManifestChecksum::Crc32c),
            wait: false,
            verify_checksums: true,
            tablespace_map: false,
        }
    }
}

/// Options that no server would take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupOptionsError {
    /// The label is too long, or has a line break or zero byte in it.
    #[error("the label of a base backup is one line of at most 1000 bytes")]
    Label,
    /// The rate is out of the server's range.
    #[error("the maximum rate of a base backup lies between 32 kB/s and 1 GB/s, not at {0} kB/s")]
    Rate(u32),
}

impl Explain for BackupOptionsError {
    fn class(&self) -> Class {
        Class::Usage
    }
}

impl BaseBackupOptions {
    /// The command that asks a server for it.
    pub(super) fn command(&self, version: MajorVersion) -> Result<String, BackupOptionsError> {
        // The server's limit is MAXPGPATH, 1024; a line break would add lines of its own to backup_label.
        if self.label.len() > 1000 || self.label.contains(['\n', '\r', '\0']) {
            return Err(BackupOptionsError::Label);
        }
        if let Some(rate) = self.max_rate.filter(|rate| !(32..=1 << 20).contains(rate)) {
            return Err(BackupOptionsError::Rate(rate));
        }
        let label = format!("LABEL '{}'", self.label.replace('\'', "''"));
        let mut words = vec![label];
        let mut add = |condition: bool, word: &str| words.extend(condition.then(|| word.to_owned()));
        add(self.progress, "PROGRESS");
        add(self.tablespace_map, "TABLESPACE_MAP");
        if version.has_command_options_in_parentheses() {
            add(self.checkpoint == Checkpoint::Fast, "CHECKPOINT 'fast'");
            add(!self.wait, "WAIT false");
            add(!self.verify_checksums, "VERIFY_CHECKSUMS false");
        } else {
            add(self.checkpoint == Checkpoint::Fast, "FAST");
            add(!self.wait, "NOWAIT");
            add(!self.verify_checksums, "NOVERIFY_CHECKSUMS");
        }
        if let Some(rate) = self.max_rate {
            add(true, &format!("MAX_RATE {rate}"));
        }
        if let Some(checksum) = self.manifest {
            add(true, "MANIFEST 'yes'");
            add(true, &format!("MANIFEST_CHECKSUMS '{}'", checksum.word()));
        }
        Ok(match version.has_command_options_in_parentheses() {
            true => format!("BASE_BACKUP ({})", words.join(", ")),
            false => format!("BASE_BACKUP {}", words.join(" ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(options: &BaseBackupOptions, major: u16) -> Result<String, BackupOptionsError> {
        options.command(MajorVersion::new(major).unwrap())
    }

    #[test]
    fn each_version_is_asked_in_its_own_words() {
        let options = BaseBackupOptions {
            label: "it's".to_owned(),
            max_rate: Some(1024),
            verify_checksums: false,
            ..BaseBackupOptions::default()
        };
        assert_eq!(
            command(&options, 14).unwrap(),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT NOVERIFY_CHECKSUMS MAX_RATE 1024 MANIFEST 'yes' \
             MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert_eq!(
            command(&options, 15).unwrap(),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, VERIFY_CHECKSUMS false, \
             MAX_RATE 1024, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        );
    }

    #[test]
    fn what_the_server_would_refuse_is_refused_here() {
        let with = |label: &str, max_rate| BaseBackupOptions {
            label: label.to_owned(),
            max_rate,
            ..BaseBackupOptions::default()
        };
        for rate in [0, 31, (1 << 20) + 1] {
            assert_eq!(command(&with("x", Some(rate)), 15), Err(BackupOptionsError::Rate(rate)));
        }
        assert!(command(&with("x", Some(32)), 15).is_ok());
        for label in ["a\nb", "a\0", &"a".repeat(1001)] {
            assert_eq!(command(&with(label, None), 15), Err(BackupOptionsError::Label));
        }
    }
}
