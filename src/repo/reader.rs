//! Reading a base backup: its map, and the content of its frames.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use super::backup::{BackupRecord, INVENTORY, RELATIONS, SETTINGS, read_part};
use super::map::{FileEntry, MappedFrame, PART_SIZE, Row, read_rows};
use super::pack::{FRAME_CONTENT, FRAME_HEADER, FrameRef, PACK_SIZE, open_frame};
use super::writer::PackRow;
use super::{RepoError, Repository, names};
use crate::codec::CompressError;
use crate::pg::SystemId;
use crate::store::{Name, Store};

/// A part of a table never unpacks to more than this: rows are added whole to a part that is not
/// full yet, and a row is far smaller than a part.
const PART_LIMIT: usize = 2 * PART_SIZE;

/// The parts of a backup that tell people and `find` about it, and that no restore reads.
const BESIDE: [&str; 3] = [INVENTORY, SETTINGS, RELATIONS];

/// Frames whose distance in a pack is below this are read in one go: a request costs more than the
/// bytes between.
const JOIN_GAP: u64 = 512 << 10;

/// Reads a whole table of a backup's map, part by part.
///
/// # Errors
/// A damaged part, or the store.
pub async fn table<R: Row>(repository: &Repository, record: &BackupRecord, name: &str) -> Result<Vec<R>, RepoError> {
    let mut rows = Vec::new();
    let mut part = 0;
    while let Some(more) = table_part(repository, record, name, part).await? {
        rows.extend(more);
        part += 1;
    }
    Ok(rows)
}

/// Reads one part of a table; `None` past the last.
///
/// # Errors
/// A damaged part, or the store.
pub async fn table_part<R: Row>(
    repository: &Repository,
    record: &BackupRecord,
    name: &str,
    part: usize,
) -> Result<Option<Vec<R>>, RepoError> {
    let Some(part) = record.table(name).nth(part) else {
        return Ok(None);
    };
    let stored = read_part(repository, record, part).await?;
    let damaged = |why: String| {
        let object = names::backup_part(record.system_identifier, &record.id, &part.name);
        RepoError::Damaged {
            object: repository.store().full(&object),
            why,
        }
    };
    let bytes = zstd::bulk::decompress(&stored, PART_LIMIT).map_err(|error| damaged(error.to_string()))?;
    read_rows(&bytes)
        .map(Some)
        .ok_or_else(|| damaged("its rows make no sense".to_owned()))
}

/// All files of a backup, by number.
///
/// # Errors
/// As [`table`].
pub async fn files(repository: &Repository, record: &BackupRecord) -> Result<Vec<FileEntry>, RepoError> {
    table(repository, record, "files").await
}

/// All packs of a backup, by number.
///
/// # Errors
/// As [`table`].
pub async fn packs(repository: &Repository, record: &BackupRecord) -> Result<Vec<PackRow>, RepoError> {
    table(repository, record, "packs").await
}

/// One part of the frames, in the order of packs.
///
/// # Errors
/// As [`table`].
pub async fn frames(
    repository: &Repository,
    record: &BackupRecord,
    part: usize,
) -> Result<Option<Vec<MappedFrame>>, RepoError> {
    table_part(repository, record, "frames", part).await
}

/// Which of a backup's own objects are missing, or have another size than they were written with, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacks {
    /// The first of those without which nothing can be restored.
    pub needed: Option<String>,
    /// Those that no restore reads.
    pub others: Vec<String>,
}

