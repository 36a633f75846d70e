//! The same bytes give the same steps, however they are cut, and damage never yields a record.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::forge::{Forge, Written, layout, main_data};
use super::*;
use crate::pg::MajorVersion;
use crate::wal::{Record, StorageChange, Transaction, XlogChange};

type End = (Lsn, EndReason);

/// All records that a decoder finds, and where it found no more: `None` where it would have taken more bytes.
fn drain(decoder: &mut WalDecoder, records: &mut Vec<Written>) -> Option<End> {
    loop {
        match decoder.step() {
            Step::NeedMore => return None,
            Step::EndOfWal { at, why } => return Some((at, why)),
            Step::Record(record) => records.push(Written {
                start: record.start(),
                end: record.end(),
                bytes: record.bytes().to_vec(),
            }),
        }
    }
}

fn decode(start: Lsn, wal: &[u8]) -> (Vec<Written>, Option<End>) {
    let mut decoder = WalDecoder::new(start, layout(15));
    decoder.push(start, wal).unwrap();
    let mut records = Vec::new();
    let end = drain(&mut decoder, &mut records);
    (records, end)
}

/// WAL with records of these lengths, that begins some pages before a segment does.
fn forged(pages: u64, lengths: &[usize]) -> Forge {
    let mut forge = Forge::before_a_segment(layout(15), pages);
    for (number, &length) in lengths.iter().enumerate() {
        let body: Vec<u8> = (0..length).map(|i| (i * 31 + number) as u8).collect();
        forge.record(number as u8 % 22, 0x20, number as u32, &body);
    }
    forge
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let length = prop_oneof![6 => 0_usize..300, 2 => 900_usize..1100, 1 => 2000_usize..5000];
    vec(length, 1..24)
}

proptest! {
    #[test]
    fn what_was_written_is_found(pages in 0_u64..6, lengths in lengths()) {
        let forge = forged(pages, &lengths);
        let (records, end) = decode(forge.start, &forge.wal);
        prop_assert_eq!(records, forge.written);
        prop_assert_eq!(end, None);
    }

    #[test]
    fn pieces_do_not_change_the_steps(pages in 0_u64..4, lengths in lengths(), cuts in vec(any::<Index>(), 0..40),
                                      flip: Option<(Index, u8)>) {
        let Forge { start, mut wal, .. } = forged(pages, &lengths);
        if let Some((at, bit)) = flip {
            *at.get_mut(&mut wal) ^= 1 << (bit % 8);
        }
        let whole = decode(start, &wal);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wal.len())).collect();
        cuts.extend([0, wal.len()]);
        cuts.sort_unstable();
        let mut decoder = WalDecoder::new(start, layout(15));
        let (mut records, mut end) = (Vec::new(), None);
        for piece in cuts.windows(2) {
            decoder.push(start.plus(piece[0] as u64), &wal[piece[0]..piece[1]]).unwrap();
            end = drain(&mut decoder, &mut records);
        }
        prop_assert_eq!((records, end), whole);
    }

    #[test]
    fn a_flipped_bit_never_yields_a_record_that_was_not_written(
        pages in 0_u64..4, lengths in lengths(), at: Index, bit in 0_u8..8, from: Index,
    ) {
        let mut forge = forged(pages, &lengths);
        *at.get_mut(&mut forge.wal) ^= 1 << bit;
        // From any page on, so that tails of records begin the WAL too.
        let from = from.index(forge.wal.len()) / 1024 * 1024;
        let (records, _) = decode(forge.start.plus(from as u64), &forge.wal[from..]);
        for record in records {
            prop_assert!(forge.written.contains(&record), "{record:?}");
        }
    }

    #[test]
    fn reading_begins_at_any_page_with_the_first_record_that_begins_there(pages in 0_u64..4, lengths in lengths()) {
        let forge = forged(pages, &lengths);
        for from in (0..forge.wal.len()).step_by(1024) {
            let start = forge.start.plus(from as u64);
            let (records, end) = decode(start, &forge.wal[from..]);
            let expected: Vec<_> = forge.written.iter().filter(|record| record.start >= start).cloned().collect();
            prop_assert_eq!(records, expected);
            prop_assert_eq!(end, None);
        }
    }

    #[test]
    fn reading_begins_at_any_record(lengths in lengths(), which: Index) {
        let forge = forged(2, &lengths);
        let start = which.get(&forge.written).start;
        let (records, _) = decode(start, &forge.wal[start.since(forge.start) as usize..]);
        let expected: Vec<_> = forge.written.iter().filter(|record| record.start >= start).cloned().collect();
        prop_assert_eq!(records, expected);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(start: u64, mut bytes in vec(any::<u8>(), 0..4000), header: bool) {
        let start = Lsn::new(start);
        if header {
            let forge = forged(1, &[0]);
            bytes.splice(..bytes.len().min(24), forge.wal[..24].iter().copied());
            decode(forge.start, &bytes);
        }
        decode(start, &bytes);
    }

    #[test]
    fn no_record_makes_its_meaning_panic(
        manager in 0_u8..22, info: u8, body in vec(prop_oneof![Just(0_u8), Just(1), Just(255), any::<u8>()], 0..200),
        main: bool, major in 13_u16..=18,
    ) {
        let layout = layout(major);
        let mut forge = Forge::before_a_segment(layout, 1);
        forge.record(manager % 12, info, 9, &if main { main_data(&body) } else { body });
        let mut decoder = WalDecoder::new(forge.start, layout);
        decoder.push(forge.start, &forge.wal).unwrap();
        let Step::Record(raw) = decoder.step() else { panic!("a record was written") };
        if let Ok(record) = Record::parse(&raw) {
            record.blocks().for_each(drop);
            let _ = (Transaction::parse(&record), XlogChange::parse(&record), StorageChange::parse(&record));
        }
    }
}

