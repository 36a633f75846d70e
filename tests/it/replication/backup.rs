//! Base backups, with `pg_basebackup` as the oracle.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;

use pgp_pitr::error::{Class, Explain};
use pgp_pitr::pg::Timeline;
use pgp_pitr::replication::{
    BackupEnd, BackupEvent, BaseBackupOptions, EntryKind, ManifestChecksum, ReplicationError, ReplicationSession,
    SlotName, SqlState, TarEntry,
};

use super::{conninfo, env};
use crate::support::cluster::Cluster;
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::Scratch;

/// What an archive holds: entries and contents by path, without times, which change while nobody writes.
type Archive = BTreeMap<Vec<u8>, (TarEntry, Vec<u8>)>;

/// A whole backup in memory.
#[derive(Debug, Default)]
struct Backup {
    /// By the number of the tablespace; none for the data directory.
    archives: BTreeMap<Option<u32>, Archive>,
    manifest: Vec<u8>,
    /// What `Data` events brought in all.
    bytes: u64,
    reported: u64,
    end: Option<BackupEnd>,
}

async fn session(cluster: &Cluster) -> ReplicationSession {
    ReplicationSession::connect(&conninfo(&cluster.conninfo()), &env())
        .await
        .unwrap()
}

async fn take(session: &mut ReplicationSession, options: &BaseBackupOptions) -> Result<Backup, ReplicationError> {
    let mut running = session.base_backup(options).await?;
    let mut backup = Backup::default();
    let mut spaces = Vec::new();
    let mut open: Option<(Option<u32>, TarEntry, Vec<u8>)> = None;
    let mut current = None;
    while let Some(event) = running.next().await? {
        match event {
            BackupEvent::Started { tablespaces, .. } => spaces = tablespaces,
            BackupEvent::ArchiveBegin { tablespace } => {
                current = spaces[tablespace].oid;
                backup.archives.insert(current, Archive::new());
            }
            BackupEvent::Entry(entry) => open = Some((current, entry, Vec::new())),
            BackupEvent::Data(data) => {
                backup.bytes += data.len() as u64;
                open.as_mut().unwrap().2.extend_from_slice(&data);
            }
            BackupEvent::EntryEnd => {
                let (space, mut entry, contents) = open.take().unwrap();
                assert_eq!(entry.size, contents.len() as u64);
                entry.mtime = 0;
                let path = entry.path.to_vec();
                let before = backup.archives.get_mut(&space).unwrap().insert(path, (entry, contents));
                assert!(before.is_none(), "{before:?} came twice");
            }
            BackupEvent::ArchiveEnd => assert!(open.is_none()),
            BackupEvent::Progress { bytes } => backup.reported = bytes,
            BackupEvent::ManifestData(data) => backup.manifest.extend_from_slice(&data),
            BackupEvent::Finished(end) => backup.end = Some(end),
        }
    }
    assert!(backup.end.is_some());
    Ok(backup)
}

/// The same from the files that `pg_basebackup -Ft` writes.
fn by_pg_basebackup(cluster: &Cluster) -> BTreeMap<Option<u32>, Archive> {
    let folder = Scratch::new();
    Answer::of(
        cluster
            .client("pg_basebackup")
            .args(["-Ft", "-X", "none", "-c", "fast", "--no-manifest", "-D"])
            .arg(folder.join("backup")),
    )
    .with_code(0);
    let files = fs::read_dir(folder.join("backup")).unwrap();
    let archives = files.map(|file| {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        ((name != "base").then(|| name.parse().unwrap()), read_tar(&path))
    });
    archives.collect()
}

fn read_tar(path: &std::path::Path) -> Archive {
    let mut archive = tar::Archive::new(File::open(path).unwrap());
    let mut entries = Archive::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        let header = entry.header();
        let path = entry.path_bytes();
        let path = path.strip_suffix(b"/").unwrap_or(&path);
        let path = path.strip_prefix(b"./").unwrap_or(path).to_vec();
        let kind = match header.entry_type() {
            tar::EntryType::Regular => EntryKind::File,
            tar::EntryType::Directory => EntryKind::Directory,
            _ => EntryKind::Symlink(entry.link_name_bytes().unwrap().into_owned().into()),
        };
        let read = TarEntry {
            path: path.clone().into(),
            kind,
            size: header.size().unwrap(),
            mode: header.mode().unwrap(),
            mtime: 0,
            uid: header.uid().unwrap() as u32,
            gid: header.gid().unwrap() as u32,
        };
        entries.insert(path, (read, contents));
    }
    entries
}

