//! Answers made up here in both shapes, and what must be read from them.

use super::*;
use crate::replication::{EntryKind, TarEntry};
use proptest::prelude::*;

fn row(values: &[Option<&str>]) -> Backend {
    let value = |value: &Option<&str>| value.map(|text| Bytes::copy_from_slice(text.as_bytes()));
    Backend::Row(values.iter().map(value).collect())
}

fn position_rows(lsn: &str) -> [Backend; 3] {
    [Backend::Columns, row(&[Some(lsn), Some("1")]), Backend::CommandComplete]
}

fn copied(bytes: &[u8]) -> Backend {
    Backend::CopyData(Bytes::copy_from_slice(bytes))
}

/// Files by path, as an archive.
fn tar(files: &[(Vec<u8>, Vec<u8>)], end_blocks: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, contents) in files {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(contents.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(contents);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + end_blocks * 512, 0);
    bytes
}

/// The files of a tablespace and of the data directory, and a manifest.
#[derive(Debug, Clone)]
struct Backup {
    space: Vec<(Vec<u8>, Vec<u8>)>,
    base: Vec<(Vec<u8>, Vec<u8>)>,
    manifest: Vec<u8>,
}

/// The answer of a server that has such a backup to send, cut into pieces of `piece` bytes.
fn answer(backup: &Backup, shape: Shape, piece: usize) -> Vec<Backend> {
    let mut messages = Vec::from(position_rows("0/2000028"));
    messages.extend([
        Backend::Columns,
        row(&[Some("16384"), Some("/space"), None]),
        row(&[None, None, Some("10")]),
        Backend::CommandComplete,
    ]);
    match shape {
        Shape::CopyEach => {
            for archive in [tar(&backup.space, 0), tar(&backup.base, 0), backup.manifest.clone()] {
                messages.push(Backend::CopyOut);
                messages.extend(archive.chunks(piece).map(copied));
                messages.push(Backend::CopyDone);
            }
        }
        Shape::CopyAll => {
            messages.push(Backend::CopyOut);
            let data = |bytes: &[u8]| -> Vec<Backend> {
                let typed = |chunk: &[u8]| copied(&[b"d", chunk].concat());
                bytes.chunks(piece).map(typed).collect()
            };
            messages.push(copied(b"n16384.tar\0/space\0"));
            messages.extend(data(&tar(&backup.space, 2)));
            messages.push(copied(b"p\0\0\0\0\0\0\0\x07"));
            messages.push(copied(b"nbase.tar\0\0"));
            messages.extend(data(&tar(&backup.base, 2)));
            messages.push(copied(b"m"));
            messages.extend(data(&backup.manifest));
            messages.push(Backend::CopyDone);
        }
    }
    messages.extend(position_rows("0/3000000"));
    messages.extend([Backend::CommandComplete, Backend::Ready]);
    messages
}

fn events(messages: Vec<Backend>, shape: Shape) -> Result<Vec<BackupEvent>, ParseError> {
    let mut parser = Parser::new(shape, true);
    let mut events = Vec::new();
    for message in messages {
        assert!(!parser.is_done(), "a message behind the end");
        parser.push(message)?;
        while let Some(event) = parser.next()? {
            events.push(event);
        }
    }
    assert!(parser.is_done());
    Ok(events)
}

/// The same events with pieces of contents joined and progress left out.
fn joined(events: Vec<BackupEvent>) -> Vec<BackupEvent> {
    let mut joined: Vec<BackupEvent> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (_, BackupEvent::Progress { .. }) => {}
            (Some(BackupEvent::Data(before)), BackupEvent::Data(data))
            | (Some(BackupEvent::ManifestData(before)), BackupEvent::ManifestData(data)) => {
                *before = [&before[..], &data[..]].concat().into();
            }
            (_, event) => joined.push(event),
        }
    }
    joined
}

fn expected(backup: &Backup) -> Vec<BackupEvent> {
    let timeline = Timeline::FIRST;
    let space = Tablespace {
        oid: Some(16384),
        path: Bytes::from_static(b"/space"),
        size_kb: None,
    };
    let base = Tablespace {
        oid: None,
        path: Bytes::new(),
        size_kb: Some(10),
    };
    let mut events = vec![BackupEvent::Started {
        start_lsn: Lsn::new(0x200_0028),
        timeline,
        tablespaces: vec![space, base],
    }];
    for (tablespace, files) in [&backup.space, &backup.base].into_iter().enumerate() {
        events.push(BackupEvent::ArchiveBegin { tablespace });
        for (path, contents) in files {
            events.push(BackupEvent::Entry(TarEntry {
                path: Bytes::copy_from_slice(path),
                kind: EntryKind::File,
                size: contents.len() as u64,
                mode: 0o600,
                mtime: 0,
                uid: 0,
                gid: 0,
            }));
            if !contents.is_empty() {
                events.push(BackupEvent::Data(Bytes::copy_from_slice(contents)));
            }
            events.push(BackupEvent::EntryEnd);
        }
        events.push(BackupEvent::ArchiveEnd);
    }
    if !backup.manifest.is_empty() {
        events.push(BackupEvent::ManifestData(Bytes::copy_from_slice(&backup.manifest)));
    }
    events.push(BackupEvent::Finished(BackupEnd {
        lsn: Lsn::new(0x300_0000),
        timeline,
    }));
    events
}

