//! `global/pg_control`: what the server keeps about a cluster beside its WAL (`ControlFileData`).
//!
//! The server rewrites the file in place while it runs, so a reader may meet one that is half old and half new: its
//! checksum fails, and reading it again helps. Only little-endian files are read.

use std::fmt;

use super::{Lsn, MajorVersion, SegmentSize, SystemId, Timeline};
use crate::error::{Class, Explain};

/// Where fields lie, in bytes from the start of the file. All known majors share these places; they differ in what
/// follows the last of them, and so in where the checksum is ([`crc_offset`]).
mod at {
    pub(super) const SYSTEM: usize = 0x00;
    pub(super) const CONTROL_VERSION: usize = 0x08;
    pub(super) const CATALOG_VERSION: usize = 0x0C;
    pub(super) const STATE: usize = 0x10;
    pub(super) const CHECKPOINT: usize = 0x20;
    pub(super) const REDO: usize = 0x28;
    pub(super) const TIMELINE: usize = 0x30;
    pub(super) const PREVIOUS_TIMELINE: usize = 0x34;
    pub(super) const CHECKPOINT_TIME: usize = 0x68;
    pub(super) const MINIMUM_RECOVERY: usize = 0x88;
    pub(super) const MINIMUM_RECOVERY_TIMELINE: usize = 0x90;
    pub(super) const BACKUP_START: usize = 0x98;
    pub(super) const BACKUP_END: usize = 0xA0;
    pub(super) const BACKUP_END_REQUIRED: usize = 0xA8;
    pub(super) const WAL_LEVEL: usize = 0xAC;
    pub(super) const MAX_CONNECTIONS: usize = 0xB4;
    pub(super) const MAX_WORKER_PROCESSES: usize = 0xB8;
    pub(super) const MAX_WAL_SENDERS: usize = 0xBC;
    pub(super) const MAX_PREPARED: usize = 0xC0;
    pub(super) const MAX_LOCKS: usize = 0xC4;
    pub(super) const TRACK_COMMIT_TIMESTAMP: usize = 0xC8;
    pub(super) const BLOCK_SIZE: usize = 0xD8;
    pub(super) const WAL_BLOCK_SIZE: usize = 0xE0;
    pub(super) const SEGMENT_SIZE: usize = 0xE4;
    pub(super) const CHECKSUM_VERSION: usize = 0xFC;
}

/// Where the checksum lies; it covers everything before it. For a version newer than the known ones: where the newest
/// has it, which the checksum itself then proves or disproves.
const fn crc_offset(control_version: u32) -> usize {
    // 18 put one byte (default_char_signedness) before the nonce.
    if control_version >= 1800 { 0x124 } else { 0x120 }
}

/// The control versions of the supported majors (`MajorVersion::control_version`).
const OLDEST_CONTROL_VERSION: u32 = 1300;
const NEWEST_CONTROL_VERSION: u32 = 1800;

/// What was happening to the cluster when the file was last written (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterState {
    /// `initdb` was making it.
    Starting,
    /// Stopped cleanly.
    ShutDown,
    /// A standby, stopped cleanly.
    ShutDownInRecovery,
    /// Stopping.
    ShuttingDown,
    /// Replaying its own WAL after a crash.
    InCrashRecovery,
    /// Replaying WAL from an archive or a primary.
    InArchiveRecovery,
    /// Running; also where a server was killed, and in every base backup of a primary.
    InProduction,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Starting,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

impl fmt::Display for ClusterState {
    /// As `pg_controldata` says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// `wal_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Too little for archiving.
    Minimal,
    /// Enough for archiving and physical replication.
    Replica,
    /// Enough for logical replication too.
    Logical,
}

impl fmt::Display for WalLevel {
    /// As the setting is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        })
    }
}

/// Settings that a standby must have at least as high as the server that wrote the WAL, or hot standby refuses to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlSettings {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
}

