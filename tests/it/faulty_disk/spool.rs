//! The receiver's spool on a disk that breaks. It is no program of its own, so this binary plays one: the test
//! [`wal_goes_through_a_spool`] is run again under `strace`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use chrono::DateTime;
use pgp_pitr::env::Env;
use pgp_pitr::ops::receive::spool::{Recovered, Spool, SpoolError};
use pgp_pitr::pg::size::Size;
use pgp_pitr::pg::{Lsn, Timeline};
use pgp_pitr::replication::SlotName;

use crate::support::disk::SmallDisk;
use crate::support::made_up::SYSTEM;
use crate::support::strace::{self, Broken, Call};
use crate::support::user::{Scratch, ServerUser};

/// Where the played program finds its folder.
const PLACE: &str = "PGP_TEST_SPOOL";
/// Before what it says of the position up to which WAL is durable, and of what it had released.
const DURABLE: &str = "durable up to ";
const RELEASED: &str = "released up to ";
const HISTORY: &str = "history kept";
/// More than one file of the spool.
const PIECES: u64 = 18;
const PIECE: u64 = 1 << 20;
/// Calls of a kind beyond this are broken only now and then: they differ in nothing.
const FEW: usize = 3;

#[test]
fn wal_goes_through_a_spool() {
    let scratch = Scratch::new();
    let place = Env::of_process()
        .var_os(PLACE)
        .map_or_else(|| scratch.join("spool"), PathBuf::from);
    let (mut spool, _) = open(&place);
    let env = Env::made_up(&[], DateTime::UNIX_EPOCH, 1);
    // Each failure is met as the receiver meets it: from where the spool ends, once more.
    if (0..2).any(|_| spool.put_history(Timeline::FIRST, b"of old", &env).is_ok()) {
        eprintln!("{HISTORY}");
    }
    for piece in 1..=PIECES {
        for _ in 0..3 {
            let from = spool.end().map_or(Lsn::new(PIECE), |(_, end)| end);
            let to = Lsn::new(PIECE).plus(piece * PIECE);
            let parts: Vec<Bytes> = (0..to.since(from) / PIECE)
                .map(|part| wal(from.plus(part * PIECE), PIECE))
                .collect();
            let appended = spool.append(Timeline::FIRST, from, &parts);
            if appended.is_ok() && (!piece.is_multiple_of(6) || say_durable(&mut spool)) {
                break;
            }
        }
    }
    while let Ok(Some(chunk)) = spool.read() {
        assert_eq!(chunk.content, wal(chunk.from, chunk.content.len() as u64));
        let up_to = chunk.to();
        // Said first: what is asked to be released need not be there any more.
        eprintln!("{RELEASED}{up_to}");
        let _ = spool.release(Timeline::FIRST, up_to);
        if up_to >= Lsn::new(17 * PIECE) {
            break;
        }
    }
}

fn say_durable(spool: &mut Spool) -> bool {
    match spool.sync() {
        Ok(Some((_, end))) => {
            eprintln!("{DURABLE}{end}");
            true
        }
        _ => false,
    }
}

#[test]
fn what_the_spool_called_durable_is_there_wherever_the_disk_breaks() {
    let scratch = Scratch::on_disk();
    let program = scratch.join("it");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let place = |number: usize| scratch.folder(format!("spool-{number}"));
    let first = place(0);
    let trace = strace::watch(&played(&program, &first), &first);
    assert_eq!(trace.answer.code, 0, "{}", trace.answer.stderr);
    assert!(said(&trace.answer.stderr, DURABLE) >= Some(Lsn::new(PIECES * PIECE)));
    let released = trace.last(&["unlink", ".wal"]);
    assert!(trace.last(&["fsync(", &format!("/{SYSTEM}/pgp>")]) > released);

    let (mut broken, mut felt) = (0, 0);
    for call in trace.calls.iter().filter(|call| is_chosen(call)) {
        for how in call.breaks() {
            broken += 1;
            let about = format!("{call:?} {how:?}");
            let folder = place(broken);
            let Broken { answer, disk_failed } = strace::broken(&played(&program, &folder), call, how);
            felt += usize::from(disk_failed || answer.code == 137);
            judge(&folder, &answer.stderr, &about);
            fs::remove_dir_all(folder).unwrap();
        }
    }
    assert!(felt * 2 > broken, "{felt} of {broken} faults were felt");
}

#[test]
fn a_full_disk_under_the_spool_is_an_error_and_nothing_durable_is_lost() {
    let disk = SmallDisk::new(24 << 20);
    let (mut spool, _) = open(disk.path());
    let mut end = Lsn::new(PIECE);
    let mut put = |spool: &mut Spool| {
        let appended = spool.append(Timeline::FIRST, end, &[wal(end, PIECE)]);
        if appended.is_ok() {
            end = end.plus(PIECE);
        }
        appended
    };
    let error = loop {
        match put(&mut spool) {
            Ok(()) => spool.sync().map(drop).unwrap(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Io { .. }), "{error}");
    assert!(put(&mut spool).is_err(), "there is still no room");
    spool.release(Timeline::FIRST, Lsn::new(17 * PIECE)).unwrap();
    put(&mut spool).unwrap();
    spool.sync().unwrap();
    drop(spool);
    let (_, recovered) = open(disk.path());
    assert_eq!((recovered.torn_bytes, recovered.damaged.len()), (0, 0));
    assert_eq!(recovered.stretches.last().unwrap().to, end);
}

/// What is there must be what was said.
fn judge(folder: &Path, said_by_it: &str, about: &str) {
    let (mut spool, recovered) = open(folder);
    assert_eq!(recovered.damaged, [], "{about}");
    if said_by_it.contains(HISTORY) {
        assert_eq!(recovered.histories, [Timeline::FIRST], "{about}");
        assert_eq!(spool.histories().unwrap()[0].1, "of old", "{about}");
    }
    let released = said(said_by_it, RELEASED).unwrap_or(Lsn::new(PIECE));
    let mut at = None;
    while let Some(chunk) = spool.read().unwrap() {
        assert!(
            at.map_or(chunk.from <= released, |at| at == chunk.from),
            "{about}: a hole before {}",
            chunk.from
        );
        assert_eq!(chunk.content, wal(chunk.from, chunk.content.len() as u64), "{about}");
        at = Some(chunk.to());
    }
    let reached = at.unwrap_or(released);
    assert!(
        Some(reached) >= said(said_by_it, DURABLE),
        "{about}: {reached} was reached:\n{said_by_it}"
    );
}

/// The last position that was said in these words.
fn said(by_it: &str, words: &str) -> Option<Lsn> {
    let lines = by_it.lines().filter_map(|line| line.strip_prefix(words));
    lines.filter_map(|lsn| lsn.parse().ok()).next_back()
}

fn is_chosen(call: &Call) -> bool {
    call.number <= FEW || call.number.is_multiple_of(7)
}

fn played(program: &Path, place: &Path) -> Command {
    let mut command = ServerUser::get().command(program);
    command
        .args(["--exact", "faulty_disk::spool::wal_goes_through_a_spool", "--nocapture"])
        .args(["--test-threads", "1"])
        .env(PLACE, place);
    command
}

fn open(folder: &Path) -> (Spool, Recovered) {
    let slot = SlotName::new("pgp").unwrap();
    Spool::open(folder, SYSTEM, &slot, Size::new(32 << 20)).unwrap()
}

/// What stands at these positions.
fn wal(from: Lsn, len: u64) -> Bytes {
    (from.bytes()..from.bytes() + len)
        .map(|at| (at ^ (at >> 11)) as u8)
        .collect()
}
