//! The index of a WAL object: the frame behind its content, or an object of its own where it came without one.
//!
//! A footer at the frame's end says where its sections are, so that a reader who knows the object's size needs one
//! small read. Sections that a search does not need stay where they are.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::segment::{Told, read_segment};
use super::{ClusterInfo, Doubt, Form, LEAST_WAL_OBJECT, RepoError, Repository, SegmentFile, names};
use crate::codec::{self, CompressError, Digest, SKIPPABLE_HEADER};
use crate::pg::{Lsn, SegmentSize, WalFileName};
use crate::store::{Name, Store};
use crate::wal::index::{
    Indexed, SegmentIndex, SegmentIndexer, Touched, read_core, read_ends, read_touched, write_core, write_ends,
    write_touched,
};
use crate::wal::{Event, WalLayout};

/// Which of the sixteen kinds of skippable frames it is.
const KIND: u8 = 1;
/// Marks the footer, with the layout's version in the last byte.
const MAGIC: [u8; 8] = *b"PGPIDX\0\x01";
/// Length of the footer.
const FOOTER: usize = 120;
/// Everything before is covered by the footer's own digest, of which the first half is kept here.
const SEAL: Range<usize> = 104..120;
/// Length of one section's entry in the footer.
const ENTRY: usize = 28;

/// What is read of an object's end at once: footer and core of almost every index.
const READ: u64 = 16 << 10;
/// An index takes at most this share of a segment …
const SHARE: u64 = 100;
/// … or this much, whichever is more.
const LEAST: u64 = 64 << 10;
/// No core is longer when unpacked. Its lists are bounded; this bounds what damage can make us reserve.
const CORE_LIMIT: u32 = 16 << 20;
/// No other section is.
const SECTION_LIMIT: u32 = 64 << 20;

/// zstd's level for sections.
const LEVEL: i32 = 1;

const BLOCKS: usize = 0;
const ENDS: usize = 1;
const CORE: usize = 2;

/// A section as the footer tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Section {
    /// Where it begins in the frame's payload.
    offset: u32,
    stored: u32,
    raw: u32,
    digest: [u8; 16],
}

/// An index that was read, as far as it was.
#[derive(Debug, Clone)]
pub struct StoredIndex {
    /// What every index tells.
    pub core: SegmentIndex,
    /// The segment that it is about.
    pub file: SegmentFile,
    /// Where its pieces break off though there are some from behind that, and how far those go.
    pub lost: Option<(Lsn, Lsn)>,
    rest: Rest,
}

/// The other sections.
#[derive(Debug, Clone)]
enum Rest {
    /// In this object, the payload beginning there.
    Stored {
        object: Name,
        payload: u64,
        sections: [Section; 3],
    },
    /// Made a moment ago.
    Here { ends: Vec<Event>, touched: Box<Touched> },
}

/// Indexes a file on its way in. WAL that can't be read, by whatever fault, is stored all the same.
pub(super) struct Indexing {
    file: WalFileName,
    segment_bytes: u64,
    indexer: Option<SegmentIndexer>,
    failed: Option<String>,
}

impl Indexing {
    /// `layout` is `None` where this version can't read the cluster's WAL.
    pub(super) fn of(file: WalFileName, size: Option<SegmentSize>, layout: Option<WalLayout>) -> Self {
        let indexer = match (file, size, layout) {
            (WalFileName::Segment(name) | WalFileName::Partial(name), Some(size), Some(layout)) => name
                .number(size)
                .map(|number| SegmentIndexer::new(number.start(size), name.timeline(), layout)),
            _ => None,
        };
        Self {
            file,
            segment_bytes: size.map_or(0, SegmentSize::bytes),
            indexer,
            failed: None,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let Some(indexer) = &mut self.indexer else { return };
        // A defect in our reading must never keep WAL from being archived.
        let pushed = catch_unwind(AssertUnwindSafe(|| indexer.push(bytes)));
        let failed = match pushed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "reading it failed: this is a bug in pgp-pitr".to_owned(),
        };
        self.indexer = None;
        self.failed = Some(failed);
    }