/// A cluster with two tablespaces, some tables, and names that only bytes can hold.
fn odd_cluster(major: &'static Major, folder: &Scratch) -> Cluster {
    let cluster = Cluster::builder(major).initdb_args(["--data-checksums"]).build();
    for (name, path) in [("one", "one"), ("two", "t w\\o")] {
        let path = folder.folder(path);
        let path = path.display();
        cluster.sql(&format!("create tablespace {name} location '{path}'"));
        cluster.sql(&format!(
            "create table in_{name} tablespace {name} as select generate_series(1, 20000) n"
        ));
    }
    cluster.sql("create unlogged table fleeting as select generate_series(1, 1000) n");
    cluster.sql("checkpoint");
    let long = "x".repeat(95);
    for name in [
        &b"a b"[..],
        b"quo'te\\",
        b"new\nline",
        b"\xFF\xFE not UTF-8",
        long.as_bytes(),
    ] {
        let path = cluster.data_dir().join(OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        crate::support::user::ServerUser::get().give(&path);
    }
    cluster
}

#[tokio::test]
async fn a_base_backup_is_what_pg_basebackup_gets() {
    for major in Major::all() {
        let folder = Scratch::new();
        let cluster = odd_cluster(major, &folder);
        let mut session = session(&cluster).await;
        // As pg_basebackup asks for a tar, label included: its length is that of a file.
        let mut options = BaseBackupOptions {
            label: "pg_basebackup base backup".to_owned(),
            manifest: None,
            tablespace_map: true,
            ..BaseBackupOptions::default()
        };
        let ours = take(&mut session, &options).await.unwrap();
        let theirs = by_pg_basebackup(&cluster);
        assert_eq!(ours.archives.len(), 3);
        assert!(ours.archives.keys().eq(theirs.keys()));
        for (space, theirs) in &theirs {
            let ours = &ours.archives[space];
            let only = |one: &Archive, other: &Archive| -> Vec<String> {
                let missing = one.keys().filter(|path| !other.contains_key(*path));
                missing.map(|path| path.escape_ascii().to_string()).collect()
            };
            assert_eq!((only(ours, theirs), only(theirs, ours)), (vec![], vec![]));
            for (path, (entry, contents)) in theirs {
                assert_eq!(&ours[path].0, entry);
                // What each backup writes anew.
                let own = path == b"backup_label" || path == b"global/pg_control";
                assert!(own || ours[path].1 == *contents, "{}", path.escape_ascii());
            }
        }
        assert!(ours.archives[&None].contains_key(&b"\xFF\xFE not UTF-8"[..]));

        options.tablespace_map = false;
        let linked = take(&mut session, &options).await.unwrap();
        for (space, archive) in &linked.archives {
            let Some(oid) = space else { continue };
            let (link, _) = &linked.archives[&None][format!("pg_tblspc/{oid}").as_bytes()];
            let place = cluster.sql(&format!("select pg_tablespace_location({oid})"));
            assert_eq!(link.kind, EntryKind::Symlink(place.into()));
            assert_eq!(archive.len(), ours.archives[space].len());
        }
        // The session goes on afterwards.
        assert_eq!(session.identify_system().await.unwrap().timeline, Timeline::FIRST);
    }
}

#[tokio::test]
async fn the_manifest_and_the_label_are_those_that_were_asked_for() {
    for major in Major::all() {
        let cluster = Cluster::builder(major).build();
        let mut session = session(&cluster).await;
        let slot = SlotName::new("held").unwrap();
        session.create_physical_slot(&slot, true, true).await.unwrap();
        for (checksum, word) in [
            (ManifestChecksum::Sha256, "\"SHA256\""),
            (ManifestChecksum::Crc32c, "\"CRC32C\""),
        ] {
            let options = BaseBackupOptions {
                label: "it's a 'läbel' (,)".to_owned(),
                manifest: Some(checksum),
                max_rate: Some(1 << 20),
                verify_checksums: false,
                tablespace_map: true,
                ..BaseBackupOptions::default()
            };
            let backup = take(&mut session, &options).await.unwrap();
            let manifest = String::from_utf8(backup.manifest).unwrap();
            assert!(
                manifest.contains(word) && manifest.contains("Manifest-Checksum"),
                "{manifest}"
            );
            let (_, label) = &backup.archives[&None][&b"backup_label"[..]];
            assert!(String::from_utf8_lossy(label).contains("LABEL: it's a 'läbel' (,)\n"));
            if major.number() >= 15 {
                assert!(
                    backup.reported >= backup.bytes,
                    "{} of {}",
                    backup.reported,
                    backup.bytes
                );
                let held = session.read_slot(&slot).await.unwrap().unwrap();
                assert!(held.restart_lsn.is_some());
            }
        }
        assert_eq!(
            cluster.sql("select count(*) from pg_replication_slots where slot_name = 'held'"),
            "1"
        );
        drop(session);
        cluster.wait_until("select count(*) = 0 from pg_replication_slots");
    }
}

#[tokio::test]
async fn a_damaged_page_is_told_by_name_when_all_else_has_come() {
    for major in Major::all() {
        let mut cluster = Cluster::builder(major).initdb_args(["--data-checksums"]).build();
        cluster.sql("create table victim as select generate_series(1, 5000) n");
        cluster.sql("checkpoint");
        let path = cluster.sql("select pg_relation_filepath('victim')");
        cluster.stop(crate::support::cluster::Stop::Fast);
        let mut file = File::options()
            .write(true)
            .open(cluster.data_dir().join(&path))
            .unwrap();
        file.seek(SeekFrom::Start(8192 + 4000)).unwrap();
        file.write_all(b"damage").unwrap();
        cluster.start();
        let mut session = session(&cluster).await;
        let error = take(&mut session, &BaseBackupOptions::default()).await.unwrap_err();
        assert_eq!(error.class(), Class::Damaged);
        assert!(error.server_error().unwrap().is(SqlState::DATA_CORRUPTED));
        let ReplicationError::DamagedPages { warnings, end, .. } = error else {
            panic!("{error:?}")
        };
        assert!(end.is_some());
        assert!(warnings.iter().any(|warning| warning.contains(&path)), "{warnings:?}");
        // The session is still good, and without the check so is the backup.
        let options = BaseBackupOptions {
            verify_checksums: false,
            ..BaseBackupOptions::default()
        };
        take(&mut session, &options).await.unwrap();
    }
}

#[tokio::test]
async fn an_abandoned_backup_ends_on_the_server_and_its_session_is_of_no_more_use() {
    let cluster = Cluster::new();
    let mut session = session(&cluster).await;
    let mut backup = session.base_backup(&BaseBackupOptions::default()).await.unwrap();
    assert!(matches!(
        backup.next().await.unwrap(),
        Some(BackupEvent::Started { .. })
    ));
    drop(backup);
    assert!(matches!(
        session.identify_system().await,
        Err(ReplicationError::Abandoned { .. })
    ));
    drop(session);
    cluster.wait_until("select count(*) = 0 from pg_stat_replication");
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_is_told_as_a_lost_connection() {
    let mut cluster = Cluster::new();
    cluster.sql("create table t as select repeat('x', 500) from generate_series(1, 100000)");
    let mut session = session(&cluster).await;
    let options = BaseBackupOptions {
        max_rate: Some(1024),
        ..BaseBackupOptions::default()
    };
    let mut backup = session.base_backup(&options).await.unwrap();
    assert!(matches!(
        backup.next().await.unwrap(),
        Some(BackupEvent::Started { .. })
    ));
    cluster.kill9();
    let error = loop {
        match backup.next().await {
            Ok(event) => assert!(event.is_some(), "a backup that was cut off counts as complete"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReplicationError::Lost { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Unavailable);
}

#[tokio::test]
async fn timelines_slots_and_settings_are_told() {
    for major in Major::all() {
        let mut cluster = Cluster::builder(major).initdb_args(["--wal-segsize=64"]).build();
        let mut session_before = session(&cluster).await;
        assert_eq!(session_before.wal_segment_size().await.unwrap().bytes(), 64 << 20);
        assert_eq!(session_before.timeline_history(Timeline::FIRST).await.unwrap(), None);
        let error = session_before.show("no_such_setting").await.unwrap_err();
        assert!(error.server_error().unwrap().is(SqlState::UNDEFINED_OBJECT));

        let slot = SlotName::new("kept").unwrap();
        session_before.create_physical_slot(&slot, false, true).await.unwrap();
        let error = session_before
            .create_physical_slot(&slot, false, true)
            .await
            .unwrap_err();
        assert!(error.server_error().unwrap().is(SqlState::DUPLICATE_OBJECT));
        match session_before.read_slot(&slot).await {
            Ok(found) => assert!(found.unwrap().restart_lsn.is_some()),
            Err(error) => assert!(
                matches!(error, ReplicationError::Version { .. }) && major.number() < 15,
                "{error:?}"
            ),
        }
        session_before.drop_slot(&slot).await.unwrap();
        drop(session_before);

        let mut standby = super::standby_of(&cluster);
        cluster.stop(crate::support::cluster::Stop::Fast);
        standby.promote();
        let mut session = session(&standby).await;
        let second = Timeline::new(2).unwrap();
        let history = session.timeline_history(second).await.unwrap().unwrap();
        let file = fs::read(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
        assert_eq!(history, file);
    }
}
