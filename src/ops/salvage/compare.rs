//! A local file held against bytes of the same place that the repository has.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::pg::Lsn;

/// Takes what the repository has of a segment and compares it with the file, up to some place.
pub(super) struct Compare {
    file: io::BufReader<io::Take<File>>,
    at: Lsn,
    /// The first byte that differs.
    differs: Option<Lsn>,
    buffer: Vec<u8>,
}

impl Compare {
    /// For the segment that begins at `start`; what lies at `until` and behind it does not count.
    pub(super) fn new(path: &Path, start: Lsn, until: Lsn) -> io::Result<Self> {
        let file = File::open(path)?.take(until.since(start));
        Ok(Self {
            file: io::BufReader::with_capacity(256 << 10, file),
            at: start,
            differs: None,
            buffer: Vec::new(),
        })
    }

    /// The first byte that differs.
    pub(super) const fn differs(&self) -> Option<Lsn> {
        self.differs
    }
}

impl Write for Compare {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.differs.is_some() {
            return Ok(bytes.len());
        }
        self.buffer.clear();
        // The file may end before the repository's bytes do, and they do not count then.
        (&mut self.file)
            .take(bytes.len() as u64)
            .read_to_end(&mut self.buffer)?;
        let pairs = self.buffer.iter().zip(bytes);
        self.differs = pairs
            .enumerate()
            .find_map(|(at, (here, there))| (here != there).then(|| self.at.plus(at as u64)));
        self.at = self.at.plus(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads `len` bytes of a file from `offset` on.
pub(super) fn read_part(path: &Path, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(len).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == len {
        true => Ok(bytes),
        false => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it became shorter meanwhile",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differs(until: u64, stored: &[&[u8]]) -> Option<u64> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        std::fs::write(&path, b"0123456789").unwrap();
        let mut compare = Compare::new(&path, Lsn::new(100), Lsn::new(100 + until)).unwrap();
        for piece in stored {
            compare.write_all(piece).unwrap();
        }
        compare.differs().map(Lsn::bytes)
    }

    #[test]
    fn the_first_byte_that_differs_is_named_and_what_lies_behind_the_end_does_not_count() {
        assert_eq!(differs(10, &[b"01234", b"56789"]), None);
        assert_eq!(differs(10, &[b"01234", b"56x89"]), Some(107));
        assert_eq!(differs(7, &[b"01234", b"56x89"]), None);
        assert_eq!(differs(10, &[b"0123456789 and more"]), None);
        assert_eq!(differs(10, &[b"x", b"x"]), Some(100));
        assert_eq!(differs(0, &[b"x"]), None);
    }
}
