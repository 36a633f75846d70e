//! The marker that makes a place a repository.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{RepoError, names};
use crate::codec::Digest;
use crate::disk::{Created, KnownFolders};
use crate::store::{Name, Store};

/// The newest repository format that this version reads and the one it writes.
const FORMAT: u32 = 1;

/// A marker is a few lines.
const LIMIT: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: String,
    encrypted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

impl Sealed for Marker {
    fn digest(&mut self) -> &mut Option<Digest> {
        &mut self.digest
    }
}

/// A repository whose marker has been read: from here on, "no such object" is an answer.
#[derive(Clone)]
pub struct Repository {
    store: Store,
    id: String,
    folders: Arc<KnownFolders>,
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
        let marker: Marker = unseal(&store.full(&name), &bytes, FORMAT)?;
        Ok(Self {
            store: store.clone(),
            id: marker.id,
            folders: Arc::default(),
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
            digest: None,
        };
        let created = store.create(&names::marker(), seal(marker).into()).await?;
        Ok((created, Self::open(store).await?))
    }

    /// Whether the folder that it lies in is still that one: what was unmounted since must not quietly become a new
    /// repository. Of a bucket nothing is asked: it does not go unnoticed.
    ///
    /// # Errors
    /// The folder holds no marker.
    pub async fn is_mounted(&self) -> Result<(), RepoError> {
        let Some(marker) = self.store.file(&names::marker()) else {
            return Ok(());
        };
        let there = tokio::task::spawn_blocking(move || marker.exists()).await;
        match there {
            Ok(true) => Ok(()),
            _ => Err(RepoError::NoRepository {
                url: self.store.url().to_string(),
            }),
        }
    }

    /// Whether the store still holds this repository and no other: a bucket's name may lead elsewhere since.
    ///
    /// # Errors
    /// It holds none, or another one; or the store.
    pub async fn is_same(&self) -> Result<(), RepoError> {
        let found = Self::open(&self.store).await?;
        match found.id == self.id {
            true => Ok(()),
            false => Err(RepoError::NoRepository {
                url: self.store.url().to_string(),
            }),
        }
    }

    /// Whether the folder that it lies in is still that one, and holds this object: what was written while it was
    /// unmounted lies in another place than it will be looked for. Of a bucket nothing is asked.
    ///
    /// # Errors
    /// The folder holds no marker, or not the object.
    pub async fn still_holds(&self, name: &Name) -> Result<(), RepoError> {
        self.is_mounted().await?;
        if let Some(file) = self.store.file(name)
            && !tokio::task::spawn_blocking(move || file.exists())
                .await
                .unwrap_or(false)
        {
            return Err(RepoError::Taken {
                object: self.store.full(name),
            });
        }
        self.is_mounted().await
    }

    /// The store it lies in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Folders of pieces that are known to be durable.
    pub(super) const fn folders(&self) -> &Arc<KnownFolders> {
        &self.folders
    }

    /// The id that `init` gave it.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A small object for people to read as well, with a digest of its own fields.
pub(super) trait Sealed: Serialize + DeserializeOwned {
    /// Where the digest stands.
    fn digest(&mut self) -> &mut Option<Digest>;
}

/// Indented JSON with a line's end. The digest is that of the same fields as compact JSON, without it.
pub(super) fn seal(mut value: impl Sealed) -> Bytes {
    let digest = digest_of(&mut value);
    *value.digest() = Some(digest);
    let mut text = serde_json::to_vec_pretty(&value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Reads what [`seal`] made.
///
/// # Errors
/// A later format, or bytes that fail their checksum.
pub(super) fn unseal<T: Sealed>(object: &str, bytes: &[u8], known: u32) -> Result<T, RepoError> {
    check_format(object, bytes, known)?;
    let damaged = |why: String| RepoError::Damaged {
        object: object.to_owned(),
        why,
    };
    let mut value: T = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    let told = value.digest().take();
    let found = digest_of(&mut value);
    if told == Some(found) {
        Ok(value)
    } else {
        Err(damaged("its content fails its checksum".to_owned()))
    }
}

fn digest_of(value: &mut impl Sealed) -> Digest {
    *value.digest() = None;
    Digest::of(&serde_json::to_vec(value).unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn marker() -> Marker {
        Marker {
            format: FORMAT,
            id: "0123456789abcdef".to_owned(),
            encrypted: false,
            digest: None,
        }
    }

    proptest! {
        #[test]
        fn a_changed_marker_is_never_another_marker(at: prop::sample::Index, bit in 0..8u8) {
            let whole = unseal::<Marker>("x", &seal(marker()), FORMAT).unwrap();
            let mut bytes = seal(marker()).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(read) = unseal::<Marker>("x", &bytes, FORMAT) {
                prop_assert_eq!(read, whole);
            }
        }
    }
}