#[test]
fn bytes_that_do_not_follow_are_refused() {
    let forge = forged(2, &[10, 10]);
    let mut decoder = WalDecoder::new(forge.start, layout(15));
    decoder.push(forge.start, &forge.wal[..100]).unwrap();
    for wrong in [0, 99, 101] {
        let found = forge.start.plus(wrong);
        let expected = forge.start.plus(100);
        assert_eq!(decoder.push(found, &[0]), Err(NotContiguous { expected, found }));
    }
    decoder.push(forge.start.plus(100), &forge.wal[100..]).unwrap();
    let mut records = Vec::new();
    drain(&mut decoder, &mut records);
    assert_eq!(records, forge.written);
}

#[test]
fn the_rest_of_a_segment_behind_a_switch_is_passed_over() {
    let mut forge = forged(5, &[100]);
    forge.switch();
    // What lies there means nothing, not even where a page should begin.
    let padding = forge.written[1].start.since(forge.start) as usize + 40;
    forge.wal[padding..].fill(0xEE);
    forge.record(3, 0, 0, &[1, 2, 3]);
    assert_eq!(decode(forge.start, &forge.wal), (forge.written, None));
}

#[test]
fn a_switch_that_ends_its_segment_ends_there() {
    // 25 bytes short of a segment's end, so that the switch fills it.
    let mut forge = forged(1, &[1024 - 24 - 24 - 24]);
    forge.switch();
    let end = forge.written[1].end;
    assert_eq!(layout(15).segment_size().offset(end), 0);
    assert_eq!(end.since(forge.written[1].start), 24);
    forge.record(3, 0, 0, &[1, 2, 3]);
    assert_eq!(decode(forge.start, &forge.wal), (forge.written, None));
}

#[test]
fn a_record_that_a_crash_left_unfinished_is_passed_over() {
    for border in [1, 2, 3] {
        let mut forge = forged(2, &[100, 4000]);
        forge.crash(forge.start.plus(border * 1024));
        forge.record(10, 0, 5, &[7; 2000]);
        assert_eq!(decode(forge.start, &forge.wal), (forge.written.clone(), None));
        // Where reading begins after its beginning, too.
        let from = 1024 * (border as usize).min(2);
        let start = forge.start.plus(from as u64);
        assert_eq!(decode(start, &forge.wal[from..]), (forge.written.split_off(1), None));
    }
}

#[test]
fn a_record_that_goes_on_otherwise_than_it_should_is_no_record() {
    let forge = forged(3, &[100, 3000]);
    let lost = forge.written[1].start;
    let page = forge.start.plus(1024);
    let broken = |change: &dyn Fn(&mut [u8])| {
        let mut wal = forge.wal.clone();
        change(&mut wal[1024..]);
        let (records, end) = decode(forge.start, &wal);
        assert_eq!(records, forge.written[..1]);
        let (at, why) = end.unwrap();
        assert_eq!(at, lost);
        why
    };
    assert_eq!(broken(&|page| page[2] &= !1), EndReason::NotContinued(page));
    let left = u32::from_le_bytes(*forge.wal[1024 + 16..].first_chunk().unwrap());
    let found = left ^ 1;
    assert_eq!(
        broken(&|page| page[16] ^= 1),
        EndReason::Continuation { at: page, left, found }
    );
    let fault = |fault| EndReason::Page { at: page, fault };
    assert_eq!(broken(&|page| page.fill(0)), fault(PageFault::Magic(0)));
    assert_eq!(
        broken(&|page| page[8] ^= 1),
        fault(PageFault::Address(Lsn::new(page.bytes() ^ 1)))
    );
    assert_eq!(broken(&|page| page[2] |= 0x10), fault(PageFault::Flags(0x11)));
    assert_eq!(broken(&|page| page[2] |= 2), fault(PageFault::HeaderLength));
    assert_eq!(broken(&|page| page[4] = 0), fault(PageFault::NoTimeline));
    assert_eq!(broken(&|page| page[24] ^= 1), EndReason::Checksum);
}

