//! PostgreSQL's own timestamps, and how moments are printed.

use std::fmt;

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};

/// A moment as PostgreSQL stores it (`TimestampTz`): microseconds since the beginning of 2000, UTC.
/// WAL records, `pg_control` and the replication protocol carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(i64);

/// 2000-01-01 00:00:00 UTC, in microseconds since 1970.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

impl PgTimestamp {
    /// The moment of this many microseconds since 2000.
    pub const fn new(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 2000.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The moment, unless it is one of the infinities or in a year no calendar of ours has (beyond
    /// ±262,000): bytes from outside can hold anything.
    pub fn to_utc(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.0.checked_add(EPOCH_MICROS)?)
    }

    /// The timestamp of a moment; what is below a microsecond is dropped.
    pub fn from_utc(at: DateTime<Utc>) -> Option<Self> {
        let at = at.trunc_subsecs(6);
        at.timestamp_micros().checked_sub(EPOCH_MICROS).map(Self)
    }
}

/// As [`rfc3339`], or the bare number where that has no date.
impl fmt::Display for PgTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_utc() {
            Some(at) => f.write_str(&rfc3339(at)),
            None => write!(f, "{} µs since 2000-01-01", self.0),
        }
    }
}

/// RFC 3339 in UTC with microseconds, as all JSON of ours has it: `2026-11-21T10:20:00.123456Z`.
pub fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}
