use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use crate::filemap::MapError;
use crate::filemap::cache::{Cache, read};
use crate::filemap::record::{MapRecord, Record, Why};
use crate::filemap::segment::{HEADER_BYTES, SegmentError, frame, header, scan};
use crate::filemap::volume::MapVolume;
use crate::io::fiemap::Extent;
use crate::model::FileTime;

fn map(handle: u8, path: &str, extents: usize) -> MapRecord {
    let extent = |n: usize| Extent { offset: n as u64, physical: 9, length: 1, flags: 0x800 };
    MapRecord {
        handle: vec![handle; 12],
        path: path.into(),
        modified: FileTime { seconds: -1, nanos: 5 },
        extents: (0..extents).map(extent).collect(),
        ..MapRecord::default()
    }
}

fn volume() -> MapVolume {
    let (id, root, identity) = ("id".into(), "root".into(), "name:x".into());
    MapVolume { version: MapVolume::VERSION, id, path: "/srv".into(), root, identity }
}

fn open(dir: &Path) -> Result<Cache, MapError> {
    Cache::open(dir, |found| Ok(*found == volume()), || Ok(volume()), Duration::from_millis(5))
}

fn segment(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut segments = Vec::from_iter(files.filter(|path| path.extension().is_some_and(|e| e == "awm")));
    assert_eq!(segments.len(), 1, "{segments:?}");
    segments.remove(0)
}

proptest! {
    #[test]
    fn any_record_comes_back(
        numbers in any::<[u64; 4]>(), times in any::<[(i64, u32); 2]>(), why in 0usize..5, truncated: bool,
        names in any::<[Vec<u8>; 3]>(), extents in prop::collection::vec(any::<(u64, u64, u64, u32)>(), 0..20),
    ) {
        let [number, save, saved_ns, size] = numbers;
        let [modified, changed] = times.map(|(seconds, nanos)| FileTime { seconds, nanos });
        let [handle, dir, path] = names;
        let extent = |(offset, physical, length, flags)| Extent { offset, physical, length, flags };
        let record = Record::Map(MapRecord {
            number, save, saved_ns, size, modified, changed, handle, dir, path, truncated,
            why: [Why::Close, Why::Rename, Why::Rescan, Why::Settled, Why::Fsync][why],
            extents: extents.into_iter().map(extent).collect(),
            ..MapRecord::default()
        });
        let bytes = record.encode();
        prop_assert_eq!(Record::decode(&bytes).unwrap(), record);
        prop_assert!(Record::decode(&bytes[..bytes.len() - 1]).is_err());
    }
}

#[test]
fn a_torn_tail_is_left_out_and_damage_in_front_of_sound_records_is_told() {
    let mut bytes = header(3).to_vec();
    let mut ends = vec![bytes.len()];
    for n in 0..3 {
        bytes.extend(frame(3, bytes.len() as u64, &Record::Map(map(n, "a", 4))));
        ends.push(bytes.len());
    }
    for cut in HEADER_BYTES..=bytes.len() {
        let scanned = scan(3, &bytes[..cut]).unwrap();
        let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
        assert_eq!((scanned.records.len(), scanned.end), (whole, ends[whole] as u64), "cut at {cut}");
    }
    for at in ends[1]..ends[2] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(scan(3, &damaged), Err(SegmentError::Damaged { offset: ends[1] as u64 }), "byte {at}");
    }
    assert_eq!(scan(4, &bytes), Err(SegmentError::Number { found: 3, expected: 4 }));
}

#[test]
fn what_was_appended_is_there_after_a_torn_tail_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(MapError::InUse { .. })));
    let first = cache.append(map(1, "one", 2)).unwrap();
    cache.append(map(2, "two", 0)).unwrap();
    cache.heard(77).unwrap();
    drop(cache);
    let path = segment(dir.path());
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&whole[..], &[9, 0, 0, 0, 1]].concat()).unwrap();
    // A reader leaves it as it is.
    assert_eq!(read(dir.path()).unwrap().1.maps.len(), 2);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), whole.len() as u64 + 5);
    let mut cache = open(dir.path()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    let settled = MapRecord { save: first.save, why: Why::Settled, ..map(1, "one", 3) };
    assert_eq!(cache.append(settled).unwrap().number, 3);
    let (_, content) = read(dir.path()).unwrap();
    assert_eq!((content.maps[&vec![1; 12]].save, content.maps[&vec![1; 12]].extents.len()), (1, 3));
    assert_eq!(content.heard_until_ns, 77);
}

#[test]
fn a_compacted_cache_holds_the_newest_record_of_each_file_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = open(dir.path()).unwrap();
    cache.heard(5).unwrap();
    while !cache.is_wasteful() {
        cache.append(map(1, "one", 1000)).unwrap();
        cache.append(map(2, "two", 1)).unwrap();
    }
    let last = cache.append(map(3, "gone", 1)).unwrap();
    let before = read(dir.path()).unwrap().1;
    cache.compact(|handle| handle[0] != 3).unwrap();
    let bytes = std::fs::metadata(segment(dir.path())).unwrap().len();
    assert!(bytes < 60_000, "{bytes} bytes");
    let mut after = read(dir.path()).unwrap().1;
    assert_eq!((after.maps.len(), after.heard_until_ns), (2, 5));
    assert!(after.maps.iter().all(|(handle, map)| before.maps[handle] == *map));
    // It goes on in the new one.
    assert_eq!(cache.append(map(4, "four", 1)).unwrap().number, last.number + 1);
    after = read(dir.path()).unwrap().1;
    assert_eq!(after.maps.len(), 3);
}

#[test]
fn a_cache_of_another_volume_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let other = Cache::open(dir.path(), |_| Ok(false), || Ok(volume()), Duration::from_millis(5));
    assert!(matches!(other, Err(MapError::OtherVolume { .. })));
}
