//! The index of each segment, one after the other, tells what a reading of all the WAL tells.

use std::collections::BTreeSet;

use pgp_pitr::pg::Lsn;
use pgp_pitr::wal::index::{
    Chain, Crossing, Indexed, SegmentIndexer, Tally, Told, read_core, read_ends, read_touched, write_core, write_ends,
    write_touched,
};
use pgp_pitr::wal::{Event, Record, Step, WalDecoder};

use super::Segments;

impl Segments {
    pub fn assert_indexes_tell_the_same(&self) {
        let (events, extent) = self.events();
        let size = self.layout.segment_size().bytes();
        let mut chain = Chain::default();
        let mut told: Vec<Event> = Vec::new();
        let mut crossed = Tally::default();
        for (segment, start) in self.segments.iter().zip(self.starts()) {
            let indexed = self.index(start, segment);
            assert_survives(&indexed);
            let crossing = chain.follow(&indexed.core, size);
            if let Crossing::Record(record) = crossing {
                crossed.see(&record.raw()).unwrap();
                match record.event().unwrap() {
                    Told::Event(event) => told.push(event),
                    Told::Nothing => {}
                    Told::TooLong => panic!("{} is longer than what is kept", record.start()),
                }
            }
            let mut here = [indexed.core.events.clone(), indexed.ends.clone()].concat();
            here.sort_by_key(|event| event.lsn);
            told.extend(here);
            assert!(indexed.core.troubles.is_empty(), "{:?}", indexed.core.troubles);
            self.assert_touched(&indexed, segment, start);
        }
        assert_eq!(told, events);
        assert_eq!(chain.extent(), extent);
        assert!(
            chain.broken().is_some_and(|broken| broken.unwritten),
            "{:?}",
            chain.broken()
        );
    }

    fn index(&self, start: Lsn, segment: &[u8]) -> Indexed {
        let mut indexer = SegmentIndexer::new(start, self.names[0].timeline(), self.layout);
        segment.chunks(100_000).for_each(|piece| indexer.push(piece).unwrap());
        indexer.finish()
    }

    /// Every block of every record that is whole in this segment, and no other block.
    fn assert_touched(&self, indexed: &Indexed, segment: &[u8], start: Lsn) {
        let mut decoder = WalDecoder::new(start, self.layout);
        decoder.push(start, segment).unwrap();
        let mut blocks = BTreeSet::new();
        while let Step::Record(raw) = decoder.step() {
            for block in Record::parse(&raw).unwrap().blocks() {
                blocks.insert((block.file, block.fork, block.number));
            }
        }
        for (file, fork, number) in &blocks {
            assert!(indexed.touched.contains(file, *fork, *number));
        }
        let runs = indexed.touched.files.iter().flat_map(|file| &file.runs);
        let told: usize = runs.map(|(first, last)| (last - first + 1) as usize).sum();
        assert_eq!((indexed.touched.shift, told), (0, blocks.len()));
        let coarse = indexed.touched.coarser().coarser();
        assert!(
            blocks
                .iter()
                .all(|(file, fork, number)| coarse.contains(file, *fork, *number))
        );
        assert_eq!(read_touched(&write_touched(&coarse)), Some(coarse));
    }
}

/// What is written of an index is read again.
fn assert_survives(indexed: &Indexed) {
    assert_eq!(read_core(&write_core(&indexed.core)).as_ref(), Some(&indexed.core));
    let start = indexed.core.start;
    assert_eq!(
        read_ends(start, &write_ends(start, &indexed.ends)).as_ref(),
        Some(&indexed.ends)
    );
    assert_eq!(
        read_touched(&write_touched(&indexed.touched)).as_ref(),
        Some(&indexed.touched)
    );
}
