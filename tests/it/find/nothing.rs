//! What is said where nothing is found, or can't be looked for.

use super::*;

/// What is said on stderr, besides the answer.
fn said(vault: &Vault, arguments: &[&str], code: i32) -> String {
    vault.pitr(["find"].iter().chain(arguments)).with_code(code).stderr
}

#[test]
fn a_search_that_finds_nothing_says_what_there_is() {
    let vault = Vault::folder();
    let cluster = vault.protect(quiet(Major::usual()));
    cluster.sql(
        "create table few (x int); create table parted (x int) partition by range (x);
         create table part partition of parted for values from (0) to (10); create view seen as select * from few",
    );
    vault.backup(&cluster);
    cluster.sql("create database later");
    let xid = cluster.sql("begin; select pg_current_xact_id(); insert into few values (1); commit");
    let xid = xid.lines().next().expect("an id");
    cluster.archive_now();

    // The transaction is there, and did no such thing.
    let narrowed: [&[&str]; 6] = [
        &["--drop"],
        &["--mass-delete", "5000"],
        &["--relation", "part"],
        &["--database", "later"],
        &["--between", "2099-01-01 00:00:00Z", "2099-01-02 00:00:00Z"],
        &["--around", "2001-01-01 00:00:00Z", "--drop"],
    ];
    for more in narrowed {
        let stderr = said(&vault, &[&["--xid", xid], more].concat(), 0);
        let expected = format!("transaction {xid} is in the WAL (commit at ");
        assert!(stderr.contains(&expected), "{more:?}: {stderr}");
    }
    // A database that was misspelt.
    for name in ["pstgres", ""] {
        let stderr = said(&vault, &["--drop", "--database", name], 2);
        let expected = format!("no database {name:?} is known; known are: later, postgres, ");
        assert!(stderr.contains(&expected), "{stderr}");
    }
    assert!(said(&vault, &["--drop", "--database", "later"], 0).contains("nothing found; "));
    // Relations that have no rows of their own.
    let stderr = said(&vault, &["--relation", "parted"], 2);
    assert!(
        stderr.contains("public.parted is a partitioned table: its rows are in its partitions"),
        "{stderr}"
    );
    assert!(said(&vault, &["--relation", "public.seen"], 2).contains("public.seen is a view"));
    assert!(said(&vault, &["--relation", "other.few"], 2).contains("may be known by its former name only"));
    // A stretch outside of the WAL, and one inside.
    for [from, to] in [
        ["2099-01-01 00:00:00Z", "2099-01-02 00:00:00Z"],
        ["FF/1", "FF/2"],
        ["1900-01-01 00:00:00Z", "1900-01-02 00:00:00Z"],
    ] {
        let stderr = said(&vault, &["--between", from, to], 0);
        let fork = "; the archived WAL reaches from 0/1000000 (20";
        assert!(stderr.contains(fork) && stderr.contains("Z) on timeline 1"), "{stderr}");
    }
    let both = ["--between", "FF/1", "FF/2", "--between", "1/0", "2/0"];
    assert!(said(&vault, &both, 2).contains("cannot be used multiple times"));
    // Ids of 64 bits.
    let raised = |epoch: u64| (xid.parse::<u64>().expect("a number") + (epoch << 32)).to_string();
    assert_eq!(short(&find(&vault, &["--xid", &raised(0)])), ["commit public.few"]);
    for epoch in [1, u32::MAX.into()] {
        let stderr = said(&vault, &["--xid", &raised(epoch)], 2);
        let expected = format!("no transaction {}: its ids are of epoch 0, not {epoch}", raised(epoch));
        assert!(stderr.contains(&expected), "{stderr}");
    }
    assert!(said(&vault, &["--xid", "4294967296"], 2).contains("the lower 32 bits"));
    let stderr = said(&vault, &["--xid", "4000000"], 0);
    assert!(
        stderr.contains("is not in the WAL that was searched; the archived WAL reaches"),
        "{stderr}"
    );
}

#[test]
fn a_name_that_somebody_chose_forges_no_line_and_a_dropped_tablespace_is_told_by_its_folder() {
    let vault = Vault::folder();
    let scratch = Scratch::new();
    let [old, new] = ["old", "new"].map(|name| scratch.folder(name).display().to_string());
    let cluster = vault.protect(quiet(Major::usual()));
    cluster.sql(&format!("create tablespace old location '{old}'"));
    vault.backup(&cluster);
    cluster.sql(&format!("create tablespace new location '{new}'"));
    for name in ["old", "new"] {
        cluster.sql(&format!("drop tablespace {name}"));
    }
    cluster.sql("do $$ begin execute format('create table %I (x int)', E'a\n  just before it: rm \x1b[31m'); end $$");
    cluster.sql("do $$ begin execute format('drop table %I', E'a\n  just before it: rm \x1b[31m'); end $$");
    cluster.archive_now();
    let answer = vault.pitr(["find", "--drop"]).with_code(0).stdout;
    for folder in [old, new] {
        assert!(answer.contains(&format!("DROP TABLESPACE at {folder}\n")), "{answer}");
    }
    assert!(
        answer.contains("public.a\\n  just before it: rm \\u{1b}[31m"),
        "{answer}"
    );
    assert!(
        !answer.contains('\u{1b}') && !answer.contains("\n  just before it: rm"),
        "{answer}"
    );
}
