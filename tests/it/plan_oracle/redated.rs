//! A scene whose transactions ended at other times: the WAL of a real server, with the times in its commits and aborts
//! replaced and the checksums made good, so that `pg_waldump` and a recovering server take it as they take any.
//!
//! Real servers write some commits out of order, some in the same microsecond, and seldom by much. Here they do so often,
//! and across segments.

use std::fs::{self, File};
use std::process::Command;
use std::time::SystemTime;

use chrono::{DateTime, TimeDelta, Utc};
use pgp_pitr::pg::{Lsn, SegmentNumber};

use super::reading::Record;
use super::scene::Scene;
use crate::support::chance::Chance;
use crate::support::program::{Answer, Program};
use crate::support::user::{Scratch, ServerUser};
use crate::support::vault::Vault;

/// `XLOG_BLCKSZ`, `SizeOfXLogShortPHD`, `SizeOfXLogLongPHD`, `SizeOfXLogRecord`, and where its CRC lies.
const PAGE: usize = 8192;
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
const RECORD_HEADER: usize = 24;
const CRC: usize = 20;

/// 2000-01-01, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;

/// Ends of transactions as they could have been told: never later than they were, because a segment is archived after
/// everything in it has happened.
pub fn earlier(at: DateTime<Utc>, chance: &Chance) -> DateTime<Utc> {
    let micros = at.timestamp_micros();
    let back = |most: usize| micros - chance.below(most) as i64;
    let micros = match chance.below(20) {
        // Many at the same time.
        0..10 => micros - micros % 2000,
        10..17 => back(3000),
        17..19 => back(400_000),
        _ => back(3_000_000),
    };
    DateTime::from_timestamp_micros(micros).expect("a time")
}

/// The same scene, had the server's clock been set back by so much when it began to write segment `at`.
pub fn set_back(scene: &Scene, at: SegmentNumber, by: TimeDelta) -> Scene {
    let begin = at.start(scene.catalog.info.segment_size);
    let time = |record: &Record, at| if record.start < begin { at } else { at - by };
    let modified = |segment, written| if segment < at { written } else { written - by };
    let mut scene = rewritten(scene, &time, &modified);
    for backup in &mut scene.catalog.backups {
        if backup.start_lsn >= begin {
            backup.started_at -= by;
            backup.stopped_at -= by;
        }
    }
    scene.catalog.backups.sort_by_key(|backup| backup.stopped_at);
    scene.facts.told -= by;
    scene
}

/// The same scene, with each end of a transaction at the time that `time` makes of its own.
pub fn redated(scene: &Scene, time: impl Fn(DateTime<Utc>) -> DateTime<Utc>) -> Scene {
    rewritten(scene, &|_, at| time(at), &|_, at| at)
}

/// `modified` says when a segment was written last.
fn rewritten(
    scene: &Scene,
    time: &dyn Fn(&Record, DateTime<Utc>) -> DateTime<Utc>,
    modified: &dyn Fn(SegmentNumber, DateTime<Utc>) -> DateTime<Utc>,
) -> Scene {
    let segments = scene.segments();
    let size = scene.catalog.info.segment_size;
    let mut wal: Vec<u8> = segments
        .iter()
        .flat_map(|segment| fs::read(scene.segment_path(*segment)).expect("a segment"))
        .collect();
    let begin = segments[0].start(size);
    for record in &scene.records {
        if let Some(end) = record.ended() {
            set_time(&mut wal, begin, size.bytes(), record, time(record, end.at));
        }
    }
    let folder = Scratch::new();
    let to = folder.folder("pg_wal");
    for (segment, bytes) in segments.iter().zip(wal.chunks(size.bytes() as usize)) {
        let from = scene.segment_path(*segment);
        let path = to.join(from.file_name().expect("a name"));
        fs::write(&path, bytes).expect("written");
        let written = fs::metadata(from).and_then(|about| about.modified()).expect("when");
        set_modified(&path, modified(*segment, written.into()).into());
    }
    ServerUser::get().give(&to);
    let vault = with_the_backups_of(&scene.vault, &folder);
    for segment in &segments {
        let name = scene.segment_path(*segment);
        let path = to.join(name.file_name().expect("a name"));
        let mut archive = Program::Archive.command();
        archive.arg(path).arg("--repo").arg(vault.repo());
        Answer::of(&mut archive).with_code(0);
    }
    Scene::of(vault, scene.major, folder, scene.facts.clone())
}

fn set_modified(path: &std::path::Path, at: SystemTime) {
    let file = File::options().write(true).open(path).expect("opened");
    file.set_modified(at).expect("its time can be set");
}

/// A repository with the same backups, and no WAL.
fn with_the_backups_of(vault: &Vault, folder: &Scratch) -> Vault {
    let to = folder.join("repo");
    let mut copy = Command::new("cp");
    Answer::of(copy.arg("-a").arg(vault.repo()).arg(&to)).with_code(0);
    for cluster in fs::read_dir(to.join("clusters")).expect("clusters") {
        let wal = cluster.expect("an entry").path().join("wal");
        fs::remove_dir_all(wal).expect("the WAL goes");
    }
    Vault::at(&to)
}

/// Replaces the time in a commit or abort, and its checksum.
fn set_time(wal: &mut [u8], begin: Lsn, segment: u64, record: &Record, at: DateTime<Utc>) {
    let first = record.start.since(begin) as usize;
    let length = u32::from_le_bytes(wal[first..first + 4].try_into().expect("four")) as usize;
    let places = places(record.start, length, segment, begin);
    let mut bytes: Vec<u8> = places.iter().map(|place| wal[*place]).collect();
    let main = match bytes[RECORD_HEADER] {
        255 => RECORD_HEADER + 2,
        254 => RECORD_HEADER + 5,
        // The origin comes first; none of our sessions has one.
        other => panic!("main data of {record:?} begins with {other}"),
    };
    let micros = at.timestamp_micros() - EPOCH;
    bytes[main..main + 8].copy_from_slice(&micros.to_le_bytes());
    let checked = [&bytes[RECORD_HEADER..], &bytes[..CRC]].concat();
    bytes[CRC..RECORD_HEADER].copy_from_slice(&crc_fast::crc32_iscsi(&checked).to_le_bytes());
    for (place, byte) in places.into_iter().zip(bytes) {
        wal[place] = byte;
    }
}

/// Where each byte of a record lies: between headers of pages.
fn places(start: Lsn, length: usize, segment: u64, begin: Lsn) -> Vec<usize> {
    let mut at = start;
    let mut places = Vec::with_capacity(length);
    while places.len() < length {
        if at.bytes().is_multiple_of(segment) {
            at = at.plus(LONG_HEADER as u64);
        } else if at.bytes().is_multiple_of(PAGE as u64) {
            at = at.plus(SHORT_HEADER as u64);
        }
        places.push(at.since(begin) as usize);
        at = at.plus(1);
    }
    places
}
