//! What indexing costs a push, and how fast WAL is decoded: `tests/bench/run.sh index` makes the segments and runs this.
//!
//! Both kinds of push take turns over the same segments in one run, so that other load on the machine hits both. CPU
//! time of this process counts: start-up, which both have, is left out.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::DateTime;
use pgp_pitr::env::Env;
use pgp_pitr::pg::{FirstPage, WalFileName, check_first_page};
use pgp_pitr::repo::{self, Repository, WalContent, WalHead, WalSource};
use pgp_pitr::store::{self, S3Settings};
use pgp_pitr::wal::{Record, Step, WalDecoder, WalLayout};
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 15;

fn main() {
    let paths: Vec<String> = std::env::args()
        .skip(1)
        .filter(|path| !path.starts_with("--"))
        .collect();
    if paths.is_empty() {
        println!("usage: tests/bench/run.sh index");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    println!(
        "{:<26} {:>9} {:>9} {:>7} {:>9} {:>8}",
        "segment", "plain ms", "index ms", "ratio", "index B", "GB/s"
    );
    for path in paths {
        runtime.block_on(measure(Path::new(&path)));
    }
}

async fn measure(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let file: WalFileName = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let first = check_first_page(file, &bytes, bytes.len() as u64).unwrap();
    let layout = WalLayout::of(&first).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap().parse().unwrap();
    let store = store::open(&url, &S3Settings::default(), &Arc::new(Env::of_process())).unwrap();
    let (_, repository) = Repository::init(&store).await.unwrap();
    let (mut plain, mut indexed, mut sizes) = (Vec::new(), Vec::new(), [0, 0]);
    for _ in 0..ROUNDS {
        for (layout, times, size) in [(None, &mut plain, 0), (Some(layout), &mut indexed, 1)] {
            let source = source(path, file, &first, bytes.len(), layout);
            let object = store.file(&repo::names::wal_file(source.head.system, file)).unwrap();
            let before = cpu();
            repo::push(&repository, &source, 1, None).await.unwrap();
            times.push(cpu() - before);
            sizes[size] = std::fs::metadata(&object).unwrap().len();
            std::fs::remove_file(object).unwrap();
        }
    }
    let (plain, indexed) = (median(&mut plain), median(&mut indexed));
    println!(
        "{file:<26} {:>9.1} {:>9.1} {:>7.3} {:>9} {:>8.2}",
        plain.as_secs_f64() * 1e3,
        indexed.as_secs_f64() * 1e3,
        indexed.as_secs_f64() / plain.as_secs_f64(),
        sizes[1] - sizes[0],
        decode(&bytes, &first, layout)
    );
}

fn source(path: &Path, file: WalFileName, first: &FirstPage, len: usize, layout: Option<WalLayout>) -> WalSource {
    WalSource {
        head: WalHead {
            file,
            system: first.header.system,
            segment_size: first.header.segment_size.bytes() as u32,
            page_magic: first.header.page.magic,
            len: len as u64,
            modified_at: DateTime::UNIX_EPOCH,
            layout,
        },
        content: WalContent::File(path.to_path_buf()),
    }
}

/// Gigabytes a second on one core: every record found, its checksum verified, its blocks read.
fn decode(bytes: &[u8], first: &FirstPage, layout: WalLayout) -> f64 {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            let mut decoder = WalDecoder::new(first.header.page.address, layout);
            let mut blocks = 0;
            for piece in bytes.chunks(256 << 10) {
                decoder.push(decoder.wanted(), piece).unwrap();
                while let Step::Record(raw) = decoder.step() {
                    Record::references(&raw, |_| blocks += 1).unwrap();
                }
            }
            std::hint::black_box(blocks);
            begun.elapsed()
        })
        .collect();
    bytes.len() as f64 / 1e9 / median(&mut times).as_secs_f64()
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