/// What `pg_control` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster.
    pub system: SystemId,
    /// `PG_CONTROL_VERSION`; shared by several majors, so the major itself is in the file `PG_VERSION`.
    pub control_version: u32,
    /// `CATALOG_VERSION_NO`.
    pub catalog_version: u32,
    /// What was happening when it was written.
    pub state: ClusterState,
    /// Where the latest checkpoint's record is.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of the latest checkpoint. Right after a promotion still the old one.
    pub timeline: Timeline,
    /// The timeline before it; the same unless the checkpoint began a new one.
    pub previous_timeline: Timeline,
    /// When the latest checkpoint was made, in seconds since 1970-01-01 UTC.
    pub checkpoint_time: i64,
    /// How far a standby must replay before it is consistent again; `None` on a primary.
    pub minimum_recovery: Option<Lsn>,
    /// The timeline of that point.
    pub minimum_recovery_timeline: Option<Timeline>,
    /// The redo position of the base backup that is being recovered, until it is consistent.
    pub backup_start: Option<Lsn>,
    /// Where that backup ends, if it was taken from a standby.
    pub backup_end: Option<Lsn>,
    /// Whether the record of that backup's end must still be found.
    pub backup_end_required: bool,
    /// `wal_level` when the file was written.
    pub wal_level: WalLevel,
    /// The minima for a standby.
    pub settings: ControlSettings,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// The size of data pages in bytes (`BLCKSZ`).
    pub block_size: u32,
    /// The size of WAL pages in bytes (`XLOG_BLCKSZ`).
    pub wal_block_size: u32,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The version of data page checksums; zero: off.
    pub data_checksum_version: u32,
}

impl ControlFile {
    /// The size of the file. What lies behind the checksum is zeros.
    pub const BYTES: usize = 8192;

    /// Where it lies in a data directory.
    pub const PATH: &str = "global/pg_control";

    /// Reads a file and checks its checksum.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let file: &[u8; Self::BYTES] = bytes.try_into().map_err(|_| ControlError::Length(bytes.len()))?;
        let control_version = check(file)?;
        let lsn = |at| Lsn::new(u64_at(file, at));
        let some_lsn = |at| Some(lsn(at)).filter(|lsn| *lsn != Lsn::ZERO);
        let timeline = |at| Timeline::new(u32_at(file, at));
        let number = |at| u32_at(file, at).cast_signed();
        let nonsense = |field, value| ControlError::Nonsense { field, value };
        let state = u32_at(file, at::STATE);
        let segment_size = u32_at(file, at::SEGMENT_SIZE);
        Ok(Self {
            system: SystemId::new(u64_at(file, at::SYSTEM)),
            control_version,
            catalog_version: u32_at(file, at::CATALOG_VERSION),
            state: ClusterState::from_number(state).ok_or(nonsense("cluster state", state))?,
            checkpoint: lsn(at::CHECKPOINT),
            redo: lsn(at::REDO),
            timeline: timeline(at::TIMELINE).ok_or(nonsense("timeline", 0))?,
            previous_timeline: timeline(at::PREVIOUS_TIMELINE).ok_or(nonsense("previous timeline", 0))?,
            checkpoint_time: u64_at(file, at::CHECKPOINT_TIME).cast_signed(),
            minimum_recovery: some_lsn(at::MINIMUM_RECOVERY),
            minimum_recovery_timeline: timeline(at::MINIMUM_RECOVERY_TIMELINE),
            backup_start: some_lsn(at::BACKUP_START),
            backup_end: some_lsn(at::BACKUP_END),
            backup_end_required: file[at::BACKUP_END_REQUIRED] != 0,
            wal_level: match u32_at(file, at::WAL_LEVEL) {
                0 => WalLevel::Minimal,
                1 => WalLevel::Replica,
                2 => WalLevel::Logical,
                level => return Err(nonsense("wal_level", level)),
            },
            settings: ControlSettings {
                max_connections: number(at::MAX_CONNECTIONS),
                max_worker_processes: number(at::MAX_WORKER_PROCESSES),
                max_wal_senders: number(at::MAX_WAL_SENDERS),
                max_prepared_transactions: number(at::MAX_PREPARED),
                max_locks_per_transaction: number(at::MAX_LOCKS),
            },
            track_commit_timestamp: file[at::TRACK_COMMIT_TIMESTAMP] != 0,
            block_size: u32_at(file, at::BLOCK_SIZE),
            wal_block_size: u32_at(file, at::WAL_BLOCK_SIZE),
            segment_size: SegmentSize::new(u64::from(segment_size))
                .map_err(|_| nonsense("segment size", segment_size))?,
            data_checksum_version: u32_at(file, at::CHECKSUM_VERSION),
        })
    }
}

