//! Any set of pieces gives what it covers from the start on, and no byte that was not stored.

use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use proptest::prelude::*;

use super::*;
use crate::codec::Digest;
use crate::env::Env;
use crate::error::{Class, Explain};
use crate::pg::MajorVersion;
use crate::pg::SystemId;
use crate::repo::{ClusterInfo, Pushed};
use crate::repo::{RepoError, Repository, names};
use crate::store::Name;
use crate::store::Store;

const SIZE: u64 = 1 << 20;
const START: u64 = 3 * SIZE;

fn cluster() -> ClusterInfo {
    ClusterInfo {
        system: SystemId::new(7),
        major: MajorVersion::new(15).unwrap(),
        segment_size: SegmentSize::new(SIZE).unwrap(),
        wal_page_size: 8192,
    }
}

async fn repository(objects: &Arc<InMemory>) -> Repository {
    let env = Arc::new(Env::made_up(&[], DateTime::UNIX_EPOCH, 1));
    let store = Store::new(objects.clone(), "s3://bucket/here".parse().unwrap(), env);
    Repository::init(&store).await.unwrap().1
}

/// The WAL of all tests: every position has its byte.
fn content(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(|at| (at * 31 % 251) as u8 ^ (at >> 8) as u8).collect()
}

fn packed(from: u64, to: u64) -> PackedPiece {
    let whole = Bytes::from(content(from, to));
    let parts = [whole.slice(..whole.len() / 3), whole.slice(whole.len() / 3..)];
    let source = PieceSource {
        cluster: &cluster(),
        timeline: Timeline::FIRST,
        from: Lsn::new(from),
        content: &parts,
    };
    pack_piece(&source, 3, DateTime::UNIX_EPOCH).unwrap()
}

async fn read(repository: &Repository) -> (Vec<u8>, Tail) {
    let mut bytes = Vec::new();
    let number = SegmentNumber::new(3);
    let told = tail(repository, &cluster(), Timeline::FIRST, number, &mut bytes).await;
    (bytes, told.unwrap())
}

fn name(from: u64, to: u64) -> Name {
    names::piece(SystemId::new(7), Timeline::FIRST, Lsn::new(from), Lsn::new(to))
}

/// Flips a bit of a stored object.
async fn damage(objects: &InMemory, name: &Name, at: usize) {
    let mut bytes = objects.get(name).await.unwrap().bytes().await.unwrap().to_vec();
    let at = at % bytes.len();
    bytes[at] ^= 4;
    objects.put(name, bytes.into()).await.unwrap();
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(work)
}

#[tokio::test]
async fn a_piece_is_plain_zstd_behind_its_frame() {
    let objects = Arc::new(InMemory::new());
    let repository = repository(&objects).await;
    let packed = packed(START + 5, START + 9000);
    let piece = *packed.piece();
    assert_eq!(put_piece(&repository, packed).await.unwrap(), Pushed::New);
    let name = name(START + 5, START + 9000);
    let object = objects.get(&name).await.unwrap().bytes().await.unwrap();
    assert_eq!(zstd::decode_all(&object[..]).unwrap(), content(START + 5, START + 9000));
    assert_eq!(object.len() as u64, piece.stored_bytes);
    assert_eq!(
        pieces(&repository, cluster().system, Timeline::FIRST).await.unwrap(),
        [piece]
    );
}

#[tokio::test]
async fn the_same_piece_again_is_success_and_another_under_its_name_is_refused() {
    let objects = Arc::new(InMemory::new());
    let repository = repository(&objects).await;
    let (from, to) = (START, START + 300);
    assert_eq!(put_piece(&repository, packed(from, to)).await.unwrap(), Pushed::New);
    assert_eq!(put_piece(&repository, packed(from, to)).await.unwrap(), Pushed::Already);
    let other = [Bytes::from(vec![0; 300])];
    let source = PieceSource {
        cluster: &cluster(),
        timeline: Timeline::FIRST,
        from: Lsn::new(from),
        content: &other,
    };
    let other = pack_piece(&source, 3, DateTime::UNIX_EPOCH).unwrap();
    let error = put_piece(&repository, other).await.unwrap_err();
    assert_eq!(error.class(), Class::Failed);
    let text = error.to_string();
    assert!(
        text.contains("0/300000") && text.contains(name(from, to).as_ref()),
        "{text}"
    );
    assert_eq!(read(&repository).await.0, content(from, to));
}

