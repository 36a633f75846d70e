//! Why a text is not a recovery target time.

use chrono::{DateTime, FixedOffset, NaiveDateTime};

use crate::error::{Class, Explain};

/// A text that is not a time, or could mean more than one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseTimeError {
    /// None of the accepted forms.
    #[error("\"{0}\" is not a time")]
    NotATime(String),
    /// A day without a time of day.
    #[error("\"{0}\" is a day, not a time")]
    DayOnly(String),
    /// A time of day without a day.
    #[error("\"{0}\" is a time without a day")]
    NoDay(String),
    /// A field beyond its range.
    #[error("\"{text}\" is not a time: {what}")]
    Field {
        /// The whole text.
        text: String,
        /// Which field, and why.
        what: &'static str,
    },
    /// More than microseconds.
    #[error("\"{0}\" has more than six digits after the point; PostgreSQL counts in microseconds")]
    TooPrecise(String),
    /// The abbreviation of a zone.
    #[error("\"{0}\" can mean more than one zone")]
    Abbreviation(String),
    /// Not an offset from UTC, or beyond what PostgreSQL takes.
    #[error("\"{0}\" is not an offset from UTC")]
    Offset(String),
    /// A name no zone has.
    #[error("there is no time zone \"{0}\"")]
    UnknownZone(String),
    /// The clocks were turned back over this time.
    #[error("{wall} was twice in {zone}: {} and {}", first.to_rfc3339(), second.to_rfc3339())]
    Twice {
        /// The wall-clock time.
        wall: NaiveDateTime,
        /// The zone, in words.
        zone: String,
        /// Before the clocks were turned.
        first: DateTime<FixedOffset>,
        /// And after.
        second: DateTime<FixedOffset>,
    },
    /// The clocks were turned forward over this time.
    #[error("{wall} never was in {zone}: the clocks were turned forward over it")]
    Never {
        /// The wall-clock time.
        wall: NaiveDateTime,
        /// The zone, in words.
        zone: String,
    },
    /// One of the two, and the machine does not tell which.
    #[error("{wall} was twice in {zone}, or never: the clocks were turned then")]
    TwiceOrNever {
        /// The wall-clock time.
        wall: NaiveDateTime,
        /// The zone, in words.
        zone: String,
    },
    /// Before or after all that can be counted.
    #[error("\"{0}\" is beyond the calendar")]
    OutOfRange(String),
}

impl Explain for ParseTimeError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::DayOnly(text) => format!("Say when on that day, for example \"{text} 14:30\"."),
            Self::NoDay(text) => format!("Say which day, for example \"today {text}\" or \"yesterday {text}\"."),
            Self::Abbreviation(_) => {
                "Write the offset (+01) or the zone's full name (Europe/Paris) behind the time.".to_owned()
            }
            Self::Offset(_) => "Write it as +01, +0100, +01:00 or -03:30, up to 15:59:59.".to_owned(),
            Self::UnknownZone(_) => "Names of zones are written like Europe/Paris; UTC is known too.".to_owned(),
            Self::Twice { .. } | Self::Never { .. } | Self::TwiceOrNever { .. } => {
                "Write the offset from UTC behind the time, for example +01.".to_owned()
            }
            Self::TooPrecise(_) => "Leave out the digits after the sixth.".to_owned(),
            Self::NotATime(_) | Self::Field { .. } | Self::OutOfRange(_) => {
                "Write it like \"2026-11-21 14:30:00+01\", \"2026-11-21T13:30:00Z\", \"10 minutes ago\" or \
                 \"yesterday 14:00\"."
                    .to_owned()
            }
        })
    }
}
