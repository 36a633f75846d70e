//! A backup's map: its files, and which frame holds which bytes of them.
//!
//! Two tables, each cut into parts of a bounded size. The *files* come in the order of their
//! numbers; the *frames* in the order of packs and of offsets in them, each with the pieces of files
//! that its content consists of. So a restore is one pass over the packs, and a backup may point to
//! frames of packs that earlier backups wrote.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::pack::{FrameRef, Stored};
use crate::varint::{number, read_number, read_signed, read_text, signed, take, text};

/// A table is cut into parts of about this size before compression.
pub const PART_SIZE: usize = 4 << 20;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
}

/// One file, folder or link of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// What it is.
    pub kind: FileKind,
    /// The OID of the tablespace it lies in; 0 for the data directory.
    pub tablespace: u32,
    /// Its path below the data directory or the tablespace. Bytes: names need not be UTF-8.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Last change, in seconds since 1970.
    pub modified: i64,
    /// Length in bytes.
    pub size: u64,
    /// What a link points to.
    pub target: Vec<u8>,
}

impl FileEntry {
    /// Its path.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }
}

/// A piece of a file within a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The file's number in the table of files.
    pub file: u32,
    /// Where in the file it belongs.
    pub offset: u64,
    /// Its length.
    pub len: u32,
}

/// A frame and what it holds, piece after piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedFrame {
    /// The pack's number in the backup's table of packs.
    pub pack: u32,
    /// Where it lies there.
    pub frame: FrameRef,
    /// Its content, in order and without gaps.
    pub pieces: Vec<Piece>,
}

/// Writes a row of a table.
pub trait Row: Sized {
    /// Appends the row.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads a row from the front of `bytes` and moves on; `None` where they make no sense.
    fn read(bytes: &mut &[u8]) -> Option<Self>;
}

impl Row for FileEntry {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(match self.kind {
            FileKind::File => 0,
            FileKind::Folder => 1,
            FileKind::Link => 2,
        });
        number(out, self.tablespace.into());
        text(out, &self.path);
        number(out, self.mode.into());
        signed(out, self.modified);
        number(out, self.size);
        text(out, &self.target);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let kind = match take(bytes, 1)?[0] {
            0 => FileKind::File,
            1 => FileKind::Folder,
            2 => FileKind::Link,
            _ => return None,
        };
        Some(Self {
            kind,
            tablespace: read_number(bytes)?.try_into().ok()?,
            path: read_text(bytes)?.to_vec(),
            mode: read_number(bytes)?.try_into().ok()?,
            modified: read_signed(bytes)?,
            size: read_number(bytes)?,
            target: read_text(bytes)?.to_vec(),
        })
    }
}

impl Row for MappedFrame {
    fn write(&self, out: &mut Vec<u8>) {
        number(out, self.pack.into());
        number(out, self.frame.offset);
        number(out, self.frame.content_len.into());
        number(out, self.frame.stored_len.into());
        out.push(self.frame.stored.number());
        out.extend_from_slice(&self.frame.digest);
        number(out, self.pieces.len() as u64);
        for piece in &self.pieces {
            number(out, piece.file.into());
            number(out, piece.offset);
            number(out, piece.len.into());
        }
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let pack = read_number(bytes)?.try_into().ok()?;
        let frame = FrameRef {
            offset: read_number(bytes)?,
            content_len: read_number(bytes)?.try_into().ok()?,
            stored_len: read_number(bytes)?.try_into().ok()?,
            stored: Stored::from_number(take(bytes, 1)?[0])?,
            digest: take(bytes, 16)?.try_into().ok()?,
        };
        let count = usize::try_from(read_number(bytes)?).ok()?;
        // Each piece takes three bytes at least: a count beyond that is damage, not a reason to
        // reserve memory.
        if count > bytes.len() / 3 {
            return None;
        }
        let mut pieces = Vec::with_capacity(count);
        for _ in 0..count {
            pieces.push(Piece {
                file: read_number(bytes)?.try_into().ok()?,
                offset: read_number(bytes)?,
                len: read_number(bytes)?.try_into().ok()?,
            });
        }
        let covered: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        (covered == u64::from(frame.content_len)).then_some(Self { pack, frame, pieces })
    }
}

/// Reads all rows of a part; `None` where its bytes make no sense.
pub fn read_rows<R: Row>(mut bytes: &[u8]) -> Option<Vec<R>> {
    let mut rows = Vec::new();
    while !bytes.is_empty() {
        rows.push(R::read(&mut bytes)?);
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files() -> impl Strategy<Value = FileEntry> {
        let kind = prop_oneof![Just(FileKind::File), Just(FileKind::Folder), Just(FileKind::Link)];
        let names = (any::<Vec<u8>>(), any::<Vec<u8>>());
        (kind, any::<u32>(), names, any::<u32>(), any::<i64>(), any::<u64>()).prop_map(
            |(kind, tablespace, (path, target), mode, modified, size)| FileEntry {
                kind,
                tablespace,
                path,
                mode,
                modified,
                size,
                target,
            },
        )
    }

    fn frames() -> impl Strategy<Value = MappedFrame> {
        let pieces = prop::collection::vec((any::<u32>(), any::<u64>(), 0..1u32 << 20), 0..20);
        (
            any::<u32>(),
            any::<u64>(),
            any::<u32>(),
            any::<bool>(),
            any::<[u8; 16]>(),
            pieces,
        )
            .prop_map(|(pack, offset, stored_len, raw, digest, pieces)| {
                let pieces: Vec<Piece> = pieces
                    .into_iter()
                    .map(|(file, offset, len)| Piece { file, offset, len })
                    .collect();
                let content_len = pieces.iter().map(|piece| piece.len).sum();
                let stored = if raw { Stored::Raw } else { Stored::Zstd };
                MappedFrame {
                    pack,
                    frame: FrameRef {
                        offset,
                        content_len,
                        stored_len,
                        stored,
                        digest,
                    },
                    pieces,
                }
            })
    }

    proptest! {
        #[test]
        fn files_survive_their_table(files in prop::collection::vec(files(), 0..20)) {
            let mut bytes = Vec::new();
            files.iter().for_each(|file| file.write(&mut bytes));
            prop_assert_eq!(read_rows::<FileEntry>(&bytes), Some(files));
        }

        #[test]
        fn frames_survive_their_table(frames in prop::collection::vec(frames(), 0..20)) {
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| frame.write(&mut bytes));
            prop_assert_eq!(read_rows::<MappedFrame>(&bytes), Some(frames));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = read_rows::<FileEntry>(&bytes);
            let _ = read_rows::<MappedFrame>(&bytes);
        }
    }
}