    /// The ends of transactions so far; nothing where the file can't be read.
    pub(super) fn ends(&self) -> &[Event] {
        self.indexer.as_ref().map_or(&[], SegmentIndexer::ends)
    }

    /// The frame to store behind the file, and what is doubtful about its content.
    pub(super) fn finish(self) -> (Vec<u8>, Option<Doubt>) {
        let Some(indexer) = self.indexer else {
            let doubt = self.failed.map(|why| Doubt::of(self.file, None, why));
            return (Vec::new(), doubt);
        };
        match catch_unwind(AssertUnwindSafe(|| {
            let indexed = indexer.finish();
            (frame(&indexed, self.segment_bytes), doubt(self.file, &indexed.core))
        })) {
            Ok(done) => done,
            Err(_) => {
                let why = "indexing it failed: this is a bug in pgp-pitr".to_owned();
                (Vec::new(), Some(Doubt::of(self.file, None, why)))
            }
        }
    }
}

/// What is doubtful about a segment. The part of one that a timeline left behind may well end early.
fn doubt(file: WalFileName, core: &SegmentIndex) -> Option<Doubt> {
    let whole = matches!(file, WalFileName::Segment(_));
    match (&core.broken, core.troubles.first()) {
        (Some(broken), _) if whole => Some(Doubt::of(file, Some(broken.at), broken.why.clone())),
        (_, Some(trouble)) => Some(Doubt::of(file, None, trouble.clone())),
        _ => None,
    }
}

