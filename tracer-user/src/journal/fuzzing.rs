//! Fuzz targets of the journal's decoders: see `crate::fuzzing`.

use crate::io::store::faulty::FaultyStore;
use crate::journal::folds::Folds;
use crate::journal::format::{
    FRAME_HEADER_LEN, FRAME_MAGIC, FrameHeader, FrameKind, RAW_LEN_MAX, SEAL_LEN, SEAL_MAGIC,
    SEGMENT_HEADER_LEN, Seal, Seed, SegmentHeader, Version, u32_at,
};
use crate::journal::index::Index;
use crate::journal::record::{self, FrameCursor, RecordView, VOLUME_END_MAX};
use crate::journal::segment::segment_name;
use crate::journal::stretches::StretchFinder;
use crate::journal::volume::{self, VOLUME_NAME};
use crate::journal::{Journal, JournalError, JournalOptions, Writer};
use crate::model::{Lsn, Record, RecordBody, Stretch, Timestamp, VolumeId, VolumeInfo};

const VERSIONS: [Version; 2] = [Version::V1, Version::V2];

/// Where in a file the parts are said to stand: anywhere up to the largest file there can be.
fn split_offset(data: &[u8]) -> Option<(u64, &[u8])> {
    let (offset, rest) = data.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*offset) >> 2, rest))
}

