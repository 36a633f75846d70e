//! The front of the queue: reading, and letting go of what is in the repository.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::frame::{Frame, HEADER};
use super::{End, Place, Spool, SpoolError, SpoolFile, io_error};
use crate::disk;
use crate::pg::{Lsn, Timeline};

/// A file that is still appended to is kept until it has a quarter of its size, though all of it is released: a
/// receiver that passes everything through the spool would else make and remove a file for each piece.
const WORTH_REMOVING: u64 = 4;

/// WAL from the front of the queue, verified; never more than 1 MiB, never across the end of a stretch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its first byte.
    pub from: Lsn,
    /// The WAL.
    pub content: Bytes,
}

impl Chunk {
    /// The byte behind its last.
    pub fn to(&self) -> Lsn {
        self.from.plus(self.content.len() as u64)
    }
}

/// What is read next.
#[derive(Debug)]
pub(super) struct Cursor {
    number: u64,
    offset: u64,
    at: Place,
    file: Option<File>,
}

impl Cursor {
    pub(super) const START: Self = Self::at_file(0, Place::ZERO);

    const fn at_file(number: u64, at: Place) -> Self {
        Self {
            number,
            offset: 0,
            at,
            file: None,
        }
    }

    /// Goes back where the end of a file was cut off.
    pub(super) fn limit(&mut self, number: u64, bytes: u64, end: Place) {
        if self.number == number && self.offset > bytes {
            self.offset = bytes;
            self.at = end;
        }
    }
}

impl Spool {
    /// The next chunk, verified; `None` where all has been read. What is read stays in the queue until it is
    /// released: [`Spool::rewind`] reads it again.
    ///
    /// # Errors
    /// Damage, naming file, offset and position: the same again at each call, until [`Spool::pass_over_damage`].
    /// Whatever the file system says.
    pub fn read(&mut self) -> Result<Option<Chunk>, SpoolError> {
        while let Some(file) = self.files.iter().find(|file| file.number >= self.cursor.number) {
            if file.number > self.cursor.number {
                self.cursor = Cursor::at_file(file.number, file.begin);
            }
            let (rest, number) = (file.bytes.saturating_sub(self.cursor.offset), file.number);
            if rest == 0 {
                if self.files.back().is_some_and(|last| last.number == number) {
                    return Ok(None);
                }
                self.cursor.number += 1;
                self.cursor.offset = 0;
                self.cursor.file = None;
                continue;
            }
            let chunk = self.read_frames(rest)?;
            if chunk.is_some() {
                return Ok(chunk);
            }
        }
        Ok(None)
    }

    /// Reads from the front of the queue again: from the first byte that was not released.
    pub fn rewind(&mut self) {
        self.cursor = Cursor::START;
    }

    /// Gives up the rest of the file that [`Spool::read`] has found damaged: the next chunk begins behind it.
    pub fn pass_over_damage(&mut self) {
        if let Some(file) = self.files.iter().find(|file| file.number == self.cursor.number) {
            self.cursor.offset = file.bytes;
        }
    }

