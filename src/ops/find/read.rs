//! Reads segments themselves, where their indexes do not tell enough.

use std::io::{self, Write};

use super::transaction::End;
use crate::pg::Lsn;
use crate::repo::{self, ClusterInfo, Fetched, RepoError, Repository, SegmentFile};
use crate::wal::index::{Part, Tally};
use crate::wal::{Event, EventKind, Oid, RawRecord, Record, ResourceManager, Step, Transaction, WalDecoder, WalLayout};

/// Shows every commit and abort of a segment to `each`, with what that transaction did in the segment. Returns what
/// those did that do not end there.
pub(super) async fn transactions(
    repository: &Repository,
    info: &ClusterInfo,
    layout: WalLayout,
    file: SegmentFile,
    each: &mut (dyn FnMut(End, Option<Part>) + Send),
) -> Result<Vec<Part>, RepoError> {
    let mut tally = Tally::default();
    let mut see = |raw: &RawRecord<'_>| {
        // What can't be understood, the index has told of.
        let _ = tally.see(raw);
        let Some(end) = end_of(raw) else { return };
        let part = tally.end(end.ended.xid, end.subtransactions.iter().copied());
        each(end, part);
    };
    records(repository, info, layout, &[file], &mut see).await?;
    Ok(tally.finish().2)
}

/// The commit or abort that a record is.
pub(super) fn end_of(raw: &RawRecord<'_>) -> Option<End> {
    if raw.manager() != ResourceManager::TRANSACTION {
        return None;
    }
    let record = Record::parse(raw).ok()?;
    let Transaction::End(end) = Transaction::parse(&record).ok()? else {
        return None;
    };
    let event = Event {
        lsn: raw.start(),
        end_lsn: raw.end(),
        previous: raw.previous(),
        kind: EventKind::of(raw).ok()??,
    };
    End::read(event, &end)
}

/// Whether a record changes a row of this shared catalogue in place, which may be the one of this object.
pub(super) fn changes_in_place(raw: &RawRecord<'_>, catalogue: Oid, object: Option<Oid>) -> bool {
    /// `XLOG_HEAP_INPLACE`, and `XLOG_HEAP_OPMASK`.
    const IN_PLACE: u8 = 0x70;
    if raw.manager() != ResourceManager::HEAP || raw.info() & IN_PLACE != IN_PLACE {
        return false;
    }
    let block = Record::parse(raw).ok().and_then(|record| record.blocks().next());
    block.is_some_and(|block| {
        // The row's first column is its object id. Where the page is told whole, the row is not told.
        let row = block.data.first_chunk().copied().map(u32::from_le_bytes);
        let file = block.file;
        (file.database, file.number) == (0, catalogue) && row.is_none_or(|row| Some(row) == object)
    })
}

/// Shows every record of segments that follow each other to `each`.
pub(super) async fn records(
    repository: &Repository,
    info: &ClusterInfo,
    layout: WalLayout,
    files: &[SegmentFile],
    each: &mut (dyn FnMut(&RawRecord<'_>) + Send),
) -> Result<(), RepoError> {
    let start = files
        .first()
        .and_then(|file| file.name.number(info.segment_size))
        .map_or(Lsn::ZERO, |number| number.start(info.segment_size));
    let mut sink = Sink {
        decoder: WalDecoder::new(start, layout),
        at: start,
        over: false,
        each,
    };
    for file in files {
        sink.decoder.allow_timelines_up_to(file.name.timeline());
        if repo::fetch_segment(repository, info, *file, &mut sink).await? == Fetched::Missing {
            return Err(RepoError::Damaged {
                object: file.to_string(),
                why: "it was there a moment ago and is gone".to_owned(),
            });
        }
    }
    Ok(())
}

/// Decodes what is written to it.
struct Sink<'a> {
    decoder: WalDecoder,
    at: Lsn,
    /// Whether no valid record follows.
    over: bool,
    each: &'a mut (dyn FnMut(&RawRecord<'_>) + Send),
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.over {
            // The rest of the segment is still read, because its checksum is.
            return Ok(bytes.len());
        }
        self.decoder.push(self.at, bytes).map_err(io::Error::other)?;
        self.at = self.at.plus(bytes.len() as u64);
        loop {
            match self.decoder.step() {
                Step::NeedMore => return Ok(bytes.len()),
                Step::Record(raw) => (self.each)(&raw),
                Step::EndOfWal { .. } => {
                    self.over = true;
                    return Ok(bytes.len());
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
