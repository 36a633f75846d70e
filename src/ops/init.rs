//! `init`: a place becomes a repository.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::disk::{self, Created};
use crate::error::{Class, Explain, Failure};
use crate::repo::{Repository, names};
use crate::store::{Store, StoreError};

/// The throw-away object is one line.
const PROBE_LIMIT: u64 = 4096;

/// What `init` found and did.
#[derive(Debug)]
pub struct Initialized {
    /// Whether it is new.
    pub created: Created,
    /// The repository's id.
    pub id: String,
    /// Whether the store refuses to create an object twice. Where it doesn't, rule 2 rests on our
    /// looking first, and two writers at the same moment are not kept apart.
    pub refuses_twice: bool,
}

/// Makes the folder of a folder repository. Nothing else ever does: an unmounted disk must not
/// quietly become a new archive.
///
/// # Errors
/// Whatever the file system says.
pub fn make_folder(folder: &Path) -> Result<(), InitError> {
    disk::make_folder(folder).map_err(|source| InitError {
        folder: folder.to_path_buf(),
        source,
    })
}

/// A folder that can't be made.
#[derive(Debug, thiserror::Error)]
#[error("could not make the folder {}", folder.display())]
pub struct InitError {
    folder: PathBuf,
    source: io::Error,
}

impl Explain for InitError {
    fn class(&self) -> Class {
        Class::Unavailable
    }

    fn hint(&self) -> Option<String> {
        Some("check the path, and who may write above it".to_owned())
    }
}

/// Makes the store a repository. Twice is as good as once.
///
/// # Errors
/// The store, or a repository of a later format.
pub async fn init(store: &Store) -> Result<Initialized, Failure> {
    let probed = probe(store).await?;
    let (created, repository) = Repository::init(store).await?;
    Ok(Initialized {
        created,
        id: repository.id().to_owned(),
        refuses_twice: probed.refuses_twice,
    })
}

/// What a throw-away object has shown of a store that takes writes.
#[derive(Debug)]
pub struct Probed {
    /// Whether what was written was read back the same.
    pub reads_back: bool,
    /// Whether the store refuses to create an object twice.
    pub refuses_twice: bool,
    /// What became of the delete. Only `expire` needs deletes: a store that forbids them is one that
    /// keeps what it was given, and is fit for everything else.
    pub deleted: Result<(), StoreError>,
}

/// Writes a throw-away object, reads it, tries to create it again, and deletes it.
///
/// # Errors
/// A store that can't be written or read; one that only forbids deletes is none.
pub async fn probe(store: &Store) -> Result<Probed, StoreError> {
    let name = names::probe(store.env().chance());
    let content = Bytes::from_static(b"pgp-pitr was here\n");
    store.create(&name, content.clone().into()).await?;
    let read = store.get(&name, PROBE_LIMIT).await;
    let second = store.create(&name, content.clone().into()).await;
    // Before the answers are looked at: whatever they are, it must go.
    let deleted = store.delete(&name).await;
    Ok(Probed {
        reads_back: read?.is_some_and(|read| read == content),
        refuses_twice: second? == Created::Exists,
        deleted,
    })
}
