//! WAL files in the repository: identity frame, then plain zstd.
//!
//! Into a folder a file is streamed, whatever its size; to an object store it goes in one
//! conditional request and is held, compressed, in memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use object_store::PutPayload;

use super::wal_index::Indexing;
use super::{ClusterInfo, Doubt, IDENTITY_FRAME, Identity, RepoError, Repository, names};
use crate::codec::{CompressError, Compressor, Decompressor, Digest, Hasher};
use crate::disk::{self, Created};
use crate::pg::{SegmentSize, SystemId, WalFileName};
use crate::store::{Name, Store};
use crate::wal::WalLayout;

/// One buffer of this size carries a file of any size: a larger one costs page faults, a smaller
/// one system calls.
const BUFFER: usize = 256 << 10;

/// Compressed bytes are held in pieces of this size, so that they are never copied to grow.
const PIECE: usize = 1 << 20;

/// No object of a WAL file is shorter: the identity, and the shortest frame that zstd writes.
pub const LEAST_WAL_OBJECT: u64 = IDENTITY_FRAME as u64 + 9;

/// A WAL file on its way in.
#[derive(Debug)]
pub struct WalSource {
    /// Its name in the repository.
    pub file: WalFileName,
    /// Its cluster.
    pub system: SystemId,
    /// The cluster's WAL segment size in bytes.
    pub segment_size: u32,
    /// The page magic of its first page; 0 for texts.
    pub page_magic: u16,
    /// Its bytes, or where they are.
    pub content: WalContent,
    /// Its length in bytes.
    pub len: u64,
    /// When it was last written.
    pub modified_at: DateTime<Utc>,
    /// How its records are read; `None` for texts, and where this version can't.
    pub layout: Option<WalLayout>,
}

/// Where a WAL file's bytes are.
#[derive(Debug)]
pub enum WalContent {
    /// In this file.
    File(PathBuf),
    /// Here. For texts, not for segments.
    Bytes(Bytes),
}

impl WalSource {
    /// A text about WAL that lies in memory.
    pub fn of_text(cluster: &ClusterInfo, file: WalFileName, text: Bytes, modified_at: DateTime<Utc>) -> Self {
        Self {
            file,
            system: cluster.system,
            segment_size: cluster.segment_size.bytes() as u32,
            page_magic: 0,
            len: text.len() as u64,
            content: WalContent::Bytes(text),
            modified_at,
            layout: None,
        }
    }
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is stored now.
    New,
    /// It was stored before, with the same content.
    Already,
}

/// A push that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What became of it.
    pub pushed: Pushed,
    /// What could not be read of it. It is stored all the same.
    pub doubt: Option<Doubt>,
}

/// What became of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// It was written and every byte checked.
    Whole,
    /// The store has no such object.
    Missing,
}

/// Makes a WAL file durable in the repository. `known` is the identity under which the file is
/// stored already, if it is.
///
/// A note about WAL that can't be read is made before the object: a crash between the two leaves a note about a file
/// that the server will hand over again.
///
/// # Errors
/// Other content under the same name; the file can't be read; the store.
pub async fn push(
    repository: &Repository,
    source: &WalSource,
    level: i32,
    known: Option<Identity>,
) -> Result<Stored, RepoError> {
    let store = repository.store();
    let name = names::wal_file(source.system, source.file);
    let settled = |pushed| Stored { pushed, doubt: None };
    if let Some(known) = known {
        return settle(store, &name, source, &known, hash_file(source)?).map(settled);
    }
    let packed = match store.file(&name) {
        Some(path) => pack_into_file(store, path, source, level)?,
        None => pack_into_memory(store, &name, source, level)?,
    };
    if let Some(doubt) = &packed.doubt {
        doubt.keep(repository, source.system).await?;
    }
    let (content, doubt) = (packed.identity.content, packed.doubt.clone());
    let created = match packed.place {
        Place::File(staged, path) => {
            let created = staged.create(store.folder().unwrap_or(&path));
            created.map_err(|error| Pack::Write(error).explain(source, store, &path))?
        }
        Place::Memory(payload) => store.create(&name, payload).await?,
    };
    match created {
        Created::New => Ok(Stored {
            pushed: Pushed::New,
            doubt,
        }),
        Created::Exists => {
            let known = identity(store, source.system, source.file).await?;
            // It was there a moment ago; a store that now says otherwise is one to ask again.
            let known = known.ok_or_else(|| RepoError::Taken {
                object: store.full(&name),
            })?;
            settle(store, &name, source, &known, content).map(settled)
        }
    }
}

