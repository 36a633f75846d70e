//! Writing a base backup: files come in, frames go into packs, packs into the store.
//!
//! Content is gathered into frames, frames are compressed side by side, and put into the pack in
//! hand in the order in which they are ready. Everything is bounded: when the frames in work or the
//! packs on their way are too many, `push` waits, and with it the socket that the files come from.
//! Nothing of it is visible before [`BackupWriter::commit`] has written the record.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::task::JoinHandle;

use super::backup::{self, BackupId, BackupRecord, Part};
use super::map::{FileEntry, FileKind, MappedFrame, PART_SIZE, Piece, Row};
use super::names;
use super::pack::{FRAME_CONTENT, PACK_MAGIC, PACK_SIZE, SealedFrame};
use super::{RepoError, Repository};
use crate::codec::{CompressError, Digest};
use crate::disk::Created;
use crate::pg::SystemId;
use crate::store::{Name, Store};
use crate::varint;

/// Packs on their way to the store at one time. Two keep both the line and the compressors busy.
const UPLOADS: usize = 2;

/// zstd's level for the tables of a map: they are small.
const TABLE_LEVEL: i32 = 3;

/// The tables of a map by their place in [`BackupWriter::tables`].
const FILES: usize = 0;
const FRAMES: usize = 1;
const PACKS: usize = 2;

type Sealing = JoinHandle<Result<(SealedFrame, Vec<Piece>), CompressError>>;
type Upload = JoinHandle<Result<(), RepoError>>;

/// A backup on its way in.
pub struct BackupWriter {
    store: Store,
    system: SystemId,
    id: BackupId,
    jobs: usize,
    contexts: Arc<Contexts>,
    tables: [Table; 3],
    parts: Vec<Part>,
    entries: u64,
    open: Option<OpenFile>,
    content: Vec<u8>,
    pieces: Vec<Piece>,
    sealing: FuturesUnordered<Sealing>,
    pack: Vec<u8>,
    pack_number: u32,
    uploads: FuturesUnordered<Upload>,
    size_bytes: u64,
    stored_bytes: u64,
}

struct OpenFile {
    entry: FileEntry,
    at: u64,
}

impl BackupWriter {
    /// Begins a backup. `level` is zstd's, `jobs` how many frames are compressed side by side.
    pub fn new(repository: &Repository, system: SystemId, id: BackupId, level: i32, jobs: usize) -> Self {
        Self {
            store: repository.store().clone(),
            system,
            id,
            jobs: jobs.max(1),
            contexts: Arc::new(Contexts {
                level,
                free: Mutex::default(),
            }),
            tables: ["files", "frames", "packs"].map(Table::new),
            parts: Vec::new(),
            entries: 0,
            open: None,
            content: Vec::new(),
            pieces: Vec::new(),
            sealing: FuturesUnordered::new(),
            pack: PACK_MAGIC.to_vec(),
            pack_number: 0,
            uploads: FuturesUnordered::new(),
            size_bytes: 0,
            stored_bytes: 0,
        }
    }

    /// Bytes of file content taken in so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes given to the store so far.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Files, folders and links taken in so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Begins the next file, folder or link.
    ///
    /// # Errors
    /// The store, or zstd.
    pub async fn begin(&mut self, entry: FileEntry) -> Result<(), RepoError> {
        // Small files share a frame; one that does not fit begins the next, so that no small file is
        // cut and every large one begins, and is cut, on a page's border.
        if entry.kind == FileKind::File && self.content.len() as u64 + entry.size > FRAME_CONTENT as u64 {
            self.close_frame().await?;
        }
        self.open = Some(OpenFile { entry, at: 0 });
        Ok(())
    }