    /// Lets go of what lies in the queue before this position of this timeline: it is in the repository. Files that
    /// hold nothing else are removed, the oldest first.
    ///
    /// Each file is unlinked and the folder fsynced before the next. A crash leaves some files that could have gone:
    /// they are answered by [`Spool::open`], read and released again. Never a hole between files.
    ///
    /// # Errors
    /// Whatever the file system says; what could not be removed is tried again at the next release.
    pub fn release(&mut self, timeline: Timeline, up_to: Lsn) -> Result<(), SpoolError> {
        let before = |(_, stretch): &(u64, &super::Stretch)| stretch.timeline == timeline && stretch.from < up_to;
        let Some((number, stretch)) = (self.first_stretch..).zip(&self.stretches).filter(before).last() else {
            return Ok(());
        };
        let place = Place {
            stretch: number,
            lsn: up_to.min(stretch.to),
        };
        let place = self.released.map_or(place, |released| released.max(place));
        self.released = Some(place);
        // The repository has it, so a failing sync need not take it back.
        if self.durable.is_none_or(|durable| durable.place < place) {
            self.durable = Some(End { timeline, place });
        }
        while let Some(file) = self.files.front().filter(|file| self.is_done(file, place)) {
            let path = self.path(file.number);
            match disk::remove(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path)(error));
                }
                _ => {}
            }
            self.files.pop_front();
            if self.files.is_empty() {
                self.writer = None;
            }
        }
        let needed = self
            .files
            .front()
            .map_or(self.first_stretch + self.stretches.len() as u64, |file| {
                file.begin.stretch
            });
        while self.first_stretch < needed && self.stretches.pop_front().is_some() {
            self.first_stretch += 1;
        }
        Ok(())
    }

    fn is_done(&self, file: &SpoolFile, released: Place) -> bool {
        let is_last = self.files.len() == 1 && self.writer.is_some();
        file.end <= released && !(is_last && file.bytes < self.sizes.file / WORTH_REMOVING)
    }

    /// Reads frames that follow each other as one chunk. `None` where all that was read has been released.
    fn read_frames(&mut self, rest: u64) -> Result<Option<Chunk>, SpoolError> {
        let path = self.path(self.cursor.number);
        let mut buffer = vec![0; rest.min((HEADER + self.sizes.frame) as u64) as usize];
        let file = match self.cursor.file.take() {
            Some(file) => Ok(file),
            None => File::open(&path),
        };
        let read = file.and_then(|file| file.read_exact_at(&mut buffer, self.cursor.offset).map(|()| file));
        match read {
            Ok(file) => self.cursor.file = Some(file),
            // Shorter than it was: somebody has cut it.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(self.damaged()),
            Err(error) => return Err(io_error("read", &path)(error)),
        }
        let mut found: Option<(Timeline, Lsn, Vec<u8>)> = None;
        let mut used = 0;
        while let Some((frame, wal)) = Frame::read(self.system, self.sizes.frame, &buffer[used..]) {
            let place = self.place_of(&frame);
            let wal = &wal[self.released_of(&frame, place).min(wal.len())..];
            match &mut found {
                Some((_, _, content))
                    if place.stretch != self.cursor.at.stretch || content.len() + wal.len() > self.sizes.frame =>
                {
                    break;
                }
                Some((_, _, content)) => content.extend_from_slice(wal),
                None if wal.is_empty() => {}
                None => {
                    let from = Lsn::new(frame.to().bytes() - wal.len() as u64);
                    found = Some((frame.timeline, from, wal.to_vec()));
                }
            }
            used += frame.size();
            self.cursor.offset += frame.size() as u64;
            self.cursor.at = place;
        }
        if used == 0 {
            // The buffer holds a whole frame, if there is one.
            return Err(self.damaged());
        }
        Ok(found.map(|(timeline, from, content)| Chunk {
            timeline,
            from,
            content: content.into(),
        }))
    }

    /// The end of a frame that comes next at the cursor.
    fn place_of(&self, frame: &Frame) -> Place {
        let at = self.cursor.at;
        let follows = self.timeline_of(at) == Some(frame.timeline) && at.lsn == frame.from;
        Place {
            stretch: at.stretch + u64::from(!follows),
            lsn: frame.to(),
        }
    }

    /// How many bytes at the front of a frame that ends at `place` have been released.
    fn released_of(&self, frame: &Frame, place: Place) -> usize {
        match self.released {
            Some(released) if place <= released => frame.len,
            Some(released) if place.stretch == released.stretch => released.lsn.since(frame.from) as usize,
            _ => 0,
        }
    }

    fn timeline_of(&self, place: Place) -> Option<Timeline> {
        let index = place.stretch.checked_sub(self.first_stretch)?;
        self.stretches.get(index as usize).map(|stretch| stretch.timeline)
    }

    fn damaged(&self) -> SpoolError {
        SpoolError::Damaged {
            path: self.path(self.cursor.number),
            offset: self.cursor.offset,
            timeline: self.timeline_of(self.cursor.at).unwrap_or(Timeline::FIRST),
            lsn: self.cursor.at.lsn,
        }
    }
}
