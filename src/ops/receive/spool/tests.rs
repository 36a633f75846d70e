//! The spool against a model, through crashes; and the cases that a model does not reach.

use std::fs;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::env::Env;

const SYSTEM: SystemId = SystemId::new(7_489_000_000_000_000_001);
/// Small, so that a few hundred bytes fill files and the limit.
const SMALL: Sizes = Sizes { file: 400, frame: 100 };
const LIMIT: u64 = 2000;

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

/// What stands at a position of a timeline: WAL never differs there.
fn wal(timeline: Timeline, from: Lsn, len: u64) -> Bytes {
    (0..len)
        .map(|index| {
            let at = from.plus(index).bytes();
            (at ^ (at >> 8) ^ u64::from(timeline.number()).wrapping_mul(37)) as u8
        })
        .collect()
}

fn open(folder: &Path) -> (Spool, Recovered) {
    Spool::open_sized(folder.to_path_buf(), SYSTEM, LIMIT, SMALL).unwrap()
}

fn stretch(number: u32, from: u64, to: u64) -> Stretch {
    Stretch {
        timeline: timeline(number),
        from: Lsn::new(from),
        to: Lsn::new(to),
    }
}

fn put(spool: &mut Spool, number: u32, from: u64, to: u64) -> Result<(), SpoolError> {
    let (timeline, from) = (timeline(number), Lsn::new(from));
    spool.append(timeline, from, &[wal(timeline, from, to - from.bytes())])
}

/// Everything from the cursor on, as stretches; wrong bytes are a panic.
fn read_all(spool: &mut Spool) -> Vec<Stretch> {
    let mut found: Vec<Stretch> = Vec::new();
    while let Some(chunk) = spool.read().unwrap() {
        assert!(!chunk.content.is_empty() && chunk.content.len() <= SMALL.frame);
        assert_eq!(
            chunk.content,
            wal(chunk.timeline, chunk.from, chunk.content.len() as u64)
        );
        match found.last_mut() {
            Some(last) if last.timeline == chunk.timeline && last.to == chunk.from => last.to = chunk.to(),
            _ => found.push(Stretch {
                timeline: chunk.timeline,
                from: chunk.from,
                to: chunk.to(),
            }),
        }
    }
    found
}

/// What happens to a spool.
#[derive(Debug, Clone)]
enum Deed {
    /// WAL that goes on.
    Append(u64),
    /// WAL behind a gap.
    Gap(u64, u64),
    /// A timeline that begins this much below the end of the last.
    Fork(u64, u64),
    Sync,
    /// A sync that fails.
    FailingSync,
    Read,
    Rewind,
    /// Up to this part of what is held.
    Release(prop::sample::Index),
    /// A power cut: this part of what was not synced arrives, and one of its bytes may be another.
    Crash(prop::sample::Index, Option<prop::sample::Index>),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => (1..250_u64).prop_map(Deed::Append),
        1 => (1..50_u64, 1..150_u64).prop_map(|(over, len)| Deed::Gap(over, len)),
        1 => (0..60_u64, 1..150_u64).prop_map(|(below, len)| Deed::Fork(below, len)),
        4 => Just(Deed::Sync),
        1 => Just(Deed::FailingSync),
        3 => Just(Deed::Read),
        1 => Just(Deed::Rewind),
        4 => any::<prop::sample::Index>().prop_map(Deed::Release),
        2 => (any::<prop::sample::Index>(), any::<Option<prop::sample::Index>>())
            .prop_map(|(part, garbled)| Deed::Crash(part, garbled)),
    ]
}

/// Stretches as a plain list: what the spool must hold.
#[derive(Debug, Default)]
struct Model {
    held: Vec<Stretch>,
    end: Option<(Timeline, Lsn)>,
    durable: Option<(Timeline, Lsn)>,
    /// How many bytes of `held`, from its front, are durable.
    synced: u64,
}

impl Model {
    fn bytes(&self) -> u64 {
        self.held.iter().map(|stretch| stretch.to.since(stretch.from)).sum()
    }

    fn append(&mut self, added: Stretch) {
        match self.held.last_mut() {
            Some(last) if last.timeline == added.timeline && last.to == added.from => last.to = added.to,
            _ => self.held.push(added),
        }
        self.end = Some((added.timeline, added.to));
    }

