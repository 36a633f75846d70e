//! Holds what the planner answers against what the rules say.

use std::cmp::Ordering;

use chrono::{DateTime, Utc};
use pgp_pitr::ops::plan::{Request, TimelineChoice, plan};
use pgp_pitr::pg::{Lsn, Timeline};
use pgp_pitr::plan::recovery::{Plan, Refusal, Requested};
use pgp_pitr::repo::backup::BackupId;
use pgp_pitr::wal::{CommitPoint, Xid};

use super::reading::{Kind, Record};
use super::rules::{Expected, Start, Target, expected};
use super::scene::{Scene, View};
use super::targets::time;

/// A scene, or what is left of it.
pub struct Judge<'a> {
    scene: &'a Scene,
    view: &'a View,
    starts: Vec<Start<'a>>,
}

impl<'a> Judge<'a> {
    /// Of a view of a scene.
    pub fn of(scene: &'a Scene, view: &'a View) -> Self {
        Self {
            scene,
            view,
            starts: scene.starts(view),
        }
    }

    /// The planner's answer.
    pub fn ask(&self, request: &Request) -> Result<Plan, Refusal> {
        let answer = plan(&self.scene.repository, &self.view.catalog, request);
        self.scene.runtime.block_on(answer).map_err(|failure| {
            let refusal = failure.downcast_ref::<Refusal>();
            refusal.unwrap_or_else(|| panic!("{request:?}: {failure}")).clone()
        })
    }

    /// The planner's answer, if it is right, where `None` is a refusal; else what is wrong with it.
    pub fn check(&self, request: &Request) -> Result<Option<Plan>, String> {
        let told = self.view.is_whole().then_some(self.scene.facts.told);
        let expected = expected(&self.starts, request, told, self.scene.facts.over);
        let answer = self.ask(request);
        let wrong = |why: String| format!("{why}\n  {request:?}\n  expected {expected:?}\n  answer   {answer:?}");
        match (&answer, &expected) {
            (Ok(plan), Expected::Ends { backup, replayed } | Expected::EndsOrRefused { backup, replayed }) => {
                if plan.backup.id != *backup {
                    return Err(wrong("another backup".to_owned()));
                }
                self.check_plan(plan, *replayed).map_err(wrong)?;
                Ok(Some(plan.clone()))
            }
            (Err(refusal), Expected::Refused | Expected::EndsOrRefused { .. }) => {
                self.check_refusal(request, refusal).map_err(wrong)?;
                Ok(None)
            }
            (Ok(_), Expected::Refused) => Err(wrong("accepted".to_owned())),
            (Err(_), Expected::Ends { .. }) => Err(wrong("refused".to_owned())),
        }
    }

    /// The server ends where it should with the settings of the plan, and the plan tells where that is.
    fn check_plan(&self, plan: &Plan, replayed: usize) -> Result<(), String> {
        let start = self.start(plan);
        let (target, inclusive) = settings(&plan.stop);
        let recovery = start.wal.recover(start.backup, &target, inclusive);
        if !recovery.succeeds(&target) {
            return Err(format!("the server would give up at {target:?}: {recovery:?}"));
        }
        let records = &start.wal.records[..start.wal.readable];
        let between = recovery.replayed.min(replayed)..recovery.replayed.max(replayed);
        if let Some(record) = records[between].iter().find(|record| tells(record)) {
            return Err(format!("{target:?} ends on the other side of {record:?}"));
        }
        self.check_commits(plan, records, replayed)?;
        let Some(lsn) = plan.reaches.lsn else {
            return Err("where it ends is not told".to_owned());
        };
        let sides = [
            records[..replayed].iter().rfind(|record| tells(record)),
            records[replayed..].iter().find(|record| tells(record)),
        ];
        match sides {
            [Some(last), _] if last.start >= lsn => Err(format!("{lsn} is not behind {last:?}")),
            [_, Some(next)] if next.start < lsn => Err(format!("{lsn} is not before {next:?}")),
            _ => Ok(()),
        }
    }

    fn check_commits(&self, plan: &Plan, records: &[Record], replayed: usize) -> Result<(), String> {
        let size = self.scene.catalog.info.segment_size.bytes();
        // What was committed before the first segment that is read is in the backup, and nothing tells of it.
        let begins = plan.backup.start_lsn.bytes() / size;
        let last = records[..replayed].iter().rfind(|record| record.commit().is_some());
        let before = last.is_some_and(|record| record.start.bytes() / size < begins);
        let next = records[replayed..].iter().find(|record| record.commit().is_some());
        for (what, found, record, unknown) in [
            ("last", plan.reaches.last_commit, last, before),
            ("next", plan.reaches.next_commit, next, false),
        ] {
            let wanted = record.map(point);
            if found.as_ref().map(told) != wanted && !(found.is_none() && unknown) {
                return Err(format!("the {what} commit is {wanted:?}"));
            }
        }
        Ok(())
    }

