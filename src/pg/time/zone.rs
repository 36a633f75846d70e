//! The zone behind a time, and what it makes of a wall-clock time.

use chrono::{DateTime, FixedOffset, MappedLocalTime, NaiveDate, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

use super::error::ParseTimeError;
use super::{Clock, RecoveryTime, Understood};

/// A zone as written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Zone {
    /// Nothing was written.
    Machine,
    Offset(FixedOffset),
    Named(Tz),
}

/// The largest hour of an offset PostgreSQL reads; it stops at 15:59:59.
const MAX_OFFSET_HOUR: i32 = 15;

impl Zone {
    /// Reads what stands behind a time, blanks cut off.
    pub(super) fn parse(text: &str) -> Result<Self, ParseTimeError> {
        if text.is_empty() {
            return Ok(Self::Machine);
        }
        if ["Z", "UTC", "GMT"].iter().any(|name| text.eq_ignore_ascii_case(name)) {
            return Ok(Self::Offset(Utc.fix()));
        }
        if text.starts_with(['+', '-']) {
            return offset(text)
                .map(Self::Offset)
                .ok_or_else(|| ParseTimeError::Offset(text.to_owned()));
        }
        // Without a slash a name is an abbreviation, or an alias that looks like one (EST, Cuba).
        if !text.contains('/') {
            let word = text.len() <= 5 && text.bytes().all(|b| b.is_ascii_alphabetic());
            let error = if word {
                ParseTimeError::Abbreviation
            } else {
                ParseTimeError::UnknownZone
            };
            return Err(error(text.to_owned()));
        }
        chrono_tz::TZ_VARIANTS
            .into_iter()
            .find(|zone| zone.name().eq_ignore_ascii_case(text))
            .map(Self::Named)
            .ok_or_else(|| ParseTimeError::UnknownZone(text.to_owned()))
    }

    /// Which day it is there now.
    pub(super) fn today(self, clock: &Clock<'_>) -> NaiveDate {
        match self {
            Self::Machine => clock.now.date_naive(),
            Self::Offset(offset) => clock.now.with_timezone(&offset).date_naive(),
            Self::Named(zone) => clock.now.with_timezone(&zone).date_naive(),
        }
    }

    /// The moment at which the clocks there showed `wall`.
    pub(super) fn resolve(self, wall: NaiveDateTime, clock: &Clock<'_>) -> Result<RecoveryTime, ParseTimeError> {
        match self {
            Self::Offset(offset) => {
                let at = wall.and_local_timezone(offset).single();
                moment(at, wall).map(|at| RecoveryTime::new(at, Understood::Offset(offset)))
            }
            Self::Named(zone) => {
                let name = || zone.name().to_owned();
                match zone.from_local_datetime(&wall) {
                    MappedLocalTime::Single(at) => Ok(RecoveryTime::new(
                        at.to_utc(),
                        Understood::Named(zone, at.offset().fix()),
                    )),
                    MappedLocalTime::Ambiguous(first, second) => Err(ParseTimeError::Twice {
                        wall,
                        zone: name(),
                        first: first.fixed_offset(),
                        second: second.fixed_offset(),
                    }),
                    MappedLocalTime::None => Err(ParseTimeError::Never { wall, zone: name() }),
                }
            }
            Self::Machine => {
                let Some(offset) = (clock.local_offset)(wall) else {
                    return Err(turned_clocks(wall, clock));
                };
                let at = wall.and_local_timezone(offset).single();
                moment(at, wall).map(|at| RecoveryTime::new(at, Understood::Machine(offset)))
            }
        }
    }
}

fn moment(at: Option<DateTime<FixedOffset>>, wall: NaiveDateTime) -> Result<DateTime<Utc>, ParseTimeError> {
    at.map(|at| at.to_utc())
        .ok_or_else(|| ParseTimeError::OutOfRange(wall.to_string()))
}

/// Says what happened to a wall-clock time for which this machine has no offset. The offsets a day before
/// and after tell: clocks turned back leave a smaller one. (A day and an hour: a zone once left out a day.)
fn turned_clocks(wall: NaiveDateTime, clock: &Clock<'_>) -> ParseTimeError {
    let zone = "this machine's zone".to_owned();
    let probe = |by: TimeDelta| wall.checked_add_signed(by).and_then(|at| (clock.local_offset)(at));
    let day = TimeDelta::hours(25);
    let at = |offset: FixedOffset| wall.and_local_timezone(offset).single();
    match (probe(-day), probe(day)) {
        (Some(before), Some(after)) if before.local_minus_utc() < after.local_minus_utc() => {
            ParseTimeError::Never { wall, zone }
        }
        (Some(before), Some(after)) if before != after => match (at(before), at(after)) {
            (Some(first), Some(second)) => ParseTimeError::Twice {
                wall,
                zone,
                first,
                second,
            },
            _ => ParseTimeError::TwiceOrNever { wall, zone },
        },
        _ => ParseTimeError::TwiceOrNever { wall, zone },
    }
}

/// Reads `+hh`, `+hhmm`, `+hh:mm` or `+hh:mm:ss`, which PostgreSQL prints for times before zones had
/// whole minutes.
fn offset(text: &str) -> Option<FixedOffset> {
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let digits = text.get(1..)?;
    let two = |text: &str| {
        let plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i32>().ok().filter(|_| plain)
    };
    let parts: Vec<&str> = match digits.len() {
        2 => vec![digits],
        4 if digits.is_ascii() => vec![&digits[..2], &digits[2..]],
        5 | 8 => digits.split(':').collect(),
        _ => return None,
    };
    let numbers = parts.into_iter().map(two).collect::<Option<Vec<_>>>()?;
    let field = |index: usize| numbers.get(index).copied().unwrap_or(0);
    let in_range = numbers.len() <= 3 && field(0) <= MAX_OFFSET_HOUR && field(1) < 60 && field(2) < 60;
    in_range
        .then(|| FixedOffset::east_opt(sign * (field(0) * 3600 + field(1) * 60 + field(2))))
        .flatten()
}
