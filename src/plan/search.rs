//! Which backup a recovery starts from, and where it ends; or why there is none, and what is nearest.
//!
//! Backups are tried from the newest to the oldest. For each that may serve, the WAL is followed from the backup's start
//! along the path of timelines, segment by segment, so that the answer is exact however times jump. What is read comes
//! through [`Source`]; all that is decided is decided here.

use std::future::Future;

use futures_util::stream::{self, StreamExt};

use super::course::Course;
use super::recovery::{Findings, Missed, Nearest, Plan, Refusal, Requested, settle};
use crate::catalog::{Catalog, OffPath, StoredSegment};
use crate::error::{Class, Failure};
use crate::pg::{ControlSettings, Leg, Lsn, SegmentName, SegmentNumber, Timeline, TimelineHistory};
use crate::repo::Form;
use crate::repo::backup::{BackupId, BackupRecord, BackupState};
use crate::repo::reader::Lacks;
use crate::wal::index::SegmentIndex;
use crate::wal::{Event, Extent, Target, Xid};

mod nearest;
#[cfg(test)]
mod tests;

use nearest::{Miss, NotThere, Told};

/// How many indexes are read at a time. Each may have some hundred kilobytes.
const AT_ONCE: usize = 16;

/// The timeline to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimelineChoice {
    /// The newest that there is.
    Latest,
    /// This one.
    Number(Timeline),
}

/// What to plan.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to end.
    pub requested: Requested,
    /// Whether the target itself is replayed.
    pub inclusive: bool,
    /// The timeline to follow.
    pub timeline: TimelineChoice,
    /// The backup to start from, where it was named.
    pub backup: Option<BackupId>,
}

/// A segment, with the timeline whose file it is.
pub type OnPath = (Timeline, StoredSegment);

/// What a stretch of WAL was found to hold.
#[derive(Debug, Clone, Default)]
pub struct Stretch {
    /// All that a recovery meets there, in WAL order.
    pub events: Vec<Event>,
    /// How far its whole records go.
    pub extent: Option<Extent>,
}

/// Where a search gets from what it needs to know. An error of the class *damaged* is taken for what it says; any other
/// ends the search.
pub trait Source {
    /// The index of a segment.
    type Index: AsRef<SegmentIndex>;

    /// A segment's index; `None` where WAL of this major can't be read.
    fn index(&self, segment: OnPath) -> impl Future<Output = Result<Option<Self::Index>, Failure>>;

    /// Where WAL of a segment is lost though there is more from behind that, and how far that goes. What is left of it
    /// before that is what its index tells.
    fn lost(&self, index: &Self::Index) -> Option<(Lsn, Lsn)>;

    /// All events of the records that begin in a segment and end in it.
    fn events(&self, index: &Self::Index) -> impl Future<Output = Result<Vec<Event>, Failure>>;

    /// What the records tell that begin in these segments, which follow each other, and end at `until` or before.
    fn stretch(&self, segments: &[OnPath], until: Lsn) -> impl Future<Output = Result<Stretch, Failure>>;

    /// The transaction that ended in a segment together with a subtransaction of it.
    fn whole_transaction(&self, segment: OnPath, part: Xid) -> impl Future<Output = Result<Option<Xid>, Failure>>;

    /// What a backup lacks of its own objects.
    fn lacks(&self, backup: &BackupRecord) -> impl Future<Output = Result<Lacks, Failure>>;

    /// What a backup's server ran with; `None` where the backup does not tell.
    fn settings(&self, backup: &BackupRecord) -> impl Future<Output = Result<Option<ControlSettings>, Failure>>;

    /// Whether a timeline's history file is there. Damage is an error.
    fn history(&self, timeline: Timeline) -> impl Future<Output = Result<bool, Failure>>;
}

/// A search for a recovery.
#[derive(Debug)]
pub struct Search<'a, S> {
    source: &'a S,
    catalog: &'a Catalog,
    request: &'a Request,
    timeline: Timeline,
    path: Vec<Leg>,
}

/// The WAL that leads on from a backup.
#[derive(Debug, Clone)]
struct Way {
    segments: Vec<OnPath>,
    /// In the last of them the path leaves its timeline here, and the file that it goes on in is missing.
    cut: Option<Lsn>,
}

