//! Which WAL is there: segments by timeline, and the stretches without gaps. Pure.

use std::collections::BTreeMap;

use crate::pg::{Leg, Lsn, SegmentName, SegmentNumber, SegmentSize, Timeline};
use crate::repo::tail::Pieced;
use crate::repo::{Form, SegmentFile};

/// A segment that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredSegment {
    /// Its number.
    pub number: SegmentNumber,
    /// Size of its object, or of all its pieces, in bytes; at most 4 GiB, as no segment is larger than 1 GiB.
    pub stored_bytes: u32,
    /// How it is stored.
    pub form: Form,
}

impl StoredSegment {
    /// Its file on a timeline.
    pub const fn file(self, timeline: Timeline, size: SegmentSize) -> SegmentFile {
        SegmentFile {
            name: self.number.name(timeline, size),
            form: self.form,
        }
    }
}

/// One timeline's segments.
#[derive(Debug, Clone, Default)]
pub struct TimelineWal {
    segments: Vec<StoredSegment>,
    runs: Vec<Run>,
    /// Segments whose pieces do not reach their end, and where they end instead.
    short: BTreeMap<SegmentNumber, Lsn>,
}

/// A stretch of segments without a gap. One whose pieces do not reach its end is the last of its stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Its first segment.
    pub first: SegmentNumber,
    /// Its last segment.
    pub last: SegmentNumber,
}

/// All of a cluster's WAL that is stored.
#[derive(Debug, Clone)]
pub struct Coverage {
    size: SegmentSize,
    timelines: BTreeMap<Timeline, TimelineWal>,
}

impl Coverage {
    /// Of nothing yet, for segments of this size.
    pub fn new(size: SegmentSize) -> Self {
        Self {
            size,
            timelines: BTreeMap::new(),
        }
    }

    /// Adds a segment that is whole, or the part of one. A name that no segment of this size has is passed over: pushing
    /// checked it, and what a stranger put there is not WAL of this cluster.
    pub fn add(&mut self, name: SegmentName, stored_bytes: u64, form: Form) {
        if let Some(number) = name.number(self.size) {
            let segment = StoredSegment {
                number,
                stored_bytes: u32::try_from(stored_bytes).unwrap_or(u32::MAX),
                form,
            };
            let wal = self.timelines.entry(name.timeline()).or_default();
            wal.segments.push(segment);
        }
    }

    /// Adds a segment in pieces.
    pub fn add_pieces(&mut self, pieced: &Pieced) {
        self.add(pieced.name, pieced.stored_bytes, Form::Pieces);
        if let Some(number) = pieced
            .name
            .number(self.size)
            .filter(|number| pieced.end < number.end(self.size))
        {
            let wal = self.timelines.entry(pieced.name.timeline()).or_default();
            wal.short.insert(number, pieced.end);
        }
    }

    /// Puts the segments in order and finds the stretches without gaps; to be called after the last was added. A whole
    /// segment hides other forms of the same number.
    pub fn sort(&mut self) {
        for wal in self.timelines.values_mut() {
            wal.segments.sort_by_key(|segment| (segment.number, segment.form));
            wal.segments.dedup_by_key(|segment| segment.number);
            wal.segments.shrink_to_fit();
            let mut short = std::mem::take(&mut wal.short);
            short.retain(|number, _| wal.segment(*number).is_some_and(|segment| segment.form == Form::Pieces));
            wal.short = short;
            wal.runs = runs(&wal.segments, &wal.short);
        }
    }

    /// The size of the segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// The timelines of which there is WAL, in order.
    pub fn timelines(&self) -> impl Iterator<Item = Timeline> {
        self.timelines.keys().copied()
    }

    /// One timeline's WAL.
    pub fn timeline(&self, timeline: Timeline) -> Option<&TimelineWal> {
        self.timelines.get(&timeline)
    }

    /// A segment, if it is there.
    pub fn segment(&self, timeline: Timeline, number: SegmentNumber) -> Option<StoredSegment> {
        self.timelines.get(&timeline)?.segment(number)
    }

    /// Where the WAL of a run on a timeline ends, as far as names tell.
    pub fn end_of(&self, timeline: Timeline, run: Run) -> Lsn {
        self.segment_end(timeline, run.last)
    }

    /// Where a segment ends, or its pieces do, as far as names tell.
    pub fn segment_end(&self, timeline: Timeline, number: SegmentNumber) -> Lsn {
        let short = self.timelines.get(&timeline).and_then(|wal| wal.short.get(&number));
        short.copied().unwrap_or(number.end(self.size))
    }

