//! Random requests, most of them near a place where a byte or a microsecond makes a difference.

use chrono::{DateTime, TimeDelta, Utc};
use pgp_pitr::ops::plan::{Request, TimelineChoice};
use pgp_pitr::pg::Lsn;
use pgp_pitr::pg::time::{Clock, RecoveryTime, rfc3339};
use pgp_pitr::plan::recovery::Requested;
use pgp_pitr::repo::backup::BackupId;
use pgp_pitr::wal::Xid;

use super::reading::{Kind, Record};
use super::scene::Scene;
use crate::support::chance::Chance;

/// A scene's places, and which of them are worth a closer look.
pub struct Targets<'a> {
    scene: &'a Scene,
    /// Records that end a transaction.
    ends: Vec<usize>,
    /// Of these, whose time is that of the one before, or an earlier one.
    odd: Vec<usize>,
    /// Records that cross into another segment, or touch its border.
    at_borders: Vec<usize>,
    names: Vec<String>,
}

impl<'a> Targets<'a> {
    /// Those of a scene.
    pub fn of(scene: &'a Scene) -> Self {
        let records = &scene.records;
        let ends: Vec<usize> = (0..records.len()).filter(|n| records[*n].ended().is_some()).collect();
        let at = |n: usize| records[n].ended().unwrap().at;
        let odd = ends.array_windows().filter(|[a, b]| at(*b) <= at(*a)).map(|[_, b]| *b);
        let size = scene.catalog.info.segment_size.bytes();
        let crosses = |record: &Record| record.start.bytes() / size != record.end.bytes() / size;
        let names = records.iter().filter_map(|record| match &record.kind {
            Kind::RestorePoint(name) => Some(name.clone()),
            _ => None,
        });
        Self {
            odd: odd.collect(),
            at_borders: (0..records.len()).filter(|n| crosses(&records[*n])).collect(),
            names: names.collect(),
            ends,
            scene,
        }
    }

    /// How many ends of transactions have the time of the one before, and how many an earlier one.
    pub fn same_and_out_of_order(&self) -> (usize, usize) {
        let at = |n: usize| self.scene.records[n].ended().unwrap().at;
        let pairs = || self.ends.array_windows().map(|[a, b]| (at(*a), at(*b)));
        (
            pairs().filter(|(a, b)| a == b).count(),
            pairs().filter(|(a, b)| a > b).count(),
        )
    }

    /// Any request.
    pub fn request(&self, chance: &Chance) -> Request {
        let requested = self.requested(chance);
        let may_exclude = matches!(requested, Requested::Time(..) | Requested::Lsn(_) | Requested::Xid(_));
        let backups = &self.scene.catalog.backups;
        let backup = (chance.below(4) == 0).then(|| backups[chance.below(backups.len())].id.clone());
        Request {
            requested,
            inclusive: !may_exclude || chance.below(2) == 0,
            timeline: [TimelineChoice::Latest, TimelineChoice::Number(self.scene.timeline())][chance.below(2)],
            backup,
        }
    }

    fn requested(&self, chance: &Chance) -> Requested {
        match chance.below(20) {
            0..8 => time(self.time(chance)),
            8..14 => Requested::Lsn(self.lsn(chance)),
            14..17 => Requested::Xid(Xid::new(self.xid(chance))),
            17 => Requested::Name(self.name(chance)),
            18 => Requested::Immediate,
            _ => Requested::Latest,
        }
    }

