//! What is stored is what the server has on its disk, byte for byte, whoever brought it.

use std::fs;
use std::path::Path;

use crate::support::cluster::Cluster;
use crate::support::ledger;
use crate::support::process::wait_for;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

use super::running::Receiver;
use super::{contents, switch, wait_until_durable};

#[test]
fn segments_are_those_that_cp_archives() {
    for major in Major::all() {
        identical(major, false);
    }
}

#[test]
fn segments_are_the_same_where_pgp_archive_brings_them_at_the_same_time() {
    for major in Major::all() {
        identical(major, true);
    }
}

fn identical(major: &'static Major, archive_too: bool) {
    let (vault, scratch) = (Vault::folder(), Scratch::new());
    let copies = scratch.folder("copies");
    let builder = Cluster::builder(major)
        .initdb_args(["--wal-segsize=1"])
        .conf("autovacuum", "off");
    let server = vault.protect(builder);
    let archive = server.sql("show archive_command");
    let cp = format!("cp %p '{}/%f'", copies.display());
    server.set(
        "archive_command",
        &if archive_too { format!("{archive} && {cp}") } else { cp },
    );
    let mut receiver = Receiver::streaming(&vault, &server.conninfo(), &["--synchronous"]);
    let first = server.sql("select pg_walfile_name(pg_current_wal_lsn())");
    server.sql("create table bulk (text text)");
    let mut last = String::new();
    for _ in 0..3 {
        ledger::write(&server, 3, 10);
        server.sql("insert into bulk select md5(n::text) from generate_series(1, 20000) n");
        last = switch(&server);
    }
    wait_for("the archive has it all", || copies.join(&last).exists().then_some(()));
    wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));

    let mut names: Vec<String> = contents(&copies)
        .keys()
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .filter(|name| name.len() == 24 && *name >= first)
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    for name in &names {
        let fetched = scratch.join("fetched");
        vault.fetch(&server, name, &fetched).with_code(0);
        let same = fs::read(&fetched).unwrap() == fs::read(copies.join(name)).unwrap();
        assert!(same, "{name} of {major:?}");
        fs::remove_file(fetched).unwrap();
    }
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    assert_eq!(list["clusters"][0]["wal"][0]["gaps"], serde_json::json!([]), "{list:#}");
    let (log, said) = (receiver.log(), server.log());
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    assert!(!said.contains("archive command failed"), "{said}");
    let doubtful = contents(Path::new(vault.repo()));
    let doubtful = doubtful.keys().find(|path| path.to_string_lossy().contains("doubtful"));
    assert_eq!(doubtful, None);
}
