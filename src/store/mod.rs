//! Where objects lie: a folder or a bucket, behind one small interface.
//!
//! Over `object_store`, this adds what archiving needs: every write conditional and durable, every
//! call bounded in time and retried with jitter, and errors that say whether the store was out of
//! reach or refused us. It never decides that something "does not exist": a missing bucket or an
//! unmounted folder answers exactly like a missing object, so only [`crate::repo`], which has read
//! the repository's marker, may say so.

mod error;
mod folder;
mod open;
mod retry;
mod url;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryFutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered, StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::disk::Created;
use crate::env::Env;

pub use error::{Said, StoreError};
pub use object_store::path::Path as Name;
pub use open::{S3Settings, open};
pub use retry::Retry;
pub use url::{ParseUrlError, RepoUrl};

/// How many folders are listed at a time: a bucket's answer takes some 50 ms whatever it holds, and a file system may be
/// a network away.
const LISTINGS_AT_ONCE: usize = 16;

/// An object's name, size in bytes, and when the store says it was written.
pub type Entry = ObjectMeta;

/// One folder's or bucket prefix's objects.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    url: RepoUrl,
    env: Arc<Env>,
    retry: Retry,
}

impl Store {
    /// A store over these objects; `url` is what messages call it.
    pub fn new(objects: Arc<dyn ObjectStore>, url: RepoUrl, env: Arc<Env>) -> Self {
        Self {
            objects,
            url,
            env,
            retry: Retry::default(),
        }
    }

    /// The same store with other bounds on retrying.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same store, where no call takes longer than this, retries included: what stood in the way
    /// is told then, and not only that time ran out.
    #[must_use]
    pub fn within(mut self, total: std::time::Duration) -> Self {
        self.retry = self.retry.at_most(total);
        self
    }

    /// Where it is.
    pub fn url(&self) -> &RepoUrl {
        &self.url
    }

    /// Time and chance.
    pub fn env(&self) -> &Arc<Env> {
        &self.env
    }

    /// The folder on this machine, where it is one: large objects are streamed into it.
    pub fn folder(&self) -> Option<&Path> {
        self.url.folder()
    }

    /// The file behind an object, where the store is a folder.
    pub fn file(&self, name: &Name) -> Option<PathBuf> {
        self.folder().map(|folder| folder.join(name.as_ref()))
    }

    /// A whole object of at most `limit` bytes; `None` where the store answers "no such object".
    ///
    /// # Errors
    /// Store out of reach or refusing us; an object larger than `limit`.
    pub async fn get(&self, name: &Name, limit: u64) -> Result<Option<Bytes>, StoreError> {
        self.attempt("read", name, || async {
            let Some(answer) = found(self.objects.get(name).await)? else {
                return Ok(None);
            };
            if answer.meta.size > limit {
                return Ok(Some(Err(answer.meta.size)));
            }
            Ok(Some(Ok(answer.bytes().await?)))
        })
        .await?
        .map(|answer| {
            answer.map_err(|size| StoreError::TooLarge {
                object: self.full(name),
                size,
                limit,
            })
        })
        .transpose()
    }

    /// Part of an object: less than asked for where the object ends before. `None` where the store
    /// answers "no such object".
    ///
    /// # Errors
    /// Store out of reach or refusing us.
    pub async fn get_range(&self, name: &Name, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.attempt("read", name, || async {
            match self.objects.get_range(name, range.clone()).await {
                // A range that begins where the object ends is an error like any other: only its size tells.
                Err(error @ object_store::Error::Generic { .. }) => match self.objects.head(name).await {
                    Ok(object) if object.size <= range.start => Ok(Some(Bytes::new())),
                    _ => Err(error),
                },
                answer => found(answer),
            }
        })
        .await
    }

