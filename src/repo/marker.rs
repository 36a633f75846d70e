//! The marker that makes a place a repository.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{RepoError, names};
use crate::disk::Created;
use crate::store::Store;

/// The newest repository format that this version reads and the one it writes.
const FORMAT: u32 = 1;

/// A marker is a few lines.
const LIMIT: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: String,
    encrypted: bool,
}

/// A repository whose marker has been read: from here on, "no such object" is an answer.
#[derive(Clone)]
pub struct Repository {
    store: Store,
    id: String,
}

impl Repository {
    /// Opens the repository in a store.
    ///
    /// # Errors
    /// No marker there, one of a later format, or the store.
    pub async fn open(store: &Store) -> Result<Self, RepoError> {
        let name = names::marker();
        let Some(bytes) = store.get(&name, LIMIT).await? else {
            return Err(RepoError::NoRepository {
                url: store.url().to_string(),
            });
        };
        let marker = read_marker(&store.full(&name), &bytes)?;
        Ok(Self {
            store: store.clone(),
            id: marker.id,
        })
    }

    /// Makes the store a repository, or opens the one that is there. Tells which it was.
    ///
    /// # Errors
    /// A marker of a later format, or the store.
    pub async fn init(store: &Store) -> Result<(Created, Self), RepoError> {
        let env = store.env();
        let id = format!("{:016x}{:016x}", env.chance(), env.chance());
        let marker = Marker {
            format: FORMAT,
            id,
            encrypted: false,
        };
        let created = store.create(&names::marker(), json_object(&marker).into()).await?;
        Ok((created, Self::open(store).await?))
    }

    /// The store it lies in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The id that `init` gave it.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// An object for people to read as well: indented, with a line's end.
pub(super) fn json_object(value: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn read_marker(object: &str, bytes: &[u8]) -> Result<Marker, RepoError> {
    check_format(object, bytes, FORMAT)?;
    serde_json::from_slice(bytes).map_err(|error| RepoError::Damaged {
        object: object.to_owned(),
        why: error.to_string(),
    })
}

/// Reads nothing but the format: fields may have changed with it.
pub(super) fn check_format(object: &str, bytes: &[u8], known: u32) -> Result<(), RepoError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    match serde_json::from_slice::<Format>(bytes) {
        Ok(Format { format }) if format > known => Err(RepoError::NewerFormat {
            object: object.to_owned(),
            found: format,
            known,
        }),
        Ok(_) => Ok(()),
        Err(error) => Err(RepoError::Damaged {
            object: object.to_owned(),
            why: error.to_string(),
        }),
    }
}
