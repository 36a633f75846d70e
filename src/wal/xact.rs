//! Ends of transactions: the records that recovery targets are about.
//!
//! A commit or abort record is its time, and then whatever flags (`xinfo`) announce. All parts up to the last one
//! wanted are read, because each begins where the one before it ends.

use chrono::{DateTime, Utc};

use super::cursor::Cursor;
use super::record::{Oid, Record, RecordError, RelFile};
use super::xid::Xid;
use crate::pg::MajorVersion;

/// What a record of [`super::ResourceManager::TRANSACTION`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transaction<'a> {
    /// A transaction ended.
    End(TransactionEnd<'a>),
    /// A transaction was prepared for a commit in two phases.
    Prepare(Prepared<'a>),
    /// Nothing that recovery targets ask for: subtransactions assigned, caches invalidated.
    Other,
}

/// The commit or abort of a transaction, in one phase or in the second of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd<'a> {
    /// The transaction; for a prepared one its own id, not that of the session that ended it.
    pub xid: Xid,
    /// When the server says it ended. Not monotonic in WAL order.
    pub at: DateTime<Utc>,
    /// Whether it committed.
    pub committed: bool,
    /// Whether it had been prepared.
    pub prepared: bool,
    /// The database it ran in, where the record tells.
    pub database: Option<Oid>,
    /// Its subtransactions: they end with it.
    pub subtransactions: Xids<'a>,
    /// The files that go with it: of relations dropped, truncated or rewritten; for an abort, of those created.
    pub dropped: RelFiles<'a>,
    /// The relations whose definition it changed, for a commit: created, dropped, truncated, altered, rewritten.
    pub relations_changed: RelationsChanged<'a>,
    /// The name it was prepared under, where the record tells.
    pub name: Option<&'a [u8]>,
}

/// The first phase of a commit in two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared<'a> {
    /// The transaction.
    pub xid: Xid,
    /// When it was prepared.
    pub at: DateTime<Utc>,
    /// The database it ran in.
    pub database: Oid,
    /// The name it was prepared under.
    pub name: &'a [u8],
}

/// Transaction ids as they stand in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Xids<'a>(&'a [u8]);

impl<'a> Xids<'a> {
    /// How many.
    pub const fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = Xid> + use<'a> {
        let mut fields = Cursor::new(self.0);
        std::iter::from_fn(move || fields.u32().map(Xid::new))
    }
}

/// Relation files as they stand in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelFiles<'a>(&'a [u8]);

impl<'a> RelFiles<'a> {
    /// How many.
    pub const fn len(&self) -> usize {
        self.0.len() / RelFile::BYTES
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = RelFile> + use<'a> {
        let mut fields = Cursor::new(self.0);
        std::iter::from_fn(move || RelFile::take(&mut fields))
    }
}

/// Relations whose definition changed, as they stand among the messages that make caches of it invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelationsChanged<'a>(&'a [u8]);

impl<'a> RelationsChanged<'a> {
    /// One after the other: its database (zero for one that all share), and the relation.
    pub fn iter(&self) -> impl Iterator<Item = (Oid, Oid)> + use<'a> {
        /// `SHAREDINVALRELCACHE_ID`
        const RELATION: u8 = -2_i8 as u8;
        self.0.chunks_exact(INVALIDATION_BYTES).filter_map(|message| {
            let mut fields = Cursor::new(message);
            let [kind, _, _, _] = fields.array()?;
            let (database, relation) = (fields.u32()?, fields.u32()?);
            // No relation: all of them, which is said of publications.
            (kind == RELATION && relation != 0).then_some((database, relation))
        })
    }
}

/// `XLOG_XACT_…`, and the flag that says that `xinfo` follows.
const OPERATION_MASK: u8 = 0x70;
const COMMIT: u8 = 0x00;
const PREPARE: u8 = 0x10;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const HAS_INFO: u8 = 0x80;

/// `XACT_XINFO_HAS_…`.
const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_FILES: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
const HAS_NAME: u32 = 1 << 7;
/// Since 15.
const HAS_STATISTICS: u32 = 1 << 8;

/// `SharedInvalidationMessage`
const INVALIDATION_BYTES: usize = 16;

/// `xl_xact_stats_item`: 18 made the object's id twice as wide.
const fn statistics_bytes(version: MajorVersion) -> usize {
    if version.number() >= 18 { 16 } else { 12 }
}

