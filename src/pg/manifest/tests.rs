//! Tests of the manifest reader, on manifests of real servers.

use super::*;
use crate::pg::{BackupHistory, golden};
use proptest::prelude::*;

fn read(pieces: &[&[u8]]) -> Result<(Manifest, Vec<ManifestFile>), ManifestError> {
    let (mut reader, mut files) = (ManifestReader::new(), Vec::new());
    for piece in pieces {
        reader.push(piece, &mut |file| files.push(file))?;
    }
    Ok((reader.finish()?, files))
}

/// A manifest of these lines, with its checksum.
fn sealed(lines: &str) -> Vec<u8> {
    let digest = aws_lc_rs::digest::digest(&SHA256, lines.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{lines}\"Manifest-Checksum\": \"{hex}\"}}\n").into_bytes()
}

#[test]
fn a_servers_manifest_is_read_whole() {
    for major in golden::MAJORS {
        let bytes = golden::read(major, "backup_manifest");
        let (manifest, files) = read(&[&bytes]).unwrap();
        let told = |label| golden::told(major, "stopped.txt", label);
        let system = (major >= 17).then(|| told("Database system identifier").parse().unwrap());
        assert_eq!(manifest.system, system);
        let (_, history) = golden::ending(major, ".backup");
        let history = BackupHistory::parse(history.as_bytes()).unwrap();
        let wal = WalRange {
            timeline: history.stop_timeline,
            start: history.label.start,
            end: history.stop,
        };
        assert_eq!(manifest.wal, [wal]);
        let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
        assert_eq!(manifest.files as usize, lines - if major >= 17 { 8 } else { 7 });
        assert_eq!(manifest.files as usize, files.len());
        assert_eq!(manifest.bytes, files.iter().map(|file| file.size).sum::<u64>());
    }
}

#[test]
fn files_have_the_names_sizes_and_checksums_of_what_was_backed_up() {
    for major in golden::MAJORS {
        let (_, files) = read(&[&golden::read(major, "backup_manifest")]).unwrap();
        let find = |path: &[u8]| files.iter().find(|file| file.path == path).unwrap();
        assert_eq!(find(b"odd\xFFfile").size, 0);
        let label = golden::read(major, "backup_label");
        let listed = find(b"backup_label");
        assert_eq!(listed.size, label.len() as u64);
        let checksum = match major {
            14 => None,
            16 => Some((
                ChecksumAlgorithm::Sha256,
                aws_lc_rs::digest::digest(&SHA256, &label).as_ref().to_vec(),
            )),
            _ => Some((
                ChecksumAlgorithm::Crc32c,
                crc_fast::crc32_iscsi(&label).to_le_bytes().to_vec(),
            )),
        };
        assert_eq!(listed.checksum, checksum, "{major}");
        let history = BackupHistory::parse(golden::ending(major, ".backup").1.as_bytes()).unwrap();
        let modified = listed.modified.format("%Y-%m-%d %H:%M").to_string();
        assert!(history.label.start_time.starts_with(&modified), "{modified}");
    }
}

#[test]
fn a_changed_or_shortened_manifest_is_refused() {
    let bytes = golden::read(17, "backup_manifest");
    let text = String::from_utf8(bytes.clone()).unwrap();
    let changed = text.replacen("\"Size\": 0", "\"Size\": 1", 1);
    assert_eq!(read(&[changed.as_bytes()]), Err(ManifestError::Checksum));
    assert!(matches!(read(&[&bytes, b"\n"]), Err(ManifestError::Line { .. })));
    assert!(matches!(read(&[&bytes, b"x"]), Err(ManifestError::Unfinished { .. })));
    let unended = bytes.strip_suffix(b"\n").unwrap();
    assert!(matches!(read(&[unended]), Err(ManifestError::Unfinished { .. })));
    assert!(matches!(read(&[]), Err(ManifestError::Unfinished { line: 1 })));
    let long = vec![b' '; MAX_LINE + 1];
    assert_eq!(read(&[&long]), Err(ManifestError::LineTooLong { line: 1 }));
    let newer = text.replacen("Version\": 2", "Version\": 3", 1);
    assert_eq!(read(&[newer.as_bytes()]), Err(ManifestError::Version("3".to_owned())));
}

#[test]
fn a_line_that_tells_nonsense_is_refused() {
    let range = r#"{ "Timeline": 1, "Start-LSN": "0/2", "End-LSN": "0/3" }"#;
    let file = r#"{ "Path": "a", "Size": 1, "Last-Modified": "2026-11-21 12:00:00 GMT" }"#;
    let manifest = |file: &str, range: &str| {
        let head = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [";
        read(&[&sealed(&format!(
            "{head}\n{file}\n],\n\"WAL-Ranges\": [\n{range}\n],\n"
        ))])
    };
    assert!(manifest(file, range).is_ok());
    for (good, bad) in [
        ("\"Path\"", "\"Encoded-Path\""),
        ("\"a\"", "\"\""),
        ("\"Size\": 1", "\"Size\": -1"),
        ("2026-11-21", "2026-13-21"),
        (" GMT", ""),
        (" }", ", \"Checksum\": \"00\" }"),
        (" }", ", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00\" }"),
        (" }", ", \"Checksum-Algorithm\": \"MD4\", \"Checksum\": \"00000000\" }"),
        (" }", " },"),
    ] {
        let changed = file.replacen(good, bad, 1);
        assert!(
            matches!(manifest(&changed, range), Err(ManifestError::Line { .. })),
            "{changed}"
        );
    }
    for (good, bad) in [("1,", "0,"), ("0/3", "0/1"), ("0/2", "2")] {
        let changed = range.replacen(good, bad, 1);
        assert!(
            matches!(manifest(file, &changed), Err(ManifestError::Line { .. })),
            "{changed}"
        );
    }
}

proptest! {
    #[test]
    fn pieces_do_not_change_what_is_read(mut cuts in prop::collection::vec(0usize..31_000, 0..9)) {
        let bytes = golden::read(14, "backup_manifest");
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.saturating_sub(bytes.len() - rest.len()).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(read(&pieces), read(&[&bytes]));
    }

    #[test]
    fn a_flipped_bit_is_always_found(at in 0usize..53_000, bit in 0u8..8) {
        let mut bytes = golden::read(17, "backup_manifest");
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        // The one change that means nothing: a hexadecimal digit of the checksum in capitals.
        let same = read(&[&bytes]).is_ok_and(|(manifest, _)| manifest == read(&[&golden::read(17, "backup_manifest")]).unwrap().0);
        prop_assert!(same == (bit == 5 && at > bytes.len() - 70 && bytes[at].is_ascii_uppercase()));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, skip in 0usize..60_000, text in "[\\[\\]{},:\" \na-zA-Z0-9/-]{0,80}") {
        let whole = golden::read(18, "backup_manifest");
        let whole = &whole[..skip % whole.len()];
        let _ = read(&[&bytes]);
        let _ = read(&[whole, &bytes]);
        let _ = read(&[whole, text.as_bytes()]);
    }
}
