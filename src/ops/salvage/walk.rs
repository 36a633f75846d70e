//! Follows one timeline's WAL, record by record and from file to file, and says what of it is to be stored.
//!
//! A segment is stored whole when every byte of it belongs to the chain of records: the record that crosses into the next
//! segment is whole there, or the last one ends exactly at the border, or the rest is padding behind a switch. Any other
//! segment is a piece, up to its last whole record; so the name of the whole stays free for a server that goes on there.

mod agree;
mod links;

use std::path::{Path, PathBuf};

use self::links::{goes_on, is_resolved};
use super::files::{self, Behind, Looks};
use super::survey::{Ground, path_of, problem};
use super::{End, OnTimeline, Problem, ProblemKind, Step};
use crate::error::Failure;
use crate::pg::{Lsn, SegmentNumber, Timeline, WalFileName};
use crate::repo::{Identity, tail};
use crate::wal::index::{Broken, Chain, Crossing, SegmentIndex, Told};
use crate::wal::{CommitPoint, EventKind};

/// What leads to the next segment.
enum Link {
    /// Not looked for yet: the segment before is not in this folder.
    Unknown,
    /// The segment before, whole in the repository, of this timeline.
    Stored(Timeline, SegmentNumber),
    /// The records up to here.
    Chain(Box<Chain>),
    /// Nothing: the records end before, and it is told why.
    Ended,
    /// The repository has another history: nothing is taken before the two agree again.
    Refused,
}

/// One timeline on its way.
pub(super) struct Walk<'a> {
    ground: &'a Ground<'a>,
    timeline: Timeline,
    link: Link,
    /// The number that comes next.
    next: Option<SegmentNumber>,
    /// Segments that lead to a record which has not ended yet.
    unproven: Vec<SegmentNumber>,
    pieces: Vec<tail::Piece>,
    on: OnTimeline,
    problems: Vec<Problem>,
}

impl<'a> Walk<'a> {
    pub(super) async fn new(ground: &'a Ground<'a>, mut on: OnTimeline) -> Result<Self, Failure> {
        let timeline = on.timeline;
        let pieces = tail::pieces(ground.repository, ground.cluster().system, timeline).await?;
        on.stored_to = ground
            .stored_on(timeline)
            .max(pieces.iter().map(|piece| piece.to).max());
        Ok(Self {
            ground,
            timeline,
            link: Link::Unknown,
            next: None,
            unproven: Vec::new(),
            pieces,
            on,
            problems: Vec::new(),
        })
    }

    /// Follows all files of the timeline.
    pub(super) async fn run(mut self) -> Result<(OnTimeline, Vec<Problem>), Failure> {
        let files = self.ground.files.segments.get(&self.timeline);
        for (number, path) in files.into_iter().flatten() {
            if self.next != Some(*number) {
                self.leave().await?;
                self.link = Link::Unknown;
            }
            self.next = Some(number.next());
            match self.ground.stored(self.file(*number)).await? {
                Some(known) => self.stored(*number, path, known).await?,
                None => self.lacking(*number, path).await?,
            }
        }
        self.leave().await?;
        Ok((self.on, self.problems))
    }

    fn file(&self, number: SegmentNumber) -> WalFileName {
        WalFileName::Segment(number.name(self.timeline, self.ground.cluster().segment_size))
    }

    fn start(&self, number: SegmentNumber) -> Lsn {
        number.start(self.ground.cluster().segment_size)
    }

    fn end(&self, number: SegmentNumber) -> Lsn {
        number.end(self.ground.cluster().segment_size)
    }

    fn tell(&mut self, kind: ProblemKind, path: &Path, from: Lsn, to: Option<Lsn>, about: &str) {
        self.problems.push(Problem {
            timeline: Some(self.timeline),
            from: Some(from),
            to,
            ..problem(kind, path, about)
        });
    }

    /// A segment that the repository has whole.
    async fn stored(
        &mut self,
        number: SegmentNumber,
        path: &Path,
        known: Result<Identity, String>,
    ) -> Result<(), Failure> {
        let start = self.start(number);
        let agrees = match (files::look(path, self.file(number), self.ground.cluster()), known) {
            (Looks::Foreign(why), _) => {
                self.tell(ProblemKind::Foreign, path, start, None, &format!("was refused: {why}"));
                true
            }
            (_, Err(damaged)) => {
                let about = format!("can't be held against the repository's: {damaged}");
                self.tell(ProblemKind::Damaged, path, start, None, &about);
                true
            }
            (Looks::Wal, Ok(known)) => self.agrees(number, path, &known).await?,
            // What this folder does not have any more is of no interest: the repository has it.
            (Looks::Blank(_) | Looks::Unreadable(_), Ok(_)) => true,
        };
        self.meet_stored(number, agrees).await?;
        self.on.end = None;
        self.link = match agrees {
            true => Link::Stored(self.timeline, number),
            false => Link::Refused,
        };
        Ok(())
    }