/// What came of following a way.
#[derive(Debug)]
struct Followed {
    findings: Findings,
    /// The place on the way of the first segment that is damaged or gone, and how.
    damage: Option<(usize, String)>,
    /// Whether there is WAL past the place where the path leaves its timeline.
    strays: bool,
}

impl<'a, S: Source> Search<'a, S> {
    /// For this request.
    ///
    /// # Errors
    /// The timeline is not there.
    pub fn new(source: &'a S, catalog: &'a Catalog, request: &'a Request) -> Result<Self, Refusal> {
        let history = choose_timeline(catalog, request.timeline)?;
        Ok(Self {
            source,
            catalog,
            request,
            timeline: history.timeline(),
            path: history.path(),
        })
    }

    /// The recovery.
    ///
    /// # Errors
    /// A target that can't be reached, with the nearest that can; or what the source answers.
    pub async fn run(&self) -> Result<Plan, Failure> {
        self.check_history().await?;
        if let Some(id) = &self.request.backup
            && self.catalog.backup(id).is_none()
        {
            return Err(self.no_such(id).into());
        }
        if self.catalog.backups.is_empty() {
            return Err(match self.catalog.damaged.last() {
                Some((_, how)) => self.damaged(how.clone(), None),
                None => Refusal::NoBackup(self.catalog.info.system.to_string()),
            }
            .into());
        }
        match self.decide(self.request).await? {
            Ok(plan) => Ok(plan),
            Err(miss) => {
                let mut refusal = self.refuse(miss).await?;
                if let Refusal::OutOfReach { why, .. } = &mut refusal
                    && let Some(timeline) = self.elsewhere().await?
                {
                    why.push_str(&format!("; timeline {timeline} has it: --target-timeline {timeline}"));
                }
                Err(refusal.into())
            }
        }
    }

    /// Another timeline on which the target can be had, where none was named. The end of the WAL and of a backup are
    /// other places on each.
    async fn elsewhere(&self) -> Result<Option<Timeline>, Failure> {
        let is_anywhere = matches!(self.request.requested, Requested::Latest | Requested::Immediate);
        if is_anywhere || self.request.timeline != TimelineChoice::Latest {
            return Ok(None);
        }
        for timeline in self.others() {
            let request = Request {
                timeline: TimelineChoice::Number(timeline),
                ..self.request.clone()
            };
            let search = Search::new(self.source, self.catalog, &request)?;
            if Box::pin(search.decide(&request)).await?.is_ok() {
                return Ok(Some(timeline));
            }
        }
        Ok(None)
    }

    /// PostgreSQL follows no timeline but the first without its history file.
    async fn check_history(&self) -> Result<(), Failure> {
        if self.timeline == Timeline::FIRST || self.catalog.histories.contains_key(&self.timeline) {
            return Ok(());
        }
        let why = match self.source.history(self.timeline).await {
            Ok(true) => return Ok(()),
            Ok(false) => format!(
                "its history file {}.history is missing, and PostgreSQL follows no timeline without it",
                self.timeline.hex()
            ),
            Err(failure) if failure.class() == Class::Damaged => {
                return Err(self.damaged(failure.one_line(), None).into());
            }
            Err(failure) => return Err(failure),
        };
        let nearest = Nearest {
            elsewhere: self.ends_elsewhere().await?,
            ..Nearest::default()
        };
        Err(self.out_of_reach(why, nearest).into())
    }

    /// Tries one backup after the other.
    async fn decide(&self, request: &Request) -> Result<Result<Plan, Miss>, Failure> {
        let mut tried = Tried::new(self.catalog);
        let mut backups: Vec<&BackupRecord> = self.catalog.backups.iter().rev().collect();
        // By their place in the WAL: the clock may have been set back between two of them.
        backups.sort_by_key(|backup| std::cmp::Reverse(backup.stop_lsn));
        let backups = backups.into_iter();
        for backup in backups.filter(|backup| request.backup.as_ref().is_none_or(|named| *named == backup.id)) {
            let way = match self.usable(backup, request) {
                Ok(way) => way,
                Err((why, later)) => {
                    tried.pass_over(backup, why, later);
                    continue;
                }
            };
            let followed = self.follow(backup, &way, request).await?;
            let missed = match self.judge(backup, &way, &followed, request) {
                Ok(decided) => {
                    let lacks = self.source.lacks(backup).await?;
                    match lacks.needed {
                        None => {
                            let mut plan = self.plan(backup, &way, followed, decided, request, tried).await?;
                            plan.warnings.extend(lacks.others.into_iter().map(not_needed));
                            return Ok(Ok(plan));
                        }
                        Some(why) => {
                            tried.lacking.get_or_insert_with(|| why.clone());
                            Verdict::PassOver { why, later: true }
                        }
                    }
                }
                Err(verdict) => verdict,
            };
            match missed {
                Verdict::Miss(mut miss) => {
                    miss.later = tried.later;
                    miss.lacks(tried.lacking);
                    return Ok(Err(*miss));
                }
                Verdict::PassOver { why, later } => tried.pass_over(backup, why, later),
                Verdict::NotThere(miss) => {
                    let why = match &miss.damaged {
                        true => miss.why.clone(),
                        false => "the WAL after it does not have the target".to_owned(),
                    };
                    tried.pass_over(backup, why, false);
                    let told = self.told_of_xid(&way, &followed.findings, request).await?;
                    tried.miss(backup, *miss, told);
                }
            }
        }
        Ok(Err(tried.give_up(request)))
    }

