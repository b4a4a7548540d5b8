use super::*;
use crate::journal::TornTail;
use crate::journal::format::{Codec, FrameHeader, Seal, Seed, SegmentHeader};

/// The segment and byte an error names.
fn place(error: &JournalError) -> (String, u64) {
    match error {
        JournalError::BadChecksum { segment, offset, .. }
        | JournalError::Damaged { segment, offset, .. }
        | JournalError::BrokenChain { segment, offset, .. }
        | JournalError::UnsupportedRecord { segment, offset, .. } => (segment.clone(), *offset),
        JournalError::UnsupportedVersion { file: segment, .. }
        | JournalError::UnsupportedFeatures { segment, .. }
        | JournalError::WrongVolume { segment, .. } => (segment.clone(), 0),
        other => panic!("names no place: {other}"),
    }
}

#[test]
fn every_flipped_byte_is_reported_at_its_place_and_never_read() {
    let (store, records) = sample(4096, 11, 70);
    let names = segments(&store);
    assert!(names.len() >= 3, "{names:?}");
    let (mut damaged, mut torn) = (0, 0);
    for (at_segment, name) in names.iter().enumerate() {
        let good = store.content(name);
        let last = at_segment + 1 == names.len();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            store.put(name, &bad);
            match check(&store) {
                Err(error) => {
                    let (segment, offset) = place(&error);
                    assert_eq!(segment, *name, "byte {at}: {error}");
                    assert!(offset <= at as u64, "byte {at}: {error}");
                    damaged += 1;
                }
                Ok(report) => {
                    let tail = report.torn_tail.unwrap_or_else(|| panic!("{name} byte {at} passed"));
                    assert!(last && tail.segment == *name, "{name} byte {at}");
                    assert!(tail.offset <= at as u64 && tail.offset + tail.bytes == bad.len() as u64);
                    torn += 1;
                }
            }
            // The reader may end early or fail, but what it gives is true.
            let journal = Journal::open_in(store.clone()).unwrap();
            for from in [1, 40] {
                let Ok(read) = journal.records(Lsn(from), Lsn(u64::MAX)) else { continue };
                let read: Vec<Record> = read.map_while(Result::ok).collect();
                let start = from as usize - 1;
                assert_eq!(read, records[start..start + read.len()], "{name} byte {at}");
            }
            let _ = journal.points();
        }
        store.put(name, &good);
    }
    assert!(damaged > 2000 && torn > 50, "{damaged} damaged, {torn} torn");
    assert_eq!(check(&store).unwrap().torn_tail, None);
}

#[test]
fn truncation_at_every_length_of_the_open_segment_leaves_a_prefix_to_append_on() {
    let (store, records) = sample(4096, 5, 66);
    let last = segments(&store).pop().unwrap();
    let first: usize = last[..20].parse().unwrap();
    let good = store.content(&last);
    assert!(good.len() > 500);
    for len in 0..good.len() {
        store.put(&last, &good[..len]);
        let read = read_all(&store).unwrap();
        assert_eq!(read, records[..read.len()]);
        assert!(read.len() >= first - 1, "sealed records are whole");
        let report = check(&store).unwrap();
        assert_eq!(report.last_lsn.0 as usize, read.len());
        assert_eq!(Journal::open_in(store.clone()).unwrap().torn_tail().unwrap(), report.torn_tail);
        let copy = store.copy();
        append_on(&copy, &read);
    }
    store.put(&last, &good);
    append_on(&store, &records);
}

#[test]
fn truncating_a_sealed_segment_is_damage() {
    let (store, _) = sample(4096, 5, 60);
    let first = segments(&store).remove(0);
    let good = store.content(&first);
    for len in 0..good.len() {
        store.put(&first, &good[..len]);
        let error = check(&store).unwrap_err();
        assert!(error.is_damage(), "{len}: {error}");
        assert_eq!(place(&error).0, first);
        assert!(Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)).is_err());
        assert_eq!(store.content(&first), good[..len], "nothing was changed");
    }
}

