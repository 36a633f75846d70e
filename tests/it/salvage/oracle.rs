//! Where WAL that was damaged anywhere ends: PostgreSQL's own crash recovery is asked, and `salvage` must give the same rows.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgp_pitr::pg::Lsn;

use super::{archive_no_more, protected, rows_after_a_crash, salvage, wal_files};
use crate::support::chance::Chance;
use crate::support::cluster::{Cluster, Recovered};
use crate::support::ledger;
use crate::support::tools::Major;
use crate::support::user::Scratch;
use crate::support::vault::Vault;

const SEGMENT: u64 = 1 << 20;
const ROUNDS: usize = 6;

#[test]
fn wherever_the_wal_is_damaged_salvage_ends_where_the_servers_own_recovery_does() {
    let chance = Chance::new();
    for (round, major) in (0..ROUNDS).zip([Major::usual(), Major::newest()].into_iter().cycle()) {
        let vault = Vault::folder();
        let scratch = Scratch::new();
        let mut primary = protected(&vault, major, 1);
        archive_no_more(&primary);
        // Without its last checkpoint a server does not start: that one's segment stays as it is.
        primary.sql("checkpoint");
        let checkpoint: Lsn = primary.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
        let safe = Lsn::new(checkpoint.bytes().next_multiple_of(SEGMENT));
        for _ in 0..3 {
            ledger::write(&primary, 2, 40);
            primary.sql("insert into bulk select n, repeat(md5(n::text), 20) from generate_series(1, 700) n");
        }
        let end: Lsn = primary.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
        primary.kill9();
        let at = safe.bytes() + chance.below((end.bytes() - safe.bytes()) as usize) as u64;
        let how = damage(&chance, primary.data_dir(), at);
        let about = format!(
            "round {round} of {}: {how} at {}, of {safe} to {end}",
            major.number(),
            Lsn::new(at)
        );

        // A copy: to start a server in it is to go on in it.
        let rows = rows_after_a_crash(&primary, &scratch.join("oracle"));
        let answer = salvage(&vault, primary.data_dir(), &[]);
        assert!([0, 3, 4].contains(&answer.code), "{about}: {answer:?}");
        let to = scratch.join("restored");
        vault.restore(&to, &["--latest", "--archive", "off"]).with_code(0);
        let mut restored = Cluster::on_directory(major, &to);
        assert_eq!(restored.recover(), Recovered::Open, "{about}\n{}", restored.log());
        assert_eq!(ledger::rows(&restored), rows, "{about}: {}", answer.stdout);
    }
}

/// Does something to the WAL from a place on, and says what.
fn damage(chance: &Chance, data: &Path, at: u64) -> &'static str {
    let files = wal_files(data);
    let (number, offset) = (at / SEGMENT, at % SEGMENT);
    let path = |number: u64| -> Option<&PathBuf> {
        let name = format!("{:08X}{:08X}{:08X}", 1, number >> 12, number & 0xFFF);
        files.iter().find(|path| path.ends_with(&name))
    };
    let write = |path: &Path, offset: u64, bytes: &[u8]| {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    };
    let here = path(number).expect("the segment is there");
    match chance.below(4) {
        0 => {
            write(here, offset, &vec![0; (SEGMENT - offset) as usize]);
            for later in (number + 1..).map_while(path) {
                write(later, 0, &vec![0; SEGMENT as usize]);
            }
            "nothing was written"
        }
        1 => {
            let byte = fs::read(here).unwrap()[offset as usize];
            write(here, offset, &[byte ^ 0x10]);
            "a bit has flipped"
        }
        2 => {
            // A page that never reached the disk, in a file that was used before.
            let page = offset / 8192 * 8192;
            let old = fs::read(path(number - 1).unwrap()).unwrap();
            write(here, page, &old[page as usize..page as usize + 8192]);
            "a page is an old one"
        }
        _ => {
            fs::remove_file(here).unwrap();
            "a file is gone"
        }
    }
}
