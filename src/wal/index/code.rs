//! An index as bytes, and back: layout 1, as docs/repository-format.md describes it.
//!
//! Positions and times are told as differences to the last one told, because they are close to it. Nothing that is read
//! reserves more memory than the bytes that are there account for.

use chrono::{DateTime, Utc};

use super::super::decoder::{Begun, Rest};
use super::super::events::{Ended, Event, Extent};
use super::super::record::{RelFile, RelFork};
use super::super::target::CommitPoint;
use super::super::xid::Xid;
use super::{
    Activity, Broken, Ends, FirstRecord, LeftOut, Notable, Part, Rows, SegmentIndex, Touched, TouchedFile, XidSet,
};
use crate::pg::{Lsn, MajorVersion, Timeline};
use crate::varint;

mod kinds;

/// Bytes that grow, and what differences are taken from.
struct Writer {
    out: Vec<u8>,
    lsn: u64,
    micros: i64,
}

/// Bytes that shrink.
struct Reader<'a> {
    bytes: &'a [u8],
    lsn: u64,
    micros: i64,
}

/// The bytes of an index's core.
pub fn write_core(index: &SegmentIndex) -> Vec<u8> {
    let mut to = Writer::new(index.start);
    to.number(index.start.bytes());
    to.number(index.version.number().into());
    to.option(index.timeline.as_ref(), |to, timeline| {
        to.number(timeline.number().into())
    });
    to.option(index.first.as_ref(), |to, first| {
        to.lsn(first.lsn);
        to.lsn(first.previous);
    });
    to.option(index.extent.as_ref(), |to, extent| {
        to.lsn(extent.last_record);
        to.lsn(extent.end);
    });
    to.option(index.broken.as_ref(), |to, broken| {
        to.lsn(broken.at);
        to.flag(broken.unwritten);
        to.text(broken.why.as_bytes());
    });
    to.option(index.rest.as_ref(), Writer::rest);
    to.flag(index.overwrites);
    to.option(index.begun.as_ref(), Writer::begun);
    to.ends(&index.ends);
    to.xids(&index.ended);
    to.xids(&index.ended_within);
    to.list(&index.events, Writer::event);
    to.list(&index.notable, Writer::notable);
    to.list(&index.parts, Writer::part);
    to.list(&index.relations, |to, activity| {
        to.file(&activity.file);
        to.rows(&activity.rows);
        to.number(activity.references);
    });
    to.list(&index.catalog, |to, (lsn, row)| {
        to.lsn(*lsn);
        to.catalog_row(row);
    });
    to.list(&index.minutes, |to, (minute, commits)| {
        to.signed(*minute);
        to.number((*commits).into());
    });
    let left_out = &index.left_out;
    for count in [
        left_out.parts,
        left_out.large_parts,
        left_out.relations,
        left_out.catalog,
        left_out.events,
        left_out.notable,
    ] {
        to.number(count);
    }
    to.list(&index.troubles, |to, trouble| to.text(trouble.as_bytes()));
    to.out
}

/// The core that these bytes tell; `None` where they make no sense.
pub fn read_core(bytes: &[u8]) -> Option<SegmentIndex> {
    let mut from = Reader::new(bytes);
    let from = &mut from;
    let start = Lsn::new(from.number()?);
    from.lsn = start.bytes();
    let index = SegmentIndex {
        start,
        version: MajorVersion::new(from.small()?).ok()?,
        timeline: from.option(|from| Timeline::new(from.small()?))?,
        first: from.option(|from| {
            Some(FirstRecord {
                lsn: from.lsn()?,
                previous: from.lsn()?,
            })
        })?,
        extent: from.option(|from| {
            Some(Extent {
                last_record: from.lsn()?,
                end: from.lsn()?,
            })
        })?,
        broken: from.option(|from| {
            Some(Broken {
                at: from.lsn()?,
                unwritten: from.flag()?,
                why: from.string()?,
            })
        })?,
        rest: from.option(Reader::rest)?,
        overwrites: from.flag()?,
        begun: from.option(Reader::begun)?,
        ends: from.ends()?,
        ended: from.xids()?,
        ended_within: from.xids()?,
        events: from.list(Reader::event)?,
        notable: from.list(Reader::notable)?,
        parts: from.list(Reader::part)?,
        relations: from.list(|from| {
            Some(Activity {
                file: from.file()?,
                rows: from.rows()?,
                references: from.number()?,
            })
        })?,
        catalog: from.list(|from| Some((from.lsn()?, from.catalog_row()?)))?,
        minutes: from.list(|from| Some((from.signed()?, from.small()?)))?,
        left_out: LeftOut {
            parts: from.number()?,
            large_parts: from.number()?,
            relations: from.number()?,
            catalog: from.number()?,
            events: from.number()?,
            notable: from.number()?,
        },
        troubles: from.list(Reader::string)?,
    };
    from.bytes.is_empty().then_some(index)
}

