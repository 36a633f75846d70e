//! Moments: PostgreSQL's timestamps, and the times that people give as recovery targets.
//!
//! A target is never guessed. What is accepted: ISO 8601 and PostgreSQL's own output with an offset, `Z`,
//! `UTC`, `GMT` or a zone's full name; the same without a zone, which means this machine's; `@` and seconds
//! since 1970; `now`; `10 minutes ago` and `-10m`; `today 09:30` and `yesterday 14:00`. What is refused,
//! with the reason: a date without a time, abbreviations of zones (`CET`, `EST`: PostgreSQL itself takes
//! `IST` for Israel), wall times that were twice or never, hour 24, second 60, and a seventh digit after
//! the point unless it is zero (PostgreSQL would round it, maybe up and past a commit).

mod error;
mod parse;
mod timestamp;
mod zone;

#[cfg(test)]
mod tests;

use std::fmt;

use chrono::{DateTime, FixedOffset, NaiveDateTime, Offset, SubsecRound, Utc};
use chrono_tz::Tz;

pub use error::ParseTimeError;
pub use timestamp::{PgTimestamp, rfc3339};

/// The present moment and this machine's zone.
pub struct Clock<'a> {
    /// Now, in this machine's zone.
    pub now: DateTime<FixedOffset>,
    /// This machine's offset from UTC at a wall-clock time; `None` if that was twice or never.
    pub local_offset: &'a dyn Fn(NaiveDateTime) -> Option<FixedOffset>,
}

/// How the zone of a time was understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Understood {
    /// The text gave an offset, `Z`, `UTC` or `GMT`.
    Offset(FixedOffset),
    /// The text gave a zone's name; the offset is the zone's at that time.
    Named(Tz, FixedOffset),
    /// The text gave none: this machine's zone, with its offset at that time.
    Machine(FixedOffset),
    /// The text counts from the present moment.
    Relative,
    /// The text counts seconds since 1970.
    Epoch,
}

/// For messages, to stand behind a time.
impl fmt::Display for Understood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "as given, {offset}"),
            Self::Named(zone, offset) => write!(f, "{zone}, {offset}"),
            Self::Machine(offset) => write!(f, "this machine's zone, {offset}"),
            Self::Relative => f.write_str("counted from now"),
            Self::Epoch => f.write_str("seconds since 1970"),
        }
    }
}

/// A moment to recover to, exact to the microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryTime {
    instant: DateTime<Utc>,
    understood: Understood,
}

impl RecoveryTime {
    /// Reads a time that a person gave.
    ///
    /// # Errors
    /// Where the text is not a time, or could mean more than one.
    pub fn parse(text: &str, clock: &Clock<'_>) -> Result<Self, ParseTimeError> {
        parse::recovery_time(text, clock)
    }

    /// A moment that is known already.
    pub fn of(instant: DateTime<Utc>) -> Self {
        Self::new(instant, Understood::Offset(Utc.fix()))
    }

    fn new(instant: DateTime<Utc>, understood: Understood) -> Self {
        let instant = instant.trunc_subsecs(6);
        Self { instant, understood }
    }

    /// The moment.
    pub fn instant(&self) -> DateTime<Utc> {
        self.instant
    }

    /// How the zone was understood, to be said before acting.
    pub fn understood(&self) -> Understood {
        self.understood
    }

    /// For `recovery_target_time`: `2026-11-21 10:20:00.123456+00`. Always with an offset and always with
    /// microseconds, so that no setting of the server changes which moment it is.
    pub fn for_settings(&self) -> String {
        self.instant.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
    }

    /// For JSON: `2026-11-21T10:20:00.123456Z`.
    pub fn rfc3339(&self) -> String {
        rfc3339(self.instant)
    }
}
