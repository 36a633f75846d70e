//! How fast replay is, in WAL and in time, over the last samples. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::pg::Lsn;

/// Speeds are those of this last stretch: long enough to smooth what comes segment by segment, short
/// enough to follow a change.
const WINDOW: Duration = Duration::from_secs(60);
/// Samples closer together than this are one, so that a short interval does not fill the memory.
const APART: Duration = Duration::from_millis(200);

/// Where replay was at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When, counted from any fixed moment.
    pub at: Duration,
    /// Everything before it is replayed.
    pub lsn: Lsn,
    /// The time of the last transaction that is replayed.
    pub moment: Option<DateTime<Utc>>,
}

/// How fast replay is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Speed {
    /// Bytes of WAL per second.
    pub bytes_per_second: Option<f64>,
    /// Seconds of the original server's life per second.
    pub data_seconds_per_second: Option<f64>,
    /// How long the position has stood still.
    pub still_for: Duration,
}

/// The last samples.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    samples: VecDeque<Sample>,
    moved_at: Duration,
}

impl Samples {
    /// Adds the newest. A position that goes back is another recovery's, and a beginning.
    pub fn push(&mut self, sample: Sample) {
        match self.samples.back() {
            Some(last) if sample.lsn < last.lsn => {
                self.samples.clear();
                self.moved_at = sample.at;
            }
            Some(last) if sample.lsn > last.lsn => self.moved_at = sample.at,
            None => self.moved_at = sample.at,
            Some(_) => {}
        }
        let before_last = self.samples.len().checked_sub(2).map(|index| self.samples[index].at);
        if before_last.is_some_and(|before| sample.at.saturating_sub(before) < APART) {
            self.samples.pop_back();
        }
        self.samples.push_back(sample);
        while self.samples.len() > 2 && sample.at.saturating_sub(self.samples[1].at) >= WINDOW {
            self.samples.pop_front();
        }
    }

    /// The speed over what is kept.
    pub fn speed(&self) -> Speed {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return Speed::default();
        };
        let seconds = last.at.saturating_sub(first.at).as_secs_f64();
        let per_second = |amount: f64| (seconds > 0.0).then(|| amount / seconds);
        // Before a moment is known there is nothing to count from.
        let moments = || {
            self.samples
                .iter()
                .filter_map(|sample| Some((sample.at, sample.moment?)))
        };
        let data = moments().next().zip(moments().next_back()).and_then(|(from, to)| {
            let seconds = to.0.saturating_sub(from.0).as_secs_f64();
            let gained = (to.1 - from.1).as_seconds_f64().max(0.0);
            (seconds > 0.0).then(|| gained / seconds)
        });
        Speed {
            bytes_per_second: per_second(last.lsn.since(first.lsn) as f64),
            data_seconds_per_second: data,
            still_for: last.at.saturating_sub(self.moved_at),
        }
    }
}

impl Speed {
    /// How long so many bytes will take; `None` where that can't be told.
    pub fn time_for(&self, bytes: u64) -> Option<Duration> {
        if bytes == 0 {
            return Some(Duration::ZERO);
        }
        let rate = self.bytes_per_second.filter(|rate| *rate >= 1.0)?;
        Duration::try_from_secs_f64((bytes as f64 / rate).ceil()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(millis: u64, bytes: u64, moment: Option<i64>) -> Sample {
        Sample {
            at: Duration::from_millis(millis),
            lsn: Lsn::new(bytes),
            moment: moment.and_then(|seconds| DateTime::from_timestamp(seconds, 0)),
        }
    }

    fn of(samples: &[Sample]) -> Samples {
        let mut all = Samples::default();
        samples.iter().for_each(|sample| all.push(*sample));
        all
    }

    #[test]
    fn one_look_tells_no_speed() {
        let speed = of(&[sample(500, 1000, Some(5))]).speed();
        assert_eq!((speed.bytes_per_second, speed.data_seconds_per_second), (None, None));
        assert_eq!(speed.time_for(10), None);
        assert_eq!(speed.time_for(0), Some(Duration::ZERO));
    }

    #[test]
    fn speed_is_the_way_by_the_time_in_bytes_and_in_data_time() {
        let speed = of(&[
            sample(0, 0, None),
            sample(1000, 4000, Some(100)),
            sample(5000, 10_000, Some(900)),
        ])
        .speed();
        assert_eq!(speed.bytes_per_second, Some(2000.0));
        assert_eq!(speed.data_seconds_per_second, Some(200.0));
        assert_eq!(speed.time_for(5001), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_replay_that_stands_still_has_no_end() {
        let speed = of(&[sample(0, 7, None), sample(30_000, 7, None)]).speed();
        assert_eq!(speed.bytes_per_second, Some(0.0));
        assert_eq!(speed.still_for, Duration::from_secs(30));
        assert_eq!(speed.time_for(1), None);
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        // Slow for two minutes, then a hundred times as fast.
        let mut samples = Samples::default();
        let mut bytes = 0;
        for second in 0..240u64 {
            bytes += if second < 120 { 1000 } else { 100_000 };
            samples.push(sample(second * 1000, bytes, None));
        }
        assert_eq!(samples.speed().bytes_per_second, Some(100_000.0));
    }

    #[test]
    fn a_position_that_goes_back_is_a_new_beginning() {
        let speed = of(&[sample(0, 9000, None), sample(1000, 100, None), sample(2000, 300, None)]).speed();
        assert_eq!(speed.bytes_per_second, Some(200.0));
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_no_speed_is_negative(steps in prop::collection::vec((1u64..5000, 0u64..1 << 30, -1000i64..1000), 1..800)) {
            let (mut at, mut samples) = (0, Samples::default());
            for (millis, bytes, moment) in steps {
                at += millis;
                samples.push(sample(at, bytes, Some(moment)));
                prop_assert!(samples.samples.len() <= 2 * (WINDOW.as_millis() / APART.as_millis()) as usize + 3);
                let speed = samples.speed();
                prop_assert!(speed.bytes_per_second.is_none_or(|rate| rate >= 0.0));
                prop_assert!(speed.data_seconds_per_second.is_none_or(|rate| rate >= 0.0));
            }
        }
    }
}
