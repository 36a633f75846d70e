//! Counts what records do: rows by transaction and relation, blocks touched.

use super::super::cursor::Cursor;
use super::super::decoder::RawRecord;
use super::super::record::{Record, RecordError, RelFile, RelFork};
use super::super::rmgr::ResourceManager;
use super::super::storage::StorageChange;
use super::super::xid::Xid;
use super::open::{Open, OpenTransactions};
use super::touched::{Collector, Touched};
use super::{Activity, Part, Rows};

/// `XLOG_HEAP_OPMASK`: what is left of `xl_info` without the flag for a page that is built anew.
const OPERATION_MASK: u8 = 0x70;
const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const TRUNCATE: u8 = 0x30;
const HOT_UPDATE: u8 = 0x40;
/// Of [`ResourceManager::HEAP2`].
const MULTI_INSERT: u8 = 0x50;
/// `XLH_DELETE_IS_SUPER`: an insert that lost against another session takes its row back.
const DELETE_IS_SUPER: u8 = 1 << 3;

/// Counts record by record. Memory follows the transactions that have not ended and the blocks touched, of which too
/// many are told in groups.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    collector: Collector,
    /// By the collector's numbers.
    relations: Vec<(Rows, u64)>,
    transactions: OpenTransactions,
}

impl Tally {
    /// Counts a record. Of one whose bytes are not all there, the headers must be.
    pub fn see(&mut self, raw: &RawRecord<'_>) -> Result<Option<RelFile>, RecordError> {
        let mut first = None;
        let collector = &mut self.collector;
        let relations = &mut self.relations;
        let main_length = Record::references(raw, |reference| {
            let number = collector.number(reference.file, reference.fork);
            collector.touch(number, reference.number);
            if relations.len() <= number as usize {
                relations.resize(number as usize + 1, (Rows::default(), 0));
            }
            relations[number as usize].1 += 1;
            if reference.id == 0 {
                first = Some((number, reference.file));
            }
        })?;
        let main = raw.bytes().len().checked_sub(main_length);
        let main = main.map_or(&[][..], |at| &raw.bytes()[at..]);
        let rows = rows_of(raw, main);
        if raw.xid() != Xid::NONE {
            let open = self.transactions.get(raw.xid(), raw.start());
            open.wal_bytes += u64::from(raw.length());
            if let (Some(rows), Some((number, _))) = (&rows, first) {
                open.count(number, rows);
            }
            note_files(open, raw, main);
        }
        if let (Some(rows), Some((number, _))) = (&rows, first) {
            self.relations[number as usize].0.add(rows);
        }
        Ok(first.map(|(_, file)| file))
    }

    /// A transaction has ended, and with it these subtransactions: what all of them did, as one.
    pub fn end(&mut self, xid: Xid, subtransactions: impl Iterator<Item = Xid>) -> Option<Part> {
        match self.end_if(xid, subtransactions, |_, _| true) {
            Ending::Part(part) => Some(*part),
            Ending::Nothing | Ending::Unwanted => None,
        }
    }

    /// As [`Self::end`]; what they did is told only if it is `wanted`, for so many rows and for files emptied or not.
    pub(super) fn end_if(
        &mut self,
        xid: Xid,
        subtransactions: impl Iterator<Item = Xid>,
        wanted: impl FnOnce(u64, bool) -> bool,
    ) -> Ending {
        for subtransaction in subtransactions {
            let mut part = None;
            self.transactions.end(subtransaction, |open| part = Some(open.clone()));
            if let Some(mut part) = part {
                self.transactions.get(xid, part.first).absorb(&mut part);
            }
        }
        let collector = &self.collector;
        let ended = self.transactions.end(xid, |open| {
            let rows = open.rows();
            match wanted(rows, open.files.as_ref().is_some_and(|files| files.empties())) {
                true => Ending::Part(Box::new(part(collector, xid, open))),
                false if rows > 0 => Ending::Unwanted,
                false => Ending::Nothing,
            }
        });
        ended.unwrap_or(Ending::Nothing)
    }

    /// The blocks, what was done to each relation, and the transactions that have not ended.
    pub fn finish(mut self) -> (Touched, Vec<Activity>, Vec<Part>) {
        let mut open: Vec<Part> = std::mem::take(&mut self.transactions)
            .into_all()
            .map(|(xid, mut open)| part(&self.collector, xid, &mut open))
            .collect();
        open.sort_by_key(|part| part.first);
        let mut relations = Vec::new();
        for (number, (rows, references)) in self.relations.iter().enumerate() {
            let (file, fork) = self.collector.file(number as u32);
            if fork == RelFork::Main {
                relations.push(Activity {
                    file,
                    rows: *rows,
                    references: *references,
                });
            }
        }
        relations.sort_by_key(|activity| activity.file);
        (self.collector.finish(), relations, open)
    }
}

/// What became of a transaction's count when it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// It changed no row.
    Nothing,
    /// It changed some, and they are not wanted.
    Unwanted,
    /// It did this.
    Part(Box<Part>),
}

fn part(collector: &Collector, xid: Xid, open: &mut Open) -> Part {
    let files = open.files.take().map(|files| *files).unwrap_or_default();
    let relation = |(number, rows): &(u32, Rows)| (collector.file(*number).0, *rows);
    Part {
        xid,
        first: open.first,
        wal_bytes: open.wal_bytes,
        relations: open.relations.iter().map(relation).collect(),
        created: files.created,
        emptied: files.emptied,
        truncated: files.truncated,
    }
}

/// The rows that a record changes.
fn rows_of(raw: &RawRecord<'_>, main: &[u8]) -> Option<Rows> {
    let operation = raw.info() & OPERATION_MASK;
    let mut rows = Rows::default();
    match (raw.manager(), operation) {
        (ResourceManager::HEAP, INSERT) => rows.inserts = 1,
        (ResourceManager::HEAP, UPDATE | HOT_UPDATE) => rows.updates = 1,
        // xl_heap_delete: xmax, offset number, infomask bits, flags.
        (ResourceManager::HEAP, DELETE) if main.get(7).is_none_or(|flags| flags & DELETE_IS_SUPER == 0) => {
            rows.deletes = 1;
        }
        // xl_heap_multi_insert: flags, and after a byte of padding the number of rows.
        (ResourceManager::HEAP2, MULTI_INSERT) => {
            rows.inserts = u64::from(u16::from_le_bytes([*main.get(2)?, *main.get(3)?]));
        }
        _ => return None,
    }
    Some(rows)
}

/// Files made or emptied.
fn note_files(open: &mut Open, raw: &RawRecord<'_>, main: &[u8]) {
    let interesting = match raw.manager() {
        ResourceManager::STORAGE => true,
        ResourceManager::HEAP => raw.info() & OPERATION_MASK == TRUNCATE,
        _ => false,
    };
    if !interesting {
        return;
    }
    let Ok(record) = Record::parse(raw) else { return };
    match StorageChange::parse(&record) {
        Ok(StorageChange::FileCreated {
            file,
            fork: RelFork::Main,
        }) => open.files.get_or_insert_default().created.push(file),
        Ok(StorageChange::FileTruncated { file, blocks: 0, forks }) if forks & 1 != 0 => {
            open.files.get_or_insert_default().emptied.push(file);
        }
        Ok(StorageChange::TablesTruncated { database, .. }) => {
            let mut oids = Cursor::new(main.get(12..).unwrap_or_default());
            let truncated = &mut open.files.get_or_insert_default().truncated;
            truncated.extend(std::iter::from_fn(|| oids.u32()).map(|oid| (database, oid)));
        }
        _ => {}
    }
}