    /// Where the last run of a timeline ends.
    pub fn end(&self, timeline: Timeline) -> Option<Lsn> {
        let last = self.timelines.get(&timeline)?.runs.last()?;
        Some(self.end_of(timeline, *last))
    }

    /// The segments that lead along `path` from `from` on, until one is missing or ends early, each with the
    /// timeline whose file a server takes: the newest on the path that has begun by then.
    pub fn along(&self, path: &[Leg], from: Lsn) -> Vec<(Timeline, StoredSegment)> {
        let mut number = SegmentNumber::holding(from, self.size);
        let mut found = Vec::new();
        while let Some(segment) = self.on_path(path, number) {
            found.push(segment);
            if self.is_short(segment) {
                break;
            }
            number = number.next();
        }
        found
    }

    /// Whether a segment's pieces do not reach its end.
    pub fn is_short(&self, (timeline, segment): (Timeline, StoredSegment)) -> bool {
        let wal = self.timelines.get(&timeline);
        wal.is_some_and(|wal| wal.short.contains_key(&segment.number))
    }

    /// The last segment that [`Self::along`] gives, without a walk through all of them: from run to run.
    pub fn end_along(&self, path: &[Leg], from: Lsn) -> Option<SegmentNumber> {
        let mut next = SegmentNumber::holding(from, self.size);
        let mut end = None;
        // Which timeline's file is taken does not matter here, save where one ends early: only whether there is one.
        while let Some(last) = path.iter().filter_map(|leg| self.reach(leg, next)).max() {
            let stop = self.short_on(path, next, last);
            if stop.is_some() {
                return stop;
            }
            end = Some(last);
            next = last.next();
        }
        end
    }

    /// The first segment on a path that ends early, from number `first` to `last`.
    fn short_on(&self, path: &[Leg], first: SegmentNumber, last: SegmentNumber) -> Option<SegmentNumber> {
        let wals = self.timelines.values();
        let short = wals.flat_map(|wal| wal.short.range(first..=last).map(|(number, _)| *number));
        short
            .filter(|number| self.on_path(path, *number).is_some_and(|taken| self.is_short(taken)))
            .min()
    }

    /// Stretches that are missing along `path` between `from` and the last segment there is.
    pub fn gaps_along(&self, path: &[Leg], from: Lsn) -> Vec<(Lsn, Lsn)> {
        let mut gaps = Vec::new();
        let mut at = from;
        loop {
            let (end, next) = match self.end_along(path, at) {
                None => (at, SegmentNumber::holding(at, self.size)),
                Some(last) => (self.end_on_path(path, last), last.next()),
            };
            let Some(found) = self.first_along(path, next) else {
                return gaps;
            };
            at = found.start(self.size);
            gaps.push((end, at));
        }
    }

    /// Where the segment of a path with this number ends, as far as names tell.
    fn end_on_path(&self, path: &[Leg], number: SegmentNumber) -> Lsn {
        let taken = self.on_path(path, number);
        let short = taken.and_then(|(timeline, _)| self.timelines.get(&timeline)?.short.get(&number));
        short.copied().unwrap_or(number.end(self.size))
    }

    /// The first segment on a path from number `first` on.
    fn first_along(&self, path: &[Leg], first: SegmentNumber) -> Option<SegmentNumber> {
        let of_leg = |leg: &Leg| {
            let begin = first.max(SegmentNumber::holding(leg.from, self.size));
            let segments = &self.timelines.get(&leg.timeline)?.segments;
            let found = segments[segments.partition_point(|segment| segment.number < begin)..].first()?;
            let left = leg.to.map(|to| SegmentNumber::ending(to, self.size));
            left.is_none_or(|left| found.number <= left).then_some(found.number)
        };
        path.iter().filter_map(of_leg).min()
    }

    /// The segments of [`Self::along`] from number `first` to `last`, those that there are.
    pub fn between(&self, path: &[Leg], first: SegmentNumber, last: SegmentNumber) -> Vec<(Timeline, StoredSegment)> {
        let numbers = first.number()..=last.number();
        numbers
            .filter_map(|number| self.on_path(path, SegmentNumber::new(number)))
            .collect()
    }

    /// How far one leg leads on from a segment, if it has that.
    fn reach(&self, leg: &Leg, number: SegmentNumber) -> Option<SegmentNumber> {
        let left = leg.to.map(|to| SegmentNumber::ending(to, self.size));
        if number < SegmentNumber::holding(leg.from, self.size) || left.is_some_and(|left| number > left) {
            return None;
        }
        let run = self.timelines.get(&leg.timeline)?.run_holding(number)?;
        Some(left.map_or(run.last, |left| left.min(run.last)))
    }

