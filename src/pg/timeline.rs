//! Timelines.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// A timeline of a cluster's history (`TimeLineID`): 1 from `initdb`, a new one at each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(NonZeroU32);

impl Timeline {
    /// The timeline every cluster begins on.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline of this number; zero is none.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// Eight hexadecimal digits, as in the names of WAL files.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }

    /// Reads the eight hexadecimal digits of a WAL file's name.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let plain = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        plain
            .then(|| u32::from_str_radix(digits, 16).ok().and_then(Self::new))
            .flatten()
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is not a timeline's number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a timeline; write its number, for example 3")]
pub struct ParseTimelineError(String);

impl FromStr for Timeline {
    type Err = ParseTimelineError;

    fn from_str(text: &str) -> Result<Self, ParseTimelineError> {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|_| plain);
        number
            .and_then(Self::new)
            .ok_or_else(|| ParseTimelineError(text.to_owned()))
    }
}

impl serde::Serialize for Timeline {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.number())
    }
}

impl<'de> serde::Deserialize<'de> for Timeline {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(deserializer)?;
        Self::new(number).ok_or_else(|| serde::de::Error::custom("timeline 0 does not exist"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_is_refused() {
        for text in ["", "0", "-1", "+1", "1.0", "latest", "4294967296", " 1"] {
            assert!(text.parse::<Timeline>().is_err(), "{text:?}");
        }
        assert_eq!("17".parse::<Timeline>().map(Timeline::hex), Ok("00000011".to_owned()));
    }
}
