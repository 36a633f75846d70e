//! The meaning of WAL bytes, for PostgreSQL 13 to 18. No I/O, no clock: bytes go in, records and their meaning come
//! out. Whatever reads WAL here (archiving, receiving, planning, verifying) shares this one reading.
//!
//! | module | gives |
//! | --- | --- |
//! | `page` | how a cluster's WAL is laid out, and whether a page belongs where it is |
//! | `decoder` | whole records, checksum verified, from bytes that come in pieces |
//! | `record` | what every record has: block references, page images, main data |
//! | `xact`, `xlog`, `storage` | what the records mean that recovery and its planning depend on |
//! | `catalog_row` | rows of PostgreSQL's own catalogues: what relations are called |
//! | `events` | a walk from one such record to the next |
//! | `index` | all of the above of one segment, small enough to be kept beside it |
//! | `target` | where PostgreSQL ends a recovery that meets them |
//!
//! Nothing here trusts a length or a count before it has been held against the bytes that are there.

mod catalog_row;
mod cursor;
mod decoder;
mod events;
#[cfg(test)]
mod forge;
mod full_page;
pub mod index;
mod page;
mod record;
mod rmgr;
mod storage;
mod target;
mod xact;
mod xid;
mod xlog;

pub use catalog_row::CatalogRow;
pub use decoder::{Begun, EndReason, NotContiguous, RawRecord, Rest, Step, WalDecoder};
pub use events::{Ended, Event, EventKind, Extent, RecoveryEvents, Walked};
pub use page::{LayoutError, PageFault, WalLayout};
pub use record::{Block, Blocks, Compression, Image, Oid, Record, RecordError, Reference, RelFile, RelFork};
pub use rmgr::ResourceManager;
pub use storage::StorageChange;
pub use target::{CommitPoint, Outcome, Stop, StopFinder, Target, stop};
pub use xact::{Prepared, RelFiles, RelationsChanged, Transaction, TransactionEnd, Xids};
pub use xid::Xid;
pub use xlog::{Checkpoint, ParameterChange, XlogChange};
