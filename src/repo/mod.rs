//! The repository: what objects there are, what they hold, and which writes are allowed.
//!
//! Objects are written once and never changed, so two writers can't corrupt each other and a crash
//! leaves at worst an object that nothing refers to. The format is described in
//! `docs/repository-format.md`.

pub mod backup;
mod cluster;
mod doubt;
mod error;
mod identity;
pub mod map;
mod marker;
pub mod names;
pub mod pack;
pub mod reader;
mod segment;
pub mod tail;
mod verify_wal;
mod wal;
mod wal_index;
mod wal_push;
mod writer;

pub use cluster::ClusterInfo;
pub use doubt::{Doubt, doubts};
pub use error::RepoError;
pub use identity::{IDENTITY_FRAME, Identity};
pub use marker::Repository;
pub use segment::{Form, SegmentFile, Told, fetch_segment, fetch_unfinished, longer, unfinished};
pub use verify_wal::{Verified, verify_segment, verify_wal};
pub use wal::{Fetched, LEAST_WAL_OBJECT, fetch, identity};
pub use wal_index::{StoredIndex, read_index, reindex};
pub use wal_push::{PackedWal, Packing, Pushed, Stored, WalContent, WalHead, WalSource, push};
pub use writer::{BackupWriter, PackRow};
