//! The strict parser of recovery target times.

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, TimeDelta};

use super::error::ParseTimeError;
use super::zone::Zone;
use super::{Clock, RecoveryTime, Understood};
use crate::pg::duration::Span;

pub(super) fn recovery_time(text: &str, clock: &Clock<'_>) -> Result<RecoveryTime, ParseTimeError> {
    let time = any_form(text, clock)?;
    // Four digits of a year are what settings and messages can hold; an offset can lead out of them.
    match (1..=9999).contains(&time.instant().year()) {
        true => Ok(time),
        false => Err(ParseTimeError::OutOfRange(text.to_owned())),
    }
}

fn any_form(text: &str, clock: &Clock<'_>) -> Result<RecoveryTime, ParseTimeError> {
    let trimmed = text.trim_ascii();
    let not_a_time = || ParseTimeError::NotATime(text.to_owned());
    let lower = trimmed.to_ascii_lowercase();
    if lower == "now" {
        return Ok(RecoveryTime::new(clock.now.to_utc(), Understood::Relative));
    }
    if let Some(seconds) = trimmed.strip_prefix('@') {
        return epoch(seconds, text);
    }
    // The case of units matters: "5M" is no minutes.
    let ago = lower
        .ends_with(" ago")
        .then(|| &trimmed[..trimmed.len() - " ago".len()]);
    if let Some(span) = ago.or_else(|| trimmed.strip_prefix('-')) {
        return before_now(span, text, clock);
    }
    for (day, back) in [("today", 0), ("yesterday", 1)] {
        let Some(rest) = lower.strip_prefix(day) else { continue };
        // The zone's name is looked up without regard to case, so the lower-case text will do.
        let (time, zone) = time_and_zone(after_day(rest, text, trimmed)?, text)?;
        let date = zone.today(clock).checked_sub_signed(TimeDelta::days(back));
        return zone.resolve(date.ok_or_else(not_a_time)?.and_time(time), clock);
    }
    if is_time_of_day(trimmed) {
        return Err(ParseTimeError::NoDay(trimmed.to_owned()));
    }
    let (date, rest) = date(trimmed, text)?;
    let rest = match rest.strip_prefix(['T', 't']) {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => rest,
        _ => after_day(rest, text, trimmed)?,
    };
    let (time, zone) = time_and_zone(rest, text)?;
    zone.resolve(date.and_time(time), clock)
}

/// What follows a day and at least one blank.
fn after_day<'a>(rest: &'a str, text: &str, day: &str) -> Result<&'a str, ParseTimeError> {
    if rest.is_empty() {
        return Err(ParseTimeError::DayOnly(day.to_owned()));
    }
    let time = rest.trim_ascii_start();
    if time.len() == rest.len() {
        return Err(ParseTimeError::NotATime(text.to_owned()));
    }
    Ok(time)
}

fn before_now(span: &str, text: &str, clock: &Clock<'_>) -> Result<RecoveryTime, ParseTimeError> {
    let span: Span = span.parse().map_err(|_| ParseTimeError::NotATime(text.to_owned()))?;
    let at = clock
        .now
        .to_utc()
        .checked_sub_signed(TimeDelta::from_std(span.length()).unwrap_or(TimeDelta::MAX));
    at.map(|at| RecoveryTime::new(at, Understood::Relative))
        .ok_or_else(|| ParseTimeError::OutOfRange(text.to_owned()))
}

fn epoch(seconds: &str, text: &str) -> Result<RecoveryTime, ParseTimeError> {
    let not_a_time = || ParseTimeError::NotATime(text.to_owned());
    let (whole, fraction) = match seconds.split_once('.') {
        Some((whole, fraction)) => (whole, micros(fraction, text)?),
        None => (seconds, 0),
    };
    if whole.is_empty() || !whole.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_a_time());
    }
    let out_of_range = || ParseTimeError::OutOfRange(text.to_owned());
    let whole: i64 = whole.parse().map_err(|_| out_of_range())?;
    let at = DateTime::from_timestamp(whole, fraction * 1000);
    at.map(|at| RecoveryTime::new(at, Understood::Epoch))
        .ok_or_else(out_of_range)
}

