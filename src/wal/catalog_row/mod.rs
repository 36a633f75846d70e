//! Rows of PostgreSQL's own catalogues, read as they pass through the WAL: what relations, schemas and databases that
//! were made after the last backup are called.
//!
//! A row is told wherever a record holds all of it. An update within one page leaves out what old and new row share at
//! their front and end (`XLH_UPDATE_PREFIX_FROM_OLD`), which is not to be had without the page: such rows are passed
//! over, and with them most changes of a name or a file. Deleted rows are not told.
//!
//! The columns that count come first, are never null and have a fixed width, so that each major has them at fixed
//! places (`pg_class.h`, `pg_namespace.h`, `pg_database.h` of 13 to 18).

#[cfg(test)]
mod tests;

use super::cursor::Cursor;
use super::full_page::page_of;
use super::record::{Block, Image, Oid, Record, RecordError, RelFile, RelFork};
use super::rmgr::ResourceManager;
use crate::pg::MajorVersion;

/// A row of a catalogue that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogRow {
    /// A row of `pg_class`: of a new relation, or of one that changed.
    Relation {
        /// The relation.
        oid: Oid,
        /// The schema that it is in.
        schema: Oid,
        /// Its name, in the encoding of its database. A rewrite (`VACUUM FULL`, `CLUSTER`, some `ALTER TABLE`) makes a
        /// relation `pg_temp_OID` for a while, whose file becomes the one of the relation OID.
        name: Vec<u8>,
        /// `relkind`: `r` table, `i` index, `t` TOAST table, `S` sequence, …
        kind: u8,
        /// Its file. The number is zero where it has none (views, partitioned tables) or where another list tells it
        /// (`pg_class` itself and its like). The database is zero for a relation that all databases share.
        file: RelFile,
    },
    /// A row of `pg_namespace`.
    Schema {
        /// The database that it is in.
        database: Oid,
        /// The schema.
        oid: Oid,
        /// Its name, in the encoding of its database.
        name: Vec<u8>,
    },
    /// The file of a catalogue whose own row can't tell it (`pg_filenode.map`): it was rewritten.
    Mapped {
        /// The database; zero for a catalogue that all share.
        database: Oid,
        /// The catalogue.
        oid: Oid,
        /// Its file from now on.
        file: RelFile,
    },
    /// A row of `pg_database`.
    Database {
        /// The database.
        oid: Oid,
        /// Its name.
        name: Vec<u8>,
        /// Where relations are that name no tablespace.
        tablespace: Oid,
    },
}

/// The catalogues, whose files have their own ids for numbers until they are rewritten themselves.
const PG_CLASS: Oid = 1259;
const PG_NAMESPACE: Oid = 2615;
const PG_DATABASE: Oid = 1262;
/// Catalogues whose files are told when they change: those of relations, and of databases (`pg_attribute`, `pg_type`).
const MAPPED: [Oid; 4] = [PG_CLASS, PG_DATABASE, 1249, 1247];
/// `pg_global`: the tablespace of what all databases share.
const GLOBAL: Oid = 1664;

/// `XLOG_HEAP_…` and `XLOG_HEAP2_…`.
const OPERATION_MASK: u8 = 0x70;
const INSERT: u8 = 0x00;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x40;
const MULTI_INSERT: u8 = 0x50;
const INIT_PAGE: u8 = 0x80;

/// `XLH_UPDATE_PREFIX_FROM_OLD | XLH_UPDATE_SUFFIX_FROM_OLD`.
const SHARED_WITH_OLD: u8 = 1 << 5 | 1 << 6;

/// `SizeofHeapTupleHeader`: bytes of a row's header in a page, the last of which is the header's length with all that
/// follows it (a bit for each null, padding).
const ROW_HEADER: usize = 23;

/// `NAMEDATALEN`.
const NAME: usize = 64;

impl CatalogRow {
    /// Whether a record that writes rows into this file may tell any.
    pub const fn may_be_in(file: &RelFile) -> bool {
        match file.number {
            PG_CLASS | PG_NAMESPACE => file.database != 0,
            PG_DATABASE => file.database == 0,
            _ => false,
        }
    }

