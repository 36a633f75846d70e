//! Reads the tar that PostgreSQL's server writes. Sans-io: push bytes in, take events out.
//!
//! PostgreSQL writes plain `ustar` headers for files, directories and symbolic links, sizes of 8 GiB and
//! more in base 256, and nothing else: no pax records, no GNU long names, no hard links. Anything else is refused by
//! name, never skipped. Servers before 15 leave out the two zero blocks at the end, so the end comes
//! from outside, by [`TarReader::finish`].

use bytes::{Buf, Bytes};

/// A tar is made of blocks of this many bytes.
const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file; its contents follow as [`TarEvent::Data`].
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this path.
    Symlink(Bytes),
}

/// One member of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// The path as the server wrote it, in bytes, without `./` before it or a slash at its end.
    pub path: Bytes,
    /// What it is.
    pub kind: EntryKind,
    /// How many bytes of contents follow; zero for what is not a file.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Time of the last change, in seconds since 1970.
    pub mtime: u64,
    /// The owner's number on the server.
    pub uid: u32,
    /// The group's number on the server.
    pub gid: u32,
}

/// What the bytes pushed so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarEvent {
    /// An entry begins.
    Entry(TarEntry),
    /// A piece of the entry's contents: a slice of what was pushed, never empty.
    Data(Bytes),
    /// All of the entry's contents were given.
    EntryEnd,
}

/// Bytes that are not a tar of PostgreSQL's kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header whose checksum does not match its bytes.
    #[error("tar header at byte {at} does not match its checksum")]
    Checksum {
        /// Where in the archive.
        at: u64,
    },
    /// A header that is not `ustar`.
    #[error("tar header at byte {at} is not in the ustar format")]
    Format {
        /// Where in the archive.
        at: u64,
    },
    /// A field that holds no number, or one too large.
    #[error("tar header at byte {at} has no valid {field}")]
    Field {
        /// Where in the archive.
        at: u64,
        /// Which field.
        field: &'static str,
    },
    /// An entry of a kind that PostgreSQL does not write.
    #[error("tar entry at byte {at} is of type '{}', which PostgreSQL does not write", .kind.escape_ascii())]
    Kind {
        /// Where in the archive.
        at: u64,
        /// The type byte: `x` and `g` are pax records, `L` and `K` GNU long names, `1` a hard link.
        kind: u8,
    },
    /// Bytes behind the zero blocks that end the archive.
    #[error("tar goes on at byte {at}, behind its end")]
    BehindEnd {
        /// Where in the archive.
        at: u64,
    },
    /// The archive stopped in the middle of a header or of an entry.
    #[error("tar breaks off at byte {at}")]
    BreaksOff {
        /// Where in the archive.
        at: u64,
    },
}

#[derive(Debug)]
enum State {
    /// A header is being gathered.
    Header,
    /// This much of an entry's contents is still to come.
    Contents(u64),
    /// This much padding up to the next block is still to come.
    Padding(u64),
    /// A zero block has been seen.
    Ended,
}

/// Reads one archive. Push a piece, then call [`Self::next`] until it answers `None`.
#[derive(Debug)]
pub struct TarReader {
    state: State,
    /// A header that arrived in pieces.
    partial: Vec<u8>,
    input: Bytes,
    /// How many bytes were read, up to the start of `input`.
    at: u64,
    /// An entry without contents ends at once, but that is an event of its own.
    end_due: bool,
}

impl Default for TarReader {
    fn default() -> Self {
        Self::new()
    }
}

impl TarReader {
    /// At the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            partial: Vec::new(),
            input: Bytes::new(),
            at: 0,
            end_due: false,
        }
    }

    /// Adds the next bytes of the archive. Those pushed before should have been read: what is left of
    /// them is copied.
    pub fn push(&mut self, bytes: Bytes) {
        self.input = match self.input.is_empty() {
            true => bytes,
            false => [&self.input[..], &bytes[..]].concat().into(),
        };
    }

    /// The next event, or `None` until more bytes are pushed. Not an `Iterator`: `None` is no end.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<TarEvent>, TarError> {
        loop {
            if std::mem::take(&mut self.end_due) {
                return Ok(Some(TarEvent::EntryEnd));
            }
            if self.input.is_empty() {
                return Ok(None);
            }
            match self.state {
                State::Contents(left) => return Ok(Some(self.contents(left))),
                State::Padding(left) => {
                    let skipped = self.take(left).len() as u64;
                    self.state = match left - skipped {
                        0 => State::Header,
                        left => State::Padding(left),
                    };
                }
                State::Header => {
                    let at = self.at - self.partial.len() as u64;
                    let Some(block) = self.block() else { return Ok(None) };
                    if block.iter().all(|&b| b == 0) {
                        self.state = State::Ended;
                        continue;
                    }
                    let entry = Header { block: &block, at }.entry()?;
                    self.begin(entry.size);
                    return Ok(Some(TarEvent::Entry(entry)));
                }
                State::Ended => {
                    let at = self.at;
                    let rest = self.take(u64::MAX);
                    if let Some(more) = rest.iter().position(|&b| b != 0) {
                        return Err(TarError::BehindEnd { at: at + more as u64 });
                    }
                }
            }
        }
    }

    /// The archive's bytes are all pushed and read. An error if they stop in the middle of something.
    pub fn finish(&self) -> Result<(), TarError> {
        let between = matches!(self.state, State::Header | State::Ended) && self.partial.is_empty() && !self.end_due;
        match between && self.input.is_empty() {
            true => Ok(()),
            false => Err(TarError::BreaksOff { at: self.at }),
        }
    }

    fn begin(&mut self, size: u64) {
        self.end_due = size == 0;
        if size > 0 {
            self.state = State::Contents(size);
        }
    }

    fn contents(&mut self, left: u64) -> TarEvent {
        let data = self.take(left);
        let left = left - data.len() as u64;
        // Contents end on a block's border or are padded up to one.
        self.state = match left {
            0 => match (BLOCK as u64 - self.at % BLOCK as u64) % BLOCK as u64 {
                0 => State::Header,
                padding => State::Padding(padding),
            },
            left => State::Contents(left),
        };
        self.end_due = left == 0;
        TarEvent::Data(data)
    }

    fn take(&mut self, most: u64) -> Bytes {
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.input.len());
        self.at += length as u64;
        self.input.split_to(length)
    }

    /// The next whole block, gathered from pieces if need be.
    fn block(&mut self) -> Option<Bytes> {
        if self.partial.is_empty() && self.input.len() >= BLOCK {
            return Some(self.take(BLOCK as u64));
        }
        let piece = self.take((BLOCK - self.partial.len()) as u64);
        self.partial.extend_from_slice(&piece);
        (self.partial.len() == BLOCK).then(|| std::mem::take(&mut self.partial).into())
    }
}