/// The bytes of all ends of a segment that begins at `start`.
pub fn write_ends(start: Lsn, ends: &[Event]) -> Vec<u8> {
    let mut to = Writer::new(start);
    to.list(ends, Writer::event);
    to.out
}

/// The ends that these bytes tell; `None` where they make no sense.
pub fn read_ends(start: Lsn, bytes: &[u8]) -> Option<Vec<Event>> {
    let mut from = Reader::new(bytes);
    from.lsn = start.bytes();
    let ends = from.list(Reader::event)?;
    from.bytes.is_empty().then_some(ends)
}

/// The bytes of the blocks touched.
pub fn write_touched(touched: &Touched) -> Vec<u8> {
    let mut to = Writer::new(Lsn::ZERO);
    to.out.push(touched.shift);
    to.list(&touched.files, |to, file| {
        to.file(&file.file);
        to.out.push(file.fork.number());
        // In groups: where the run begins after the end of the one before, and how many groups follow the first.
        let mut next = 0;
        to.list(&file.runs, |to, (first, last)| {
            let (first, last) = (first >> touched.shift, last >> touched.shift);
            to.number(u64::from(first) - next);
            to.number(u64::from(last - first));
            next = u64::from(last) + 1;
        });
    });
    to.out
}

/// The blocks that these bytes tell; `None` where they make no sense.
pub fn read_touched(bytes: &[u8]) -> Option<Touched> {
    let mut from = Reader::new(bytes);
    let shift = from.byte().filter(|shift| *shift < 32)?;
    let group = (1u32 << shift) - 1;
    let files = from.list(|from| {
        let (file, fork) = (from.file()?, RelFork::new(from.byte()?.into())?);
        let mut next = 0u32;
        let runs = from.list(|from| {
            let first = next.checked_add(from.small()?)?;
            let last = first.checked_add(from.small()?)?;
            next = last.checked_add(1)?;
            let at = |block: u32| block.checked_shl(shift.into()).filter(|at| at >> shift == block);
            Some((at(first)?, at(last)? | group))
        })?;
        Some(TouchedFile { file, fork, runs })
    })?;
    from.bytes.is_empty().then_some(Touched { shift, files })
}

impl Writer {
    const fn new(start: Lsn) -> Self {
        Self {
            out: Vec::new(),
            lsn: start.bytes(),
            micros: 0,
        }
    }

    fn number(&mut self, value: u64) {
        varint::number(&mut self.out, value);
    }

    fn signed(&mut self, value: i64) {
        varint::signed(&mut self.out, value);
    }

    fn text(&mut self, text: &[u8]) {
        varint::text(&mut self.out, text);
    }

    fn flag(&mut self, flag: bool) {
        self.out.push(flag.into());
    }

    fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for item in items {
            write(self, item);
        }
    }

    fn lsn(&mut self, lsn: Lsn) {
        self.signed(lsn.bytes().wrapping_sub(self.lsn) as i64);
        self.lsn = lsn.bytes();
    }

    fn time(&mut self, at: DateTime<Utc>) {
        let micros = at.timestamp_micros();
        self.signed(micros.wrapping_sub(self.micros));
        self.micros = micros;
    }

    fn xid(&mut self, xid: Xid) {
        self.number(xid.number().into());
    }

    fn file(&mut self, file: &RelFile) {
        for number in [file.tablespace, file.database, file.number] {
            self.number(number.into());
        }
    }

    fn rows(&mut self, rows: &Rows) {
        for count in [rows.inserts, rows.updates, rows.deletes] {
            self.number(count);
        }
    }

    fn rest(&mut self, rest: &Rest) {
        self.number(rest.left.into());
        self.number(rest.got.into());
        self.text(&rest.bytes);
        self.number(rest.crc.into());
        self.lsn(rest.end);
    }

    fn begun(&mut self, begun: &Begun) {
        self.lsn(begun.start);
        self.number(begun.total.into());
        self.number(begun.got.into());
        self.text(&begun.bytes);
        self.number(begun.crc.into());
    }

    fn commit(&mut self, commit: &CommitPoint) {
        self.lsn(commit.lsn);
        self.lsn(commit.end_lsn);
        self.xid(commit.xid);
        self.time(commit.at);
    }

    fn ends(&mut self, ends: &Ends) {
        self.number(ends.commits);
        self.number(ends.aborts);
        self.option(ends.first_commit.as_ref(), Self::commit);
        self.option(ends.last_commit.as_ref(), Self::commit);
        for at in [ends.latest_commit, ends.latest_end, ends.earliest_end, ends.latest] {
            self.option(at.as_ref(), |to, at| to.time(*at));
        }
    }

    fn xids(&mut self, xids: &XidSet) {
        let mut next = 0;
        self.list(xids.runs(), |to, (first, last)| {
            to.number(u64::from(*first) - next);
            to.number(u64::from(last - first));
            next = u64::from(*last) + 1;
        });
    }

    fn event(&mut self, event: &Event) {
        self.lsn(event.lsn);
        self.number(event.end_lsn.bytes().wrapping_sub(event.lsn.bytes()));
        self.number(event.lsn.bytes().wrapping_sub(event.previous.bytes()));
        self.kind(&event.kind);
    }

    fn notable(&mut self, notable: &Notable) {
        self.event(&notable.event);
        self.list(&notable.subtransactions, |to, xid| to.xid(*xid));
        self.list(&notable.dropped, Self::file);
        self.list(&notable.changed, |to, (database, oid)| {
            to.number((*database).into());
            to.number((*oid).into());
        });
        self.number(notable.left_out);
    }

    fn part(&mut self, part: &Part) {
        self.xid(part.xid);
        self.lsn(part.first);
        self.number(part.wal_bytes);
        self.list(&part.relations, |to, (file, rows)| {
            to.file(file);
            to.rows(rows);
        });
        self.list(&part.created, Self::file);
        self.list(&part.emptied, Self::file);
        self.list(&part.truncated, |to, (database, oid)| {
            to.number((*database).into());
            to.number((*oid).into());
        });
    }
}

