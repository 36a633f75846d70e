//! The spool: a bounded queue of WAL on a local disk, for as long as the store does not take it.
//!
//! `DIR/SYSID/SLOT/` holds files of at most 16 MiB, numbered in the order of the queue, each a row of frames
//! (`frame.rs`), and one `TTTTTTTT.history` for each timeline that was entered meanwhile: the server that could tell
//! its history again may be gone when the store is back. A lock keeps two receivers out of one folder.
//!
//! What holds:
//! - What [`Spool::sync`] has answered survives a crash at any instant; what was appended after it survives whole
//!   frames long or not at all. A file is made durable before the next one is begun, so only the last can be torn.
//! - Each frame is verified whenever it is read. What fails is named and never handed out.
//! - The files together never exceed the limit.
//! - Memory does not grow with what is queued: positions are kept by file and by stretch, not by frame.
//!
//! Everything here blocks on the disk: call it from a thread that may.

mod error;
mod frame;
mod history;
mod read;
mod recover;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use error::SpoolError;
pub use read::Chunk;
pub use recover::{Damage, Recovered};

use crate::disk::{self, Lock};
use crate::pg::size::Size;
use crate::pg::{Lsn, SystemId, Timeline};
use crate::replication::SlotName;
use frame::{Frame, HEADER};
use read::Cursor;

/// What the spool may take unless told otherwise.
pub const DEFAULT_LIMIT: Size = Size::new(1 << 30);
/// A file that is released in part keeps its room, and the one behind it is written: less than two files would
/// stand still.
pub const LEAST_LIMIT: Size = Size::new(32 << 20);

/// How the queue is cut: tests cut it smaller.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// A file is closed before it exceeds this.
    file: u64,
    /// The most WAL in one frame, and in one [`Chunk`].
    frame: usize,
}

const SIZES: Sizes = Sizes {
    file: 16 << 20,
    frame: 1 << 20,
};

/// WAL of one timeline without a hole: `from` to `to`, the latter excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its first byte.
    pub from: Lsn,
    /// The byte behind its last.
    pub to: Lsn,
}

/// A place in the queue: the number of a stretch, and a position in it. Stretches of one timeline may lie on
/// both sides of a gap, and a later timeline begins below the end of an earlier one, so positions alone have no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    stretch: u64,
    lsn: Lsn,
}

/// The end of the queue, of what is durable in it, or of what was released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    timeline: Timeline,
    place: Place,
}

/// A file of the queue.
#[derive(Debug)]
struct SpoolFile {
    number: u64,
    /// The frames that can be read.
    bytes: u64,
    /// What it takes on the disk; more than `bytes` where the rest is damaged.
    length: u64,
    begin: Place,
    end: Place,
}

/// The file that is appended to: the last of the queue.
#[derive(Debug)]
struct Writer {
    file: File,
    /// Frames up to here are durable.
    synced: u64,
}

/// The queue, open and locked.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    system: SystemId,
    limit: u64,
    sizes: Sizes,
    _lock: Lock,
    files: VecDeque<SpoolFile>,
    writer: Option<Writer>,
    next_number: u64,
    /// In order; the first has the number `first_stretch`.
    stretches: VecDeque<Stretch>,
    first_stretch: u64,
    /// Where the queue ends, and up to where it is durable; `None` before anything was in it.
    end: Option<End>,
    durable: Option<End>,
    gap: bool,
    released: Option<Place>,
    cursor: Cursor,
    histories: VecDeque<(Timeline, u64)>,
    broken: bool,
    buffer: Vec<u8>,
}

impl Spool {
    /// Opens the spool of a cluster and slot below `spools`, makes it where it is missing, and answers what it holds.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. make the folder, durably: an empty spool;
    /// 2. lock it: the lock ends with the process;
    /// 3. read every file to the end of its last good frame: nothing was changed;
    /// 4. cut the torn end off the last file and make it durable: what a process that was killed had written may be
    ///    in memory only. The same is found and done again.
    ///
    /// # Errors
    /// A limit below [`LEAST_LIMIT`], a spool that is in use, and whatever the file system says. Damage is no error:
    /// [`Recovered::damaged`] names it, and the rest is there.
    pub fn open(
        spools: &Path,
        system: SystemId,
        slot: &SlotName,
        limit: Size,
    ) -> Result<(Self, Recovered), SpoolError> {
        if limit < LEAST_LIMIT {
            let least = LEAST_LIMIT;
            return Err(SpoolError::Limit { limit, least });
        }
        let folder = spools.join(system.to_string()).join(slot.as_str());
        Self::open_sized(folder, system, limit.bytes(), SIZES)
    }