    fn time(&self, chance: &Chance) -> DateTime<Utc> {
        let at = |n: usize| self.scene.records[n].ended().unwrap().at;
        let beside = TimeDelta::microseconds(chance.below(3) as i64 - 1);
        let backup = &self.scene.catalog.backups[chance.below(self.scene.catalog.backups.len())];
        let all = |n: usize| at(self.ends[n]);
        match chance.below(10) {
            0..3 => all(chance.below(self.ends.len())) + beside,
            3..5 if !self.odd.is_empty() => at(self.odd[chance.below(self.odd.len())]) + beside,
            5 => backup.stopped_at + beside,
            6 => backup.started_at + beside,
            7 => {
                [
                    self.scene.facts.told,
                    self.scene.facts.over,
                    all(self.ends.len() - 1),
                    all(0),
                ][chance.below(4)]
                    + beside
            }
            8 => [self.scene.facts.over + TimeDelta::hours(1), all(0) - TimeDelta::days(1)][chance.below(2)],
            _ => {
                let span = (self.scene.facts.over - all(0)).num_microseconds().unwrap() as usize;
                all(0) + TimeDelta::microseconds(chance.below(span) as i64)
            }
        }
    }

    fn lsn(&self, chance: &Chance) -> Lsn {
        let records = &self.scene.records;
        let backups = &self.scene.catalog.backups;
        let backup = &backups[chance.below(backups.len())];
        let beside = chance.below(3) as i64 - 1;
        let any = match chance.below(4) {
            0 if !self.at_borders.is_empty() => self.at_borders[chance.below(self.at_borders.len())],
            1 => self.ends[chance.below(self.ends.len())],
            _ => chance.below(records.len()),
        };
        let end = records[records.len() - 1].end;
        let near = match chance.below(10) {
            0..3 => records[any].start,
            3..6 => records[any].end,
            6 => [backup.start_lsn, backup.stop_lsn][chance.below(2)],
            7 => [end, Lsn::new(1), records[records.len() - 1].start, end.plus(1 << 30)][chance.below(4)],
            _ => records[0]
                .start
                .plus(chance.below(end.since(records[0].start) as usize) as u64),
        };
        Lsn::new(near.bytes().saturating_add_signed(beside))
    }

    fn xid(&self, chance: &Chance) -> u32 {
        let records = &self.scene.records;
        let end = records[self.ends[chance.below(self.ends.len())]].ended().unwrap();
        let last = self
            .ends
            .iter()
            .filter_map(|n| Some(records[*n].ended()?.xid))
            .max()
            .unwrap();
        match chance.below(10) {
            0..7 => end.xid,
            7 => {
                let all = self
                    .ends
                    .iter()
                    .flat_map(|n| &records[*n].ended().unwrap().subtransactions);
                let all: Vec<u32> = all.copied().collect();
                all[chance.below(all.len())]
            }
            8 => [last + 1000, 3, self.scene.facts.left_prepared][chance.below(3)],
            // Not every transaction with an id has an end of its own in the WAL.
            _ => end.xid + 1,
        }
    }

    fn name(&self, chance: &Chance) -> String {
        match chance.below(4) {
            0 => "twice".to_owned(),
            1 => ["never", "archive_now", "point"][chance.below(3)].to_owned(),
            _ => self.names[chance.below(self.names.len())].clone(),
        }
    }
}

/// A time as a person would give it.
pub fn time(at: DateTime<Utc>) -> Requested {
    let text = rfc3339(at);
    let clock = Clock {
        now: at.fixed_offset(),
        local_offset: &|_| None,
    };
    Requested::Time(RecoveryTime::parse(&text, &clock).unwrap(), text)
}

/// How the flags of a request are written.
pub fn flags(request: &Request) -> Vec<String> {
    let mut flags = match &request.requested {
        Requested::Immediate | Requested::Latest => vec![format!("--{}", request.requested.kind())],
        other => vec![format!("--target-{}", other.kind()), other.text().unwrap()],
    };
    flags.extend((!request.inclusive).then(|| "--exclusive".to_owned()));
    if let TimelineChoice::Number(number) = request.timeline {
        flags.extend(["--target-timeline".to_owned(), number.to_string()]);
    }
    let backup = request.backup.as_ref().map(BackupId::to_string);
    flags.extend(backup.into_iter().flat_map(|id| ["--backup".to_owned(), id]));
    flags
}
