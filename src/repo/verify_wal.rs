//! Whether a stored WAL file is what was stored: every byte of its object, without unpacking it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use futures_util::StreamExt;

use super::wal::{check, unavailable};
use super::{
    ClusterInfo, Fetched, Form, IDENTITY_FRAME, Identity, RepoError, Repository, SegmentFile, fetch, names, tail,
};
use crate::codec::Hasher;
use crate::pg::{SystemId, WalFileName};

/// One buffer of this size carries an object of any size.
const BUFFER: usize = 256 << 10;

/// What a stored WAL file is found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// Byte for byte what was stored.
    Whole,
    /// Not what was stored, for the reason in words; but a server gets from it every byte that was archived. Damage in
    /// the index behind the content is of that kind.
    ContentOnly(String),
}

/// Reads a whole WAL object and holds it against the length and the digest that its identity tells, index included.
/// Where they differ, its content is unpacked and held against its own digest.
///
/// # Errors
/// A damaged object, one that is missing among them, or the store.
pub async fn verify_wal(repository: &Repository, system: SystemId, file: WalFileName) -> Result<Verified, RepoError> {
    let store = repository.store();
    let name = names::wal_file(system, file);
    let damaged = |why: &str| RepoError::Damaged {
        object: store.full(&name),
        why: why.to_owned(),
    };
    let read = |head: &[u8]| check(store, &name, system, file, head);
    let (identity, len, hasher) = match store.file(&name) {
        Some(path) => {
            let hashed = tokio::task::spawn_blocking(move || hash_file(&path)).await;
            let hashed = hashed.map_err(|error| unavailable(store, &name, io::Error::other(error)))?;
            match hashed {
                Ok((head, len, hasher)) => (read(&head)?, len, hasher),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("it is missing")),
                Err(error) => return Err(unavailable(store, &name, error)),
            }
        }
        None => {
            let Some((_, mut pieces)) = store.get_stream(&name).await? else {
                return Err(damaged("it is missing"));
            };
            let mut hashing = Hashing::default();
            while let Some(piece) = pieces.next().await {
                hashing.push(&piece?);
            }
            (read(&hashing.head)?, hashing.len, hashing.hasher)
        }
    };
    let Err(why) = agree(&identity, len, &hasher) else {
        return Ok(Verified::Whole);
    };
    match fetch(store, system, file, &mut io::sink()).await {
        Ok(Fetched::Whole) => {
            let object = store.full(&name);
            let why = format!("{object}: {why}; its stored bytes are damaged, its content is sound");
            Ok(Verified::ContentOnly(why))
        }
        Ok(Fetched::Missing) | Err(RepoError::Damaged { .. }) => Err(damaged(why)),
        Err(error) => Err(error),
    }
}

/// As [`verify_wal`], for a segment in any form. Of one in pieces, what is there is what sound pieces give; damaged ones
/// are told.
///
/// # Errors
/// As [`verify_wal`].
pub async fn verify_segment(
    repository: &Repository,
    cluster: &ClusterInfo,
    file: SegmentFile,
) -> Result<Verified, RepoError> {
    let Some(number) = file
        .name
        .number(cluster.segment_size)
        .filter(|_| file.form == Form::Pieces)
    else {
        return verify_wal(repository, cluster.system, file.file()).await;
    };
    let told = tail::tail(repository, cluster, file.name.timeline(), number, &mut io::sink()).await?;
    if told.end == number.start(cluster.segment_size) && told.damaged.is_empty() {
        // It is whole by now, or it is missing.
        return verify_wal(repository, cluster.system, file.file()).await;
    }
    let how = told.damaged.join("; ");
    if told.end == number.start(cluster.segment_size) {
        return Err(RepoError::Damaged {
            object: file.to_string(),
            why: how,
        });
    }
    Ok(match how.is_empty() {
        true => Verified::Whole,
        false => Verified::ContentOnly(how),
    })
}

fn agree(identity: &Identity, len: u64, hasher: &Hasher) -> Result<(), &'static str> {
    if len != identity.stored_len {
        Err("it is shorter or longer than what was stored")
    } else if hasher.digest() != identity.stored {
        Err("it fails its checksum")
    } else {
        Ok(())
    }
}

/// An object as its bytes come in.
#[derive(Default)]
struct Hashing {
    head: Vec<u8>,
    /// Of what lies behind the identity.
    len: u64,
    hasher: Hasher,
}

impl Hashing {
    fn push(&mut self, bytes: &[u8]) {
        let room = IDENTITY_FRAME - self.head.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        self.len += rest.len() as u64;
        self.hasher.update(rest);
    }
}

fn hash_file(path: &Path) -> io::Result<(Vec<u8>, u64, Hasher)> {
    let mut file = File::open(path)?;
    let mut hashing = Hashing::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hashing.head, hashing.len, hashing.hasher)),
            len => hashing.push(&buffer[..len]),
        }
    }
}