    /// What was found, judged.
    fn judge(
        &self,
        backup: &BackupRecord,
        way: &Way,
        followed: &Followed,
        request: &Request,
    ) -> Result<Decided, Verdict> {
        let found = &followed.findings;
        let end = nearest::End::of(found);
        let gap = self.gap(way);
        let anywhere = matches!(
            request.requested,
            Requested::Xid(_) | Requested::Name(_) | Requested::Immediate
        );
        let stopped = found.outcome.is_none_or(|outcome| outcome.stop.is_some());
        // The segment in which a backup ends need not be there to its end.
        if let Some(extent) = found.extent.filter(|extent| extent.end < backup.stop_lsn)
            && (!stopped || request.requested == Requested::Latest)
            && way.segments.last().is_some_and(|(_, last)| last.form != Form::Whole)
        {
            let why = format!("the WAL that it needs is there only up to {}", extent.end);
            return Err(Verdict::PassOver { why, later: false });
        }
        // What lies before damage can be had as what lies before a gap can.
        let lies_before = matches!(request.requested, Requested::Time(..) | Requested::Lsn(_))
            && found.extent.is_some()
            && settle(&request.requested, request.inclusive, backup, found).is_ok();
        if let Some((_, how)) = &followed.damage
            && (!stopped || request.requested == Requested::Latest)
            && !lies_before
        {
            let miss = Box::new(Miss::damaged(how.clone(), end));
            return Err(match anywhere {
                // An older backup may have it before the damage.
                true => Verdict::NotThere(miss),
                false => Verdict::Miss(miss),
            });
        }
        let goes_on = gap.is_some() || followed.strays || found.ends.is_some();
        let miss = |why| Box::new(Miss::out_of_reach(self.with_gap(way, followed, why), end, goes_on));
        match settle(&request.requested, request.inclusive, backup, found) {
            Ok(_) if request.requested == Requested::Latest && goes_on => {
                Err(Verdict::Miss(miss("the WAL ends".to_owned())))
            }
            Ok(decided) => Ok(decided),
            Err(Missed::TooLate(why)) if request.requested == Requested::Immediate => {
                Err(Verdict::PassOver { why, later: false })
            }
            // An older backup would meet the same end of the same WAL.
            Err(Missed::TooLate(why)) => Err(Verdict::Miss(miss(why))),
            Err(Missed::TooEarly(why)) => Err(Verdict::PassOver { why, later: true }),
            Err(Missed::NotThere) => Err(Verdict::NotThere(miss("what is there does not have it".to_owned()))),
        }
    }