    fn open_sized(
        folder: PathBuf,
        system: SystemId,
        limit: u64,
        sizes: Sizes,
    ) -> Result<(Self, Recovered), SpoolError> {
        disk::make_folder(&folder).map_err(io_error("make the folder", &folder))?;
        let lock = folder.join("lock");
        let Some(lock) = disk::try_lock(&lock).map_err(io_error("lock", &lock))? else {
            return Err(SpoolError::InUse { folder });
        };
        let mut spool = Self {
            folder,
            system,
            limit,
            sizes,
            _lock: lock,
            files: VecDeque::new(),
            writer: None,
            next_number: 1,
            stretches: VecDeque::new(),
            first_stretch: 0,
            end: None,
            durable: None,
            gap: false,
            released: None,
            cursor: Cursor::START,
            histories: VecDeque::new(),
            broken: false,
            buffer: Vec::new(),
        };
        let recovered = spool.recover()?;
        Ok((spool, recovered))
    }

    /// Puts WAL at the end of the queue. It is durable only after [`Spool::sync`]. On the timeline that the queue
    /// ends on, `from` must be that end, unless [`Spool::gap`] said otherwise; another timeline may begin anywhere.
    ///
    /// # Errors
    /// Full, or not contiguous: nothing was appended. Where the disk fails, what [`Spool::end`] then answers is in
    /// the queue.
    pub fn append(&mut self, timeline: Timeline, from: Lsn, content: &[Bytes]) -> Result<(), SpoolError> {
        let total: usize = content.iter().map(Bytes::len).sum();
        if total == 0 {
            return Ok(());
        }
        self.check_usable()?;
        self.check_follows(timeline, from)?;
        self.check_room((total + HEADER * total.div_ceil(self.sizes.frame)) as u64)?;
        let mut at = from;
        for part in cut(content, self.sizes.frame) {
            let len = part.iter().map(Bytes::len).sum();
            let frame = Frame {
                timeline,
                from: at,
                len,
            };
            self.put(&frame, &part)?;
            at = frame.to();
        }
        Ok(())
    }

    /// The WAL that comes next on the timeline of the queue's end may begin further on: what lies between can't be
    /// had. Without this word a jump is an error of the caller's.
    pub fn gap(&mut self) {
        self.gap = true;
    }