fn seed() -> Seed {
    Seed::new(VolumeId([7; 16]), Lsn(1))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

pub fn segment_header(data: &[u8]) {
    let decode = |bytes: &[u8]| {
        if let Ok(header) = SegmentHeader::decode(bytes) {
            assert_eq!(header.encode(), bytes[..SEGMENT_HEADER_LEN]);
        }
    };
    decode(data);
    if let Some(mut bytes) = data.first_chunk::<SEGMENT_HEADER_LEN>().copied() {
        let crc = crc32c::crc32c(&bytes[..124]);
        put(&mut bytes, 124, &crc.to_le_bytes());
        decode(&bytes);
    }
}

/// A frame's header and then its payload.
pub fn frame(data: &[u8]) {
    let Some((offset, data)) = split_offset(data) else { return };
    let decode = |bytes: &[u8]| {
        let Ok(header) = FrameHeader::decode(bytes, seed(), offset) else { return };
        assert_eq!(header.encode(seed()), bytes[..FRAME_HEADER_LEN]);
        assert!(header.raw_len.max(header.stored_len) as usize <= RAW_LEN_MAX);
        assert!(header.durable_end <= header.offset && header.end() > offset);
        let payload = &bytes[FRAME_HEADER_LEN..];
        match header.kind {
            FrameKind::Records => {
                for version in VERSIONS {
                    records(version, payload, header.first_lsn, header.last_lsn);
                }
            }
            FrameKind::Index => index(payload),
        }
    };
    decode(data);
    let mut bytes = data.to_vec();
    if mend_frame(&mut bytes, offset) {
        decode(&bytes);
    }
}

/// Gives the frame that `bytes` start with its place and right checksums; its payload reaches to the end of `bytes` or
/// as far as its header says.
fn mend_frame(bytes: &mut [u8], offset: u64) -> bool {
    let Some((header, payload)) = bytes.split_first_chunk_mut::<FRAME_HEADER_LEN>() else { return false };
    let stored_len = payload.len().min(u32_at(header, 8) as usize);
    put(header, 0, &FRAME_MAGIC);
    put(header, 40, &offset.to_le_bytes());
    put(header, 56, &seed().payload_crc(offset, &payload[..stored_len]).to_le_bytes());
    let crc = seed().payload_crc(offset, &header[..60]);
    put(header, 60, &crc.to_le_bytes());
    true
}

/// The payload of a frame of records; the first byte says how many there should be.
pub fn record(data: &[u8]) {
    if let Some((count, raw)) = data.split_first() {
        VERSIONS.iter().for_each(|version| records(*version, raw, Lsn(1), Lsn(1 + u64::from(*count))));
    }
}

fn records(version: Version, raw: &[u8], first: Lsn, last: Lsn) {
    let mut cursor = FrameCursor::new(version, first, last);
    let (mut at, mut count) = (0, 0);
    while let Ok(next) = cursor.next(raw) {
        let Some(view) = next else {
            assert_eq!((at, count), (raw.len(), last.0 - first.0 + 1));
            break;
        };
        at += same_bytes(view, &raw[at..]);
        count += 1;
    }
}

/// A decoded record is encoded to the very bytes it came from; returns how many those are.
fn same_bytes(view: RecordView<'_>, bytes: &[u8]) -> usize {
    let breaks = view.breaks();
    let Record { lsn, time, ordered, body } = view.to_record();
    assert!(!(ordered && breaks));
    let range = body.content_range();
    assert!(range.is_none_or(|range| range.start <= range.end && range.end <= VOLUME_END_MAX));
    let mut again = Vec::new();
    record::encode(&mut again, lsn, time, ordered, &body);
    assert_eq!(record::encoded_len(&body), Ok(again.len()));
    assert_eq!(again, bytes[..again.len()]);
    again.len()
}

pub fn index(data: &[u8]) {
    VERSIONS.iter().for_each(|version| index_of(*version, data));
}

fn index_of(version: Version, data: &[u8]) {
    let Ok(index) = Index::decode(version, data) else { return };
    let mut again = Vec::new();
    index.encode(&mut again);
    assert_eq!((again.as_slice(), index.encoded_len()), (data, data.len()));
    for point in index.points() {
        let before = index.frame_before(point.lsn);
        assert!(before.is_none_or(|entry| entry.lsn <= point.lsn));
    }
    let mut finder = StretchFinder::from(None);
    finder.add(&index, Lsn(1), Lsn(u64::MAX - 1), true);
    let _ = finder.finish(|lsn| Ok::<_, JournalError>(Timestamp(lsn.0)));
}

pub fn seal(data: &[u8]) {
    let Some((offset, data)) = split_offset(data) else { return };
    let decode = |bytes: &[u8]| {
        if let Ok(seal) = Seal::decode(bytes, seed(), offset) {
            assert_eq!(seal.encode(seed(), offset), bytes[..SEAL_LEN]);
            assert!((SEGMENT_HEADER_LEN as u64..offset).contains(&seal.index_offset));
        }
    };
    decode(data);
    if let Some(mut bytes) = data.first_chunk::<SEAL_LEN>().copied() {
        let crc = seed().payload_crc(offset, &bytes[..60]);
        put(&mut bytes, 60, &crc.to_le_bytes());
        decode(&bytes);
    }
}

pub fn volume_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let decode = |text: &str| {
        if let Ok(info) = volume::decode(text) {
            let again = volume::encode(&info).expect("what was decoded can be encoded");
            assert_eq!(volume::decode(&again), Ok(info));
        }
    };
    decode(text);
    decode(&format!("{text}crc32c = \"{:08x}\"\n", crc32c::crc32c(data)));
}

/// The manifest of folds; its checksum is put right the second time.
pub fn folds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let decode = |text: &str| {
        if let Ok(folds) = Folds::decode(text) {
            let again = folds.encode().expect("what was decoded can be encoded");
            assert!(folds.first_lsn.0 <= folds.upto().0 + 1);
            assert!(folds.folds.iter().flat_map(|fold| &fold.marks).is_sorted());
            assert_eq!(Folds::decode(&again), Ok(folds));
        }
    };
    decode(text);
    decode(&format!("{text}# crc32c = \"{:08x}\"\n", crc32c::crc32c(data)));
}

