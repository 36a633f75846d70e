//! Finds records in WAL bytes. Performs no I/O and keeps no clock. The same bytes give the same steps whatever the
//! pieces were; archiver, receiver, planner and `verify` share this one reading.
//!
//! The rules are the server's own (`XLogReadRecord`). A record is handed out only when its length, its resource
//! manager, the link to the record before it, each page it lies on and its checksum are right. What a crash left
//! unfinished and the server has marked as overwritten is passed over, as the server does.

mod border;
mod raw;
#[cfg(test)]
mod tests;

use crc_fast::{CrcAlgorithm, Digest};

use super::page::{PageFault, PageRules, WalLayout};
use crate::pg::{Lsn, Timeline};

pub use border::{Begun, Rest};
pub use raw::RawRecord;
pub(in crate::wal) use raw::RecordHeader;

/// What there is to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Push more bytes, then call again.
    NeedMore,
    /// Whole, checksum verified. Its meaning is [`super::Record`]'s business.
    Record(RawRecord<'a>),
    /// No valid record starts here. Normal in the newest segment, damage in an older one: only the caller knows
    /// which, so this is a step and not an error. Every later step is the same.
    EndOfWal {
        /// Where the next record would have begun.
        at: Lsn,
        /// What is there instead.
        why: EndReason,
    },
}

/// Why no valid record starts at some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndReason {
    /// Zeros: nothing was written here yet.
    #[error("nothing is written there")]
    Unwritten,
    /// A page that does not belong there; one that was never written looks like this too.
    #[error("the page at {at} {fault}")]
    Page {
        /// Where the page begins.
        at: Lsn,
        /// What is wrong with it.
        fault: PageFault,
    },
    /// A length that no record has, in bytes.
    #[error("a record of {0} bytes can't be")]
    Length(u32),
    /// A resource manager that this major does not have.
    #[error("there is no resource manager {0}")]
    Manager(u8),
    /// The record does not follow the one before it: an old record in a recycled page, for example.
    #[error("the record there follows one at {0}, not the one before it")]
    Previous(Lsn),
    /// The checksum fails.
    #[error("the record's checksum is wrong")]
    Checksum,
    /// The page says that it does not go on with the record that the page before began.
    #[error("the page at {0} does not continue the record")]
    NotContinued(Lsn),
    /// The page goes on with a record, but not with as many bytes of it as were left.
    #[error("the page at {at} continues a record of which {found} bytes are left, not {left}")]
    Continuation {
        /// Where the page begins.
        at: Lsn,
        /// How many bytes were left.
        left: u32,
        /// How many the page says are left.
        found: u32,
    },
    /// The page goes on with a record although the one before it was at its end.
    #[error("the page at {0} continues a record that was not begun")]
    Unexpected(Lsn),
}

/// Bytes that do not follow those pushed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("WAL bytes of {found} do not follow those before, which end at {expected}")]
pub struct NotContiguous {
    /// What should have come.
    pub expected: Lsn,
    /// What came.
    pub found: Lsn,
}

/// Finds records in bytes that are pushed piece by piece.
///
/// Pieces of 64 to 256 KiB stay in the processor's cache and are the fastest. Memory: what was pushed and not yet
/// stepped through, and of a record that crosses pages at most [`Self::KEPT`] bytes.
#[derive(Debug, Clone)]
pub struct WalDecoder {
    layout: WalLayout,
    rules: PageRules,
    /// Bytes pushed; those before `taken` are done with.
    buffer: Vec<u8>,
    taken: usize,
    /// Where `buffer[taken]` lies in the WAL.
    at: Lsn,
    /// What lies before this is passed over unseen: alignment, and the padding behind a switch.
    resume: Lsn,
    state: State,
    /// Where the last record began.
    previous: Option<Lsn>,
    /// Kept for its tables; `reset` before each use.
    crc: Digest,
    /// The parts of a record that crosses pages, or the first of them.
    parts: Vec<u8>,
    kept: usize,
    /// What the first page goes on with.
    rest: Option<Rest>,
    /// Whether the first page says that the record before it was never finished.
    overwrites: bool,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing has been read: a first page may go on with a record that began before.
    Fresh,
    /// The beginning of a record.
    Between,
    /// The rest of a record whose beginning was never pushed.
    ForeignTail { left: u32 },
    /// The rest of a record that crosses pages.
    Within(Partial),
    /// Nothing: no valid record starts at this place.
    Ended { at: Lsn, why: EndReason },
}

/// A record of which `got` bytes have been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Partial {
    start: Lsn,
    total: u32,
    got: u32,
}

/// What one look at the bytes came to.
enum Look {
    /// Something was taken; look again.
    Onward,
    /// Too few bytes to go on.
    Starved,
    /// A whole record, on one page: the next `length` bytes of the buffer.
    OnPage { length: usize, header: RecordHeader },
    /// A whole record, in `parts`.
    Assembled { start: Lsn, header: RecordHeader },
}

type Looked = Result<Look, (Lsn, EndReason)>;

impl WalDecoder {
    /// The longest record there can be, in bytes: the server reads each into one allocation (`MaxAllocSize`).
    pub const LONGEST: u32 = 0x3FFF_FFFF;

