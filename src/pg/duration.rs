//! Lengths of time as people and PostgreSQL's settings write them: `5min`, `300s`, `14d`, `1h 30m`,
//! `1 hour 30 minutes`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Class, Explain};

/// A length of time, in whole microseconds, up to [`Span::MAX`]. A day has 24 hours, a week 7 days;
/// months and years have no fixed length and are not understood.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

/// The units, longest first: microseconds, how it is printed, how else it may be written. `m` is a
/// minute, as everywhere but in PostgreSQL, which has no `m`; case matters, as in PostgreSQL.
const UNITS: &[(u64, &str, &[&str])] = &[
    (7 * 86_400_000_000, "w", &["week", "weeks"]),
    (86_400_000_000, "d", &["day", "days"]),
    (3_600_000_000, "h", &["hr", "hrs", "hour", "hours"]),
    (60_000_000, "min", &["m", "mins", "minute", "minutes"]),
    (1_000_000, "s", &["sec", "secs", "second", "seconds"]),
    (1_000, "ms", &["millisecond", "milliseconds"]),
    (1, "us", &["microsecond", "microseconds"]),
];

impl Span {
    /// The longest there is: a hundred years of 365 days. More is a slip.
    pub const MAX: Self = Self(Duration::from_secs(100 * 365 * 86_400));

    /// This length of time; what is below a microsecond is dropped. `None` above [`Span::MAX`].
    pub fn new(length: Duration) -> Option<Self> {
        let whole = Duration::new(length.as_secs(), length.subsec_micros() * 1000);
        (whole <= Self::MAX.0).then_some(Self(whole))
    }

    /// Its length.
    pub const fn length(self) -> Duration {
        self.0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

/// Exact: what is printed is read back as the same. Weeks are printed as days.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        let mut blank = "";
        for (micros, unit, _) in &UNITS[1..] {
            if left >= *micros {
                write!(f, "{blank}{}{unit}", left / micros)?;
                left %= micros;
                blank = " ";
            }
        }
        Ok(())
    }
}

/// A text that is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a length of time")]
pub struct ParseSpanError(String);

impl Explain for ParseSpanError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("Write whole numbers with units, longest first: 30s, 5min, 1h 30min, 14d.".to_owned())
    }
}

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, ParseSpanError> {
        let micros = micros(text.trim_ascii()).ok_or_else(|| ParseSpanError(text.to_owned()))?;
        Self::new(Duration::from_micros(micros)).ok_or_else(|| ParseSpanError(text.to_owned()))
    }
}

fn micros(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut total = 0u64;
    let mut units = UNITS;
    let mut rest = text;
    loop {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let after = after.trim_ascii_start();
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (word, after) = after.split_at(end);
        // Each unit at most once and the longest first: anything else is a slip.
        let index = units
            .iter()
            .position(|(_, unit, more)| *unit == word || more.contains(&word))?;
        let micros = number.parse::<u64>().ok()?.checked_mul(units[index].0)?;
        total = total.checked_add(micros)?;
        units = &units[index + 1..];
        rest = after.trim_ascii_start();
        if rest.is_empty() {
            return Some(total);
        }
    }
}

impl serde::Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_and_settings_are_understood() {
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.length().as_secs());
        for (text, expected) in [
            ("0", 0),
            ("0s", 0),
            ("300s", 300),
            ("5m", 300),
            ("5min", 300),
            (" 5 minutes ", 300),
            ("14d", 14 * 86_400),
            ("2w", 14 * 86_400),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("1 hour 30 minutes", 5400),
            ("90000ms", 90),
            ("36500d", 36500 * 86_400),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        assert_eq!("7us".parse::<Span>().unwrap().length(), Duration::from_micros(7));
    }

    #[test]
    fn what_could_mean_something_else_is_refused() {
        for text in [
            "",
            "5",
            "m",
            "-5m",
            "+5m",
            "1.5h",
            "5 M",
            "5MIN",
            "5mon",
            "1y",
            "30m 1h",
            "1m 1m",
            "5m,",
            "5m 3",
            "1 h 3 0",
            "36501d",
            "99999999999999999999s",
            "18446744073709551615w",
            "5\u{a0}m",
            "5µs",
        ] {
            assert_eq!(text.parse::<Span>(), Err(ParseSpanError(text.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_length_survives_printing(micros in 0..=Span::MAX.0.as_micros() as u64) {
            let span = Span::new(Duration::from_micros(micros)).unwrap();
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,30}") {
            let _ = text.parse::<Span>();
        }
    }
}