/// Looks for a backup's own objects. Told by listings: what the objects hold is not read.
///
/// # Errors
/// A damaged list of packs, or the store.
pub async fn lacks(repository: &Repository, record: &BackupRecord) -> Result<Lacks, RepoError> {
    let mut lacks = Lacks::default();
    let (store, system) = (repository.store(), record.system_identifier);
    let wrong = |name: &Name, wanted: u64, found: Option<u64>| match found {
        None => Some(format!("{} is missing", store.full(name))),
        Some(found) if found != wanted => Some(format!("{} has {found} bytes, not {wanted}", store.full(name))),
        Some(_) => None,
    };
    let parts = sizes(store, &names::backups(system).join(record.id.as_str())).await?;
    for part in &record.parts {
        let name = names::backup_part(system, &record.id, &part.name);
        let lack = wrong(&name, part.size, parts.get(&name).copied());
        if BESIDE.contains(&part.name.as_str()) {
            lacks.others.extend(lack);
        } else if lack.is_some() {
            lacks.needed = lack;
            return Ok(lacks);
        }
    }
    let mut packs = packs(repository, record).await?;
    packs.sort_by(|a, b| a.backup.cmp(&b.backup));
    for of_one in packs.chunk_by(|a, b| a.backup == b.backup) {
        let there = sizes(store, &names::packs(system).join(of_one[0].backup.as_str())).await?;
        for pack in of_one {
            let name = names::pack(system, &pack.backup, pack.number);
            let lack = wrong(&name, pack.size, there.get(&name).copied());
            if lack.is_some() {
                lacks.needed = lack;
                return Ok(lacks);
            }
        }
    }
    Ok(lacks)
}

async fn sizes(store: &Store, folder: &Name) -> Result<HashMap<Name, u64>, RepoError> {
    let (_, objects) = store.list_level(folder).await?;
    Ok(objects
        .into_iter()
        .map(|object| (object.location, object.size))
        .collect())
}