    /// What is unproven before a segment that the repository has is proven by that, or not at all.
    async fn meet_stored(&mut self, number: SegmentNumber, agrees: bool) -> Result<(), Failure> {
        let (Link::Chain(chain), Some(first)) = (&self.link, self.unproven.first().copied()) else {
            return Ok(());
        };
        let proven = match self.index_of_stored(self.timeline, number).await? {
            Some(index) => goes_on(&mut chain.clone(), &index, self.ground.cluster().segment_size.bytes()),
            None => agrees,
        };
        let end = chain.extent().map_or(self.start(first), |extent| extent.end);
        if !proven && let Some(path) = path_of(&self.ground.files, self.timeline, first) {
            let about = "ends with a record that the next segment, which the repository has, does not continue";
            self.tell(ProblemKind::Damaged, &path, end, Some(self.start(number)), about);
        }
        if !proven && !agrees {
            // Of which history this is, nothing shows.
            self.unproven.clear();
        }
        self.settle(proven).await
    }

    /// A segment that the repository lacks.
    async fn lacking(&mut self, number: SegmentNumber, path: &Path) -> Result<(), Failure> {
        let start = self.start(number);
        match files::look(path, self.file(number), self.ground.cluster()) {
            Looks::Wal => {}
            Looks::Blank(why) => return self.break_off(number, start, &why).await,
            Looks::Foreign(why) => {
                self.tell(ProblemKind::Foreign, path, start, None, &format!("was refused: {why}"));
                self.leave().await?;
                self.link = Link::Unknown;
                return Ok(());
            }
            Looks::Unreadable(error) => {
                let about = format!("could not be read: {error}");
                self.tell(ProblemKind::Unreadable, path, start, None, &about);
                self.leave().await?;
                self.link = Link::Unknown;
                return Ok(());
            }
        }
        let Some(chain) = self.chain_to(number, path).await? else {
            return Ok(());
        };
        let (index, error) = files::index(path, self.timeline, start, self.ground.layout);
        if let Some(error) = error {
            let about = format!("could not be read to its end: {error}");
            self.tell(ProblemKind::Unreadable, path, start, None, &about);
        }
        self.follow(chain, number, path, &index).await
    }

    /// Adds a segment that the repository lacks.
    async fn follow(
        &mut self,
        mut chain: Box<Chain>,
        number: SegmentNumber,
        path: &Path,
        index: &SegmentIndex,
    ) -> Result<(), Failure> {
        let size = self.ground.cluster().segment_size.bytes();
        let crossing = chain.follow(index, size);
        let broken = chain.broken().cloned();
        let at_border = broken
            .as_ref()
            .is_some_and(|broken| Some(broken) != index.broken.as_ref());
        if let Crossing::Record(record) = &crossing
            && let Ok(Told::Event(event)) = record.event()
            && let EventKind::Commit(end) = event.kind
        {
            self.on.last_commit = Some(CommitPoint {
                lsn: event.lsn,
                end_lsn: event.end_lsn,
                xid: end.xid,
                at: end.at,
            });
        }
        let resolved = !at_border && is_resolved(index);
        if resolved {
            for number in std::mem::take(&mut self.unproven) {
                if !self.whole(number).await? {
                    return Ok(());
                }
            }
        }
        if !at_border {
            self.on.last_commit = index.ends.last_commit.or(self.on.last_commit);
        }
        let extent = chain.extent();
        self.link = Link::Ended;
        match broken {
            None if resolved && index.begun.is_none() => {
                if !self.whole(number).await? {
                    return Ok(());
                }
                if let Some(extent) = extent {
                    self.ended_at(extent.end, "the last file ends there");
                }
                self.link = Link::Chain(chain);
            }
            None => {
                self.unproven.push(number);
                self.link = Link::Chain(chain);
            }
            Some(broken) => {
                let place = self.unproven.first().copied().unwrap_or(number);
                if let Some(extent) = extent {
                    self.piece(place, extent.end).await?;
                    self.ended_at(extent.end, &broken.why);
                }
                self.judge_end(number, path, &broken, at_border);
                self.unproven.clear();
            }
        }
        Ok(())
    }

    fn ended_at(&mut self, lsn: Lsn, why: &str) {
        self.on.end = Some(End {
            lsn,
            why: why.to_owned(),
        });
    }