#[test]
fn what_follows_a_record_and_is_none_ends_the_wal() {
    let forge = forged(2, &[100]);
    let at = forge.at();
    let followed_by = |bytes: &[u8]| {
        let (records, end) = decode(forge.start, &[&forge.wal, bytes].concat());
        assert_eq!(records, forge.written);
        let (found, why) = end.unwrap();
        assert_eq!(found, at);
        why
    };
    assert_eq!(followed_by(&[0; 4]), EndReason::Unwritten);
    assert_eq!(followed_by(&[23, 0, 0, 0]), EndReason::Length(23));
    assert_eq!(followed_by(&[0xFF; 4]), EndReason::Length(u32::MAX));
    // A whole record, but of another place: as in a segment that was recycled.
    let old = &forge.written[0].bytes;
    let previous = EndReason::Previous(Lsn::new(forge.start.bytes() - 64));
    assert_eq!(followed_by(old), previous);
    let mut header = old[..24].to_vec();
    header[17] = 22;
    assert_eq!(followed_by(&header), EndReason::Manager(22));
}

#[test]
fn the_end_stays_the_end() {
    let mut forge = forged(2, &[100]);
    let mut decoder = WalDecoder::new(forge.start, layout(15));
    decoder.push(forge.start, &[&*forge.wal, &[0; 8]].concat()).unwrap();
    let mut records = Vec::new();
    let end = drain(&mut decoder, &mut records);
    let at = decoder.wanted();
    forge.record(3, 0, 0, &[]);
    decoder.push(at, &forge.wal).unwrap();
    assert_eq!(drain(&mut decoder, &mut records), end);
    assert_eq!(
        (records.len(), end),
        (1, Some((forge.written[1].start, EndReason::Unwritten)))
    );
}

#[test]
fn a_timeline_may_rise_but_not_fall_nor_pass_the_newest() {
    let timeline = |number| Timeline::new(number).unwrap();
    let read = |second: u32, newest: u32| {
        let mut forge = forged(3, &[]);
        forge.timeline = timeline(2);
        forge.record(3, 0, 0, &[0; 900]);
        forge.timeline = timeline(second);
        forge.record(3, 0, 0, &[0; 900]);
        let mut decoder = WalDecoder::new(forge.start, layout(15));
        decoder.allow_timelines_up_to(timeline(newest));
        decoder.push(forge.start, &forge.wal).unwrap();
        let end = drain(&mut decoder, &mut Vec::new());
        (end.map(|(_, why)| why), decoder.timeline().map(Timeline::number))
    };
    assert_eq!(read(2, 2), (None, Some(2)));
    assert_eq!(read(5, 5), (None, Some(5)));
    let fault = |why: Option<EndReason>| match why {
        Some(EndReason::Page { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    let (before, found, newest) = (timeline(2), timeline(1), timeline(4));
    assert_eq!(fault(read(1, 5).0), PageFault::TimelineBack { before, found });
    let found = timeline(5);
    assert_eq!(fault(read(5, 4).0), PageFault::TimelineAhead { newest, found });
}

#[test]
fn segments_of_another_cluster_do_not_follow() {
    let mut forge = Forge::before_a_segment(layout(15), 1 << 10);
    forge.switch();
    forge.system = 8;
    forge.record(3, 0, 0, &[]);
    let (records, end) = decode(forge.start, &forge.wal);
    assert_eq!(records, forge.written[..1]);
    let at = forge.written[0].end;
    let fault = PageFault::OtherCluster(crate::pg::SystemId::new(8));
    assert_eq!(end, Some((at, EndReason::Page { at, fault })));
}

#[test]
fn extensions_have_resource_managers_since_15() {
    for (major, known) in [(14, false), (15, true)] {
        let layout = layout(major);
        let mut forge = Forge::before_a_segment(layout, 1);
        forge.record(200, 0, 0, &[]);
        let mut decoder = WalDecoder::new(forge.start, layout);
        decoder.push(forge.start, &forge.wal).unwrap();
        assert_eq!(matches!(decoder.step(), Step::Record(_)), known, "{major}");
    }
}

#[test]
fn a_record_is_kept_up_to_the_limit_and_checked_to_its_end() {
    let forge = forged(2, &[5000, 10]);
    let read = |wal: &[u8]| {
        let mut decoder = WalDecoder::new(forge.start, layout(15));
        decoder.kept = 2000;
        decoder.push(forge.start, wal).unwrap();
        let mut records = Vec::new();
        let end = drain(&mut decoder, &mut records);
        (records, end)
    };
    let (records, end) = read(&forge.wal);
    assert_eq!(records[0].bytes, forge.written[0].bytes[..2000]);
    assert_eq!(
        (records[0].end, &records[1], end),
        (forge.written[0].end, &forge.written[1], None)
    );
    let mut wal = forge.wal.clone();
    wal[4900] ^= 1;
    assert_eq!(
        read(&wal),
        (vec![], Some((forge.written[0].start, EndReason::Checksum)))
    );
}

#[test]
fn a_major_that_is_not_known_has_no_layout() {
    let version = MajorVersion::new(19).unwrap();
    let size = crate::pg::SegmentSize::DEFAULT;
    assert!(WalLayout::new(version, size, 8192).is_err());
    assert!(WalLayout::new(MajorVersion::NEWEST_KNOWN, size, 8193).is_err());
}
