//! Segments, in whatever form they are stored: whole, as the part that a timeline left behind, or in pieces.
//!
//! Whoever reads one that is not whole gets a segment of full size: what is there of it, and zeros from then on, which
//! end the WAL for a server. Where both forms are there, the one with more valid WAL is meant.
//!
//! A segment in pieces may become whole at any moment, and then its pieces go. So pieces are read first, and the whole
//! segment is looked for after that: if it is not there then, no piece had gone.

mod pages;
mod sinks;

use std::fmt;
use std::io::Write;

use self::pages::OwnPages;
use self::sinks::{Measure, Padded, Rest};
use super::tail;
use super::{ClusterInfo, Fetched, RepoError, Repository, fetch, identity};
use crate::error::{Class, Explain};
use crate::pg::{Lsn, SegmentName, SegmentNumber, WalFileName};

/// How a segment is stored. What comes first is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// As one whole file.
    Whole,
    /// As the part of it that a timeline left behind.
    Partial,
    /// In pieces.
    Pieces,
}

/// A segment in one of the forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentFile {
    /// Its name.
    pub name: SegmentName,
    /// How it is stored.
    pub form: Form,
}

impl SegmentFile {
    /// The segment that a WAL file is; `None` for texts.
    pub const fn of(file: WalFileName) -> Option<Self> {
        let (name, form) = match file {
            WalFileName::Segment(name) => (name, Form::Whole),
            WalFileName::Partial(name) => (name, Form::Partial),
            WalFileName::History(_) | WalFileName::Backup(..) => return None,
        };
        Some(Self { name, form })
    }

    /// The file as a server would call it.
    pub const fn file(self) -> WalFileName {
        match self.form {
            Form::Partial => WalFileName::Partial(self.name),
            Form::Whole | Form::Pieces => WalFileName::Segment(self.name),
        }
    }
}

impl fmt::Display for SegmentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file().fmt(f)?;
        match self.form {
            Form::Pieces => f.write_str(" (in pieces)"),
            Form::Whole | Form::Partial => Ok(()),
        }
    }
}

/// What was found out about a segment while it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Pieces that are damaged, in words.
    pub damaged: Vec<String>,
    /// Where its pieces break off though there are some from behind that, and how far those go.
    pub lost: Option<(Lsn, Lsn)>,
}

impl Told {
    /// All of it, in words.
    pub fn words(self) -> Vec<String> {
        let lost = self.lost.map(|(from, to)| {
            format!("the WAL from {from} on is missing, and the repository has pieces of it up to {to}")
        });
        self.damaged.into_iter().chain(lost).collect()
    }
}

/// Writes a segment to `sink`, in full size, every byte checked. One in pieces that has become whole meanwhile is
/// written whole.
///
/// # Errors
/// A damaged object, the store, or what `sink` answers. Part of the segment may have been written then.
pub async fn fetch_segment(
    repository: &Repository,
    cluster: &ClusterInfo,
    file: SegmentFile,
    sink: &mut (impl Write + ?Sized),
) -> Result<Fetched, RepoError> {
    let read = read_segment(repository, cluster, file, sink).await?;
    Ok(read.map_or(Fetched::Missing, |_| Fetched::Whole))
}

/// As [`fetch_segment`], for one that is not whole, or was not a moment ago: finds out in which form it is there. Answers
/// what was found out, and nothing where there is no such segment.
///
/// # Errors
/// As [`fetch_segment`].
pub async fn fetch_unfinished(
    repository: &Repository,
    cluster: &ClusterInfo,
    name: SegmentName,
    sink: &mut (impl Write + ?Sized),
) -> Result<Option<Told>, RepoError> {
    let form = unfinished(repository, cluster, name).await?;
    let file = |form| SegmentFile { name, form };
    if form != Some(Form::Pieces) {
        // There may have been pieces before they were listed.
        let whole = read_segment(repository, cluster, file(Form::Whole), sink).await?;
        if whole.is_some() {
            return Ok(whole);
        }
    }
    match form {
        Some(form) => read_segment(repository, cluster, file(form), sink).await,
        None => Ok(None),
    }
}