    /// The stretches of so many bytes from the front, and of the rest.
    fn split(&self, mut bytes: u64) -> (Vec<Stretch>, Vec<Stretch>) {
        let (mut front, mut rest) = (Vec::new(), Vec::new());
        for stretch in &self.held {
            let taken = bytes.min(stretch.to.since(stretch.from));
            bytes -= taken;
            let middle = stretch.from.plus(taken);
            front.extend((taken > 0).then_some(Stretch { to: middle, ..*stretch }));
            rest.extend((middle < stretch.to).then_some(Stretch {
                from: middle,
                ..*stretch
            }));
        }
        (front, rest)
    }
}

fn length(stretches: &[Stretch]) -> u64 {
    stretches.iter().map(|stretch| stretch.to.since(stretch.from)).sum()
}

/// The last file and how much of it is durable.
fn unsynced(spool: &Spool) -> Option<(PathBuf, u64)> {
    let (file, writer) = (spool.files.back()?, spool.writer.as_ref()?);
    Some((spool.path(file.number), writer.synced))
}

fn on_disk(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap();
    files.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn act(deeds: Vec<Deed>) -> Result<(), TestCaseError> {
    // In memory where that can be: thousands of syncs keep a busy disk for a minute.
    let folder = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let (mut spool, _) = open(folder.path());
    let mut model = Model::default();
    for deed in deeds {
        match deed {
            Deed::Append(len) => {
                let (timeline, from) = model.end.unwrap_or((Timeline::FIRST, Lsn::new(1000)));
                append(&mut spool, &mut model, timeline, from, len)?;
            }
            Deed::Gap(over, len) => {
                let (timeline, end) = model.end.unwrap_or((Timeline::FIRST, Lsn::new(1000)));
                spool.gap();
                append(&mut spool, &mut model, timeline, end.plus(over), len)?;
            }
            Deed::Fork(below, len) => {
                let (last, end) = model.end.unwrap_or((Timeline::FIRST, Lsn::new(1000)));
                let from = Lsn::new(end.bytes() - below.min(end.bytes()));
                append(&mut spool, &mut model, timeline(last.number() + 1), from, len)?;
            }
            Deed::Sync => {
                prop_assert_eq!(spool.sync().unwrap(), model.end);
                model.synced = model.bytes();
                model.durable = model.end;
            }
            Deed::FailingSync => {
                spool.take_back();
                // A file that was closed meanwhile is durable, too.
                let kept: Vec<Stretch> = spool.stretches().collect();
                prop_assert!(length(&kept) >= model.synced);
                model.held = model.split(length(&kept)).0;
                model.synced = length(&kept);
                model.end = model
                    .held
                    .last()
                    .map_or(model.durable, |last| Some((last.timeline, last.to)));
                model.durable = model.end;
                prop_assert_eq!(spool.end(), model.end);
            }
            Deed::Read => {
                if let Some(chunk) = spool.read().unwrap() {
                    prop_assert_eq!(
                        &chunk.content,
                        &wal(chunk.timeline, chunk.from, chunk.content.len() as u64)
                    );
                }
            }
            Deed::Rewind => {
                spool.rewind();
                prop_assert_eq!(&read_all(&mut spool), &model.held);
            }
            Deed::Release(part) => {
                let released = part.index(model.bytes() as usize + 1) as u64;
                let (front, rest) = model.split(released);
                if let Some(last) = front.last() {
                    spool.release(last.timeline, last.to).unwrap();
                    if released > model.synced {
                        model.durable = Some((last.timeline, last.to));
                    }
                    model.synced = model.synced.saturating_sub(released);
                    model.held = rest;
                }
            }
            Deed::Crash(part, garbled) => {
                let cut = unsynced(&spool);
                drop(spool);
                if let Some((path, synced)) = cut {
                    break_tail(&path, synced, part, garbled);
                }
                let (opened, recovered) = open(folder.path());
                spool = opened;
                prop_assert_eq!(&recovered.damaged, &vec![]);
                prop_assert_eq!(&read_all(&mut spool), &recovered.stretches);
                model = after_crash(&model, recovered.stretches)?;
                spool.rewind();
            }
        }
        prop_assert_eq!(&spool.stretches().collect::<Vec<_>>(), &model.held);
        prop_assert!(on_disk(folder.path()) <= LIMIT);
        prop_assert_eq!(on_disk(folder.path()), spool.len_bytes());
    }
    Ok(())
}

fn append(spool: &mut Spool, model: &mut Model, timeline: Timeline, from: Lsn, len: u64) -> Result<(), TestCaseError> {
    let content = wal(timeline, from, len);
    let half = content.len() / 2;
    let was_full = spool.is_full();
    match spool.append(timeline, from, &[content.slice(..half), content.slice(half..)]) {
        Ok(()) => model.append(Stretch {
            timeline,
            from,
            to: from.plus(len),
        }),
        Err(SpoolError::Full { .. }) => prop_assert!(was_full || len > SMALL.frame as u64),
        Err(other) => return Err(TestCaseError::fail(other.to_string())),
    }
    Ok(())
}

fn break_tail(path: &Path, synced: u64, part: prop::sample::Index, garbled: Option<prop::sample::Index>) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let unsynced = file.metadata().unwrap().len() - synced;
    let arrived = part.index(unsynced as usize + 1) as u64;
    file.set_len(synced + arrived).unwrap();
    if let (Some(at), true) = (garbled, arrived > 0) {
        file.write_all_at(b"\xAA", synced + at.index(arrived as usize) as u64)
            .unwrap();
    }
}