    /// An object as a stream of pieces, with its size. Only the opening is retried; a break in the
    /// middle is the caller's, who knows what was done with the first half.
    ///
    /// # Errors
    /// Store out of reach or refusing us.
    pub async fn get_stream(
        &self,
        name: &Name,
    ) -> Result<Option<(u64, BoxStream<'static, Result<Bytes, StoreError>>)>, StoreError> {
        let answer = self
            .attempt("read", name, || async { found(self.objects.get(name).await) })
            .await?;
        let (object, url) = (self.full(name), self.url.clone());
        Ok(answer.map(|answer| {
            let size = answer.meta.size;
            let pieces = answer
                .into_stream()
                .map_err(move |error| StoreError::of("read", &object, &url, error));
            (size, pieces.boxed())
        }))
    }

    /// Size and time of an object; `None` where the store answers "no such object".
    ///
    /// # Errors
    /// Store out of reach or refusing us.
    pub async fn head(&self, name: &Name) -> Result<Option<Entry>, StoreError> {
        self.attempt("look up", name, || async { found(self.objects.head(name).await) })
            .await
    }

    /// Creates an object, durably, unless something of that name is there.
    ///
    /// [`Created::Exists`] is a question and not an answer: S3 says it for "retry" too, and a lost
    /// answer to our own request looks the same. Compare what is there.
    ///
    /// # Errors
    /// Store out of reach, refusing us, or full.
    pub async fn create(&self, name: &Name, payload: PutPayload) -> Result<Created, StoreError> {
        let options = || PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        self.attempt("create", name, || async {
            match self.objects.put_opts(name, payload.clone(), options()).await {
                Ok(_) => Ok(Created::New),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(Created::Exists)
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Deletes an object; one that isn't there is as good as deleted.
    ///
    /// # Errors
    /// Store out of reach or refusing us.
    pub async fn delete(&self, name: &Name) -> Result<(), StoreError> {
        self.attempt("delete", name, || async { found(self.objects.delete(name).await) })
            .await?;
        match self.file(name).as_deref().and_then(Path::parent) {
            // object_store does not fsync deletes.
            Some(folder) => crate::disk::sync_folder(folder).map_err(|source| StoreError::Io {
                doing: "delete",
                object: self.full(name),
                source,
            }),
            None => Ok(()),
        }
    }

    /// Deletes objects that may as well stay: many with one request where the store can do that, without trying again,
    /// and without waiting until it is durable. Answers how many are gone, and why others are not, for the first of them.
    pub async fn delete_many(&self, names: Vec<Name>) -> (usize, Option<StoreError>) {
        let Some(first) = names.first().cloned() else {
            return (0, None);
        };
        let (mut gone, mut refused) = (0, None);
        if let Some(folder) = self.folder() {
            let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name.as_ref())).collect();
            let deleted = tokio::task::spawn_blocking(move || folder::delete(&paths)).await;
            let (gone, refused) = deleted.unwrap_or_else(|error| (0, Some((0, std::io::Error::other(error)))));
            let refused = refused.map(|(at, source)| StoreError::Io {
                doing: "delete",
                object: self.full(names.get(at).unwrap_or(&first)),
                source,
            });
            return (gone, refused);
        }
        let mut answers = self
            .objects
            .delete_stream(stream::iter(names.into_iter().map(Ok)).boxed());
        let all = async {
            while let Some(answer) = answers.next().await {
                match found(answer) {
                    Ok(_) => gone += 1,
                    Err(error) if refused.is_none() => {
                        refused = Some(StoreError::of("delete", &self.full(&first), &self.url, error));
                    }
                    Err(_) => {}
                }
            }
        };
        let total = self.retry.total();
        if tokio::time::timeout(total, all).await.is_err() {
            refused = refused.or(Some(StoreError::Timeout(total)));
        }
        (gone, refused)
    }

    /// Every object below a prefix, at any depth, in no particular order.
    pub fn list(&self, prefix: &Name) -> BoxStream<'static, Result<Entry, StoreError>> {
        let (object, url) = (self.full(prefix), self.url.clone());
        self.objects
            .list(Some(prefix))
            .map_err(move |error| StoreError::of("list", &object, &url, error))
            .boxed()
    }

    /// What `pick` makes of every object below a prefix, at any depth, from its folder, its name in that and its size in
    /// bytes. It comes folder by folder, in no particular order. Each folder is listed once, several at a time, and a
    /// listing that breaks off is tried again.
    pub fn walk<T: Send + 'static>(
        &self,
        prefix: &Name,
        pick: fn(&Name, &str, u64) -> Option<T>,
    ) -> BoxStream<'static, Result<Vec<T>, StoreError>> {
        let store = self.clone();
        let start = (vec![prefix.clone()], FuturesUnordered::new());
        stream::try_unfold(start, move |(mut waiting, mut running)| {
            let store = store.clone();
            async move {
                loop {
                    while running.len() < LISTINGS_AT_ONCE
                        && let Some(folder) = waiting.pop()
                    {
                        let store = store.clone();
                        running.push(async move { store.level(&folder, pick).await });
                    }
                    let Some(level) = running.next().await else {
                        return Ok(None);
                    };
                    let (folders, picked) = level?;
                    waiting.extend(folders);
                    if !picked.is_empty() {
                        return Ok(Some((picked, (waiting, running))));
                    }
                }
            }
        })
        .boxed()
    }

    async fn level<T: Send + 'static>(
        &self,
        folder: &Name,
        pick: fn(&Name, &str, u64) -> Option<T>,
    ) -> Result<folder::Level<T>, StoreError> {
        self.attempt("list", folder, || async {
            if let Some(path) = self.file(folder) {
                let name = folder.clone();
                let read = tokio::task::spawn_blocking(move || folder::read(&path, &name, pick)).await?;
                return read.map_err(|error| of_folder(folder, error));
            }
            let answer = self.objects.list_with_delimiter(Some(folder)).await?;
            let picked = answer
                .objects
                .iter()
                .filter_map(|object| pick(folder, object.location.filename()?, object.size));
            Ok((answer.common_prefixes, picked.collect()))
        })
        .await
    }

    /// The folders and the objects directly below a prefix.
    ///
    /// # Errors
    /// Store out of reach or refusing us.
    pub async fn list_level(&self, prefix: &Name) -> Result<(Vec<Name>, Vec<Entry>), StoreError> {
        let answer = self
            .attempt("list", prefix, || async {
                self.objects.list_with_delimiter(Some(prefix)).await
            })
            .await?;
        Ok((answer.common_prefixes, answer.objects))
    }

    /// The objects of a bucket directly below a prefix whose names come after another, in the order of names, as long as
    /// `wanted` says so; and the first that it did not want. Costs what is listed, not what is there.
    ///
    /// # Errors
    /// Store out of reach or refusing us.
    pub async fn list_after(
        &self,
        prefix: &Name,
        after: &Name,
        wanted: impl Fn(&Entry) -> bool + Sync,
    ) -> Result<(Vec<Entry>, Option<Entry>), StoreError> {
        let wanted = &wanted;
        self.attempt("list", prefix, || async move {
            let mut entries = self.objects.list_with_offset(Some(prefix), after);
            let mut found = Vec::new();
            while let Some(entry) = entries.try_next().await? {
                if !wanted(&entry) {
                    return Ok((found, Some(entry)));
                }
                found.push(entry);
            }
            Ok((found, None))
        })
        .await
    }

    /// An object's name with the store's own in front, for messages.
    pub fn full(&self, name: &Name) -> String {
        format!("{}/{name}", self.url)
    }

    /// Boxed, because the compiler can't see through the closures that a pack's upload, a task of its
    /// own, may move to another thread.
    fn attempt<'a, T: Send + 'a, F: Future<Output = object_store::Result<T>> + Send + 'a>(
        &'a self,
        doing: &'static str,
        name: &'a Name,
        call: impl Fn() -> F + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        let explained = move |error| StoreError::of(doing, &self.full(name), &self.url, error);
        Box::pin(async move { self.retry.run(&self.env, || call().map_err(explained)).await })
    }
}

fn of_folder(folder: &Name, error: std::io::Error) -> object_store::Error {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => object_store::Error::PermissionDenied {
            path: folder.to_string(),
            source: error.into(),
        },
        _ => object_store::Error::Generic {
            store: "LocalFileSystem",
            source: error.into(),
        },
    }
}

fn found<T>(answer: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
