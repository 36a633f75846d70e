//! One contract, which every store keeps: a folder, a bucket of a real S3 server, memory behind the
//! wrapper that injects faults.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use pgp_pitr::disk::Created;
use pgp_pitr::env::Env;
use pgp_pitr::error::{Class, Explain, Failure};
use pgp_pitr::ops;
use pgp_pitr::repo::{RepoError, Repository};
use pgp_pitr::store::{self, Name, RepoUrl, Retry, S3Settings, Store};

use crate::support::faulty::FaultyStore;
use crate::support::s3::{BUCKET, S3Server};

/// Larger than anything stored here.
const LIMIT: u64 = 1 << 20;

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    keeps_the_contract(&at(&folder.path().display().to_string(), &env(&[]))).await;
}

#[tokio::test]
async fn a_bucket_keeps_the_contract() {
    let s3 = S3Server::start();
    keeps_the_contract(&at(&s3.url("contract"), &s3_env(&s3, &[]))).await;
    // And without a prefix: the whole bucket.
    s3.make_bucket("whole");
    keeps_the_contract(&at("s3://whole", &s3_env(&s3, &[]))).await;
}

#[tokio::test]
async fn memory_behind_an_unbroken_faulty_store_keeps_the_contract() {
    let memory = FaultyStore::new(Arc::new(InMemory::new()), None);
    let url: RepoUrl = "s3://memory".parse().unwrap();
    keeps_the_contract(&Store::new(Arc::new(memory), url, env(&[]))).await;
}

#[tokio::test]
async fn an_unmounted_folder_is_never_a_missing_file() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("mounted");
    let url: RepoUrl = folder.display().to_string().parse().unwrap();
    let absent = store::open(&url, &S3Settings::default(), &env(&[])).err().unwrap();
    assert_eq!(absent.class(), Class::Unavailable);
    assert!(
        Failure::from(absent)
            .one_line()
            .starts_with(&format!("no repository at {}", folder.display()))
    );

    // There when it was opened, and gone since; then there again, and empty, as a mount point is.
    std::fs::create_dir(&folder).unwrap();
    let store = at(&folder.display().to_string(), &env(&[]));
    Repository::init(&store).await.unwrap();
    std::fs::rename(&folder, parent.path().join("elsewhere")).unwrap();
    assert_eq!(no_repository(&store).await.class(), Class::Unavailable);
    std::fs::create_dir(&folder).unwrap();
    let error = no_repository(&store).await;
    assert_eq!(error.class(), Class::Unavailable);
    assert!(error.hint().unwrap().contains("mounted?"), "{error:?}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "something was written");
}

#[tokio::test]
async fn a_missing_bucket_a_wrong_key_and_a_dead_server_are_never_a_missing_file() {
    let mut s3 = S3Server::start();
    let good = at(&s3.url("r"), &s3_env(&s3, &[]));
    Repository::init(&good).await.unwrap();

    let bucket = at("s3://no-such-bucket/r", &s3_env(&s3, &[]));
    assert_eq!(no_repository(&bucket).await.class(), Class::Unavailable);
    let created = bucket.create(&Name::from("x"), Bytes::new().into()).await;
    assert_eq!(created.unwrap_err().class(), Class::Unavailable);

    let wrong = at(&s3.url("r"), &s3_env(&s3, &[("AWS_SECRET_ACCESS_KEY", "not-the-one")]));
    let error = no_repository(&wrong).await;
    assert_eq!(error.class(), Class::Unavailable, "{error:?}");
    assert!(error.hint().unwrap().contains("AWS_ACCESS_KEY_ID"), "{error:?}");
    let text = error.one_line();
    assert!(text.contains("SignatureDoesNotMatch") && text.len() < 500, "{text}");
    let all = format!("{text} {:?}", error.causes());
    assert!(
        !all.contains("not-the-one") && !all.contains("pgp-test-secret"),
        "{all}"
    );
    let name = Name::from("x");
    assert_eq!(wrong.get(&name, LIMIT).await.unwrap_err().class(), Class::Unavailable);
    assert_eq!(wrong.head(&name).await.unwrap_err().class(), Class::Unavailable);
    let created = wrong.create(&name, Bytes::new().into()).await;
    assert_eq!(created.unwrap_err().class(), Class::Unavailable);
    assert!(wrong.list(&name).try_collect::<Vec<_>>().await.is_err());
    let nothing = |_: &Name, _: &str, _: u64| None::<()>;
    assert!(wrong.walk(&name, nothing).try_collect::<Vec<_>>().await.is_err());
    // For a key that nobody has, this server answers as for a missing bucket: only the marker tells.
    let nobody = at(&s3.url("r"), &s3_env(&s3, &[("AWS_ACCESS_KEY_ID", "nobody")]));
    assert_eq!(no_repository(&nobody).await.class(), Class::Unavailable);

    s3.kill9();
    let error = no_repository(&good).await;
    assert_eq!(error.class(), Class::Unavailable, "{error:?}");
    s3.restart();
    assert!(!s3.file_of(BUCKET, "r/x").exists());
    Repository::open(&good).await.unwrap();
}