/// The control version of a file that is whole and of a known layout.
fn check(file: &[u8; ControlFile::BYTES]) -> Result<u32, ControlError> {
    let version = u32_at(file, at::CONTROL_VERSION);
    let known = OLDEST_CONTROL_VERSION..=NEWEST_CONTROL_VERSION;
    if known.contains(&version.swap_bytes()) {
        return Err(ControlError::BigEndian);
    }
    let crc_at = crc_offset(version);
    let stored = u32_at(file, crc_at);
    let computed = crc_fast::crc32_iscsi(&file[..crc_at]);
    match (stored == computed, version) {
        (true, version) if version < OLDEST_CONTROL_VERSION => Err(ControlError::TooOld(version)),
        (true, version) => Ok(version),
        // Newer majors are numbered MAJOR * 100; another number is damage.
        (false, version) if version > NEWEST_CONTROL_VERSION && version < 10_000 => {
            Err(ControlError::NewLayout(version))
        }
        (false, _) => Err(ControlError::Checksum { stored, computed }),
    }
}

/// The bytes of a field. All fields lie in the first 512 bytes of a file of 8192, so there are always enough.
fn field<const N: usize>(file: &[u8; ControlFile::BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&file[at..at + N]);
    bytes
}

fn u32_at(file: &[u8; ControlFile::BYTES], at: usize) -> u32 {
    u32::from_le_bytes(field(file, at))
}

fn u64_at(file: &[u8; ControlFile::BYTES], at: usize) -> u64 {
    u64::from_le_bytes(field(file, at))
}

/// Why a `pg_control` can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Not 8192 bytes.
    #[error("pg_control is {0} bytes long instead of {size}", size = ControlFile::BYTES)]
    Length(usize),
    /// Damaged, or read while the server wrote it.
    #[error("pg_control fails its checksum: it tells {stored:08X}, its bytes give {computed:08X}")]
    Checksum {
        /// The checksum in the file.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// Of a major that is not supported.
    #[error("pg_control has version {0}, of a PostgreSQL older than {oldest}", oldest = MajorVersion::OLDEST)]
    TooOld(u32),
    /// Of a major newer than the known ones, and laid out in another way.
    #[error("pg_control has version {0}, of a PostgreSQL newer than {newest}", newest = MajorVersion::NEWEST_KNOWN)]
    NewLayout(u32),
    /// Written on another kind of machine.
    #[error("pg_control was written on a big-endian machine, which is not supported")]
    BigEndian,
    /// The checksum is right and a field is not.
    #[error("pg_control has {value} as its {field}, which no server writes")]
    Nonsense {
        /// Which field.
        field: &'static str,
        /// What stands there.
        value: u32,
    },
}

