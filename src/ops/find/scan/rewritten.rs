//! Names out of catalogues that were rewritten.

use rustc_hash::FxHashMap;

use super::super::read;
use super::Scan;
use crate::error::{Class, Explain, Failure};
use crate::pg::SegmentNumber;
use crate::repo::SegmentFile;
use crate::wal::index::SegmentIndex;
use crate::wal::{CatalogRow, Oid, RawRecord, Record, RelFile, ResourceManager};

impl Scan<'_> {
    /// Rows of catalogues that were rewritten, which no index tells: their files have other numbers than when it was made
    /// known how to find them.
    pub(super) async fn learn_from_rewritten(
        &mut self,
        number: SegmentNumber,
        file: SegmentFile,
        core: &SegmentIndex,
    ) -> Result<(), Failure> {
        let at = number.end(self.info.segment_size);
        let mut rewritten: FxHashMap<RelFile, Oid> = FxHashMap::default();
        for activity in &core.relations {
            let known = self.names.relation(&activity.file, at).map(|known| known.oid);
            if let Some(oid) = known.filter(|oid| *oid != activity.file.number && CatalogRow::is_told(*oid))
                && activity.rows.inserts + activity.rows.updates > 0
            {
                rewritten.insert(activity.file, oid);
            }
        }
        if rewritten.is_empty() {
            return Ok(());
        }
        let mut rows = Vec::new();
        let mut see = |raw: &RawRecord<'_>| {
            if matches!(raw.manager(), ResourceManager::HEAP | ResourceManager::HEAP2)
                && let Ok(record) = Record::parse(raw)
            {
                let catalogue = |file: &RelFile| rewritten.get(file).copied();
                let _ = CatalogRow::of_files(&record, &catalogue, &mut |row| rows.push((raw.start(), row)));
            }
        };
        match read::records(self.repository, self.info, self.layout, &[file], &mut see).await {
            Ok(()) => {}
            Err(error) if error.class() == Class::Damaged => self.damaged(number, &error),
            Err(error) => return Err(error.into()),
        }
        rows.iter().for_each(|(at, row)| self.learn_row(*at, row));
        Ok(())
    }
}