/// Why a store has no repository. The store's own "no such object" must not come through.
async fn no_repository(store: &Store) -> Failure {
    let error = Repository::open(store).await.map(drop).unwrap_err();
    assert_ne!(error.class(), Class::NotFound);
    if let RepoError::NoRepository { url } = &error {
        assert_eq!(*url, store.url().to_string());
    }
    error.into()
}

async fn keeps_the_contract(store: &Store) {
    an_object_is_created_once(store).await;
    a_race_has_one_winner(store).await;
    what_was_created_is_read_whole_and_in_parts(store).await;
    what_is_there_is_listed(store).await;
    what_is_deleted_is_gone(store).await;
    let probed = ops::init::probe(store).await.unwrap();
    assert!(probed.reads_back && probed.refuses_twice && probed.deleted.is_ok());
    Repository::init(store).await.unwrap();
    assert_eq!(Repository::init(store).await.unwrap().0, Created::Exists);
}

async fn an_object_is_created_once(store: &Store) {
    for name in ["once", "clusters/7/wal/00000001/once.zst"].map(Name::from) {
        let first = store.create(&name, Bytes::from_static(b"first").into()).await;
        assert_eq!(first.unwrap(), Created::New);
        for again in ["first", "second", ""] {
            let again = store.create(&name, Bytes::from(again).into()).await;
            assert_eq!(again.unwrap(), Created::Exists);
        }
        assert_eq!(store.get(&name, LIMIT).await.unwrap().unwrap(), "first");
    }
}

async fn a_race_has_one_winner(store: &Store) {
    const RUNNERS: usize = 16;
    for round in 0..4 {
        let name = Name::from(format!("race/{round}"));
        let start = Arc::new(tokio::sync::Barrier::new(RUNNERS));
        let runners: Vec<_> = (0..RUNNERS)
            .map(|runner| {
                let (store, name, start) = (store.clone(), name.clone(), start.clone());
                tokio::spawn(async move {
                    // Long enough that a store which copies it in steps would mix two of them.
                    let content = Bytes::from(vec![runner as u8; 100_000]);
                    start.wait().await;
                    store.create(&name, content.into()).await.unwrap()
                })
            })
            .collect();
        let mut winners = Vec::new();
        for (runner, running) in runners.into_iter().enumerate() {
            if running.await.unwrap() == Created::New {
                winners.push(runner as u8);
            }
        }
        let [winner] = winners[..] else {
            panic!("the winners of one race: {winners:?}");
        };
        let content = store.get(&name, LIMIT).await.unwrap().unwrap();
        assert_eq!(content, vec![winner; 100_000]);
    }
}