impl Explain for ControlError {
    fn class(&self) -> Class {
        match self {
            Self::TooOld(_) | Self::NewLayout(_) | Self::BigEndian => Class::Usage,
            Self::Length(_) | Self::Checksum { .. } | Self::Nonsense { .. } => Class::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::BigEndian => return None,
            Self::TooOld(_) => "use a server of a supported major version.",
            Self::NewLayout(_) => "look for a newer version of this program.",
            _ => "try again; if it stays so, the file is damaged: see what pg_controldata says of it.",
        };
        Some(hint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::golden;
    use proptest::prelude::*;

    #[test]
    fn everything_is_as_pg_controldata_tells_it() {
        for (major, which) in golden::MAJORS
            .into_iter()
            .flat_map(|major| [(major, "stopped"), (major, "recovering")])
        {
            let file = ControlFile::parse(&golden::read(major, &format!("{which}.control"))).unwrap();
            let on = |flag| if flag { "on" } else { "off" };
            let lsn = |lsn: Option<Lsn>| lsn.unwrap_or(Lsn::ZERO).to_string();
            let time = chrono::DateTime::from_timestamp(file.checkpoint_time, 0).unwrap();
            let settings = file.settings;
            for (label, value) in [
                ("pg_control version number", file.control_version.to_string()),
                ("Catalog version number", file.catalog_version.to_string()),
                ("Database system identifier", file.system.to_string()),
                ("Database cluster state", file.state.to_string()),
                ("Latest checkpoint location", file.checkpoint.to_string()),
                ("Latest checkpoint's REDO location", file.redo.to_string()),
                ("Latest checkpoint's TimeLineID", file.timeline.to_string()),
                ("Latest checkpoint's PrevTimeLineID", file.previous_timeline.to_string()),
                ("Time of latest checkpoint", time.format("%a %b %e %T %Y").to_string()),
                ("Minimum recovery ending location", lsn(file.minimum_recovery)),
                (
                    "Min recovery ending loc's timeline",
                    file.minimum_recovery_timeline.map_or(0, Timeline::number).to_string(),
                ),
                ("Backup start location", lsn(file.backup_start)),
                ("Backup end location", lsn(file.backup_end)),
                (
                    "End-of-backup record required",
                    if file.backup_end_required { "yes" } else { "no" }.to_owned(),
                ),
                ("wal_level setting", file.wal_level.to_string()),
                ("max_connections setting", settings.max_connections.to_string()),
                (
                    "max_worker_processes setting",
                    settings.max_worker_processes.to_string(),
                ),
                ("max_wal_senders setting", settings.max_wal_senders.to_string()),
                (
                    "max_prepared_xacts setting",
                    settings.max_prepared_transactions.to_string(),
                ),
                (
                    "max_locks_per_xact setting",
                    settings.max_locks_per_transaction.to_string(),
                ),
                (
                    "track_commit_timestamp setting",
                    on(file.track_commit_timestamp).to_owned(),
                ),
                ("Database block size", file.block_size.to_string()),
                ("WAL block size", file.wal_block_size.to_string()),
                ("Bytes per WAL segment", file.segment_size.bytes().to_string()),
                ("Data page checksum version", file.data_checksum_version.to_string()),
            ] {
                assert_eq!(
                    golden::told(major, &format!("{which}.txt"), label),
                    value,
                    "{major} {which}: {label}"
                );
            }
        }
    }

    /// A golden file after a change, its checksum made right again where `sealed`.
    fn changed(major: u16, sealed: bool, change: impl Fn(&mut Vec<u8>)) -> Result<ControlFile, ControlError> {
        let mut bytes = golden::read(major, "stopped.control");
        change(&mut bytes);
        if sealed {
            let crc_at = crc_offset(u32::from_le_bytes(bytes[8..12].try_into().unwrap()));
            let crc = crc_fast::crc32_iscsi(&bytes[..crc_at]);
            bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        }
        ControlFile::parse(&bytes)
    }

    #[test]
    fn a_file_that_is_not_whole_is_refused() {
        assert_eq!(
            changed(17, false, |bytes| bytes.truncate(512)),
            Err(ControlError::Length(512))
        );
        assert!(matches!(
            changed(17, false, |bytes| bytes.fill(0)),
            Err(ControlError::Checksum { .. })
        ));
        assert_eq!(
            changed(17, true, |bytes| bytes[at::STATE] = 9),
            Err(ControlError::Nonsense {
                field: "cluster state",
                value: 9
            })
        );
    }

    #[test]
    fn other_versions_and_machines_are_named() {
        let version =
            |number: u32, sealed| changed(18, sealed, |bytes| bytes[8..12].copy_from_slice(&number.to_le_bytes()));
        assert_eq!(version(1201, true), Err(ControlError::TooOld(1201)));
        assert_eq!(version(1900, true).map(|file| file.control_version), Ok(1900));
        assert_eq!(version(1900, false), Err(ControlError::NewLayout(1900)));
        assert_eq!(version(1800u32.swap_bytes(), false), Err(ControlError::BigEndian));
        assert!(matches!(version(77_777, false), Err(ControlError::Checksum { .. })));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_always_found(major in prop::sample::select(golden::MAJORS.to_vec()), at in 0usize..0x124, bit in 0u8..8) {
            prop_assert!(changed(major, false, |bytes| bytes[at] ^= 1 << bit).is_err());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0x124), at in 0usize..0x200) {
            let _ = ControlFile::parse(&bytes);
            let _ = changed(17, true, |file| {
                file[12..0x120].copy_from_slice(&bytes[12..0x120]);
                file[at::STATE..at::STATE + 4].copy_from_slice(&[6, 0, 0, 0]);
                file[at] = 0;
            });
        }
    }
}
