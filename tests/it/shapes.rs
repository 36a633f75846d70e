//! Clusters of odd shapes come back as they were: segment sizes, checksums, group access, tablespaces,
//! and paths that want quoting wherever they stand.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDateTime};
use pgp_pitr::pg::Lsn;

use crate::support::cluster::{Cluster, Recovered, Stop};
use crate::support::ledger::{self, History, Target};
use crate::support::program::Answer;
use crate::support::tools::Major;
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

/// Seconds since 1970: long before any test.
const LONG_AGO: u64 = 981_173_106;

#[test]
fn a_cluster_with_small_segments_checksums_and_group_access_comes_back_as_it_was() {
    comes_back(Shape {
        major: Major::usual(),
        initdb: &["--wal-segsize=1", "--data-checksums", "--allow-group-access"],
        segment: "1MB",
        checksums: "on",
        mode: "0750",
    });
}

#[test]
fn a_cluster_with_large_segments_and_no_checksums_comes_back_as_it_was() {
    let major = Major::newest();
    let initdb: &[&str] = match major.number() {
        18.. => &["--wal-segsize=64", "--no-data-checksums"],
        _ => &["--wal-segsize=64"],
    };
    comes_back(Shape {
        major,
        initdb,
        segment: "64MB",
        checksums: "off",
        mode: "0700",
    });
}

struct Shape {
    major: &'static Major,
    initdb: &'static [&'static str],
    segment: &'static str,
    checksums: &'static str,
    mode: &'static str,
}

fn comes_back(shape: Shape) {
    let scratch = Scratch::new();
    let vault = Vault::at(&scratch.join("the repo's \"100%p\" \\d = $HOME"));
    let space = scratch.folder("sp ace\\ \"100%\" = 2");
    let other = scratch.folder("other");
    let primary = vault.protect(
        Cluster::builder(shape.major)
            .initdb_args(shape.initdb.iter().copied())
            .conf("autovacuum", "off")
            // Tablespaces in the data directory itself: without this, recovery refuses them.
            .conf("allow_in_place_tablespaces", "on"),
    );
    let start: Lsn = primary.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    primary.sql(&format!(
        "create tablespace \"sp ace\" location '{}'; create tablespace other location '{}';
         create tablespace inside location '';
         create table far tablespace \"sp ace\" as select g, md5(g::text) from generate_series(1, 20000) g;
         create table farther tablespace other as select 1 as n; create index on far (g) tablespace inside;
         create unlogged table fleeting as select g from generate_series(1, 1000) g; create index on fleeting (g);
         create database second tablespace other",
        space.display(),
        other.display()
    ));
    let odd = put_odd_files(primary.data_dir());
    ledger::write(&primary, 2, 8);
    vault.backup(&primary);
    primary.sql("update far set md5 = md5(md5)");
    ledger::write(&primary, 2, 12);
    primary.archive_now();
    let history = History::read(&primary, 1, start);
    let target = Target::Xid(
        history
            .commits()
            .filter(|commit| !commit.rows.is_empty())
            .nth(30)
            .unwrap()
            .xid,
    );

    let to = scratch.join("res'tored \"to\" \\ 100% =\u{fc}");
    let places = [scratch.join("new's \\ \"=\" %f"), scratch.join("new/and deep")];
    let mapping = |old: &Path, new: &Path| {
        let escaped = |path: &Path| path.to_str().unwrap().replace('=', "\\=");
        format!("{}={}", escaped(old), escaped(new))
    };
    let mappings = [mapping(&space, &places[0]), mapping(&other, &places[1])];
    let value = target.value();
    let restore = |mappings: &[String]| {
        let mut arguments = vec!["--target-xid", &value, "--archive", "off"];
        for mapping in mappings {
            arguments.extend(["--tablespace-mapping", mapping]);
        }
        vault.restore(&to, &arguments)
    };
    // The places of the running cluster's tablespaces are taken.
    let answer = restore(&mappings[..1]).with_code(2);
    assert!(answer.stderr.contains("--tablespace-mapping"), "{}", answer.stderr);
    assert!(!to.exists() && !places[0].exists());
    restore(&mappings).with_code(0);

    Answer::of(primary.tool("pg_verifybackup").arg("-n").arg(&to)).with_code(0);
    files_are_as_they_were(&primary, &to, &odd);
    let mut restored = Cluster::on_directory(shape.major, &to);
    assert_eq!(restored.recover(), Recovered::Paused, "{}", restored.log());
    assert_eq!(ledger::rows(&restored), history.expected(&target, true));
    let shown = "show wal_segment_size; show data_checksums; show data_directory_mode";
    let expected = format!("{}\n{}\n{}", shape.segment, shape.checksums, shape.mode);
    assert_eq!(restored.sql(shown), expected);
    let locations = "select pg_tablespace_location(oid) from pg_tablespace where spcname in ('sp ace', 'other')
                     order by spcname desc";
    let wanted: Vec<&str> = places.iter().map(|place| place.to_str().unwrap()).collect();
    assert_eq!(restored.sql(locations).lines().collect::<Vec<_>>(), wanted);
    let fetched = everything(&to.join("pg_wal"));
    assert!(!fetched.is_empty());
    for (name, about) in fetched.iter().filter(|(_, about)| about.is_file()) {
        let group = if shape.mode == "0750" { 0o040 } else { 0 };
        assert_eq!(about.mode() & 0o7777, 0o600 | group, "{}", name.display());
    }
    restored.promote();
    let sum = "select count(*), sum(hashtext(md5)) from far";
    assert_eq!(restored.sql(sum), primary.sql(sum));
    restored.sql("set enable_seqscan = off; insert into fleeting values (7); insert into farther values (2)");
    assert_eq!(restored.sql("select count(*) from fleeting"), "1");
    assert_eq!(restored.sql_in("second", "select 1"), "1");
    Answer::of(
        restored
            .client("pg_amcheck")
            .args(["--all", "--install-missing", "--heapallindexed"]),
    )
    .with_code(0);
    restored.stop(Stop::Fast);
    if shape.checksums == "on" {
        Answer::of(restored.tool("pg_checksums").args(["--check", "-D"]).arg(&to)).with_code(0);
    }
    assert_eq!(
        fs::read_dir(&places[0]).unwrap().count(),
        1,
        "no more than PostgreSQL's own folder"
    );
}