/// As [`fetch_segment`]; answers what was found out, and nothing where there is no such segment.
pub(super) async fn read_segment(
    repository: &Repository,
    cluster: &ClusterInfo,
    file: SegmentFile,
    sink: &mut (impl Write + ?Sized),
) -> Result<Option<Told>, RepoError> {
    let size = cluster.segment_size;
    let whole = WalFileName::Segment(file.name);
    let (Some(number), false) = (file.name.number(size), file.form == Form::Whole) else {
        let fetched = fetch(repository.store(), cluster.system, whole, sink).await?;
        return Ok((fetched == Fetched::Whole).then(Told::default));
    };
    let mut padded = Padded::new(sink, size.bytes());
    let Some(part) = read_part(repository, cluster, file, number, &mut padded).await? else {
        return Ok(None);
    };
    if let Some(told) = part.tail {
        let mut rest = Rest::behind(padded.inner(), told.end.since(number.start(size)), told.digest);
        if fetch(repository.store(), cluster.system, whole, &mut rest).await? == Fetched::Whole {
            return Ok(Some(Told::default()));
        }
        if told.end == number.start(size) {
            return match told.damaged.is_empty() {
                true => Ok(None),
                false => Err(RepoError::Damaged {
                    object: file.to_string(),
                    why: told.damaged.join("; "),
                }),
            };
        }
        padded.finish(file)?;
        return Ok(Some(Told {
            lost: told.beyond.map(|beyond| (told.end, beyond)),
            damaged: told.damaged,
        }));
    }
    padded.finish(file)?;
    Ok(Some(Told::default()))
}

/// What there is of a segment that is not whole.
struct Part {
    end: Lsn,
    /// Where it is made of pieces.
    tail: Option<tail::Tail>,
}

/// Writes what is there of a segment, and no zeros behind.
async fn read_part(
    repository: &Repository,
    cluster: &ClusterInfo,
    file: SegmentFile,
    number: SegmentNumber,
    sink: &mut (impl Write + ?Sized),
) -> Result<Option<Part>, RepoError> {
    if file.form == Form::Pieces {
        let told = tail::tail(repository, cluster, file.name.timeline(), number, sink).await?;
        let end = told.end;
        return Ok(Some(Part { end, tail: Some(told) }));
    }
    let mut pages = OwnPages::new(sink, number.start(cluster.segment_size), cluster.wal_page_size);
    let fetched = fetch(repository.store(), cluster.system, file.file(), &mut pages).await?;
    let end = pages.end();
    Ok((fetched == Fetched::Whole).then_some(Part { end, tail: None }))
}

/// In which form a segment is there that is not whole; `None` where there is nothing of it, or nothing from its start on.
///
/// # Errors
/// The store, or a damaged part with no pieces beside it.
pub async fn unfinished(
    repository: &Repository,
    cluster: &ClusterInfo,
    name: SegmentName,
) -> Result<Option<Form>, RepoError> {
    let Some(number) = name.number(cluster.segment_size) else {
        return Ok(None);
    };
    let pieces = tail::pieces_of(repository, cluster, name.timeline(), number).await?;
    let start = number.start(cluster.segment_size);
    let pieced = pieces.iter().any(|piece| piece.from == start);
    let partial = match identity(repository.store(), cluster.system, WalFileName::Partial(name)).await {
        Err(error) if error.class() == Class::Damaged && pieced => false,
        partial => partial?.is_some(),
    };
    match (partial, pieced) {
        (true, true) => longer(repository, cluster, name).await.map(Some),
        (true, false) => Ok(Some(Form::Partial)),
        (false, true) => Ok(Some(Form::Pieces)),
        (false, false) => Ok(None),
    }
}

/// Which form has more valid WAL, of a segment of which a part and pieces are there. Both are read.
///
/// # Errors
/// The store.
pub async fn longer(repository: &Repository, cluster: &ClusterInfo, name: SegmentName) -> Result<Form, RepoError> {
    let file = |form| SegmentFile { name, form };
    let partial = measure(repository, cluster, file(Form::Partial)).await?;
    let pieces = measure(repository, cluster, file(Form::Pieces)).await?;
    Ok(if pieces > partial { Form::Pieces } else { Form::Partial })
}

/// Where the last whole record ends, and where the bytes do; `None` where there is no sound byte.
async fn measure(
    repository: &Repository,
    cluster: &ClusterInfo,
    file: SegmentFile,
) -> Result<Option<(Option<Lsn>, Lsn)>, RepoError> {
    let Some(number) = file.name.number(cluster.segment_size) else {
        return Ok(None);
    };
    let mut measure = Measure::new(cluster, number, file.name.timeline());
    match read_part(repository, cluster, file, number, &mut measure).await {
        Ok(part) => Ok(part.map(|part| (measure.records(), part.end))),
        Err(error) if error.class() == Class::Damaged => Ok(None),
        Err(error) => Err(error),
    }
}
