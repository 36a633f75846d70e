//! `salvage` over a store that breaks at each of its calls in turn: what is there is whole and begins where the WAL does.

use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use futures_util::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use pgp_pitr::env::Env;
use pgp_pitr::error::{Class, Failure};
use pgp_pitr::ops::salvage::{self, DeadServer, Survey};
use pgp_pitr::repo::{Repository, verify_wal};
use pgp_pitr::store::{Retry, Store};

use crate::support::cluster::Cluster;
use crate::support::faulty::{FaultyStore, every_call_and_fault};
use crate::support::tools::Major;

/// Shorter than the first pause: a call that breaks is not tried again.
const ONE_TRY: Retry = Retry::within(Duration::from_millis(40));

#[tokio::test]
async fn wherever_the_store_breaks_what_is_saved_goes_so_far_and_the_next_run_does_the_rest() {
    let builder = Cluster::builder(Major::usual()).initdb_args(["--wal-segsize=1"]);
    let mut primary = builder.conf("autovacuum", "off").conf("min_wal_size", "2MB").build();
    primary.sql("checkpoint; create table t as select repeat('x', 900) from generate_series(1, 3000)");
    primary.kill9();
    let dead = DeadServer::at(primary.data_dir(), None).unwrap();

    let whole = repository().await;
    let counting = Arc::new(FaultyStore::new(whole.clone(), None));
    let survey = salvaged(&open(counting.clone()), &dead).await.unwrap();
    assert!(
        survey.complete().is_ok() && survey.timelines[0].segments() >= 2,
        "{survey:?}"
    );
    let everything = objects(&whole).await;
    assert!(everything.last().is_some_and(|name| name.contains("/tail/")));
    let mut refused = 0;
    for (call, fault) in every_call_and_fault(counting.calls()) {
        let memory = repository().await;
        let store = FaultyStore::new(memory.clone(), Some((call, fault)));
        let about = store.to_string();
        if let Err(error) = salvaged(&open(Arc::new(store)).with_retry(ONE_TRY), &dead).await {
            refused += 1;
            assert_eq!(error.class(), Class::Unavailable, "{about}: {error}");
        }
        let there = objects(&memory).await;
        assert_eq!(there, everything[..there.len()], "{about}: not in the order of the WAL");
        let store = open(memory.clone());
        let repository = Repository::open(&store).await.unwrap();
        for name in there.iter().filter(|name| name.contains("/wal/")) {
            let file = name.rsplit('/').next().unwrap().strip_suffix(".zst").unwrap();
            let whole = verify_wal(&repository, survey.cluster.system, file.parse().unwrap()).await;
            assert!(whole.is_ok(), "{about}: {whole:?}");
        }
        salvaged(&store, &dead).await.unwrap();
        assert_eq!(objects(&memory).await, everything, "{about}");
        let again = salvaged(&store, &dead).await.unwrap();
        assert!(again.is_empty() && again.complete().is_ok(), "{about}");
    }
    assert!(refused > counting.calls(), "the faults were not felt");
}

async fn salvaged(store: &Store, dead: &DeadServer) -> Result<Survey, Failure> {
    let repository = Repository::open(store).await?;
    let survey = salvage::survey(&repository, dead).await?;
    salvage::store(&repository, &survey, 1, &mut |_| ()).await?;
    Ok(survey)
}

fn open(objects: Arc<dyn ObjectStore>) -> Store {
    let env = Env::made_up(&[], DateTime::UNIX_EPOCH, 7);
    Store::new(objects, "s3://memory".parse().unwrap(), Arc::new(env))
}

/// A new repository.
async fn repository() -> Arc<dyn ObjectStore> {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    Repository::init(&open(memory.clone())).await.unwrap();
    memory
}

/// What is stored of the cluster, in the order in which it must have come.
async fn objects(memory: &Arc<dyn ObjectStore>) -> Vec<String> {
    let all: Vec<_> = memory.list(None).try_collect().await.unwrap();
    let names = all.into_iter().map(|object| object.location.to_string());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("clusters/")).collect();
    let parts = ["/cluster.json", "/wal/", "/tail/"];
    let part = |name: &str| parts.iter().position(|part| name.contains(part));
    names.sort_by_key(|name| (part(name), name.clone()));
    names
}
