//! Archives made here, read by us and by the `tar` crate.

use super::*;
use proptest::prelude::*;
use std::io::Read;

/// What an archive holds: entries and their contents.
type Contents = Vec<(TarEntry, Vec<u8>)>;

fn read(pieces: &[Bytes]) -> Result<Contents, TarError> {
    let mut reader = TarReader::new();
    let mut entries = Contents::new();
    let mut open = false;
    for piece in pieces {
        reader.push(piece.clone());
        while let Some(event) = reader.next()? {
            match event {
                TarEvent::Entry(entry) => {
                    assert!(!std::mem::replace(&mut open, true));
                    entries.push((entry, Vec::new()));
                }
                TarEvent::Data(data) => {
                    assert!(open && !data.is_empty());
                    entries.last_mut().unwrap().1.extend_from_slice(&data);
                }
                TarEvent::EntryEnd => assert!(std::mem::replace(&mut open, false)),
            }
        }
    }
    reader.finish()?;
    assert!(!open);
    Ok(entries)
}

/// The same, read by the `tar` crate.
fn read_by_the_oracle(bytes: &[u8]) -> Contents {
    let mut archive = tar::Archive::new(bytes);
    let mut entries = Contents::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        let header = entry.header();
        let kind = match header.entry_type() {
            tar::EntryType::Regular => EntryKind::File,
            tar::EntryType::Directory => EntryKind::Directory,
            _ => EntryKind::Symlink(Bytes::copy_from_slice(&entry.link_name_bytes().unwrap())),
        };
        let path = entry.path_bytes();
        let path = path.strip_suffix(b"/").unwrap_or(&path);
        let path = Bytes::copy_from_slice(path.strip_prefix(b"./").unwrap_or(path));
        entries.push((
            TarEntry {
                path,
                kind,
                size: header.size().unwrap(),
                mode: header.mode().unwrap(),
                mtime: header.mtime().unwrap(),
                uid: header.uid().unwrap() as u32,
                gid: header.gid().unwrap() as u32,
            },
            contents,
        ));
    }
    entries
}

fn header(name: &[u8], kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(1_700_000_000);
    header.set_uid(26);
    header.set_gid(27);
    header.set_cksum();
    header
}

#[derive(Debug, Clone)]
enum Member {
    File(Vec<u8>, Vec<u8>),
    Directory(Vec<u8>),
    Symlink(Vec<u8>, Vec<u8>),
}

fn member() -> impl Strategy<Value = Member> {
    // Any bytes but zero and a slash at the end, which only a directory has.
    let name = || proptest::collection::vec((1..=255u8).prop_filter("slash", |&b| b != b'/'), 1..99);
    let contents = prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..2000),
        Just(vec![9; 1024]),
    ];
    prop_oneof![
        (name(), contents).prop_map(|(name, contents)| Member::File(name, contents)),
        name().prop_map(Member::Directory),
        (name(), name()).prop_map(|(name, target)| Member::Symlink(name, target)),
    ]
}

fn archive(members: &[Member], end_blocks: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        match member {
            Member::File(name, contents) => {
                let header = header(name, tar::EntryType::Regular, contents.len() as u64);
                bytes.extend_from_slice(header.as_bytes());
                bytes.extend_from_slice(contents);
                bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            }
            Member::Directory(name) => {
                let name = [name, &b"/"[..]].concat();
                bytes.extend_from_slice(header(&name, tar::EntryType::Directory, 0).as_bytes());
            }
            Member::Symlink(name, target) => {
                let mut header = header(name, tar::EntryType::Symlink, 0);
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
                header.set_cksum();
                bytes.extend_from_slice(header.as_bytes());
            }
        }
    }
    bytes.resize(bytes.len() + end_blocks * BLOCK, 0);
    bytes
}

fn cut(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Bytes> {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|place| bytes.slice(place[0]..place[1])).collect()
}

