//! The blocks that a segment's records refer to: what an incremental backup must read again.
//!
//! What the WAL does not log is not in it: the free space map, hint bits without `wal_log_hints` or checksums, and
//! files that are copied whole (`CREATE DATABASE … STRATEGY file_copy`, an event of its own).

use rustc_hash::FxHashMap;

use super::super::record::{RelFile, RelFork};

/// The blocks of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TouchedFile {
    /// The relation.
    pub file: RelFile,
    /// Which of its files.
    pub fork: RelFork,
    /// First and last block of each run, in order.
    pub runs: Vec<(u32, u32)>,
}

/// Blocks by file, in order of files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Blocks are told in groups of two to this power: a group is in the set if any block of it is.
    pub shift: u8,
    /// The files.
    pub files: Vec<TouchedFile>,
}

impl Touched {
    /// Whether a block may have been touched.
    pub fn contains(&self, file: &RelFile, fork: RelFork, block: u32) -> bool {
        let Ok(at) = self
            .files
            .binary_search_by_key(&(*file, fork), |touched| (touched.file, touched.fork))
        else {
            return false;
        };
        let runs = &self.files[at].runs;
        let after = runs.partition_point(|(first, _)| *first <= block);
        after > 0 && block <= runs[after - 1].1
    }

    /// The same in groups twice as large.
    #[must_use]
    pub fn coarser(&self) -> Self {
        let shift = self.shift + 1;
        let files = self.files.iter().map(|touched| {
            let mut runs: Vec<(u32, u32)> = Vec::with_capacity(touched.runs.len());
            for (first, last) in &touched.runs {
                let (first, last) = (first >> shift << shift, last | ((1 << shift) - 1));
                match runs.last_mut() {
                    Some(run) if first <= run.1.saturating_add(1) => run.1 = last.max(run.1),
                    _ => runs.push((first, last)),
                }
            }
            TouchedFile {
                file: touched.file,
                fork: touched.fork,
                runs,
            }
        });
        Self {
            shift,
            files: files.collect(),
        }
    }
}

/// How many references are collected before those to the same block are made one.
const PENDING: usize = 1 << 19;
/// References to a block that was referred to shortly before are passed over; this many are remembered.
const RECENT: usize = 1 << 12;
const RECENT_FILES: usize = 64;

/// Collects references to blocks, in bounded memory.
#[derive(Debug, Clone)]
pub(super) struct Collector {
    files: Vec<(RelFile, RelFork)>,
    numbers: FxHashMap<(RelFile, RelFork), u32>,
    /// Numbers of files that were asked for shortly before.
    recent_files: [u32; RECENT_FILES],
    recent: Vec<u64>,
    blocks: Vec<u64>,
    shift: u8,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            numbers: FxHashMap::default(),
            recent_files: [0; RECENT_FILES],
            recent: vec![u64::MAX; RECENT],
            blocks: Vec::new(),
            shift: 0,
        }
    }
}

impl Collector {
    /// A file's number among those seen.
    pub(super) fn number(&mut self, file: RelFile, fork: RelFork) -> u32 {
        let slot = (file.number as usize ^ usize::from(fork.number()) << 3) % RECENT_FILES;
        let remembered = self.recent_files[slot];
        if self.files.get(remembered as usize) == Some(&(file, fork)) {
            return remembered;
        }
        let next = self.files.len() as u32;
        let number = *self.numbers.entry((file, fork)).or_insert(next);
        if number == next {
            self.files.push((file, fork));
        }
        self.recent_files[slot] = number;
        number
    }

    /// The file of this number.
    pub(super) fn file(&self, number: u32) -> (RelFile, RelFork) {
        self.files[number as usize]
    }

    pub(super) fn touch(&mut self, file: u32, block: u32) {
        let key = u64::from(file) << 32 | u64::from(block >> self.shift << self.shift);
        let slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52) as usize;
        if self.recent[slot] == key {
            return;
        }
        self.recent[slot] = key;
        self.blocks.push(key);
        if self.blocks.len() >= PENDING {
            self.settle();
            while self.blocks.len() > PENDING / 2 && self.shift < 31 {
                self.coarsen();
            }
        }
    }

    fn settle(&mut self) {
        self.blocks.sort_unstable();
        self.blocks.dedup();
    }

    fn coarsen(&mut self) {
        self.shift += 1;
        let mask = !((1u64 << self.shift) - 1);
        self.blocks.iter_mut().for_each(|key| *key &= mask);
        self.blocks.dedup();
        self.recent.fill(u64::MAX);
    }

    pub(super) fn finish(mut self) -> Touched {
        self.settle();
        let group = (1u32 << self.shift) - 1;
        let mut files: Vec<TouchedFile> = Vec::new();
        let mut current = u32::MAX;
        for key in self.blocks {
            let (number, block) = ((key >> 32) as u32, key as u32);
            if number != current || files.is_empty() {
                current = number;
                let (file, fork) = self.files[number as usize];
                files.push(TouchedFile {
                    file,
                    fork,
                    runs: Vec::new(),
                });
            }
            let Some(touched) = files.last_mut() else { continue };
            match touched.runs.last_mut() {
                Some(run) if block <= run.1.saturating_add(1) => run.1 = block | group,
                _ => touched.runs.push((block, block | group)),
            }
        }
        files.sort_by_key(|touched| (touched.file, touched.fork));
        Touched {
            shift: self.shift,
            files,
        }
    }
}
