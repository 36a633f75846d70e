//! The data directory that a command runs in or points at.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Class, Explain};
use crate::pg::{ControlError, ControlFile, MajorVersion, VersionError};
use crate::repo::ClusterInfo;

/// A data directory whose control file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// It is there and can't be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// A `PG_VERSION` that makes no sense.
    #[error("{} makes no sense", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: VersionError,
    },
    /// It is there and makes no sense.
    #[error("{} makes no sense", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ControlError,
    },
}

impl Explain for LocalError {
    fn class(&self) -> Class {
        match self {
            Self::Read { .. } => Class::Failed,
            Self::Control { .. } | Self::Version { .. } => Class::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        Some("run it as the user that owns the data directory, and look at that file with pg_controldata".to_owned())
    }
}

/// What a data directory tells of its cluster.
#[derive(Debug, Clone)]
pub struct LocalCluster {
    /// Its `global/pg_control`.
    pub control: ControlFile,
    /// Its `PG_VERSION`.
    pub major: MajorVersion,
}

impl LocalCluster {
    /// Reads it; `None` where there is no `global/pg_control`.
    ///
    /// # Errors
    /// Files that can't be read or make no sense.
    pub fn read(data_directory: &Path) -> Result<Option<Self>, LocalError> {
        let Some(control) = control_file(data_directory)? else {
            return Ok(None);
        };
        let path = data_directory.join("PG_VERSION");
        let text = fs::read_to_string(&path).map_err(|source| LocalError::Read {
            path: path.clone(),
            source,
        })?;
        let major = MajorVersion::from_pg_version(&text).map_err(|source| LocalError::Version { path, source })?;
        Ok(Some(Self { control, major }))
    }

    /// What the repository is told of it.
    pub fn info(&self) -> ClusterInfo {
        ClusterInfo {
            system: self.control.system,
            major: self.major,
            segment_size: self.control.segment_size,
            wal_page_size: self.control.wal_block_size,
        }
    }
}

/// Reads a data directory's `global/pg_control`; `None` where there is none.
///
/// # Errors
/// One that can't be read or makes no sense.
pub fn control_file(data_directory: &Path) -> Result<Option<ControlFile>, LocalError> {
    let path = data_directory.join("global/pg_control");
    // The server rewrites it in place, in one sector-sized write that a reader may see half of: a
    // second look tells a torn read from damage.
    let mut tries = 5;
    loop {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LocalError::Read { path, source }),
        };
        tries -= 1;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok(Some(control)),
            Err(source) if tries == 0 => return Err(LocalError::Control { path, source }),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}