/// The whole of a journal of one segment, read, checked and recovered. A first byte that is odd leaves the bytes that
/// follow as they are; else they get a segment header, of version 2 if its next bit is set, and frames and seal are put right
/// as far as they go.
pub fn segment(data: &[u8]) {
    let Some((how, data)) = data.split_first() else { return };
    let version = if how & 2 == 2 { Version::V2 } else { Version::V1 };
    let bytes = if how & 1 == 1 { data.to_vec() } else { mended(version, data) };
    let info = VolumeInfo {
        id: VolumeId([7; 16]),
        source: "/dev/vdb".into(),
        identity: "name:vdb".into(),
        size_bytes: 1 << 30,
        sector_bytes: 512,
        created: Timestamp(0),
    };
    let store = FaultyStore::new(4096);
    store.put(VOLUME_NAME, volume::encode(&info).expect("a volume like any other").as_bytes());
    let name = segment_name(Lsn(1));
    store.put(&name, &bytes);
    let journal = Journal::open_in(store.clone()).expect("its volume file and its name are right");
    let read = all(&journal);
    let checked = journal.check(&mut |_, _| {});
    let options = JournalOptions { zstd_level: 0, ..JournalOptions::default() };
    let opened = Writer::open_in(store.clone(), options);
    match (&checked, &opened) {
        // Recovery reads less than a check, of what is sealed already.
        (Err(_), Ok(_)) => {}
        (Err(_), Err(_)) => assert!(store.content(&name) == bytes, "it was refused and changed"),
        (Ok(_), Err(error)) => panic!("whole, but not opened: {error}"),
        (Ok(report), Ok((_, recovery))) => {
            let read = read.expect("a check reads the same");
            assert_eq!((read.len() as u64, recovery.last_lsn), (report.records, report.last_lsn));
            assert_eq!(recovery.cut, report.torn_tail);
            let journal = Journal::open_in(store.clone()).expect("it was opened before");
            assert_eq!(all(&journal).expect("it was just made whole"), read);
            let timeline = journal.timeline().expect("it was just made whole");
            let points = timeline.points.len() as u64;
            let inside = |stretch: &Stretch| {
                let of_it = |record: &&Record| stretch.contains(record.lsn) && record.lsn > stretch.from_lsn;
                read.iter()
                    .filter(of_it)
                    .all(|record| record.ordered || matches!(record.body, RecordBody::Mark(_)))
            };
            assert!(timeline.stretches.iter().all(inside));
            let again = journal.check(&mut |_, _| {}).expect("it was just made whole");
            assert_eq!((again.records, again.marks, points), (report.records, report.marks, report.marks));
            assert_eq!(again.torn_tail, None);
        }
    }
}

fn all(journal: &Journal<FaultyStore>) -> Result<Vec<Record>, JournalError> {
    journal.records(Lsn(1), Lsn(u64::MAX))?.collect()
}

fn mended(version: Version, data: &[u8]) -> Vec<u8> {
    let header = SegmentHeader {
        version,
        volume: VolumeId([7; 16]),
        first_lsn: Lsn(1),
        created: Timestamp(0),
        previous: [0; 32],
    };
    let mut bytes = [&header.encode(), data].concat();
    let mut at = SEGMENT_HEADER_LEN;
    while bytes.len() - at > FRAME_HEADER_LEN && bytes[at..].starts_with(&FRAME_MAGIC) {
        mend_frame(&mut bytes[at..], at as u64);
        let stored_len = u32_at(&bytes[at..], 8) as usize;
        at = (at + FRAME_HEADER_LEN).saturating_add(stored_len).min(bytes.len());
    }
    if bytes.len() - at == SEAL_LEN && bytes[at..].starts_with(&SEAL_MAGIC) {
        let hash = *blake3::hash(&bytes[..at]).as_bytes();
        put(&mut bytes, at + 24, &hash);
        let crc = seed().payload_crc(at as u64, &bytes[at..at + 60]);
        put(&mut bytes, at + 60, &crc.to_le_bytes());
    }
    bytes
}