/// Reads the identity under which a WAL file is stored; `None` where the store has no such object.
///
/// # Errors
/// A damaged object, or the store.
pub async fn identity(store: &Store, system: SystemId, file: WalFileName) -> Result<Option<Identity>, RepoError> {
    let name = names::wal_file(system, file);
    let Some(bytes) = store.get_range(&name, 0..IDENTITY_FRAME as u64).await? else {
        return Ok(None);
    };
    check(store, &name, system, file, &bytes).map(Some)
}

/// Writes a stored WAL file to `sink`, every byte checked against the identity's digest.
///
/// # Errors
/// A damaged object, the store, or what `sink` answers. Part of the file may have been written then.
pub async fn fetch(
    store: &Store,
    system: SystemId,
    file: WalFileName,
    sink: &mut (impl Write + ?Sized),
) -> Result<Fetched, RepoError> {
    let name = names::wal_file(system, file);
    let mut writer = Unpacker {
        store,
        name: &name,
        system,
        file,
        head: BytesMut::new(),
        body: None,
    };
    match store.file(&name) {
        Some(path) => {
            let read_error = |source| RepoError::File {
                doing: "read",
                file: path.display().to_string(),
                source,
            };
            let mut stored = match File::open(&path) {
                Ok(stored) => stored,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Fetched::Missing),
                Err(error) => return Err(unavailable(store, &name, error)),
            };
            let mut buffer = vec![0; BUFFER];
            loop {
                match stored.read(&mut buffer).map_err(read_error)? {
                    0 => break,
                    len => writer.push(&buffer[..len], sink)?,
                }
            }
        }
        None => {
            let Some((_, mut pieces)) = store.get_stream(&name).await? else {
                return Ok(Fetched::Missing);
            };
            while let Some(piece) = pieces.next().await {
                writer.push(&piece?, sink)?;
            }
        }
    }
    writer.finish()?;
    Ok(Fetched::Whole)
}

/// A stored file that can't be opened is a store that can't be reached, not a missing object.
pub(super) fn unavailable(store: &Store, name: &Name, source: io::Error) -> RepoError {
    RepoError::Store(crate::store::StoreError::Io {
        doing: "read",
        object: store.full(name),
        source,
    })
}

/// Takes a WAL object apart as its bytes come in.
struct Unpacker<'a> {
    store: &'a Store,
    name: &'a Name,
    system: SystemId,
    file: WalFileName,
    head: BytesMut,
    body: Option<(Identity, Decompressor, Hasher)>,
}

impl Unpacker<'_> {
    fn push(&mut self, bytes: &[u8], sink: &mut (impl Write + ?Sized)) -> Result<(), RepoError> {
        if self.body.is_some() {
            return self.unpack(bytes, sink);
        }
        self.head.extend_from_slice(bytes);
        if self.head.len() < IDENTITY_FRAME {
            return Ok(());
        }
        let rest = self.head.split_off(IDENTITY_FRAME);
        let identity = check(self.store, self.name, self.system, self.file, &self.head)?;
        let decompressor = Decompressor::new(identity.content_len).map_err(|error| self.damaged(error.to_string()))?;
        self.body = Some((identity, decompressor, Hasher::default()));
        self.unpack(&rest, sink)
    }

    fn unpack(&mut self, bytes: &[u8], sink: &mut (impl Write + ?Sized)) -> Result<(), RepoError> {
        let Some((_, decompressor, hasher)) = &mut self.body else {
            return Ok(());
        };
        let unpacked = decompressor.push(bytes, |content| {
            hasher.update(content);
            sink.write_all(content).map_err(Unpack::Write)
        });
        match unpacked {
            Ok(()) => Ok(()),
            Err(Unpack::Read(error)) => Err(self.damaged(error.to_string())),
            Err(Unpack::Write(source)) => Err(RepoError::File {
                doing: "write",
                file: self.file.to_string(),
                source,
            }),
        }
    }

    fn finish(self) -> Result<(), RepoError> {
        let damaged = |why: &str| RepoError::Damaged {
            object: self.store.full(self.name),
            why: why.to_owned(),
        };
        let Some((identity, decompressor, hasher)) = self.body else {
            return Err(damaged("ends within its identity frame"));
        };
        decompressor.finish().map_err(|error| damaged(&error.to_string()))?;
        if hasher.digest() == identity.content {
            Ok(())
        } else {
            Err(damaged("its content fails its checksum"))
        }
    }

    fn damaged(&self, why: String) -> RepoError {
        RepoError::Damaged {
            object: self.store.full(self.name),
            why,
        }
    }
}