    /// Takes in the next bytes of the file that was begun.
    ///
    /// # Errors
    /// The store, or zstd.
    pub async fn push(&mut self, mut bytes: &[u8]) -> Result<(), RepoError> {
        while !bytes.is_empty() {
            if self.content.len() == FRAME_CONTENT {
                self.close_frame().await?;
            }
            if self.content.capacity() == 0 {
                self.content.reserve_exact(FRAME_CONTENT);
            }
            let take = bytes.len().min(FRAME_CONTENT - self.content.len());
            self.content.extend_from_slice(&bytes[..take]);
            self.place(take as u64);
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Notes that the open file's next `len` bytes lie at the end of the frame in hand.
    fn place(&mut self, len: u64) {
        let Some(open) = &mut self.open else { return };
        // The number that the file will have in its table.
        let file = self.entries as u32;
        match self.pieces.last_mut() {
            Some(piece) if piece.file == file && piece.offset + u64::from(piece.len) == open.at => {
                piece.len += len as u32;
            }
            _ => self.pieces.push(Piece {
                file,
                offset: open.at,
                len: len as u32,
            }),
        }
        open.at += len;
        self.size_bytes += len;
    }

    /// Ends the file that was begun. Its length is what was taken in.
    ///
    /// # Errors
    /// The store, or zstd.
    pub async fn end(&mut self) -> Result<(), RepoError> {
        if let Some(OpenFile { mut entry, at }) = self.open.take() {
            entry.size = at;
            self.tables[FILES].push(&entry);
            self.entries += 1;
            self.write_tables(false).await?;
        }
        Ok(())
    }

    /// Stores an object of the backup besides its map.
    ///
    /// # Errors
    /// The store.
    pub async fn put_part(&mut self, name: &str, bytes: Bytes) -> Result<(), RepoError> {
        let part = Part {
            name: name.to_owned(),
            size: bytes.len() as u64,
            digest: Digest::of(&bytes),
        };
        self.stored_bytes += part.size;
        put(&self.store, &names::backup_part(self.system, &self.id, name), bytes).await?;
        self.parts.push(part);
        Ok(())
    }

    /// Sees to it that all content is durable in the store.
    ///
    /// # Errors
    /// The store, or zstd.
    pub async fn flush(&mut self) -> Result<(), RepoError> {
        self.close_frame().await?;
        while !self.sealing.is_empty() {
            self.take_sealed().await?;
        }
        if self.pack.len() > PACK_MAGIC.len() {
            self.close_pack().await?;
        }
        while !self.uploads.is_empty() {
            self.take_uploaded().await?;
        }
        self.write_tables(true).await
    }

    /// Makes the backup visible. `record`'s counts and parts are filled in here.
    ///
    /// # Errors
    /// The store.
    pub async fn commit(mut self, mut record: BackupRecord) -> Result<BackupRecord, RepoError> {
        self.flush().await?;
        record.size_bytes = self.size_bytes;
        record.stored_bytes = self.stored_bytes;
        record.entries = self.entries;
        record.parts = mem::take(&mut self.parts);
        let bytes = backup::write_record(&record).map_err(|error| RepoError::Compress {
            file: backup::RECORD.to_owned(),
            source: CompressError::Zstd(error.to_string()),
        })?;
        put(
            &self.store,
            &names::backup_part(self.system, &self.id, backup::RECORD),
            bytes.into(),
        )
        .await?;
        Ok(record)
    }

    async fn close_frame(&mut self) -> Result<(), RepoError> {
        if self.content.is_empty() {
            return Ok(());
        }
        // One more than there are compressors: the next is at hand when one is done.
        while self.sealing.len() > self.jobs {
            self.take_sealed().await?;
        }
        let (content, pieces) = (mem::take(&mut self.content), mem::take(&mut self.pieces));
        let contexts = self.contexts.clone();
        self.sealing.push(tokio::task::spawn_blocking(move || {
            let mut context = contexts.take()?;
            let sealed = SealedFrame::seal(&mut context, content);
            contexts.give_back(context);
            Ok((sealed?, pieces))
        }));
        Ok(())
    }

    async fn take_sealed(&mut self) -> Result<(), RepoError> {
        let Some(sealed) = self.sealing.next().await else {
            return Ok(());
        };
        let (frame, pieces) = joined(sealed)?.map_err(|source| RepoError::Compress {
            file: format!("backup {}", self.id),
            source,
        })?;
        if self.pack.len() + frame.size() > PACK_SIZE {
            self.close_pack().await?;
        }
        let frame = frame.append(&mut self.pack);
        self.tables[FRAMES].push(&MappedFrame {
            pack: self.pack_number,
            frame,
            pieces,
        });
        self.write_tables(false).await
    }

    async fn close_pack(&mut self) -> Result<(), RepoError> {
        while self.uploads.len() >= UPLOADS {
            self.take_uploaded().await?;
        }
        let pack = mem::replace(&mut self.pack, PACK_MAGIC.to_vec());
        let (store, name) = (self.store.clone(), names::pack(self.system, &self.id, self.pack_number));
        self.tables[PACKS].push(&PackRow {
            backup: self.id.clone(),
            number: self.pack_number,
            size: pack.len() as u64,
        });
        self.pack_number += 1;
        self.stored_bytes += pack.len() as u64;
        self.uploads
            .push(tokio::spawn(async move { put(&store, &name, pack.into()).await }));
        Ok(())
    }

    async fn take_uploaded(&mut self) -> Result<(), RepoError> {
        match self.uploads.next().await {
            Some(uploaded) => joined(uploaded)?,
            None => Ok(()),
        }
    }

    /// Stores the tables' parts that are full, or with `all` what is left of them.
    async fn write_tables(&mut self, all: bool) -> Result<(), RepoError> {
        for table in [FILES, FRAMES, PACKS] {
            let table = &mut self.tables[table];
            if table.rows.len() >= PART_SIZE || (all && !table.rows.is_empty()) {
                let (name, rows) = table.next_part();
                let bytes = zstd::bulk::compress(&rows, TABLE_LEVEL).map_err(|error| RepoError::Compress {
                    file: name.clone(),
                    source: CompressError::Zstd(error.to_string()),
                })?;
                self.put_part(&name, bytes.into()).await?;
            }
        }
        Ok(())
    }
}

impl Drop for BackupWriter {
    fn drop(&mut self) {
        self.sealing.iter().for_each(JoinHandle::abort);
        self.uploads.iter().for_each(JoinHandle::abort);
    }
}

/// Rows on their way into parts.
struct Table {
    name: &'static str,
    rows: Vec<u8>,
    parts: u32,
}

impl Table {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            rows: Vec::new(),
            parts: 0,
        }
    }