    /// Makes all that was appended durable, and answers where the queue ends.
    ///
    /// After a failure what was not durable before is taken back, because a disk that failed to write may count the
    /// bytes as written and answer the next sync with success: append again from [`Spool::end`], into a new file.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn sync(&mut self) -> Result<Option<(Timeline, Lsn)>, SpoolError> {
        self.check_usable()?;
        if let (Some(writer), Some(file)) = (&mut self.writer, self.files.back())
            && writer.synced < file.bytes
        {
            if let Err(source) = writer.file.sync_data() {
                let path = self.path(file.number);
                self.take_back();
                return Err(SpoolError::Sync { path, source });
            }
            writer.synced = file.bytes;
        }
        self.durable = self.end;
        Ok(self.end())
    }

    /// Where the queue ends, durable or not; `None` before anything was in it.
    pub fn end(&self) -> Option<(Timeline, Lsn)> {
        self.end.map(|end| (end.timeline, end.place.lsn))
    }

    /// What the queue holds and has not been released, in order.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch> {
        let released = self.released.unwrap_or(Place::ZERO);
        let rest = (self.first_stretch..).zip(&self.stretches);
        let rest = rest.map(move |(number, stretch)| Stretch {
            from: match number.cmp(&released.stretch) {
                Ordering::Less => stretch.to,
                Ordering::Equal => stretch.from.max(released.lsn),
                Ordering::Greater => stretch.from,
            },
            ..*stretch
        });
        rest.filter(|stretch| stretch.from < stretch.to)
    }

    /// What the files take on the disk.
    pub fn len_bytes(&self) -> u64 {
        let histories: u64 = self.histories.iter().map(|(_, length)| length).sum();
        histories + self.files.iter().map(|file| file.length).sum::<u64>()
    }

    /// Whether the limit leaves no room for a whole frame: time to stop reading from the server. As long as it is
    /// `false`, up to 1 MiB of WAL can be appended.
    pub fn is_full(&self) -> bool {
        self.len_bytes() + (HEADER + self.sizes.frame) as u64 > self.limit
    }

    /// What it may take.
    pub fn limit(&self) -> Size {
        Size::new(self.limit)
    }

    fn check_usable(&self) -> Result<(), SpoolError> {
        let folder = || self.folder.clone();
        (!self.broken)
            .then_some(())
            .ok_or_else(|| SpoolError::Broken { folder: folder() })
    }

    fn check_room(&self, bytes: u64) -> Result<(), SpoolError> {
        let held = self.len_bytes();
        let full = || SpoolError::Full {
            held: Size::new(held),
            limit: self.limit(),
        };
        (held + bytes <= self.limit).then_some(()).ok_or_else(full)
    }

    fn check_follows(&self, timeline: Timeline, from: Lsn) -> Result<(), SpoolError> {
        match self.end() {
            Some((last, end)) if last == timeline && from != end && !(self.gap && from > end) => {
                Err(SpoolError::NotContiguous {
                    timeline,
                    expected: end,
                    found: from,
                })
            }
            _ => Ok(()),
        }
    }

    /// Appends one frame. A crash in the middle of the write leaves a torn frame at the end of the last file, which
    /// [`Spool::open`] cuts off; an error is taken back here.
    fn put(&mut self, frame: &Frame, content: &[Bytes]) -> Result<(), SpoolError> {
        let fits = |file: &SpoolFile| file.bytes + frame.size() as u64 <= self.sizes.file;
        if self.writer.is_none() || !self.files.back().is_some_and(fits) {
            self.begin_file()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        frame.write(self.system, content, &mut buffer);
        let written = self.write(&buffer);
        self.buffer = buffer;
        written?;
        let end = self.extend(frame);
        if let Some(file) = self.files.back_mut() {
            if file.bytes == 0 {
                file.begin = Place { lsn: frame.from, ..end };
            }
            file.bytes += frame.size() as u64;
            file.length = file.bytes;
            file.end = end;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let (Some(writer), Some(file)) = (&self.writer, self.files.back()) else {
            let folder = self.folder.clone();
            return Err(SpoolError::Broken { folder });
        };
        let Err(source) = writer.file.write_all_at(bytes, file.bytes) else {
            return Ok(());
        };
        let path = self.path(file.number);
        self.broken = writer.file.set_len(file.bytes).is_err();
        Err(io_error("write to", &path)(source))
    }

    /// Takes a frame into the stretches, and answers where it ends.
    fn extend(&mut self, frame: &Frame) -> Place {
        match self.stretches.back_mut() {
            Some(last) if last.timeline == frame.timeline && last.to == frame.from => last.to = frame.to(),
            _ => self.stretches.push_back(Stretch {
                timeline: frame.timeline,
                from: frame.from,
                to: frame.to(),
            }),
        }
        let place = Place {
            stretch: self.first_stretch + self.stretches.len() as u64 - 1,
            lsn: frame.to(),
        };
        self.gap = false;
        self.end = Some(End {
            timeline: frame.timeline,
            place,
        });
        place
    }

    /// Begins the next file.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. make the file before it durable: only the last file can ever be torn;
    /// 2. create the file: it is empty, or not there at all; [`Spool::open`] removes it;
    /// 3. fsync the folder: from now on a sync of the file alone is enough.
    fn begin_file(&mut self) -> Result<(), SpoolError> {
        self.sync()?;
        self.writer = None;
        let number = self.next_number;
        let path = self.path(number);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(io_error("create", &path))?;
        self.next_number += 1;
        if let Err(source) = disk::sync_folder(&self.folder) {
            // Best effort: an empty file is removed when the spool is opened.
            let _ = fs::remove_file(&path);
            return Err(SpoolError::Sync { path, source });
        }
        let place = self.end.map_or(Place::ZERO, |end| end.place);
        self.files.push_back(SpoolFile {
            number,
            bytes: 0,
            length: 0,
            begin: place,
            end: place,
        });
        self.writer = Some(Writer { file, synced: 0 });
        Ok(())
    }

    /// Cuts off what is not durable, after a sync that failed. The next frame begins a new file.
    fn take_back(&mut self) {
        let (Some(writer), Some(file)) = (self.writer.take(), self.files.back_mut()) else {
            return;
        };
        self.broken = writer.file.set_len(writer.synced).is_err();
        (file.bytes, file.length) = (writer.synced, writer.synced);
        let durable = self.durable.map_or(Place::ZERO, |end| end.place);
        file.end = file.end.min(durable);
        self.cursor.limit(file.number, file.bytes, durable);
        let kept = (durable.stretch + 1).saturating_sub(self.first_stretch) as usize;
        self.stretches.truncate(if self.durable.is_some() { kept } else { 0 });
        if let Some(last) = self.stretches.back_mut() {
            last.to = last.to.min(durable.lsn);
        }
        self.end = self.durable;
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016x}.wal"))
    }
}

impl Place {
    const ZERO: Self = Self {
        stretch: 0,
        lsn: Lsn::ZERO,
    };
}

/// The same bytes in parts of at most `most`.
fn cut(content: &[Bytes], most: usize) -> Vec<Vec<Bytes>> {
    let mut parts = vec![Vec::new()];
    let mut room = most;
    for slice in content {
        let mut slice = slice.clone();
        while !slice.is_empty() {
            if room == 0 {
                parts.push(Vec::new());
                room = most;
            }
            let part = slice.split_to(slice.len().min(room));
            room -= part.len();
            if let Some(last) = parts.last_mut() {
                last.push(part);
            }
        }
    }
    parts
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError + use<> {
    let path = path.to_path_buf();
    move |source| SpoolError::Io { what, path, source }
}
