//! Bytes written by version 1, checked in: a change of the layout shows here, and old journals stay readable.
//! Write them anew with `AFTERWRITE_GOLDEN=write cargo test -p afterwrite golden`, and say why in CHANGELOG.md.

use super::*;

const RAW: &[u8] = include_bytes!("../testdata/v1-raw.awj");
const ZSTD: &[u8] = include_bytes!("../testdata/v1-zstd.awj");
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

/// One sealed segment with all records; the next one is open and empty but for a last mark.
fn write(zstd_level: i32) -> FaultyStore {
    let options =
        JournalOptions { segment_bytes_max: 4000, frame_bytes_max: 300, sync: SyncPolicy::Mark, zstd_level };
    let store = FaultyStore::new(4096);
    let mut writer = Writer::create_in(store.clone(), &sample_info(), options.clone()).unwrap();
    for record in records() {
        let mark = matches!(record.body, RecordBody::Mark(_));
        writer.append(record.time, record.body).unwrap();
        if mark {
            writer.sync().unwrap();
        }
    }
    drop(writer);
    let options = JournalOptions { segment_bytes_max: 0, ..options };
    let (mut writer, _) = Writer::open_in(store.clone(), options).unwrap();
    writer.append(Timestamp(0), RecordBody::Zero(ByteRange::new(0, 1))).unwrap();
    writer.sync().unwrap();
    assert_eq!(segments(&store).len(), 2);
    store
}

#[test]
fn golden_bytes_are_written_and_read() {
    if std::env::var("AFTERWRITE_GOLDEN").is_ok_and(|value| value == "write") {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/journal/testdata");
        for (level, name) in [(0, "v1-raw.awj"), (1, "v1-zstd.awj")] {
            std::fs::write(format!("{dir}/{name}"), write(level).content(&segments(&write(level))[0]))
                .unwrap();
        }
        std::fs::write(format!("{dir}/v1-volume.toml"), write(0).content("volume.toml")).unwrap();
        return;
    }
    let written = write(0);
    assert_eq!(String::from_utf8(written.content("volume.toml")).unwrap(), VOLUME);
    // Compressed bytes may change with the library; raw ones may not.
    assert!(written.content(&segments(&written)[0]) == RAW, "the layout changed: it needs a new version");
    for golden in [RAW, ZSTD] {
        let store = FaultyStore::new(4096);
        store.put("volume.toml", VOLUME.as_bytes());
        store.put("00000000000000000001.awj", golden);
        assert_eq!(read_all(&store).unwrap(), records());
        let report = check(&store).unwrap();
        assert_eq!((report.records, report.marks, report.torn_tail), (9, 4, None));
        append_on(&store, &records());
    }
}
