//! How far the repository is behind the server, and how much would be lost with the server now. Pure bookkeeping.
//!
//! Three clocks meet here, and these are compared:
//! - **Commit times with the server's present.** A commit carries the time of the server that executed it. Its age is
//!   measured against that server's clock, known from the send time in each of its messages and carried forward by
//!   ours since the message came. So our clock may be wrong by any amount; a message's way through the network
//!   (milliseconds) is all that is added. A standby sends its own time: there the primary's clock and the
//!   standby's must agree.
//! - **Commit times with each other**, for the lag in seconds: both are the server's.
//! - Before the first message there is only our own clock.
//!
//! What has been received is known commit by commit, or, where that is too much to keep, by stretches that stay at
//! risk until they are durable to their end: figures may then be too high, never too low. What the server has and we
//! have not received may hold commits, too: it counts as at risk from the moment at which the server first told of it.
//! On an idle server both are empty, and the data at risk is zero, also while WAL without commits waits.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::pg::{Lsn, Timeline};

/// Stretches with commits that wait, and reports of the server, are kept one by one up to this number; then
/// neighbours are put together. 1,024 pieces of a second each are a quarter of an hour of outage.
const MOST_MARKS: usize = 1024;

/// The state of affairs at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// From what is durable to the server's end.
    pub bytes: u64,
    /// From the newest commit that is durable to the newest that is known; zero where all that is known is durable.
    pub commit_time: Duration,
    /// The age of the oldest commit that is not durable: what would be lost with the server now.
    pub data_at_risk: Duration,
}

/// WAL that was received, from the end of what was received before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its end.
    pub to: Lsn,
    /// The times of its earliest and latest commit; `None` where it has none.
    pub commits: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

/// Commits that are not durable before a position is.
#[derive(Debug, Clone, Copy)]
struct Mark {
    place: Place,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
}

/// Timelines are numbered in the order in which they were streamed: a later one may begin at a lower position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    leg: u64,
    lsn: Lsn,
}

/// The bookkeeping of one receiver.
#[derive(Debug)]
pub struct Risk {
    /// The timelines from that of `durable` to that of `received`.
    legs: VecDeque<Timeline>,
    first_leg: u64,
    received: Place,
    durable: Place,
    pending: VecDeque<Mark>,
    newest_known: Option<DateTime<Utc>>,
    newest_durable: Option<DateTime<Utc>>,
    server_end: Lsn,
    /// The server's clock minus ours.
    skew: TimeDelta,
    /// Ends that the server told of and that have not been received, each with when.
    told: VecDeque<(Lsn, DateTime<Utc>)>,
}

impl Risk {
    /// Everything before `at` is durable.
    pub fn new(timeline: Timeline, at: Lsn) -> Self {
        let place = Place { leg: 0, lsn: at };
        Self {
            legs: VecDeque::from([timeline]),
            first_leg: 0,
            received: place,
            durable: place,
            pending: VecDeque::new(),
            newest_known: None,
            newest_durable: None,
            server_end: at,
            skew: TimeDelta::zero(),
            told: VecDeque::new(),
        }
    }

    /// Takes in what each message of the server says: its end, and when it was sent; `now` is our clock as it comes.
    pub fn server(&mut self, end: Lsn, sent_at: DateTime<Utc>, now: DateTime<Utc>) {
        self.server_end = end;
        self.skew = sent_at - now;
        let new = self.told.back().is_none_or(|(last, _)| end > *last);
        if end > self.received.lsn && new {
            if self.told.len() == MOST_MARKS {
                // The earlier moment with the later end: at risk for longer, not for shorter.
                halve(&mut self.told, |(_, at), (end, _)| (end, at));
            }
            self.told.push_back((end, sent_at));
        }
    }

    /// Takes in what was received.
    pub fn received(&mut self, received: Received) {
        if self.legs.back() != Some(&received.timeline) {
            self.legs.push_back(received.timeline);
            // They were ends of the timeline before.
            self.told.clear();
        }
        let place = Place {
            leg: self.first_leg + self.legs.len() as u64 - 1,
            lsn: received.to,
        };
        // After a reconnect what is not durable comes again; its commits wait already.
        let again = place <= self.received;
        self.received = self.received.max(place);
        while self.told.front().is_some_and(|(end, _)| *end <= self.received.lsn) {
            self.told.pop_front();
        }
        let Some((first, last)) = received.commits.filter(|_| !again) else {
            return;
        };
        self.newest_known = self.newest_known.max(Some(last));
        if place <= self.durable {
            self.newest_durable = self.newest_durable.max(Some(last));
            return;
        }
        if self.pending.len() == MOST_MARKS {
            halve(&mut self.pending, |earlier, later| Mark {
                place: later.place,
                first: earlier.first.min(later.first),
                last: earlier.last.max(later.last),
            });
        }
        self.pending.push_back(Mark { place, first, last });
    }

