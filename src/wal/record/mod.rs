//! What every record has, whatever it means: references to blocks, images of pages, and data of its own.
//!
//! A record is its header, then a run of fragment headers, then the fragments' bytes in the same order. A fragment is a
//! block (a reference, with or without an image of the page and data about it) or the main data, which comes last.

#[cfg(test)]
mod tests;

use super::cursor::Cursor;
use super::decoder::{RawRecord, RecordHeader};
use super::rmgr::ResourceManager;
use super::xid::Xid;
use crate::pg::{Lsn, MajorVersion};

/// An object id of the server's catalogues (`Oid`).
pub type Oid = u32;

/// The files of one relation (`RelFileLocator`, before 16 `RelFileNode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFile {
    /// The tablespace.
    pub tablespace: Oid,
    /// The database; zero for a relation that all share.
    pub database: Oid,
    /// The number in the file's name (`relfilenode`), which a rewrite of the relation changes.
    pub number: Oid,
}

impl RelFile {
    pub(super) const BYTES: usize = 12;

    pub(super) fn take(fields: &mut Cursor<'_>) -> Option<Self> {
        Some(Self {
            tablespace: fields.u32()?,
            database: fields.u32()?,
            number: fields.u32()?,
        })
    }
}

/// Which of a relation's files (`ForkNumber`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RelFork {
    /// The data.
    Main,
    /// The free space map.
    FreeSpaceMap,
    /// The visibility map.
    VisibilityMap,
    /// What an unlogged relation is reset to.
    Init,
}

impl RelFork {
    pub(super) const fn new(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Main),
            1 => Some(Self::FreeSpaceMap),
            2 => Some(Self::VisibilityMap),
            3 => Some(Self::Init),
            _ => None,
        }
    }

    /// Its number in the WAL.
    pub const fn number(self) -> u8 {
        match self {
            Self::Main => 0,
            Self::FreeSpaceMap => 1,
            Self::VisibilityMap => 2,
            Self::Init => 3,
        }
    }
}

/// How a page image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// PostgreSQL's own.
    Pglz,
    /// Since 15.
    Lz4,
    /// Since 15.
    Zstd,
}

/// A page as it was after the change, without the unused bytes ("hole") in its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// The page's bytes, compressed or not.
    pub bytes: &'a [u8],
    /// `None`: not compressed.
    pub compression: Option<Compression>,
    /// How many bytes of the page come before the hole.
    pub hole_offset: u16,
    /// How many bytes the hole has; `None` where it is what the other bytes leave of the page.
    pub hole_length: Option<u16>,
    /// Whether replay puts it in the place of the page; it is there to be compared with otherwise.
    pub applied: bool,
}

/// A block that a record changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// Its number within the record.
    pub id: u8,
    /// The relation.
    pub file: RelFile,
    /// Which of its files.
    pub fork: RelFork,
    /// Which block of the file.
    pub number: u32,
    /// Whether replay builds the page anew, without reading it.
    pub initialized: bool,
    /// An image of the page, where the record has one.
    pub image: Option<Image<'a>>,
    /// What the record has to say about this block.
    pub data: &'a [u8],
}

/// Which block a record changes, without what it says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// Its number within the record.
    pub id: u8,
    /// The relation.
    pub file: RelFile,
    /// Which of its files.
    pub fork: RelFork,
    /// Which block of the file.
    pub number: u32,
}

/// A record whose fragments are what its length says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    raw: RawRecord<'a>,
    /// Headers of all blocks.
    headers: &'a [u8],
    /// Images and data of all blocks.
    fragments: &'a [u8],
    main: &'a [u8],
    origin: Option<u16>,
    top_level: Option<Xid>,
}