/// Released bytes may be back, synced ones must be there, and nothing that was never appended.
fn after_crash(before: &Model, found: Vec<Stretch>) -> Result<Model, TestCaseError> {
    let total = length(&found);
    let longest = |kept: u64| {
        let (front, _) = before.split(kept);
        let after = Model {
            held: found.clone(),
            ..Model::default()
        };
        // What was released comes before.
        total >= kept && after.split(total - kept).1 == front
    };
    let Some(kept) = (before.synced..=before.bytes()).rev().find(|kept| longest(*kept)) else {
        return Err(TestCaseError::fail(format!("{before:?} became {found:?}")));
    };
    prop_assert!(kept >= before.synced);
    let end = found.last().map(|last| (last.timeline, last.to));
    Ok(Model {
        end,
        durable: end,
        synced: total,
        held: found,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn what_was_synced_is_there_after_any_crash_and_the_limit_holds(deeds in prop::collection::vec(deed(), 1..60)) {
        act(deeds)?;
    }
}

#[test]
fn a_spool_has_one_receiver() {
    let folder = tempfile::tempdir().unwrap();
    let slot = SlotName::new("pgp").unwrap();
    let held = Spool::open(folder.path(), SYSTEM, &slot, DEFAULT_LIMIT).unwrap();
    let again = || Spool::open(folder.path(), SYSTEM, &slot, DEFAULT_LIMIT);
    assert!(matches!(again(), Err(SpoolError::InUse { .. })));
    let other = SlotName::new("pgp2").unwrap();
    Spool::open(folder.path(), SYSTEM, &other, DEFAULT_LIMIT).unwrap();
    drop(held);
    again().unwrap();
    let small = Spool::open(folder.path(), SYSTEM, &other, Size::new(1 << 20));
    assert!(matches!(small, Err(SpoolError::Limit { .. })));
}

#[test]
fn wal_that_does_not_follow_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(folder.path());
    put(&mut spool, 1, 1000, 1100).unwrap();
    for from in [1099, 1101] {
        assert!(matches!(
            put(&mut spool, 1, from, 1200),
            Err(SpoolError::NotContiguous { .. })
        ));
    }
    spool.gap();
    assert!(matches!(
        put(&mut spool, 1, 900, 1200),
        Err(SpoolError::NotContiguous { .. })
    ));
    put(&mut spool, 1, 1150, 1200).unwrap();
    assert!(put(&mut spool, 1, 1300, 1400).is_err(), "a gap is declared once");
    put(&mut spool, 2, 1180, 1300).unwrap();
    let held = [stretch(1, 1000, 1100), stretch(1, 1150, 1200), stretch(2, 1180, 1300)];
    assert_eq!(read_all(&mut spool), held);
    // Timeline 2 says nothing of what timeline 1 has behind the gap.
    spool.release(timeline(1), Lsn::new(1150)).unwrap();
    assert_eq!(spool.stretches().collect::<Vec<_>>(), held[1..]);
    spool.release(timeline(2), Lsn::new(1300)).unwrap();
    assert_eq!(spool.stretches().count(), 0);
    spool.rewind();
    assert_eq!(spool.read().unwrap(), None);
    put(&mut spool, 2, 1300, 1310).unwrap();
    assert_eq!(read_all(&mut spool), [stretch(2, 1300, 1310)]);
}

#[test]
fn a_full_spool_takes_nothing_and_takes_again_when_something_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(folder.path());
    let mut to = 1000;
    while !spool.is_full() {
        put(&mut spool, 1, to, to + 100).unwrap();
        to += 100;
    }
    let error = (0..3).find_map(|_| put(&mut spool, 1, to, to + 300).err());
    assert!(matches!(error, Some(SpoolError::Full { .. })));
    assert_eq!(spool.end(), Some((Timeline::FIRST, Lsn::new(to))));
    spool.release(Timeline::FIRST, Lsn::new(to - 100)).unwrap();
    assert!(!spool.is_full());
    put(&mut spool, 1, to, to + 300).unwrap();
    assert_eq!(read_all(&mut spool), [stretch(1, to - 100, to + 300)]);
}

