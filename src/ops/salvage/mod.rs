//! `salvage`: takes the valid tail out of a dead server's `pg_wal`.
//!
//! Two steps. `survey` reads the directory and the repository, follows the WAL record by record, and says what is to be
//! stored: it writes nothing. `store` does what the survey says, by the usual rules: each object is created
//! conditionally and in the order of the WAL, so that whatever interrupts it leaves a repository that goes as far as it
//! goes, and the same command run again does the rest. The data directory is only ever read.

mod compare;
mod files;
mod store;
mod survey;
mod walk;

use std::io;
use std::path::{Path, PathBuf};

use super::local::{LocalCluster, LocalError};
use super::watch;
use crate::error::{Class, Explain, Failure};
use crate::pg::{ControlFile, Lsn, Timeline, WalFileName};
use crate::repo::ClusterInfo;
use crate::wal::{CommitPoint, LayoutError};

pub use store::store;
pub use survey::survey;

/// A directory that nothing can be salvaged from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SalvageError {
    /// No control file: whose WAL it is can't be told.
    #[error("{} is not a data directory: it has no {}", path.display(), ControlFile::PATH)]
    NoControl {
        /// The directory.
        path: PathBuf,
    },
    /// A control file or `PG_VERSION` that can't be read or makes no sense.
    #[error("{} does not tell its cluster", path.display())]
    Control {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: LocalError,
    },
    /// A server runs there.
    #[error("a server runs in {} (process {pid}): it can still hand over its WAL itself", path.display())]
    Running {
        /// The directory.
        path: PathBuf,
        /// The postmaster.
        pid: i32,
    },
    /// `pg_wal` is not there, or a link that leads nowhere.
    #[error("{} is not there", path.display())]
    NoWal {
        /// The folder.
        path: PathBuf,
    },
    /// `pg_wal` can't be looked into.
    #[error("could not read {}", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// WAL of a major that this version can't read.
    #[error("the records can't be followed")]
    Layout(#[source] LayoutError),
    /// Something could not be saved, or is not there.
    #[error("{}", summary(problems))]
    Incomplete {
        /// Every problem, in the order of the WAL.
        problems: Vec<Problem>,
    },
}

fn summary(problems: &[Problem]) -> String {
    match problems {
        [only] => format!("not everything could be saved: {}", only.detail),
        _ => format!(
            "not everything could be saved: {} problems, named above",
            problems.len()
        ),
    }
}

impl Explain for SalvageError {
    fn class(&self) -> Class {
        match self {
            Self::NoControl { .. } | Self::Running { .. } | Self::NoWal { .. } | Self::Layout(_) => Class::Usage,
            // Whatever it is that lies there, no cluster can be made out in it.
            Self::Control { source, .. } => match source {
                LocalError::Read { source, .. } if source.kind() != io::ErrorKind::NotFound => Class::Failed,
                _ => Class::Usage,
            },
            Self::Read { .. } => Class::Failed,
            Self::Incomplete { problems } => worst(problems),
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoControl { .. } => "name the data directory of the dead server, the folder that holds PG_VERSION",
            Self::Control { .. } => {
                "the data directory is damaged or encrypted: copy the files of its pg_wal beside a pg_control of the same \
                 cluster (from a backup or a standby), and run it there"
            }
            Self::Running { .. } => {
                "let archive_command finish, or stream with `pgp-pitr receive`; to give the server up, stop it first"
            }
            Self::NoWal { .. } => "mount the disk that pg_wal was on, and name the folder with --wal DIR",
            Self::Read { .. } => "run it as the user that owns the data directory, or as root",
            Self::Layout(error) => return error.hint(),
            Self::Incomplete { .. } => {
                "what could be saved is saved; see how far it leads with `pgp-pitr plan --latest`"
            }
        };
        Some(text.to_owned())
    }
}

/// The class that decides the exit code: damage first, then what failed, then what was never ours, then what isn't there.
fn worst(problems: &[Problem]) -> Class {
    let order = [Class::Damaged, Class::Failed, Class::Usage];
    let has = |class: &Class| problems.iter().any(|problem| problem.kind.class() == *class);
    order.into_iter().find(has).unwrap_or(Class::OutOfReach)
}

/// What stands in the way of saving all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// WAL between what the repository has and what is here, or between two files here, is nowhere.
    Gap,
    /// WAL that the control file tells of is neither here nor in the repository.
    Lost,
    /// The repository has the same name with other content.
    Conflict,
    /// Whole records lie behind a place that no record leads past.
    Damaged,
    /// A file that is another cluster's, or no segment.
    Foreign,
    /// A file that can't be read.
    Unreadable,
    /// Nothing shows that it continues this cluster's WAL.
    Unproven,
}

impl ProblemKind {
    /// Whether no recovery gets past it.
    const fn breaks(self) -> bool {
        matches!(
            self,
            Self::Gap | Self::Lost | Self::Damaged | Self::Unreadable | Self::Conflict
        )
    }

    /// What scripts know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Lost => "lost",
            Self::Conflict => "conflict",
            Self::Damaged => "damaged",
            Self::Foreign => "foreign",
            Self::Unreadable => "unreadable",
            Self::Unproven => "unproven",
        }
    }

    const fn class(self) -> Class {
        match self {
            Self::Gap | Self::Lost | Self::Unproven => Class::OutOfReach,
            Self::Conflict | Self::Unreadable => Class::Failed,
            Self::Damaged => Class::Damaged,
            Self::Foreign => Class::Usage,
        }
    }
}

/// Something that could not be saved, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub kind: ProblemKind,
    /// The timeline.
    pub timeline: Option<Timeline>,
    /// The file's name in `pg_wal`.
    pub file: Option<String>,
    /// Where it begins.
    pub from: Option<Lsn>,
    /// Where it ends, where that is known.
    pub to: Option<Lsn>,
    /// In words.
    pub detail: String,
}

