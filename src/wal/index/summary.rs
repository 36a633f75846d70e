//! Indexes made of events alone, for tests of what reads indexes.

use super::{Broken, Ends, FirstRecord, LeftOut, SegmentIndex, XidSet};
use crate::pg::{Lsn, MajorVersion};
use crate::wal::{Event, Extent};

/// What the index of a segment tells that begins at `start`, has these records (where each begins and ends) and these
/// events among them, and breaks off at `broken`.
pub(crate) fn summary(
    start: Lsn,
    previous: Lsn,
    records: &[(Lsn, Lsn)],
    events: &[Event],
    broken: Option<Broken>,
) -> SegmentIndex {
    let mut ends = Ends::default();
    let (mut ended, mut others) = (Vec::new(), Vec::new());
    for event in events {
        ends.add(event);
        match event.kind.ended() {
            Some(end) => ended.push(end.xid.number()),
            None => others.push(event.clone()),
        }
    }
    SegmentIndex {
        start,
        version: MajorVersion::new(17).unwrap(),
        timeline: None,
        first: records.first().map(|(lsn, _)| FirstRecord { lsn: *lsn, previous }),
        extent: records.last().map(|(last_record, end)| Extent {
            last_record: *last_record,
            end: *end,
        }),
        broken,
        rest: None,
        overwrites: false,
        begun: None,
        ends,
        ended: XidSet::of(ended),
        ended_within: XidSet::default(),
        events: others,
        notable: Vec::new(),
        parts: Vec::new(),
        relations: Vec::new(),
        catalog: Vec::new(),
        minutes: Vec::new(),
        left_out: LeftOut::default(),
        troubles: Vec::new(),
    }
}