    async fn plan(
        &self,
        backup: &BackupRecord,
        way: &Way,
        followed: Followed,
        (stop, reaches): Decided,
        request: &Request,
        tried: Tried,
    ) -> Result<Plan, Failure> {
        let found = followed.findings;
        // WAL that can't be read may be needed to its end.
        let segments = match found.outcome {
            Some(_) => found.segments,
            None => way.segments.len(),
        };
        let used = &way.segments[..segments];
        let wal_bytes: u64 = used.iter().map(|(_, segment)| u64::from(segment.stored_bytes)).sum();
        let mut warnings = found.troubles;
        warnings.extend(found.ends);
        if found.outcome.is_none() {
            warnings.push("the point reached can't be told: this version can't read WAL of that major".to_owned());
        }
        if found.xid.rolled_back {
            warnings.push(
                "the transaction was rolled back, and its rows are not there: recovery ends at its end".to_owned(),
            );
        }
        let settings = match found.needs.settings {
            Some(_) => self.source.settings(backup).await?.map(|had| found.needs.above(&had)),
            None => None,
        }
        .unwrap_or_default();
        for (name, value) in &settings {
            warnings.push(format!(
                "{name} is set to {value}: the server was started with so much after the backup, and its WAL asks for it"
            ));
        }
        let mut no_read_ahead = false;
        if let Some((at, how)) = &followed.damage {
            warnings.push(format!("the WAL behind the target is damaged: {how}"));
            no_read_ahead = *at >= segments;
        }
        warnings.extend(self.catalog.warnings.iter().cloned());
        Ok(Plan {
            backup: backup.clone(),
            timeline: self.timeline,
            path: self.path.clone(),
            requested: request.requested.clone(),
            inclusive: request.inclusive,
            stop,
            reaches,
            segments,
            settings,
            tablespaces: found.needs.tablespaces,
            no_read_ahead,
            fetch_bytes: backup.stored_bytes + wal_bytes,
            passed_over: tried.passed_over,
            warnings,
        })
    }

    /// The WAL that leads on from a backup; or why it can't be used at all, and whether that is because the target lies
    /// before it.
    fn usable(&self, backup: &BackupRecord, request: &Request) -> Result<Way, (String, bool)> {
        if backup.state == BackupState::Damaged && request.backup.is_none() {
            let why = "it has damaged pages (name it with --backup to use it all the same)";
            return Err((why.to_owned(), false));
        }
        let no = |why| Err((why, false));
        if let Some(off) = OffPath::of(&self.path, backup) {
            return no(off.to_string());
        }
        if let Some(why) = request.requested.rules_out(request.inclusive, backup) {
            return Err((why, true));
        }
        let way = self.way(backup);
        let size = self.catalog.info.segment_size;
        let needed = SegmentNumber::ending(backup.stop_lsn, size);
        let missing = match way.segments.last() {
            Some((_, last)) if last.number >= needed && way.cut.is_none_or(|cut| backup.stop_lsn <= cut) => {
                return Ok(way);
            }
            Some((_, last)) => self
                .cut_off(&way)
                .unwrap_or(last.number.next().name(backup.timeline, size)),
            None => SegmentNumber::holding(backup.start_lsn, size).name(backup.timeline, size),
        };
        no(format!("WAL segment {missing}, which it needs, is missing"))
    }

    /// The segments from a backup's start on, until one is missing.
    fn way(&self, backup: &BackupRecord) -> Way {
        self.way_from(backup.start_lsn)
    }

    fn way_from(&self, from: Lsn) -> Way {
        let size = self.catalog.info.segment_size;
        let mut segments = self.catalog.wal.along(&self.path, from);
        // Past the place where a timeline is left, its own file of that segment tells of another history.
        let cut_in = |(timeline, segment): &OnPath| {
            let leg = self.path.iter().find(|leg| leg.timeline == *timeline)?;
            leg.to.filter(|to| *to < segment.number.end(size))
        };
        let found = segments
            .iter()
            .enumerate()
            .find_map(|(at, segment)| Some((at, cut_in(segment)?)));
        if let Some((at, _)) = found {
            segments.truncate(at + 1);
        }
        Way {
            segments,
            cut: found.map(|(_, cut)| cut),
        }
    }

    /// Follows a way as far as the request asks for.
    async fn follow(&self, backup: &BackupRecord, way: &Way, request: &Request) -> Result<Followed, Failure> {
        let target = request.requested.target(backup);
        let mut followed = self.follow_to(backup.start_lsn, way, target, request.inclusive).await?;
        // The backup's own end can be had, whatever the WAL tells of.
        let found = &mut followed.findings;
        found.last_moment = found.last_moment.max(Some(backup.stopped_at));
        Ok(followed)
    }

