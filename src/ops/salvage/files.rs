//! What lies in a `pg_wal`, and what one file of it is.
//!
//! Files are opened for reading and for nothing else. A name says little: the server keeps files ready under names that come
//! later, with old content or none, so each file is judged by its first page.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::codec::{Digest, Hasher};
use crate::pg::{
    LongHeader, Lsn, PageHeader, SegmentName, SegmentNumber, SegmentSize, Timeline, WalFileName, check_first_page,
};
use crate::repo::ClusterInfo;
use crate::wal::index::{Broken, SegmentIndex, SegmentIndexer};
use crate::wal::{Step, WalDecoder, WalLayout};

/// One buffer of this size reads a file of any size.
const BUFFER: usize = 256 << 10;

/// The files of a `pg_wal` that have names of WAL.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Segments by timeline.
    pub(super) segments: BTreeMap<Timeline, BTreeMap<SegmentNumber, PathBuf>>,
    /// What promotions left of an old timeline's last segment.
    pub(super) partials: BTreeMap<(Timeline, SegmentNumber), PathBuf>,
    /// History files.
    pub(super) histories: BTreeMap<Timeline, PathBuf>,
    /// Names that no segment of this size has.
    pub(super) strange: Vec<PathBuf>,
}

impl Files {
    /// Reads the folder. Names that are not of WAL are passed over.
    pub(super) fn read(folder: &Path, size: SegmentSize) -> io::Result<Self> {
        let mut files = Self::default();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name: Option<WalFileName> = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let number = |segment: SegmentName| segment.number(size);
            match name {
                Some(WalFileName::Segment(segment)) => match number(segment) {
                    Some(number) => {
                        let on_timeline = files.segments.entry(segment.timeline()).or_default();
                        on_timeline.insert(number, entry.path());
                    }
                    None => files.strange.push(entry.path()),
                },
                Some(WalFileName::Partial(segment)) => match number(segment) {
                    Some(number) => drop(files.partials.insert((segment.timeline(), number), entry.path())),
                    None => files.strange.push(entry.path()),
                },
                Some(WalFileName::History(timeline)) => drop(files.histories.insert(timeline, entry.path())),
                Some(WalFileName::Backup(..)) | None => {}
            }
        }
        Ok(files)
    }

    /// A timeline's segment, if there is a file of that name.
    pub(super) fn segment(&self, timeline: Timeline, number: SegmentNumber) -> Option<&PathBuf> {
        self.segments.get(&timeline)?.get(&number)
    }
}

/// What a file is, by its first page.
#[derive(Debug)]
pub(super) enum Looks {
    /// The segment that its name says.
    Wal,
    /// Kept ready by the server, with old content or none; or its first page is damaged.
    Blank(String),
    /// Of another cluster than the data directory.
    Foreign(String),
    /// It can't be read.
    Unreadable(io::Error),
}

/// Looks at a file's first page.
pub(super) fn look(path: &Path, file: WalFileName, cluster: &ClusterInfo) -> Looks {
    match first_bytes(path) {
        Err(error) => Looks::Unreadable(error),
        Ok((bytes, len)) => judge(&bytes, len, file, cluster),
    }
}

fn first_bytes(path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let file = File::open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::with_capacity(LongHeader::BYTES);
    file.take(LongHeader::BYTES as u64).read_to_end(&mut bytes)?;
    Ok((bytes, about.len()))
}

fn judge(bytes: &[u8], len: u64, file: WalFileName, cluster: &ClusterInfo) -> Looks {
    let size = cluster.segment_size.bytes();
    let page = check_first_page(file, bytes, size);
    // Before anything else: that a file is another cluster's is worth telling whatever its name.
    if let Ok(header) = LongHeader::parse(bytes)
        && crate::pg::MagicMeaning::of(header.page.magic) == crate::pg::MagicMeaning::Major(cluster.major)
        && header.system != cluster.system
    {
        return Looks::Foreign(format!("it is of cluster {}", header.system));
    }
    match page {
        Err(error) => Looks::Blank(error.to_string()),
        Ok(first) if first.header.system != cluster.system => {
            Looks::Foreign(format!("it is of cluster {}", first.header.system))
        }
        Ok(first) if first.version != Some(cluster.major) => {
            Looks::Foreign("it is of another major version of PostgreSQL".to_owned())
        }
        Ok(first) if first.header.segment_size != cluster.segment_size => Looks::Foreign(format!(
            "it tells segments of {} bytes, the cluster has them of {size}",
            first.header.segment_size.bytes()
        )),
        Ok(first) if first.header.page_size != cluster.wal_page_size => Looks::Foreign(format!(
            "it tells WAL pages of {} bytes, the cluster has them of {}",
            first.header.page_size, cluster.wal_page_size
        )),
        Ok(_) if len > size => Looks::Foreign(format!("it has {len} bytes, a segment has {size}")),
        Ok(_) => Looks::Wal,
    }
}