enum Unpack {
    Read(CompressError),
    Write(io::Error),
}

impl From<CompressError> for Unpack {
    fn from(error: CompressError) -> Self {
        Self::Read(error)
    }
}

/// Reads an identity and holds it against the name under which it lies.
pub(super) fn check(
    store: &Store,
    name: &Name,
    system: SystemId,
    file: WalFileName,
    bytes: &[u8],
) -> Result<Identity, RepoError> {
    let damaged = |why| RepoError::Damaged {
        object: store.full(name),
        why,
    };
    let identity = Identity::read(bytes).map_err(damaged)?;
    if identity.file != file || identity.system != system {
        return Err(damaged(format!(
            "it holds {} of cluster {}",
            identity.file, identity.system
        )));
    }
    Ok(identity)
}

/// The same name is there: the same content is success, other content an error naming both.
fn settle(
    store: &Store,
    name: &Name,
    source: &WalSource,
    known: &Identity,
    content: Digest,
) -> Result<Pushed, RepoError> {
    if known.content == content && known.content_len == source.len {
        return Ok(Pushed::Already);
    }
    Err(RepoError::Conflict {
        file: source.file,
        system: source.system,
        object: store.full(name),
        stored: known.content,
        new: content,
    })
}

/// A file that is ready to be stored.
struct Packed {
    identity: Identity,
    doubt: Option<Doubt>,
    place: Place,
}

enum Place {
    /// Here, under a name that is not its own yet, and that is its own.
    File(disk::Staged, PathBuf),
    Memory(PutPayload),
}

/// Streams the file into a folder. The identity is only known at the end, so its place is left free
/// and filled before the file gets its name.
fn pack_into_file(store: &Store, path: PathBuf, source: &WalSource, level: i32) -> Result<Packed, RepoError> {
    let made = || -> Result<Packed, Pack> {
        let mut staged = disk::Staged::beside(&path, 0o666, store.env())?;
        staged.file().seek(SeekFrom::Start(IDENTITY_FRAME as u64))?;
        let (identity, doubt) = pack(source, level, |bytes| Ok(staged.file().write_all(bytes)?))?;
        staged.file().seek(SeekFrom::Start(0))?;
        staged.file().write_all(&identity.frame())?;
        Ok(Packed {
            identity,
            doubt,
            place: Place::File(staged, path.clone()),
        })
    };
    made().map_err(|error| error.explain(source, store, &path))
}

fn pack_into_memory(store: &Store, name: &Name, source: &WalSource, level: i32) -> Result<Packed, RepoError> {
    let mut pieces: Vec<Bytes> = vec![Bytes::new()];
    let mut piece = BytesMut::with_capacity(PIECE);
    let (identity, doubt) = pack(source, level, |bytes| {
        if piece.len() + bytes.len() > PIECE {
            pieces.push(piece.split().freeze());
            piece.reserve(PIECE.max(bytes.len()));
        }
        piece.extend_from_slice(bytes);
        Ok(())
    })
    .map_err(|error| error.explain(source, store, Path::new(name.as_ref())))?;
    pieces.push(piece.freeze());
    pieces[0] = identity.frame().into();
    Ok(Packed {
        identity,
        doubt,
        place: Place::Memory(PutPayload::from_iter(pieces)),
    })
}