fn backup() -> impl Strategy<Value = Backup> {
    let file = || {
        let path = proptest::collection::vec(1..=255u8, 1..60);
        let path = path.prop_filter("leads out, or is a folder", |path| !leads_out(path));
        (path, proptest::collection::vec(any::<u8>(), 0..1500))
    };
    let files = || proptest::collection::vec(file(), 0..4);
    (files(), files(), proptest::collection::vec(any::<u8>(), 0..900)).prop_map(|(space, base, manifest)| Backup {
        space,
        base,
        manifest,
    })
}

fn small() -> Backup {
    Backup {
        space: vec![],
        base: vec![(b"PG_VERSION".to_vec(), b"15\n".to_vec())],
        manifest: b"{}".to_vec(),
    }
}

proptest! {
    #[test]
    fn both_shapes_tell_the_same_backup_whatever_the_pieces(backup in backup(), piece in 1..2000usize) {
        for shape in [Shape::CopyEach, Shape::CopyAll] {
            let events = events(answer(&backup, shape, piece), shape).unwrap();
            prop_assert_eq!(joined(events), expected(&backup));
        }
    }
}

#[test]
fn an_answer_with_a_message_missing_never_counts_as_finished() {
    // Nobody here would know: the head of a result, how far it is, zeros at an archive's end; contents, in
    // whose place those zeros are read; a piece of the manifest. Only the manifest's checksums tell.
    let says_nothing = |message: &Backend| match message {
        Backend::Columns => true,
        Backend::CopyData(data) => {
            let zeros = data.len() > 1 && data[1..].iter().all(|&b| b == 0);
            data.starts_with(b"p") || data.starts_with(b"d15\n") || data.ends_with(b"{}") || zeros
        }
        _ => false,
    };
    for shape in [Shape::CopyEach, Shape::CopyAll] {
        let whole = answer(&small(), shape, 512);
        // Behind the end position only "ready" counts.
        for missing in (0..whole.len() - 3).chain([whole.len() - 1]) {
            let mut messages = answer(&small(), shape, 512);
            if says_nothing(&messages.remove(missing)) {
                continue;
            }
            assert!(!finishes(messages, shape), "{shape:?} without message {missing}");
        }
    }
}

fn finishes(messages: Vec<Backend>, shape: Shape) -> bool {
    let mut parser = Parser::new(shape, true);
    for message in messages {
        if parser.push(message).is_err() {
            return false;
        }
        loop {
            match parser.next() {
                Ok(Some(BackupEvent::Finished(_))) => return true,
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return false,
            }
        }
    }
    false
}

fn refusal(state: &str) -> Backend {
    let fields = format!("VERROR\0C{state}\0Mno\0\0");
    Backend::Error(ServerError::parse(fields.as_bytes()).unwrap())
}

#[test]
fn damaged_pages_are_told_with_the_end_of_the_backup() {
    for shape in [Shape::CopyEach, Shape::CopyAll] {
        let mut messages = answer(&small(), shape, 512);
        messages.insert(messages.len() - 2, refusal("XX001"));
        let Err(ParseError::DamagedPages { end, .. }) = events(messages, shape) else {
            unreachable!()
        };
        assert_eq!(end.unwrap().lsn, Lsn::new(0x300_0000));
    }
}

#[test]
fn a_refusal_ends_the_backup_wherever_it_comes() {
    for shape in [Shape::CopyEach, Shape::CopyAll] {
        let whole = answer(&small(), shape, 512);
        for at in 0..whole.len() - 1 {
            let mut messages: Vec<Backend> = answer(&small(), shape, 512);
            messages.truncate(at);
            messages.extend([refusal("57014"), Backend::Ready]);
            assert!(matches!(events(messages, shape), Err(ParseError::Refused(_))), "{at}");
        }
    }
}

#[test]
fn a_path_that_leads_out_is_refused() {
    for path in ["/etc/passwd", "../x", "base/../../x", "base//x"] {
        let backup = Backup {
            base: vec![(path.into(), vec![])],
            ..small()
        };
        let messages = answer(&backup, Shape::CopyAll, 512);
        let Err(ParseError::Path(found)) = events(messages, Shape::CopyAll) else {
            unreachable!()
        };
        assert_eq!(found, path.as_bytes());
    }
}
