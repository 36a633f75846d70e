//! What an earlier process left: whole frames are taken in, a torn end is cut off, damage is named.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::frame::{Frame, HEADER};
use super::{Place, Spool, SpoolError, SpoolFile, Stretch, io_error};
use crate::disk;
use crate::pg::Timeline;

/// What a spool held when it was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The WAL, in the order in which it was received. A gap that was there, or that damage has made, lies between
    /// two stretches of one timeline.
    pub stretches: Vec<Stretch>,
    /// The histories, oldest timeline first.
    pub histories: Vec<Timeline>,
    /// How many bytes were cut off the last file: what was never synced, or only in part.
    pub torn_bytes: u64,
    /// Files that can't be read from some place on. They were synced once, so WAL is lost.
    pub damaged: Vec<Damage>,
}

/// A place from which on a file of the spool is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Bytes before it are sound.
    pub offset: u64,
}

/// What the folder holds, in order.
#[derive(Default)]
struct Names {
    files: Vec<u64>,
    histories: Vec<Timeline>,
    leftovers: Vec<PathBuf>,
}

impl Spool {
    /// See [`Spool::open`].
    pub(super) fn recover(&mut self) -> Result<Recovered, SpoolError> {
        let names = self.names()?;
        for path in &names.leftovers {
            // Best effort: files in the making that were never given their name. They cost room only.
            let _ = fs::remove_file(path);
        }
        let mut recovered = Recovered::default();
        for number in &names.files {
            let is_last = names.files.last() == Some(number);
            self.recover_file(*number, is_last, &mut recovered)?;
            self.next_number = number.saturating_add(1);
        }
        for timeline in names.histories {
            let path = self.folder.join(format!("{}.history", timeline.hex()));
            let length = fs::metadata(&path).map_err(io_error("read", &path))?.len();
            match self.recover_history(timeline, length) {
                Some(damage) => recovered.damaged.push(damage),
                None => recovered.histories.push(timeline),
            }
        }
        disk::sync_folder(&self.folder).map_err(io_error("sync", &self.folder))?;
        self.durable = self.end;
        recovered.stretches = self.stretches().collect();
        Ok(recovered)
    }

    fn names(&self) -> Result<Names, SpoolError> {
        let read_error = |source| io_error("read", &self.folder)(source);
        let mut names = Names::default();
        for entry in fs::read_dir(&self.folder).map_err(read_error)? {
            let name = entry.map_err(read_error)?.file_name();
            if disk::is_staged(&name) {
                names.leftovers.push(self.folder.join(&name));
                continue;
            }
            let name = name.to_string_lossy();
            if let Some(digits) = name.strip_suffix(".wal").filter(|digits| digits.len() == 16) {
                names.files.extend(u64::from_str_radix(digits, 16));
            } else if let Some(timeline) = name.strip_suffix(".history").and_then(Timeline::from_hex) {
                names.histories.push(timeline);
            }
        }
        names.files.sort_unstable();
        names.histories.sort_unstable();
        Ok(names)
    }

    /// Takes in the frames of a file up to the first that is none.
    fn recover_file(&mut self, number: u64, is_last: bool, recovered: &mut Recovered) -> Result<(), SpoolError> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(io_error("open", &path))?;
        let length = file.metadata().map_err(io_error("read", &path))?.len();
        let before = self.end.map_or(Place::ZERO, |end| end.place);
        let (mut begin, mut end, mut bytes) = (None, before, 0);
        let mut scan = Scan::of(&file, length);
        while let Some(frame) = scan.next(self).map_err(io_error("read", &path))? {
            end = self.extend(&frame);
            begin.get_or_insert(Place { lsn: frame.from, ..end });
            bytes += frame.size() as u64;
        }
        let mut kept = length;
        if bytes < length {
            let offset = bytes;
            match is_last {
                true => {
                    recovered.torn_bytes = length - bytes;
                    file.set_len(bytes).map_err(io_error("cut", &path))?;
                    kept = bytes;
                }
                false => recovered.damaged.push(Damage {
                    path: path.clone(),
                    offset,
                }),
            }
        }
        if kept == 0 {
            return fs::remove_file(&path).map_err(io_error("remove", &path));
        }
        if is_last {
            file.sync_data().map_err(io_error("sync", &path))?;
        }
        self.files.push_back(SpoolFile {
            number,
            bytes,
            length: kept,
            begin: begin.unwrap_or(before),
            end,
        });
        Ok(())
    }
}

/// The frames of a file, read in large pieces.
struct Scan<'a> {
    file: &'a File,
    length: u64,
    /// What is read next, in the file and in the buffer.
    offset: u64,
    used: usize,
    buffer: Vec<u8>,
}

impl<'a> Scan<'a> {
    fn of(file: &'a File, length: u64) -> Self {
        Self {
            file,
            length,
            offset: 0,
            used: 0,
            buffer: Vec::new(),
        }
    }

    /// The next frame; `None` at the end, or where none begins.
    fn next(&mut self, spool: &Spool) -> io::Result<Option<Frame>> {
        let mut frame = self.buffered(spool);
        if frame.is_none() {
            let rest = (self.length - self.offset).min((HEADER + spool.sizes.frame) as u64);
            self.used = 0;
            self.buffer.resize(rest as usize, 0);
            self.file.read_exact_at(&mut self.buffer, self.offset)?;
            frame = self.buffered(spool);
        }
        if let Some(frame) = &frame {
            self.used += frame.size();
            self.offset += frame.size() as u64;
        }
        Ok(frame)
    }

    fn buffered(&self, spool: &Spool) -> Option<Frame> {
        let (frame, _) = Frame::read(spool.system, spool.sizes.frame, &self.buffer[self.used..])?;
        Some(frame)
    }
}