/// Compresses and indexes a file into `sink`, and answers who it is and what is doubtful about it.
fn pack(
    source: &WalSource,
    level: i32,
    mut sink: impl FnMut(&[u8]) -> Result<(), Pack>,
) -> Result<(Identity, Option<Doubt>), Pack> {
    let mut stored = Hasher::default();
    let mut stored_len = 0;
    let mut keep = |bytes: &[u8]| {
        stored.update(bytes);
        stored_len += bytes.len() as u64;
        sink(bytes)
    };
    let size = SegmentSize::new(source.segment_size.into()).ok();
    let mut indexing = Indexing::of(source.file, size, source.layout);
    let mut compressor = Compressor::new(level, source.len, true)?;
    let content = read_through(source, |bytes| {
        indexing.push(bytes);
        compressor.push(bytes, &mut keep)
    })?;
    compressor.finish(&mut keep)?;
    let (frame, doubt) = indexing.finish();
    keep(&frame)?;
    let identity = Identity {
        file: source.file,
        system: source.system,
        segment_size: source.segment_size,
        page_magic: source.page_magic,
        content_len: source.len,
        content,
        stored_len,
        stored: stored.digest(),
        modified_at: source.modified_at,
    };
    Ok((identity, doubt))
}

fn hash_file(source: &WalSource) -> Result<Digest, RepoError> {
    read_through(source, |_| Ok::<(), ReadFailed>(())).map_err(|ReadFailed(error)| read_error(source, error))
}

/// Reads the file once, handing on its bytes, and answers their digest. A file that changes its
/// length meanwhile is refused: what would be stored was never its content.
fn read_through<E: From<ReadFailed>>(
    source: &WalSource,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Digest, E> {
    let mut file = match &source.content {
        WalContent::File(path) => File::open(path).map_err(ReadFailed)?,
        WalContent::Bytes(bytes) => {
            each(bytes)?;
            return Ok(Digest::of(bytes));
        }
    };
    let mut buffer = vec![0; BUFFER];
    let (mut content, mut len) = (Hasher::default(), 0);
    loop {
        let read = file.read(&mut buffer).map_err(ReadFailed)?;
        if read == 0 {
            break;
        }
        len += read as u64;
        content.update(&buffer[..read]);
        each(&buffer[..read])?;
    }
    if len == source.len {
        Ok(content.digest())
    } else {
        Err(ReadFailed(io::Error::other("its length changed meanwhile")).into())
    }
}

/// The file on its way in can't be read.
struct ReadFailed(io::Error);

fn read_error(source: &WalSource, error: io::Error) -> RepoError {
    let file = match &source.content {
        WalContent::File(path) => path.display().to_string(),
        WalContent::Bytes(_) => source.file.to_string(),
    };
    RepoError::File {
        doing: "read",
        file,
        source: error,
    }
}

/// Where packing a file broke.
enum Pack {
    Read(ReadFailed),
    Compress(CompressError),
    Write(io::Error),
}

impl Pack {
    fn explain(self, source: &WalSource, store: &Store, goal: &Path) -> RepoError {
        match self {
            Self::Read(ReadFailed(error)) => read_error(source, error),
            Self::Compress(error) => RepoError::Compress {
                file: source.file.to_string(),
                source: error,
            },
            Self::Write(error) => RepoError::Store(crate::store::StoreError::Io {
                doing: "create",
                object: match goal.is_absolute() {
                    true => goal.display().to_string(),
                    false => format!("{}/{}", store.url(), goal.display()),
                },
                source: error,
            }),
        }
    }
}

impl From<CompressError> for Pack {
    fn from(error: CompressError) -> Self {
        Self::Compress(error)
    }
}

impl From<ReadFailed> for Pack {
    fn from(error: ReadFailed) -> Self {
        Self::Read(error)
    }
}

impl From<io::Error> for Pack {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}
