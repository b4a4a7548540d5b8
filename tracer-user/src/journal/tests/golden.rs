//! Bytes of each version of a segment, checked in: a change of the layout shows here, and old journals stay readable.
//! Write those of version 2 anew with `AFTERWRITE_GOLDEN=write cargo test -p afterwrite golden`, and say why in
//! CHANGELOG.md; those of version 1 nobody writes any more. `raw` and `zstd` were sealed by their own writer, `recovered` by
//! the one after it.

use super::*;

const RAW_1: &[u8] = include_bytes!("../testdata/v1-raw.awj");
const ZSTD_1: &[u8] = include_bytes!("../testdata/v1-zstd.awj");
const RECOVERED_1: &[u8] = include_bytes!("../testdata/v1-recovered.awj");
const RAW_2: &[u8] = include_bytes!("../testdata/v2-raw.awj");
const ZSTD_2: &[u8] = include_bytes!("../testdata/v2-zstd.awj");
const RECOVERED_2: &[u8] = include_bytes!("../testdata/v2-recovered.awj");
/// Leaves no room for the index after one more frame.
const SEGMENT_BYTES_MAX: u64 = 1900;
const VOLUME: &str = include_str!("../testdata/v1-volume.toml");

/// What the files of version 1 hold: the first nine records of version 2, of which none is ordered.
fn records_1() -> Vec<Record> {
    let unordered = records_2().into_iter().take(9).map(|record| Record { ordered: false, ..record });
    unordered.collect()
}

fn records_2() -> Vec<Record> {
    let mark = |id, class, label: &str| RecordBody::Mark(Mark { id: MarkId(id), class, label: label.into() });
    let bodies = [
        RecordBody::Data { start: 4096, bytes: b"afterwrite ".repeat(10) },
        RecordBody::Zero(ByteRange::new(0, 4096)),
        RecordBody::Discard(ByteRange::new(8192, 1 << 20)),
        mark(1, PointClass::Crash, ""),
        RecordBody::Gap(ByteRange::new(0, 1 << 30)),
        mark(2, PointClass::Fuzzy, "ünïcode"),
        RecordBody::Data { start: 512, bytes: (0..=255).collect() },
        mark(3, PointClass::Fs, "before-upgrade"),
        mark(9, PointClass::App, "db"),
        RecordBody::Data { start: 1024, bytes: vec![9; 40] },
        RecordBody::Zero(ByteRange::new(0, 512)),
        RecordBody::Discard(ByteRange::new(512, 4096)),
        RecordBody::Zero(ByteRange::new(4096, 8192)),
    ];
    let ordered = |lsn: u64| matches!(lsn, 7 | 10 | 11 | 12);
    let time = |lsn: u64| Timestamp(sample_info().created.0 + lsn);
    let record = |(lsn, body)| Record { lsn: Lsn(lsn), time: time(lsn), ordered: ordered(lsn), body };
    (1..).zip(bodies).map(record).collect()
}

/// The first segment of a journal, which holds all records, as it was sealed by its writer or by the next one.
fn write(zstd_level: i32, recovered: bool) -> (Vec<u8>, FaultyStore) {
    let (segment_bytes_max, sync) = (SEGMENT_BYTES_MAX, SyncPolicy::Mark);
    let options = JournalOptions { segment_bytes_max, frame_bytes_max: 300, sync, zstd_level };
    let store = FaultyStore::new(4096);
    let mut writer = Writer::create_in(store.clone(), &sample_info(), options.clone()).unwrap();
    for Record { time, ordered, body, .. } in records_2() {
        let mark = matches!(body, RecordBody::Mark(_));
        if ordered { writer.append_ordered(time, body) } else { writer.append(time, body) }.unwrap();
        if mark {
            writer.sync().unwrap();
        }
    }
    writer.sync().unwrap();
    if recovered {
        drop(writer);
        Writer::open_in(store.clone(), options).unwrap();
    } else {
        // Nothing that would compress.
        let bytes = (0..1000).map(|at: u32| blake3::hash(&at.to_le_bytes()).as_bytes()[0]).collect();
        writer.append(Timestamp(0), RecordBody::Data { start: 0, bytes }).unwrap();
        writer.sync().unwrap();
    }
    assert_eq!(segments(&store).len(), 2);
    (store.content(&segments(&store)[0]), store)
}