    /// The chain ends at a file that has no content of its own.
    async fn break_off(&mut self, number: SegmentNumber, at: Lsn, why: &str) -> Result<(), Failure> {
        let extent = match std::mem::replace(&mut self.link, Link::Ended) {
            Link::Chain(chain) => chain.extent(),
            Link::Unknown | Link::Stored(..) => None,
            link @ (Link::Ended | Link::Refused) => {
                self.link = link;
                return Ok(());
            }
        };
        let place = self.unproven.first().copied();
        self.unproven.clear();
        if let Some(extent) = extent {
            if let Some(place) = place {
                self.piece(place, extent.end).await?;
            }
            self.ended_at(extent.end, why);
        }
        if let Some(path) = path_of(&self.ground.files, self.timeline, number) {
            let broken = Broken {
                at,
                unwritten: false,
                why: why.to_owned(),
            };
            self.judge_end(number, &path, &broken, false);
        }
        Ok(())
    }

    /// Whether the WAL just ends there, or goes on behind a place that nothing leads past.
    fn judge_end(&mut self, number: SegmentNumber, path: &Path, broken: &Broken, at_border: bool) {
        let mut found: Option<Behind> = None;
        let files = self.ground.files.segments.get(&self.timeline);
        for (next, (at, path)) in (number.number()..).zip(files.into_iter().flat_map(|files| files.range(number..))) {
            let is_wal = || matches!(files::look(path, self.file(*at), self.ground.cluster()), Looks::Wal);
            if at.number() != next || (*at != number && !is_wal()) {
                break;
            }
            // A place at a border counts from the next page on, which is this file's first.
            if let Some(behind) = files::behind(path, self.start(*at), broken.at, self.ground.layout) {
                found = Some(Behind {
                    from: found.map_or(behind.from, |found| found.from),
                    to: behind.to,
                });
            }
        }
        let Some(behind) = found else { return };
        let follows = if at_border {
            " does not continue the WAL before it"
        } else {
            " is damaged"
        };
        let about = format!(
            "{follows} at {} ({}): records that can be read lie behind it, from {} to {}, and no recovery gets to them",
            broken.at, broken.why, behind.from, behind.to
        );
        self.tell(
            ProblemKind::Damaged,
            path,
            broken.at,
            Some(behind.to),
            about.trim_start(),
        );
    }

    /// Leaves a row of files: what is unproven by then may be proven by the file of another name.
    async fn leave(&mut self) -> Result<(), Failure> {
        let (Link::Chain(chain), Some(last)) = (&self.link, self.unproven.last().copied()) else {
            return Ok(());
        };
        let mut proven = false;
        for index in self.continuations(last.next()).await? {
            proven = goes_on(&mut chain.clone(), &index, self.ground.cluster().segment_size.bytes());
            if proven {
                break;
            }
        }
        self.settle(proven).await
    }

    /// Stores what was unproven, whole or up to the last whole record.
    async fn settle(&mut self, proven: bool) -> Result<(), Failure> {
        let Link::Chain(chain) = std::mem::replace(&mut self.link, Link::Ended) else {
            return Ok(());
        };
        let unproven = std::mem::take(&mut self.unproven);
        if proven {
            for number in unproven {
                if !self.whole(number).await? {
                    return Ok(());
                }
            }
        } else if let (Some(first), Some(extent)) = (unproven.first(), chain.extent()) {
            self.piece(*first, extent.end).await?;
        }
        if let Some(extent) = chain.extent() {
            self.ended_at(extent.end, "the next file is missing");
        }
        Ok(())
    }

    /// A segment is to be stored whole. Answers whether nothing stands against it.
    async fn whole(&mut self, number: SegmentNumber) -> Result<bool, Failure> {
        let Some(path) = path_of(&self.ground.files, self.timeline, number) else {
            return Ok(false);
        };
        let Some(from) = self.tail_of(number, &path, self.end(number)).await? else {
            self.link = Link::Refused;
            return Ok(false);
        };
        if from < self.end(number) {
            self.on.stretch(from, self.end(number));
        }
        self.on.steps.push(Step::File {
            file: self.file(number),
            path,
        });
        Ok(true)
    }

    /// The beginning of a segment is to be stored, up to `to`.
    async fn piece(&mut self, number: SegmentNumber, to: Lsn) -> Result<(), Failure> {
        let segment = self.start(number);
        let path: Option<PathBuf> = path_of(&self.ground.files, self.timeline, number);
        let (Some(path), true) = (path, to > segment) else {
            return Ok(());
        };
        let Some(from) = self.tail_of(number, &path, to).await? else {
            return Ok(());
        };
        if from < to {
            self.on.stretch(from, to);
            self.on.steps.push(Step::Piece {
                path,
                segment,
                from,
                to,
            });
        }
        Ok(())
    }
}
