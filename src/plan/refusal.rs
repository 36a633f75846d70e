//! Recoveries that can't be had: why not, and what can be had instead.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::error::{Class, Explain};
use crate::pg::settings::shell_text;
use crate::pg::time::rfc3339;
use crate::pg::{Lsn, Timeline};
use crate::repo::backup::BackupId;

/// A place that can be reached, tried and found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The last moment that the WAL tells of up to there; of a backup, its end.
    pub at: Option<DateTime<Utc>>,
    /// Everything before it is replayed.
    pub lsn: Option<Lsn>,
    /// The backup that is consistent there.
    pub backup: Option<BackupId>,
    /// The flags that lead there.
    pub flags: Vec<String>,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.flags.iter().map(|flag| shell_text(flag.as_ref())).collect();
        let flags = words.join(" ");
        match (self.at, self.lsn, &self.backup) {
            (Some(at), Some(lsn), Some(backup)) => {
                write!(f, "{} ({lsn}), the end of backup {backup} ({flags})", rfc3339(at))
            }
            (Some(at), ..) => write!(f, "{} ({flags})", rfc3339(at)),
            (None, Some(lsn), _) => write!(f, "{lsn} ({flags})"),
            _ => f.write_str(&flags),
        }
    }
}

/// The nearest places on each side of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nearest {
    /// Before it.
    pub before: Option<Moment>,
    /// After it.
    pub after: Option<Moment>,
    /// Where nothing can be reached on either side: the ends of other timelines, newest first.
    pub elsewhere: Vec<(Timeline, Moment)>,
}

/// A recovery that can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no backup to start from.
    #[error("cluster {0} has no backup to restore")]
    NoBackup(String),
    /// The timeline isn't there.
    #[error("the repository knows no timeline {asked} of this cluster; it has {}", list(known))]
    NoTimeline {
        /// The one asked for.
        asked: Timeline,
        /// Those there are.
        known: Vec<String>,
    },
    /// The backup isn't there.
    #[error("the cluster has no backup {0}")]
    NoSuchBackup(BackupId),
    /// What should lead there is damaged.
    #[error("target {target} can't be reached: {what}")]
    Damaged {
        /// The target.
        target: String,
        /// What is damaged.
        what: String,
        /// The nearest that can be reached before it.
        before: Option<Box<Moment>>,
    },
    /// The target lies outside of what can be reached.
    #[error("target {target} on timeline {timeline} is out of reach: {why}")]
    OutOfReach {
        /// The target.
        target: String,
        /// The timeline.
        timeline: Timeline,
        /// Why.
        why: String,
        /// The nearest that can be reached before it, in words.
        before: Option<String>,
        /// The nearest that can be reached after it, in words.
        after: Option<String>,
        /// Both, for programs.
        nearest: Box<Nearest>,
    },
}

impl Refusal {
    /// The nearest places that can be reached, where that was found out.
    pub fn nearest(&self) -> Option<Nearest> {
        match self {
            Self::OutOfReach { nearest, .. } => Some((**nearest).clone()),
            Self::Damaged { before, .. } => Some(Nearest {
                before: before.as_deref().cloned(),
                ..Nearest::default()
            }),
            _ => None,
        }
    }
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.join(", ")
    }
}

impl Explain for Refusal {
    fn class(&self) -> Class {
        match self {
            Self::NoSuchBackup(_) => Class::Usage,
            Self::Damaged { .. } => Class::Damaged,
            _ => Class::OutOfReach,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::OutOfReach { nearest, .. } if !nearest.elsewhere.is_empty() => {
                let end = |(timeline, moment): &(Timeline, Moment)| format!("timeline {timeline} up to {moment}");
                let ends: Vec<String> = nearest.elsewhere.iter().map(end).collect();
                Some(format!(
                    "nothing on that timeline can be reached, but {}",
                    ends.join("; ")
                ))
            }
            Self::OutOfReach { before, after, .. } => {
                let side = |name, moment: &Option<String>| match moment {
                    Some(moment) => format!("nearest {name}: {moment}"),
                    None => format!("nothing {name} it can be reached"),
                };
                Some(format!("{}; {}", side("before", before), side("after", after)))
            }
            Self::Damaged { before, .. } => Some(match before {
                Some(moment) => format!(
                    "put that object back from a copy of the repository, or take what can be had before it: {moment}"
                ),
                None => "put that object back from a copy of the repository, or choose an earlier target or another \
                         backup"
                    .to_owned(),
            }),
            Self::NoBackup(_) => Some("take one with `pgp-pitr backup`".to_owned()),
            Self::NoTimeline { .. } | Self::NoSuchBackup(_) => Some("`pgp-pitr list` shows what there is".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_can_be_copied_into_a_shell() {
        let moment = Moment {
            at: None,
            lsn: None,
            backup: None,
            flags: vec!["--target-name".to_owned(), "before it's gone".to_owned()],
        };
        assert_eq!(moment.to_string(), "--target-name 'before it'\\''s gone'");
    }
}
