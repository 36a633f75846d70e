//! The WAL of a real server, and what it tells undamaged.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};

use pgp_pitr::pg::{Lsn, SegmentName, Timeline, WalFileName, check_first_page};
use pgp_pitr::wal::{Event, EventKind, RawRecord, Step, WalDecoder, WalLayout};

use crate::support::chance::Chance;
use crate::support::cluster::Cluster;

/// `XLOG_BLCKSZ`
pub const PAGE: usize = 8192;

/// All of it, one segment after the other, as far as something was written.
pub struct Wal {
    pub layout: WalLayout,
    pub timeline: Timeline,
    pub start: Lsn,
    pub bytes: Vec<u8>,
    /// Where each record begins, in order, and how long it is.
    pub records: Vec<(Lsn, u32)>,
    /// Where each begins, where it ends, and a hash of its bytes.
    known: HashMap<Lsn, (Lsn, u64)>,
    events: HashMap<Lsn, Event>,
}

/// Some of it.
pub struct Window {
    pub start: Lsn,
    pub bytes: Vec<u8>,
}

impl Wal {
    /// That of a cluster which is stopped and has kept all of it.
    pub fn read(cluster: &Cluster) -> Self {
        let folder = cluster.data_dir().join("pg_wal");
        let mut names: Vec<SegmentName> = fs::read_dir(&folder)
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        let mut bytes: Vec<u8> = Vec::new();
        for name in &names {
            bytes.extend(fs::read(folder.join(name.to_string())).unwrap());
        }
        let length = bytes.len() as u64 / names.len() as u64;
        let first = check_first_page(WalFileName::Segment(names[0]), &bytes[..length as usize], length).unwrap();
        let mut wal = Self {
            layout: WalLayout::of(&first).unwrap(),
            timeline: names[0].timeline(),
            start: first.header.page.address,
            bytes,
            records: Vec::new(),
            known: HashMap::new(),
            events: HashMap::new(),
        };
        let end = wal.learn();
        // Segments that nothing was written to yet are of no use here.
        let used = (end.since(wal.start)).next_multiple_of(length);
        wal.bytes.truncate(used as usize);
        wal
    }

    fn learn(&mut self) -> Lsn {
        let mut decoder = WalDecoder::new(self.start, self.layout);
        let mut end = self.start;
        for piece in self.bytes.chunks(1 << 18) {
            decoder.push(decoder.wanted(), piece).unwrap();
            while let Step::Record(raw) = decoder.step() {
                end = raw.end();
                self.records.push((raw.start(), raw.length()));
                self.known.insert(raw.start(), (raw.end(), hash(&raw)));
                if let Some(kind) = EventKind::of(&raw).unwrap() {
                    let event = Event {
                        lsn: raw.start(),
                        end_lsn: raw.end(),
                        previous: raw.previous(),
                        kind,
                    };
                    self.events.insert(event.lsn, event);
                }
            }
        }
        assert!(self.records.len() > 10_000, "{} records", self.records.len());
        end
    }

    /// Whether this very record was written.
    pub fn has(&self, raw: &RawRecord<'_>) -> bool {
        self.known.get(&raw.start()) == Some(&(raw.end(), hash(raw)))
    }

    /// Whether this very event was written.
    pub fn has_event(&self, event: &Event) -> bool {
        self.events.get(&event.lsn) == Some(event)
    }

    /// So many pages, from any on.
    pub fn window(&self, pages: usize, chance: &Chance) -> Window {
        let all = self.bytes.len() / PAGE;
        self.cut(chance.below(all - pages) * PAGE, pages * PAGE)
    }

    /// So many segments, or all there are, from any on.
    pub fn segments(&self, count: usize, chance: &Chance) -> Window {
        let size = self.layout.segment_size().bytes() as usize;
        let all = self.bytes.len() / size;
        let count = count.min(all);
        self.cut(chance.below(all - count + 1) * size, count * size)
    }

    fn cut(&self, from: usize, length: usize) -> Window {
        Window {
            start: self.start.plus(from as u64),
            bytes: self.bytes[from..from + length].to_vec(),
        }
    }
}

fn hash(raw: &RawRecord<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    raw.bytes().hash(&mut hasher);
    hasher.finish()
}