#[test]
fn what_is_no_piece_of_one_segment_is_refused() {
    for (from, len) in [
        (START, 0),
        (START + SIZE - 1, 2),
        (START, SIZE + 1),
        (0, LARGEST_PIECE + 1),
    ] {
        let parts = [Bytes::from(vec![1; len as usize])];
        let source = PieceSource {
            cluster: &cluster(),
            timeline: Timeline::FIRST,
            from: Lsn::new(from),
            content: &parts,
        };
        let refused = pack_piece(&source, 3, DateTime::UNIX_EPOCH).unwrap_err();
        assert!(matches!(refused, RepoError::NoPiece { .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_segment_may_be_one_piece_to_its_last_byte() {
    let repository = repository(&Arc::new(InMemory::new())).await;
    put_piece(&repository, packed(START, START + SIZE)).await.unwrap();
    let (bytes, told) = read(&repository).await;
    assert_eq!(bytes, content(START, START + SIZE));
    assert_eq!(told.end, Lsn::new(START + SIZE));
}

#[tokio::test]
async fn discarded_pieces_are_gone_and_those_that_never_were_count_as_gone() {
    let repository = repository(&Arc::new(InMemory::new())).await;
    let (first, second) = (packed(START, START + 10), packed(START + 10, START + 20));
    let all = [*first.piece(), *second.piece()];
    put_piece(&repository, first).await.unwrap();
    let discarded = discard(&repository, cluster().system, &all).await;
    assert!(discarded.refused.is_none(), "{discarded:?}");
    assert_eq!(discarded.gone, 2);
    assert!(
        pieces(&repository, cluster().system, Timeline::FIRST)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(read(&repository).await.1.end, Lsn::new(START));
}

/// Pieces as cut points: where, how long, and whether damaged.
fn cuts() -> impl Strategy<Value = Vec<(u64, u64, Option<usize>)>> {
    // Positions that are few, so that pieces touch, overlap and repeat.
    let piece = (
        0..24_u64,
        1..8_u64,
        prop::option::weighted(0.2, any::<prop::sample::Index>().prop_map(|at| at.index(2000))),
    );
    prop::collection::vec(piece, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_tail_is_all_that_sound_pieces_cover_without_a_gap(cuts in cuts(), unit in 1..2000_u64) {
        run(async {
            let objects = Arc::new(InMemory::new());
            let repository = repository(&objects).await;
            let mut covered = vec![false; 40 * unit as usize];
            let mut bad = Vec::new();
            for (from, len, flipped) in cuts {
                let (from, to) = (START + from * unit, START + (from + len) * unit);
                let pushed = put_piece(&repository, packed(from, to)).await;
                if bad.contains(&(from, to)) {
                    continue;
                }
                assert!(pushed.is_ok(), "{pushed:?}");
                match flipped {
                    // What was there before and is damaged now covers nothing more.
                    Some(at) if pushed.unwrap() == Pushed::New => {
                        damage(&objects, &name(from, to), at).await;
                        bad.push((from, to));
                    }
                    _ => covered[(from - START) as usize..(to - START) as usize].fill(true),
                }
            }
            let (bytes, told) = read(&repository).await;
            let end = START + covered.iter().position(|covered| !covered).unwrap_or(covered.len()) as u64;
            assert_eq!(told.end, Lsn::new(end));
            assert_eq!(bytes, content(START, end));
            assert_eq!(told.digest, Digest::of(&bytes));
            let ends_early = bad.iter().any(|(from, to)| (*from..*to).contains(&end));
            assert!(!ends_early || !told.damaged.is_empty(), "an early end was not told");
        });
    }
}

#[tokio::test]
async fn pieces_of_other_segments_and_timelines_are_left_alone() {
    let objects = Arc::new(InMemory::new());
    let repository = repository(&objects).await;
    put_piece(&repository, packed(START - 10, START)).await.unwrap();
    put_piece(&repository, packed(START, START + 10)).await.unwrap();
    put_piece(&repository, packed(START + SIZE, START + SIZE + 10))
        .await
        .unwrap();
    assert_eq!(read(&repository).await.0, content(START, START + 10));
    let other = Timeline::new(2).unwrap();
    let told = tail(&repository, &cluster(), other, SegmentNumber::new(3), &mut Vec::new()).await;
    assert_eq!(told.unwrap().end, Lsn::new(START));
    assert_eq!(
        pieces(&repository, cluster().system, Timeline::FIRST)
            .await
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test]
async fn a_folder_takes_pieces_and_lets_them_go() {
    let folder = tempfile::tempdir().unwrap();
    let env = Arc::new(Env::made_up(&[], DateTime::UNIX_EPOCH, 1));

    let url: crate::store::RepoUrl = folder.path().to_str().unwrap().parse().unwrap();
    let store = crate::store::open(&url, &crate::store::S3Settings::default(), &env).unwrap();
    let repository = Repository::init(&store).await.unwrap().1;
    let mut all = Vec::new();
    for from in [START, START + 100, START + 200] {
        let packed = packed(from, from + 150);
        all.push(*packed.piece());
        assert_eq!(put_piece(&repository, packed.clone()).await.unwrap(), Pushed::New);
        assert_eq!(put_piece(&repository, packed).await.unwrap(), Pushed::Already);
    }
    assert_eq!(read(&repository).await.0, content(START, START + 350));
    assert_eq!(discard(&repository, cluster().system, &all[..2]).await.gone, 2);
    assert_eq!(
        pieces(&repository, cluster().system, Timeline::FIRST).await.unwrap(),
        all[2..]
    );
    let path = store.file(&name(START + 200, START + 350)).unwrap();
    let around = std::fs::read_dir(path.parent().unwrap()).unwrap();
    assert_eq!(around.count(), 1, "something was left in the making");
}

#[tokio::test]
async fn of_a_bucket_that_keeps_all_pieces_only_those_of_unfinished_segments_are_listed() {
    let objects = Arc::new(InMemory::new());
    let repository = repository(&objects).await;
    let starts = [1, 2, 3, 4, 6, 7, 9].map(|number| number * SIZE);
    for start in starts {
        for at in [start, start + 10] {
            put_piece(&repository, packed(at, at + 10)).await.unwrap();
        }
    }
    let whole = |number: SegmentNumber| match number.number() {
        1 | 2 => Some(SegmentNumber::new(3)),
        4 => Some(SegmentNumber::new(5)),
        7 | 8 => Some(SegmentNumber::new(9)),
        _ => None,
    };
    assert_eq!(
        timelines(&repository, cluster().system).await.unwrap(),
        [Timeline::FIRST]
    );
    let listed = pieces_to_read(&repository, &cluster(), Timeline::FIRST, whole)
        .await
        .unwrap();
    let numbers: Vec<u64> = listed.iter().map(|piece| piece.from.bytes() / SIZE).collect();
    assert_eq!(numbers, [3, 3, 6, 6, 9, 9]);
    let of_one = pieces_of(&repository, &cluster(), Timeline::FIRST, SegmentNumber::new(6)).await;
    assert_eq!(of_one.unwrap(), listed[2..4]);
}
