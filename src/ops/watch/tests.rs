//! What the sources say, put together.

use super::*;
use crate::pg::{SegmentSize, golden};

const SIZE: SegmentSize = SegmentSize::DEFAULT;

fn recovering() -> ControlFile {
    let mut control = ControlFile::parse(&golden::read(15, "recovering.control")).unwrap();
    control.state = ClusterState::InArchiveRecovery;
    control.redo = Lsn::new(0x200_0028);
    control.minimum_recovery = None;
    control.backup_start = None;
    control.backup_end = None;
    control
}

fn name(number: u64) -> SegmentName {
    SegmentNumber::new(number).name(Timeline::FIRST, SIZE)
}

/// On 14, which does not read ahead.
fn at(control: &ControlFile, doing: Option<Doing>) -> Option<(u64, Source)> {
    on(14, control, doing)
}

fn on(major: u16, control: &ControlFile, doing: Option<Doing>) -> Option<(u64, Source)> {
    let major = MajorVersion::new(major).unwrap();
    position(doing.as_ref(), control, major).map(|(lsn, by)| (lsn.bytes(), by))
}

#[test]
fn a_title_tells_at_least_the_beginning_of_a_segment() {
    let control = recovering();
    let seen = at(&control, Some(Doing::Recovering(name(9))));
    assert_eq!(seen, Some((0x900_0000, Source::Title)));
    let seen = at(&control, Some(Doing::WaitingFor(name(0xE))));
    assert_eq!(seen, Some((0xD00_0000, Source::Title)));
    // As seen on 15: it waited for E, and replay stood at the end of what was written into C.
    let seen = on(15, &control, Some(Doing::WaitingFor(name(0xE))));
    assert_eq!(seen, Some((0xC00_0000, Source::Title)));
    let seen = on(15, &control, Some(Doing::Recovering(name(0xE))));
    assert_eq!(seen, Some((0xD00_0000, Source::Title)));
    // In the first segment replay begins at the checkpoint.
    let seen = on(15, &control, Some(Doing::Recovering(name(2))));
    assert_eq!(seen, Some((0x200_0028, Source::Title)));
}

#[test]
fn pg_control_refines_the_title_within_its_segment_only() {
    let mut control = recovering();
    control.minimum_recovery = Some(Lsn::new(0x961_D508));
    let seen = at(&control, Some(Doing::Recovering(name(9))));
    assert_eq!(seen, Some((0x961_D508, Source::Title)));
    // Replay began anew after a restart, and the file tells how far it was before.
    let seen = at(&control, Some(Doing::Recovering(name(3))));
    assert_eq!(seen, Some((0x300_0000, Source::Title)));
    assert_eq!(at(&control, None), Some((0x961_D508, Source::Control)));
    assert_eq!(
        at(&control, Some(Doing::Other(String::new()))),
        Some((0x961_D508, Source::Control))
    );
}

#[test]
fn the_end_of_a_backup_is_not_taken_for_a_position() {
    let mut control = recovering();
    control.minimum_recovery = Some(Lsn::new(0x700_0000));
    control.backup_end = control.minimum_recovery;
    assert_eq!(at(&control, None), Some((0x200_0028, Source::Control)));
}

#[test]
fn a_server_that_has_not_begun_has_no_position() {
    let mut control = recovering();
    control.state = ClusterState::InProduction;
    assert_eq!(at(&control, Some(Doing::WaitingFor(name(3)))), None);
}

#[test]
fn what_is_no_data_directory_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| Watcher::new(path).err().map(|failure| failure.class());
    assert_eq!(refused(&folder.path().join("absent")), Some(Class::Usage));
    assert_eq!(refused(folder.path()), Some(Class::Usage));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(refused(&file), Some(Class::Usage));
}

/// A data directory in which no server runs.
fn at_rest(state: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("global")).unwrap();
    std::fs::write(folder.path().join(ControlFile::PATH), golden::read(15, state)).unwrap();
    std::fs::write(folder.path().join("PG_VERSION"), "15\n").unwrap();
    folder
}

#[tokio::test]
async fn where_no_server_runs_the_answer_is_how_to_start_it() {
    let folder = at_rest("recovering.control");
    let mut watcher = Watcher::new(folder.path()).unwrap();
    let env = Env::made_up(&[], DateTime::UNIX_EPOCH, 1);
    let connect = |_: &Postmaster| -> Result<_, Failure> { unreachable!("nobody to connect to") };
    let failure = follow(
        &mut watcher,
        Following {
            until: Until::Target,
            interval: std::time::Duration::from_millis(1),
            connect: &connect,
            env: &env,
            starting: None,
        },
        &mut |_| {},
        std::future::pending(),
    )
    .await
    .unwrap_err();
    assert_eq!(failure.class(), Class::OutOfReach);
    assert!(failure.hint().unwrap().contains("pg_ctl -D"), "{failure}");
}
