//! Decisions, pure and printable: making one changes nothing.

pub mod recovery;