fn journal_of(segment: &[u8]) -> FaultyStore {
    let store = FaultyStore::new(4096);
    store.put("volume.toml", VOLUME.as_bytes());
    store.put("00000000000000000001.awj", segment);
    store
}

#[test]
fn golden_bytes_are_written() {
    if std::env::var("AFTERWRITE_GOLDEN").is_ok_and(|value| value == "write") {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/journal/testdata");
        for (level, recovered, name) in
            [(0, false, "v2-raw.awj"), (1, false, "v2-zstd.awj"), (0, true, "v2-recovered.awj")]
        {
            std::fs::write(format!("{dir}/{name}"), write(level, recovered).0).unwrap();
        }
        return;
    }
    let (raw, written) = write(0, false);
    assert_eq!(String::from_utf8(written.content("volume.toml")).unwrap(), VOLUME);
    // Compressed bytes may change with the library; raw ones may not.
    assert!(raw == RAW_2, "the layout changed: it needs a new version");
    assert!(write(0, true).0 == RECOVERED_2, "the layout changed: it needs a new version");
}

#[test]
fn golden_bytes_of_every_version_are_read() {
    for (raw, recovered) in [(RAW_1, RECOVERED_1), (RAW_2, RECOVERED_2)] {
        // Only the flag in the seal and the seal's checksum differ.
        let seal = raw.len() - 64;
        assert_eq!(recovered[..seal + 56], raw[..seal + 56]);
        let flags = (&recovered[seal + 56..seal + 60], &raw[seal + 56..seal + 60]);
        assert_eq!(flags, (&[1, 0, 0, 0][..], &[0; 4][..]));
    }
    let version_1 = [RAW_1, ZSTD_1, RECOVERED_1].map(|golden| (golden, records_1(), vec![]));
    let version_2 = [RAW_2, ZSTD_2, RECOVERED_2].map(|golden| (golden, records_2(), vec![(Lsn(8), Lsn(12))]));
    let time = sample_info().created.0;
    for (golden, records, stretches) in version_1.into_iter().chain(version_2) {
        let store = journal_of(golden);
        assert_eq!(read_all(&store).unwrap(), records);
        let report = check(&store).unwrap();
        assert_eq!((report.records, report.marks, report.torn_tail), (records.len() as u64, 4, None));
        let journal = Journal::open_in(store.clone()).unwrap();
        let listed = journal.segments().unwrap();
        let is_recovered = [RECOVERED_1, RECOVERED_2].contains(&golden);
        assert_eq!((listed[0].sealed, listed[0].recovered), (true, is_recovered));
        let found = journal.timeline().unwrap().stretches;
        assert!(
            found.iter().all(|s| (s.from_time.0, s.to_time.0) == (time + s.from_lsn.0, time + s.to_lsn.0))
        );
        let found: Vec<_> = found.iter().map(|s| (s.from_lsn, s.to_lsn)).collect();
        assert_eq!(found, stretches);
        append_on(&store, &records);
    }
}

#[test]
fn a_segment_of_version_1_that_was_left_open_is_sealed_as_one() {
    let index = u64::from_le_bytes(RAW_1[RAW_1.len() - 56..][..8].try_into().unwrap());
    let store = journal_of(&RAW_1[..index as usize]);
    let raw = JournalOptions { zstd_level: 0, ..tiny(SyncPolicy::Mark) };
    let journal = Journal::open_in(store.clone()).unwrap();
    let before = journal.timeline().unwrap();
    assert_eq!((before.points.len(), before.stretches.len()), (4, 0));
    drop(Writer::open_in(store.clone(), raw).unwrap());
    assert!(store.content(&segments(&store)[0]) == RECOVERED_1);
    assert_eq!(journal.timeline().unwrap(), before);
    append_on(&store, &records_1());
}

#[test]
fn a_segment_of_version_1_without_records_takes_none() {
    let store = journal_of(&RAW_1[..128]);
    for at in 0..20 {
        let store = store.copy();
        store.fail_at(at, crate::io::store::faulty::Fault::PowerCut, at);
        let Err(_) = Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)) else { break };
        append_on(&store.after_power_cut(at), &[]);
    }
    append_on(&store, &[]);
    let (mut writer, _) = Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)).unwrap();
    writer.append_ordered(Timestamp(1), RecordBody::Zero(ByteRange::new(0, 512))).unwrap();
    writer.sync().unwrap();
    assert_eq!(Journal::open_in(store).unwrap().timeline().unwrap().stretches.len(), 1);
}
