//! Damage of every kind to the WAL of real servers, and to indexes of it: nothing panics, and nothing is told that was
//! not written.
//!
//! `PGP_TEST_FUZZ` says how many windows of WAL are damaged per major.

mod damage;
mod objects;
mod wal;

use pgp_pitr::env::Env;
use pgp_pitr::wal::index::{Chain, Crossing, Indexed, SegmentIndexer, Told};
use pgp_pitr::wal::index::{read_core, read_ends, read_touched, write_core, write_ends, write_touched};
use pgp_pitr::wal::{
    CatalogRow, Event, Extent, Record, RecoveryEvents, Step, StorageChange, Transaction, WalDecoder, Walked, XlogChange,
};

use crate::support::chance::Chance;
use crate::support::tools::Major;
use crate::waldump::workload;

use damage::Damage;
use wal::{Wal, Window};

/// Pages of a window that only the decoder reads.
const PAGES: usize = 24;
/// A decoder must not care how its bytes come.
const PIECE: usize = 50_000;
/// An index's bytes tell at most so many times as many as they are: lists are made of what is there, and the few
/// fields that take less than they once did do not add up to more.
const GROWTH: usize = 16;

#[test]
fn damaged_wal_tells_nothing_that_was_not_written() {
    let cases = Env::of_process()
        .var("PGP_TEST_FUZZ")
        .map_or(150, |cases| cases.parse().unwrap());
    let majors = [Major::usual(), Major::newest()];
    let wals = majors.map(|major| Wal::read(&workload::varied(major, 1)));
    let chance = Chance::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap();
    for wal in &wals {
        index(wal, &wal.segments(usize::MAX, &chance), &Damage::none(), &chance);
        for case in 0..cases {
            let strange = &wals[chance.below(2)];
            let damage = |window: &Window, check: &mut dyn FnMut(&Window, &Damage)| {
                let (damaged, damage) = Damage::any(window, wal, strange, &chance);
                if !damage.begins_elsewhere(&damaged, wal) {
                    damage.told_by(&damaged, || check(&damaged, &damage));
                }
            };
            let (pages, three) = (wal.window(PAGES, &chance), wal.segments(3, &chance));
            damage(&pages, &mut |damaged, damage| decode(wal, damaged, damage, &chance));
            if case % 5 == 0 {
                damage(&three, &mut |damaged, damage| index(wal, damaged, damage, &chance));
            }
            if case % 8 == 0 {
                let one = wal.segments(1, &chance);
                damage(&one, &mut |damaged, damage| {
                    runtime.block_on(objects::archive_and_read(wal, &one, damaged, damage, &chance));
                });
            }
        }
    }
}

/// Every record that is found was written, and its meaning can be asked for.
fn decode(wal: &Wal, window: &Window, damage: &Damage, chance: &Chance) {
    let mut decoder = WalDecoder::new(window.start, wal.layout);
    let pieces = 1 + chance.below(PIECE);
    for piece in window.bytes.chunks(pieces) {
        decoder.push(decoder.wanted(), piece).unwrap();
        loop {
            match decoder.step() {
                Step::NeedMore => break,
                Step::EndOfWal { .. } => return,
                Step::Record(raw) => {
                    assert!(
                        wal.has(&raw) || damage.may_tell(raw.start()),
                        "a record that was not written: {raw:?}"
                    );
                    mean(&raw);
                }
            }
        }
    }
}

/// Asks for all that a record means. What makes no sense is an error and no panic.
fn mean(raw: &pgp_pitr::wal::RawRecord<'_>) {
    let Ok(record) = Record::parse(raw) else { return };
    record.blocks().for_each(drop);
    let _ = CatalogRow::of(&record, &mut |row| drop(row));
    let _ = (
        Transaction::parse(&record).map(|change| format!("{change:?}")),
        XlogChange::parse(&record).map(|change| format!("{change:?}")),
        StorageChange::parse(&record).map(|change| format!("{change:?}")),
    );
}

