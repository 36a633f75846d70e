//! Rows made up byte by byte, in every kind of record that holds them.

use proptest::prelude::*;

use super::super::decoder::{Step, WalDecoder};
use super::super::forge::{Forge, layout, main_data};
use super::super::full_page;
use super::*;

const HEAP: u8 = 10;
const HEAP2: u8 = 9;

const CLASS_FILE: RelFile = RelFile {
    tablespace: 1663,
    database: 16384,
    number: PG_CLASS,
};

/// What a record with block 0 of this file tells.
fn told(
    major: u16,
    (manager, info): (u8, u8),
    file: RelFile,
    content: Content<'_>,
    main: &[u8],
) -> Result<Vec<CatalogRow>, RecordError> {
    let (flags, image, length, bytes) = match content {
        Content::Data(data) => (0x20, vec![], data.len(), data),
        Content::Page(page) => {
            // Not compressed, no hole, put in place.
            let info = if major >= 15 { 0x02 } else { 0x04 };
            let image = [&(page.len() as u16).to_le_bytes(), [0, 0, info].as_slice()].concat();
            (0x10, image, 0, page)
        }
    };
    let oids = [file.tablespace, file.database, file.number].map(u32::to_le_bytes);
    let mut body = [&[0, flags], (length as u16).to_le_bytes().as_slice(), &image].concat();
    body.extend(oids.concat());
    body.extend([7, 0, 0, 0]);
    let mut ending = main_data(main);
    let main_header = ending.len() - main.len();
    body.extend(ending.drain(..main_header));
    body.extend(bytes);
    body.extend(ending);
    of_body(major, (manager, info), &body).unwrap()
}

enum Content<'a> {
    Data(&'a [u8]),
    Page(&'a [u8]),
}

/// What a record with this body tells; `None` where it is no record.
fn of_body(major: u16, kind: (u8, u8), body: &[u8]) -> Option<Result<Vec<CatalogRow>, RecordError>> {
    let layout = layout(major);
    let mut forge = Forge::before_a_segment(layout, 1);
    forge.record(kind.0, kind.1, 9, body);
    let mut decoder = WalDecoder::new(forge.start, layout);
    decoder.push(forge.start, &forge.wal).unwrap();
    let Step::Record(raw) = decoder.step() else { return None };
    let record = Record::parse(&raw).ok()?;
    let mut rows = Vec::new();
    Some(CatalogRow::of(&record, &mut |row| rows.push(row)).map(|()| rows))
}

/// A row of `pg_class` of this major, without its header: `public.NAME` with file 24576 of the default tablespace.
fn class_row(major: u16, oid: u32, name: &str) -> Vec<u8> {
    let mut row = oid.to_le_bytes().to_vec();
    row.extend(name.as_bytes());
    row.resize(68, 0);
    let after_name = [2200, 16402, 0, 10, 2, 24576, 0, 1, 2, 3];
    row.extend(after_name.iter().flat_map(|word: &u32| word.to_le_bytes()));
    if major >= 18 {
        row.extend([4; 4]);
    }
    row.extend([0; 4]);
    row.extend(b"\x01\x00prxxxxxxx");
    row
}

fn relation(oid: u32, name: &str) -> CatalogRow {
    CatalogRow::Relation {
        oid,
        schema: 2200,
        name: name.into(),
        kind: b'r',
        file: RelFile {
            number: 24576,
            ..CLASS_FILE
        },
    }
}

/// A row as it stands alone in a record: bits, length of the header, and 9 bytes of null bits and padding.
fn alone(row: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0, 32], [0xFF; 9].as_slice(), row].concat()
}

/// `xl_heap_update` with these flags.
const fn update(flags: u8) -> [u8; 14] {
    [1, 0, 0, 0, 3, 0, 0, flags, 0, 0, 0, 0, 2, 0]
}