impl<'a> Reader<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            lsn: 0,
            micros: 0,
        }
    }

    fn number(&mut self) -> Option<u64> {
        varint::read_number(&mut self.bytes)
    }

    fn signed(&mut self) -> Option<i64> {
        varint::read_signed(&mut self.bytes)
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        self.number()?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        varint::take(&mut self.bytes, 1).map(|byte| byte[0])
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        varint::read_text(&mut self.bytes).map(<[u8]>::to_vec)
    }

    fn string(&mut self) -> Option<String> {
        String::from_utf8(self.text()?).ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.flag()? {
            true => read(self).map(Some),
            false => Some(None),
        }
    }

    fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::try_from(self.number()?).ok()?;
        // Every item takes a byte at least: a count beyond that is damage, not a reason to reserve memory.
        if count > self.bytes.len() {
            return None;
        }
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(read(self)?);
        }
        Some(items)
    }

    fn lsn(&mut self) -> Option<Lsn> {
        self.lsn = self.lsn.wrapping_add(self.signed()? as u64);
        Some(Lsn::new(self.lsn))
    }

    fn time(&mut self) -> Option<DateTime<Utc>> {
        self.micros = self.micros.wrapping_add(self.signed()?);
        DateTime::from_timestamp_micros(self.micros)
    }

    fn xid(&mut self) -> Option<Xid> {
        self.small().map(Xid::new)
    }

    fn file(&mut self) -> Option<RelFile> {
        Some(RelFile {
            tablespace: self.small()?,
            database: self.small()?,
            number: self.small()?,
        })
    }

    fn rows(&mut self) -> Option<Rows> {
        Some(Rows {
            inserts: self.number()?,
            updates: self.number()?,
            deletes: self.number()?,
        })
    }

    fn rest(&mut self) -> Option<Rest> {
        Some(Rest {
            left: self.small()?,
            got: self.small()?,
            bytes: self.text()?,
            crc: self.small()?,
            end: self.lsn()?,
        })
        .filter(|rest| rest.got <= rest.left && rest.bytes.len() == (rest.got as usize).min(Rest::KEPT))
    }

    fn begun(&mut self) -> Option<Begun> {
        Some(Begun {
            start: self.lsn()?,
            total: self.small()?,
            got: self.small()?,
            bytes: self.text()?,
            crc: self.small()?,
        })
        .filter(|begun| begun.got < begun.total && begun.bytes.len() == (begun.got as usize).min(Rest::KEPT))
    }

    fn commit(&mut self) -> Option<CommitPoint> {
        Some(CommitPoint {
            lsn: self.lsn()?,
            end_lsn: self.lsn()?,
            xid: self.xid()?,
            at: self.time()?,
        })
    }

    fn ends(&mut self) -> Option<Ends> {
        Some(Ends {
            commits: self.number()?,
            aborts: self.number()?,
            first_commit: self.option(Self::commit)?,
            last_commit: self.option(Self::commit)?,
            latest_commit: self.option(Self::time)?,
            latest_end: self.option(Self::time)?,
            earliest_end: self.option(Self::time)?,
            latest: self.option(Self::time)?,
        })
    }

    fn xids(&mut self) -> Option<XidSet> {
        let mut next = 0u64;
        let runs = self.list(|from| {
            let first = next.checked_add(from.number()?)?;
            let last = first.checked_add(from.number()?)?;
            next = last.checked_add(1)?;
            Some((first.try_into().ok()?, last.try_into().ok()?))
        })?;
        XidSet::of_runs(runs)
    }

    fn event(&mut self) -> Option<Event> {
        let lsn = self.lsn()?;
        Some(Event {
            lsn,
            end_lsn: Lsn::new(lsn.bytes().wrapping_add(self.number()?)),
            previous: Lsn::new(lsn.bytes().wrapping_sub(self.number()?)),
            kind: self.kind()?,
        })
    }

    fn notable(&mut self) -> Option<Notable> {
        Some(Notable {
            event: self.event()?,
            subtransactions: self.list(Self::xid)?,
            dropped: self.list(Self::file)?,
            changed: self.list(|from| Some((from.small()?, from.small()?)))?,
            left_out: self.number()?,
        })
    }

    fn part(&mut self) -> Option<Part> {
        Some(Part {
            xid: self.xid()?,
            first: self.lsn()?,
            wal_bytes: self.number()?,
            relations: self.list(|from| Some((from.file()?, from.rows()?)))?,
            created: self.list(Self::file)?,
            emptied: self.list(Self::file)?,
            truncated: self.list(|from| Some((from.small()?, from.small()?)))?,
        })
    }
}

impl Writer {
    fn ended(&mut self, end: &Ended) {
        self.xid(end.xid);
        self.time(end.at);
        self.option(end.database.as_ref(), |to, database| to.number((*database).into()));
        self.number(end.subtransactions as u64);
        self.flag(end.prepared);
    }
}

impl Reader<'_> {
    fn ended(&mut self) -> Option<Ended> {
        Some(Ended {
            xid: self.xid()?,
            at: self.time()?,
            database: self.option(Self::small)?,
            subtransactions: self.small()?,
            prepared: self.flag()?,
        })
    }
}