impl<'a> Transaction<'a> {
    /// The meaning of a record of [`super::ResourceManager::TRANSACTION`].
    pub fn parse(record: &Record<'a>) -> Result<Self, RecordError> {
        let raw = record.raw();
        let fields = Cursor::new(record.main());
        let (parsed, what) = match raw.info() & OPERATION_MASK {
            COMMIT | COMMIT_PREPARED => (end(record, fields).map(Self::End), "it is no commit"),
            ABORT | ABORT_PREPARED => (end(record, fields).map(Self::End), "it is no abort"),
            PREPARE => (
                prepared(fields, raw.version()).map(Self::Prepare),
                "it prepares no transaction",
            ),
            _ => return Ok(Self::Other),
        };
        parsed.ok_or(RecordError::of(raw, what))
    }
}

fn end<'a>(record: &Record<'a>, mut fields: Cursor<'a>) -> Option<TransactionEnd<'a>> {
    let raw = record.raw();
    let operation = raw.info() & OPERATION_MASK;
    let at = fields.time()?;
    let flags = match raw.info() & HAS_INFO {
        0 => 0,
        _ => fields.u32()?,
    };
    let has = |flag| flags & flag != 0;
    let mut end = TransactionEnd {
        xid: raw.xid(),
        at,
        committed: matches!(operation, COMMIT | COMMIT_PREPARED),
        prepared: matches!(operation, COMMIT_PREPARED | ABORT_PREPARED),
        database: None,
        subtransactions: Xids::default(),
        dropped: RelFiles::default(),
        relations_changed: RelationsChanged::default(),
        name: None,
    };
    if has(HAS_DATABASE) {
        end.database = Some(fields.u32()?);
        let _tablespace = fields.u32()?;
    }
    if has(HAS_SUBTRANSACTIONS) {
        end.subtransactions = Xids(fields.counted(4)?);
    }
    if has(HAS_FILES) {
        end.dropped = RelFiles(fields.counted(RelFile::BYTES)?);
    }
    if has(HAS_STATISTICS) && raw.version().number() >= 15 {
        fields.counted(statistics_bytes(raw.version()))?;
    }
    if has(HAS_INVALIDATIONS) && end.committed {
        end.relations_changed = RelationsChanged(fields.counted(INVALIDATION_BYTES)?);
    }
    if end.prepared {
        // The record itself is of the session that ended the transaction.
        end.xid = Xid::new(has(HAS_TWO_PHASE).then(|| fields.u32())??);
        if has(HAS_NAME) {
            end.name = Some(fields.text()?);
        }
    }
    Some(end)
}

