//! Timeline history files (`0000000N.history`): from which timelines a timeline descends, and where each was left.
//!
//! The server writes one line for each ancestor, oldest first: its number, where it was left, and why. The points
//! mostly rise, but not always: a server that follows timeline 3 and stops before 3 was begun writes that it left
//! 3 there (`tests/golden/*/00000004.history`). What counts is the newest line that a position lies behind.

use std::fmt;

use super::{Lsn, Timeline};
use crate::error::{Class, Explain};

/// Where a timeline was left for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The timeline that was left.
    pub parent: Timeline,
    /// The first byte that is no longer the parent's.
    pub at: Lsn,
    /// The server's words for why. Bytes that are not UTF-8 are replaced.
    pub reason: String,
}

/// A stretch of WAL that lies on one timeline of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The timeline whose WAL it is.
    pub timeline: Timeline,
    /// Its first byte.
    pub from: Lsn,
    /// The byte after its last; `None` for the newest timeline, which has no end yet.
    pub to: Option<Lsn>,
}

/// The ancestry of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: Timeline,
    forks: Vec<Fork>,
}

impl TimelineHistory {
    /// A timeline with no ancestors, such as timeline 1.
    pub const fn root(timeline: Timeline) -> Self {
        Self {
            timeline,
            forks: Vec::new(),
        }
    }

    /// Reads the history file of `timeline`. A damaged line is an error that names it, and so is a file that tells
    /// of no ancestor.
    pub fn parse(timeline: Timeline, bytes: &[u8]) -> Result<Self, HistoryError> {
        let text = String::from_utf8_lossy(bytes);
        let mut forks: Vec<Fork> = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fork = parse_line(line).ok_or_else(|| HistoryError::Line {
                timeline,
                number,
                line: line.to_owned(),
            })?;
            let before = forks.last().map_or(0, |last| last.parent.number());
            if fork.parent.number() <= before || fork.parent >= timeline {
                return Err(HistoryError::Order {
                    timeline,
                    number,
                    parent: fork.parent,
                });
            }
            forks.push(fork);
        }
        if forks.is_empty() {
            return Err(HistoryError::Empty { timeline });
        }
        Ok(Self { timeline, forks })
    }

    /// The timeline whose history it is.
    pub const fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The lines of the file, oldest ancestor first.
    pub fn forks(&self) -> &[Fork] {
        &self.forks
    }

    /// The way through the WAL that leads to this timeline, oldest stretch first, without gap or overlap. Ancestors
    /// that contribute nothing are left out.
    pub fn path(&self) -> Vec<Leg> {
        let mut path = Vec::with_capacity(self.forks.len() + 1);
        let mut to = None;
        for (timeline, begin) in self.newest_first() {
            if to.is_none_or(|to| begin < to) {
                path.push(Leg {
                    timeline,
                    from: begin,
                    to,
                });
                to = Some(begin);
            }
        }
        path.reverse();
        path
    }

    /// The timeline that holds the byte at `lsn`, on the path to this one.
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        self.newest_first()
            .find(|(_, begin)| *begin <= lsn)
            .map_or(self.timeline, |(timeline, _)| timeline)
    }

    /// Each timeline with where it was begun according to the file, newest first.
    fn newest_first(&self) -> impl Iterator<Item = (Timeline, Lsn)> {
        let parents = self.forks.iter().rev().map(|fork| fork.parent);
        let begins = self.forks.iter().rev().map(|fork| fork.at).chain([Lsn::ZERO]);
        std::iter::once(self.timeline).chain(parents).zip(begins)
    }

    /// The stretch of the path that lies on `timeline`; `None` if the path does not touch it. Something that ended at
    /// `lsn` on that timeline (a base backup, say) can be used on this path if `lsn` is not past the stretch's end.
    pub fn leg(&self, timeline: Timeline) -> Option<Leg> {
        self.path().into_iter().find(|leg| leg.timeline == timeline)
    }
}

/// Reads as the server does: number, position, and whatever follows.
fn parse_line(line: &str) -> Option<Fork> {
    let (parent, rest) = line.split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let (at, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Some(Fork {
        parent: parent.parse().ok()?,
        at: at.parse().ok()?,
        reason: reason.trim().to_owned(),
    })
}

impl fmt::Display for TimelineHistory {
    /// The file, as the server would write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fork, number) in self.forks.iter().zip(0..) {
            // The server sets its own line apart from those that it copied.
            let gap = if number > 0 { "\n" } else { "" };
            writeln!(f, "{gap}{}\t{}\t{}", fork.parent, fork.at, fork.reason)?;
        }
        Ok(())
    }
}

/// Why a history file can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// A line that is not a timeline, a position and a reason.
    #[error("line {number} of the history of timeline {timeline} is damaged: \"{line}\"")]
    Line {
        /// Whose history.
        timeline: Timeline,
        /// Which line, from 1.
        number: usize,
        /// What stands there.
        line: String,
    },
    /// An ancestor that is not newer than the one before it and older than the timeline itself.
    #[error("line {number} of the history of timeline {timeline} tells of timeline {parent} out of order")]
    Order {
        /// Whose history.
        timeline: Timeline,
        /// Which line, from 1.
        number: usize,
        /// The ancestor in it.
        parent: Timeline,
    },
    /// No ancestor at all.
    #[error("the history of timeline {timeline} tells of no ancestor")]
    Empty {
        /// Whose history.
        timeline: Timeline,
    },
}

