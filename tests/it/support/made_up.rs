//! WAL segments and base backups made up for tests that break things: small, quick, and without a server.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chrono::DateTime;
use pgp_pitr::ops::restore::{Action, Goal, RestoreCommand};
use pgp_pitr::pg::{Lsn, SystemId, Timeline};
use pgp_pitr::plan::recovery::{Plan, Reaches, Requested};
use pgp_pitr::repo::backup::{self, BackupId, BackupKind, BackupRecord, BackupState};
use pgp_pitr::repo::map::{FileEntry, FileKind};
use pgp_pitr::repo::{BackupWriter, RepoError, Repository};

/// The cluster that all of it belongs to.
pub const SYSTEM: SystemId = SystemId::new(7_000_000_000_000_000_001);

/// Bytes of a made-up segment, as after `initdb --wal-segsize=1`.
const SEGMENT: usize = 1 << 20;

/// A WAL segment: a true first page, and noise behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its file name.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Segment `number` of [`SYSTEM`] on timeline 1; the noise differs with `seed`.
pub fn segment(number: u32, seed: u64) -> Segment {
    segment_of(SYSTEM, number, seed)
}

/// As [`segment`], of another cluster.
pub fn segment_of(system: SystemId, number: u32, seed: u64) -> Segment {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/15/segment.page");
    let mut bytes = fs::read(golden).expect("a golden page");
    // XLogLongPageHeaderData: page address, then past the remaining length system and segment size.
    bytes[8..16].copy_from_slice(&(u64::from(number) * SEGMENT as u64).to_le_bytes());
    let system: u64 = system.to_string().parse().expect("a number");
    bytes[24..32].copy_from_slice(&system.to_le_bytes());
    bytes[32..36].copy_from_slice(&(SEGMENT as u32).to_le_bytes());
    let (first, noise) = (bytes.len(), noise(SEGMENT - bytes.len(), seed));
    bytes.extend(noise);
    // Half of it compresses to nothing, as real WAL does.
    bytes[first + SEGMENT / 4..first + SEGMENT / 4 * 3].fill(0);
    let name = format!("00000001{:08X}{:08X}", number / 4096, number % 4096);
    Segment { name, bytes }
}

impl Segment {
    /// The same, but nothing is wrong with it: its only record ends it, and what follows is padding.
    pub fn readable(mut self) -> Self {
        const FIRST: usize = 40;
        // XLP_LONG_HEADER alone, and no bytes of a record that began before.
        self.bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
        self.bytes[16..20].fill(0);
        let address = u64::from_le_bytes(self.bytes[8..16].try_into().expect("eight bytes"));
        let mut record = Vec::new();
        record.extend(24_u32.to_le_bytes());
        record.extend(0_u32.to_le_bytes());
        record.extend((address - 64).to_le_bytes());
        // XLOG_SWITCH of the resource manager XLOG.
        record.extend([0x40, 0, 0, 0]);
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &record) as u32;
        record.extend(crc.to_le_bytes());
        self.bytes[FIRST..FIRST + record.len()].copy_from_slice(&record);
        self
    }

    /// Puts it into a folder, under its name.
    pub fn put_into(&self, folder: &Path) -> PathBuf {
        let path = folder.join(&self.name);
        fs::write(&path, &self.bytes).expect("a segment can be written");
        path
    }
}

/// Bytes that don't compress.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let next = move || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

/// The files of a made-up backup: small ones, an empty one, and one that takes several frames.
pub fn files() -> Vec<(FileEntry, Vec<u8>)> {
    let entry = |kind, path: &str, mode, content: Vec<u8>| {
        let entry = FileEntry {
            kind,
            tablespace: 0,
            path: path.as_bytes().to_vec(),
            mode,
            modified: 1_763_720_000,
            size: content.len() as u64,
            target: Vec::new(),
        };
        (entry, content)
    };
    let folder = |path| entry(FileKind::Folder, path, 0o700, Vec::new());
    let file = |path, content| entry(FileKind::File, path, 0o600, content);
    vec![
        file("PG_VERSION", b"15\n".to_vec()),
        folder("base"),
        folder("base/1"),
        file("base/1/1259", noise(5 << 19, 1)),
        file("base/1/empty", Vec::new()),
        file("base/1/2619", noise(70_000, 2)),
        file("postgresql.auto.conf", b"# made up\n".to_vec()),
        folder("global"),
        file("global/pg_control", noise(8192, 3)),
    ]
}