/// `xl_xact_prepare`.
fn prepared<'a>(mut fields: Cursor<'a>, version: MajorVersion) -> Option<Prepared<'a>> {
    let _magic_and_length = fields.u64()?;
    let xid = Xid::new(fields.u32()?);
    let database = fields.u32()?;
    let at = fields.time()?;
    // Owner; how many subtransactions, files dropped by commit and by abort, invalidations.
    fields.slice(4 + 3 * 4)?;
    if version.number() >= 15 {
        // How many statistics commit and abort drop.
        fields.slice(2 * 4)?;
    }
    // How many invalidations, whether of the relation cache, and padding.
    fields.slice(4 + 2)?;
    let name_length = usize::from(fields.u16()?);
    let _origin_and_its_time = fields.slice(2 * 8)?;
    // The length counts the zero at the end.
    let name = fields.slice(name_length)?;
    Some(Prepared {
        xid,
        at,
        database,
        name: name.strip_suffix(&[0])?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::forge::meaning;
    use super::*;

    /// Fields one after the other.
    fn fields(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// 2026-11-21 10:20:00.123456 UTC
    const TIME: i64 = 848_571_600_123_456;

    /// How many, and then each: of a catalogue's cache (7), of relations (-2), of all relations, of a file (-3).
    #[rustfmt::skip]
    const MESSAGES: [u32; 21] = [
        5,
        7, 16384, 0xABCD, 0,
        0x55FE, 16384, 24576, 0,
        0xFE, 16384, 0, 0,
        0xFE, 0, 1262, 0,
        0xFD, 1663, 16384, 24576,
    ];

    fn end_of(major: u16, info: u8, main: &[u8], check: impl FnOnce(TransactionEnd<'_>)) {
        meaning(major, (1, info), 100, main, |record| match Transaction::parse(record) {
            Ok(Transaction::End(end)) => check(end),
            other => panic!("{major}: {other:?}"),
        });
    }

    #[test]
    fn a_plain_commit_is_its_time() {
        end_of(15, COMMIT, &TIME.to_le_bytes(), |end| {
            assert_eq!(end.xid, Xid::new(100));
            assert_eq!(end.at.to_rfc3339(), "2026-11-21T10:20:00.123456+00:00");
            assert!(end.committed && !end.prepared);
            assert!(end.subtransactions.is_empty() && end.dropped.is_empty());
        });
        end_of(15, ABORT, &TIME.to_le_bytes(), |end| assert!(!end.committed));
    }

    #[test]
    fn every_part_of_a_prepared_end_is_read_past_or_read_in_each_major() {
        for major in 13..=18 {
            for (info, invalidations) in [(COMMIT_PREPARED, true), (ABORT_PREPARED, false)] {
                let flags = HAS_DATABASE | HAS_SUBTRANSACTIONS | HAS_FILES | HAS_TWO_PHASE | HAS_NAME | 1 << 5;
                let statistics = match major {
                    ..15 => vec![],
                    15..18 => words(&[2, 1, 1, 1, 2, 2, 2]),
                    _ => words(&[2, 1, 1, 1, 1, 2, 2, 2, 2]),
                };
                let flags = flags | u32::from(major >= 15) << 8 | u32::from(invalidations) << 3;
                let main = fields(&[
                    &TIME.to_le_bytes(),
                    &words(&[flags]),
                    &words(&[16384, 1663]),
                    &words(&[3, 801, 802, 803]),
                    &words(&[1, 1663, 16384, 24576]),
                    &statistics,
                    &if invalidations { words(&MESSAGES) } else { vec![] },
                    &words(&[777]),
                    b"a name\0",
                    &[0; 16],
                ]);
                end_of(major, info | HAS_INFO, &main, |end| {
                    assert_eq!((end.xid, end.prepared), (Xid::new(777), true), "{major}");
                    assert_eq!(end.committed, invalidations);
                    assert_eq!(end.database, Some(16384));
                    let subtransactions: Vec<u32> = end.subtransactions.iter().map(Xid::number).collect();
                    assert_eq!((end.subtransactions.len(), subtransactions), (3, vec![801, 802, 803]));
                    let file = RelFile {
                        tablespace: 1663,
                        database: 16384,
                        number: 24576,
                    };
                    assert_eq!((end.dropped.len(), end.dropped.iter().next()), (1, Some(file)));
                    let changed: Vec<_> = end.relations_changed.iter().collect();
                    let expected: &[_] = if invalidations {
                        &[(16384, 24576), (0, 1262)]
                    } else {
                        &[]
                    };
                    assert_eq!(changed, expected, "{major}");
                    assert_eq!(end.name, Some(b"a name".as_slice()));
                });
            }
        }
    }

    #[test]
    fn an_end_that_is_cut_off_or_miscounts_is_refused() {
        let refused = |info, main: &[u8]| {
            meaning(15, (1, info), 100, main, |record| {
                assert!(Transaction::parse(record).is_err(), "{main:?}");
            });
        };
        refused(COMMIT, &[0; 7]);
        refused(COMMIT, &i64::MAX.to_le_bytes());
        refused(COMMIT | HAS_INFO, &TIME.to_le_bytes());
        for count in [2, i32::MAX as u32, u32::MAX] {
            let main = fields(&[&TIME.to_le_bytes(), &words(&[HAS_SUBTRANSACTIONS, count, 5])]);
            refused(COMMIT | HAS_INFO, &main);
        }
        // The second phase must tell which transaction it ends.
        refused(COMMIT_PREPARED, &TIME.to_le_bytes());
    }

    #[test]
    fn a_prepared_transaction_tells_its_name_in_each_major() {
        for major in 13..=18 {
            let statistics: &[u8] = if major >= 15 { &[0; 8] } else { &[] };
            let main = fields(&[
                &[0; 8],
                &words(&[777, 16384]),
                &TIME.to_le_bytes(),
                &[0; 16],
                statistics,
                &[0; 6],
                &[7, 0],
                &[0; 16],
                b"a name\0",
                &[9; 20],
            ]);
            meaning(major, (1, PREPARE), 0, &main, |record| {
                match Transaction::parse(record) {
                    Ok(Transaction::Prepare(prepared)) => {
                        assert_eq!((prepared.xid, prepared.database), (Xid::new(777), 16384));
                        assert_eq!(prepared.name, b"a name", "{major}");
                    }
                    other => panic!("{major}: {other:?}"),
                }
            });
        }
    }
}
