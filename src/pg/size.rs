//! Sizes and rates with PostgreSQL's units, where a `kB` is 1024 bytes.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::error::{Class, Explain};

/// Units, largest first. Case matters, as in PostgreSQL: `MB` can't be taken for megabits, nor `kB` for
/// 1000 bytes, by anybody who knows one of them.
const UNITS: &[(u64, &str, &str)] = &[
    (1 << 40, "TB", "TiB"),
    (1 << 30, "GB", "GiB"),
    (1 << 20, "MB", "MiB"),
    (1 << 10, "kB", "KiB"),
    (1, "B", "B"),
];

/// A number of bytes, written as in PostgreSQL's settings: `16MB` is 16·2²⁰.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// This many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// How many bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// For people, and not exact: three digits and a binary unit.
    pub fn short(self) -> String {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1000.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        match value {
            _ if unit == 0 => format!("{} B", self.0),
            value if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
            value if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
            value => format!("{value:.0} {}", UNITS[unit]),
        }
    }
}

/// Exact, with the largest unit that leaves no fraction, as `SHOW` prints: `16MB`, `1025kB`, `7B`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(bytes, _, _): &&(u64, &str, &str)| self.0 != 0 && self.0.is_multiple_of(*bytes);
        match UNITS.iter().find(fits) {
            Some((bytes, unit, _)) => write!(f, "{}{unit}", self.0 / bytes),
            None => f.write_str("0B"),
        }
    }
}

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a size")]
pub struct ParseSizeError(String);

impl Explain for ParseSizeError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("Write a whole number and B, kB, MB, GB or TB, for example 16MB; a kB has 1024 bytes.".to_owned())
    }
}

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let bytes = || {
            let (number, word) = number_and_unit(text)?;
            let unit = UNITS.iter().find(|(_, unit, more)| *unit == word || *more == word)?;
            number.checked_mul(unit.0)
        };
        bytes().map(Self).ok_or_else(|| ParseSizeError(text.to_owned()))
    }
}

/// Splits `16 MB` into its number and its unit.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim_ascii();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_ascii_start()))
}

/// How fast a base backup may be sent (`MAX_RATE` of the replication protocol): 32 kB to 1 GB a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(NonZeroU32);

impl Rate {
    /// The lowest and highest rate servers accept, in kB a second.
    const RANGE: std::ops::RangeInclusive<u32> = 32..=1_048_576;

    /// This many kB a second, if a server accepts that.
    pub fn new(kilobytes: u32) -> Option<Self> {
        NonZeroU32::new(kilobytes)
            .filter(|rate| Self::RANGE.contains(&rate.get()))
            .map(Self)
    }

    /// In kB a second, as the replication protocol wants it.
    pub const fn kilobytes(self) -> u32 {
        self.0.get()
    }
}

/// Exact: `32MB/s`, `1000kB/s`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(u64::from(self.kilobytes()) << 10))
    }
}

/// A text that is not a rate, or one that no server accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a rate between 32 kB and 1 GB a second")]
pub struct ParseRateError(String);

impl Explain for ParseRateError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("Write it as pg_basebackup does: 32768 or 32768k (kB a second), 32M or 32MB (MB a second).".to_owned())
    }
}

impl FromStr for Rate {
    type Err = ParseRateError;

    /// As `pg_basebackup --max-rate`: a bare number is in kB; also `k` and `M`, units of [`Size`], and
    /// `/s` at the end.
    fn from_str(text: &str) -> Result<Self, ParseRateError> {
        let kilobytes = || {
            let text = text.trim_ascii();
            let (number, word) = number_and_unit(text.strip_suffix("/s").unwrap_or(text))?;
            let scale = match word {
                "" | "k" | "kB" | "KiB" => 1,
                "M" | "MB" | "MiB" => 1 << 10,
                "GB" | "GiB" => 1 << 20,
                _ => return None,
            };
            Self::new(u32::try_from(number.checked_mul(scale)?).ok()?)
        };
        kilobytes().ok_or_else(|| ParseRateError(text.to_owned()))
    }
}

impl serde::Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> serde::Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test] // the units were tried with SET work_mem and SHOW on 15.20
    fn sizes_are_postgresqls() {
        for (text, bytes, printed) in [
            ("16MB", 16 << 20, "16MB"),
            (" 16 MB ", 16 << 20, "16MB"),
            ("16MiB", 16 << 20, "16MB"),
            ("1024kB", 1 << 20, "1MB"),
            ("1025kB", 1025 << 10, "1025kB"),
            ("3TB", 3 << 40, "3TB"),
            ("7B", 7, "7B"),
            ("0B", 0, "0B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.bytes(), &*size.to_string()), (bytes, printed), "{text}");
        }
        for text in [
            "",
            "16",
            "MB",
            "16mb",
            "16KB",
            "16M",
            "-1MB",
            "1.5GB",
            "16MB x",
            "99999999999TB",
            "16 M B",
        ] {
            assert_eq!(text.parse::<Size>(), Err(ParseSizeError(text.to_owned())), "{text}");
        }
    }

    #[test] // as pg_basebackup 15 --max-rate, which takes fractions too; units of two letters are ours
    fn rates_are_those_of_pg_basebackup() {
        for (text, kilobytes) in [
            ("32768", 32768),
            ("32768k", 32768),
            ("32M", 32768),
            ("32MB/s", 32768),
            ("1GB", 1 << 20),
            ("32", 32),
        ] {
            assert_eq!(text.parse::<Rate>().map(Rate::kilobytes), Ok(kilobytes), "{text}");
        }
        for text in [
            "", "0", "31", "1025M", "2GB", "32G", "32m", "32K", "-64", "64 kb", "64B",
        ] {
            assert_eq!(text.parse::<Rate>(), Err(ParseRateError(text.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_size_survives_printing(bytes: u64, shift in 0u32..64) {
            let size = Size::new(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn every_rate_survives_printing(kilobytes in Rate::RANGE) {
            let rate = Rate::new(kilobytes).unwrap();
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
