//! Every object's name, in one place.
//!
//! ```text
//! pgp.json                                                marker
//! clusters/SYSID/cluster.json                             what the cluster is
//! clusters/SYSID/wal/TTTTTTTT/LLLLLLLL/SEGMENT.zst        and .partial.zst, .XXXXXXXX.backup.zst
//! clusters/SYSID/wal/TTTTTTTT.history.zst
//! clusters/SYSID/tail/TTTTTTTT/FROM-TO.zst                pieces of a segment that is not full yet
//! clusters/SYSID/backups/ID/…                             `backup.json` last: it is the commit
//! clusters/SYSID/packs/ID/NNNNNNNN.pack
//! ```

use crate::pg::{Lsn, SegmentName, SystemId, Timeline, WalFileName};
use crate::store::Name;

use super::backup::BackupId;

/// The repository's marker: without it nothing is ever "not found".
pub fn marker() -> Name {
    Name::from("pgp.json")
}

/// The folder of all clusters.
pub fn clusters() -> Name {
    Name::from("clusters")
}

/// A throw-away object that shows what a store can do.
pub fn probe(chance: u64) -> Name {
    Name::from(format!("probe-{chance:016x}"))
}

/// Whether this is the name of a throw-away object.
pub fn is_probe(name: &str) -> bool {
    name.strip_prefix("probe-")
        .is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The folder of one cluster.
pub fn cluster(system: SystemId) -> Name {
    Name::from(format!("clusters/{system}"))
}

/// What binds a cluster's name to its facts.
pub fn cluster_json(system: SystemId) -> Name {
    cluster(system).join("cluster.json")
}

/// The folder of a cluster's WAL.
pub fn wal(system: SystemId) -> Name {
    cluster(system).join("wal")
}

/// The folder of one timeline's WAL.
pub fn wal_timeline(system: SystemId, timeline: Timeline) -> Name {
    wal(system).join(timeline.hex())
}

/// The folder of 4 GiB of one timeline's WAL.
pub fn wal_log(system: SystemId, timeline: Timeline, log: u32) -> Name {
    wal_timeline(system, timeline).join(format!("{log:08X}"))
}

/// The object of one WAL file.
pub fn wal_file(system: SystemId, file: WalFileName) -> Name {
    let folder = match file.segment() {
        Some(segment) => wal_log(system, segment.timeline(), segment.log()),
        None => wal(system),
    };
    folder.join(format!("{file}.zst"))
}

/// The WAL file whose object has this name in this folder; `None` for anything else, and for a WAL file that does not lie
/// where it would be fetched from.
pub fn read_wal_file(folder: &Name, object: &str) -> Option<WalFileName> {
    let file: WalFileName = object.strip_suffix(".zst")?.parse().ok()?;
    let wal = match file.segment() {
        // A segment's first sixteen digits are its folders.
        Some(_) => {
            let log = folder.as_ref().strip_suffix(&object[8..16])?.strip_suffix('/')?;
            log.strip_suffix(&object[..8])?.strip_suffix('/')?
        }
        None => folder.as_ref(),
    };
    wal.ends_with("/wal").then_some(file)
}

/// The object of a WAL file's index, where the file's own object came without one.
pub fn wal_index(system: SystemId, segment: SegmentName, file: WalFileName) -> Name {
    cluster(system)
        .join("index")
        .join(segment.timeline().hex())
        .join(format!("{:08X}", segment.log()))
        .join(format!("{file}.idx"))
}

/// The folder of a cluster's pieces.
pub fn tail(system: SystemId) -> Name {
    cluster(system).join("tail")
}

/// The folder of one timeline's pieces.
pub fn tail_timeline(system: SystemId, timeline: Timeline) -> Name {
    tail(system).join(timeline.hex())
}

/// The piece of a timeline's WAL from a place up to another.
pub fn piece(system: SystemId, timeline: Timeline, from: Lsn, to: Lsn) -> Name {
    let name = format!("{:016X}-{:016X}.zst", from.bytes(), to.bytes());
    tail_timeline(system, timeline).join(name)
}

/// Which piece has this name in this folder; `None` for anything else.
pub fn read_piece(folder: &Name, object: &str) -> Option<(Timeline, Lsn, Lsn)> {
    let (above, timeline) = folder.as_ref().rsplit_once('/')?;
    let (from, to) = object.strip_suffix(".zst")?.split_once('-')?;
    let (timeline, from, to) = (Timeline::from_hex(timeline)?, position(from)?, position(to)?);
    (above.ends_with("/tail") && from < to).then_some((timeline, from, to))
}

/// A position as the names of pieces have it.
fn position(digits: &str) -> Option<Lsn> {
    let upper = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    let bytes = u64::from_str_radix(digits, 16).ok()?;
    (upper && digits.len() == 16).then_some(Lsn::new(bytes))
}

/// The folder of notes about WAL that could not be read.
pub fn doubts(system: SystemId) -> Name {
    cluster(system).join("doubtful")
}

/// A note about one WAL file that could not be read.
pub fn doubt(system: SystemId, file: WalFileName) -> Name {
    doubts(system).join(format!("{file}.json"))
}

/// The WAL file whose note has this name; `None` for anything else.
pub fn read_doubt(name: &Name) -> Option<WalFileName> {
    name.filename()?.strip_suffix(".json")?.parse().ok()
}

/// The folder of a cluster's base backups.
pub fn backups(system: SystemId) -> Name {
    cluster(system).join("backups")
}

/// One object of a base backup.
pub fn backup_part(system: SystemId, id: &BackupId, part: &str) -> Name {
    backups(system).join(id.as_str()).join(part)
}

/// The folder of a cluster's packs.
pub fn packs(system: SystemId) -> Name {
    cluster(system).join("packs")
}

/// One pack, by the backup that wrote it and its number.
pub fn pack(system: SystemId, id: &BackupId, number: u32) -> Name {
    packs(system).join(id.as_str()).join(format!("{number:08}.pack"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_objects_are_found_again_by_their_names() {
        let system = SystemId::new(7);
        for (file, name) in [
            (
                "0000000100000016000000B3",
                "clusters/7/wal/00000001/00000016/0000000100000016000000B3.zst",
            ),
            (
                "0000000100000016000000B3.partial",
                "clusters/7/wal/00000001/00000016/0000000100000016000000B3.partial.zst",
            ),
            ("0000000A.history", "clusters/7/wal/0000000A.history.zst"),
            (
                "000000010000000000000002.00000028.backup",
                "clusters/7/wal/00000001/00000000/000000010000000000000002.00000028.backup.zst",
            ),
        ] {
            let file: WalFileName = file.parse().unwrap();
            assert_eq!(wal_file(system, file).as_ref(), name);
            let (folder, object) = name.rsplit_once('/').unwrap();
            assert_eq!(read_wal_file(&Name::from(folder), object), Some(file));
        }
        for (folder, object) in [
            ("clusters/7", "cluster.json"),
            ("clusters/7/wal", "0000000100000016000000B3.zst"),
            ("clusters/7/wal/00000001/00000017", "0000000100000016000000B3.zst"),
            ("clusters/7/wal/00000002/00000016", "0000000100000016000000B3.zst"),
            ("clusters/7/wal/0000/000100000016", "0000000100000016000000B3.zst"),
            ("clusters/7/wal/00000001/00000016", "0000000100000016000000B3"),
            ("clusters/7/wal/00000001", "0000000A.history.zst"),
        ] {
            assert_eq!(read_wal_file(&Name::from(folder), object), None, "{folder}/{object}");
        }
    }

    #[test]
    fn pieces_are_found_again_by_their_names() {
        let (timeline, from, to) = (Timeline::FIRST, Lsn::new(0x16_B374_D848), Lsn::new(0x16_B400_0000));
        let name = piece(SystemId::new(7), timeline, from, to);
        let text = "clusters/7/tail/00000001/00000016B374D848-00000016B4000000.zst";
        assert_eq!(name.as_ref(), text);
        let (folder, object) = text.rsplit_once('/').unwrap();
        assert_eq!(read_piece(&Name::from(folder), object), Some((timeline, from, to)));
        for (folder, object) in [
            ("clusters/7/wal/00000001", object),
            ("clusters/7/tail", object),
            ("clusters/7/tail/1", object),
            (folder, "00000016B374D848-00000016B4000000"),
            (folder, "00000016b374d848-00000016B4000000.zst"),
            (folder, "+0000016B374D848-00000016B4000000.zst"),
            (folder, "16B374D848-00000016B4000000.zst"),
            (folder, "00000016B4000000-00000016B374D848.zst"),
            (folder, "00000016B4000000-00000016B4000000.zst"),
        ] {
            assert_eq!(read_piece(&Name::from(folder), object), None, "{folder}/{object}");
        }
    }
}
