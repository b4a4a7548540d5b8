//! Looking for what older records say of some bytes.

use super::*;
use crate::journal::{PruneOptions, Retention, Wanted, prune};
use crate::model::ByteRangeSet;

const MIB: u64 = 1 << 20;
const VOLUME_MIB: u64 = 40;

/// A volume of bytes that can't be compressed, folded into a base, and a mark after that.
fn folded(dir: &std::path::Path) -> (Journal, Vec<u8>) {
    let info = VolumeInfo { size_bytes: VOLUME_MIB * MIB, ..sample_info() };
    let options = JournalOptions { segment_bytes_max: 16 * MIB, ..JournalOptions::default() };
    let mut writer = Writer::create(dir, &info, options).unwrap();
    let mut state = vec![0; (VOLUME_MIB * MIB) as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut state);
    let mut append = |seconds: u64, body| writer.append(Timestamp(seconds * 1_000_000_000), body).unwrap();
    let mark = |id| RecordBody::Mark(Mark { id: MarkId(id), class: PointClass::Crash, label: String::new() });
    // Backwards, so that only the fold is in order.
    for start in (0..VOLUME_MIB).rev().map(|number| number * MIB) {
        append(1, RecordBody::Data { start, bytes: state[start as usize..(start + MIB) as usize].to_vec() });
    }
    append(1, mark(1));
    for seconds in 1000..1002 {
        for start in 0..20 {
            append(seconds, RecordBody::Zero(ByteRange::with_len(start * MIB, MIB)));
        }
        append(seconds, mark(seconds));
    }
    append(1002, RecordBody::Data { start: 0, bytes: state[..MIB as usize].to_vec() });
    writer.finish().unwrap();
    let retention = Retention {
        keep_all: std::time::Duration::from_secs(500),
        keep_marks: std::time::Duration::from_secs(500),
        hourly: 0,
        daily: 0,
        weekly: 5,
        drop_labelled: true,
    };
    let options = PruneOptions { retention, image_factor: 0, lazy: false, keep_from: None };
    let plan = prune(dir, &options, Timestamp(1100 * 1_000_000_000)).unwrap();
    assert_eq!(plan.upto, Lsn(VOLUME_MIB + 1));
    (Journal::open(dir).unwrap(), state)
}

#[test]
fn in_a_fold_only_what_is_near_the_wanted_bytes_is_read() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (journal, state) = folded(&dir.path().join("journal"));
    let mark = journal.points().unwrap()[0].lsn;
    let way = journal.way(Lsn::ZERO, mark).unwrap();
    assert!(way.legs.len() == 1 && way.legs[0].is_fold());
    for wanted_bytes in [
        vec![ByteRange::new(5 * MIB + 100, 5 * MIB + 200)],
        vec![ByteRange::new(0, 512)],
        vec![ByteRange::new(VOLUME_MIB * MIB - 512, VOLUME_MIB * MIB)],
        vec![ByteRange::new(3 * MIB - 10, 3 * MIB + 10), ByteRange::new(31 * MIB, 31 * MIB + 1)],
        vec![ByteRange::new(0, VOLUME_MIB * MIB)],
    ] {
        let mut wanted = Wanted::within(ByteRange::new(0, VOLUME_MIB * MIB));
        wanted_bytes.iter().for_each(|range| wanted.insert(*range));
        let all: u64 = wanted_bytes.iter().map(|range| range.len()).sum();
        let (mut records, mut found) = (0, ByteRangeSet::new());
        let mut back = journal.back(&way);
        while let Some(part) = back.next_part(&wanted).unwrap() {
            for record in part {
                let body = record.unwrap().body;
                records += 1;
                let RecordBody::Data { start, bytes } = body else { continue };
                for part in wanted.find(ByteRange::with_len(start, bytes.len() as u64)) {
                    let at = |byte: u64| (byte - start) as usize;
                    assert!(
                        bytes[at(part.start)..at(part.end)] == state[part.start as usize..part.end as usize]
                    );
                    found.insert(part);
                }
            }
            wanted.settle();
        }
        assert!(wanted.is_empty() && found.bytes() == all, "{wanted_bytes:?}");
        assert!(
            all == VOLUME_MIB * MIB || records <= 5 * wanted_bytes.len(),
            "{records} records for {all} bytes"
        );
    }
}
