//! What a cluster is, bound once by the first writer.

use serde::{Deserialize, Serialize};

use super::marker::{Sealed, seal, unseal};
use super::{RepoError, Repository, names};
use crate::codec::Digest;
use crate::disk::Created;
use crate::pg::{MajorVersion, SegmentSize, SystemId};
use crate::store::Store;

const FORMAT: u32 = 1;
const LIMIT: u64 = 64 << 10;

/// The facts of a cluster that never change, and by which its files are told from another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInfo {
    /// The number `initdb` gave it.
    pub system: SystemId,
    /// Its major version.
    pub major: MajorVersion,
    /// Its WAL segments' size.
    pub segment_size: SegmentSize,
    /// Its WAL pages' size in bytes.
    pub wal_page_size: u32,
}

#[derive(Serialize, Deserialize)]
struct ClusterObject {
    format: u32,
    system_identifier: SystemId,
    pg_version: String,
    wal_segment_size: u64,
    wal_page_size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

impl Sealed for ClusterObject {
    fn digest(&mut self) -> &mut Option<Digest> {
        &mut self.digest
    }
}

impl ClusterInfo {
    /// Reads what the repository knows of a cluster; `None` if nothing was ever stored of it.
    ///
    /// # Errors
    /// A damaged object, or the store.
    pub async fn read(store: &Store, system: SystemId) -> Result<Option<Self>, RepoError> {
        let name = names::cluster_json(system);
        let Some(bytes) = store.get(&name, LIMIT).await? else {
            return Ok(None);
        };
        let object = store.full(&name);
        let damaged = |why: String| RepoError::Damaged {
            object: object.clone(),
            why,
        };
        let read: ClusterObject = unseal(&object, &bytes, FORMAT)?;
        if read.system_identifier != system {
            return Err(damaged(format!("it tells of cluster {}", read.system_identifier)));
        }
        Ok(Some(Self {
            system,
            major: MajorVersion::from_pg_version(&read.pg_version).map_err(|error| damaged(error.to_string()))?,
            segment_size: SegmentSize::new(read.wal_segment_size).map_err(|error| damaged(error.to_string()))?,
            wal_page_size: read.wal_page_size,
        }))
    }

    /// Every cluster of which something is stored.
    ///
    /// # Errors
    /// The store.
    pub async fn systems(repository: &Repository) -> Result<Vec<SystemId>, RepoError> {
        let (folders, _) = repository.store().list_level(&names::clusters()).await?;
        let mut systems: Vec<SystemId> = folders
            .iter()
            .filter_map(|folder| folder.filename()?.parse().ok())
            .collect();
        systems.sort_unstable();
        Ok(systems)
    }

    /// Makes sure that the repository has the cluster with exactly these facts. `known` is what
    /// [`ClusterInfo::read`] answered.
    ///
    /// # Errors
    /// The repository has it with other facts, or the store.
    pub async fn bind(&self, repository: &Repository, known: Option<Self>) -> Result<(), RepoError> {
        let store = repository.store();
        let bound = match known {
            Some(bound) => bound,
            None => {
                let object = ClusterObject {
                    format: FORMAT,
                    system_identifier: self.system,
                    pg_version: self.major.number().to_string(),
                    wal_segment_size: self.segment_size.bytes(),
                    wal_page_size: self.wal_page_size,
                    digest: None,
                };
                let name = names::cluster_json(self.system);
                if store.create(&name, seal(object).into()).await? == Created::New {
                    return Ok(());
                }
                // Another writer was first; the two must agree.
                Self::read(store, self.system).await?.ok_or_else(|| RepoError::Taken {
                    object: store.full(&name),
                })?
            }
        };
        self.agree(&bound)
    }

    fn agree(&self, bound: &Self) -> Result<(), RepoError> {
        let mismatch = |what, bound: String, found: String| {
            Err(RepoError::ClusterMismatch {
                system: self.system,
                what,
                bound,
                found,
            })
        };
        if self.major != bound.major {
            return mismatch(
                "PostgreSQL version",
                bound.major.number().to_string(),
                self.major.number().to_string(),
            );
        }
        if self.segment_size != bound.segment_size {
            let text = |size: SegmentSize| size.bytes().to_string();
            return mismatch("WAL segment size", text(bound.segment_size), text(self.segment_size));
        }
        if self.wal_page_size != bound.wal_page_size {
            return mismatch(
                "WAL page size",
                bound.wal_page_size.to_string(),
                self.wal_page_size.to_string(),
            );
        }
        Ok(())
    }
}