/// A record that passed its checksum and yet can't be understood: the server that wrote it has a defect, or is not of
/// the major that it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the WAL record at {at} ({manager}, info {info:#04X}) can't be understood: {what}")]
pub struct RecordError {
    /// Where the record begins.
    pub at: Lsn,
    /// Who would replay it.
    pub manager: ResourceManager,
    /// Its `xl_info`.
    pub info: u8,
    /// What is wrong with it.
    pub what: &'static str,
}

impl RecordError {
    pub(super) const fn of(raw: &RawRecord<'_>, what: &'static str) -> Self {
        Self {
            at: raw.start(),
            manager: raw.manager(),
            info: raw.info(),
            what,
        }
    }
}

impl crate::error::Explain for RecordError {
    fn class(&self) -> crate::error::Class {
        crate::error::Class::Damaged
    }

    fn hint(&self) -> Option<String> {
        Some("look at it with the pg_waldump of the server's major.".to_owned())
    }
}

/// `XLR_BLOCK_ID_…`, which stand where a block's id would.
const MAIN_SHORT: u8 = 255;
const MAIN_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_LEVEL: u8 = 252;
/// `XLR_MAX_BLOCK_ID`.
const LAST_BLOCK: u8 = 32;

/// `BKPBLOCK_…`.
const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_FILE: u8 = 0x80;

impl<'a> Record<'a> {
    /// Reads the headers of all fragments and holds them against the record's length.
    pub fn parse(raw: &RawRecord<'a>) -> Result<Self, RecordError> {
        Self::parts(raw).map_err(|what| RecordError::of(raw, what))
    }

    /// Only which blocks the record refers to, told one by one: all that is wanted of most records, and quicker. Returns
    /// the length of the main data. Of a record that was not kept whole, only the headers must be there.
    #[inline]
    pub fn references(raw: &RawRecord<'a>, mut each: impl FnMut(Reference)) -> Result<usize, RecordError> {
        let all = raw.bytes().get(RecordHeader::BYTES..).unwrap_or_default();
        // Most records have one block without an image, and short main data: two headers of fixed lengths.
        if let Some(
            &[
                0,
                flags,
                l0,
                l1,
                a0,
                a1,
                a2,
                a3,
                b0,
                b1,
                b2,
                b3,
                c0,
                c1,
                c2,
                c3,
                n0,
                n1,
                n2,
                n3,
                MAIN_SHORT,
                main,
            ],
        ) = all.first_chunk::<22>()
            && flags & (HAS_IMAGE | SAME_FILE) == 0
            && let Some(fork) = RelFork::new(u32::from(flags & FORK_MASK))
        {
            let data = usize::from(u16::from_le_bytes([l0, l1]));
            let main = usize::from(main);
            let length = RecordHeader::BYTES + 22 + data + main;
            if (flags & HAS_DATA != 0) == (data > 0) && length == raw.length() as usize {
                let word = u32::from_le_bytes;
                each(Reference {
                    id: 0,
                    file: RelFile {
                        tablespace: word([a0, a1, a2, a3]),
                        database: word([b0, b1, b2, b3]),
                        number: word([c0, c1, c2, c3]),
                    },
                    fork,
                    number: word([n0, n1, n2, n3]),
                });
                return Ok(main);
            }
        }
        Self::all_references(raw, each)
    }

    /// As [`Self::references`], for records of any shape.
    fn all_references(raw: &RawRecord<'a>, mut each: impl FnMut(Reference)) -> Result<usize, RecordError> {
        const SHORT: &str = "it is too short for its headers";
        let wrong = |what| RecordError::of(raw, what);
        let all = raw.bytes().get(RecordHeader::BYTES..).ok_or(wrong(SHORT))?;
        let missing = raw.length() as usize - raw.bytes().len();
        let mut headers = BlockHeaders {
            fields: Cursor::new(all),
            version: raw.version(),
            last: None,
        };
        let mut fragments = 0_usize;
        let mut main = 0;
        while headers.fields.rest().len() + missing > fragments {
            match headers.next().map_err(wrong)? {
                Header::Block(block) => {
                    fragments += block.data_length + block.image.map_or(0, |image| image.length);
                    each(Reference {
                        id: block.id,
                        file: block.file,
                        fork: block.fork,
                        number: block.number,
                    });
                }
                Header::Origin(_) | Header::TopLevel(_) => {}
                Header::Main(length) => {
                    main = length;
                    break;
                }
            }
        }
        if headers.fields.rest().len() + missing == fragments + main {
            Ok(main)
        } else {
            Err(wrong("its fragments are not as long as its headers say"))
        }
    }

