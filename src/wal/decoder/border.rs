//! Records that cross the border of what was pushed: what is known of them on either side.

use crate::pg::Lsn;

/// The rest of a record that began before the first byte pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// How many bytes of the record were left (`xlp_rem_len`).
    pub left: u32,
    /// How many of them were there.
    pub got: u32,
    /// The first of them, up to [`Rest::KEPT`].
    pub bytes: Vec<u8>,
    /// CRC-32C of those that were there.
    pub crc: u32,
    /// Where they end, aligned to eight.
    pub end: Lsn,
}

impl Rest {
    /// How many bytes are kept on each side of a border. Almost every record that matters to a plan is shorter; what
    /// is longer is a page's image, or a transaction with hundreds of files or subtransactions, for which the WAL
    /// itself is there.
    pub const KEPT: usize = 4096;

    pub(super) const fn of(left: u32) -> Self {
        Self {
            left,
            got: 0,
            bytes: Vec::new(),
            crc: 0,
            end: Lsn::ZERO,
        }
    }

    pub(super) fn pass(&mut self, bytes: &[u8], crc: u32, end: Lsn) {
        let room = Self::KEPT - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.got += bytes.len() as u32;
        self.crc = crc;
        self.end = end;
    }

    /// Whether the record's end was there.
    pub const fn ends(&self) -> bool {
        self.got == self.left
    }
}

/// The first part of a record that ends after the last byte pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Where it begins.
    pub start: Lsn,
    /// Its length in bytes.
    pub total: u32,
    /// How many of them were there.
    pub got: u32,
    /// The first of them, up to [`Rest::KEPT`].
    pub bytes: Vec<u8>,
    /// CRC-32C of those that were there, without the record's header.
    pub crc: u32,
}
