//! Damaged WAL on its way into a repository, and damaged objects on their way out.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use pgp_pitr::env::Env;
use pgp_pitr::error::{Class, Explain};
use pgp_pitr::ops::archive::archive;
use pgp_pitr::pg::{SegmentNumber, WalFileName};
use pgp_pitr::repo::{self, ClusterInfo, Fetched, Repository, SegmentFile, StoredIndex};
use pgp_pitr::store::Store;

use super::damage::{self, Damage};
use super::wal::{PAGE, Wal, Window};
use crate::support::chance::Chance;

/// One damaged segment in a repository of its own.
struct Object {
    objects: Arc<dyn ObjectStore>,
    repository: Repository,
    cluster: ClusterInfo,
    file: WalFileName,
}

/// Archives a damaged segment and reads it back; then does damage to the object it is in.
pub async fn archive_and_read(wal: &Wal, undamaged: &Window, window: &Window, damage: &Damage, chance: &Chance) {
    let Some(object) = Object::archived(wal, undamaged, window).await else {
        return;
    };
    let mut content = Vec::new();
    let store = object.repository.store();
    let fetched = repo::fetch(store, object.cluster.system, object.file, &mut content).await;
    assert_eq!(fetched.unwrap(), Fetched::Whole);
    assert!(content == window.bytes, "it was not archived as it was");
    let sound = object.index().await.unwrap().expect("a major that can be read");
    let told = sound.events(&object.repository, &object.cluster).await.unwrap();
    for event in &told {
        let written = wal.has_event(event) || damage.may_tell(event.lsn);
        assert!(written, "an event that was not written: {event:?}");
    }
    let name = repo::names::wal_file(object.cluster.system, object.file);
    let whole = object.objects.get(&name).await.unwrap().bytes().await.unwrap();
    for _ in 0..10 {
        let mut changed = whole.to_vec();
        // Often the end, where the index is.
        let from = [0, changed.len().saturating_sub(4000), changed.len().saturating_sub(130)][chance.below(3)];
        damage::change(&mut changed[from..], chance);
        object.objects.put(&name, Bytes::from(changed).into()).await.unwrap();
        let mut again = Vec::new();
        match repo::fetch(store, object.cluster.system, object.file, &mut again).await {
            Ok(fetched) => assert!(
                fetched == Fetched::Whole && again == window.bytes,
                "it was passed on damaged"
            ),
            Err(error) => assert_eq!(error.class(), Class::Damaged, "{error}"),
        }
        match object.index().await {
            Ok(index) => assert_same(&object, &sound, &index.expect("a major that can be read"), &told).await,
            Err(error) => assert_eq!(error.class(), Class::Damaged, "{error}"),
        }
    }
}

/// What was read in spite of damage is what was there before it.
async fn assert_same(object: &Object, sound: &StoredIndex, index: &StoredIndex, told: &[pgp_pitr::wal::Event]) {
    assert_eq!(index.core, sound.core);
    match index.events(&object.repository, &object.cluster).await {
        Ok(events) => assert_eq!(events, told),
        Err(error) => assert_eq!(error.class(), Class::Damaged, "{error}"),
    }
    if let Ok(touched) = index.touched(&object.repository, &object.cluster).await {
        let before = sound.touched(&object.repository, &object.cluster).await;
        assert!(before.is_err() || before.is_ok_and(|before| before == touched));
    }
}

impl Object {
    /// `None` where the segment was refused, which only its first page and its length can cause.
    async fn archived(wal: &Wal, undamaged: &Window, window: &Window) -> Option<Self> {
        let size = wal.layout.segment_size();
        let name = SegmentNumber::holding(window.start, size).name(wal.timeline, size);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name.to_string());
        fs::write(&path, &window.bytes).unwrap();
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let env = Arc::new(Env::made_up(&[], DateTime::UNIX_EPOCH, 1));
        let store = Store::new(objects.clone(), "s3://memory".parse().unwrap(), env);
        let (_, repository) = Repository::init(&store).await.unwrap();
        if let Err(error) = archive(&store, &path, Path::new("/"), 1).await {
            let same_page = undamaged.bytes.get(..PAGE) == window.bytes.get(..PAGE);
            let same_length = undamaged.bytes.len() == window.bytes.len();
            assert!(!same_page || !same_length, "it was refused: {error}");
            return None;
        }
        let system = ClusterInfo::systems(&repository).await.unwrap()[0];
        let cluster = ClusterInfo::read(&store, system).await.unwrap().unwrap();
        let file = WalFileName::Segment(name);
        Some(Self {
            objects,
            repository,
            cluster,
            file,
        })
    }

    async fn index(&self) -> Result<Option<StoredIndex>, repo::RepoError> {
        let name = repo::names::wal_file(self.cluster.system, self.file);
        let bytes = self.objects.head(&name).await.unwrap().size;
        repo::read_index(
            &self.repository,
            &self.cluster,
            SegmentFile::of(self.file).unwrap(),
            bytes,
        )
        .await
    }
}