#[test]
fn damage_is_named_never_handed_out_and_passed_over_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(folder.path());
    // 100 + 36 bytes a frame: two in a file.
    put(&mut spool, 1, 1000, 1600).unwrap();
    spool.sync().unwrap();
    let second = spool.path(2);
    let file = OpenOptions::new().write(true).open(&second).unwrap();
    file.write_all_at(b"\xAA\xAA", 136 + 40).unwrap();
    for _ in 0..2 {
        let damaged = loop {
            match spool.read() {
                Ok(chunk) => assert!(chunk.is_some_and(|chunk| chunk.to() <= Lsn::new(1300))),
                Err(error) => break error,
            }
        };
        let SpoolError::Damaged { path, offset, lsn, .. } = damaged else {
            panic!("{damaged}");
        };
        assert_eq!((&path, offset, lsn), (&second, 136, Lsn::new(1300)));
    }
    spool.pass_over_damage();
    assert_eq!(read_all(&mut spool), [stretch(1, 1400, 1600)]);
    drop(spool);
    let (mut spool, recovered) = open(folder.path());
    assert_eq!(
        recovered
            .damaged
            .iter()
            .map(|damage| (&damage.path, damage.offset))
            .collect::<Vec<_>>(),
        [(&second, 136)]
    );
    let held = [stretch(1, 1000, 1300), stretch(1, 1400, 1600)];
    assert_eq!(recovered.stretches, held);
    assert_eq!(read_all(&mut spool), held);
    spool.release(Timeline::FIRST, Lsn::new(1600)).unwrap();
    assert_eq!(spool.len_bytes(), 0);
}

#[test]
fn a_file_of_another_cluster_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(folder.path());
    put(&mut spool, 1, 1000, 1900).unwrap();
    spool.sync().unwrap();
    drop(spool);
    let other = SystemId::new(8);
    let (_, recovered) = Spool::open_sized(folder.path().to_path_buf(), other, LIMIT, SMALL).unwrap();
    assert_eq!(recovered.stretches, []);
    assert!(!recovered.damaged.is_empty());
}

#[test]
fn histories_are_kept_until_they_are_released() {
    let folder = tempfile::tempdir().unwrap();
    let env = Env::made_up(&[], chrono::DateTime::UNIX_EPOCH, 1);
    let (mut spool, _) = open(folder.path());
    let text = b"1\t0/3000000\tno recovery target specified\n";
    for number in [3, 2, 3] {
        spool.put_history(timeline(number), text, &env).unwrap();
    }
    drop(spool);
    let (mut spool, recovered) = open(folder.path());
    assert_eq!(recovered.histories, [timeline(2), timeline(3)]);
    let kept = Bytes::from_static(text);
    let both = [(timeline(2), kept.clone()), (timeline(3), kept)];
    assert_eq!(spool.histories().unwrap(), both);
    spool.release_history(timeline(2)).unwrap();
    let path = folder.path().join("00000003.history");
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(spool.histories(), Err(SpoolError::Damaged { .. })));
    drop(spool);
    let (mut spool, recovered) = open(folder.path());
    assert_eq!((recovered.histories.len(), recovered.damaged.len()), (0, 1));
    spool.put_history(timeline(3), text, &env).unwrap();
    assert_eq!(spool.histories().unwrap(), both[1..]);
}