    fn push(&mut self, row: &impl Row) {
        row.write(&mut self.rows);
    }

    fn next_part(&mut self) -> (String, Vec<u8>) {
        let name = format!("{}-{:05}.zst", self.name, self.parts);
        self.parts += 1;
        (name, mem::take(&mut self.rows))
    }
}

/// A pack in a backup's table of packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRow {
    /// The backup that wrote it.
    pub backup: BackupId,
    /// Its number among that backup's.
    pub number: u32,
    /// Its size in bytes.
    pub size: u64,
}

impl Row for PackRow {
    fn write(&self, out: &mut Vec<u8>) {
        varint::text(out, self.backup.as_str().as_bytes());
        varint::number(out, self.number.into());
        varint::number(out, self.size);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let backup = std::str::from_utf8(varint::read_text(bytes)?).ok()?.parse().ok()?;
        let number = varint::read_number(bytes)?.try_into().ok()?;
        Some(Self {
            backup,
            number,
            size: varint::read_number(bytes)?,
        })
    }
}

/// zstd's contexts: making one takes longer than compressing a small frame.
struct Contexts {
    level: i32,
    free: Mutex<Vec<zstd::bulk::Compressor<'static>>>,
}

impl Contexts {
    fn take(&self) -> Result<zstd::bulk::Compressor<'static>, CompressError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match free {
            Some(context) => Ok(context),
            None => zstd::bulk::Compressor::new(self.level).map_err(|error| CompressError::Zstd(error.to_string())),
        }
    }

    fn give_back(&self, context: zstd::bulk::Compressor<'static>) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(context);
    }
}

/// Creates an object whose name nobody else uses. If it is there all the same, it is ours, from an
/// attempt whose answer was lost, or the repository is not what we think it is.
async fn put(store: &Store, name: &Name, bytes: Bytes) -> Result<(), RepoError> {
    if store.create(name, bytes.clone().into()).await? == Created::New {
        return Ok(());
    }
    match store.get(name, bytes.len() as u64).await? {
        Some(there) if there == bytes => Ok(()),
        _ => Err(RepoError::Taken {
            object: store.full(name),
        }),
    }
}

/// The value of a task that was joined. A panic in it goes on here; nobody cancels these tasks but
/// the writer's own end.
fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, RepoError> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => RepoError::Compress {
            file: "a frame".to_owned(),
            source: CompressError::Zstd(error.to_string()),
        },
    })
}
