//! WAL files on their way into the repository.
//!
//! [`Packing`] takes a file's bytes as they come, be it from a file that the server hands over ([`push`]) or from the
//! server's own stream, and [`PackedWal::store`] makes it durable in one step. Into a folder a file is streamed, whatever
//! its size; to an object store it goes in one conditional request and is held, compressed, in memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use object_store::PutPayload;

use super::wal::{BUFFER, identity};
use super::wal_index::Indexing;
use super::{ClusterInfo, Doubt, IDENTITY_FRAME, Identity, RepoError, Repository, names};
use crate::codec::{CompressError, Compressor, Digest, Hasher};
use crate::disk::{self, Created};
use crate::pg::{SegmentSize, SystemId, WalFileName};
use crate::store::{Name, Store, StoreError};
use crate::wal::{Event, WalLayout};

/// Compressed bytes are held in pieces of this size, so that they are never copied to grow.
const PIECE: usize = 1 << 20;

/// What is known of a WAL file before its bytes are.
#[derive(Debug, Clone)]
pub struct WalHead {
    /// Its name in the repository.
    pub file: WalFileName,
    /// Its cluster.
    pub system: SystemId,
    /// The cluster's WAL segment size in bytes.
    pub segment_size: u32,
    /// The page magic of its first page; 0 for texts.
    pub page_magic: u16,
    /// Its length in bytes.
    pub len: u64,
    /// When it was last written.
    pub modified_at: DateTime<Utc>,
    /// How its records are read; `None` for texts, and where this version can't.
    pub layout: Option<WalLayout>,
}

impl WalHead {
    /// Of a whole segment, or the part of one, of a cluster.
    pub fn of_segment(
        cluster: &ClusterInfo,
        file: WalFileName,
        page_magic: u16,
        len: u64,
        modified_at: DateTime<Utc>,
    ) -> Self {
        Self {
            file,
            system: cluster.system,
            segment_size: cluster.segment_size.bytes() as u32,
            page_magic,
            len,
            modified_at,
            layout: WalLayout::new(cluster.major, cluster.segment_size, cluster.wal_page_size).ok(),
        }
    }
}

/// A WAL file on its way in.
#[derive(Debug)]
pub struct WalSource {
    /// What it is.
    pub head: WalHead,
    /// Its bytes, or where they are.
    pub content: WalContent,
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
            head: WalHead {
                file,
                system: cluster.system,
                segment_size: cluster.segment_size.bytes() as u32,
                page_magic: 0,
                len: text.len() as u64,
                modified_at,
                layout: None,
            },
            content: WalContent::Bytes(text),
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

/// Makes a WAL file durable in the repository. `known` is the identity under which the file is
/// stored already, if it is.
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
    if let Some(known) = known {
        let mut content = Hasher::default();
        read_through(source, |bytes| {
            content.update(bytes);
            Ok(())
        })?;
        let pushed = settle(store, &source.head, &known, content.digest())?;
        return Ok(Stored { pushed, doubt: None });
    }
    let mut packing = Packing::begin(store, source.head.clone(), level)?;
    read_through(source, |bytes| packing.push(bytes))?;
    packing.finish()?.store(repository).await
}

/// A WAL file that is packed as its bytes come in.
pub struct Packing {
    head: WalHead,
    content: Hasher,
    indexing: Indexing,
    compressor: Compressor,
    kept: Kept,
}

/// The packed bytes so far.
struct Kept {
    digest: Hasher,
    len: u64,
    place: Place,
}

/// Where the packed bytes go.
enum Place {
    /// Into a folder, under a name that is not its own yet.
    File(Box<disk::Staged>),
    /// Into memory, in pieces; the last may still grow. The first is the identity's.
    Memory { full: Vec<Bytes>, last: BytesMut },
}

impl Packing {
    /// Begins a file. In a folder it grows beside the place where it will lie.
    ///
    /// # Errors
    /// The folder can't be written to.
    pub fn begin(store: &Store, head: WalHead, level: i32) -> Result<Self, RepoError> {
        let name = names::wal_file(head.system, head.file);
        let Some(path) = store.file(&name) else {
            return Self::begin_in_memory(head, level);
        };
        let failed = |error| create_error(store, &name, error);
        let root = store.folder().map(PathBuf::from).unwrap_or_default();
        let mut staged = disk::Staged::below(&root, &path, 0o666, store.env()).map_err(failed)?;
        // The identity is only known at the end, so its place is left free.
        staged
            .file()
            .seek(SeekFrom::Start(IDENTITY_FRAME as u64))
            .map_err(failed)?;
        Self::begin_at(Place::File(Box::new(staged)), head, level)
    }