/// Whether this begins like `14:30`.
fn is_time_of_day(text: &str) -> bool {
    let mut parts = text.splitn(2, ':');
    let digits = |part: Option<&str>| part.is_some_and(|part| (1..=2).contains(&part.len()) && all_digits(part));
    digits(parts.next())
        && parts
            .next()
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// Reads exactly `digits` digits.
fn number(text: &str, digits: usize) -> Option<(u32, &str)> {
    let (number, rest) = text.split_at_checked(digits)?;
    (all_digits(number) && !number.is_empty()).then_some(())?;
    Some((number.parse().ok()?, rest))
}

/// Reads `YYYY-MM-DD`.
fn date<'a>(trimmed: &'a str, text: &str) -> Result<(NaiveDate, &'a str), ParseTimeError> {
    let fields = || {
        let (year, rest) = number(trimmed, 4)?;
        let (month, rest) = number(rest.strip_prefix('-')?, 2)?;
        let (day, rest) = number(rest.strip_prefix('-')?, 2)?;
        (!rest.starts_with(|c: char| c.is_ascii_digit())).then_some((year, month, day, rest))
    };
    let (year, month, day, rest) = fields().ok_or_else(|| ParseTimeError::NotATime(text.to_owned()))?;
    let date = i32::try_from(year)
        .ok()
        .filter(|year| *year > 0)
        .and_then(|year| NaiveDate::from_ymd_opt(year, month, day));
    date.map(|date| (date, rest)).ok_or_else(|| ParseTimeError::Field {
        text: text.to_owned(),
        what: "there is no such day",
    })
}

/// Reads `HH:MM[:SS[.ffffff]]` and the zone behind it.
fn time_and_zone(rest: &str, text: &str) -> Result<(NaiveTime, Zone), ParseTimeError> {
    let not_a_time = || ParseTimeError::NotATime(text.to_owned());
    let minutes = || {
        let (hour, rest) = number(rest, 2)?;
        let (minute, rest) = number(rest.strip_prefix(':')?, 2)?;
        Some((hour, minute, rest))
    };
    let (hour, minute, rest) = minutes().ok_or_else(not_a_time)?;
    let (mut second, mut fraction, mut rest) = (0, 0, rest);
    if let Some(after) = rest.strip_prefix(':') {
        (second, rest) = number(after, 2).ok_or_else(not_a_time)?;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            fraction = micros(&after[..end], text)?;
            rest = &after[end..];
        }
    }
    let field = |what| ParseTimeError::Field {
        text: text.to_owned(),
        what,
    };
    if rest.starts_with(|c: char| !c.is_ascii_alphabetic() && !c.is_ascii_whitespace() && !"+-".contains(c)) {
        return Err(not_a_time());
    }
    let zone = rest.trim_ascii_start();
    if ["AM", "PM"].iter().any(|half| zone.eq_ignore_ascii_case(half)) {
        return Err(field("write hours from 00 to 23, without AM and PM"));
    }
    if hour > 23 {
        return Err(field("hours go from 00 to 23"));
    }
    if minute > 59 {
        return Err(field("minutes go from 00 to 59"));
    }
    if second > 59 {
        return Err(field("seconds go from 00 to 59"));
    }
    let zone = Zone::parse(zone)?;
    let time = NaiveTime::from_hms_micro_opt(hour, minute, second, fraction);
    Ok((time.ok_or_else(not_a_time)?, zone))
}

/// The microseconds that digits behind the point mean; zeros behind the sixth digit change nothing.
fn micros(digits: &str, text: &str) -> Result<u32, ParseTimeError> {
    if digits.is_empty() || !all_digits(digits) {
        return Err(ParseTimeError::NotATime(text.to_owned()));
    }
    let (six, more) = digits.split_at(digits.len().min(6));
    if more.bytes().any(|digit| digit != b'0') {
        return Err(ParseTimeError::TooPrecise(text.to_owned()));
    }
    format!("{six:0<6}")
        .parse()
        .map_err(|_| ParseTimeError::NotATime(text.to_owned()))
}