/// One thing to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A file as it is: a history, a segment every byte of which belongs to the chain of records, or a `.partial`.
    File {
        /// Its name.
        file: WalFileName,
        /// Where it lies.
        path: PathBuf,
    },
    /// A part of a segment that was not filled.
    Piece {
        /// Where the segment lies.
        path: PathBuf,
        /// Where the segment begins.
        segment: Lsn,
        /// The first byte to be stored.
        from: Lsn,
        /// The byte after the last: the end of the last whole record.
        to: Lsn,
    },
}

/// Where WAL ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Where its last whole record ends.
    pub lsn: Lsn,
    /// What is there instead of another one, in words.
    pub why: String,
}

/// What becomes of one timeline.
#[derive(Debug, Clone)]
pub struct OnTimeline {
    /// The timeline.
    pub timeline: Timeline,
    /// What is to be stored, in the order of the WAL.
    pub steps: Vec<Step>,
    /// Where the repository's WAL of this timeline ends without them.
    pub stored_to: Option<Lsn>,
    /// Stretches that are to be stored: from, to.
    pub stretches: Vec<(Lsn, Lsn)>,
    /// Where the last whole record ends that was looked at.
    pub end: Option<End>,
    /// The last commit among the records that were looked at.
    pub last_commit: Option<CommitPoint>,
    /// How many files the repository has already, with the same content.
    pub agreed: usize,
}

impl OnTimeline {
    const fn new(timeline: Timeline) -> Self {
        Self {
            timeline,
            steps: Vec::new(),
            stored_to: None,
            stretches: Vec::new(),
            end: None,
            last_commit: None,
            agreed: 0,
        }
    }

    /// Notes that a stretch is to be stored.
    fn stretch(&mut self, from: Lsn, to: Lsn) {
        match self.stretches.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => self.stretches.push((from, to)),
        }
    }

    /// How many segments are to be stored.
    pub fn segments(&self) -> usize {
        let whole = |step: &&Step| matches!(step, Step::File { file, .. } if matches!(file, WalFileName::Segment(_)));
        self.steps.iter().filter(whole).count()
    }

    /// How many bytes are to be stored in pieces.
    pub fn piece_bytes(&self) -> u64 {
        let piece = |step: &Step| match step {
            Step::Piece { from, to, .. } => to.since(*from),
            Step::File { .. } => 0,
        };
        self.steps.iter().map(piece).sum()
    }
}

/// What a survey found.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The cluster.
    pub cluster: ClusterInfo,
    /// The folder that holds the WAL.
    pub folder: PathBuf,
    /// Each timeline of which there is something, oldest first.
    pub timelines: Vec<OnTimeline>,
    /// What can't be saved, in the order of the WAL.
    pub problems: Vec<Problem>,
    /// Whether the repository has a base backup of the cluster.
    pub has_backup: bool,
}

/// The newest moment that can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latest {
    /// The timeline.
    pub timeline: Timeline,
    /// Where its last whole record ends.
    pub lsn: Lsn,
    /// The last commit.
    pub commit: Option<CommitPoint>,
}

impl Survey {
    /// Whether there is nothing to be stored.
    pub fn is_empty(&self) -> bool {
        self.timelines.iter().all(|on| on.steps.is_empty())
    }

    /// The newest moment that can be had with what was looked at, on the newest timeline of which a record was seen; `None`
    /// where the repository goes further by itself, and where something before is missing.
    pub fn latest(&self) -> Option<Latest> {
        let ends = |on: &&OnTimeline| on.end.as_ref().is_some_and(|end| Some(end.lsn) >= on.stored_to);
        let newest = self.timelines.iter().rev().find(ends)?;
        let end = newest.end.as_ref()?.lsn;
        // What lies behind a place that no recovery gets past can be had from a backup in between alone: a plan finds out.
        let breaks = |problem: &Problem| {
            let within = problem.from.is_some_and(|from| from < end);
            within && problem.timeline <= Some(newest.timeline) && problem.kind.breaks()
        };
        if self.problems.iter().any(breaks) {
            return None;
        }
        let commit = || self.timelines.iter().rev().find_map(|on| on.last_commit);
        Some(Latest {
            timeline: newest.timeline,
            lsn: end,
            commit: newest.last_commit.or_else(commit),
        })
    }

    /// The whole, where everything could be saved.
    ///
    /// # Errors
    /// The problems, where there are any.
    pub fn complete(&self) -> Result<(), SalvageError> {
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(SalvageError::Incomplete {
                problems: self.problems.clone(),
            }),
        }
    }
}

/// A dead server's data directory.
#[derive(Debug)]
pub struct DeadServer {
    /// What it tells of its cluster.
    local: LocalCluster,
    /// Its `pg_wal`.
    folder: PathBuf,
}

impl DeadServer {
    /// Looks at a data directory. `wal` is where its `pg_wal` is now, where a link in it leads elsewhere.
    ///
    /// # Errors
    /// It is none, its cluster can't be told, or a server runs in it.
    pub fn at(directory: &Path, wal: Option<&Path>) -> Result<Self, Failure> {
        if let Some(server) = watch::running(directory) {
            let path = directory.to_path_buf();
            return Err(SalvageError::Running { path, pid: server.pid }.into());
        }
        let local = LocalCluster::read(directory).map_err(|source| SalvageError::Control {
            path: directory.to_path_buf(),
            source,
        })?;
        let local = local.ok_or_else(|| SalvageError::NoControl {
            path: directory.to_path_buf(),
        })?;
        Ok(Self {
            local,
            folder: wal.map_or_else(|| directory.join("pg_wal"), Path::to_path_buf),
        })
    }
}