    /// The segment of [`Self::along`] with this number, whether those before it are there or not.
    pub fn on_path(&self, path: &[Leg], number: SegmentNumber) -> Option<(Timeline, StoredSegment)> {
        let begun = |leg: &&Leg| SegmentNumber::holding(leg.from, self.size) <= number;
        // Past the segment in which a timeline was left, its WAL is another history: a server that
        // finds no newer file would replay it all the same, so it must not count as being there.
        let not_left = |leg: &&Leg| leg.to.is_none_or(|to| number <= SegmentNumber::ending(to, self.size));
        path.iter().rev().filter(begun).filter(not_left).find_map(|leg| {
            self.segment(leg.timeline, number)
                .map(|segment| (leg.timeline, segment))
        })
    }
}

impl TimelineWal {
    /// Its segments, in order.
    pub fn segments(&self) -> &[StoredSegment] {
        &self.segments
    }

    /// A segment, if it is there.
    fn segment(&self, number: SegmentNumber) -> Option<StoredSegment> {
        let at = self.segments.binary_search_by_key(&number, |segment| segment.number);
        at.ok().map(|at| self.segments[at])
    }

    /// Size of their objects in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| u64::from(segment.stored_bytes))
            .sum()
    }

    /// The stretches without gaps, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The stretch that a segment lies in.
    pub fn run_holding(&self, number: SegmentNumber) -> Option<Run> {
        let run = self.runs[self.runs.partition_point(|run| run.last < number)..].first()?;
        (run.first <= number).then_some(*run)
    }
}