    /// Which catalogue a file is that was never rewritten.
    fn original(file: &RelFile) -> Option<Oid> {
        Self::may_be_in(file).then_some(file.number)
    }

    /// Whether rows of this catalogue are told.
    pub const fn is_told(catalogue: Oid) -> bool {
        matches!(catalogue, PG_CLASS | PG_NAMESPACE | PG_DATABASE)
    }

    /// The rows that an insert or an update tells of, in itself or in its image of the page, and new files of catalogues.
    ///
    /// # Errors
    /// When the record is none that its kind allows. Rows told before stay told.
    pub fn of(record: &Record<'_>, each: &mut dyn FnMut(Self)) -> Result<(), RecordError> {
        if record.raw().manager() == ResourceManager::RELATION_MAP {
            return mapped(record, each).ok_or(RecordError::of(record.raw(), "it maps no catalogues"));
        }
        Self::of_files(record, &Self::original, each)
    }

    /// As [`Self::of`], where catalogues may have been rewritten: `catalogue` says which one a file is.
    ///
    /// # Errors
    /// As for [`Self::of`].
    pub fn of_files(
        record: &Record<'_>,
        catalogue: &dyn Fn(&RelFile) -> Option<Oid>,
        each: &mut dyn FnMut(Self),
    ) -> Result<(), RecordError> {
        let raw = record.raw();
        let operation = raw.info() & OPERATION_MASK;
        let several = match (raw.manager(), operation) {
            (ResourceManager::HEAP, INSERT | UPDATE | HOT_UPDATE) => false,
            (ResourceManager::HEAP2, MULTI_INSERT) => true,
            _ => return Ok(()),
        };
        let first = record.blocks().next();
        let first = first.filter(|block| block.id == 0 && block.fork == RelFork::Main);
        let Some((block, catalogue)) = first.and_then(|block| Some((block, catalogue(&block.file)?))) else {
            return Ok(());
        };
        let rows = Rows {
            block,
            catalogue,
            main: Cursor::new(record.main()),
            version: raw.version(),
        };
        let told = match operation {
            INSERT => rows.inserted(each),
            _ if several => rows.inserted_together(raw.info() & INIT_PAGE != 0, each),
            _ => rows.updated(each),
        };
        told.ok_or(RecordError::of(raw, "it holds no row of a catalogue where one must be"))
    }

    /// The columns that count, out of a whole row.
    fn of_columns(columns: &[u8], catalogue: Oid, file: &RelFile, version: MajorVersion) -> Option<Self> {
        let at = |offset: usize| Cursor::new(columns.get(offset..)?).u32();
        let oid = at(0)?;
        let name = columns.get(4..4 + NAME)?.split(|&byte| byte == 0).next()?.to_vec();
        Some(match catalogue {
            PG_CLASS => {
                let tablespace = match at(92)? {
                    0 => file.tablespace,
                    named => named,
                };
                Self::Relation {
                    oid,
                    schema: at(68)?,
                    name,
                    kind: *columns.get(kind_offset(version))?,
                    file: RelFile {
                        tablespace,
                        database: if tablespace == GLOBAL { 0 } else { file.database },
                        number: at(88)?,
                    },
                }
            }
            PG_NAMESPACE => Self::Schema {
                database: file.database,
                oid,
                name,
            },
            _ => Self::Database {
                oid,
                name,
                tablespace: at(tablespace_offset(version))?,
            },
        })
    }
}

/// Where `pg_class.relkind` is: 18 put `relallfrozen` before it.
const fn kind_offset(version: MajorVersion) -> usize {
    if version.number() >= 18 { 119 } else { 115 }
}

/// Where `pg_database.dattablespace` is: 15 moved the names of locales, of fixed width until then, behind it, and dropped
/// `datlastsysoid`.
const fn tablespace_offset(version: MajorVersion) -> usize {
    if version.number() >= 15 { 92 } else { 224 }
}

/// `xl_relmap_update`: a whole `RelMapFile`, of a database or of what all share.
fn mapped(record: &Record<'_>, each: &mut dyn FnMut(CatalogRow)) -> Option<()> {
    let mut fields = Cursor::new(record.main());
    let (database, tablespace) = (fields.u32()?, fields.u32()?);
    let _length_and_magic = fields.u64()?;
    for _ in 0..fields.u32()? {
        let (oid, number) = (fields.u32()?, fields.u32()?);
        if MAPPED.contains(&oid) {
            let file = RelFile {
                tablespace,
                database,
                number,
            };
            each(CatalogRow::Mapped { database, oid, file });
        }
    }
    Some(())
}