    fn parts(raw: &RawRecord<'a>) -> Result<Self, &'static str> {
        const SHORT: &str = "it is too short for its headers";
        let all = raw.bytes().get(RecordHeader::BYTES..).ok_or(SHORT)?;
        let mut headers = BlockHeaders {
            fields: Cursor::new(all),
            version: raw.version(),
            last: None,
        };
        let (mut blocks, mut main) = (0_usize, 0_usize);
        let (mut origin, mut top_level) = (None, None);
        let mut block_headers = 0;
        // The server's own rule for where the headers end: when what is left is the fragments announced so far.
        while headers.fields.rest().len() > blocks {
            match headers.next()? {
                Header::Block(block) => {
                    blocks += block.data_length + block.image.map_or(0, |image| image.length);
                    block_headers = all.len() - headers.fields.rest().len();
                }
                Header::Origin(id) => origin = Some(id),
                Header::TopLevel(xid) => top_level = Some(xid),
                Header::Main(length) => {
                    main = length;
                    break;
                }
            }
        }
        let rest = headers.fields.rest();
        // Of a record that was not kept whole, only the end of the main data may be missing.
        let missing = raw.length() as usize - raw.bytes().len();
        if rest.len() + missing != blocks + main {
            return Err("its fragments are not as long as its headers say");
        }
        let (fragments, main) = rest.split_at_checked(blocks).ok_or(SHORT)?;
        Ok(Self {
            raw: *raw,
            headers: &all[..block_headers],
            fragments,
            main,
            origin,
            top_level,
        })
    }

    /// The record as it stands in the WAL.
    pub const fn raw(&self) -> &RawRecord<'a> {
        &self.raw
    }

    /// The blocks it changes, in order.
    pub const fn blocks(&self) -> Blocks<'a> {
        Blocks {
            headers: BlockHeaders {
                fields: Cursor::new(self.headers),
                version: self.raw.version(),
                last: None,
            },
            fragments: Cursor::new(self.fragments),
        }
    }

    /// What it has to say apart from its blocks.
    pub const fn main(&self) -> &'a [u8] {
        self.main
    }

    /// The replication origin that it came from.
    pub const fn origin(&self) -> Option<u16> {
        self.origin
    }

    /// The transaction that the one of this record belongs to, told once for each subtransaction (14 and newer, with
    /// `wal_level = logical`).
    pub const fn top_level_xid(&self) -> Option<Xid> {
        self.top_level
    }
}

/// The blocks of a record, in order.
#[derive(Debug, Clone)]
pub struct Blocks<'a> {
    headers: BlockHeaders<'a>,
    fragments: Cursor<'a>,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        // All this has been read before by `Record::parse`, so that nothing fails here.
        let block = loop {
            match self.headers.next().ok()? {
                Header::Block(block) => break block,
                Header::Origin(_) | Header::TopLevel(_) => {}
                Header::Main(_) => return None,
            }
        };
        let image = match block.image {
            None => None,
            Some(image) => Some(Image {
                bytes: self.fragments.slice(image.length)?,
                compression: image.compression,
                hole_offset: image.hole_offset,
                hole_length: image.hole_length,
                applied: image.applied,
            }),
        };
        Some(Block {
            id: block.id,
            file: block.file,
            fork: block.fork,
            number: block.number,
            initialized: block.initialized,
            image,
            data: self.fragments.slice(block.data_length)?,
        })
    }
}