/// The frame that holds an index, of at most a hundredth of the segment or 64 KiB: what does not fit is told less
/// exactly (blocks), or not at all (ends).
fn frame(indexed: &Indexed, segment_bytes: u64) -> Vec<u8> {
    let limit = (segment_bytes / SHARE).max(LEAST) as usize - SKIPPABLE_HEADER - FOOTER;
    let core = Packed::of(&write_core(&indexed.core));
    let mut touched = Packed::of(&write_touched(&indexed.touched));
    let room = limit.saturating_sub(core.bytes.len());
    let mut coarse = indexed.touched.clone();
    while touched.bytes.len() > room * 3 / 8 && coarse.shift < 31 {
        coarse = coarse.coarser();
        touched = Packed::of(&write_touched(&coarse));
    }
    let room = room.saturating_sub(touched.bytes.len());
    let ends = match indexed.ends.is_empty() {
        true => Packed::default(),
        false => Packed::of(&write_ends(indexed.core.start, &indexed.ends)),
    };
    let ends = if ends.bytes.len() > room {
        Packed::default()
    } else {
        ends
    };
    let mut payload = Vec::with_capacity(touched.bytes.len() + ends.bytes.len() + core.bytes.len() + FOOTER);
    let mut footer = [0; FOOTER];
    footer[..8].copy_from_slice(&MAGIC);
    for (number, packed) in [touched, ends, core].into_iter().enumerate() {
        let entry = &mut footer[16 + number * ENTRY..][..ENTRY];
        entry[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        entry[4..8].copy_from_slice(&(packed.bytes.len() as u32).to_le_bytes());
        entry[8..12].copy_from_slice(&packed.raw.to_le_bytes());
        entry[12..28].copy_from_slice(&Digest::of(&packed.bytes).short());
        payload.extend_from_slice(&packed.bytes);
    }
    footer[8..16].copy_from_slice(&((payload.len() + FOOTER) as u64).to_le_bytes());
    let seal = Digest::of(&footer[..SEAL.start]).short();
    footer[SEAL].copy_from_slice(&seal);
    payload.extend_from_slice(&footer);
    codec::skippable(KIND, &payload)
}

/// A section as it is stored.
#[derive(Default)]
struct Packed {
    bytes: Vec<u8>,
    raw: u32,
}

impl Packed {
    fn of(raw: &[u8]) -> Self {
        // Nothing can go wrong in memory; if it does, the section counts as left out.
        let bytes = zstd::bulk::compress(raw, LEVEL).unwrap_or_default();
        Self {
            raw: if bytes.is_empty() { 0 } else { raw.len() as u32 },
            bytes,
        }
    }
}

/// What an object's last bytes tell.
struct Footer {
    /// Length of the frame's payload, footer included.
    payload: u64,
    sections: [Section; 3],
}

impl Footer {
    /// Reads the footer from an object's end. `Ok(None)`: there is none, the object came without an index.
    fn read(end: &[u8]) -> Result<Option<Self>, String> {
        let Some(footer) = end.len().checked_sub(FOOTER).map(|at| &end[at..]) else {
            return Ok(None);
        };
        if footer[..7] != MAGIC[..7] {
            return Ok(None);
        }
        if footer[SEAL] != Digest::of(&footer[..SEAL.start]).short() {
            return Err("its index fails its checksum".to_owned());
        }
        if footer[7] != MAGIC[7] {
            // Of a later version: as good as none, because the content can be read anew.
            return Ok(None);
        }
        let word = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
        let payload = u64::from(word(8)) | u64::from(word(12)) << 32;
        let sections = [0, 1, 2].map(|number| {
            let at = 16 + number * ENTRY;
            let mut digest = [0; 16];
            digest.copy_from_slice(&footer[at + 12..at + 28]);
            Section {
                offset: word(at),
                stored: word(at + 4),
                raw: word(at + 8),
                digest,
            }
        });
        let fits = |section: &Section| {
            let limit = if *section == sections[CORE] {
                CORE_LIMIT
            } else {
                SECTION_LIMIT
            };
            u64::from(section.offset) + u64::from(section.stored) + FOOTER as u64 <= payload && section.raw <= limit
        };
        match sections.iter().all(fits) {
            true => Ok(Some(Self { payload, sections })),
            false => Err("its index tells impossible lengths".to_owned()),
        }
    }
}

fn unpack(section: &Section, bytes: &[u8]) -> Result<Vec<u8>, String> {
    if Digest::of(bytes).short() != section.digest {
        return Err("its index fails its checksum".to_owned());
    }
    let mut raw = Vec::new();
    zstd::bulk::Decompressor::new()
        .map_err(|error| CompressError::Zstd(error.to_string()))
        .and_then(|mut context| codec::decompress_block(&mut context, bytes, &mut raw, section.raw as usize))
        .map_err(|error| error.to_string())?;
    Ok(raw)
}

/// Reads the core of a WAL file's index. `object_bytes` is the size of its object, as a listing tells it. Where the
/// object came without an index, or with a damaged one, the one that an earlier reader has left is taken, or else the
/// segment is read, and its index is left for the next one.
///
/// The index of a segment in pieces is never kept: there may be more of them at any moment. Pieces that are damaged are
/// among its troubles.
///
/// `Ok(None)`: this version can't read WAL of the cluster's major.
///
/// # Errors
/// The object is damaged or gone, or the store.
pub async fn read_index(
    repository: &Repository,
    cluster: &ClusterInfo,
    file: SegmentFile,
    object_bytes: u64,
) -> Result<Option<StoredIndex>, RepoError> {
    if WalLayout::new(cluster.major, cluster.segment_size, cluster.wal_page_size).is_err() {
        return Ok(None);
    }
    if file.form == Form::Pieces {
        let (mut indexed, told) = index(repository, cluster, file, false).await?;
        let lost = told.lost;
        indexed.core.troubles.extend(told.words());
        return Ok(Some(StoredIndex {
            lost,
            ..StoredIndex::here(file, indexed)
        }));
    }
    let store = repository.store();
    let object = names::wal_file(cluster.system, file.file());
    if object_bytes < LEAST_WAL_OBJECT {
        return Err(RepoError::Damaged {
            object: store.full(&object),
            why: format!("it has {object_bytes} bytes, and no WAL file is as short"),
        });
    }
    match read_from(store, cluster, file, &object, object_bytes).await {
        Ok(Some(found)) => return Ok(Some(found)),
        // What can be made again is no loss; if the segment is damaged too, making it says so.
        Ok(None) | Err(RepoError::Damaged { .. }) => {}
        Err(error) => return Err(error),
    }
    let kept = names::wal_index(cluster.system, file.name, file.file());
    if let Some(entry) = store.head(&kept).await? {
        match read_from(store, cluster, file, &kept, entry.size).await {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) | Err(RepoError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let (indexed, _) = index(repository, cluster, file, false).await?;
    keep(repository, cluster, file, &indexed, &kept).await;
    Ok(Some(StoredIndex::here(file, indexed)))
}

async fn read_from(
    store: &Store,
    cluster: &ClusterInfo,
    file: SegmentFile,
    object: &Name,
    size: u64,
) -> Result<Option<StoredIndex>, RepoError> {
    let damaged = |why: String| RepoError::Damaged {
        object: store.full(object),
        why,
    };
    if size < FOOTER as u64 {
        return Ok(None);
    }
    let from = size.saturating_sub(READ);
    let Some(end) = store.get_range(object, from..size).await? else {
        return Err(damaged("it was there a moment ago and is gone".to_owned()));
    };
    let Some(footer) = Footer::read(&end).map_err(damaged)? else {
        return Ok(None);
    };
    let Some(payload) = size.checked_sub(footer.payload) else {
        return Err(damaged("its index tells impossible lengths".to_owned()));
    };
    let section = footer.sections[CORE];
    let at = payload + u64::from(section.offset);
    let bytes = match at.checked_sub(from) {
        Some(skip) => end.slice(skip as usize..skip as usize + section.stored as usize),
        None => read_exactly(store, object, at, section.stored).await?,
    };
    let raw = unpack(&section, &bytes).map_err(damaged)?;
    let core = read_core(&raw).ok_or_else(|| damaged("its index makes no sense".to_owned()))?;
    let expected = file.name.number(cluster.segment_size);
    if expected.is_none_or(|number| number.start(cluster.segment_size) != core.start) || core.version != cluster.major {
        return Err(damaged(format!("its index is of another segment, at {}", core.start)));
    }
    Ok(Some(StoredIndex {
        core,
        file,
        lost: None,
        rest: Rest::Stored {
            object: object.clone(),
            payload,
            sections: footer.sections,
        },
    }))
}

async fn read_exactly(store: &Store, object: &Name, at: u64, len: u32) -> Result<Bytes, RepoError> {
    let bytes = store.get_range(object, at..at + u64::from(len)).await?;
    bytes
        .filter(|bytes| bytes.len() == len as usize)
        .ok_or_else(|| RepoError::Damaged {
            object: store.full(object),
            why: "ends within its index".to_owned(),
        })
}

/// Leaves an index for others, where we may: a reader may lack the right to write.
async fn keep(repository: &Repository, cluster: &ClusterInfo, file: SegmentFile, indexed: &Indexed, kept: &Name) {
    let bytes = frame(indexed, cluster.segment_size.bytes());
    if let Some(doubt) = doubt(file.file(), &indexed.core) {
        let _ = doubt.keep(repository, cluster.system).await;
    }
    let _ = repository.store().create(kept, Bytes::from(bytes).into()).await;
}

struct Sink(SegmentIndexer);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.push(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl StoredIndex {
    /// One that was made a moment ago.
    fn here(file: SegmentFile, indexed: Indexed) -> Self {
        Self {
            core: indexed.core,
            file,
            lost: None,
            rest: Rest::Here {
                ends: indexed.ends,
                touched: Box::new(indexed.touched),
            },
        }
    }

    /// Every commit and abort of the segment, in WAL order. Where the index had no room for them, the segment itself is
    /// read.
    ///
    /// # Errors
    /// The object is damaged or gone, or the store.
    pub async fn ends(&self, repository: &Repository, cluster: &ClusterInfo) -> Result<Vec<Event>, RepoError> {
        match &self.rest {
            Rest::Here { ends, .. } => Ok(ends.clone()),
            Rest::Stored { sections, .. } if sections[ENDS].stored > 0 => {
                let read = |raw: &[u8]| read_ends(self.core.start, raw);
                match self.section(repository.store(), ENDS, read).await {
                    Err(RepoError::Damaged { .. }) => Ok(self.read_again(repository, cluster).await?.ends),
                    read => read,
                }
            }
            Rest::Stored { .. } if self.core.ends.commits + self.core.ends.aborts == 0 => Ok(Vec::new()),
            Rest::Stored { .. } => Ok(self.read_again(repository, cluster).await?.ends),
        }
    }

    /// The blocks that the segment's records refer to.
    ///
    /// # Errors
    /// The object is damaged or gone, or the store.
    pub async fn touched(&self, repository: &Repository, cluster: &ClusterInfo) -> Result<Touched, RepoError> {
        match &self.rest {
            Rest::Here { touched, .. } => Ok((**touched).clone()),
            Rest::Stored { sections, .. } if sections[BLOCKS].stored > 0 => {
                match self.section(repository.store(), BLOCKS, read_touched).await {
                    Err(RepoError::Damaged { .. }) => Ok(self.read_again(repository, cluster).await?.touched),
                    read => read,
                }
            }
            Rest::Stored { .. } => Ok(self.read_again(repository, cluster).await?.touched),
        }
    }

    /// Everything that a recovery meets in the segment, ends of transactions included, in WAL order.
    ///
    /// # Errors
    /// The object is damaged or gone, or the store.
    pub async fn events(&self, repository: &Repository, cluster: &ClusterInfo) -> Result<Vec<Event>, RepoError> {
        let mut events = if self.core.left_out.events > 0 {
            let indexed = self.read_again(repository, cluster).await?;
            let mut events = indexed.core.events;
            events.extend(indexed.ends);
            events
        } else {
            let mut events = self.core.events.clone();
            events.extend(self.ends(repository, cluster).await?);
            events
        };
        events.sort_by_key(|event| event.lsn);
        Ok(events)
    }

    async fn section<T>(
        &self,
        store: &Store,
        number: usize,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, RepoError> {
        let Rest::Stored {
            object,
            payload,
            sections,
        } = &self.rest
        else {
            return Err(self.damaged(store, "its index is not stored".to_owned()));
        };
        let section = sections[number];
        let bytes = read_exactly(store, object, payload + u64::from(section.offset), section.stored).await?;
        let raw = unpack(&section, &bytes).map_err(|why| self.damaged(store, why))?;
        read(&raw).ok_or_else(|| self.damaged(store, "its index makes no sense".to_owned()))
    }

    fn damaged(&self, store: &Store, why: String) -> RepoError {
        RepoError::Damaged {
            object: store.full(&Name::from(self.file.to_string())),
            why,
        }
    }

    async fn read_again(&self, repository: &Repository, cluster: &ClusterInfo) -> Result<Indexed, RepoError> {
        reindex(repository, cluster, self.file, true).await
    }
}

/// Reads a whole segment and indexes it: `exhaustive`ly (see [`SegmentIndexer::exhaustive`]), or as it would be stored.
///
/// # Errors
/// The object is damaged or gone, or the store.
pub async fn reindex(
    repository: &Repository,
    cluster: &ClusterInfo,
    file: SegmentFile,
    exhaustive: bool,
) -> Result<Indexed, RepoError> {
    let (indexed, _) = index(repository, cluster, file, exhaustive).await?;
    Ok(indexed)
}

/// As [`reindex`]; tells the pieces that are damaged, too.
async fn index(
    repository: &Repository,
    cluster: &ClusterInfo,
    file: SegmentFile,
    exhaustive: bool,
) -> Result<(Indexed, Told), RepoError> {
    let damaged = |why: String| RepoError::Damaged {
        object: repository.store().full(&names::wal_file(cluster.system, file.file())),
        why,
    };
    let layout = WalLayout::new(cluster.major, cluster.segment_size, cluster.wal_page_size);
    let layout = layout.map_err(|error| damaged(error.to_string()))?;
    let Some(number) = file.name.number(cluster.segment_size) else {
        return Err(damaged("its name is not one of this segment size".to_owned()));
    };
    let indexer = SegmentIndexer::new(number.start(cluster.segment_size), file.name.timeline(), layout);
    let mut sink = Sink(if exhaustive { indexer.exhaustive() } else { indexer });
    match read_segment(repository, cluster, file, &mut sink).await? {
        Some(told) => Ok((sink.0.finish(), told)),
        None => Err(damaged("it was there a moment ago and is gone".to_owned())),
    }
}
