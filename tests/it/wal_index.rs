//! The index behind each archived segment: small, sound, made where it lacks, and never in the way of archiving.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pgp_pitr::env::Env;
use pgp_pitr::ops::archive::archive;
use pgp_pitr::pg::{SegmentSize, SystemId, WalFileName};
use pgp_pitr::repo::{self, ClusterInfo, RepoError, Repository, SegmentFile, StoredIndex};
use pgp_pitr::store::{self, Store};
use pgp_pitr::wal::EventKind;

use crate::support::cluster::Cluster;
use crate::support::tools::Major;
use crate::support::user::Scratch;

/// A repository in a folder, and one archived segment of a real server in it.
struct Archived {
    scratch: Scratch,
    repository: Repository,
    cluster: ClusterInfo,
    file: WalFileName,
    object: PathBuf,
    content: Vec<u8>,
}

impl Archived {
    /// `change` is what happens to the segment before it is archived.
    async fn new(change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let server = Cluster::builder(Major::usual()).build();
        server.sql(
            "create table t as select n, md5(n::text) from generate_series(1, 5000) as n;
             select pg_create_restore_point('here')",
        );
        let name = server.sql("select pg_walfile_name(pg_current_wal_lsn())");
        server.sql("delete from t where n <= 3000");
        server.sql("select pg_switch_wal()");
        let mut content = fs::read(server.data_dir().join("pg_wal").join(&name)).unwrap();
        change(&mut content);
        let scratch = Scratch::new();
        let (path, folder) = (scratch.join(&name), scratch.join("repo"));
        fs::write(&path, &content).unwrap();
        fs::create_dir(&folder).unwrap();
        let store = open(&folder);
        let (_, repository) = Repository::init(&store).await.unwrap();
        archive(&store, &path, Path::new("/"), 1).await.unwrap();
        let system: SystemId = ClusterInfo::systems(&repository).await.unwrap()[0];
        let cluster = ClusterInfo::read(&store, system).await.unwrap().unwrap();
        let file: WalFileName = name.parse().unwrap();
        let object = store.file(&repo::names::wal_file(system, file)).unwrap();
        Self {
            scratch,
            repository,
            cluster,
            file,
            object,
            content,
        }
    }

    async fn index(&self) -> Result<StoredIndex, RepoError> {
        let bytes = fs::metadata(&self.object).unwrap().len();
        let index = repo::read_index(
            &self.repository,
            &self.cluster,
            SegmentFile::of(self.file).unwrap(),
            bytes,
        )
        .await?;
        Ok(index.expect("a major that can be read"))
    }

    /// Where the frame begins that is last in the object, and the object.
    fn frame(&self) -> (usize, Vec<u8>) {
        let object = fs::read(&self.object).unwrap();
        let end = &object[object.len() - 120..];
        let payload = u64::from_le_bytes(end[8..16].try_into().unwrap()) as usize;
        (object.len() - payload - 8, object)
    }

    fn kept(&self) -> bool {
        self.scratch
            .join("repo")
            .join(format!("clusters/{}/index", self.cluster.system))
            .exists()
    }
}

fn open(folder: &Path) -> Store {
    let url = folder.to_str().unwrap().parse().unwrap();
    store::open(&url, &store::S3Settings::default(), &Arc::new(Env::of_process())).unwrap()
}

#[tokio::test]
async fn an_index_tells_what_happened_and_zstd_passes_over_it() {
    let archived = Archived::new(|_| {}).await;
    let index = archived.index().await.unwrap();
    let events = index.events(&archived.repository, &archived.cluster).await.unwrap();
    assert!(
        events
            .iter()
            .any(|event| matches!(&event.kind, EventKind::RestorePoint { name, .. } if name == b"here"))
    );
    assert!(events.iter().any(|event| event.kind == EventKind::Switch));
    let deleted = |part: &pgp_pitr::wal::index::Part| part.relations.iter().any(|(_, rows)| rows.deletes == 3000);
    assert!(index.core.parts.iter().any(deleted), "{:?}", index.core.parts);
    assert!(
        !index
            .touched(&archived.repository, &archived.cluster)
            .await
            .unwrap()
            .files
            .is_empty()
    );
    let unpacked = Command::new("zstd").arg("-dc").arg(&archived.object).output().unwrap();
    assert!(unpacked.stdout == archived.content, "zstd gives another segment back");
    let (at, object) = archived.frame();
    assert!(
        object.len() - at <= 167_772,
        "the index takes {} bytes",
        object.len() - at
    );
    assert!(!archived.kept(), "an index was made that was there");
}

