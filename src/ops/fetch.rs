//! `pgp-restore`: one WAL file comes back from the repository.
//!
//! PostgreSQL takes "no such file" for the end of the WAL and promotes. So that answer is given only
//! after the repository itself has been seen to answer (rule 3); everything else is tried again, and
//! then told apart by the exit code.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::local;
use super::watch::Goal;
use crate::disk::{self, Staged};
use crate::env::Env;
use crate::error::{Class, Explain, Failure};
use crate::pg::{Lsn, ParseWalNameError, SystemId, WalFileName};
use crate::repo::{self, ClusterInfo, Fetched, Repository};
use crate::store::Store;

/// How long to try unless told otherwise.
pub const RETRY_FOR: Duration = Duration::from_secs(300);

/// The first try has this long, even where the request allows less: "no retry" is not "no try".
const FIRST_TRY: Duration = Duration::from_secs(5);

/// The longest pause between two tries: a store that is back is noticed soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What PostgreSQL asks for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The file (%f).
    pub file: WalFileName,
    /// Where to put it (%p).
    pub path: &'a Path,
    /// Where PostgreSQL runs the command.
    pub data_directory: &'a Path,
    /// The cluster, where it was named.
    pub cluster: Option<SystemId>,
    /// How long to try.
    pub retry_for: Duration,
}

/// A file that can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A name that PostgreSQL asks for never.
    #[error("nothing was fetched: {error}")]
    Name {
        /// Why not.
        error: ParseWalNameError,
    },
    /// The repository has answered that it has no such file.
    #[error("{file} of cluster {system} is not in {repository}")]
    Missing {
        /// The file.
        file: WalFileName,
        /// The cluster.
        system: SystemId,
        /// The repository.
        repository: String,
    },
    /// Recovery would end before WAL that is known to have been written.
    #[error(
        "the repository has {file} only up to {from}, and pieces of it from behind that up to {to}: what lies between is \
         missing or damaged, and recovery would end there as if it were all"
    )]
    Broken {
        /// The file.
        file: WalFileName,
        /// Where the WAL breaks off.
        from: Lsn,
        /// How far there is more of it.
        to: Lsn,
    },
    /// Nothing tells which cluster is meant.
    #[error("{repository} holds {clusters} clusters and nothing tells which is meant")]
    WhichCluster {
        /// The repository.
        repository: String,
        /// How many it holds.
        clusters: usize,
    },
    /// The file can't be written.
    #[error("could not write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
}

impl Explain for FetchError {
    fn class(&self) -> Class {
        match self {
            Self::Missing { .. } => Class::NotFound,
            Self::Broken { .. } => Class::Damaged,
            Self::Name { .. } | Self::WhichCluster { .. } => Class::Usage,
            Self::Write { .. } => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Name { .. } => Some("restore_command = 'pgp-restore %f %p' passes the right names".to_owned()),
            Self::WhichCluster { .. } => {
                Some("run it in the data directory, or give --cluster SYSID (`pgp-pitr list` shows them)".to_owned())
            }
            Self::Write { .. } => Some("check the permissions and the room on that disk".to_owned()),
            Self::Broken { from, .. } => Some(format!(
                "bring the pieces back from a copy of the repository (or the WAL: pgp-pitr salvage); or recover up to there and \
                 say so: pgp-pitr restore --target-lsn {from}"
            )),
            Self::Missing { .. } => None,
        }
    }
}