    async fn follow_to(&self, from: Lsn, way: &Way, target: Target, inclusive: bool) -> Result<Followed, Failure> {
        let size = self.catalog.info.segment_size;
        let mut course = Course::new(from, target, inclusive, size);
        let (mut damage, mut strays, mut lost) = (None, false, None);
        let segments = way.segments.iter().copied();
        let mut indexes = stream::iter(segments.map(|segment| self.source.index(segment))).buffered(AT_ONCE);
        let mut at = 0;
        while let Some(index) = indexes.next().await {
            let stepped = match index {
                Ok(Some(index)) => {
                    lost = self.source.lost(&index).filter(|_| at + 1 == way.segments.len());
                    self.step(&mut course, way, at, &index).await
                }
                Ok(None) => return Ok(Followed::unread()),
                Err(failure) => Err(failure),
            };
            match stepped {
                Ok(strayed) => strays |= strayed,
                Err(failure) if failure.class() == Class::Damaged => {
                    damage = Some((at, failure.one_line()));
                    break;
                }
                Err(failure) => return Err(failure),
            }
            if course.is_over() {
                break;
            }
            at += 1;
        }
        let last = way.segments.last().map(|(_, segment)| segment.number);
        let mut findings = course.finish(last);
        // The place where a timeline is left may lie before.
        let lost = lost.filter(|(from, _)| way.cut.is_none_or(|cut| *from < cut) && findings.extent.is_some());
        findings.ends = findings.ends.or(lost.map(|(from, to)| {
            format!("the WAL from {from} on is missing or damaged, and the repository has more of it up to {to}")
        }));
        Ok(Followed {
            findings,
            damage,
            strays,
        })
    }

    /// Goes through one segment; answers whether it holds WAL that is not on the path.
    async fn step(&self, course: &mut Course, way: &Way, at: usize, index: &S::Index) -> Result<bool, Failure> {
        let size = self.catalog.info.segment_size;
        let core = index.as_ref();
        if let Some(lsn) = course.enter(core) {
            let back = way.segments[at].1.number.number() - SegmentNumber::holding(lsn, size).number();
            let from = at.saturating_sub(back as usize);
            let stretch = self
                .source
                .stretch(&way.segments[from..=at], core.start.plus(size.bytes()));
            if let Some(event) = stretch.await?.events.iter().find(|event| event.lsn == lsn) {
                course.see(event);
            }
        }
        if !course.follows() {
            course.leave(None);
            return Ok(false);
        }
        let cut = way.cut.filter(|_| at + 1 == way.segments.len());
        if let Some(cut) = cut
            && core.extent.is_some_and(|extent| extent.end > cut)
        {
            let stretch = self.source.stretch(&way.segments[at..=at], cut).await?;
            course.see_all(core, &stretch.events);
            course.leave(stretch.extent.or(course.extent()));
            return Ok(true);
        }
        if course.may_pass_over(core) {
            course.pass_over(core);
        } else {
            let events = self.source.events(index).await?;
            course.see_all(core, &events);
        }
        course.leave(None);
        Ok(false)
    }

    /// Says where the WAL breaks off, if it does not simply end.
    fn with_gap(&self, way: &Way, followed: &Followed, why: String) -> String {
        if let Some(ends) = &followed.findings.ends {
            return format!("{ends}; before that, {why}");
        }
        match self.gap(way).or_else(|| self.cut_off(way).filter(|_| followed.strays)) {
            Some(missing) if self.ends_short(way) => {
                format!("the rest of WAL segment {missing} is missing, and before it {why}")
            }
            Some(missing) => format!("WAL segment {missing} is missing, and before it {why}"),
            None => why,
        }
    }

    /// The segment in which the path should go on where it leaves a timeline.
    fn cut_off(&self, way: &Way) -> Option<SegmentName> {
        let (cut, (_, last)) = (way.cut?, way.segments.last()?);
        let leg = self.path.iter().find(|leg| leg.from >= cut)?;
        Some(last.number.name(leg.timeline, self.catalog.info.segment_size))
    }

    /// The segment that is missing after a way, where later ones of the same path are there.
    fn gap(&self, way: &Way) -> Option<SegmentName> {
        let size = self.catalog.info.segment_size;
        let next = way.segments.last()?.1.number.next();
        let mut legs = self
            .path
            .iter()
            .filter(|leg| leg.to.is_none_or(|to| next.start(size) < to));
        let timeline = legs.clone().next()?.timeline;
        // What a timeline holds after it was left is on another path.
        let from = match way.cut.is_some() || self.ends_short(way) {
            true => next,
            false => next.next(),
        };
        let beyond = legs.any(|leg| {
            let stored = self.catalog.wal.timeline(leg.timeline);
            stored.is_some_and(|wal| {
                wal.segments()
                    .iter()
                    .any(|segment| segment.number >= from && leg.to.is_none_or(|to| segment.number.start(size) < to))
            })
        });
        let missing = || match way.segments.last().filter(|_| self.ends_short(way)) {
            Some((timeline, last)) => last.number.name(*timeline, size),
            None => self.cut_off(way).unwrap_or(next.name(timeline, size)),
        };
        beyond.then(missing)
    }

