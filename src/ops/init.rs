//! `init`: a place becomes a repository.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::disk::{self, Created};
use crate::error::{Class, Explain, Failure};
use crate::repo::{Repository, names};
use crate::store::Store;

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
    let refuses_twice = refuses_twice(store).await?;
    let (created, repository) = Repository::init(store).await?;
    Ok(Initialized {
        created,
        id: repository.id().to_owned(),
        refuses_twice,
    })
}

/// Shows with a throw-away object whether the store creates only what isn't there.
///
/// # Errors
/// The store.
pub async fn refuses_twice(store: &Store) -> Result<bool, Failure> {
    let name = names::probe(store.env().chance());
    let probe = || Bytes::from_static(b"pgp-pitr was here\n").into();
    store.create(&name, probe()).await?;
    let second = store.create(&name, probe()).await;
    store.delete(&name).await?;
    Ok(second? == Created::Exists)
}
