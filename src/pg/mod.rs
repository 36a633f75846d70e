//! PostgreSQL's nouns as types. Pure: no I/O, no clock, no environment.

pub mod conninfo;
mod control;
pub mod duration;
#[cfg(test)]
pub(crate) mod golden;
mod history;
mod label;
mod lsn;
mod manifest;
mod page;
mod segment;
pub mod settings;
pub mod size;
mod system;
mod tablespace_map;
pub mod time;
mod timeline;
mod version;

pub use control::{ClusterState, ControlError, ControlFile, ControlSettings, WalLevel};
pub use history::{Fork, HistoryError, Leg, TimelineHistory};
pub use label::{BackupHistory, BackupLabel, LabelError};
pub use lsn::{Lsn, ParseLsnError};
pub use manifest::{ChecksumAlgorithm, Manifest, ManifestError, ManifestFile, ManifestReader, WalRange};
pub use page::{FirstPage, LongHeader, PAGE_SIZE, PageError, PageHeader, check_first_page};
pub use segment::{ParseWalNameError, SegmentName, SegmentNumber, SegmentSize, SegmentSizeError, WalFileName};
pub use system::{ParseSystemIdError, SystemId};
pub use tablespace_map::{TablespaceLink, TablespaceMap, TablespaceMapError};
pub use timeline::{ParseTimelineError, Timeline};
pub use version::{MagicMeaning, MajorVersion, VersionError};
