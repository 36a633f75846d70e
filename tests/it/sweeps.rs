//! Every path that acknowledges, over a store that breaks at each of its calls in turn, in every way.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use pgp_pitr::disk::Created;
use pgp_pitr::env::Env;
use pgp_pitr::error::{Class, Failure};
use pgp_pitr::ops;
use pgp_pitr::ops::fetch::Request;
use pgp_pitr::pg::WalFileName;
use pgp_pitr::repo::backup::{self, BackupRecord};
use pgp_pitr::repo::{self, Pushed, RepoError, Repository};
use pgp_pitr::store::{Retry, Store};

use crate::support::faulty::{Fault, FaultyStore, every_call_and_fault};
use crate::support::made_up::{self, SYSTEM, Segment};
use crate::support::user::Scratch;

/// Shorter than the first pause: a call that breaks is not tried again.
const ONE_TRY: Retry = Retry::within(Duration::from_millis(40));
const TRY_AGAIN: Retry = Retry::within(Duration::from_secs(30));

#[tokio::test]
async fn what_was_acknowledged_can_be_read_wherever_the_store_breaks() {
    let scratch = Scratch::new();
    let segment = made_up::segment(3, 1);
    let path = segment.put_into(scratch.path());
    let (whole, calls) = breaking(&repository().await, None, ONE_TRY);
    archive(&whole, &path).await.unwrap();
    let mut refused = 0;
    for (call, fault) in every_call_and_fault(calls.calls()) {
        let memory = repository().await;
        let (store, about) = breaking(&memory, Some((call, fault)), ONE_TRY);
        let acknowledged = archive(&store, &path).await;
        let found = stored(&memory, &segment).await;
        assert!(
            found.as_ref().is_none_or(|found| *found == segment.bytes),
            "{about}: torn"
        );
        match acknowledged {
            Ok(_) => assert!(found.is_some(), "{about}: acknowledged, then lost"),
            Err(error) => {
                refused += 1;
                assert_eq!(error.class(), Class::Unavailable, "{about}: {error}");
            }
        }
        // The server calls again, and that finishes the job.
        archive(&unbroken(&memory), &path).await.unwrap();
        assert_eq!(
            stored(&memory, &segment).await.as_ref(),
            Some(&segment.bytes),
            "{about}"
        );
    }
    assert!(refused > calls.calls(), "the faults were not felt");
}

#[tokio::test]
async fn a_call_that_breaks_once_is_tried_again() {
    let scratch = Scratch::new();
    let segment = made_up::segment(3, 1);
    let path = segment.put_into(scratch.path());
    for call in 0..5 {
        for fault in [Fault::Refused, Fault::AnswerLost] {
            let memory = repository().await;
            let (store, about) = breaking(&memory, Some((call, fault)), TRY_AGAIN);
            let pushed = archive(&store, &path).await;
            assert!(pushed.is_ok(), "{about}: {pushed:?}");
            assert_eq!(
                stored(&memory, &segment).await.as_ref(),
                Some(&segment.bytes),
                "{about}"
            );
        }
    }
}

#[tokio::test]
async fn other_content_under_the_same_name_is_refused_wherever_the_store_breaks() {
    let scratch = Scratch::new();
    let (first, second) = (made_up::segment(3, 1), made_up::segment(3, 2));
    let path = second.put_into(scratch.path());
    let memory = archived(&first).await;
    let (store, calls) = breaking(&memory, None, ONE_TRY);
    assert_eq!(archive(&store, &path).await.unwrap_err().class(), Class::Failed);
    for (call, fault) in every_call_and_fault(calls.calls()) {
        let (store, about) = breaking(&memory, Some((call, fault)), ONE_TRY);
        let answer = archive(&store, &path).await;
        assert!(answer.is_err(), "{about}: acknowledged what is not there");
        assert_eq!(stored(&memory, &first).await.as_ref(), Some(&first.bytes), "{about}");
    }
}

