//! Positions in the WAL.

use std::fmt;
use std::str::FromStr;

/// A byte position in a cluster's WAL (`XLogRecPtr`). Meaningful only together with a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// The position before all WAL; PostgreSQL's `InvalidXLogRecPtr`.
    pub const ZERO: Self = Self(0);

    /// The position at this many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The position in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The position `bytes` further on; saturates at the end of the address space.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// How many bytes this position lies after `earlier`; zero if it does not.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that the server's `pg_lsn` type would refuse as well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN; write it as two hexadecimal halves, for example 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        // from_str_radix would take "+1", and a half wider than eight digits would spill into its
        // neighbour; the server's pg_lsn refuses both.
        let half = |digits: &str| {
            let plain = digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            u32::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        text.split_once('/')
            .and_then(|(high, low)| Some((half(high)?, half(low)?)))
            .map(|(high, low)| Self(u64::from(high) << 32 | u64::from(low)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_position_survives_printing(position: u64) {
            prop_assert_eq!(Lsn::new(position).to_string().parse(), Ok(Lsn::new(position)));
        }
    }

    #[test] // the texts were tried on PostgreSQL 15.20 with ::pg_lsn
    fn text_a_server_refuses_is_refused() {
        for text in ["", "/", "1/", "+1/0", "1/100000000", "1/2/3", " 1/2", "0x1/2"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError(text.to_owned())));
        }
    }
}