/// A header block and where it stands.
struct Header<'a> {
    block: &'a Bytes,
    at: u64,
}

impl Header<'_> {
    fn entry(&self) -> Result<TarEntry, TarError> {
        let at = self.at;
        if self.number(148..156, "checksum")? != self.checksum() {
            return Err(TarError::Checksum { at });
        }
        // GNU's variant says "ustar  \0" and means other fields by the same bytes.
        if self.block[257..263] != *b"ustar\0" {
            return Err(TarError::Format { at });
        }
        let kind = match self.block[156] {
            b'0' => EntryKind::File,
            b'5' => EntryKind::Directory,
            b'2' => EntryKind::Symlink(self.text(157..257)),
            kind => return Err(TarError::Kind { at, kind }),
        };
        let size = self.number(124..136, "size")?;
        // Contents of a directory would be swallowed by a reader that believes there are none.
        if kind != EntryKind::File && size != 0 {
            return Err(TarError::Field { at, field: "size" });
        }
        Ok(TarEntry {
            path: self.path()?,
            kind,
            size,
            mode: self.small(100..108, "mode")?,
            mtime: self.number(136..148, "time")?,
            uid: self.small(108..116, "owner")?,
            gid: self.small(116..124, "group")?,
        })
    }

    /// The sum of the header's bytes, with the checksum's own taken as blanks.
    fn checksum(&self) -> u64 {
        let sum = |range: std::ops::Range<usize>| self.block[range].iter().map(|&b| u64::from(b)).sum::<u64>();
        sum(0..148) + 8 * u64::from(b' ') + sum(156..BLOCK)
    }

    fn path(&self) -> Result<Bytes, TarError> {
        let (prefix, mut name) = (self.text(345..500), self.text(0..100));
        if !prefix.is_empty() {
            name = [&prefix[..], b"/", &name[..]].concat().into();
        }
        while name.last() == Some(&b'/') {
            name.truncate(name.len() - 1);
        }
        // One folder is written so, `./pg_wal/archive_status`.
        while name.starts_with(b"./") {
            name.advance(2);
        }
        match name.is_empty() {
            true => Err(TarError::Field {
                at: self.at,
                field: "name",
            }),
            false => Ok(name),
        }
    }

    /// A text field: up to its first zero byte, or all of it.
    fn text(&self, range: std::ops::Range<usize>) -> Bytes {
        let mut field = self.block.slice(range);
        let end = field.iter().position(|&b| b == 0);
        field.truncate(end.unwrap_or(field.len()));
        field
    }

    fn small(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u32, TarError> {
        let number = self.number(range, field)?;
        u32::try_from(number).map_err(|_| TarError::Field { at: self.at, field })
    }

    /// A number: octal digits with a blank or zero byte behind, or, if the first bit is set, base 256.
    fn number(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u64, TarError> {
        let mut bytes = self.block.slice(range);
        let base_256 = bytes.first() == Some(&0x80);
        let number = if base_256 {
            bytes.advance(1);
            bytes
                .iter()
                .try_fold(0u64, |value, &b| Some(value.checked_mul(256)? | u64::from(b)))
        } else {
            octal(&bytes)
        };
        number.ok_or(TarError::Field { at: self.at, field })
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|&b| b == 0 || b == b' ').unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let plain = digits.iter().all(|b| (b'0'..=b'7').contains(b)) && rest.iter().all(|&b| b == 0 || b == b' ');
    // Twelve octal digits are 36 bits: no overflow.
    plain.then(|| {
        digits
            .iter()
            .fold(0, |value, &digit| value * 8 + u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests;