proptest! {
    #[test]
    fn every_archive_reads_as_the_tar_crate_reads_it_whatever_the_pieces(
        members in proptest::collection::vec(member(), 0..8),
        end_blocks in 0..3usize,
        cuts: Vec<prop::sample::Index>,
    ) {
        let bytes = archive(&members, end_blocks);
        let entries = read(&cut(&bytes, &cuts));
        prop_assert_eq!(entries, Ok(read_by_the_oracle(&bytes)));
    }

    #[test]
    fn a_flipped_header_byte_is_never_read_as_another_entry(
        members in proptest::collection::vec(member(), 1..3),
        place in 0..BLOCK,
        flip in 1..=255u8,
    ) {
        let mut bytes = archive(&members, 2);
        let before = read(&[bytes.clone().into()]);
        bytes[place] ^= flip;
        let after = read(&[bytes.into()]);
        // The checksum may be written in another way that says the same.
        prop_assert!(after.is_err() || after == before);
    }

    #[test]
    fn an_archive_cut_short_inside_an_entry_is_refused(contents in proptest::collection::vec(any::<u8>(), 1..1500), at: prop::sample::Index) {
        let bytes = archive(&[Member::File(b"a".to_vec(), contents)], 0);
        let at = 1 + at.index(bytes.len() - 1);
        prop_assert_eq!(read(&[Bytes::copy_from_slice(&bytes[..at])]), Err(TarError::BreaksOff { at: at as u64 }));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, zeros in 0..600usize) {
        let mut bytes = bytes;
        bytes.resize(bytes.len() + zeros, 0);
        let _ = read(&[bytes.into()]);
    }
}

#[test]
fn sizes_of_8_gib_and_more_are_read_in_base_256() {
    for size in [1 << 33, (1 << 33) - 1, 1 << 40, u64::MAX] {
        let header = header(b"base/1/2", tar::EntryType::Regular, size);
        let mut reader = TarReader::new();
        reader.push(Bytes::copy_from_slice(header.as_bytes()));
        let Ok(Some(TarEvent::Entry(entry))) = reader.next() else {
            unreachable!()
        };
        assert_eq!(entry.size, size);
        reader.push(Bytes::from_static(&[1; 7]));
        assert_eq!(reader.next(), Ok(Some(TarEvent::Data(Bytes::from_static(&[1; 7])))));
        assert_eq!(reader.next(), Ok(None));
    }
}

#[test]
fn a_path_from_here_loses_its_dot() {
    let header = header(b"./pg_wal/archive_status/", tar::EntryType::Directory, 0);
    let entries = read(&[Bytes::copy_from_slice(header.as_bytes())]).unwrap();
    assert_eq!(entries[0].0.path, &b"pg_wal/archive_status"[..]);
}

#[test]
fn a_piece_of_contents_is_not_copied() {
    let mut reader = TarReader::new();
    reader.push(Bytes::copy_from_slice(
        header(b"a", tar::EntryType::Regular, 100).as_bytes(),
    ));
    reader.next().unwrap();
    let piece = Bytes::from(vec![5; 60]);
    reader.push(piece.clone());
    let Ok(Some(TarEvent::Data(data))) = reader.next() else {
        unreachable!()
    };
    assert_eq!(data.as_ptr(), piece.as_ptr());
}

#[test]
fn what_postgresql_does_not_write_is_refused_by_name() {
    for kind in *b"1346xgLKS" {
        let header = header(b"a", tar::EntryType::new(kind), 0);
        assert_eq!(
            read(&[Bytes::copy_from_slice(header.as_bytes())]),
            Err(TarError::Kind { at: 0, kind })
        );
    }
    let mut gnu = tar::Header::new_gnu();
    gnu.set_size(0);
    gnu.set_cksum();
    assert_eq!(
        read(&[Bytes::copy_from_slice(gnu.as_bytes())]),
        Err(TarError::Format { at: 0 })
    );
}

#[test]
fn bytes_behind_the_end_are_refused() {
    let mut bytes = archive(&[], 2);
    bytes.push(1);
    assert_eq!(read(&[bytes.into()]), Err(TarError::BehindEnd { at: 1024 }));
}
