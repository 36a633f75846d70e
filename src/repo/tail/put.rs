//! Storing a piece. A commit may be waiting for it, so it costs no more than durability does.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::frame::{PIECE_FRAME, PieceFrame};
use super::{LARGEST_PIECE, Piece};
use crate::codec::{CompressError, Compressor, Digest, Hasher};
use crate::disk::{Created, KnownFolders, Staged};
use crate::env::Env;
use crate::pg::{Lsn, SystemId, Timeline};
use crate::repo::{ClusterInfo, Pushed, RepoError, Repository, names};
use crate::store::{Name, Store, StoreError};

/// A stretch of WAL on its way in. It must lie within one segment.
#[derive(Debug, Clone, Copy)]
pub struct PieceSource<'a> {
    /// Its cluster.
    pub cluster: &'a ClusterInfo,
    /// Its timeline.
    pub timeline: Timeline,
    /// Where it begins.
    pub from: Lsn,
    /// Its bytes, in a row.
    pub content: &'a [Bytes],
}

/// A piece that is ready to be stored.
#[derive(Debug, Clone)]
pub struct PackedPiece {
    system: SystemId,
    piece: Piece,
    content: Digest,
    object: Bytes,
}

impl PackedPiece {
    /// Which it is.
    pub const fn piece(&self) -> &Piece {
        &self.piece
    }

    /// Its object.
    pub fn name(&self) -> Name {
        names::piece(self.system, self.piece.timeline, self.piece.from, self.piece.to)
    }
}

/// Compresses a stretch of WAL into a piece. Takes the processor, and nothing else.
///
/// # Errors
/// No bytes, more than [`LARGEST_PIECE`], bytes of several segments, or what zstd says.
pub fn pack_piece(source: &PieceSource<'_>, level: i32, now: DateTime<Utc>) -> Result<PackedPiece, RepoError> {
    let len = source.content.iter().map(|part| part.len() as u64).sum();
    let mut piece = Piece {
        timeline: source.timeline,
        from: source.from,
        to: source.from.plus(len),
        stored_bytes: 0,
    };
    let refused = |why| RepoError::NoPiece {
        from: piece.from,
        to: piece.to,
        why,
    };
    if len == 0 {
        return Err(refused("it is empty"));
    }
    if len > LARGEST_PIECE {
        return Err(refused("it is too large"));
    }
    if piece.segment(source.cluster.segment_size).is_none() {
        return Err(refused("it lies in more than one segment"));
    }
    let mut object = vec![0; PIECE_FRAME];
    let content = compress(source.content, len, level, &mut object).map_err(|error| RepoError::Compress {
        file: format!("the WAL from {} to {}", piece.from, piece.to),
        source: error,
    })?;
    let body = &object[PIECE_FRAME..];
    let frame = PieceFrame {
        system: source.cluster.system,
        segment_size: source.cluster.segment_size.bytes() as u32,
        page_magic: source.cluster.major.page_magic().unwrap_or_default(),
        timeline: piece.timeline,
        from: piece.from,
        to: piece.to,
        content,
        stored_len: body.len() as u64,
        stored: Digest::of(body),
        written_at: now,
    };
    object[..PIECE_FRAME].copy_from_slice(&frame.frame());
    piece.stored_bytes = object.len() as u64;
    Ok(PackedPiece {
        system: source.cluster.system,
        piece,
        content,
        object: object.into(),
    })
}

fn compress(content: &[Bytes], len: u64, level: i32, object: &mut Vec<u8>) -> Result<Digest, CompressError> {
    let mut keep = |bytes: &[u8]| -> Result<(), CompressError> {
        object.extend_from_slice(bytes);
        Ok(())
    };
    let mut compressor = Compressor::new(level, len, true)?;
    let mut hasher = Hasher::default();
    for part in content {
        hasher.update(part);
        compressor.push(part, &mut keep)?;
    }
    compressor.finish(&mut keep)?;
    Ok(hasher.digest())
}

/// Makes a piece durable (rule 1), unless it is there. In a folder that takes the fsyncs of one file and its folder (see
/// [`Staged::create`] for the crash that each step survives), in a bucket one conditional request.
///
/// # Errors
/// The same stretch is there with other content, or damaged; or the store.
pub async fn put_piece(repository: &Repository, packed: PackedPiece) -> Result<Pushed, RepoError> {
    let store = repository.store();
    let piece = packed.piece;
    let name = packed.name();
    let created = match (store.folder(), store.file(&name)) {
        (Some(root), Some(path)) => {
            let (root, object) = (root.to_path_buf(), packed.object);
            let (env, folders) = (store.env().clone(), repository.folders().clone());
            let written = tokio::task::spawn_blocking(move || write(&root, &path, &object, &env, &folders)).await;
            written
                .unwrap_or_else(|error| Err(std::io::Error::other(error)))
                .map_err(|source| StoreError::Io {
                    doing: "create",
                    object: store.full(&name),
                    source,
                })?
        }
        _ => store.create(&name, packed.object.into()).await?,
    };
    match created {
        Created::New => Ok(Pushed::New),
        Created::Exists => settle(store, &name, packed.system, &piece, packed.content).await,
    }
}

fn write(root: &Path, path: &Path, object: &[u8], env: &Arc<Env>, folders: &KnownFolders) -> std::io::Result<Created> {
    let mut staged = Staged::below(root, path, 0o666, env)?;
    staged.file().write_all(object)?;
    staged.create_among(root, folders)
}

/// The same name is there: the same content is success, other content an error naming both.
async fn settle(
    store: &Store,
    name: &Name,
    system: SystemId,
    piece: &Piece,
    content: Digest,
) -> Result<Pushed, RepoError> {
    // It was there a moment ago; a store that now says otherwise is one to ask again.
    let Some(bytes) = store.get_range(name, 0..PIECE_FRAME as u64).await? else {
        return Err(RepoError::Taken {
            object: store.full(name),
        });
    };
    let stored = check(store, name, system, piece, &bytes)?;
    if stored.content == content {
        return Ok(Pushed::Already);
    }
    Err(RepoError::PieceConflict {
        system,
        timeline: piece.timeline,
        from: piece.from,
        to: piece.to,
        object: store.full(name),
        stored: stored.content,
        new: content,
    })
}

/// Reads a piece's frame and holds it against the name under which it lies.
pub(super) fn check(
    store: &Store,
    name: &Name,
    system: SystemId,
    piece: &Piece,
    bytes: &[u8],
) -> Result<PieceFrame, RepoError> {
    let damaged = |why| RepoError::Damaged {
        object: store.full(name),
        why,
    };
    let frame = PieceFrame::read(bytes).map_err(damaged)?;
    let told = (frame.system, frame.timeline, frame.from, frame.to);
    if told != (system, piece.timeline, piece.from, piece.to) {
        return Err(damaged(format!(
            "it holds the WAL of cluster {} from {} to {} on timeline {}",
            frame.system, frame.from, frame.to, frame.timeline
        )));
    }
    Ok(frame)
}
