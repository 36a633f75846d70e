//! What can happen to WAL: bits flip, sectors go, files are cut, pages and segments come to lie where they don't belong.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgp_pitr::pg::Lsn;
use pgp_pitr::wal::{Step, WalDecoder};

use super::wal::{PAGE, Wal, Window};
use crate::support::chance::Chance;

/// `SizeOfXLogShortPHD`, `SizeOfXLogRecord`, and where its CRC lies.
const PAGE_HEADER: usize = 24;
const RECORD_HEADER: usize = 24;
const CRC: usize = 20;

/// What was done, in words, and what it excuses.
#[derive(Debug, Clone, Default)]
pub struct Damage {
    what: String,
    /// Whether WAL from elsewhere was put in.
    strange: bool,
    /// Records that were changed and given a checksum that is right.
    forged: Vec<Lsn>,
    /// How many bytes are left of the window.
    left: usize,
}

impl Damage {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// A damaged copy of a window. `strange` is other WAL.
    pub fn any(window: &Window, wal: &Wal, strange: &Wal, chance: &Chance) -> (Window, Self) {
        let mut bytes = window.bytes.clone();
        let mut damage = Self::none();
        for _ in 0..1 + chance.below(2) {
            damage.more(&mut bytes, window, [wal, strange], chance);
        }
        damage.left = bytes.len();
        let start = window.start;
        (Window { start, bytes }, damage)
    }

    fn more(&mut self, bytes: &mut Vec<u8>, window: &Window, [wal, strange]: [&Wal; 2], chance: &Chance) {
        let pages = bytes.len() / PAGE;
        if pages < 2 {
            return;
        }
        let page = |chance: &Chance| chance.below(pages) * PAGE;
        let (a, b) = (page(chance), page(chance));
        let what = match chance.below(9) {
            0..2 => {
                change(bytes, chance);
                "changed bytes".to_owned()
            }
            2 => {
                bytes.truncate(chance.below(bytes.len()));
                format!("cut to {}", bytes.len())
            }
            3 => {
                // In whole sectors, as a disk loses them.
                let from = chance.below(bytes.len() / 512) * 512;
                let to = bytes.len().min(from + 512 * (1 + chance.below(40)));
                bytes[from..to].fill(0);
                format!("zeros at {from}..{to}")
            }
            4 => {
                let other = bytes[a..a + PAGE].to_vec();
                bytes.copy_within(b..b + PAGE, a);
                bytes[b..b + PAGE].copy_from_slice(&other);
                format!("pages at {a} and {b} swapped")
            }
            5 => {
                // The header is kept: the page says that it belongs there.
                let from = chance.below(strange.bytes.len() / PAGE) * PAGE + PAGE_HEADER;
                let length = PAGE - PAGE_HEADER;
                bytes[a + PAGE_HEADER..a + PAGE].copy_from_slice(&strange.bytes[from..from + length]);
                self.strange = true;
                format!("strange content in the page at {a}")
            }
            6 => {
                let from = chance.below(strange.bytes.len() / PAGE) * PAGE;
                let length = (bytes.len() - a).min(strange.bytes.len() - from);
                bytes[a..a + length].copy_from_slice(&strange.bytes[from..from + length]);
                self.strange = true;
                format!("strange pages from {a} on")
            }
            _ => return self.forge(bytes, window, wal, chance),
        };
        self.what.push_str(&what);
        self.what.push_str("; ");
    }

    /// Changes a record and makes its checksum right: what reads its meaning has to see for itself.
    fn forge(&mut self, bytes: &mut [u8], window: &Window, wal: &Wal, chance: &Chance) {
        let end = window.start.plus(bytes.len() as u64);
        let from = wal.records.partition_point(|(start, _)| *start < window.start);
        let to = wal.records.partition_point(|(start, _)| *start < end);
        for _ in 0..chance.below(4) * usize::from(from < to) {
            let (start, length) = wal.records[from + chance.below(to - from)];
            let (at, length) = (start.since(window.start) as usize, length as usize);
            if at % PAGE + length > PAGE || at + length > bytes.len() || length <= RECORD_HEADER {
                continue;
            }
            let record = &mut bytes[at..at + length];
            match chance.below(4) {
                // The kind of record, of the same manager.
                0 => record[16] = chance.below(256) as u8,
                _ => change(&mut record[RECORD_HEADER..], chance),
            }
            let checked = [&record[RECORD_HEADER..], &record[..CRC]].concat();
            record[CRC..RECORD_HEADER].copy_from_slice(&crc_fast::crc32_iscsi(&checked).to_le_bytes());
            self.forged.push(start);
            self.what.push_str(&format!("record at {start} forged; "));
        }
    }

    /// Whether nothing can be said of what is told: WAL from elsewhere came before all records of the window, so that
    /// none tells that it does not follow. A server that begins to read there takes it, too.
    pub fn begins_elsewhere(&self, window: &Window, wal: &Wal) -> bool {
        let mut decoder = WalDecoder::new(window.start, wal.layout);
        decoder.push(window.start, &window.bytes).unwrap();
        self.strange && matches!(decoder.step(), Step::Record(raw) if !wal.has(&raw) && !self.may_tell(raw.start()))
    }

    /// Whether a record that begins there may be another than was written.
    pub fn may_tell(&self, at: Lsn) -> bool {
        self.forged.contains(&at)
    }

    /// Whether a segment of this size was cut, so that its index is about less than a segment.
    pub fn cuts_a_segment(&self, size: u64) -> bool {
        !(self.left as u64).is_multiple_of(size)
    }

    /// Runs a check. If it fails, the window is kept in a file.
    pub fn told_by(&self, window: &Window, check: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(check)) {
            let path = std::env::temp_dir().join(format!("pgp-fuzz-{}", std::process::id()));
            let _ = fs::write(&path, &window.bytes);
            eprintln!("{} from {}, kept in {}", self.what, window.start, path.display());
            resume_unwind(panic);
        }
    }
}

/// Flips bits, or puts bytes that often matter somewhere, or random ones.
pub fn change(bytes: &mut [u8], chance: &Chance) {
    if bytes.is_empty() {
        return;
    }
    for _ in 0..1 + chance.below(8) {
        let at = chance.below(bytes.len());
        match chance.below(4) {
            0..2 => bytes[at] ^= 1 << chance.below(8),
            2 => bytes[at] = [0, 1, 127, 128, 254, 255][chance.below(6)],
            _ => {
                let to = bytes.len().min(at + chance.below(9));
                bytes[at..to].fill_with(|| chance.below(256) as u8);
            }
        }
    }
}
