//! Records made up byte by byte.

use super::super::decoder::{Step, WalDecoder};
use super::super::forge::{Forge, layout, main_data};
use super::*;

/// What is made of a record with this body.
fn parsed<T>(major: u16, body: &[u8], read: impl FnOnce(Result<Record<'_>, RecordError>) -> T) -> T {
    let layout = layout(major);
    let mut forge = Forge::before_a_segment(layout, 1);
    forge.record(10, 0, 9, body);
    let mut decoder = WalDecoder::new(forge.start, layout);
    decoder.push(forge.start, &forge.wal).unwrap();
    let Step::Record(raw) = decoder.step() else {
        panic!("a record was written")
    };
    read(Record::parse(&raw))
}

const FILE: RelFile = RelFile {
    tablespace: 1663,
    database: 5,
    number: 16384,
};

fn file() -> Vec<u8> {
    [FILE.tablespace, FILE.database, FILE.number]
        .iter()
        .flat_map(|oid| oid.to_le_bytes())
        .collect()
}

#[test]
fn fragments_are_found_behind_all_headers() {
    let body = [
        &[0, HAS_DATA, 3, 0],
        file().as_slice(),
        &[7, 0, 0, 0],
        // The second block shares the relation, and has an image with a hole.
        &[2, SAME_FILE | HAS_IMAGE | WILL_INIT | 2, 0, 0, 4, 0, 24, 0, 0x03],
        &[8, 0, 0, 0],
        &[ORIGIN, 1, 0, TOP_LEVEL, 9, 0, 0, 0],
        &[MAIN_SHORT, 2],
        b"abc",
        b"PAGE",
        b"mn",
    ]
    .concat();
    parsed(15, &body, |record| {
        let record = record.unwrap();
        let blocks: Vec<_> = record.blocks().collect();
        assert_eq!(blocks.len(), 2);
        assert_eq!((blocks[0].id, blocks[0].file, blocks[0].fork), (0, FILE, RelFork::Main));
        assert_eq!(
            (blocks[0].number, blocks[0].data, blocks[0].image),
            (7, b"abc".as_slice(), None)
        );
        assert_eq!((blocks[1].id, blocks[1].file), (2, FILE));
        assert_eq!((blocks[1].fork, blocks[1].initialized), (RelFork::VisibilityMap, true));
        let image = blocks[1].image.unwrap();
        assert_eq!(
            (image.bytes, image.hole_offset, image.hole_length),
            (b"PAGE".as_slice(), 24, None)
        );
        assert!(image.applied && image.compression.is_none());
        assert_eq!((record.main(), record.origin()), (b"mn".as_slice(), Some(1)));
        assert_eq!(record.top_level_xid(), Some(Xid::new(9)));
    });
}

#[test]
fn flags_of_images_moved_with_15() {
    // The same flags: compressed, with a hole, put in place in 14; with a hole, put in place, pglz in 15.
    let body = [
        &[0, HAS_IMAGE, 0, 0, 1, 0, 24, 0, 0x07, 100, 0],
        file().as_slice(),
        &[7, 0, 0, 0],
        b"x",
    ]
    .concat();
    for major in [13, 14, 15, 18] {
        parsed(major, &body, |record| {
            let image = record.unwrap().blocks().next().unwrap().image.unwrap();
            assert_eq!(image.compression, Some(Compression::Pglz), "{major}");
            assert_eq!((image.applied, image.hole_length), (true, Some(100)));
        });
    }
    let with = |major, flags: u8| {
        let mut body = body.clone();
        body[8] = flags;
        parsed(major, &body, |record| {
            let record = record.ok()?;
            let image = record.blocks().next()?.image?;
            Some((image.compression, image.applied))
        })
    };
    assert_eq!(with(15, 0x11), Some((Some(Compression::Zstd), false)));
    assert_eq!(with(15, 0x0B), Some((Some(Compression::Lz4), true)));
    assert_eq!(with(15, 0x1D), None, "two ways to compress at once");
    assert_eq!(with(14, 0x03), Some((Some(Compression::Pglz), false)));
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    let refused = |body: &[u8]| parsed(15, body, |record| assert!(record.is_err(), "{body:?}"));
    parsed(15, &main_data(&[1; 300]), |record| {
        assert_eq!(record.unwrap().main(), [1; 300])
    });
    refused(&[MAIN_SHORT, 2, 1]);
    refused(&[MAIN_SHORT, 2, 1, 2, 3]);
    refused(&[MAIN_LONG, 255, 255, 255, 255, 1]);
    refused(&[MAIN_SHORT]);
    refused(&[33, 0]);
    let block = |id: u8, flags: u8| [&[id, flags, 0, 0], file().as_slice(), &[7, 0, 0, 0]].concat();
    parsed(15, &block(0, 0), |record| {
        assert_eq!(record.unwrap().blocks().count(), 1)
    });
    refused(&block(0, HAS_DATA));
    refused(&block(0, SAME_FILE));
    refused(&block(0, 4));
    refused(&[block(1, 0), block(1, 0)].concat());
    refused(&[block(1, 0), block(0, 0)].concat());
}
