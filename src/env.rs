//! The machine's time, chance and environment variables: the only place that asks for them.
//!
//! Everything else takes an [`Env`], so that a test can fix the clock and replay chance from a seed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, FixedOffset, Local, Offset, TimeZone, Utc};

/// A snapshot of the process environment, a clock, and a source of chance.
#[derive(Debug)]
pub struct Env {
    variables: HashMap<OsString, OsString>,
    clock: Clock,
    chance: AtomicU64,
}

/// The clock of an [`Env`], for what outlives the borrow of it: a connection that tells the server its time.
#[derive(Debug, Clone, Copy)]
pub struct Clock(ClockKind);

#[derive(Debug, Clone, Copy)]
enum ClockKind {
    Machine,
    Fixed(DateTime<Utc>),
}

impl Clock {
    /// Now.
    #[allow(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn now(self) -> DateTime<Utc> {
        match self.0 {
            ClockKind::Machine => Utc::now(),
            ClockKind::Fixed(now) => now,
        }
    }
}

impl Env {
    /// The environment of this process.
    #[allow(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn of_process() -> Self {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        // Uniqueness of names rests on this seed: time alone repeats on two hosts, a process id on
        // one host, so both go in, stirred by the address space layout.
        let here = &raw const nanos as u64;
        let seed = (nanos as u64) ^ (u64::from(std::process::id()) << 40) ^ here.rotate_left(17);
        Self {
            variables: std::env::vars_os().collect(),
            clock: Clock(ClockKind::Machine),
            chance: AtomicU64::new(seed),
        }
    }

    /// An environment made up by a test: these variables, this seed, and the clock standing at `now`.
    pub fn made_up(variables: &[(&str, &str)], now: DateTime<Utc>, seed: u64) -> Self {
        Self {
            variables: variables
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            clock: Clock(ClockKind::Fixed(now)),
            chance: AtomicU64::new(seed),
        }
    }

    /// A variable's value, if set, not empty, and valid UTF-8.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.var_os(name).and_then(OsStr::to_str)
    }

    /// A variable's value, if set and not empty (an empty one counts as unset, as in libpq).
    pub fn var_os(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    /// All variables whose name begins with `prefix`, name and value.
    pub fn vars_with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.variables
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
            .filter(move |(name, value)| name.starts_with(prefix) && !value.is_empty())
    }

    /// Now.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// The clock alone.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// This machine's offset from UTC at the given local wall-clock moment; `None` where the clocks
    /// were turned and the moment is ambiguous or never was.
    pub fn local_offset_at(&self, wall: chrono::NaiveDateTime) -> Option<FixedOffset> {
        match self.clock.0 {
            ClockKind::Machine => Local
                .offset_from_local_datetime(&wall)
                .single()
                .map(|offset| offset.fix()),
            ClockKind::Fixed(_) => Some(Utc.fix()),
        }
    }

    /// The given instant in this machine's zone.
    pub fn local(&self, at: DateTime<Utc>) -> DateTime<FixedOffset> {
        match self.clock.0 {
            ClockKind::Machine => at.with_timezone(&Local).fixed_offset(),
            ClockKind::Fixed(_) => at.fixed_offset(),
        }
    }

    /// The next number of a splitmix64 sequence: for names and jitter, never for keys.
    pub fn chance(&self) -> u64 {
        let mut z = self
            .chance
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
            .wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A duration drawn evenly from half of `whole` up to `whole`: spreads out callers that failed
    /// together.
    pub fn jittered(&self, whole: Duration) -> Duration {
        let part = (self.chance() >> 11) as f64 / (1u64 << 53) as f64;
        whole.mul_f64(0.5 + part / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let env = Env::made_up(&[("PGHOST", ""), ("PGPORT", "1")], DateTime::UNIX_EPOCH, 1);
        assert_eq!(env.var("PGHOST"), None);
        assert_eq!(env.var("PGPORT"), Some("1"));
    }

    #[test]
    fn the_same_seed_gives_the_same_chance() {
        let draw = || Env::made_up(&[], DateTime::UNIX_EPOCH, 7).chance();
        assert_eq!(draw(), draw());
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let env = Env::made_up(&[], DateTime::UNIX_EPOCH, 3);
        let whole = Duration::from_secs(2);
        assert!(
            (0..1000)
                .map(|_| env.jittered(whole))
                .all(|wait| wait >= whole / 2 && wait <= whole)
        );
    }
}
