//! Frames that are full, cut and changed.

use chrono::DateTime;
use proptest::prelude::*;

use super::*;
use crate::pg::{Lsn, MajorVersion, Timeline};
use crate::wal::index::TouchedFile;
use crate::wal::{Ended, EventKind, RelFile, RelFork, Xid};

fn nothing() -> Indexed {
    let layout = WalLayout::new(MajorVersion::new(15).unwrap(), SegmentSize::DEFAULT, 8192).unwrap();
    SegmentIndexer::new(Lsn::new(16 << 20), Timeline::FIRST, layout).finish()
}

/// Numbers that don't compress.
fn noise(count: usize) -> impl Iterator<Item = u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
    .take(count)
}

fn full(ends: usize, blocks: usize) -> Indexed {
    let mut indexed = nothing();
    indexed.core.ends.commits = ends as u64;
    let mut lsn = 16 << 20;
    indexed.ends.extend(noise(ends).map(|random| {
        lsn += 8 * (1 + random % 60);
        Event {
            lsn: Lsn::new(lsn),
            end_lsn: Lsn::new(lsn + 40),
            previous: Lsn::new(lsn - 8),
            kind: EventKind::Commit(Ended {
                xid: Xid::new(random as u32),
                at: DateTime::from_timestamp_micros(1_800_000_000_000_000 + (random % 1_000_000) as i64).unwrap(),
                database: None,
                subtransactions: 0,
                prepared: false,
            }),
        }
    }));
    let mut runs: Vec<(u32, u32)> = noise(blocks).map(|random| (random as u32, random as u32)).collect();
    runs.sort_unstable();
    runs.dedup();
    runs.retain(|(block, _)| block % 3 == 0);
    let file = RelFile {
        tablespace: 1663,
        database: 5,
        number: 16384,
    };
    indexed.touched.files.push(TouchedFile {
        file,
        fork: RelFork::Main,
        runs,
    });
    indexed
}

#[test]
fn a_frame_takes_a_hundredth_of_the_segment_at_most_and_tells_less_where_there_is_more() {
    for (ends, blocks, has_ends, exact) in [
        (0, 0, true, true),
        (1000, 1000, true, true),
        (100_000, 1000, false, true),
        (1000, 300_000, true, false),
        (200_000, 300_000, false, false),
    ] {
        let bytes = frame(&full(ends, blocks), 16 << 20);
        assert!(bytes.len() <= (16 << 20) / 100, "{} bytes", bytes.len());
        let footer = Footer::read(&bytes).unwrap().unwrap();
        assert_eq!(footer.payload as usize + SKIPPABLE_HEADER, bytes.len());
        let section = footer.sections[BLOCKS];
        let stored = &bytes[SKIPPABLE_HEADER + section.offset as usize..][..section.stored as usize];
        let touched = read_touched(&unpack(&section, stored).unwrap()).unwrap();
        assert_eq!(
            (footer.sections[ENDS].stored > 0 || ends == 0, touched.shift == 0),
            (has_ends, exact)
        );
        let all = full(0, blocks);
        let file = &all.touched.files[0];
        let contained = |run: &(u32, u32)| touched.contains(&file.file, file.fork, run.0);
        assert!(file.runs.iter().all(contained), "a block is missing");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_footer_or_a_section_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Footer::read(&bytes);
        let _ = read_core(&bytes);
        let _ = read_ends(Lsn::ZERO, &bytes);
        let _ = read_touched(&bytes);
    }

    #[test]
    fn a_changed_footer_is_refused_or_not_recognized(at in 0..FOOTER, bit in 0..8u8) {
        let mut bytes = frame(&full(100, 100), 16 << 20);
        let at = bytes.len() - FOOTER + at;
        bytes[at] ^= 1 << bit;
        prop_assert!(!matches!(Footer::read(&bytes), Ok(Some(_))));
    }

    #[test]
    fn changed_sections_never_make_reading_panic(at: prop::sample::Index, to: u8) {
        let mut core = write_core(&full(50, 0).core);
        let mut ends = write_ends(Lsn::new(16 << 20), &full(50, 0).ends);
        let mut touched = write_touched(&full(0, 50).touched);
        for bytes in [&mut core, &mut ends, &mut touched] {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        let _ = read_core(&core);
        let _ = read_ends(Lsn::new(16 << 20), &ends);
        let _ = read_touched(&touched);
    }
}
