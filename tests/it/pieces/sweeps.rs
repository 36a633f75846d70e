//! Pieces over a store that breaks at each of its calls in turn, and beside a receiver that lets pieces go.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use futures_util::FutureExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use pgp_pitr::catalog::Catalog;
use pgp_pitr::env::Env;
use pgp_pitr::error::{Class, Explain, Failure};
use pgp_pitr::ops;
use pgp_pitr::ops::fetch::Request;
use pgp_pitr::pg::{Lsn, SegmentNumber, Timeline};
use pgp_pitr::repo::tail::{self, PackedPiece, Piece, PieceSource, Tail};
use pgp_pitr::repo::{self, ClusterInfo, Form, Pushed, RepoError, Repository};
use pgp_pitr::store::{Name, Retry, Store};

use crate::support::faulty::{Fault, FaultyStore, every_call_and_fault};
use crate::support::made_up::{self, SYSTEM, Segment};
use crate::support::user::Scratch;

/// Shorter than the first pause: a call that breaks is not tried again.
const ONE_TRY: Retry = Retry::within(Duration::from_millis(40));
const SEGMENT: u64 = 1 << 20;
const START: u64 = 3 * SEGMENT;

#[tokio::test]
async fn a_piece_is_one_request_and_what_was_acknowledged_is_read_wherever_the_store_breaks() {
    let scene = Scene::new().await;
    let whole = FaultyStore::new(scene.memory.clone(), None);
    let whole = Arc::new(whole);
    let unbroken = Repository::open(&store(whole.clone())).await.unwrap();
    let before = whole.calls();
    tail::put_piece(&unbroken, scene.packed(0, 500)).await.unwrap();
    assert_eq!(whole.calls() - before, 1);
    // The marker is read first.
    for (call, fault) in every_call_and_fault(2) {
        let scene = Scene::new().await;
        let put = scene.put(Some((call, fault)), scene.packed(0, 500)).await;
        let (bytes, told) = scene.tail().await;
        assert!(bytes.is_empty() || bytes == scene.segment.bytes[..500], "torn");
        if put.is_ok() {
            assert_eq!(
                told.end,
                Lsn::new(START + 500),
                "{call} {fault:?}: acknowledged, then lost"
            );
        }
        // A receiver tries again, and that finishes the job.
        scene.put(None, scene.packed(0, 500)).await.unwrap();
        assert_eq!(scene.tail().await.0, scene.segment.bytes[..500], "{call} {fault:?}");
    }
}

#[tokio::test]
async fn other_bytes_under_a_pieces_name_are_never_acknowledged_wherever_the_store_breaks() {
    let scene = Scene::new().await;
    scene.put(None, scene.packed(0, 500)).await.unwrap();
    let other = packed(&scene.info, &[7; 500], 0);
    for (call, fault) in every_call_and_fault(3) {
        let put = scene.put(Some((call, fault)), other.clone()).await;
        assert!(put.is_err(), "{call} {fault:?}: acknowledged what is not there");
        assert_eq!(scene.tail().await.0, scene.segment.bytes[..500], "{call} {fault:?}");
    }
    let refused = scene.put(None, other).await.unwrap_err();
    assert!(matches!(refused, RepoError::PieceConflict { .. }), "{refused}");
    assert_eq!(refused.class(), Class::Failed);
}