    /// Whether a way ends within a segment of which there are only some pieces.
    fn ends_short(&self, way: &Way) -> bool {
        let last = way.segments.last();
        way.cut.is_none() && last.is_some_and(|last| self.catalog.wal.is_short(*last))
    }
}

type Decided = (super::recovery::StopSettings, super::recovery::Reaches);

/// Why a backup does not lead there.
enum Verdict {
    /// Nor does any older one.
    Miss(Box<Miss>),
    /// An older one may; `later`: the target lies before this one.
    PassOver { why: String, later: bool },
    /// What was asked for is not in the WAL after it.
    NotThere(Box<Miss>),
}

/// The backups that were tried.
struct Tried {
    passed_over: Vec<(BackupId, String)>,
    /// Those behind the target, newest first.
    later: Vec<BackupId>,
    missed: Option<Miss>,
    told: Option<Told>,
    not_there: Vec<NotThere>,
    /// What the first lacks of its own objects that would serve.
    lacking: Option<String>,
}

impl Tried {
    fn new(catalog: &Catalog) -> Self {
        Self {
            passed_over: catalog.damaged.iter().rev().cloned().collect(),
            later: Vec::new(),
            missed: None,
            told: None,
            not_there: Vec::new(),
            lacking: None,
        }
    }

    fn pass_over(&mut self, backup: &BackupRecord, why: String, later: bool) {
        self.passed_over.push((backup.id.clone(), why));
        self.later.extend(later.then(|| backup.id.clone()));
    }

    fn miss(&mut self, backup: &BackupRecord, miss: Miss, told: Option<Told>) {
        self.not_there.push(NotThere::of(backup, &miss));
        // What the newest tells is nearest, and damage explains more than a gap.
        if self.missed.as_ref().is_none_or(|known| miss.damaged && !known.damaged) {
            self.missed = Some(miss);
        }
        self.told = self.told.take().or(told);
    }

    fn give_up(self, request: &Request) -> Miss {
        let Self {
            passed_over,
            later,
            missed,
            told,
            not_there,
            lacking,
        } = self;
        let whole = told.as_ref().and_then(|told| told.whole);
        let in_words = match passed_over.last() {
            Some((id, why)) if told.is_none() => match request.requested {
                Requested::Xid(_) | Requested::Name(_) => {
                    format!("no backup has it in the WAL after its end (of {id}: {why})")
                }
                _ => format!("of the oldest backup, {id}: {why}"),
            },
            Some(_) => told.map(|told| told.why).unwrap_or_default(),
            None => "no backup serves".to_owned(),
        };
        let mut miss = match missed {
            Some(miss) if miss.damaged || miss.goes_on => miss,
            Some(miss) => Miss { why: in_words, ..miss },
            None => Miss::out_of_reach(in_words, None, false),
        };
        (miss.later, miss.not_there, miss.whole) = (later, not_there, whole);
        miss.lacks(lacking);
        miss
    }
}

fn not_needed(lack: String) -> String {
    format!("{lack}; nothing is restored from it, and `find` and `show` tell less")
}

impl Followed {
    fn unread() -> Self {
        Self {
            findings: Findings::default(),
            damage: None,
            strays: false,
        }
    }
}

fn choose_timeline(catalog: &Catalog, choice: TimelineChoice) -> Result<TimelineHistory, Refusal> {
    let known = catalog.timelines();
    let chosen = match choice {
        TimelineChoice::Latest => known.last().copied(),
        TimelineChoice::Number(number) => known.iter().copied().find(|timeline| *timeline == number),
    };
    match (chosen, choice) {
        (Some(timeline), _) => Ok(catalog.history(timeline)),
        (None, TimelineChoice::Number(asked)) => Err(Refusal::NoTimeline {
            asked,
            known: known.iter().map(Timeline::to_string).collect(),
        }),
        (None, TimelineChoice::Latest) => Err(Refusal::NoBackup(catalog.info.system.to_string())),
    }
}
