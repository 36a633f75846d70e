//! WAL files in the repository: identity frame, then plain zstd. How they are read; `wal_push` writes them.

use std::fs::File;
use std::io::{self, Read, Write};

use bytes::BytesMut;
use futures_util::StreamExt;

use super::{IDENTITY_FRAME, Identity, RepoError, names};
use crate::codec::{CompressError, Decompressor, Hasher};
use crate::pg::{SystemId, WalFileName};
use crate::store::{Name, Store};

/// One buffer of this size carries a file of any size: a larger one costs page faults, a smaller
/// one system calls.
pub(super) const BUFFER: usize = 256 << 10;

/// No object of a WAL file is shorter: the identity, and the shortest frame that zstd writes.
pub const LEAST_WAL_OBJECT: u64 = IDENTITY_FRAME as u64 + 9;

/// What became of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// It was written and every byte checked.
    Whole,
    /// The store has no such object.
    Missing,
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