    /// Each moment that is named can be had by the flags that are named with it, and right away.
    fn check_refusal(&self, request: &Request, refusal: &Refusal) -> Result<(), String> {
        let Refusal::OutOfReach {
            before, after, nearest, ..
        } = refusal
        else {
            return Err("not for being out of reach".to_owned());
        };
        let (can_before, can_after) = self.can_be_had_beside(request);
        for (moment, words, can) in [
            (&nearest.before, before, can_before),
            (&nearest.after, after, can_after),
        ] {
            let Some(moment) = moment else {
                // By the clock it ended before a moment whose place in the WAL comes before its end: it is named as later.
                let sides = [&nearest.before, &nearest.after];
                let elsewhere = sides.into_iter().flatten().any(|moment| moment.backup.as_ref() == can);
                match can.filter(|_| !elsewhere) {
                    Some(backup) => return Err(format!("the end of {backup} can be had, and is not named")),
                    None => continue,
                }
            };
            let flags = moment.flags.join(" ");
            if !words.as_ref().is_some_and(|words| words.contains(&flags)) {
                return Err(format!("{flags} is not in {words:?}"));
            }
            let mut again = request.clone();
            again.inclusive = true;
            let mut flags = moment.flags.iter().map(String::as_str);
            while let Some(flag) = flags.next() {
                let mut value = || flags.next().expect("a value");
                match flag {
                    "--target-time" => again.requested = time(value().parse().expect("a time")),
                    "--target-lsn" => again.requested = Requested::Lsn(value().parse().expect("an LSN")),
                    "--target-xid" => again.requested = Requested::Xid(Xid::new(value().parse().expect("an xid"))),
                    "--target-timeline" => {
                        let number = Timeline::new(value().parse().expect("a number")).expect("a timeline");
                        again.timeline = TimelineChoice::Number(number);
                    }
                    "--exclusive" => again.inclusive = false,
                    "--immediate" => again.requested = Requested::Immediate,
                    "--latest" => again.requested = Requested::Latest,
                    "--backup" => again.backup = Some(value().parse().expect("an id")),
                    other => return Err(format!("what is {other}?")),
                }
            }
            if let Err(refusal) = self.ask(&again) {
                return Err(format!("{:?} is refused, too: {refusal}", again.requested));
            }
        }
        Ok(())
    }

    /// Backups whose ends can be had, one before a time or LSN that was asked for, one after it.
    fn can_be_had_beside(&self, request: &Request) -> (Option<&BackupId>, Option<&BackupId>) {
        let named = |start: &&&Start<'_>| request.backup.as_ref().is_none_or(|named| *named == start.backup.id);
        let starts: Vec<&Start<'_>> = self.starts();
        let find = |side: Ordering| {
            let there = |start: &&&Start<'_>| match &request.requested {
                Requested::Time(time, _) => start.backup.stopped_at.cmp(&time.instant()) == side,
                Requested::Lsn(lsn) => start.backup.stop_lsn.cmp(lsn) == side,
                _ => false,
            };
            let found = starts.iter().filter(named).find(there);
            found.map(|start| &start.backup.id)
        };
        (find(Ordering::Less), find(Ordering::Greater))
    }

    /// The backups on the path, oldest first.
    pub fn starts(&self) -> Vec<&Start<'a>> {
        let consistent = |start: &&Start<'_>| start.wal.recover(start.backup, &Target::Unset, true).consistent;
        self.starts.iter().filter(consistent).collect()
    }

    /// Where a plan begins.
    pub fn start(&self, plan: &Plan) -> &Start<'a> {
        let mut starts = self.starts.iter();
        starts
            .find(|start| start.backup.id == plan.backup.id)
            .expect("a backup of the scene")
    }
}

/// Whether it makes a difference that a record is replayed.
fn tells(record: &Record) -> bool {
    matches!(record.kind, Kind::End(_) | Kind::Prepare { .. })
}

type Point = (Lsn, Lsn, u32, DateTime<Utc>);

fn point(record: &Record) -> Point {
    let end = record.ended().expect("a commit");
    (record.start, record.end, end.xid, end.at)
}

fn told(point: &CommitPoint) -> Point {
    (point.lsn, point.end_lsn, point.xid.number(), point.at)
}

/// What a server reads from a plan's settings.
pub fn settings(stop: &[(&'static str, String)]) -> (Target, bool) {
    let value = |wanted: &str| {
        let mut found = stop.iter().filter(|(name, _)| *name == wanted);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "twice: {stop:?}");
        value
    };
    let targets = [
        value("recovery_target_time").map(|text| {
            let time = DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.6f%#z");
            Target::Time(time.expect("a time with an offset").to_utc())
        }),
        value("recovery_target_lsn").map(|text| Target::Lsn(text.parse().expect("an LSN"))),
        value("recovery_target_xid").map(|text| Target::Xid(text.parse().expect("an xid"))),
        value("recovery_target_name").map(|text| Target::Name(text.to_owned())),
        value("recovery_target").map(|text| {
            assert_eq!(text, "immediate");
            Target::Immediate
        }),
    ];
    let mut targets = targets.into_iter().flatten();
    let target = targets.next().unwrap_or(Target::Unset);
    assert!(targets.next().is_none(), "a server takes one target only: {stop:?}");
    (
        target,
        value("recovery_target_inclusive").is_none_or(|value| value == "true"),
    )
}
