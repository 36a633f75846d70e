//! What is known after knowledge of one kind or another.

use super::*;

const SHOP: Oid = 16384;

const fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

const fn file(number: Oid) -> RelFile {
    RelFile {
        tablespace: DEFAULT,
        database: SHOP,
        number,
    }
}

fn row(oid: Oid, schema: Oid, name: &str, kind: u8, number: Oid) -> CatalogRow {
    CatalogRow::Relation {
        oid,
        schema,
        name: name.into(),
        kind,
        file: file(number),
    }
}

fn packed(lines: &[&str]) -> Vec<u8> {
    let text = lines.join("\n");
    zstd::bulk::compress(text.as_bytes(), 1).unwrap()
}

/// A table with TOAST and index, as captured at 100; the database's own tablespace is 16500.
fn captured() -> Names {
    let mut names = Names::default();
    let part = packed(&[
        r#"{"format":1}"#,
        r#"{"database":{"oid":16384,"name":"shop","tablespace":16500}}"#,
        r#"{"database":{"oid":16385,"name":"other","tablespace":1663}}"#,
        r#"{"inside":{"database":16384,"lsn":"0/64"}}"#,
        r#"{"schema":{"oid":16390,"name":"sales"}}"#,
        r#"{"relation":{"oid":16402,"schema":16390,"name":"orders","kind":"r","file":16402,"tablespace":1663,"owner":0}}"#,
        r#"{"relation":{"oid":16405,"schema":99,"name":"pg_toast_16402","kind":"t","file":16405,"tablespace":1663,"owner":16402}}"#,
        r#"{"relation":{"oid":16406,"schema":99,"name":"pg_toast_16402_index","kind":"i","file":16406,"tablespace":1663,"owner":16405}}"#,
        r#"{"relation":{"oid":16407,"schema":16390,"name":"orders_pkey","kind":"i","file":16407,"tablespace":1663,"owner":16402}}"#,
        r#"{"relation":{"oid":16410,"schema":2200,"name":"here","kind":"r","file":16411,"tablespace":0,"owner":0}}"#,
        r#"{"relation":{"oid":16420,"schema":2200,"name":"parts","kind":"p","file":0,"tablespace":0,"owner":0}}"#,
        r#"{"relation":{"oid":1262,"schema":11,"name":"pg_database","kind":"r","file":1262,"tablespace":1664,"owner":0}}"#,
        r#"{"inside":{"database":16385,"lsn":"0/65"}}"#,
        r#"{"relation":{"oid":16402,"schema":2200,"name":"orders","kind":"r","file":16402,"tablespace":0,"owner":0}}"#,
    ]);
    names.learn_captured(&part, lsn(90)).unwrap();
    names
}

fn name_of(names: &Names, number: Oid, at: u64) -> Option<String> {
    names.relation(&file(number), lsn(at)).map(|known| known.name)
}

#[test]
fn captured_relations_have_names_and_owners() {
    let names = captured();
    let orders = Known {
        name: "sales.orders".to_owned(),
        oid: 16402,
        kind: b'r',
        owner: None,
        rewritten: false,
    };
    // Nothing is known of what was before: it is taken to have been the same.
    for at in [1, 100, 1000] {
        assert_eq!(names.relation(&file(16402), lsn(at)), Some(orders.clone()));
        assert_eq!(names.by_oid(SHOP, 16402, lsn(at)), Some(orders.clone()));
    }
    for part in [16405, 16406, 16407] {
        assert_eq!(
            names.relation(&file(part), lsn(100)).unwrap().owner,
            Some(16402),
            "{part}"
        );
    }
    assert_eq!(names.by_oid(SHOP, 16420, lsn(100)).unwrap().name, "public.parts");
    assert_eq!(
        names.by_oid(SHOP, 1262, lsn(100)).unwrap().name,
        "pg_catalog.pg_database"
    );
    assert_eq!((names.database(SHOP), names.database(7)), (Some("shop"), None));
    assert_eq!(names.relation(&file(7), lsn(100)), None);
    let in_own_tablespace = RelFile {
        tablespace: 16500,
        ..file(16411)
    };
    assert_eq!(
        names.relation(&in_own_tablespace, lsn(100)).unwrap().name,
        "public.here"
    );
    assert_eq!(names.relation(&file(16411), lsn(100)), None);
}

#[test]
fn rows_of_the_wal_name_what_was_made_since() {
    let mut names = captured();
    let schema = CatalogRow::Schema {
        database: SHOP,
        oid: 16500,
        name: b"new".into(),
    };
    names.learn_row(lsn(200), &schema);
    names.learn_row(lsn(210), &row(16501, 16500, "lines", b'r', 16501));
    names.learn_row(lsn(211), &row(16504, 99, "pg_toast_16501", b't', 16504));
    names.learn_row(lsn(212), &row(16505, 99, "pg_toast_16501_index", b'i', 16505));
    names.learn_row(lsn(213), &row(16506, 77, "nowhere", b'r', 16506));
    assert_eq!(name_of(&names, 16501, 300).as_deref(), Some("new.lines"));
    assert_eq!(name_of(&names, 16506, 300).as_deref(), Some("nowhere"));
    for part in [16504, 16505] {
        assert_eq!(names.relation(&file(part), lsn(300)).unwrap().owner, Some(16501));
    }
    let database = CatalogRow::Database {
        oid: 16384,
        name: b"store".into(),
        tablespace: DEFAULT,
    };
    names.learn_row(lsn(220), &database);
    assert_eq!(names.database(SHOP), Some("store"));
}