    /// All that was received before this position is durable; on an earlier timeline, up to there.
    pub fn durable(&mut self, timeline: Timeline, up_to: Lsn) {
        let Some(index) = self.legs.iter().rposition(|leg| *leg == timeline) else {
            return;
        };
        let leg = self.first_leg + index as u64;
        self.durable = self.durable.max(Place { leg, lsn: up_to });
        while let Some(mark) = self.pending.pop_front_if(|mark| mark.place <= self.durable) {
            self.newest_durable = self.newest_durable.max(Some(mark.last));
        }
        while self.first_leg < self.durable.leg {
            self.legs.pop_front();
            self.first_leg += 1;
        }
    }

    /// The state of affairs; `now` is our clock.
    pub fn lag(&self, now: DateTime<Utc>) -> Lag {
        let oldest_pending = self.pending.iter().map(|mark| mark.first).min();
        let oldest_told = self.told.front().map(|(_, at)| *at);
        let oldest = [oldest_pending, oldest_told].into_iter().flatten().min();
        let behind = match (self.newest_known, self.newest_durable.or(oldest_pending)) {
            (Some(known), Some(durable)) if !self.pending.is_empty() => known - durable,
            _ => TimeDelta::zero(),
        };
        Lag {
            bytes: self.server_end.since(self.durable.lsn),
            commit_time: not_negative(behind),
            data_at_risk: not_negative(oldest.map_or(TimeDelta::zero(), |oldest| now + self.skew - oldest)),
        }
    }
}

/// Puts each two neighbours together.
fn halve<T: Copy>(marks: &mut VecDeque<T>, join: impl Fn(T, T) -> T) {
    let joined = marks.make_contiguous().chunks(2).map(|pair| match *pair {
        [earlier, later] => join(earlier, later),
        _ => pair[0],
    });
    *marks = joined.collect();
}