/// Files that PostgreSQL knows nothing of, with names, permissions and times of their own.
fn put_odd_files(data: &Path) -> Vec<PathBuf> {
    let folder = Path::new("odd \"folder\"");
    let names: [&[u8]; 6] = [
        b" '\"\\ = %f $(id) ",
        b"line\nbreak\ttab",
        b"not \xff\xfe UTF-8",
        "\u{e4}\u{1f40d}".as_bytes(),
        b"-rf",
        // With its folder as long as a name in PostgreSQL's stream may be.
        &[b'x'; 86],
    ];
    fs::create_dir_all(data.join(folder).join("empty")).unwrap();
    let files: Vec<PathBuf> = names.iter().map(|name| folder.join(OsStr::from_bytes(name))).collect();
    for (n, file) in files.iter().enumerate() {
        let path = data.join(file);
        fs::write(&path, vec![b'o'; n * 1000]).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(LONG_AGO + n as u64);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        let mode = [0o600, 0o400, 0o640, 0o644, 0o700, 0o660][n];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    ServerUser::get().give(&data.join(folder));
    files
}

fn files_are_as_they_were(primary: &Cluster, restored: &Path, odd: &[PathBuf]) {
    let (before, after) = (everything(primary.data_dir()), everything(restored));
    let ours = if after[Path::new("PG_VERSION")].mode() & 0o040 == 0 {
        0o600
    } else {
        0o640
    };
    for (path, about) in &after {
        let mode = about.mode() & 0o7777;
        match before.get(path) {
            Some(before) => assert_eq!(mode, before.mode() & 0o7777, "{}", path.display()),
            None => assert_eq!(mode, ours, "{}", path.display()),
        }
    }
    for path in odd {
        let (before, after) = (&before[path], &after[path]);
        assert_eq!(after.mtime(), before.mtime(), "{}", path.display());
        assert_eq!(
            fs::read(restored.join(path)).unwrap(),
            fs::read(primary.data_dir().join(path)).unwrap()
        );
    }
    assert!(after[Path::new("odd \"folder\"/empty")].is_dir());
    assert!(!restored.join("postmaster.pid").exists());
    times_are_the_manifests(restored, &after);
}

/// Each file's time is the one in PostgreSQL's own list. Not of two files that a restore writes itself.
fn times_are_the_manifests(restored: &Path, files: &BTreeMap<PathBuf, fs::Metadata>) {
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(restored.join("backup_manifest")).unwrap()).unwrap();
    let listed = manifest["Files"].as_array().unwrap();
    assert!(listed.len() > 500);
    for file in listed {
        // A name that is not UTF-8 stands there in another way, and was looked at before.
        let Some(path) = file["Path"].as_str() else { continue };
        if ["postgresql.auto.conf", "global/pg_control"].contains(&path) {
            continue;
        }
        let time = file["Last-Modified"].as_str().unwrap().trim_end_matches(" GMT");
        let time: DateTime<_> = NaiveDateTime::parse_from_str(time, "%F %T").unwrap().and_utc();
        assert_eq!(files[Path::new(path)].mtime(), time.timestamp(), "{path}");
    }
}

/// All files and folders of a data directory and its tablespaces, by relative path. What the server
/// makes anew is left out.
fn everything(data: &Path) -> BTreeMap<PathBuf, fs::Metadata> {
    let mut found = BTreeMap::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // Through the links of tablespaces.
            let Ok(about) = fs::metadata(&path) else { continue };
            if about.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path.strip_prefix(data).unwrap().to_owned(), about);
        }
    }
    found
}