    /// Begins a file whose compressed bytes are held in memory until it is stored.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn begin_in_memory(head: WalHead, level: i32) -> Result<Self, RepoError> {
        let place = Place::Memory {
            full: vec![Bytes::new()],
            last: BytesMut::with_capacity(PIECE),
        };
        Self::begin_at(place, head, level)
    }

    fn begin_at(place: Place, head: WalHead, level: i32) -> Result<Self, RepoError> {
        let size = SegmentSize::new(head.segment_size.into()).ok();
        Ok(Self {
            content: Hasher::default(),
            indexing: Indexing::of(head.file, size, head.layout),
            compressor: Compressor::new(level, head.len, true).map_err(|error| Broken::from(error).of(&head))?,
            kept: Kept {
                digest: Hasher::default(),
                len: 0,
                place,
            },
            head,
        })
    }

    /// What was said of the file when it began.
    pub fn head(&self) -> &WalHead {
        &self.head
    }

    /// Takes the next bytes, which costs processor time and, in a folder, a write.
    ///
    /// # Errors
    /// The folder can't be written to.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), RepoError> {
        self.content.update(bytes);
        self.indexing.push(bytes);
        let Self { compressor, kept, .. } = self;
        let pushed = compressor.push(bytes, |packed| kept.keep(packed));
        pushed.map_err(|error| error.of(&self.head))
    }

    /// The transactions that have ended in the bytes so far, in WAL order; nothing where they can't be read.
    pub fn ends(&self) -> &[Event] {
        self.indexing.ends()
    }

    /// All bytes have come.
    ///
    /// # Errors
    /// Fewer have come than were announced, or the folder can't be written to.
    pub fn finish(self) -> Result<PackedWal, RepoError> {
        let (head, mut kept) = (self.head, self.kept);
        let (frame, doubt) = self.indexing.finish();
        self.compressor
            .finish(|packed| kept.keep(packed))
            .and_then(|()| kept.keep(&frame))
            .map_err(|error| error.of(&head))?;
        let identity = Identity {
            file: head.file,
            system: head.system,
            segment_size: head.segment_size,
            page_magic: head.page_magic,
            content_len: head.len,
            content: self.content.digest(),
            stored_len: kept.len,
            stored: kept.digest.digest(),
            modified_at: head.modified_at,
        };
        let frame = identity.frame();
        let ready = match kept.place {
            Place::File(mut staged) => {
                let file = staged.file();
                let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&frame));
                written.map_err(|error| Broken::Write(error).of(&head))?;
                Ready::File(Some(staged))
            }
            Place::Memory { mut full, last } => {
                full.push(last.freeze());
                full[0] = frame.into();
                Ready::Memory(PutPayload::from_iter(full))
            }
        };
        Ok(PackedWal {
            head,
            identity,
            doubt,
            ready,
        })
    }
}

impl Kept {
    fn keep(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        match &mut self.place {
            Place::File(staged) => staged.file().write_all(bytes)?,
            Place::Memory { full, last } => {
                if last.len() + bytes.len() > PIECE {
                    full.push(last.split().freeze());
                    last.reserve(PIECE.max(bytes.len()));
                }
                last.extend_from_slice(bytes);
            }
        }
        Ok(())
    }
}

/// A WAL file that is ready to be stored.
pub struct PackedWal {
    head: WalHead,
    identity: Identity,
    doubt: Option<Doubt>,
    ready: Ready,
}

enum Ready {
    /// Until it was tried once.
    File(Option<Box<disk::Staged>>),
    Memory(PutPayload),
}

impl PackedWal {
    /// Which file it is.
    pub const fn file(&self) -> WalFileName {
        self.head.file
    }

    /// Its object.
    pub fn name(&self) -> Name {
        names::wal_file(self.head.system, self.head.file)
    }

    /// Whether it is held in memory, so that a store that failed can be asked again. A file whose fsync failed must not
    /// be believed a second time.
    pub const fn is_in_memory(&self) -> bool {
        matches!(self.ready, Ready::Memory(_))
    }

    /// Size of the object in bytes.
    pub fn stored_bytes(&self) -> u64 {
        IDENTITY_FRAME as u64 + self.identity.stored_len
    }

