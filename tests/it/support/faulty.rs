//! A store that breaks at one chosen call: a crash sweep runs the same work once for each call and fault.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

/// How a call breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call never reaches the store; later calls work.
    Refused,
    /// The store does the work but the answer is lost: the caller cannot tell. An object that is being
    /// read breaks off in the middle.
    AnswerLost,
    /// This call and every later one fail: the process or the network is gone.
    Crash,
}

/// Every call of a run that made `calls` of them, broken in every way.
pub fn every_call_and_fault(calls: usize) -> impl Iterator<Item = (usize, Fault)> {
    (0..calls).flat_map(|call| [Fault::Refused, Fault::AnswerLost, Fault::Crash].map(|fault| (call, fault)))
}

/// A store that does what `inner` does, until its call for the fault comes. Calls are numbered from 0 as
/// they arrive, each part of a multipart upload being one; the same test must make the same calls.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    switch: Arc<Switch>,
}

impl FaultyStore {
    /// With `broken` none, it only counts.
    pub fn new(inner: Arc<dyn ObjectStore>, broken: Option<(usize, Fault)>) -> Self {
        Self {
            inner,
            switch: Arc::new(Switch {
                calls: AtomicUsize::new(0),
                broken,
                meanwhile: None,
            }),
        }
    }

    /// A store that never breaks: just before this call, somebody else does something.
    pub fn with_another(inner: Arc<dyn ObjectStore>, call: usize, does: impl Fn() + Send + Sync + 'static) -> Self {
        let mut store = Self::new(inner, None);
        store.switch = Arc::new(Switch {
            calls: AtomicUsize::new(0),
            broken: None,
            meanwhile: Some((call, Box::new(does))),
        });
        store
    }

    /// How many calls have arrived.
    pub fn calls(&self) -> usize {
        self.switch.calls.load(Ordering::SeqCst)
    }
}

/// For the message of an assertion: what was broken.
impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.switch.broken {
            None => f.write_str("unbroken store"),
            Some((call, fault)) => write!(f, "store broken at call {call}: {fault:?}"),
        }
    }
}

/// Counts the calls and knows which one breaks.
struct Switch {
    calls: AtomicUsize,
    broken: Option<(usize, Fault)>,
    meanwhile: Option<(usize, Box<dyn Fn() + Send + Sync>)>,
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.broken, self.calls)
    }
}

impl Switch {
    /// Counts one call; the fault that is due for it.
    fn next(&self) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if let Some((_, does)) = self.meanwhile.as_ref().filter(|(at, _)| *at == call) {
            does();
        }
        let (broken, fault) = self.broken?;
        (call == broken || (call > broken && fault == Fault::Crash)).then_some(fault)
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.next() {
            None => work.await,
            Some(Fault::AnswerLost) => {
                // A refusal is an answer, too.
                let _ = work.await;
                Err(injected(Fault::AnswerLost))
            }
            Some(fault) => Err(injected(fault)),
        }
    }

    /// As [`Self::call`], for an answer that comes in pieces: where it is lost, all work is done first.
    fn call_stream<T: Send + 'static>(&self, work: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
        match self.next() {
            None => work,
            Some(Fault::AnswerLost) => stream::once(async move {
                work.for_each(|_| async {}).await;
                Err(injected(Fault::AnswerLost))
            })
            .boxed(),
            Some(fault) => stream::once(async move { Err(injected(fault)) }).boxed(),
        }
    }
}

fn injected(fault: Fault) -> Error {
    Error::Generic {
        store: "FaultyStore",
        source: format!("injected: {fault:?}").into(),
    }
}

/// The same answer, whose bytes end in an error half-way.
fn broken_off(mut answer: GetResult) -> GetResult {
    let mut left = (answer.range.end - answer.range.start) / 2;
    let whole = GetResult {
        payload: std::mem::replace(&mut answer.payload, GetResultPayload::Stream(stream::empty().boxed())),
        meta: answer.meta.clone(),
        range: answer.range.clone(),
        attributes: answer.attributes.clone(),
        extensions: answer.extensions.clone(),
    };
    let first_half = whole.into_stream().map(move |piece| {
        let mut piece = piece?;
        if left == 0 {
            return Err(injected(Fault::AnswerLost));
        }
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= piece.len() as u64;
        Ok(piece)
    });
    let then_nothing = stream::once(async { Err(injected(Fault::AnswerLost)) });
    answer.payload = GetResultPayload::Stream(first_half.chain(then_nothing).boxed());
    answer
}

#[deny(clippy::missing_trait_methods)] // a method left to its default would slip past the faults
#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, to: &Path, data: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.switch.call(self.inner.put_opts(to, data, options)).await
    }

    async fn put_multipart_opts(&self, to: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.switch.call(self.inner.put_multipart_opts(to, options)).await?;
        let switch = self.switch.clone();
        Ok(Box::new(FaultyUpload { inner, switch }))
    }

    async fn get_opts(&self, from: &Path, options: GetOptions) -> Result<GetResult> {
        match self.switch.next() {
            None => self.inner.get_opts(from, options).await,
            Some(Fault::AnswerLost) => match self.inner.get_opts(from, options).await {
                Ok(answer) => Ok(broken_off(answer)),
                Err(_) => Err(injected(Fault::AnswerLost)),
            },
            Some(fault) => Err(injected(fault)),
        }
    }

    async fn get_ranges(&self, from: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.switch.call(self.inner.get_ranges(from, ranges)).await
    }

    fn delete_stream(&self, objects: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.switch.call_stream(self.inner.delete_stream(objects))
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.switch.call_stream(self.inner.list(below))
    }

    fn list_with_offset(&self, below: Option<&Path>, after: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.switch.call_stream(self.inner.list_with_offset(below, after))
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.switch.call(self.inner.list_with_delimiter(below)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.switch.call(self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.switch.call(self.inner.rename_opts(from, to, options)).await
    }
}

/// A multipart upload into a [`FaultyStore`].
#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    switch: Arc<Switch>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.inner.put_part(data);
        let switch = self.switch.clone();
        Box::pin(async move { switch.call(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.switch.call(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.switch.call(self.inner.abort()).await
    }
}