#[tokio::test]
async fn an_outage_never_makes_pieces_look_like_the_end_of_the_wal() {
    let scene = Scene::new().await;
    scene
        .in_pieces(&[(0, 30_000), (20_000, 50_000), (50_000, 70_000)])
        .await;
    let counting = Arc::new(FaultyStore::new(scene.memory.clone(), None));
    assert_eq!(scene.fetch(counting.clone()).await.unwrap(), scene.padded(70_000));
    for (call, fault) in every_call_and_fault(counting.calls()) {
        let broken = Arc::new(FaultyStore::new(scene.memory.clone(), Some((call, fault))));
        match scene.fetch(broken).await {
            Ok(bytes) => assert_eq!(bytes, scene.padded(70_000), "{call} {fault:?}"),
            Err(error) => assert_ne!(error.class(), Class::NotFound, "{call} {fault:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_segment_that_becomes_whole_at_any_moment_is_served_and_never_shorter_than_its_pieces() {
    let cuts = [(0, 30_000), (20_000, 50_000), (50_000, 70_000)];
    let (mut whole, mut pieces) = (0, 0);
    for call in 0..20 {
        let scene = Scene::new().await;
        let names = scene.in_pieces(&cuts).await;
        let racing = scene.becoming_whole(call, names).await;
        let bytes = scene.fetch(Arc::new(racing)).await;
        let bytes = bytes.unwrap_or_else(|error| panic!("call {call}: {error}"));
        if bytes == scene.segment.bytes {
            whole += 1;
        } else {
            assert_eq!(bytes, scene.padded(70_000), "call {call}");
            pieces += 1;
        }
    }
    assert!(whole > 4 && pieces > 4, "{whole} whole, {pieces} in pieces");
}

#[tokio::test]
async fn a_segment_that_becomes_whole_while_the_catalogue_is_read_is_never_missing_from_it() {
    let (mut whole, mut pieces) = (0, 0);
    for call in 0..20 {
        let scene = Scene::new().await;
        let names = scene.in_pieces(&[(0, 30_000), (20_000, 50_000)]).await;
        let racing = scene.becoming_whole(call, names).await;
        let repository = Repository::open(&store(Arc::new(racing))).await.unwrap();
        let catalog = Catalog::read(&repository, scene.info.clone()).await.unwrap();
        let found = catalog.wal.segment(Timeline::FIRST, SegmentNumber::new(3));
        match found.map(|segment| segment.form) {
            Some(Form::Whole) => whole += 1,
            Some(Form::Pieces) => pieces += 1,
            other => panic!("call {call}: {other:?}"),
        }
    }
    assert!(whole > 4 && pieces > 4, "{whole} whole, {pieces} in pieces");
}

#[tokio::test]
async fn pieces_that_are_merged_at_any_moment_lose_nothing() {
    let cuts = [(0, 30_000), (30_000, 50_000), (50_000, 70_000)];
    for call in 0..20 {
        let scene = Scene::new().await;
        let names = scene.in_pieces(&cuts).await;
        let merged = Scene::new().await;
        let long = merged.in_pieces(&[(0, 70_000)]).await.remove(0);
        let object = merged.memory.get(&long).await.unwrap().bytes().await.unwrap();
        let memory = scene.memory.clone();
        let does = move || {
            memory
                .put(&long, object.clone().into())
                .now_or_never()
                .unwrap()
                .unwrap();
            for name in &names {
                memory.delete(name).now_or_never().unwrap().unwrap();
            }
        };
        let racing = FaultyStore::with_another(scene.memory.clone(), call, does);
        assert_eq!(
            scene.fetch(Arc::new(racing)).await.unwrap(),
            scene.padded(70_000),
            "call {call}"
        );
    }
}

#[tokio::test]
async fn a_whole_segment_costs_no_more_requests_for_pieces_beside_it() {
    let scene = Scene::new().await;
    scene.in_pieces(&[(0, 70_000)]).await;
    let (name, object) = scene.archived().await;
    scene.memory.put(&name, object.into()).await.unwrap();
    let counting = Arc::new(FaultyStore::new(scene.memory.clone(), None));
    assert_eq!(scene.fetch(counting.clone()).await.unwrap(), scene.segment.bytes);
    assert_eq!(counting.calls(), 1);
}

#[tokio::test]
async fn a_store_that_refuses_deletes_keeps_the_pieces_and_says_so() {
    let scene = Scene::new().await;
    scene.in_pieces(&[(0, 100), (100, 200)]).await;
    let unbroken = scene.repository(None).await.unwrap();
    let pieces = tail::pieces(&unbroken, SYSTEM, Timeline::FIRST).await.unwrap();
    let broken = scene.repository(Some((1, Fault::Refused))).await.unwrap();
    let discarded = tail::discard(&broken, SYSTEM, &pieces).await;
    assert_eq!(discarded.gone, 0);
    assert!(discarded.refused.is_some());
    assert_eq!(scene.tail().await.1.end, Lsn::new(START + 200));
}

/// A repository that knows of a cluster, and a segment of that.
struct Scene {
    memory: Arc<InMemory>,
    segment: Segment,
    info: ClusterInfo,
}

impl Scene {
    async fn new() -> Self {
        let memory = Arc::new(InMemory::new());
        let unbroken = store(memory.clone());
        Repository::init(&unbroken).await.unwrap();
        // Another segment makes the cluster known.
        let folder = Scratch::new();
        let other = made_up::segment(2, 1).put_into(folder.path());
        ops::archive::archive(&unbroken, &other, folder.path(), 1)
            .await
            .unwrap();
        let info = ClusterInfo::read(&unbroken, SYSTEM).await.unwrap().unwrap();
        let segment = made_up::segment(3, 1);
        Self { memory, segment, info }
    }

    /// The segment's bytes between two places.
    fn packed(&self, from: usize, to: usize) -> PackedPiece {
        packed(&self.info, &self.segment.bytes[from..to], from as u64)
    }

    async fn repository(&self, broken: Option<(usize, Fault)>) -> Result<Repository, RepoError> {
        let store = store(Arc::new(FaultyStore::new(self.memory.clone(), broken)));
        Repository::open(&store).await
    }

    async fn put(&self, broken: Option<(usize, Fault)>, piece: PackedPiece) -> Result<Pushed, RepoError> {
        tail::put_piece(&self.repository(broken).await?, piece).await
    }

    /// Stores pieces; answers their objects.
    async fn in_pieces(&self, cuts: &[(usize, usize)]) -> Vec<Name> {
        let mut names = Vec::new();
        for (from, to) in cuts {
            let packed = self.packed(*from, *to);
            let Piece { timeline, from, to, .. } = *packed.piece();
            names.push(repo::names::piece(SYSTEM, timeline, from, to));
            self.put(None, packed).await.unwrap();
        }
        names
    }

    async fn tail(&self) -> (Vec<u8>, Tail) {
        let mut bytes = Vec::new();
        let repository = self.repository(None).await.unwrap();
        let told = tail::tail(
            &repository,
            &self.info,
            Timeline::FIRST,
            SegmentNumber::new(3),
            &mut bytes,
        )
        .await;
        (bytes, told.unwrap())
    }

    /// The object of the whole segment.
    async fn archived(&self) -> (Name, Bytes) {
        let elsewhere = Arc::new(InMemory::new());
        let unbroken = store(elsewhere.clone());
        Repository::init(&unbroken).await.unwrap();
        let folder = Scratch::new();
        let path = self.segment.put_into(folder.path());
        ops::archive::archive(&unbroken, &path, folder.path(), 1).await.unwrap();
        let name = repo::names::wal_file(SYSTEM, self.segment.name.parse().unwrap());
        let object = elsewhere.get(&name).await.unwrap().bytes().await.unwrap();
        (name, object)
    }

    /// The scene's store, in which the segment becomes whole just before a call, and its pieces go.
    async fn becoming_whole(&self, call: usize, pieces: Vec<Name>) -> FaultyStore {
        let (name, object) = self.archived().await;
        let memory = self.memory.clone();
        let does = move || {
            let put = memory.put(&name, object.clone().into()).now_or_never();
            put.unwrap().unwrap();
            for name in &pieces {
                memory.delete(name).now_or_never().unwrap().unwrap();
            }
        };
        FaultyStore::with_another(self.memory.clone(), call, does)
    }

    /// As `pgp-restore`, which tries once.
    async fn fetch(&self, objects: Arc<dyn ObjectStore>) -> Result<Vec<u8>, Failure> {
        let folder = Scratch::new();
        let path = folder.join("RECOVERYXLOG");
        let request = Request {
            file: self.segment.name.parse().unwrap(),
            path: &path,
            data_directory: folder.path(),
            cluster: Some(SYSTEM),
            // Shorter than the first pause.
            retry_for: Duration::from_millis(90),
        };
        let store = store(objects);
        ops::fetch::fetch(|| Ok(store.clone()), &request, &Arc::new(env()), |_| ()).await?;
        Ok(fs::read(path).unwrap())
    }

    /// The segment's first bytes, in full size.
    fn padded(&self, bytes: usize) -> Vec<u8> {
        let mut padded = self.segment.bytes.clone();
        padded[bytes..].fill(0);
        padded
    }
}

fn packed(info: &ClusterInfo, content: &[u8], offset: u64) -> PackedPiece {
    let source = PieceSource {
        cluster: info,
        timeline: Timeline::FIRST,
        from: Lsn::new(START + offset),
        content: &[Bytes::copy_from_slice(content)],
    };
    tail::pack_piece(&source, 3, DateTime::UNIX_EPOCH).unwrap()
}

fn store(objects: Arc<dyn ObjectStore>) -> Store {
    Store::new(objects, "s3://memory".parse().unwrap(), Arc::new(env())).with_retry(ONE_TRY)
}

fn env() -> Env {
    Env::made_up(&[], DateTime::UNIX_EPOCH, 7)
}
