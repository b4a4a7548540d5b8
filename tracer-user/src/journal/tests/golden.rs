//! Bytes written by version 1, checked in: a change of the layout shows here, and old journals stay readable.
//! Write them anew with `AFTERWRITE_GOLDEN=write cargo test -p afterwrite golden`, and say why in CHANGELOG.md.
//! `v1-raw.awj` and `v1-zstd.awj` were sealed by their own writer, `v1-recovered.awj` by the one after it.

use super::*;

const RAW: &[u8] = include_bytes!("../testdata/v1-raw.awj");
const ZSTD: &[u8] = include_bytes!("../testdata/v1-zstd.awj");
const RECOVERED: &[u8] = include_bytes!("../testdata/v1-recovered.awj");
const VOLUME: &str = include_str!("../testdata/v1-volume.toml");

fn records() -> Vec<Record> {
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
    ];
    let time = |lsn: u64| Timestamp(sample_info().created.0 + lsn);
    (1..).zip(bodies).map(|(lsn, body)| Record { lsn: Lsn(lsn), time: time(lsn), body }).collect()
}

/// The first segment of a journal, which holds all records, as it was sealed by its writer or by the next one.
fn write(zstd_level: i32, recovered: bool) -> (Vec<u8>, FaultyStore) {
    let segment_bytes_max = RAW.len() as u64;
    let options =
        JournalOptions { segment_bytes_max, frame_bytes_max: 300, sync: SyncPolicy::Mark, zstd_level };
    let store = FaultyStore::new(4096);
    let mut writer = Writer::create_in(store.clone(), &sample_info(), options.clone()).unwrap();
    for record in records() {
        let mark = matches!(record.body, RecordBody::Mark(_));
        writer.append(record.time, record.body).unwrap();
        if mark {
            writer.sync().unwrap();
        }
    }
    if recovered {
        drop(writer);
        Writer::open_in(store.clone(), options).unwrap();
    } else {
        // Of the very size that leaves no room for the index after another frame.
        writer.append(Timestamp(0), RecordBody::Data { start: 0, bytes: (0..=255).collect() }).unwrap();
        writer.sync().unwrap();
    }
    assert_eq!(segments(&store).len(), 2);
    (store.content(&segments(&store)[0]), store)
}

#[test]
fn golden_bytes_are_written_and_read() {
    if std::env::var("AFTERWRITE_GOLDEN").is_ok_and(|value| value == "write") {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/journal/testdata");
        for (level, recovered, name) in
            [(0, false, "v1-raw.awj"), (1, false, "v1-zstd.awj"), (0, true, "v1-recovered.awj")]
        {
            std::fs::write(format!("{dir}/{name}"), write(level, recovered).0).unwrap();
        }
        std::fs::write(format!("{dir}/v1-volume.toml"), write(0, false).1.content("volume.toml")).unwrap();
        return;
    }
    let (raw, written) = write(0, false);
    assert_eq!(String::from_utf8(written.content("volume.toml")).unwrap(), VOLUME);
    // Compressed bytes may change with the library; raw ones may not.
    assert!(raw == RAW, "the layout changed: it needs a new version");
    assert!(write(0, true).0 == RECOVERED, "the layout changed: it needs a new version");
    // Only the flag in the seal and the seal's checksum differ.
    let seal = RAW.len() - 64;
    assert_eq!(RECOVERED[..seal + 56], RAW[..seal + 56]);
    assert_eq!(
        (&RECOVERED[seal + 56..seal + 60], &RAW[seal + 56..seal + 60]),
        (&[1, 0, 0, 0][..], &[0; 4][..])
    );
    for golden in [RAW, ZSTD, RECOVERED] {
        let store = FaultyStore::new(4096);
        store.put("volume.toml", VOLUME.as_bytes());
        store.put("00000000000000000001.awj", golden);
        assert_eq!(read_all(&store).unwrap(), records());
        let report = check(&store).unwrap();
        assert_eq!((report.records, report.marks, report.torn_tail), (9, 4, None));
        let listed = Journal::open_in(store.clone()).unwrap().segments().unwrap();
        assert_eq!((listed[0].sealed, listed[0].recovered), (true, golden == RECOVERED));
        append_on(&store, &records());
    }
}