#[tokio::test]
async fn a_segment_that_came_without_an_index_is_indexed_once_by_its_first_reader() {
    let archived = Archived::new(|_| {}).await;
    let with = archived.index().await.unwrap();
    let (at, object) = archived.frame();
    // An object as an earlier version made it; its identity tells the length of what was behind it then.
    fs::write(&archived.object, &object[..at]).unwrap();
    let made = archived.index().await.unwrap();
    assert_eq!(made.core, with.core);
    assert!(archived.kept());
    // From now on the segment is not read any more.
    fs::write(&archived.object, vec![7; at]).unwrap();
    let kept = archived.index().await.unwrap();
    assert_eq!(kept.core, with.core);
    let events =
        |index: StoredIndex| async move { index.events(&archived.repository, &archived.cluster).await.unwrap() };
    assert!(!events(kept).await.is_empty());
}

#[tokio::test]
async fn a_damaged_index_is_never_believed_and_made_anew() {
    let archived = Archived::new(|_| {}).await;
    let sound = archived.index().await.unwrap();
    let events = sound.events(&archived.repository, &archived.cluster).await.unwrap();
    let (at, object) = archived.frame();
    for step in 0..60 {
        let mut changed = object.clone();
        let byte = at + (step * 7919) % (object.len() - at);
        changed[byte] ^= 1 << (step % 8);
        fs::write(&archived.object, changed).unwrap();
        let index = archived.index().await.unwrap();
        assert_eq!(index.core, sound.core);
        assert_eq!(
            index.events(&archived.repository, &archived.cluster).await.unwrap(),
            events
        );
    }
    // With the segment itself damaged there is nothing to make it from.
    fs::remove_dir_all(
        archived
            .scratch
            .join("repo")
            .join(format!("clusters/{}/index", archived.cluster.system)),
    )
    .unwrap();
    let mut changed = object[..at].to_vec();
    changed[at / 2..at / 2 + 64].iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(&archived.object, changed).unwrap();
    assert!(matches!(archived.index().await, Err(RepoError::Damaged { .. })));
}

#[tokio::test]
async fn wal_that_cannot_be_read_is_archived_with_a_note() {
    // A record's checksum fails in the middle; or the page magic is another one from there on.
    for at in [60_000, 8192] {
        let archived = Archived::new(|content| content[at..at + 2].iter_mut().for_each(|byte| *byte ^= 0x55)).await;
        let index = archived.index().await.unwrap();
        let broken = index.core.broken.expect("the damage is told");
        assert!(!broken.unwritten);
        let doubts = repo::doubts(&archived.repository, archived.cluster.system)
            .await
            .unwrap();
        assert_eq!(doubts.len(), 1);
        assert_eq!((doubts[0].file, doubts[0].at), (archived.file, Some(broken.at)));
        let unpacked = Command::new("zstd").arg("-dc").arg(&archived.object).output().unwrap();
        assert!(unpacked.stdout == archived.content, "it was not archived as it was");
    }
}

#[test]
fn the_archiver_is_told_loudly_of_wal_that_cannot_be_read() {
    let server = Cluster::builder(Major::usual()).build();
    server.sql("create table t as select n from generate_series(1, 5000) as n");
    let name = server.sql("select pg_walfile_name(pg_current_wal_lsn())");
    server.sql("select pg_switch_wal()");
    let scratch = Scratch::new();
    let (path, repo) = (scratch.join(&name), scratch.join("repo"));
    let mut content = fs::read(server.data_dir().join("pg_wal").join(&name)).unwrap();
    assert_eq!(content.len() as u64, SegmentSize::DEFAULT.bytes());
    content[60_000] ^= 1;
    fs::write(&path, content).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        Command::new(program)
            .args(arguments)
            .arg("--repo")
            .arg(&repo)
            .current_dir(scratch.path())
            .output()
            .unwrap()
    };
    assert!(run(env!("CARGO_BIN_EXE_pgp-pitr"), &["init"]).status.success());
    let answer = run(env!("CARGO_BIN_EXE_pgp-archive"), &[path.to_str().unwrap()]);
    let stderr = String::from_utf8(answer.stderr).unwrap();
    assert!(answer.status.success(), "{stderr}");
    assert!(
        stderr.contains(&name) && stderr.contains("can be read only up to"),
        "{stderr}"
    );
    // The server asks again after a crash: the same file is there, and that is success.
    assert!(
        run(env!("CARGO_BIN_EXE_pgp-archive"), &[path.to_str().unwrap()])
            .status
            .success()
    );
}