#[test]
fn a_relation_has_the_name_that_it_had_then() {
    let mut names = captured();
    names.learn_row(lsn(200), &row(16402, 16390, "purchases", b'r', 16402));
    names.learn_row(lsn(300), &row(16402, 2200, "purchases", b'r', 16402));
    for (at, name) in [
        (150, "sales.orders"),
        (250, "sales.purchases"),
        (300, "public.purchases"),
    ] {
        assert_eq!(name_of(&names, 16402, at).as_deref(), Some(name));
        let files = names.files_of(name, Some("shop"));
        assert_eq!(files, [(file(16402), 16402)], "{name}");
    }
    // A number that was given again.
    names.learn_row(lsn(400), &row(17000, 2200, "heir", b'r', 16402));
    assert_eq!(name_of(&names, 16402, 350).as_deref(), Some("public.purchases"));
    assert_eq!(name_of(&names, 16402, 400).as_deref(), Some("public.heir"));
}

#[test]
fn the_file_that_a_rewrite_made_is_of_the_relation_that_it_rewrote() {
    let mut names = captured();
    names.learn_row(lsn(200), &row(16600, 16390, "pg_temp_16402", b'r', 16600));
    names.learn_row(lsn(201), &row(16603, 99, "pg_toast_16600", b't', 16603));
    let rewritten = names.relation(&file(16600), lsn(300)).unwrap();
    assert_eq!((rewritten.name.as_str(), rewritten.oid), ("sales.orders", 16402));
    assert!(rewritten.rewritten && !names.relation(&file(16402), lsn(300)).unwrap().rewritten);
    assert_eq!(names.relation(&file(16603), lsn(300)).unwrap().owner, Some(16402));
    // It rebuilt the index, and made no new name for it. The old files go last first.
    names.learn_new_files(lsn(210), &[file(16600), file(16604)], &[file(16402), file(16407)]);
    assert_eq!(name_of(&names, 16604, 300).as_deref(), Some("sales.orders_pkey"));
    // And then it was emptied.
    names.learn_new_files(lsn(220), &[file(16700)], &[file(16600)]);
    assert_eq!(name_of(&names, 16700, 300).as_deref(), Some("sales.orders"));
    let files = names.files_of("sales.orders", None);
    assert_eq!(files, [16402, 16600, 16700].map(|number| (file(number), 16402)));
    // Of a relation that nobody knows only the rewrite is told.
    names.learn_row(lsn(300), &row(16800, 2200, "pg_temp_99999", b'r', 16800));
    assert_eq!(name_of(&names, 16800, 300).as_deref(), Some("public.pg_temp_99999"));
}

#[test]
fn new_files_are_paired_with_those_they_take_the_place_of() {
    let mut names = captured();
    // As a commit tells them: the last dropped first.
    let dropped = [16407, 16405, 16402].map(file);
    names.learn_new_files(lsn(200), &[16712, 16710, 16711].map(file), &dropped);
    for (number, name) in [
        (16710, "sales.orders"),
        (16711, "pg_toast.pg_toast_16402"),
        (16712, "sales.orders_pkey"),
    ] {
        assert_eq!(name_of(&names, number, 300).as_deref(), Some(name));
    }
    assert_eq!(
        name_of(&names, 16402, 300).as_deref(),
        Some("sales.orders"),
        "the old one keeps it"
    );
    assert_eq!(
        names.files_of("sales.orders", None),
        [16402, 16710].map(|number| (file(number), 16402))
    );
}

#[test]
fn files_that_do_not_pair_stay_without_a_name() {
    let mut names = captured();
    names.learn_new_files(lsn(200), &[file(16710)], &[file(16405), file(16402)]);
    names.learn_new_files(lsn(201), &[file(16711), file(16712)], &[file(16402)]);
    names.learn_new_files(lsn(202), &[file(16713)], &[file(99999)]);
    let elsewhere = RelFile {
        database: 16385,
        ..file(16714)
    };
    names.learn_new_files(lsn(203), &[elsewhere], &[file(16402)]);
    for number in [16710, 16711, 16712, 16713, 16714] {
        assert_eq!(name_of(&names, number, 300), None);
    }
    assert_eq!(names.relation(&elsewhere, lsn(300)), None);
}

#[test]
fn files_of_a_name_are_those_of_its_tables_in_the_databases_asked_for() {
    let names = captured();
    assert_eq!(names.files_of("sales.orders", Some("shop")), [(file(16402), 16402)]);
    assert_eq!(names.files_of("sales.orders", Some("other")), []);
    let other = RelFile {
        database: 16385,
        ..file(16402)
    };
    assert_eq!(names.files_of("public.orders", None), [(other, 16402)]);
    for nothing in [
        "orders",
        "sales.orders_pkey",
        "pg_toast.pg_toast_16402",
        "public.parts",
        "",
    ] {
        assert_eq!(names.files_of(nothing, None), [], "{nothing}");
    }
}

#[test]
fn paths_are_those_below_the_data_directory() {
    assert_eq!(path(&file(16402)), "base/16384/16402");
    let global = RelFile {
        tablespace: GLOBAL,
        database: 0,
        number: 1262,
    };
    assert_eq!(path(&global), "global/1262");
    let elsewhere = RelFile {
        tablespace: 16500,
        ..file(16402)
    };
    assert_eq!(path(&elsewhere), "pg_tblspc/16500/16384/16402");
}

#[test]
fn a_part_that_is_none_leaves_what_is_known() {
    let mut names = captured();
    assert!(names.learn_captured(b"nothing", lsn(500)).is_err());
    let newer = packed(&[r#"{"format":9}"#]);
    assert!(names.learn_captured(&newer, lsn(500)).is_err());
    assert_eq!(name_of(&names, 16402, 600).as_deref(), Some("sales.orders"));
}