/// A page with these rows, the last one first in its space.
fn page(rows: &[Vec<u8>]) -> Vec<u8> {
    let mut page = vec![0; full_page::BYTES];
    let mut end = page.len();
    for (number, row) in rows.iter().enumerate() {
        let row = [&[0; 22], [32].as_slice(), &[0xFF; 9], row].concat();
        end -= row.len();
        page[end..end + row.len()].copy_from_slice(&row);
        let pointer = end as u32 | 1 << 15 | (row.len() as u32) << 17;
        page[24 + 4 * number..28 + 4 * number].copy_from_slice(&pointer.to_le_bytes());
    }
    page
}

#[test]
fn a_new_relation_is_told_in_each_major() {
    for major in 13..=18 {
        let row = alone(&class_row(major, 16402, "orders"));
        let rows = told(major, (HEAP, INSERT), CLASS_FILE, Content::Data(&row), &[1, 0, 8]).unwrap();
        assert_eq!(rows, [relation(16402, "orders")], "{major}");
    }
}

#[test]
fn a_relation_names_its_tablespace_or_has_that_of_its_database() {
    let told_of = |tablespace: u32| {
        let mut row = class_row(15, 16402, "orders");
        row[92..96].copy_from_slice(&tablespace.to_le_bytes());
        let file = RelFile {
            tablespace: 16500,
            ..CLASS_FILE
        };
        match &told(15, (HEAP, INSERT), file, Content::Data(&alone(&row)), &[1, 0, 8]).unwrap()[..] {
            [CatalogRow::Relation { file, .. }] => (file.tablespace, file.database),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told_of(0), (16500, 16384));
    assert_eq!(told_of(1663), (1663, 16384));
    assert_eq!(told_of(GLOBAL), (GLOBAL, 0));
}

#[test]
fn schemas_and_databases_are_told_in_each_major() {
    let mut row = 16385_u32.to_le_bytes().to_vec();
    row.extend(b"shop");
    row.resize(68, 0);
    let schema_file = RelFile {
        number: PG_NAMESPACE,
        ..CLASS_FILE
    };
    let database_file = RelFile {
        tablespace: GLOBAL,
        database: 0,
        number: PG_DATABASE,
    };
    for major in 13..=18 {
        let rows = told(
            major,
            (HEAP, INSERT),
            schema_file,
            Content::Data(&alone(&row)),
            &[1, 0, 8],
        )
        .unwrap();
        let schema = CatalogRow::Schema {
            database: 16384,
            oid: 16385,
            name: b"shop".into(),
        };
        assert_eq!(rows, [schema]);
        let mut row = row.clone();
        row.resize(if major >= 15 { 92 } else { 224 }, 7);
        row.extend(16500_u32.to_le_bytes());
        let rows = told(
            major,
            (HEAP, INSERT),
            database_file,
            Content::Data(&alone(&row)),
            &[1, 0, 8],
        )
        .unwrap();
        let database = CatalogRow::Database {
            oid: 16385,
            name: b"shop".into(),
            tablespace: 16500,
        };
        assert_eq!(rows, [database], "{major}");
    }
}

#[test]
fn an_updated_row_is_told_only_where_the_record_has_all_of_it() {
    let row = alone(&class_row(15, 16402, "orders"));
    for operation in [UPDATE, HOT_UPDATE] {
        let rows = told(15, (HEAP, operation), CLASS_FILE, Content::Data(&row), &update(0)).unwrap();
        assert_eq!(rows, [relation(16402, "orders")]);
        for shared in [1 << 5, 1 << 6, 3 << 5] {
            let main = update(shared);
            let rows = told(15, (HEAP, operation), CLASS_FILE, Content::Data(&row), &main).unwrap();
            assert_eq!(rows, []);
            let page = page(&[class_row(15, 1, "old"), class_row(15, 2, "new")]);
            let rows = told(15, (HEAP, operation), CLASS_FILE, Content::Page(&page), &main).unwrap();
            assert_eq!(rows, [relation(2, "new")]);
        }
    }
}

#[test]
fn rows_inserted_together_are_told_each() {
    let names = ["a", "b", "c"];
    let mut data = Vec::new();
    for (number, name) in names.iter().enumerate() {
        // An odd length, so that the next begins after a byte of padding.
        let row = [&[0xFF; 9], class_row(15, number as u32, name).as_slice(), &[0]].concat();
        data.resize(data.len().next_multiple_of(2), 0);
        data.extend((row.len() as u16).to_le_bytes());
        data.extend([0, 0, 0, 0, 32]);
        data.extend(row);
    }
    let all = [relation(0, "a"), relation(1, "b"), relation(2, "c")];
    let main = [0, 0, 3, 0, 1, 0, 2, 0, 3, 0];
    let rows = told(15, (HEAP2, MULTI_INSERT), CLASS_FILE, Content::Data(&data), &main).unwrap();
    assert_eq!(rows, all);
    let page = page(&[0, 1, 2].map(|number| class_row(15, number, names[number as usize])));
    let rows = told(15, (HEAP2, MULTI_INSERT), CLASS_FILE, Content::Page(&page), &main).unwrap();
    assert_eq!(rows, all);
    let fills = (HEAP2, MULTI_INSERT | INIT_PAGE);
    let rows = told(15, fills, CLASS_FILE, Content::Page(&page), &[0, 0, 2, 0]).unwrap();
    assert_eq!(rows, all[..2]);
}

#[test]
fn other_files_and_other_records_tell_nothing() {
    let row = alone(&class_row(15, 16402, "orders"));
    let other = RelFile {
        number: 16402,
        ..CLASS_FILE
    };
    let none: [CatalogRow; 0] = [];
    let of = |kind, file| told(15, kind, file, Content::Data(&row), &[1, 0, 8]).unwrap();
    assert_eq!(of((HEAP, INSERT), other), none);
    assert_eq!(of((HEAP, 0x10), CLASS_FILE), none, "a row is deleted");
    assert_eq!(of((HEAP2, 0x10), CLASS_FILE), none, "rows are pruned");
    assert_eq!(of((11, INSERT), CLASS_FILE), none, "of an index");
}

#[test]
fn a_record_that_lacks_its_row_is_refused() {
    let row = alone(&class_row(15, 16402, "orders"));
    let refused = |content, main: &[u8]| {
        assert!(told(15, (HEAP, INSERT), CLASS_FILE, content, main).is_err());
    };
    refused(Content::Data(&row[..100]), &[1, 0, 8]);
    refused(Content::Data(&row), &[1]);
    let page = page(&[class_row(15, 1, "old")]);
    refused(Content::Page(&page), &[0, 0, 8]);
    refused(Content::Page(&page), &[2, 0, 8]);
    refused(Content::Page(&page), &[255, 255, 8]);
    refused(Content::Page(&page[..20]), &[1, 0, 8]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        major in 13_u16..=18, insert: bool, info: u8, main in prop::collection::vec(any::<u8>(), 0..30),
        data in prop::collection::vec(any::<u8>(), 1..400), number in 0_usize..3, page: bool,
    ) {
        let number = [PG_CLASS, PG_NAMESPACE, PG_DATABASE][number];
        let database = if number == PG_DATABASE { 0 } else { 16384 };
        let file = RelFile { tablespace: 1663, database, number };
        let kind = (if insert { HEAP } else { HEAP2 }, info & 0xF0);
        let content = if page { Content::Page(&data) } else { Content::Data(&data) };
        let _ = told(major, kind, file, content, &main);
    }

    #[test]
    fn no_page_makes_it_panic(pointers in prop::collection::vec(any::<u32>(), 4), length: u8, place in 0_u16..6) {
        let mut page = page(&[class_row(15, 1, "a")]);
        for (number, pointer) in pointers.iter().enumerate() {
            page[24 + 4 * number..28 + 4 * number].copy_from_slice(&pointer.to_le_bytes());
        }
        page[200..].fill(length);
        let main = [&place.to_le_bytes(), [8].as_slice()].concat();
        let _ = told(15, (HEAP, INSERT), CLASS_FILE, Content::Page(&page), &main);
    }
}
