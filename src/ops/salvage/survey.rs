//! What there is to be salvaged: reads everything, writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::files::{self, Files, Looks};
use super::walk::Walk;
use super::{DeadServer, OnTimeline, Problem, ProblemKind, SalvageError, Step, Survey};
use crate::catalog::Catalog;
use crate::codec::Digest;
use crate::error::{Class, Explain, Failure, on_one_line};
use crate::pg::{ControlFile, Leg, Lsn, SegmentNumber, Timeline, TimelineHistory, WalFileName};
use crate::repo::{self, ClusterInfo, Form, Identity, Repository};
use crate::wal::WalLayout;

/// A history file is some lines; a larger file is something else.
const TEXT_LIMIT: u64 = 1 << 20;

/// What a survey stands on.
pub(super) struct Ground<'a> {
    pub(super) repository: &'a Repository,
    pub(super) layout: WalLayout,
    pub(super) files: Files,
    pub(super) catalog: Catalog,
    pub(super) histories: BTreeMap<Timeline, TimelineHistory>,
    control: &'a ControlFile,
}

/// Says what is to be stored of a dead server's WAL.
///
/// # Errors
/// A cluster that the repository knows otherwise, a `pg_wal` that can't be read, or the store.
pub async fn survey(repository: &Repository, dead: &DeadServer) -> Result<Survey, Failure> {
    let cluster = dead.local.info();
    let layout = WalLayout::new(cluster.major, cluster.segment_size, cluster.wal_page_size);
    let layout = layout.map_err(SalvageError::Layout)?;
    let known = ClusterInfo::read(repository.store(), cluster.system).await?;
    if known.is_some() {
        cluster.bind(repository, known).await?;
    }
    let files = read_folder(&dead.folder, &cluster)?;
    let mut ground = Ground {
        repository,
        layout,
        files,
        catalog: Catalog::read(repository, cluster.clone()).await?,
        histories: BTreeMap::new(),
        control: &dead.local.control,
    };
    let mut survey = Survey {
        cluster,
        folder: dead.folder.clone(),
        timelines: Vec::new(),
        problems: Vec::new(),
        has_backup: !ground.catalog.backups.is_empty(),
    };
    let strange = ground.files.strange.iter();
    let strange = strange.map(|path| problem(ProblemKind::Foreign, path, "is no name of a segment of this size"));
    survey.problems.extend(strange);
    for timeline in ground.timelines() {
        let mut on = OnTimeline::new(timeline);
        match ground.history(&mut on).await? {
            Ok(Some(history)) => drop(ground.histories.insert(timeline, history)),
            Ok(None) => {}
            // What follows is another timeline of the same number.
            Err(problem) => {
                survey.problems.push(problem);
                continue;
            }
        }
        let (on, problems) = Walk::new(&ground, on).await?.run().await?;
        survey.problems.extend(problems);
        let (on, problems) = ground.partials(on).await?;
        survey.problems.extend(problems);
        if !survey.problems.iter().any(|problem| problem.timeline == Some(timeline)) {
            survey.problems.extend(ground.lost(&on).await?);
        }
        survey.timelines.push(on);
    }
    Ok(survey)
}

fn read_folder(folder: &Path, cluster: &ClusterInfo) -> Result<Files, SalvageError> {
    let path = folder.to_path_buf();
    Files::read(folder, cluster.segment_size).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SalvageError::NoWal { path },
        _ => SalvageError::Read { path, source },
    })
}

/// A problem with a file, which the text goes on about.
pub(super) fn problem(kind: ProblemKind, path: &Path, about: &str) -> Problem {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Problem {
        kind,
        timeline: None,
        from: None,
        to: None,
        detail: format!("{file} {about}"),
        file: Some(file),
    }
}

