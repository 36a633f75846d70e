//! Notes about WAL that was archived although it could not be read: a small object each, so that a listing tells them.

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::marker::{Sealed, seal, unseal};
use super::{RepoError, Repository, names};
use crate::codec::Digest;
use crate::pg::{Lsn, SystemId, WalFileName};

const FORMAT: u32 = 1;
const LIMIT: u64 = 64 << 10;

/// What is doubtful about one WAL file. The file is stored as the server gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The file.
    pub file: WalFileName,
    /// Where in it; `None` where reading failed as a whole.
    pub at: Option<Lsn>,
    /// What was found, in words.
    pub why: String,
}

#[derive(Serialize, Deserialize)]
struct DoubtObject {
    format: u32,
    file: String,
    lsn: Option<String>,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

impl Sealed for DoubtObject {
    fn digest(&mut self) -> &mut Option<Digest> {
        &mut self.digest
    }
}

impl Doubt {
    pub(super) const fn of(file: WalFileName, at: Option<Lsn>, why: String) -> Self {
        Self { file, at, why }
    }

    /// Notes it. What was noted before of the same file stays.
    pub(super) async fn keep(&self, repository: &Repository, system: SystemId) -> Result<(), RepoError> {
        let object = DoubtObject {
            format: FORMAT,
            file: self.file.to_string(),
            lsn: self.at.map(|at| at.to_string()),
            why: self.why.clone(),
            digest: None,
        };
        let name = names::doubt(system, self.file);
        repository.store().create(&name, seal(object).into()).await?;
        Ok(())
    }
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            Some(at) => write!(f, "{} can be read only up to {at}: {}", self.file, self.why),
            None => write!(f, "{} can't be read whole: {}", self.file, self.why),
        }
    }
}

/// All doubts about a cluster's WAL, by file.
///
/// # Errors
/// The store. A note that is damaged still tells its file, by its name.
pub async fn doubts(repository: &Repository, system: SystemId) -> Result<Vec<Doubt>, RepoError> {
    let store = repository.store();
    let mut entries = store.list(&names::doubts(system));
    let mut doubts = Vec::new();
    while let Some(entry) = entries.next().await {
        let name = entry?.location;
        let Some(file) = names::read_doubt(&name) else { continue };
        let Some(bytes) = store.get(&name, LIMIT).await? else {
            continue;
        };
        let doubt = match unseal::<DoubtObject>(&store.full(&name), &bytes, FORMAT) {
            Ok(read) => Doubt::of(file, read.lsn.and_then(|lsn| lsn.parse().ok()), read.why),
            Err(error) => Doubt::of(file, None, error.to_string()),
        };
        doubts.push(doubt);
    }
    doubts.sort_by_key(|doubt| doubt.file.to_string());
    Ok(doubts)
}
