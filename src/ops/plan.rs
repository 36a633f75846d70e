//! `plan`: gathers what decides a recovery, and decides it.
//!
//! Which backup serves and where replay ends is told by the indexes of the WAL alone; [`prove`] reads every byte that the
//! server will fetch, so that damage is found before anything is written.

use std::path::Path;

use futures_util::stream::{self, StreamExt};

use super::walk;
use crate::catalog::Catalog;
use crate::error::{Class, Explain, Failure};
use crate::pg::{ControlFile, ControlSettings, Lsn, SystemId, Timeline, WalFileName};
use crate::plan::recovery::Plan;
use crate::plan::search::{OnPath, Search, Source, Stretch};
use crate::repo::backup::BackupRecord;
use crate::repo::reader::Lacks;
use crate::repo::{self, ClusterInfo, Fetched, Repository, SegmentFile, StoredIndex, Verified, reader};
use crate::wal::index::SegmentIndex;
use crate::wal::{Event, Xid};

pub use crate::plan::search::{Request, TimelineChoice};

/// How many WAL objects are read through at a time. Each takes one buffer, or what the store sends at once.
const PROOFS_AT_ONCE: usize = 8;
/// A server reads ahead, and takes segments after its last one, too. Three were seen, of 1 MiB.
const READ_AHEAD: usize = 8;

/// Plans a recovery.
///
/// # Errors
/// A target that can't be reached, with the nearest that can; or the store.
pub async fn plan(repository: &Repository, catalog: &Catalog, request: &Request) -> Result<Plan, Failure> {
    let library = Library { repository, catalog };
    Search::new(&library, catalog, request)?.run().await
}

/// Reads every WAL object that a planned recovery fetches, and holds it against its checksum. `tell` is told how many of
/// how many were read.
///
/// # Errors
/// The first that is damaged, with what can be had before it; or the store.
pub async fn prove(
    repository: &Repository,
    catalog: &Catalog,
    request: &Request,
    plan: &mut Plan,
    tell: &mut dyn FnMut(usize, usize),
) -> Result<(), Failure> {
    let library = Library { repository, catalog };
    let mut segments = catalog.wal.along(&plan.path, plan.backup.start_lsn);
    segments.truncate(plan.segments + READ_AHEAD);
    let total = plan.segments.min(segments.len());
    let proofs = segments.iter().map(|segment| library.prove(*segment));
    let mut proofs = stream::iter(proofs).buffered(PROOFS_AT_ONCE).enumerate();
    while let Some((at, proof)) = proofs.next().await {
        match proof {
            Ok(verified) => {
                tell((at + 1).min(total), total);
                if let Verified::ContentOnly(how) = verified {
                    plan.warnings.push(how);
                }
            }
            Err(failure) if failure.class() != Class::Damaged => return Err(failure),
            Err(_) if at > plan.segments && plan.no_read_ahead => {}
            Err(failure) if at >= plan.segments => {
                plan.no_read_ahead = true;
                plan.warnings
                    .push(format!("the WAL behind the target is damaged: {failure}"));
            }
            Err(failure) => {
                let search = Search::new(&library, catalog, request)?;
                return Err(search.refuse_damaged(plan, at, failure.one_line()).await?.into());
            }
        }
    }
    Ok(())
}

/// The repository as a plan's source.
struct Library<'a> {
    repository: &'a Repository,
    catalog: &'a Catalog,
}

/// A segment's index.
struct Read(StoredIndex);

impl AsRef<SegmentIndex> for Read {
    fn as_ref(&self) -> &SegmentIndex {
        &self.0.core
    }
}

impl Library<'_> {
    fn cluster(&self) -> &ClusterInfo {
        &self.catalog.info
    }

    fn file(&self, (timeline, segment): OnPath) -> SegmentFile {
        segment.file(timeline, self.cluster().segment_size)
    }

    async fn prove(&self, segment: OnPath) -> Result<Verified, Failure> {
        let file = self.file(segment);
        Ok(repo::verify_segment(self.repository, self.cluster(), file).await?)
    }
}

