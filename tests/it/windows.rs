//! Windows: what `list` promises can be restored, and what it costs to know it.

use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use pgp_pitr::catalog::Catalog;
use pgp_pitr::env::Env;
use pgp_pitr::pg::{MajorVersion, SegmentNumber, SegmentSize, Timeline, WalFileName};
use pgp_pitr::repo::{ClusterInfo, Repository, names};
use pgp_pitr::store::Store;

use crate::support::faulty::FaultyStore;
use crate::support::made_up::SYSTEM;

/// One segment a minute.
const A_YEAR: u64 = 365 * 24 * 60;

#[tokio::test]
async fn a_year_of_wal_takes_one_listing_for_each_folder() {
    let size = SegmentSize::DEFAULT;
    let memory = Arc::new(InMemory::new());
    for number in 1..=A_YEAR {
        let file = WalFileName::Segment(SegmentNumber::new(number).name(Timeline::FIRST, size));
        let object = names::wal_file(SYSTEM, file);
        memory.put(&object, Bytes::new().into()).await.unwrap();
    }
    let counting = Arc::new(FaultyStore::new(memory, None));
    let objects: Arc<dyn ObjectStore> = counting.clone();
    let env = Arc::new(Env::made_up(&[], DateTime::UNIX_EPOCH, 7));
    let store = Store::new(objects, "s3://year".parse().unwrap(), env);
    let (_, repository) = Repository::init(&store).await.unwrap();
    let info = ClusterInfo {
        system: SYSTEM,
        major: MajorVersion::new(15).unwrap(),
        segment_size: size,
        wal_page_size: 8192,
    };
    let before = counting.calls();
    let catalog = Catalog::read(&repository, info).await.unwrap();
    let folders = A_YEAR.div_ceil(256);
    // And the folders of the backups, of all WAL and of the timeline.
    assert_eq!((counting.calls() - before) as u64, folders + 3);
    let wal = catalog.wal.timeline(Timeline::FIRST).unwrap();
    assert_eq!((wal.segments().len() as u64, wal.runs().len()), (A_YEAR, 1));
}