    /// How many bytes of a record are kept. Only logical messages are longer than a few MiB, and nothing here wants
    /// all of those; without this bound one record could take a gigabyte of memory.
    pub const KEPT: usize = 64 << 20;

    /// Begins at `start`: where a segment or page begins, or where a record does.
    pub fn new(start: Lsn, layout: WalLayout) -> Self {
        Self {
            layout,
            rules: PageRules::new(layout),
            buffer: Vec::new(),
            taken: 0,
            at: start,
            resume: start,
            state: State::Fresh,
            previous: None,
            crc: Digest::new(CrcAlgorithm::Crc32Iscsi),
            parts: Vec::new(),
            kept: Self::KEPT,
            rest: None,
            overwrites: false,
        }
    }

    /// From now on a page of a later timeline than `newest` is not valid. A segment holds no page of a later timeline
    /// than the one in its name.
    pub fn allow_timelines_up_to(&mut self, newest: Timeline) {
        self.rules.allow_up_to(newest);
    }

    /// The timeline of the page that was reached; `None` before the first.
    pub fn timeline(&self) -> Option<Timeline> {
        self.rules.timeline()
    }

    /// Where the next bytes pushed must begin.
    pub fn wanted(&self) -> Lsn {
        self.at.plus((self.buffer.len() - self.taken) as u64)
    }