/// Fetches one file, trying again for as long as the request allows. `open` opens the store; `tell`
/// hears, in words, of each failure that is not the last, and of damage that was passed over.
///
/// Steps, and what a crash after each leaves:
/// 1. the file is written, every byte checked, under a temporary name: a leftover, swept by the next;
/// 2. it is fsynced and renamed to `path`: the file, whole.
///
/// # Errors
/// `Missing`, if and only if the repository has answered so; else the last failure.
pub async fn fetch(
    open: impl Fn() -> Result<Store, Failure>,
    request: &Request<'_>,
    env: &Arc<Env>,
    tell: impl Fn(&str),
) -> Result<(), Failure> {
    let begun = tokio::time::Instant::now();
    let deadline = begun + request.retry_for;
    let patience = deadline.max(begun + FIRST_TRY);
    let mut pause = Duration::from_millis(200);
    loop {
        let left = patience.saturating_duration_since(tokio::time::Instant::now());
        let open = || open().map(|store| store.within(left));
        let failure = match tokio::time::timeout_at(patience, once(&open, request, env, &tell)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failure)) => failure,
            Err(_) => crate::store::StoreError::Timeout(patience - begun).into(),
        };
        let final_answer = matches!(failure.class(), Class::NotFound | Class::Usage);
        let wait = env.jittered(pause);
        if final_answer || tokio::time::Instant::now() + wait >= deadline {
            return Err(failure);
        }
        tell(&format!("{failure}; trying again"));
        tokio::time::sleep(wait).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn once(
    open: &impl Fn() -> Result<Store, Failure>,
    request: &Request<'_>,
    env: &Env,
    tell: &impl Fn(&str),
) -> Result<(), Failure> {
    let store = open()?;
    let system = match request.cluster {
        Some(system) => system,
        None => match local::control_file(request.data_directory)? {
            Some(control) => control.system,
            None => only_cluster(&store).await?,
        },
    };
    let file_error = |source| FetchError::Write {
        path: request.path.to_path_buf(),
        source,
    };
    disk::sweep(request.path).map_err(file_error)?;
    // The server's umask decides: it leaves the group's bit only where the cluster has group access.
    let mut staged = Staged::beside(request.path, 0o640, env).map_err(file_error)?;
    if repo::fetch(&store, system, request.file, staged.file()).await? == Fetched::Missing {
        // It is an answer only from a repository that is one, seen after the fact.
        let repository = Repository::open(&store).await?;
        let told = fetch_unfinished(&repository, system, request.file, staged.file()).await?;
        if let Some((from, to)) = told.lost.filter(|_| ends_unasked(request.data_directory)) {
            let file = request.file;
            return Err(FetchError::Broken { file, from, to }.into());
        }
        told.words().iter().for_each(|how| tell(how));
    }
    Ok(staged.replace().map_err(file_error)?)
}

/// Whether a server would take the end of what it gets for the end of all WAL, and promote. One that was told a target
/// stops with an error where it doesn't reach that, and a standby waits.
fn ends_unasked(data_directory: &Path) -> bool {
    data_directory.join("recovery.signal").exists()
        && !data_directory.join("standby.signal").exists()
        && Goal::read(data_directory)
            .target
            .is_none_or(|target| target.kind == "latest")
}

/// Where a whole segment is not there, its pieces or the `.partial` of a timeline that was left serve. Answers what was
/// found out about them.
async fn fetch_unfinished(
    repository: &Repository,
    system: SystemId,
    file: WalFileName,
    sink: &mut File,
) -> Result<repo::Told, Failure> {
    let fetched = match file {
        WalFileName::Segment(segment) => match ClusterInfo::read(repository.store(), system).await? {
            Some(cluster) => repo::fetch_unfinished(repository, &cluster, segment, sink).await?,
            None => None,
        },
        _ => None,
    };
    let missing = || FetchError::Missing {
        file,
        system,
        repository: repository.store().url().to_string(),
    };
    Ok(fetched.ok_or_else(missing)?)
}

/// The repository's only cluster: for a person who fetches a file without a data directory.
async fn only_cluster(store: &Store) -> Result<SystemId, Failure> {
    let repository = Repository::open(store).await?;
    let systems = ClusterInfo::systems(&repository).await?;
    match systems[..] {
        [system] => Ok(system),
        _ => Err(FetchError::WhichCluster {
            repository: store.url().to_string(),
            clusters: systems.len(),
        }
        .into()),
    }
}
