//! PostgreSQL's nouns as types. Pure: no I/O, no clock, no environment.

pub mod conninfo;
mod lsn;
mod segment;
mod system;
mod timeline;

pub use lsn::{Lsn, ParseLsnError};
pub use segment::{ParseWalNameError, SegmentName, SegmentNumber, SegmentSize, SegmentSizeError, WalFileName};
pub use system::{ParseSystemIdError, SystemId};
pub use timeline::{ParseTimelineError, Timeline};