/// A record that writes rows of a catalogue.
struct Rows<'a> {
    block: Block<'a>,
    catalogue: Oid,
    main: Cursor<'a>,
    version: MajorVersion,
}

impl Rows<'_> {
    /// `xl_heap_insert`.
    fn inserted(mut self, each: &mut dyn FnMut(CatalogRow)) -> Option<()> {
        let place = self.main.u16()?;
        match self.image() {
            Some(image) => self.in_page(&page_of(image)?, place, each),
            None => self.alone(self.block.data, each),
        }
    }

    /// `xl_heap_update`.
    fn updated(mut self, each: &mut dyn FnMut(CatalogRow)) -> Option<()> {
        let _old_deleter_place_and_bits = self.main.slice(4 + 2 + 1)?;
        let flags = self.main.u8()?;
        let _new_deleter = self.main.u32()?;
        let place = self.main.u16()?;
        match self.image() {
            Some(image) => self.in_page(&page_of(image)?, place, each),
            None if flags & SHARED_WITH_OLD != 0 => Some(()),
            None => self.alone(self.block.data, each),
        }
    }

    /// `xl_heap_multi_insert`.
    fn inserted_together(mut self, fills_page: bool, each: &mut dyn FnMut(CatalogRow)) -> Option<()> {
        let _flags_and_padding = self.main.u16()?;
        let count = self.main.u16()?;
        if let Some(image) = self.image() {
            let page = page_of(image)?;
            for number in 1..=count {
                // Into an empty page they go one after the other, and the record does not say so.
                let place = if fills_page { number } else { self.main.u16()? };
                self.in_page(&page, place, each)?;
            }
            return Some(());
        }
        let mut fields = Cursor::new(self.block.data);
        for _ in 0..count {
            // `xl_multi_insert_tuple`, at even places.
            let behind = self.block.data.len() - fields.rest().len();
            fields.slice(behind % 2)?;
            let length = usize::from(fields.u16()?);
            let _bits = fields.u32()?;
            let header = fields.u8()?;
            self.tell(header, fields.slice(length)?, each)?;
        }
        Some(())
    }

    /// The image that the record has in the place of its data. One that is only there for comparison comes with data.
    fn image(&self) -> Option<&Image<'_>> {
        self.block.image.as_ref().filter(|_| self.block.data.is_empty())
    }

    /// A row behind its `xl_heap_header`.
    fn alone(&self, data: &[u8], each: &mut dyn FnMut(CatalogRow)) -> Option<()> {
        let mut fields = Cursor::new(data);
        let _bits = fields.u32()?;
        let header = fields.u8()?;
        self.tell(header, fields.rest(), each)
    }

    /// The row at a place (`OffsetNumber`, from 1) of a page.
    fn in_page(&self, page: &[u8], place: u16, each: &mut dyn FnMut(CatalogRow)) -> Option<()> {
        const PAGE_HEADER: usize = 24;
        /// `LP_NORMAL`
        const USED: u32 = 1;
        let pointer_at = PAGE_HEADER + 4 * usize::from(place.checked_sub(1)?);
        let pointer = Cursor::new(page.get(pointer_at..)?).u32()?;
        let (start, state, length) = (pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17);
        let row = page.get(start as usize..)?.get(..length as usize)?;
        let header = *row.get(ROW_HEADER - 1)?;
        (state == USED).then_some(())?;
        self.tell(header, &row[ROW_HEADER..], each)
    }

    /// A row from behind its fixed header on; `header` is how long the header is with all that follows it.
    fn tell(&self, header: u8, row: &[u8], each: &mut dyn FnMut(CatalogRow)) -> Option<()> {
        let columns = row.get(usize::from(header).checked_sub(ROW_HEADER)?..)?;
        each(CatalogRow::of_columns(
            columns,
            self.catalogue,
            &self.block.file,
            self.version,
        )?);
        Some(())
    }
}