/// Indexes of damaged segments, stored and read again, tell what the segments themselves tell, and that was written.
fn index(wal: &Wal, window: &Window, damage: &Damage, chance: &Chance) {
    let (direct, extent) = walk(wal, window);
    let size = wal.layout.segment_size().bytes();
    let (mut chain, mut told, mut too_long) = (Chain::default(), Vec::new(), false);
    for (number, segment) in window.bytes.chunks(size as usize).enumerate() {
        let start = window.start.plus(number as u64 * size);
        let mut indexer = SegmentIndexer::new(start, wal.timeline, wal.layout);
        for piece in segment.chunks(1 + chance.below(PIECE)) {
            indexer.push(piece).unwrap();
        }
        let indexed = stored(&indexer.finish());
        let crossing = chain.follow(&indexed.core, size);
        if let Crossing::Record(record) = &crossing {
            match record.event() {
                Ok(Told::Event(event)) => told.push(event),
                Ok(Told::TooLong) => too_long = true,
                Ok(Told::Nothing) | Err(_) => {}
            }
        }
        // Where it broke off between two segments, what the second tells does not count.
        let counts = chain
            .broken()
            .is_none_or(|broken| Some(broken) == indexed.core.broken.as_ref());
        if counts {
            let mut events = [&indexed.core.events[..], &indexed.ends].concat();
            events.sort_by_key(|event| event.lsn);
            told.extend(events);
        }
        fuzz_index(&indexed, chance);
    }
    for event in &told {
        assert!(
            wal.has_event(event) || damage.may_tell(event.lsn),
            "an event that was not written: {event:?}"
        );
    }
    if !too_long && !damage.cuts_a_segment(size) {
        assert_eq!(told, direct, "the indexes and the segments tell different things");
        assert_eq!(chain.extent().map(|extent| extent.end), extent.map(|extent| extent.end));
    }
}

/// What is found by reading on from the first segment.
fn walk(wal: &Wal, window: &Window) -> (Vec<Event>, Option<Extent>) {
    let mut walk = RecoveryEvents::new(window.start, wal.layout);
    let mut events = Vec::new();
    walk.push(window.start, &window.bytes).unwrap();
    loop {
        match walk.walk() {
            Ok(Walked::Event(event)) => events.push(event),
            Ok(Walked::NeedMore | Walked::EndOfWal { .. }) => return (events, walk.extent()),
            // A record that passed its checksum and makes no sense.
            Err(_) => {}
        }
    }
}

/// An index as it is read again after it was stored.
fn stored(indexed: &Indexed) -> Indexed {
    let (core, start) = (write_core(&indexed.core), indexed.core.start);
    let read = Indexed {
        core: read_core(&core).expect("the core can be read again"),
        ends: read_ends(start, &write_ends(start, &indexed.ends)).expect("the ends can be read again"),
        touched: read_touched(&write_touched(&indexed.touched)).expect("the blocks can be read again"),
    };
    assert_eq!(&read, indexed);
    read
}

/// Changed bytes of an index are read as another index, or not at all; no count makes room for what is not there.
fn fuzz_index(indexed: &Indexed, chance: &Chance) {
    let start = indexed.core.start;
    let changed = |mut bytes: Vec<u8>| {
        damage::change(&mut bytes, chance);
        bytes
    };
    for _ in 0..20 {
        let bytes = changed(write_core(&indexed.core));
        if let Some(core) = read_core(&bytes) {
            let again = write_core(&core);
            assert!(
                again.len() <= GROWTH * (bytes.len() + 1),
                "{} from {}",
                again.len(),
                bytes.len()
            );
            // Whatever it tells: following it must not panic either.
            let size = 1 << 20;
            let mut chain = Chain::default();
            chain.follow(&indexed.core, size);
            if let Crossing::Record(record) = chain.follow(&core, size) {
                let _ = record.event();
            }
            let mut chain = Chain::default();
            chain.follow(&core, size);
            chain.follow(&indexed.core, size);
        }
        let _ = read_ends(start, &changed(write_ends(start, &indexed.ends)));
        let _ = read_touched(&changed(write_touched(&indexed.touched)));
    }
}