async fn what_was_created_is_read_whole_and_in_parts(store: &Store) {
    let content: Bytes = (0..100_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
    let name = Name::from("read/content");
    store.create(&name, content.clone().into()).await.unwrap();
    assert_eq!(store.get(&name, 100_000).await.unwrap().unwrap(), content);
    let too_large = store.get(&name, 99_999).await.unwrap_err();
    assert_eq!(too_large.class(), Class::Damaged);
    for range in [0..10, 500..501, 99_990..100_000] {
        let part = store.get_range(&name, range.clone()).await.unwrap().unwrap();
        assert_eq!(part, content[range.start as usize..range.end as usize]);
    }
    for from in [100_000, 150_000] {
        let nothing = store.get_range(&name, from..200_000).await.unwrap().unwrap();
        assert!(nothing.is_empty());
    }
    let past_the_end = store.get_range(&name, 99_000..200_000).await.unwrap().unwrap();
    assert_eq!(past_the_end, content[99_000..]);
    let (size, pieces) = store.get_stream(&name).await.unwrap().unwrap();
    let streamed: Vec<Bytes> = pieces.try_collect().await.unwrap();
    assert_eq!((size, streamed.concat()), (100_000, content.to_vec()));
    assert_eq!(store.head(&name).await.unwrap().unwrap().size, 100_000);

    let empty = Name::from("read/empty");
    store.create(&empty, Bytes::new().into()).await.unwrap();
    assert_eq!(store.get(&empty, LIMIT).await.unwrap().unwrap(), "");
    assert_eq!(store.get_range(&empty, 0..100).await.unwrap().unwrap(), "");
    assert_eq!(store.head(&empty).await.unwrap().unwrap().size, 0);

    let absent = Name::from("read/absent");
    assert_eq!(store.get(&absent, LIMIT).await.unwrap(), None);
    assert_eq!(store.get_range(&absent, 0..10).await.unwrap(), None);
    assert!(store.get_stream(&absent).await.unwrap().is_none());
    assert!(store.head(&absent).await.unwrap().is_none());
}

async fn what_is_there_is_listed(store: &Store) {
    let names = ["list/a", "list/b/c", "list/b/d/e", "listed/not"];
    for name in names.map(Name::from) {
        store.create(&name, Bytes::from_static(b"12345").into()).await.unwrap();
    }
    let below = Name::from("list");
    let mut found: Vec<_> = store.list(&below).map(|entry| entry.unwrap()).collect().await;
    found.sort_by(|a, b| a.location.cmp(&b.location));
    let listed: Vec<&str> = found.iter().map(|entry| entry.location.as_ref()).collect();
    assert_eq!(listed, names[..3]);
    assert!(found.iter().all(|entry| entry.size == 5));
    let whole = |folder: &Name, object: &str, size: u64| Some((folder.clone().join(object), size));
    let walked: Vec<Vec<(Name, u64)>> = store.walk(&below, whole).try_collect().await.unwrap();
    assert_eq!(walked.len(), 3, "folder by folder");
    let mut walked = walked.concat();
    walked.sort();
    assert_eq!(
        walked,
        names[..3].iter().map(|name| (Name::from(*name), 5)).collect::<Vec<_>>()
    );
    let some = |_: &Name, object: &str, _: u64| (object == "c").then_some(());
    assert_eq!(store.walk(&below, some).try_collect::<Vec<_>>().await.unwrap(), [[()]]);
    let (folders, objects) = store.list_level(&below).await.unwrap();
    assert_eq!(folders, [Name::from("list/b")]);
    assert_eq!(objects.len(), 1);
    assert_eq!(objects[0].location, Name::from("list/a"));
    let nothing: Vec<_> = store.list(&Name::from("nothing")).collect().await;
    assert!(nothing.is_empty());
    let nothing: Vec<_> = store.walk(&Name::from("nothing"), whole).collect().await;
    assert!(nothing.is_empty());
    let (folders, objects) = store.list_level(&Name::from("nothing")).await.unwrap();
    assert!(folders.is_empty() && objects.is_empty());
}

async fn what_is_deleted_is_gone(store: &Store) {
    let name = Name::from("delete/it");
    store.create(&name, Bytes::from_static(b"x").into()).await.unwrap();
    store.delete(&name).await.unwrap();
    assert_eq!(store.get(&name, LIMIT).await.unwrap(), None);
    store.delete(&name).await.unwrap();
    // Its name is free again.
    let again = store.create(&name, Bytes::from_static(b"y").into()).await;
    assert_eq!(again.unwrap(), Created::New);
    assert_eq!(store.get(&name, LIMIT).await.unwrap().unwrap(), "y");
}

/// The store at `url`. What is wrong here stays wrong: it does not try for long.
fn at(url: &str, env: &Arc<Env>) -> Store {
    let s3 = S3Settings::of_environment(env);
    let store = store::open(&url.parse().unwrap(), &s3, env).unwrap();
    store.with_retry(Retry::within(Duration::from_secs(2)))
}

fn env(variables: &[(&str, &str)]) -> Arc<Env> {
    Arc::new(Env::made_up(variables, DateTime::UNIX_EPOCH, 7))
}

/// What leads to the server; `other` goes before it.
fn s3_env(s3: &S3Server, other: &[(&str, &str)]) -> Arc<Env> {
    let usual = s3.env();
    let mut variables: Vec<(&str, &str)> = usual.iter().map(|(name, value)| (*name, value.as_str())).collect();
    variables.extend(other);
    env(&variables)
}