impl Source for Library<'_> {
    type Index = Read;

    async fn index(&self, segment: OnPath) -> Result<Option<Read>, Failure> {
        let file = self.file(segment);
        let bytes = segment.1.stored_bytes.into();
        let index = repo::read_index(self.repository, self.cluster(), file, bytes).await?;
        Ok(index.map(Read))
    }

    fn lost(&self, index: &Read) -> Option<(Lsn, Lsn)> {
        index.0.lost
    }

    async fn events(&self, index: &Read) -> Result<Vec<Event>, Failure> {
        Ok(index.0.events(self.repository, self.cluster()).await?)
    }

    async fn stretch(&self, segments: &[OnPath], until: Lsn) -> Result<Stretch, Failure> {
        walk::stretch(self.repository, self.cluster(), segments, until).await
    }

    async fn whole_transaction(&self, segment: OnPath, part: Xid) -> Result<Option<Xid>, Failure> {
        let file = self.file(segment);
        let indexed = repo::reindex(self.repository, self.cluster(), file, true).await?;
        let holds = |notable: &&crate::wal::index::Notable| notable.subtransactions.contains(&part);
        let notable = indexed.core.notable.iter().find(holds);
        Ok(notable
            .and_then(|notable| notable.event.kind.ended())
            .map(|end| end.xid))
    }

    async fn lacks(&self, backup: &BackupRecord) -> Result<Lacks, Failure> {
        match reader::lacks(self.repository, backup).await {
            Err(error) if error.class() == Class::Damaged => Ok(Lacks {
                needed: Some(crate::error::on_one_line(&error)),
                others: Vec::new(),
            }),
            answer => Ok(answer?),
        }
    }

    async fn settings(&self, backup: &BackupRecord) -> Result<Option<ControlSettings>, Failure> {
        let path = Path::new(ControlFile::PATH);
        let bytes = reader::content(self.repository, backup, path, ControlFile::BYTES).await?;
        Ok(bytes
            .and_then(|bytes| ControlFile::parse(&bytes).ok())
            .map(|control| control.settings))
    }

    async fn history(&self, timeline: Timeline) -> Result<bool, Failure> {
        let file = WalFileName::History(timeline);
        let mut text = Vec::new();
        let fetched = repo::fetch(self.repository.store(), self.cluster().system, file, &mut text).await?;
        if fetched == Fetched::Whole {
            crate::pg::TimelineHistory::parse(timeline, &text)?;
        }
        Ok(fetched == Fetched::Whole)
    }
}

/// The cluster that is meant: the one that was named, or the only one there is.
///
/// # Errors
/// None, or several and none named, or the store.
pub async fn choose_cluster(repository: &Repository, named: Option<SystemId>) -> Result<ClusterInfo, Failure> {
    let systems = ClusterInfo::systems(repository).await?;
    let url = || repository.store().url().to_string();
    let system = match (named, &systems[..]) {
        (Some(named), _) if systems.contains(&named) => named,
        (Some(named), _) => {
            return Err(ClusterError::Unknown {
                named,
                repository: url(),
            }
            .into());
        }
        (None, [only]) => *only,
        (None, []) => return Err(ClusterError::None { repository: url() }.into()),
        (None, _) => {
            let known = systems.iter().map(SystemId::to_string).collect::<Vec<_>>().join(", ");
            return Err(ClusterError::Several {
                repository: url(),
                known,
            }
            .into());
        }
    };
    let info = ClusterInfo::read(repository.store(), system).await?;
    Ok(info.ok_or_else(|| repo::RepoError::Damaged {
        object: repository.store().full(&repo::names::cluster_json(system)),
        why: "it is missing, and there are other objects of that cluster".to_owned(),
    })?)
}

/// No single cluster is meant.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The repository is empty.
    #[error("{repository} holds no cluster yet")]
    None {
        /// The repository.
        repository: String,
    },
    /// It holds several.
    #[error("{repository} holds several clusters: {known}")]
    Several {
        /// The repository.
        repository: String,
        /// Their identifiers.
        known: String,
    },
    /// It does not hold this one.
    #[error("{repository} does not hold cluster {named}")]
    Unknown {
        /// The one that was named.
        named: SystemId,
        /// The repository.
        repository: String,
    },
}

impl crate::error::Explain for ClusterError {
    fn class(&self) -> crate::error::Class {
        match self {
            Self::None { .. } => crate::error::Class::OutOfReach,
            _ => crate::error::Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::None { .. } => "nothing was archived into it; `pgp-pitr check` finds out why",
            Self::Several { .. } => "say which with --cluster SYSID",
            Self::Unknown { .. } => "`pgp-pitr list` shows those it holds",
        };
        Some(text.to_owned())
    }
}