/// The content of one small file of a backup; `None` where the backup has none of that name, or it is longer than
/// `limit`.
///
/// # Errors
/// As [`table`], and a damaged pack.
pub async fn content(
    repository: &Repository,
    record: &BackupRecord,
    path: &Path,
    limit: usize,
) -> Result<Option<Vec<u8>>, RepoError> {
    let mut number = 0;
    let mut size = None;
    for part in 0.. {
        let Some(rows) = table_part::<FileEntry>(repository, record, "files", part).await? else {
            return Ok(None);
        };
        if let Some(at) = rows.iter().position(|row| row.tablespace == 0 && row.path() == path) {
            (number, size) = (number + at as u32, usize::try_from(rows[at].size).ok());
            break;
        }
        number += rows.len() as u32;
    }
    let Some(size) = size.filter(|size| *size <= limit) else {
        return Ok(None);
    };
    let packs = packs(repository, record).await?;
    let (mut content, mut left) = (vec![0; size], size);
    // What matters most was stored last: `pg_control` comes at the end of a base backup.
    for part in (0..record.table("frames").count()).rev() {
        for row in frames(repository, record, part).await?.unwrap_or_default() {
            let mut at = 0;
            for piece in &row.pieces {
                let from = at;
                at += piece.len as usize;
                let Some(pack) = packs.get(row.pack as usize).filter(|_| piece.file == number) else {
                    continue;
                };
                let mut reader = PackReader::open(
                    repository,
                    record.system_identifier,
                    pack,
                    std::slice::from_ref(&row.frame),
                )
                .await?;
                let bytes = reader.content(&row.frame)?.get(from..at).unwrap_or_default();
                let place = usize::try_from(piece.offset).unwrap_or(usize::MAX);
                if let Some(room) = content.get_mut(place..place.saturating_add(bytes.len())) {
                    room.copy_from_slice(bytes);
                    left = left.saturating_sub(bytes.len());
                }
            }
        }
        if left == 0 {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// Some frames of one pack, at hand to be opened.
pub struct PackReader {
    object: String,
    bytes: PackBytes,
    context: zstd::bulk::Decompressor<'static>,
    stored: Vec<u8>,
    content: Vec<u8>,
}

enum PackBytes {
    /// The pack is a file here.
    File(File),
    /// Ranges that were fetched, in order.
    Fetched(Vec<(u64, Bytes)>),
}

impl PackReader {
    /// Gets the bytes of `frames` (all of this pack, in order of offset) ready.
    ///
    /// # Errors
    /// A pack that is missing, or the store.
    pub async fn open(
        repository: &Repository,
        system: SystemId,
        pack: &PackRow,
        frames: &[FrameRef],
    ) -> Result<Self, RepoError> {
        let store = repository.store();
        let name = names::pack(system, &pack.backup, pack.number);
        let object = store.full(&name);
        let missing = || RepoError::Damaged {
            object: object.clone(),
            why: "it is missing".to_owned(),
        };
        let bytes = match store.file(&name) {
            Some(path) => match File::open(&path) {
                Ok(file) => PackBytes::File(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
                Err(source) => {
                    return Err(RepoError::File {
                        doing: "read",
                        file: object,
                        source,
                    });
                }
            },
            None => {
                let mut fetched = Vec::new();
                for range in ranges(frames) {
                    let bytes = store.get_range(&name, range.clone()).await?.ok_or_else(missing)?;
                    fetched.push((range.start, bytes));
                }
                PackBytes::Fetched(fetched)
            }
        };
        let context = zstd::bulk::Decompressor::new().map_err(|error| RepoError::Compress {
            file: object.clone(),
            source: CompressError::Zstd(error.to_string()),
        })?;
        Ok(Self {
            object,
            bytes,
            context,
            stored: Vec::new(),
            content: Vec::with_capacity(FRAME_CONTENT),
        })
    }

    /// The content of one frame, checked.
    ///
    /// # Errors
    /// A damaged frame, or a file that can't be read.
    pub fn content(&mut self, frame: &FrameRef) -> Result<&[u8], RepoError> {
        let damaged = |why| RepoError::Damaged {
            object: self.object.clone(),
            why,
        };
        let len = FRAME_HEADER + frame.stored_len as usize;
        // The numbers come from a map that passed its checksum, and still no map may fill memory.
        if len > FRAME_HEADER + FRAME_CONTENT || frame.content_len as usize > FRAME_CONTENT {
            return Err(damaged(format!(
                "the frame at byte {} is larger than any frame",
                frame.offset
            )));
        }
        let bytes = match &self.bytes {
            PackBytes::File(file) => {
                self.stored.resize(len, 0);
                match file.read_exact_at(&mut self.stored, frame.offset) {
                    Ok(()) => &self.stored[..],
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => &[],
                    Err(source) => {
                        return Err(RepoError::File {
                            doing: "read",
                            file: self.object.clone(),
                            source,
                        });
                    }
                }
            }
            PackBytes::Fetched(ranges) => fetched(ranges, frame.offset, len).unwrap_or_default(),
        };
        open_frame(&mut self.context, frame, bytes, &mut self.content).map_err(damaged)
    }
}

fn fetched(ranges: &[(u64, Bytes)], offset: u64, len: usize) -> Option<&[u8]> {
    let (start, bytes) = ranges.iter().rev().find(|(start, _)| *start <= offset)?;
    let at = usize::try_from(offset - start).ok()?;
    bytes.get(at..at + len)
}

/// The byte ranges that hold these frames, near ones joined, none larger than a pack should be.
fn ranges(frames: &[FrameRef]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for frame in frames {
        match ranges.last_mut() {
            Some(last) if frame.offset <= last.end + JOIN_GAP && frame.end() - last.start <= 2 * PACK_SIZE as u64 => {
                last.end = last.end.max(frame.end());
            }
            _ => ranges.push(frame.offset..frame.end()),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::pack::Stored;

    fn frame(offset: u64, stored_len: u32) -> FrameRef {
        FrameRef {
            offset,
            content_len: 1,
            stored_len,
            stored: Stored::Raw,
            digest: [0; 16],
        }
    }

    #[test]
    fn near_frames_are_read_in_one_go_and_far_ones_are_not() {
        let far = JOIN_GAP + 1;
        let frames = [frame(8, 68), frame(108, 68), frame(208 + far, 68)];
        assert_eq!(ranges(&frames), [8..208, 208 + far..308 + far]);
    }
}
