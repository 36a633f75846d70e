//! Databases that were dropped: which transaction did it, and where the last moment is in which one could be entered.

use super::super::event::Happened;
use super::super::read;
use super::super::transaction::{Did, Transaction};
use super::{PG_DATABASE, Scan};
use crate::error::{Class, Explain, Failure};
use crate::pg::{Lsn, SegmentNumber};
use crate::wal::RawRecord;

impl Scan<'_> {
    /// Finds the transaction that dropped a database. The server marks it as one that nobody may enter before anything
    /// else, and that stays if the transaction is cut off: a recovery must stop before that.
    pub(super) fn database_dropped(&mut self, transaction: &Transaction) {
        let (did, end) = (&transaction.did, &transaction.end);
        if self.databases.is_empty() {
            return;
        }
        let Some(first) = did.first else { return };
        if !end.committed || !self.drops_database(did, end.event.lsn) {
            return;
        }
        let within = |happened: &Happened| (first..end.event.lsn).contains(&happened.lsn);
        if let Some(place) = self.databases.iter().position(within) {
            let happened = self.databases.remove(place);
            self.settled.push(Happened {
                before: first,
                xid: Some(end.ended.xid),
                at: Some(end.ended.at),
                ..happened
            });
        }
    }

    /// Whether a transaction deleted the row of a database.
    fn drops_database(&self, did: &Did, at: Lsn) -> bool {
        did.relations.iter().any(|(file, rows)| {
            let known = self.names.relation(file, at).map(|known| known.oid);
            file.database == 0 && known.unwrap_or(file.number) == PG_DATABASE && rows.deletes > 0
        })
    }

    /// Finds the moment before databases were made invalid that were dropped then. That is done in place, by a record
    /// that belongs to no transaction yet, just before the first one of the transaction.
    pub(super) async fn settle_databases(&mut self) -> Result<(), Failure> {
        for mut happened in std::mem::take(&mut self.settled) {
            let (size, first) = (self.info.segment_size, happened.before);
            let number = SegmentNumber::holding(first, size).number();
            let file = |number| self.file(SegmentNumber::new(number));
            let files = [file(number.saturating_sub(1)), file(number)];
            let mut place = None;
            for files in [&files[..], &files[1..]] {
                let mut see = |raw: &RawRecord<'_>| {
                    if raw.start() < first && read::changes_in_place(raw, PG_DATABASE, happened.database) {
                        place = Some(raw.start());
                    }
                };
                match read::records(self.repository, self.info, self.layout, files, &mut see).await {
                    Ok(()) => break,
                    // The segment before need not be there.
                    Err(error) if error.class() == Class::Damaged => {}
                    Err(error) => return Err(error.into()),
                }
            }
            happened.before = place.unwrap_or(first);
            self.push(happened);
        }
        // Folders of databases also go where one moves to another tablespace, and where its creation fails.
        let at = Lsn::new(u64::MAX);
        if !self.standing.open().any(|(_, did)| self.drops_database(did, at)) {
            self.databases.clear();
        }
        Ok(())
    }
}