/// What the server's manifest would be.
const MANIFEST: &[u8] = b"{ \"PostgreSQL-Backup-Manifest-Version\": 1 }\n";

/// Backs the made-up files up, as `pgp-pitr backup` does, save that no server sends them.
pub async fn back_up(repository: &Repository, number: u64) -> Result<BackupRecord, RepoError> {
    let at = DateTime::from_timestamp(1_763_720_000, 0).expect("a moment");
    let id = BackupId::new(at, number);
    let mut writer = BackupWriter::new(repository, SYSTEM, id.clone(), 1, 1);
    for (entry, content) in files() {
        writer.begin(entry).await?;
        // In pieces, as they come from a socket.
        for piece in content.chunks(100_000) {
            writer.push(piece).await?;
        }
        writer.end().await?;
    }
    let manifest = zstd::bulk::compress(MANIFEST, 1).expect("compressed");
    writer.put_part(backup::MANIFEST, Bytes::from(manifest)).await?;
    let record = BackupRecord {
        id,
        system_identifier: SYSTEM,
        label: None,
        kind: BackupKind::Full,
        state: BackupState::Complete,
        pg_version: "15".to_owned(),
        server_version: "15.20".to_owned(),
        timeline: Timeline::FIRST,
        start_lsn: Lsn::new(0x200_0028),
        stop_lsn: Lsn::new(0x200_0100),
        started_at: at,
        stopped_at: at,
        size_bytes: 0,
        stored_bytes: 0,
        entries: 0,
        tablespaces: Vec::new(),
        from_standby: false,
        warnings: Vec::new(),
        parts: Vec::new(),
    };
    writer.commit(record).await
}

/// A plan that restores a backup, wherever its WAL may end.
pub fn plan(backup: BackupRecord) -> Plan {
    Plan {
        backup,
        timeline: Timeline::FIRST,
        path: Vec::new(),
        requested: Requested::Immediate,
        inclusive: true,
        stop: vec![("recovery_target", "immediate".to_owned())],
        reaches: Reaches::default(),
        segments: 0,
        settings: Vec::new(),
        tablespaces: Vec::new(),
        no_read_ahead: false,
        fetch_bytes: 0,
        passed_over: Vec::new(),
        warnings: Vec::new(),
    }
}

/// A restore into a directory, on one thread: the same calls in the same order, each time.
pub fn goal(to: &Path) -> Goal {
    Goal {
        to: to.to_path_buf(),
        mappings: Vec::new(),
        action: Action::Pause,
        command: RestoreCommand {
            program: "/usr/bin/pgp-restore".into(),
            repo: "s3://made-up".to_owned(),
            config: None,
        },
        standby: None,
        archive_off: false,
        jobs: 1,
    }
}

/// Panics unless a directory holds all the files, each whole, and what a recovery needs.
#[track_caller]
pub fn assert_restored(directory: &Path, about: &str) {
    for (entry, content) in files() {
        let path = directory.join(entry.path());
        match entry.kind {
            FileKind::Folder => assert!(path.is_dir(), "{about}: {}", path.display()),
            // Settings were added to it.
            _ if entry.path.ends_with(b".conf") => assert!(fs::read(&path).expect("restored").starts_with(&content)),
            _ => assert!(
                fs::read(&path).expect("restored") == content,
                "{about}: {}",
                path.display()
            ),
        }
    }
    assert_eq!(
        fs::read(directory.join("backup_manifest")).expect("restored"),
        MANIFEST,
        "{about}"
    );
    assert!(directory.join("recovery.signal").exists(), "{about}");
    assert!(!directory.join("pgp-restore-in-progress.json").exists(), "{about}");
}