#[tokio::test]
async fn an_outage_never_looks_like_the_end_of_the_wal() {
    let (there, absent) = (made_up::segment(3, 1), made_up::segment(4, 1));
    let memory = archived(&there).await;
    let folder = Scratch::new();
    let path = folder.join("RECOVERYXLOG");
    for segment in [&there, &absent] {
        let (store, calls) = breaking(&memory, None, ONE_TRY);
        let unbroken = fetch(&store, segment, &path).await;
        assert_eq!(unbroken.is_ok(), segment == &there, "{unbroken:?}");
        for (call, fault) in every_call_and_fault(calls.calls()) {
            let _ = fs::remove_file(&path);
            let (store, about) = breaking(&memory, Some((call, fault)), ONE_TRY);
            match fetch(&store, segment, &path).await {
                Ok(()) => assert_eq!(fs::read(&path).unwrap(), there.bytes, "{about}"),
                Err(error) => {
                    assert_ne!(error.class(), Class::NotFound, "{about}: {error}");
                    assert!(!path.exists(), "{about}: something was left");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_interrupted_backup_is_invisible_and_the_next_is_unaffected() {
    let (store, calls) = breaking(&repository().await, None, ONE_TRY);
    back_up(&store, 1).await.unwrap();
    assert!(calls.calls() > 5, "{} calls are too few", calls.calls());
    let mut invisible = 0;
    for (call, fault) in every_call_and_fault(calls.calls()) {
        let memory = repository().await;
        let (store, about) = breaking(&memory, Some((call, fault)), ONE_TRY);
        let taken = back_up(&store, 1).await;
        let unbroken = Repository::open(&unbroken(&memory)).await.unwrap();
        let seen = visible(&unbroken).await;
        match (&taken, seen.as_slice()) {
            (Ok(record), [seen]) => assert_eq!(record, seen, "{about}"),
            (Ok(_), _) => panic!("{about}: acknowledged, then lost"),
            // The answer to the very last call was lost: whole all the same.
            (Err(_), [_]) => assert_eq!((call, fault), (calls.calls() - 1, Fault::AnswerLost)),
            (Err(_), []) => invisible += 1,
            (Err(_), more) => panic!("{about}: {} backups of one", more.len()),
        }
        for record in seen {
            assert_whole(&unbroken, record, &about.to_string()).await;
        }
        let next = made_up::back_up(&unbroken, 2).await.unwrap();
        assert!(visible(&unbroken).await.contains(&next), "{about}");
        assert_whole(&unbroken, next, &about.to_string()).await;
    }
    assert!(invisible > calls.calls(), "the faults were not felt");
}

#[tokio::test]
async fn a_restore_that_broke_cannot_be_started_and_running_it_again_finishes_it() {
    let memory = repository().await;
    let record = back_up(&unbroken(&memory), 1).await.unwrap();
    let scratch = Scratch::new();
    let (store, calls) = breaking(&memory, None, ONE_TRY);
    restore(&store, &record, &scratch.join("unbroken")).await.unwrap();
    made_up::assert_restored(&scratch.join("unbroken"), "unbroken");
    let mut broke = 0;
    for (call, fault) in every_call_and_fault(calls.calls()) {
        let directory = scratch.join(format!("{call}-{fault:?}"));
        let (store, about) = breaking(&memory, Some((call, fault)), ONE_TRY);
        if let Err(error) = restore(&store, &record, &directory).await {
            broke += 1;
            assert!(
                matches!(error.class(), Class::Unavailable | Class::Damaged),
                "{about}: {error:?}"
            );
            assert!(
                !directory.join("global/pg_control").exists(),
                "{about}: it could be started"
            );
            restore(&unbroken(&memory), &record, &directory).await.unwrap();
        }
        made_up::assert_restored(&directory, &about.to_string());
        fs::remove_dir_all(&directory).unwrap();
    }
    assert!(broke > calls.calls(), "the faults were not felt");
}

/// A store over `memory` that breaks at a call, and the wrapper that counts them and tells of it.
fn breaking(memory: &Arc<dyn ObjectStore>, broken: Option<(usize, Fault)>, retry: Retry) -> (Store, Arc<FaultyStore>) {
    let faulty = Arc::new(FaultyStore::new(memory.clone(), broken));
    (store(faulty.clone()).with_retry(retry), faulty)
}

fn unbroken(memory: &Arc<dyn ObjectStore>) -> Store {
    store(memory.clone())
}

fn store(objects: Arc<dyn ObjectStore>) -> Store {
    Store::new(objects, "s3://memory".parse().unwrap(), Arc::new(env()))
}

fn env() -> Env {
    Env::made_up(&[], DateTime::UNIX_EPOCH, 7)
}

/// A new repository.
async fn repository() -> Arc<dyn ObjectStore> {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (created, _) = Repository::init(&unbroken(&memory)).await.unwrap();
    assert_eq!(created, Created::New);
    memory
}

/// A new repository that holds one segment.
async fn archived(segment: &Segment) -> Arc<dyn ObjectStore> {
    let folder = Scratch::new();
    let memory = repository().await;
    archive(&unbroken(&memory), &segment.put_into(folder.path()))
        .await
        .unwrap();
    memory
}

/// As `pgp-archive`, outside of a data directory.
async fn archive(store: &Store, path: &Path) -> Result<Pushed, Failure> {
    let stored = ops::archive::archive(store, path, path.parent().unwrap(), 1).await?;
    Ok(stored.pushed)
}

/// As `pgp-restore`, which tries once.
async fn fetch(store: &Store, segment: &Segment, path: &Path) -> Result<(), Failure> {
    let request = Request {
        file: file(segment),
        path,
        data_directory: path.parent().unwrap(),
        cluster: Some(SYSTEM),
        // Shorter than the first pause.
        retry_for: Duration::from_millis(90),
    };
    ops::fetch::fetch(|| Ok(store.clone()), &request, &Arc::new(env()), |_| ()).await
}

fn file(segment: &Segment) -> WalFileName {
    segment.name.parse().unwrap()
}

/// What the repository holds of a segment, if anything; a torn object is an error.
async fn stored(memory: &Arc<dyn ObjectStore>, segment: &Segment) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let fetched = repo::fetch(&unbroken(memory), SYSTEM, file(segment), &mut content).await;
    (fetched.unwrap() == repo::Fetched::Whole).then_some(content)
}

async fn back_up(store: &Store, number: u64) -> Result<BackupRecord, RepoError> {
    made_up::back_up(&Repository::open(store).await?, number).await
}

/// The backups that can be seen.
async fn visible(repository: &Repository) -> Vec<BackupRecord> {
    let mut visible = Vec::new();
    for id in backup::ids(repository, SYSTEM).await.unwrap() {
        visible.extend(backup::read(repository, SYSTEM, &id).await.unwrap());
    }
    visible
}

async fn assert_whole(repository: &Repository, record: BackupRecord, about: &str) {
    let scratch = Scratch::new();
    restore(repository.store(), &record, scratch.path()).await.unwrap();
    made_up::assert_restored(scratch.path(), about);
}

async fn restore(store: &Store, record: &BackupRecord, to: &Path) -> Result<(), Failure> {
    let repository = Repository::open(store).await?;
    let (plan, goal) = (made_up::plan(record.clone()), made_up::goal(to));
    ops::restore::restore(&repository, &plan, &goal, &env(), &mut |_| ()).await
}