fn runs(segments: &[StoredSegment], short: &BTreeMap<SegmentNumber, Lsn>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for segment in segments {
        match runs.last_mut() {
            Some(run) if run.last.next() == segment.number && !short.contains_key(&run.last) => {
                run.last = segment.number;
            }
            _ => runs.push(Run {
                first: segment.number,
                last: segment.number,
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::TimelineHistory;
    use proptest::prelude::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn coverage(segments: &[(u32, u64)]) -> Coverage {
        let mut coverage = Coverage::new(SIZE);
        for (on, number) in segments {
            coverage.add(SegmentNumber::new(*number).name(timeline(*on), SIZE), 1, Form::Whole);
        }
        coverage.sort();
        coverage
    }

    /// Segment `number` of a timeline, of which pieces give so many bytes.
    fn pieced(on: u32, number: u64, bytes: u64) -> Pieced {
        Pieced {
            name: SegmentNumber::new(number).name(timeline(on), SIZE),
            end: start(number).plus(bytes),
            stored_bytes: 1,
        }
    }

    #[test]
    fn pieces_that_end_early_end_a_run_and_those_that_do_not_are_as_good_as_whole() {
        for (bytes, ends) in [(17, vec![start(4).plus(17), start(6)]), (SIZE.bytes(), vec![start(6)])] {
            let mut coverage = coverage(&[(1, 3), (1, 5)]);
            coverage.add_pieces(&pieced(1, 4, bytes));
            coverage.sort();
            let runs = coverage.timeline(timeline(1)).unwrap().runs();
            let found: Vec<Lsn> = runs.iter().map(|run| coverage.end_of(timeline(1), *run)).collect();
            assert_eq!(found, ends);
        }
    }

    fn start(number: u64) -> Lsn {
        SegmentNumber::new(number).start(SIZE)
    }

    fn names(found: &[(Timeline, StoredSegment)]) -> Vec<(u32, u64)> {
        found
            .iter()
            .map(|(on, segment)| (on.number(), segment.number.number()))
            .collect()
    }

    #[test]
    fn a_gap_ends_a_run() {
        let coverage = coverage(&[(1, 5), (1, 3), (1, 4), (1, 8)]);
        let run = |first, last| Run {
            first: SegmentNumber::new(first),
            last: SegmentNumber::new(last),
        };
        assert_eq!(coverage.timeline(timeline(1)).unwrap().runs(), [run(3, 5), run(8, 8)]);
    }

    #[test]
    fn a_path_takes_the_newer_timeline_from_the_segment_of_the_fork_on() {
        let coverage = coverage(&[(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5)]);
        let fork = start(3).plus(100);
        let path = [
            Leg {
                timeline: timeline(1),
                from: Lsn::ZERO,
                to: Some(fork),
            },
            Leg {
                timeline: timeline(2),
                from: fork,
                to: None,
            },
        ];
        assert_eq!(
            names(&coverage.along(&path, start(2))),
            [(1, 2), (2, 3), (2, 4), (2, 5)]
        );
    }

    #[test]
    fn wal_that_the_old_timeline_wrote_after_the_fork_does_not_count() {
        let coverage = coverage(&[(1, 2), (1, 3), (1, 4), (1, 5)]);
        let fork = start(3).plus(100);
        let path = [
            Leg {
                timeline: timeline(1),
                from: Lsn::ZERO,
                to: Some(fork),
            },
            Leg {
                timeline: timeline(2),
                from: fork,
                to: None,
            },
        ];
        assert_eq!(names(&coverage.along(&path, start(2))), [(1, 2), (1, 3)]);
    }

    #[test]
    fn gaps_are_told_along_a_path_whatever_timeline_they_are_on() {
        let mut coverage = coverage(&[(1, 2), (1, 3), (1, 5), (1, 6), (1, 7), (2, 6), (2, 9)]);
        coverage.add_pieces(&pieced(2, 7, 17));
        coverage.sort();
        let fork = start(6).plus(100);
        let path = [
            Leg {
                timeline: timeline(1),
                from: Lsn::ZERO,
                to: Some(fork),
            },
            Leg {
                timeline: timeline(2),
                from: fork,
                to: None,
            },
        ];
        let later = [(start(4), start(5)), (start(7).plus(17), start(9))];
        assert_eq!(coverage.gaps_along(&path, start(2).plus(5)), later);
        assert_eq!(coverage.gaps_along(&path, start(5)), later[1..]);
        assert_eq!(
            coverage.gaps_along(&path, start(1)),
            [&[(start(1), start(2))], &later[..]].concat()
        );
        assert_eq!(coverage.gaps_along(&path[..1], start(5)), []);
        assert_eq!(coverage.gaps_along(&path, start(12)), []);
    }

    #[test]
    fn a_whole_segment_hides_other_forms() {
        let mut coverage = Coverage::new(SIZE);
        let name = SegmentNumber::new(1).name(timeline(1), SIZE);
        coverage.add(name, 1, Form::Partial);
        coverage.add_pieces(&pieced(1, 1, 17));
        coverage.add(name, 2, Form::Whole);
        coverage.sort();
        assert_eq!(
            coverage.end_of(timeline(1), coverage.timeline(timeline(1)).unwrap().runs()[0]),
            start(2)
        );
        assert_eq!(
            coverage
                .segment(timeline(1), SegmentNumber::new(1))
                .unwrap()
                .stored_bytes,
            2
        );
    }

    /// A path through up to four timelines, forks anywhere, in order or not.
    fn paths() -> impl Strategy<Value = Vec<Leg>> {
        prop::collection::vec(0..12_u64 << 24, 0..4).prop_map(|forks| {
            let lines = forks
                .iter()
                .zip(1..)
                .map(|(at, parent)| format!("{parent}\t{}\tfork\n", Lsn::new(*at)))
                .collect::<String>();
            let newest = timeline(forks.len() as u32 + 1);
            match forks.is_empty() {
                true => TimelineHistory::root(newest),
                false => TimelineHistory::parse(newest, lines.as_bytes()).unwrap(),
            }
            .path()
        })
    }

    proptest! {
        #[test]
        fn the_end_of_a_way_is_found_without_walking_it(
            path in paths(),
            // More are there than not, so that ways are long.
            missing in prop::collection::btree_set((1..5_u32, 0..12_u64), 0..12),
            in_pieces in prop::collection::btree_map((1..5_u32, 0..12_u64), prop::bool::weighted(0.2), 0..6),
            from in 0..12_u64 << 24,
            first in 0..12_u64,
        ) {
            let all = (1..5).flat_map(|on| (0..12).map(move |number| (on, number)));
            let there: Vec<_> = all
                .filter(|segment| !missing.contains(segment) && !in_pieces.contains_key(segment))
                .collect();
            let mut coverage = coverage(&there);
            for ((on, number), full) in &in_pieces {
                coverage.add_pieces(&pieced(*on, *number, if *full { SIZE.bytes() } else { 5 }));
            }
            coverage.sort();
            let walked = coverage.along(&path, Lsn::new(from));
            let end = coverage.end_along(&path, Lsn::new(from));
            prop_assert_eq!(end, walked.last().map(|(_, segment)| segment.number));
            if let Some(end) = end {
                let first = SegmentNumber::new(first).max(SegmentNumber::holding(Lsn::new(from), SIZE));
                let rest: Vec<_> = walked.iter().copied().filter(|(_, segment)| segment.number >= first).collect();
                prop_assert_eq!(coverage.between(&path, first, end), rest);
            }
        }
    }
}