/// Three frames; `synced` after how many of them a sync came before the next was written.
fn three_frames(synced: usize) -> (FaultyStore, [u64; 4]) {
    let store = FaultyStore::new(4096);
    let options = JournalOptions { segment_bytes_max: 1 << 20, ..tiny(SyncPolicy::Mark) };
    let mut writer = Writer::create_in(store.clone(), &sample_info(), options).unwrap();
    let name = segments(&store).remove(0);
    let mut ends = [0; 4];
    ends[0] = store.size(&name).unwrap();
    for (frame, end) in ends.iter_mut().enumerate().skip(1) {
        writer.append(Timestamp(1), RecordBody::Zero(ByteRange::new(0, 512))).unwrap();
        writer.flush().unwrap();
        if frame == synced {
            writer.sync().unwrap();
        }
        *end = store.size(&name).unwrap();
    }
    (store, ends)
}

#[test]
fn a_bad_frame_is_a_torn_tail_unless_a_later_one_knows_it_was_durable() {
    for synced in 0..=3 {
        for bad_frame in 0..3 {
            let (store, starts) = three_frames(synced);
            let name = segments(&store).remove(0);
            let mut bytes = store.content(&name);
            bytes[starts[bad_frame] as usize + 70] ^= 1;
            store.put(&name, &bytes);
            // The frame after the sync says so.
            let proven = bad_frame < synced && synced < 3;
            let (offset, bytes) = (starts[bad_frame], bytes.len() as u64 - starts[bad_frame]);
            match check(&store) {
                Err(JournalError::Damaged { segment, offset: at, .. }) => {
                    assert!(proven, "synced {synced}, bad {bad_frame}");
                    assert_eq!((segment, at), (name.clone(), offset));
                    assert!(Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)).is_err());
                    assert!(store.size(&name).unwrap() > offset, "damage is not cut");
                }
                Ok(report) => {
                    assert!(!proven, "synced {synced}, bad {bad_frame}");
                    let torn = TornTail { segment: name.clone(), offset, bytes };
                    assert_eq!(report.torn_tail, Some(torn.clone()));
                    let (_, recovery) = Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)).unwrap();
                    assert_eq!((&recovery.cut, recovery.last_lsn), (&Some(torn), Lsn(bad_frame as u64)));
                    // What was torn is gone, and a segment with records is sealed where the tail began.
                    let (closed, size) = (recovery.closed.is_some(), store.size(&name).unwrap());
                    assert_eq!((closed, size > offset), (bad_frame > 0, bad_frame > 0));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_half_created_segment_is_ignored_by_readers_and_removed_by_recovery() {
    let (store, records) = sample(4096, 5, 60);
    let names = segments(&store);
    let last = names.last().unwrap();
    let kept = last[..20].parse::<usize>().unwrap() - 1;
    for content in [vec![], vec![0; 50], vec![0; 128], vec![0xFF; 5000]] {
        store.put(last, &content);
        assert_eq!(read_all(&store).unwrap(), records[..kept]);
        let torn = TornTail { segment: last.clone(), offset: 0, bytes: content.len() as u64 };
        assert_eq!(check(&store).unwrap().torn_tail, Some(torn.clone()));
        let copy = store.copy();
        let (_, recovery) = Writer::open_in(copy.clone(), tiny(SyncPolicy::Mark)).unwrap();
        assert_eq!(recovery.cut, Some(torn));
        append_on(&copy, &records[..kept]);
    }
    let first = &names[0];
    let only = FaultyStore::new(4096);
    only.put("volume.toml", &store.content("volume.toml"));
    only.put(first, &[0; 128]);
    assert!(check(&only).unwrap_err().is_damage(), "the first segment was durable before volume.toml");
}

#[test]
fn missing_segments_are_named() {
    let (store, _) = sample(4096, 11, 120);
    let names = segments(&store);
    for missing in &names[..names.len() - 1] {
        let mut copy = store.copy();
        copy.remove(missing).unwrap();
        let next = names.iter().find(|name| *name > missing).unwrap();
        let wanted = (missing.clone(), next.clone());
        let named = |error| match error {
            JournalError::MissingSegment { missing, found } => assert_eq!((missing, found), wanted),
            other => panic!("{missing}: {other}"),
        };
        named(check(&copy).unwrap_err());
        named(read_all(&copy).unwrap_err());
        named(Journal::open_in(copy.clone()).and_then(|journal| journal.points()).unwrap_err());
        named(Writer::open_in(copy, tiny(SyncPolicy::Mark)).err().unwrap());
    }
    let empty = FaultyStore::new(4096);
    empty.put("volume.toml", &store.content("volume.toml"));
    assert!(matches!(check(&empty), Err(JournalError::MissingSegment { .. })));
    assert!(matches!(
        Writer::open_in(empty, tiny(SyncPolicy::Mark)),
        Err(JournalError::MissingSegment { .. })
    ));
}

#[test]
fn swapped_and_foreign_segments_are_refused() {
    let (store, _) = sample(4096, 11, 120);
    let names = segments(&store);
    let swapped = store.copy();
    swapped.put(&names[1], &store.content(&names[2]));
    swapped.put(&names[2], &store.content(&names[1]));
    assert_eq!(place(&check(&swapped).unwrap_err()).0, names[1]);
    assert!(read_all(&swapped).unwrap_err().is_damage());

    // The same volume and LSNs, but another history: only the chain tells.
    let other = FaultyStore::new(4096);
    let mut writer = Writer::create_in(other.clone(), &sample_info(), tiny(SyncPolicy::Mark)).unwrap();
    for record in read_all(&store).unwrap() {
        writer.append(Timestamp(record.time.0 + 1), record.body).unwrap();
        writer.flush().unwrap();
    }
    let mixed = store.copy();
    let common: Vec<_> = segments(&other).into_iter().filter(|name| names[1..].contains(name)).collect();
    for name in &common {
        let mixed = mixed.copy();
        mixed.put(name, &other.content(name));
        assert!(check(&mixed).unwrap_err().is_damage(), "{name}");
    }
    let header =
        SegmentHeader { previous: [9; 32], ..SegmentHeader::decode(&store.content(&names[1])).unwrap() };
    let mut bytes = store.content(&names[1]);
    bytes[..128].copy_from_slice(&header.encode());
    mixed.put(&names[1], &bytes);
    for error in [check(&mixed).unwrap_err(), read_all(&mixed).unwrap_err()] {
        assert!(
            matches!(&error, JournalError::BrokenChain { segment, .. } if *segment == names[1]),
            "{error}"
        );
    }

    let foreign = FaultyStore::new(4096);
    let info = VolumeInfo { id: VolumeId([1; 16]), ..sample_info() };
    drop(Writer::create_in(foreign.clone(), &info, tiny(SyncPolicy::Mark)).unwrap());
    let mixed = store.copy();
    mixed.put(&names[0], &foreign.content(&names[0]));
    for error in [check(&mixed).unwrap_err(), read_all(&mixed).unwrap_err()] {
        assert!(matches!(error, JournalError::WrongVolume { .. }), "{error}");
    }
    assert!(matches!(Writer::open_in(mixed, tiny(SyncPolicy::Mark)), Err(JournalError::WrongVolume { .. })));
}

#[test]
fn newer_versions_and_features_are_refused_and_nothing_is_cut() {
    let (store, _) = sample(4096, 5, 60);
    for at_segment in 0..segments(&store).len() {
        let name = &segments(&store)[at_segment];
        let newer = |at: usize, value: u8| {
            let copy = store.copy();
            let mut bytes = copy.content(name);
            bytes[at] = value;
            let crc = crc32c::crc32c(&bytes[..124]);
            bytes[124..128].copy_from_slice(&crc.to_le_bytes());
            copy.put(name, &bytes);
            let error = check(&copy).unwrap_err();
            assert!(Writer::open_in(copy.clone(), tiny(SyncPolicy::Mark)).is_err());
            assert!(copy.content(name) == bytes, "nothing was changed");
            error
        };
        assert!(matches!(newer(8, 3), JournalError::UnsupportedVersion { version: 3, .. }));
        assert!(matches!(newer(13, 1), JournalError::UnsupportedFeatures { features: 256, .. }));
        assert!(matches!(newer(100, 1), JournalError::UnsupportedRecord { .. }));
    }
    let toml = b"version = 3\n";
    store.put("volume.toml", toml);
    assert!(matches!(check(&store), Err(JournalError::UnsupportedVersion { version: 3, .. })));
}

/// The segment with its first frame's payload changed by `change` and the frame's own checksums put right.
fn forged(good: &[u8], first: Lsn, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let seed = Seed::new(sample_info().id, first);
    let mut bytes = good.to_vec();
    let header = FrameHeader::decode(&bytes[128..], seed, 128).unwrap();
    let end = usize::try_from(header.end()).unwrap();
    change(&mut bytes[192..end]);
    let header = FrameHeader { payload_crc: seed.payload_crc(128, &bytes[192..end]), ..header };
    bytes[128..192].copy_from_slice(&header.encode(seed));
    bytes
}

#[test]
fn an_edit_with_right_checksums_breaks_the_hash() {
    let options = JournalOptions { zstd_level: 0, ..tiny(SyncPolicy::Mark) };
    let store = FaultyStore::new(4096);
    let mut writer = Writer::create_in(store.clone(), &sample_info(), options).unwrap();
    work(&mut writer, &mut Random::new(3), 80, &mut Vec::new(), &mut Lsn(0)).unwrap();
    let name = segments(&store).remove(0);
    // The time of the first record.
    let bytes = forged(&store.content(&name), Lsn(1), |payload| payload[16] ^= 1);
    store.put(&name, &bytes);
    read_all(&store).unwrap();
    let error = check(&store).unwrap_err();
    assert!(error.to_string().contains("hash"), "{error}");
    assert_eq!(place(&error), (name, bytes.len() as u64 - 64));
}

/// The first segment of `store` with another index, all checksums and the hash to go with it; and where the index is.
fn with_index(store: &FaultyStore, lie: impl Fn(&mut Vec<u8>)) -> (Vec<u8>, u64) {
    let good = store.content(&segments(store)[0]);
    let seed = Seed::new(sample_info().id, Lsn(1));
    let seal = Seal::decode(&good[good.len() - 64..], seed, good.len() as u64 - 64).unwrap();
    let at = usize::try_from(seal.index_offset).unwrap();
    let header = FrameHeader::decode(&good[at..], seed, seal.index_offset).unwrap();
    let mut raw = zstd::bulk::decompress(&good[at + 64..good.len() - 64], 1 << 20).unwrap();
    lie(&mut raw);
    let len = u32::try_from(raw.len()).unwrap();
    let header = FrameHeader {
        codec: Codec::Raw,
        stored_len: len,
        raw_len: len,
        payload_crc: seed.payload_crc(seal.index_offset, &raw),
        ..header
    };
    let mut bytes = [&good[..at], &header.encode(seed), &raw].concat();
    let seal = Seal { hash: *blake3::hash(&bytes).as_bytes(), ..seal };
    bytes.extend_from_slice(&seal.encode(seed, bytes.len() as u64));
    (bytes, seal.index_offset)
}

#[test]
fn an_index_that_lies_is_found() {
    let (store, _) = sample(4096, 11, 120);
    let name = segments(&store).remove(0);
    let without_last_break = |raw: &mut Vec<u8>| {
        raw[8] -= 1;
        raw.truncate(raw.len() - 16);
    };
    let changed = |byte: usize| move |raw: &mut Vec<u8>| raw[byte] ^= 1;
    // Nothing at all, one break less, other bytes, another last time, another earliest time of the first entry.
    for (bytes, offset) in [
        with_index(&store, |raw| *raw = vec![0; 32]),
        with_index(&store, without_last_break),
        with_index(&store, changed(16)),
        with_index(&store, changed(24)),
        with_index(&store, changed(48)),
    ] {
        let lying = store.copy();
        lying.put(&name, &bytes);
        let error = check(&lying).unwrap_err();
        assert!(error.to_string().contains("the index is not that of the records"), "{error}");
        assert_eq!(place(&error), (name.clone(), offset));
    }
}

/// A reader goes where the index says: far behind the end of all files, if need be.
#[test]
fn an_index_of_what_is_not_in_its_segment_is_refused() {
    let (store, _) = sample(4096, 11, 120);
    let name = segments(&store).remove(0);
    let word = |at: usize, value: u64| {
        move |raw: &mut Vec<u8>| raw[at..at + 8].copy_from_slice(&value.to_le_bytes())
    };
    let last_break = |raw: &mut Vec<u8>| {
        let at = raw.len() - 16;
        raw[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    };
    // Offset and LSN of the first entry; LSN of the last break.
    for (bytes, offset) in [
        with_index(&store, word(40, u64::MAX)),
        with_index(&store, word(40, 127)),
        with_index(&store, word(32, 0)),
        with_index(&store, last_break),
    ] {
        let lying = store.copy();
        lying.put(&name, &bytes);
        for error in [
            read_all(&lying).unwrap_err(),
            check(&lying).unwrap_err(),
            Journal::open_in(lying.clone()).and_then(|journal| journal.points()).unwrap_err(),
        ] {
            assert!(error.to_string().contains("an index of what is not in its segment"), "{error}");
            assert_eq!(place(&error), (name.clone(), offset));
        }
    }
}