impl Explain for HistoryError {
    fn class(&self) -> Class {
        Class::Damaged
    }

    fn hint(&self) -> Option<String> {
        Some(
            "look for a good copy of the history file in pg_wal of a server on that timeline or a later one."
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::golden;
    use proptest::prelude::*;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn golden_history(major: u16, number: u32) -> (TimelineHistory, String) {
        let text = golden::text(major, &format!("{number:08X}.history"));
        (TimelineHistory::parse(timeline(number), text.as_bytes()).unwrap(), text)
    }

    #[test]
    fn a_servers_histories_are_read_and_print_alike() {
        for major in golden::MAJORS {
            for number in 2..=4 {
                let (history, text) = golden_history(major, number);
                assert_eq!(history.to_string(), text, "{major}");
                assert_eq!(history.forks().len(), number as usize - 1);
            }
            let (second, third) = (golden_history(major, 2).0, golden_history(major, 3).0);
            assert_eq!(second.forks()[0], third.forks()[0]);
            // A standby that was stopped cleanly is promoted at its minimum recovery point.
            let promoted_at = golden::told(major, "recovering.txt", "Minimum recovery ending location");
            assert_eq!(second.forks()[0].at.to_string(), promoted_at);
        }
    }

    #[test]
    fn each_position_lies_on_the_timeline_that_wrote_it() {
        let (history, _) = golden_history(17, 3);
        let [first, second] = history.forks() else {
            panic!("{history}");
        };
        let before = |lsn: Lsn| Lsn::new(lsn.bytes() - 1);
        for (lsn, expected) in [
            (Lsn::ZERO, 1),
            (before(first.at), 1),
            (first.at, 2),
            (before(second.at), 2),
            (second.at, 3),
            (Lsn::new(u64::MAX), 3),
        ] {
            assert_eq!(history.timeline_at(lsn), timeline(expected), "{lsn}");
        }
        let leg = history.leg(timeline(2)).unwrap();
        assert_eq!((leg.from, leg.to), (first.at, Some(second.at)));
        assert_eq!(history.leg(timeline(4)), None);
    }

    #[test]
    fn a_timeline_left_before_it_began_is_not_on_the_path() {
        let (history, _) = golden_history(17, 4);
        let stop = history.forks()[2].at;
        assert!(stop < history.forks()[0].at, "the golden file is not what it should be");
        let path = [
            Leg {
                timeline: timeline(1),
                from: Lsn::ZERO,
                to: Some(stop),
            },
            Leg {
                timeline: timeline(4),
                from: stop,
                to: None,
            },
        ];
        assert_eq!(history.path(), path);
        assert_eq!(history.timeline_at(stop), timeline(4));
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let parse = |text: &str| TimelineHistory::parse(timeline(3), text.as_bytes());
        for text in ["x\t0/1\tr", "1", "1\t", "1\t0/", "0\t0/1\tr", "1\t1\tr", "1 0/1 r\n2"] {
            assert!(matches!(parse(text), Err(HistoryError::Line { .. })), "{text:?}");
        }
        for text in ["1\t0/1\tr\n1\t0/2\tr", "2\t0/1\tr\n1\t0/2\tr", "3\t0/1\tr"] {
            assert!(matches!(parse(text), Err(HistoryError::Order { .. })), "{text:?}");
        }
        assert!(matches!(parse("\n# nothing\n"), Err(HistoryError::Empty { .. })));
        assert_eq!(parse("# why\n\n  1 0/A0\n").unwrap().forks()[0].at, Lsn::new(0xA0));
    }

    fn histories() -> impl Strategy<Value = TimelineHistory> {
        prop::collection::vec((1u32..5, 0u64..100, "[a-z ]{0,9}"), 1..6).prop_map(|lines| {
            let mut number = 0;
            let forks = lines.into_iter().map(|(step, at, reason)| {
                number += step;
                Fork {
                    parent: timeline(number),
                    at: Lsn::new(at),
                    reason: reason.trim().to_owned(),
                }
            });
            let forks = forks.collect();
            TimelineHistory {
                timeline: timeline(number + 1),
                forks,
            }
        })
    }

    proptest! {
        #[test]
        fn every_history_survives_printing(history in histories()) {
            let text = history.to_string();
            prop_assert_eq!(TimelineHistory::parse(history.timeline, text.as_bytes()), Ok(history));
        }

        #[test]
        fn the_path_has_no_gap_and_agrees_with_each_position(history in histories(), lsn in 0u64..120) {
            let path = history.path();
            prop_assert_eq!(path[0].from, Lsn::ZERO);
            prop_assert_eq!(path.last().unwrap().to, None);
            prop_assert!(path.windows(2).all(|legs| legs[0].to == Some(legs[1].from)));
            let lsn = Lsn::new(lsn);
            let leg = path.iter().find(|leg| leg.from <= lsn && leg.to.is_none_or(|to| lsn < to)).unwrap();
            prop_assert_eq!(leg.timeline, history.timeline_at(lsn));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, text in "[0-9A-F/#\\s]{0,40}") {
            let _ = TimelineHistory::parse(timeline(9), &bytes);
            let _ = TimelineHistory::parse(timeline(9), text.as_bytes());
        }
    }
}