/// Clocks are set, and commits are not always in the order of their times.
fn not_negative(span: TimeDelta) -> Duration {
    span.to_std().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Seconds on the server's clock, which is an hour ahead of ours.
    fn server(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000 + seconds, 0).unwrap()
    }

    fn ours(seconds: i64) -> DateTime<Utc> {
        server(seconds) - TimeDelta::hours(1)
    }

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn received(to: u64, commits: Option<(i64, i64)>) -> Received {
        Received {
            timeline: Timeline::FIRST,
            to: Lsn::new(to),
            commits: commits.map(|(first, last)| (server(first), server(last))),
        }
    }

    #[derive(Debug, Clone)]
    enum Deed {
        Server { ahead: u64, delay: i64 },
        Receive { len: u64, commits: Option<(i64, i64)> },
        Durable { back: u64 },
        Wait(i64),
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            (0..100_u64, 0..3_i64).prop_map(|(ahead, delay)| Deed::Server { ahead, delay }),
            (1..50_u64, prop::option::of((-30..0_i64, 0..30_i64)))
                .prop_map(|(len, commits)| Deed::Receive { len, commits }),
            (0..100_u64).prop_map(|back| Deed::Durable { back }),
            (0..20_i64).prop_map(Deed::Wait),
        ]
    }

    /// Every stretch and every word of the server, for ever.
    #[derive(Default)]
    struct Naive {
        received: Vec<Received>,
        told: Vec<(u64, i64)>,
        server_end: u64,
        durable: u64,
        skew: TimeDelta,
    }

    impl Naive {
        fn lag(&self, now: DateTime<Utc>) -> Lag {
            let of = |pending: bool| {
                let all = self
                    .received
                    .iter()
                    .filter(move |one| (one.to.bytes() > self.durable) == pending);
                all.filter_map(|one| one.commits)
            };
            let to = self.received.last().map_or(0, |last| last.to.bytes());
            let newest = |pending| of(pending).map(|(_, last)| last).max();
            let first = of(true).map(|(first, _)| first).min();
            let told = self
                .told
                .iter()
                .filter(|(end, _)| *end > to)
                .map(|(_, at)| server(*at))
                .min();
            let oldest = [first, told].into_iter().flatten().min();
            let behind = match (newest(true).max(newest(false)), newest(false).or(first)) {
                (Some(known), Some(durable)) if first.is_some() => known - durable,
                _ => TimeDelta::zero(),
            };
            Lag {
                bytes: self.server_end.saturating_sub(self.durable),
                commit_time: behind.to_std().unwrap_or_default(),
                data_at_risk: oldest.map_or(Duration::ZERO, |at| (now + self.skew - at).to_std().unwrap_or_default()),
            }
        }
    }

    proptest! {
        #[test]
        fn it_tells_what_a_full_memory_tells(deeds in prop::collection::vec(deed(), 1..100)) {
            let (mut risk, mut naive) = (Risk::new(Timeline::FIRST, Lsn::ZERO), Naive::default());
            let (mut clock, mut to) = (0, 0);
            for deed in deeds {
                match deed {
                    Deed::Server { ahead, delay } => {
                        let end = to + ahead;
                        risk.server(Lsn::new(end), server(clock), ours(clock + delay));
                        naive.skew = server(clock) - ours(clock + delay);
                        naive.server_end = end;
                        if naive.told.iter().all(|(before, _)| *before < end) {
                            naive.told.push((end, clock));
                        }
                    }
                    Deed::Receive { len, commits } => {
                        to += len;
                        let commits = commits.map(|(first, last)| (clock + first, clock + last));
                        risk.received(received(to, commits));
                        naive.received.push(received(to, commits));
                    }
                    Deed::Durable { back } => {
                        let up_to = to.saturating_sub(back);
                        risk.durable(Timeline::FIRST, Lsn::new(up_to));
                        naive.durable = naive.durable.max(up_to);
                    }
                    Deed::Wait(seconds) => clock += seconds,
                }
                prop_assert_eq!(risk.lag(ours(clock)), naive.lag(ours(clock)));
            }
        }

        #[test]
        fn however_much_waits_it_never_tells_less_and_keeps_little(
            commits in prop::collection::vec(0..1000_i64, 1500..4000),
            durable in 0..4000_u64,
        ) {
            let mut risk = Risk::new(Timeline::FIRST, Lsn::ZERO);
            let mut naive = Naive::default();
            for (index, at) in commits.iter().enumerate() {
                let received = received(index as u64 + 1, Some((*at, *at)));
                risk.received(received);
                naive.received.push(received);
                risk.server(Lsn::new(10_000 + index as u64), server(2000), ours(2000));
            }
            naive.skew = TimeDelta::hours(1);
            prop_assert!(risk.pending.len() <= MOST_MARKS && risk.told.len() <= MOST_MARKS);
            naive.durable = durable;
            risk.durable(Timeline::FIRST, Lsn::new(durable));
            let (told, exact) = (risk.lag(ours(3000)), naive.lag(ours(3000)));
            prop_assert!(told.data_at_risk >= exact.data_at_risk, "{:?} {:?}", told, exact);
            prop_assert!(told.commit_time >= exact.commit_time, "{:?} {:?}", told, exact);
        }
    }

    #[test]
    fn nothing_is_at_risk_on_an_idle_server_even_with_wal_waiting() {
        let mut risk = Risk::new(Timeline::FIRST, Lsn::new(100));
        risk.server(Lsn::new(100), server(0), ours(0));
        risk.received(received(200, None));
        risk.server(Lsn::new(200), server(5), ours(5));
        let lag = risk.lag(ours(500));
        assert_eq!(
            (lag.bytes, lag.commit_time, lag.data_at_risk),
            (100, Duration::ZERO, Duration::ZERO)
        );
    }

    #[test]
    fn the_age_of_a_commit_is_told_by_the_servers_clock() {
        let mut risk = Risk::new(Timeline::FIRST, Lsn::ZERO);
        risk.server(Lsn::new(10), server(50), ours(50));
        risk.received(received(10, Some((40, 45))));
        assert_eq!(risk.lag(ours(60)).data_at_risk, Duration::from_secs(20));
        risk.durable(Timeline::FIRST, Lsn::new(10));
        assert_eq!(risk.lag(ours(60)), Lag::default());
    }

    #[test]
    fn what_comes_again_after_a_reconnect_waits_once() {
        let mut risk = Risk::new(Timeline::FIRST, Lsn::ZERO);
        risk.server(Lsn::new(20), server(20), ours(20));
        for (to, at) in [(10, 5), (20, 15), (10, 5), (20, 15)] {
            risk.received(received(to, Some((at, at))));
        }
        risk.durable(Timeline::FIRST, Lsn::new(10));
        let lag = risk.lag(ours(20));
        assert_eq!((lag.data_at_risk.as_secs(), lag.commit_time.as_secs()), (5, 10));
    }

    #[test]
    fn what_was_told_and_not_received_is_at_risk_since_it_was_told() {
        let mut risk = Risk::new(Timeline::FIRST, Lsn::ZERO);
        risk.server(Lsn::new(10), server(50), ours(50));
        risk.server(Lsn::new(20), server(58), ours(58));
        assert_eq!(risk.lag(ours(60)).data_at_risk, Duration::from_secs(10));
        risk.received(received(10, None));
        assert_eq!(risk.lag(ours(60)).data_at_risk, Duration::from_secs(2));
    }

    #[test]
    fn a_new_timeline_that_begins_lower_does_not_hide_what_waits_on_the_old() {
        let mut risk = Risk::new(Timeline::FIRST, Lsn::ZERO);
        risk.server(Lsn::new(1000), server(0), ours(0));
        risk.received(received(1000, Some((-5, -5))));
        risk.server(Lsn::new(900), server(1), ours(1));
        let fork = |to, at| Received {
            timeline: timeline(2),
            to: Lsn::new(to),
            commits: Some((server(at), server(at))),
        };
        risk.received(fork(900, 1));
        risk.durable(Timeline::FIRST, Lsn::new(950));
        assert_eq!(
            risk.lag(ours(5)).data_at_risk,
            Duration::from_secs(10),
            "950 is before the commit"
        );
        risk.durable(Timeline::FIRST, Lsn::new(1000));
        assert_eq!(risk.lag(ours(5)).data_at_risk, Duration::from_secs(4));
        risk.durable(timeline(2), Lsn::new(900));
        assert_eq!(risk.lag(ours(5)), Lag::default());
        risk.durable(Timeline::FIRST, Lsn::new(1000));
        assert_eq!(risk.legs.len(), 1);
    }
}