    /// Makes it durable under its name.
    ///
    /// A note about WAL that can't be read is made before the object: a crash between the two leaves a note about a file
    /// that the server will hand over again.
    ///
    /// # Errors
    /// Other content under the same name; the store; a second try of what is not in memory.
    pub async fn store(&mut self, repository: &Repository) -> Result<Stored, RepoError> {
        let store = repository.store();
        let name = self.name();
        if let Some(doubt) = &self.doubt {
            doubt.keep(repository, self.head.system).await?;
        }
        let created = match &mut self.ready {
            Ready::File(staged) => {
                let root = store.folder().map(PathBuf::from).unwrap_or_default();
                let again = || io::Error::other("it was tried before and failed");
                let created = staged.take().ok_or_else(again).and_then(|staged| staged.create(&root));
                created.map_err(|error| create_error(store, &name, error))?
            }
            Ready::Memory(payload) => create(store, &name, payload.clone()).await?,
        };
        let pushed = match created {
            Created::New => Pushed::New,
            Created::Exists => {
                let known = identity(store, self.head.system, self.head.file).await?;
                // It was there a moment ago; a store that now says otherwise is one to ask again.
                let known = known.ok_or_else(|| RepoError::Taken {
                    object: store.full(&name),
                })?;
                let pushed = settle(store, &self.head, &known, self.identity.content)?;
                return Ok(Stored { pushed, doubt: None });
            }
        };
        Ok(Stored {
            pushed,
            doubt: self.doubt.clone(),
        })
    }
}

/// Creates an object from memory, durably, unless something of that name is there. In a folder this is our own writer's
/// work (decision 0002), which spares fsyncs that nobody needs.
///
/// # Errors
/// The store.
pub(super) async fn create(store: &Store, name: &Name, payload: PutPayload) -> Result<Created, StoreError> {
    let Some(path) = store.file(name) else {
        return store.create(name, payload).await;
    };
    let (root, env) = (
        store.folder().map(PathBuf::from).unwrap_or_default(),
        store.env().clone(),
    );
    let write = move || {
        let mut staged = disk::Staged::below(&root, &path, 0o666, &env)?;
        for piece in &payload {
            staged.file().write_all(piece)?;
        }
        staged.create(&root)
    };
    let written = tokio::task::spawn_blocking(write).await;
    written
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|source| StoreError::Io {
            doing: "create",
            object: store.full(name),
            source,
        })
}

/// The same name is there: the same content is success, other content an error naming both.
fn settle(store: &Store, head: &WalHead, known: &Identity, content: Digest) -> Result<Pushed, RepoError> {
    if known.content == content && known.content_len == head.len {
        return Ok(Pushed::Already);
    }
    Err(RepoError::Conflict {
        file: head.file,
        system: head.system,
        object: store.full(&names::wal_file(head.system, head.file)),
        stored: known.content,
        new: content,
    })
}

/// Reads the file once, handing on its bytes. A file that changes its length meanwhile is refused: what would be stored
/// was never its content.
fn read_through(source: &WalSource, mut each: impl FnMut(&[u8]) -> Result<(), RepoError>) -> Result<(), RepoError> {
    let path = match &source.content {
        WalContent::File(path) => path,
        WalContent::Bytes(bytes) => return each(bytes),
    };
    let read_error = |source| RepoError::File {
        doing: "read",
        file: path.display().to_string(),
        source,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let mut buffer = vec![0; BUFFER];
    let mut len = 0;
    loop {
        match file.read(&mut buffer).map_err(read_error)? {
            0 => break,
            read => {
                len += read as u64;
                each(&buffer[..read])?;
            }
        }
        if len > source.head.len {
            break;
        }
    }
    match len == source.head.len {
        true => Ok(()),
        false => Err(read_error(io::Error::other("its length changed meanwhile"))),
    }
}

fn create_error(store: &Store, name: &Name, source: io::Error) -> RepoError {
    RepoError::Store(StoreError::Io {
        doing: "create",
        object: store.full(name),
        source,
    })
}

/// Where packing broke.
enum Broken {
    Compress(CompressError),
    Write(io::Error),
}

impl Broken {
    fn of(self, head: &WalHead) -> RepoError {
        match self {
            Self::Compress(source) => RepoError::Compress {
                file: head.file.to_string(),
                source,
            },
            Self::Write(source) => RepoError::Store(StoreError::Io {
                doing: "create",
                object: head.file.to_string(),
                source,
            }),
        }
    }
}

impl From<CompressError> for Broken {
    fn from(error: CompressError) -> Self {
        Self::Compress(error)
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}
