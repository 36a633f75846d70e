//! `show`: one backup, wherever in the repository it is.

use super::inventory::CapturedSettings;
use crate::error::{Class, Explain, Failure};
use crate::pg::SystemId;
use crate::repo::backup::{self, BackupId, BackupRecord, ParseBackupIdError};
use crate::repo::{ClusterInfo, Repository};

/// A backup and what was captured with it.
#[derive(Debug)]
pub struct Shown {
    /// The backup.
    pub record: BackupRecord,
    /// Configuration files from outside the data directory; `None` where none were captured. They can be
    /// damaged while the backup itself is whole.
    pub settings: Option<Result<CapturedSettings, Failure>>,
}

/// A backup that can't be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShowError {
    /// No id.
    #[error(transparent)]
    Id(#[from] ParseBackupIdError),
    /// There is none of that id.
    #[error("there is no backup {id} in {url}")]
    NotThere {
        /// The id.
        id: BackupId,
        /// The repository.
        url: String,
    },
    /// It never became one.
    #[error("backup {id} of cluster {system} is not finished: it is under way, or was interrupted")]
    Unfinished {
        /// The id.
        id: BackupId,
        /// Its cluster.
        system: SystemId,
    },
}

impl Explain for ShowError {
    fn class(&self) -> Class {
        match self {
            Self::Id(_) => Class::Usage,
            Self::NotThere { .. } | Self::Unfinished { .. } => Class::NotFound,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            // Its message says so itself.
            Self::Id(_) => None,
            Self::NotThere { .. } | Self::Unfinished { .. } => {
                Some("`pgp-pitr list` shows the backups that are there".to_owned())
            }
        }
    }
}

/// Finds a backup in any cluster of the repository.
///
/// # Errors
/// No such backup, a damaged record, or the store.
pub async fn show(repository: &Repository, id: &BackupId) -> Result<Shown, Failure> {
    let systems = ClusterInfo::systems(repository).await?;
    for system in &systems {
        if let Some(record) = backup::read(repository, *system, id).await? {
            let settings = captured(repository, &record).await.transpose();
            return Ok(Shown { record, settings });
        }
    }
    for system in systems {
        if backup::ids(repository, system).await?.contains(id) {
            return Err(ShowError::Unfinished { id: id.clone(), system }.into());
        }
    }
    let url = repository.store().url().to_string();
    Err(ShowError::NotThere { id: id.clone(), url }.into())
}

async fn captured(repository: &Repository, record: &BackupRecord) -> Result<Option<CapturedSettings>, Failure> {
    let Some(part) = record.part(backup::SETTINGS) else {
        return Ok(None);
    };
    let bytes = backup::read_part(repository, record, part).await?;
    Ok(Some(CapturedSettings::from_json(&bytes)?))
}
