//! `pgp-pitr show`, on repositories made here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use chrono::DateTime;
use pgp_pitr::env::Env;
use pgp_pitr::ops::inventory::{CapturedFile, CapturedSettings, FileContent, SettingKind};
use pgp_pitr::pg::{Lsn, SystemId, Timeline};
use pgp_pitr::repo::backup::{BackupId, BackupKind, BackupRecord, BackupState, SETTINGS};
use pgp_pitr::repo::map::{FileEntry, FileKind};
use pgp_pitr::repo::{BackupWriter, Repository};
use pgp_pitr::store::{self, S3Settings, Store};

use crate::support::program::{Answer, Program};
use crate::support::user::{Scratch, ServerUser};

const ID: &str = "20261121T100000Z-1f2e3d4c";
const UNFINISHED: &str = "20261121T110000Z-1f2e3d4c";

fn record(system: u64) -> BackupRecord {
    let at = DateTime::from_timestamp_micros(1_795_255_200_000_000).unwrap();
    BackupRecord {
        id: ID.parse().unwrap(),
        system_identifier: SystemId::new(system),
        label: Some("nightly".to_owned()),
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
        from_standby: true,
        warnings: vec!["a page is odd".to_owned()],
        parts: Vec::new(),
    }
}

async fn writer(repository: &Repository, system: u64, id: &str) -> BackupWriter {
    let id: BackupId = id.parse().unwrap();
    let mut writer = BackupWriter::new(repository, SystemId::new(system), id, 3, 1);
    let entry = FileEntry {
        kind: FileKind::File,
        tablespace: 0,
        path: b"PG_VERSION".to_vec(),
        mode: 0o600,
        modified: 0,
        size: 3,
        target: Vec::new(),
    };
    writer.begin(entry).await.unwrap();
    writer.push(b"15\n").await.unwrap();
    writer.end().await.unwrap();
    writer
}

/// A repository of two clusters: the second has a whole backup, and one that was interrupted.
fn repository(folder: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let url = folder.to_str().unwrap().parse().unwrap();
        let store: Store = store::open(&url, &S3Settings::default(), &Arc::new(Env::of_process())).unwrap();
        let (_, repository) = Repository::init(&store).await.unwrap();
        writer(&repository, 1, UNFINISHED).await.flush().await.unwrap();
        writer(&repository, 2, UNFINISHED)
            .await
            .put_part("odd", "x".into())
            .await
            .unwrap();
        let mut writer = writer(&repository, 2, ID).await;
        let files = vec![CapturedFile {
            path: "/etc/pg/pg_hba.conf".to_owned(),
            setting: SettingKind::HbaFile,
            content: FileContent::new(b"local all all trust\n".to_vec()),
        }];
        let settings = CapturedSettings::new(files, Vec::new()).to_json().unwrap();
        writer.put_part(SETTINGS, settings.into()).await.unwrap();
        writer.commit(record(2)).await.unwrap();
    });
    ServerUser::get().give(folder);
}

fn show(folder: &Path, arguments: &[&str]) -> Answer {
    let repo = ["show", "--repo", folder.to_str().unwrap()];
    Program::Pitr.run(repo.iter().chain(arguments))
}

#[test]
fn a_backup_is_found_in_any_cluster_and_shown_whole() {
    let scratch = Scratch::new();
    let folder = scratch.folder("repo");
    repository(&folder);
    let told = show(&folder, &[ID, "--json"]).with_code(0).json();
    assert_eq!(
        (told["id"].as_str(), told["system_identifier"].as_str()),
        (Some(ID), Some("2"))
    );
    assert_eq!(
        (told["entries"].as_u64(), told["from_standby"].as_bool()),
        (Some(1), Some(true))
    );
    assert_eq!(told["warnings"][0], "a page is odd");
    assert_eq!(told["settings_files"][0]["path"], "/etc/pg/pg_hba.conf");
    let parts: Vec<&str> = told["parts"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|part| part["name"].as_str())
        .collect();
    assert!(
        parts.contains(&"settings.json") && parts.contains(&"files-00000.zst"),
        "{parts:?}"
    );
    let text = show(&folder, &[ID]).with_code(0).stdout;
    assert!(text.starts_with(&format!("backup {ID} \"nightly\"\n")), "{text}");
}

#[test]
fn captured_files_are_written_below_a_folder_and_never_over_others() {
    let scratch = Scratch::new();
    let folder = scratch.folder("repo");
    repository(&folder);
    let out = scratch.join("out");
    let arguments = [ID, "--json", "--settings-to", out.to_str().unwrap()];
    let told = show(&folder, &arguments).with_code(0).json();
    let written = out.join("etc/pg/pg_hba.conf");
    assert_eq!(told["settings_written"][0], written.to_str().unwrap());
    assert_eq!(fs::read_to_string(&written).unwrap(), "local all all trust\n");
    assert_eq!(fs::metadata(&written).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&written, "mine").unwrap();
    let refused = show(&folder, &arguments).with_code(2);
    assert!(
        refused.stderr.contains("pg_hba.conf is there already"),
        "{}",
        refused.stderr
    );
    assert_eq!(fs::read_to_string(&written).unwrap(), "mine");
}

#[test]
fn what_is_no_backup_is_told_with_the_way_to_those_that_are() {
    let scratch = Scratch::new();
    let folder = scratch.folder("repo");
    repository(&folder);
    let unknown = show(&folder, &["20200101T000000Z-00000000"]).with_code(1);
    assert!(unknown.stderr.contains("there is no backup"), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("`pgp-pitr list`"), "{}", unknown.stderr);
    let unfinished = show(&folder, &[UNFINISHED]).with_code(1);
    assert!(unfinished.stderr.contains("not finished"), "{}", unfinished.stderr);
    for odd in ["../x", "", "a b"] {
        let answer = show(&folder, &[odd]).with_code(2);
        assert!(answer.stderr.contains("is not a backup's id"), "{}", answer.stderr);
        assert!(answer.stdout.is_empty());
    }
    let nowhere = show(&scratch.folder("empty"), &[ID]).with_code(5);
    assert!(nowhere.stderr.contains("pgp-pitr init"), "{}", nowhere.stderr);
}

#[test]
fn damaged_settings_hide_nothing_else_but_are_not_written() {
    let scratch = Scratch::new();
    let folder = scratch.folder("repo");
    repository(&folder);
    fs::write(folder.join(format!("clusters/2/backups/{ID}/settings.json")), "{}").unwrap();
    let shown = show(&folder, &[ID]).with_code(0);
    assert!(shown.stderr.contains("settings.json is damaged"), "{}", shown.stderr);
    let out = scratch.join("out");
    show(&folder, &[ID, "--settings-to", out.to_str().unwrap()]).with_code(4);
    assert!(!out.exists());
}