/// One fragment's header.
enum Header {
    Block(BlockHeader),
    Origin(u16),
    TopLevel(Xid),
    Main(usize),
}

/// `XLogRecordBlockHeader` and all that may follow it.
struct BlockHeader {
    id: u8,
    file: RelFile,
    fork: RelFork,
    number: u32,
    initialized: bool,
    image: Option<ImageHeader>,
    data_length: usize,
}

/// `XLogRecordBlockImageHeader`.
#[derive(Clone, Copy)]
struct ImageHeader {
    length: usize,
    compression: Option<Compression>,
    hole_offset: u16,
    hole_length: Option<u16>,
    applied: bool,
}

/// The headers that are left to read.
#[derive(Debug, Clone)]
struct BlockHeaders<'a> {
    fields: Cursor<'a>,
    version: MajorVersion,
    /// Id and relation of the last block: ids only rise, and a block may share the relation.
    last: Option<(u8, RelFile)>,
}

impl BlockHeaders<'_> {
    fn next(&mut self) -> Result<Header, &'static str> {
        const SHORT: &str = "a header in it is cut off";
        let fields = &mut self.fields;
        match fields.u8().ok_or(SHORT)? {
            MAIN_SHORT => fields.u8().map(|length| Header::Main(length.into())).ok_or(SHORT),
            MAIN_LONG => fields.u32().map(|length| Header::Main(length as usize)).ok_or(SHORT),
            ORIGIN => fields.u16().map(Header::Origin).ok_or(SHORT),
            TOP_LEVEL => fields.u32().map(|xid| Header::TopLevel(Xid::new(xid))).ok_or(SHORT),
            id if id > LAST_BLOCK => Err("a block in it has an id that none can have"),
            id if self.last.is_some_and(|(last, _)| id <= last) => Err("its blocks are out of order"),
            id => self
                .block(id)
                .ok_or("the header of a block in it is wrong")
                .map(Header::Block),
        }
    }

    fn block(&mut self, id: u8) -> Option<BlockHeader> {
        let fields = &mut self.fields;
        let flags = fields.u8()?;
        let fork = RelFork::new(u32::from(flags & FORK_MASK))?;
        let data_length = usize::from(fields.u16()?);
        if (flags & HAS_DATA != 0) != (data_length > 0) {
            return None;
        }
        let image = match flags & HAS_IMAGE {
            0 => None,
            _ => Some(ImageHeader::take(fields, self.version)?),
        };
        let file = match flags & SAME_FILE {
            0 => RelFile::take(fields)?,
            _ => self.last?.1,
        };
        self.last = Some((id, file));
        Some(BlockHeader {
            id,
            file,
            fork,
            number: fields.u32()?,
            initialized: flags & WILL_INIT != 0,
            image,
            data_length,
        })
    }
}

impl ImageHeader {
    fn take(fields: &mut Cursor<'_>, version: MajorVersion) -> Option<Self> {
        const HAS_HOLE: u8 = 0x01;
        let length = usize::from(fields.u16()?);
        let hole_offset = fields.u16()?;
        let info = fields.u8()?;
        // 15 gave the flags (BKPIMAGE_…) new places when it brought more ways to compress.
        let (applied, compression) = if version.number() >= 15 {
            let compression = match info & 0x1C {
                0 => None,
                0x04 => Some(Compression::Pglz),
                0x08 => Some(Compression::Lz4),
                0x10 => Some(Compression::Zstd),
                _ => return None,
            };
            (info & 0x02 != 0, compression)
        } else {
            (info & 0x04 != 0, (info & 0x02 != 0).then_some(Compression::Pglz))
        };
        let hole_length = match (info & HAS_HOLE != 0, compression) {
            (true, Some(_)) => Some(fields.u16()?),
            (true, None) => None,
            (false, _) => Some(0),
        };
        Some(Self {
            length,
            compression,
            hole_offset,
            hole_length,
            applied,
        })
    }
}