impl Ground<'_> {
    /// Every timeline of which there is a file, oldest first.
    fn timelines(&self) -> BTreeSet<Timeline> {
        let partials = self.files.partials.keys().map(|(timeline, _)| timeline);
        let named = self
            .files
            .segments
            .keys()
            .chain(self.files.histories.keys())
            .chain(partials);
        named.copied().chain([self.control.timeline]).collect()
    }

    pub(super) fn cluster(&self) -> &ClusterInfo {
        &self.catalog.info
    }

    /// The way that leads to a timeline.
    pub(super) fn path(&self, timeline: Timeline) -> Vec<Leg> {
        let here = self.histories.get(&timeline).cloned();
        here.unwrap_or_else(|| self.catalog.history(timeline)).path()
    }

    /// Whether a segment that nothing leads to is the cluster's all the same: the control file tells of WAL behind its
    /// beginning, so the server has written it and gone on; or the timeline begins in it. A segment further on may be left
    /// over from before a crash.
    pub(super) fn is_proven(&self, timeline: Timeline, number: SegmentNumber) -> bool {
        let size = self.cluster().segment_size;
        let begins = || {
            let path = self.histories.contains_key(&timeline).then(|| self.path(timeline));
            let leg = path.and_then(|path| path.last().copied());
            leg.is_some_and(|leg| leg.timeline == timeline && SegmentNumber::holding(leg.from, size) == number)
        };
        self.known(timeline).is_some_and(|known| number.start(size) <= known) || begins()
    }

    /// The last place of a timeline, or of one that follows it, that the control file tells of.
    fn known(&self, timeline: Timeline) -> Option<Lsn> {
        // The one is where the last record ends that was needed; the other, where a record begins.
        let needed = self
            .control
            .minimum_recovery
            .map(|end| Lsn::new(end.bytes().saturating_sub(1)));
        let recovery = needed.zip(self.control.minimum_recovery_timeline);
        let checkpoint = (self.control.checkpoint.max(self.control.redo), self.control.timeline);
        let known = recovery.into_iter().chain([checkpoint]);
        known.filter(|(_, on)| *on >= timeline).map(|(lsn, _)| lsn).max()
    }

    /// Where the last segment ends that the repository has whole on the way to a timeline, of those before `before`.
    pub(super) fn stored_before(&self, timeline: Timeline, before: Option<SegmentNumber>) -> Option<Lsn> {
        let size = self.cluster().segment_size;
        let ends = self.path(timeline).into_iter().filter_map(|leg| {
            let left = leg.to.map(|to| SegmentNumber::ending(to, size));
            let is_before = |number: SegmentNumber| before.is_none_or(|before| number < before);
            let is_left = |number: SegmentNumber| left.is_some_and(|left| number > left);
            self.whole(leg.timeline)
                .rev()
                .find(|number| is_before(*number) && !is_left(*number))
        });
        ends.max().map(|number| number.end(size))
    }

    /// Where the last segment of a timeline ends that the repository has whole.
    pub(super) fn stored_on(&self, timeline: Timeline) -> Option<Lsn> {
        let last = self.whole(timeline).next_back();
        last.map(|number| number.end(self.cluster().segment_size))
    }

    /// The segments of a timeline that the repository has whole.
    fn whole(&self, timeline: Timeline) -> impl DoubleEndedIterator<Item = SegmentNumber> {
        let segments = self
            .catalog
            .wal
            .timeline(timeline)
            .map_or(&[][..], |wal| wal.segments());
        segments
            .iter()
            .filter(|segment| segment.form == Form::Whole)
            .map(|segment| segment.number)
    }

    /// The identity of a whole file that the repository has; an object that is damaged counts as one that is there.
    pub(super) async fn stored(&self, file: WalFileName) -> Result<Option<Result<Identity, String>>, Failure> {
        match repo::identity(self.repository.store(), self.cluster().system, file).await {
            Ok(identity) => Ok(identity.map(Ok)),
            Err(error) if error.class() == Class::Damaged => Ok(Some(Err(on_one_line(&error)))),
            Err(error) => Err(error.into()),
        }
    }

    /// A timeline's history file: `Err` where it can't be this cluster's.
    async fn history(&self, on: &mut OnTimeline) -> Result<Result<Option<TimelineHistory>, Problem>, Failure> {
        let Some(path) = self.files.histories.get(&on.timeline) else {
            return Ok(Ok(None));
        };
        let on_timeline = |mut problem: Problem| {
            problem.timeline = Some(on.timeline);
            Ok(Err(problem))
        };
        let text = match read_text(path) {
            Ok(text) => text,
            Err(error) => {
                let about = format!("could not be read: {error}");
                return on_timeline(problem(ProblemKind::Unreadable, path, &about));
            }
        };
        let history = match TimelineHistory::parse(on.timeline, &text) {
            Ok(history) => history,
            Err(error) => {
                let about = format!("makes no sense: {error}");
                return on_timeline(problem(ProblemKind::Damaged, path, &about));
            }
        };
        let file = WalFileName::History(on.timeline);
        match self.stored(file).await? {
            None => on.steps.push(Step::File {
                file,
                path: path.clone(),
            }),
            Some(Ok(known)) if known.content != Digest::of(&text) => {
                let about = "is in the repository already with other content: another server has begun a timeline of the \
                             same number";
                return on_timeline(problem(ProblemKind::Conflict, path, about));
            }
            Some(_) => on.agreed += 1,
        }
        Ok(Ok(Some(history)))
    }

    /// What promotions left of a timeline's last segment is stored as the archiver would.
    async fn partials(&self, mut on: OnTimeline) -> Result<(OnTimeline, Vec<Problem>), Failure> {
        let (cluster, timeline) = (self.cluster(), on.timeline);
        let mut problems = Vec::new();
        let of_timeline = (timeline, SegmentNumber::new(0))..=(timeline, SegmentNumber::new(u64::MAX));
        for ((_, number), path) in self.files.partials.range(of_timeline) {
            let file = WalFileName::Partial(number.name(timeline, cluster.segment_size));
            let kind = match files::look(path, file, cluster) {
                Looks::Wal => match self.stored(file).await? {
                    None => {
                        let path = path.clone();
                        on.steps.push(Step::File { file, path });
                        continue;
                    }
                    Some(known) => match files::digest(path) {
                        Ok(digest) if known.is_ok_and(|known| known.content != digest) => (
                            ProblemKind::Conflict,
                            "is in the repository already with other content".to_owned(),
                        ),
                        Ok(_) => {
                            on.agreed += 1;
                            continue;
                        }
                        Err(error) => (ProblemKind::Unreadable, format!("could not be read: {error}")),
                    },
                },
                Looks::Blank(why) | Looks::Foreign(why) => (ProblemKind::Foreign, format!("was refused: {why}")),
                Looks::Unreadable(error) => (ProblemKind::Unreadable, format!("could not be read: {error}")),
            };
            problems.push(Problem {
                timeline: Some(timeline),
                from: Some(number.start(cluster.segment_size)),
                ..problem(kind.0, path, &kind.1)
            });
        }
        Ok((on, problems))
    }

    /// WAL that the control file tells of and that nobody has.
    async fn lost(&self, on: &OnTimeline) -> Result<Option<Problem>, Failure> {
        if on.timeline != self.control.timeline {
            return Ok(None);
        }
        let Some(known) = self.known(on.timeline) else {
            return Ok(None);
        };
        let size = self.cluster().segment_size;
        let here = on.end.as_ref().map(|end| end.lsn).max(on.stored_to);
        let here = here.or_else(|| self.stored_before(on.timeline, None));
        let number = SegmentNumber::holding(known, size);
        let holding = number.name(on.timeline, size);
        let partial = self.files.partials.contains_key(&(on.timeline, number))
            || self.stored(WalFileName::Partial(holding)).await?.is_some();
        let whole =
            here.is_some_and(|here| here > known) || self.stored(WalFileName::Segment(holding)).await?.is_some();
        // A partial file holds the segment up to where the timeline was left, and nobody was told of more.
        if whole || partial {
            return Ok(None);
        }
        let from = here.map_or_else(|| "the beginning".to_owned(), |here| here.to_string());
        Ok(Some(Problem {
            kind: ProblemKind::Lost,
            timeline: Some(on.timeline),
            file: None,
            from: here,
            to: Some(known),
            detail: format!(
                "the control file tells of WAL up to {known} at least, and from {from} on it is neither here nor in the \
                 repository"
            ),
        }))
    }
}

/// Reads a text about WAL.
pub(super) fn read_text(path: &Path) -> io::Result<Bytes> {
    let about = fs::metadata(path)?;
    if !about.is_file() || about.len() > TEXT_LIMIT {
        return Err(io::Error::other("it is no text of some lines"));
    }
    let mut text = Vec::new();
    File::open(path)?.take(TEXT_LIMIT).read_to_end(&mut text)?;
    Ok(text.into())
}

/// The local file of a segment.
pub(super) fn path_of(files: &Files, timeline: Timeline, number: SegmentNumber) -> Option<PathBuf> {
    files.segment(timeline, number).cloned()
}
