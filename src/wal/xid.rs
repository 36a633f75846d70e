//! Transaction ids.

use std::fmt;

/// A transaction id as records have it (`TransactionId`): 32 bits that wrap around, so that the same number comes
/// again after four billion transactions. Zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Xid(u32);

impl Xid {
    /// No transaction: what records have that belong to none.
    pub const NONE: Self = Self(0);

    /// The transaction of this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
