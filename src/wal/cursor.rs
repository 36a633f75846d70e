//! Little-endian fields, taken one by one from the front of a slice that may be too short.

use chrono::{DateTime, Utc};

use crate::pg::time::PgTimestamp;

/// What is left to read. Every `take` answers `None`, and takes nothing, where too little is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// All that is left; takes nothing.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A `TimestampTz`; `None` for one that is no moment, too.
    pub(super) fn time(&mut self) -> Option<DateTime<Utc>> {
        PgTimestamp::new(self.i64()?).to_utc()
    }

    /// A count of 32 bits (never negative) and that many items of `size` bytes: the bytes of the items.
    pub(super) fn counted(&mut self, size: usize) -> Option<&'a [u8]> {
        let count = usize::try_from(self.i32()?).ok()?;
        self.slice(count.checked_mul(size)?)
    }

    /// The bytes up to a zero, which is taken too.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        let text = self.slice(end)?;
        self.slice(1)?;
        Some(text)
    }
}
