//! Transactions that have not ended, found again quickly: nearly every record asks for one.

use rustc_hash::FxHashMap;

use super::super::record::{Oid, RelFile};
use super::super::xid::Xid;
use super::Rows;
use crate::pg::Lsn;

/// What a transaction did so far. Relations are told by their numbers in the collection of blocks.
#[derive(Debug, Clone)]
pub(super) struct Open {
    /// Zero in a place that is free.
    xid: u32,
    pub(super) first: Lsn,
    pub(super) wal_bytes: u64,
    pub(super) relations: Vec<(u32, Rows)>,
    pub(super) files: Option<Box<Files>>,
}

/// What few transactions do.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    pub(super) created: Vec<RelFile>,
    pub(super) emptied: Vec<RelFile>,
    pub(super) truncated: Vec<(Oid, Oid)>,
}

impl Files {
    pub(super) fn empties(&self) -> bool {
        !self.emptied.is_empty() || !self.truncated.is_empty()
    }
}

/// The places of this many transactions are remembered.
const RECENT: usize = 64;

/// All of them. Places are used again, and so is the memory in them.
#[derive(Debug, Clone)]
pub(super) struct OpenTransactions {
    places: Vec<Open>,
    free: Vec<u32>,
    by_xid: FxHashMap<u32, u32>,
    recent: [u32; RECENT],
}

impl Default for OpenTransactions {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            by_xid: FxHashMap::default(),
            recent: [0; RECENT],
        }
    }
}

impl OpenTransactions {
    /// The transaction `xid`, which begins at `lsn` if it is not known yet.
    pub(super) fn get(&mut self, xid: Xid, lsn: Lsn) -> &mut Open {
        let number = xid.number();
        let slot = number as usize % RECENT;
        let remembered = self.recent[slot] as usize;
        let place = match self.places.get(remembered) {
            Some(open) if open.xid == number => remembered,
            _ => self.find(number, lsn),
        };
        self.recent[slot] = place as u32;
        &mut self.places[place]
    }

    fn find(&mut self, xid: u32, lsn: Lsn) -> usize {
        if let Some(place) = self.by_xid.get(&xid) {
            return *place as usize;
        }
        let place = match self.free.pop() {
            Some(place) => place as usize,
            None => {
                self.places.push(Open {
                    xid: 0,
                    first: lsn,
                    wal_bytes: 0,
                    relations: Vec::new(),
                    files: None,
                });
                self.places.len() - 1
            }
        };
        self.by_xid.insert(xid, place as u32);
        let open = &mut self.places[place];
        (open.xid, open.first) = (xid, lsn);
        place
    }

    /// Ends a transaction: `take` looks at what it did, and leaves nothing that the next one in its place must not find.
    pub(super) fn end<T>(&mut self, xid: Xid, take: impl FnOnce(&mut Open) -> T) -> Option<T> {
        let place = self.by_xid.remove(&xid.number())?;
        let open = &mut self.places[place as usize];
        let taken = take(open);
        open.xid = 0;
        open.wal_bytes = 0;
        open.relations.clear();
        open.files = None;
        self.free.push(place);
        Some(taken)
    }

    /// Those that have not ended.
    pub(super) fn into_all(self) -> impl Iterator<Item = (Xid, Open)> {
        let open = self.places.into_iter().filter(|open| open.xid != 0);
        open.map(|open| (Xid::new(open.xid), open))
    }
}

impl Open {
    pub(super) fn count(&mut self, relation: u32, rows: &Rows) {
        match self.relations.iter_mut().find(|(known, _)| *known == relation) {
            Some((_, sum)) => sum.add(rows),
            None => self.relations.push((relation, *rows)),
        }
    }

    pub(super) fn rows(&self) -> u64 {
        self.relations.iter().map(|(_, rows)| rows.all()).sum()
    }

    /// Takes over what a subtransaction did.
    pub(super) fn absorb(&mut self, other: &mut Self) {
        self.first = self.first.min(other.first);
        self.wal_bytes += other.wal_bytes;
        for (relation, rows) in &other.relations {
            self.count(*relation, rows);
        }
        if let Some(more) = other.files.take() {
            let files = self.files.get_or_insert_default();
            files.created.extend(more.created);
            files.emptied.extend(more.emptied);
            files.truncated.extend(more.truncated);
        }
    }
}