/// Indexes a segment's records, as far as the file can be read. What ends it too early counts as broken WAL, and an error
/// of the file system is told as well.
pub(super) fn index(
    path: &Path,
    timeline: Timeline,
    start: Lsn,
    layout: WalLayout,
) -> (SegmentIndex, Option<io::Error>) {
    let mut indexer = SegmentIndexer::new(start, timeline, layout);
    let size = layout.segment_size().bytes();
    let mut read = 0;
    let ended = each_piece(path, size, |bytes| {
        read += bytes.len() as u64;
        // A row of pushes that begins where the segment does is never refused.
        let _ = indexer.push(bytes);
        true
    });
    let mut core = indexer.finish().core;
    if read < size && core.broken.is_none() {
        let why = match &ended {
            Ok(()) => "the file ends there".to_owned(),
            Err(error) => format!("the file can't be read there: {error}"),
        };
        let at = core.begun.take().map_or(start.plus(read), |begun| begun.start);
        core.broken = Some(Broken {
            at,
            unwritten: false,
            why,
        });
    }
    (core, ended.err())
}

/// The digest of a whole file.
pub(super) fn digest(path: &Path) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    each_piece(path, u64::MAX, |bytes| {
        hasher.update(bytes);
        true
    })?;
    Ok(hasher.digest())
}

/// Hands on a file's first bytes, up to `limit` of them or until `each` has enough.
fn each_piece(path: &Path, limit: u64, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut file = File::open(path)?.take(limit);
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) if !each(&buffer[..len]) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whole records that lie in a file behind the place where its WAL breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Behind {
    /// Where the first page begins that holds one.
    pub(super) from: Lsn,
    /// Where the last of them ends.
    pub(super) to: Lsn,
}

/// Looks for whole records of this very place in the WAL behind `at`, in the segment that begins at `start`. Old content of
/// a file that is used again tells other addresses, and does not count.
pub(super) fn behind(path: &Path, start: Lsn, at: Lsn, layout: WalLayout) -> Option<Behind> {
    let page_size = layout.page_size() as usize;
    let mut page = start;
    let mut bytes = Vec::with_capacity(page_size);
    let mut search = Search {
        layout,
        reading: None,
        found: None,
    };
    // A file that can't be read further tells no more.
    let _ = each_piece(path, layout.segment_size().bytes(), |mut piece| {
        while !piece.is_empty() {
            let (more, rest) = piece.split_at((page_size - bytes.len()).min(piece.len()));
            bytes.extend_from_slice(more);
            piece = rest;
            if bytes.len() == page_size {
                if page > at {
                    search.look(page, &bytes);
                }
                bytes.clear();
                page = page.plus(page_size as u64);
            }
        }
        true
    });
    search.found
}

/// A search for whole records, page by page.
struct Search {
    layout: WalLayout,
    /// The page that reading began with, and how it stands.
    reading: Option<(Lsn, WalDecoder)>,
    found: Option<Behind>,
}

impl Search {
    fn look(&mut self, page: Lsn, bytes: &[u8]) {
        if self.reading.is_none() && PageHeader::parse(bytes).is_ok_and(|header| header.address == page) {
            self.reading = Some((page, WalDecoder::new(page, self.layout)));
        }
        let Some((begin, mut decoder)) = self.reading.take() else {
            return;
        };
        if decoder.push(page, bytes).is_err() {
            return;
        }
        loop {
            match decoder.step() {
                Step::NeedMore => break,
                Step::EndOfWal { .. } => return,
                Step::Record(record) => {
                    let from = self.found.map_or(begin, |found| found.from);
                    let to = record.end();
                    self.found = Some(Behind { from, to });
                }
            }
        }
        self.reading = Some((begin, decoder));
    }
}