    /// Adds the bytes that lie at `at`. Refuses a gap or an overlap: a hole in WAL must never be decoded across.
    pub fn push(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), NotContiguous> {
        let expected = self.wanted();
        if at != expected {
            return Err(NotContiguous { expected, found: at });
        }
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if let State::Ended { .. } = self.state {
            self.buffer.clear();
            self.at = at.plus(bytes.len() as u64);
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// The next record, as far as the bytes pushed so far tell.
    pub fn step(&mut self) -> Step<'_> {
        let (start, header, on_page) = loop {
            match self.look() {
                Ok(Look::Onward) => {}
                Ok(Look::Starved) => return Step::NeedMore,
                Ok(Look::OnPage { length, header }) => break (self.at, header, Some(length)),
                Ok(Look::Assembled { start, header }) => break (start, header, None),
                Err((at, why)) => {
                    self.state = State::Ended { at, why };
                    return Step::EndOfWal { at, why };
                }
            }
        };
        let from = self.taken;
        self.take(on_page.unwrap_or(0));
        self.state = State::Between;
        self.previous = Some(start);
        self.resume = self.end_of(&header);
        Step::Record(RawRecord {
            start,
            end: self.resume,
            header,
            version: self.layout.version(),
            bytes: match on_page {
                Some(_) => &self.buffer[from..self.taken],
                None => &self.parts,
            },
        })
    }

    /// The rest of a record whose beginning was never pushed; `None` where the first page begins with a record's
    /// beginning.
    pub const fn rest(&self) -> Option<&Rest> {
        self.rest.as_ref()
    }

    /// Whether the first page says that the record before it was never finished: a server began anew there.
    pub const fn overwrites(&self) -> bool {
        self.overwrites
    }

    /// The record that has begun and needs more bytes than were pushed.
    pub fn begun(&self) -> Option<Begun> {
        match self.state {
            State::Within(partial) => Some(Begun {
                start: partial.start,
                total: partial.total,
                got: partial.got,
                bytes: self.parts[..self.parts.len().min(Rest::KEPT)].to_vec(),
                crc: self.crc.finalize() as u32,
            }),
            _ => None,
        }
    }

    fn look(&mut self) -> Looked {
        let skipped = self.resume.since(self.at).min(self.unread().len() as u64);
        self.take(skipped as usize);
        if let State::Ended { at, why } = self.state {
            return Err((at, why));
        }
        if self.at < self.resume {
            return Ok(Look::Starved);
        }
        if self.layout.is_page_start(self.at) {
            return self.begin_page();
        }
        match self.state {
            State::ForeignTail { left } => Ok(self.pass_tail(left)),
            State::Within(partial) => self.go_on(partial),
            _ => self.begin_record(),
        }
    }

    fn begin_page(&mut self) -> Looked {
        let page = self.at;
        let length = self.layout.header_bytes(page);
        let Some(header) = self.buffer[self.taken..].get(..length) else {
            return Ok(Look::Starved);
        };
        // A record that does not go on as it should is at fault from its own start.
        let broken = match self.state {
            State::Within(partial) => partial.start,
            _ => page,
        };
        let header = self
            .rules
            .admit(page, header)
            .map_err(|fault| (broken, EndReason::Page { at: page, fault }))?;
        self.take(length);
        if self.state == State::Fresh {
            self.overwrites = header.overwrites_record();
        }
        let left = match self.state {
            State::Fresh if header.continues_record() => header.remaining,
            State::Between if header.continues_record() => return Err((page, EndReason::Unexpected(page))),
            State::Fresh | State::Between | State::Ended { .. } => 0,
            State::ForeignTail { left } => left,
            State::Within(Partial { total, got, .. }) => total - got,
        };
        if left == 0 || header.overwrites_record() {
            // What the pages before began was never finished; the server has begun anew here.
            self.state = State::Between;
        } else if !header.continues_record() {
            return Err((broken, EndReason::NotContinued(page)));
        } else if header.remaining != left {
            let found = header.remaining;
            return Err((broken, EndReason::Continuation { at: page, left, found }));
        } else if self.state == State::Fresh {
            self.rest = Some(Rest::of(left));
            self.crc.reset();
            self.state = State::ForeignTail { left };
        }
        Ok(Look::Onward)
    }

    /// Passes over the rest of a record whose beginning is not here.
    fn pass_tail(&mut self, left: u32) -> Look {
        let length = self.available(left);
        if length == 0 {
            return Look::Starved;
        }
        self.crc.update(&self.buffer[self.taken..self.taken + length]);
        if let Some(rest) = &mut self.rest {
            let end = aligned(self.at.plus(length as u64));
            rest.pass(
                &self.buffer[self.taken..self.taken + length],
                self.crc.finalize() as u32,
                end,
            );
        }
        self.take(length);
        let left = left - length as u32;
        if left == 0 {
            self.state = State::Between;
            self.resume = aligned(self.at);
        } else {
            self.state = State::ForeignTail { left };
        }
        Look::Onward
    }

    fn begin_record(&mut self) -> Looked {
        let start = self.at;
        let unread = self.unread();
        let Some(total) = unread.first_chunk().copied().map(u32::from_le_bytes) else {
            return Ok(Look::Starved);
        };
        match total {
            0 => return Err((start, EndReason::Unwritten)),
            length if (length as usize) < RecordHeader::BYTES || length > Self::LONGEST => {
                return Err((start, EndReason::Length(length)));
            }
            _ => {}
        }
        let length = total as usize;
        if length > self.layout.rest_of_page(start) {
            self.crc.reset();
            self.parts.clear();
            self.state = State::Within(Partial { start, total, got: 0 });
            return Ok(Look::Onward);
        }
        let Some(header) = RecordHeader::parse(unread) else {
            return Ok(Look::Starved);
        };
        self.check(start, &header)?;
        let Some(bytes) = self.buffer[self.taken..].get(..length) else {
            return Ok(Look::Starved);
        };
        let (head, body) = bytes.split_at(RecordHeader::BYTES);
        self.crc.reset();
        self.crc.update(body);
        self.crc.update(&head[..RecordHeader::CHECKED]);
        if self.crc.finalize() != u64::from(header.crc) {
            return Err((start, EndReason::Checksum));
        }
        Ok(Look::OnPage { length, header })
    }

    /// Takes what this page has of a record that crosses pages.
    fn go_on(&mut self, partial: Partial) -> Looked {
        let Partial { start, total, got } = partial;
        let length = self.available(total - got);
        if length == 0 {
            return Ok(Look::Starved);
        }
        let part = &self.buffer[self.taken..self.taken + length];
        let head = RecordHeader::BYTES.saturating_sub(got as usize).min(length);
        self.crc.update(&part[head..]);
        let room = self.kept.saturating_sub(self.parts.len());
        self.parts.extend_from_slice(&part[..length.min(room)]);
        self.take(length);
        let got = got + length as u32;
        self.state = State::Within(Partial { start, total, got });
        let Some(header) = RecordHeader::parse(&self.parts) else {
            return Ok(Look::Onward);
        };
        if head > 0 {
            self.check(start, &header)?;
        }
        if got < total {
            return Ok(Look::Onward);
        }
        self.crc.update(&self.parts[..RecordHeader::CHECKED]);
        if self.crc.finalize() != u64::from(header.crc) {
            return Err((start, EndReason::Checksum));
        }
        Ok(Look::Assembled { start, header })
    }

    /// What can be told of a record from its header alone. Its length has been looked at before.
    fn check(&self, start: Lsn, header: &RecordHeader) -> Result<(), (Lsn, EndReason)> {
        if !header.manager.exists_in(self.layout.version()) {
            return Err((start, EndReason::Manager(header.manager.id())));
        }
        let follows = match self.previous {
            Some(previous) => header.previous == previous,
            None => header.previous < start,
        };
        if !follows {
            return Err((start, EndReason::Previous(header.previous)));
        }
        Ok(())
    }

    /// Where reading goes on after a record whose last byte has just been taken.
    fn end_of(&self, header: &RecordHeader) -> Lsn {
        let end = aligned(self.at);
        if header.is_switch() {
            let segment = self.layout.segment_size().bytes();
            return end.bytes().checked_next_multiple_of(segment).map_or(end, Lsn::new);
        }
        end
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    /// How many of the next `wanted` bytes lie on this page and have been pushed.
    fn available(&self, wanted: u32) -> usize {
        let here = self.layout.rest_of_page(self.at).min(self.unread().len());
        here.min(wanted as usize)
    }

    fn take(&mut self, length: usize) {
        self.taken += length;
        self.at = self.at.plus(length as u64);
    }
}

/// Records begin at multiples of eight (`MAXALIGN`).
fn aligned(at: Lsn) -> Lsn {
    Lsn::new(at.bytes().saturating_add(7) & !7)
}
