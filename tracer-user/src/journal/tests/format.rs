use proptest::prelude::*;

use super::*;
use crate::journal::format::*;
use crate::journal::index::Index;
use crate::journal::record::{self, FrameCursor};
use crate::journal::segment::{parse_segment_name, segment_name};

fn seed() -> Seed {
    Seed::new(sample_info().id, Lsn(1))
}

fn header() -> FrameHeader {
    FrameHeader {
        kind: FrameKind::Records,
        codec: Codec::Raw,
        stored_len: 100,
        raw_len: 100,
        marks: 1,
        breaks: 3,
        first_lsn: Lsn(5),
        last_lsn: Lsn(9),
        offset: 4096,
        durable_end: 128,
        payload_crc: 77,
    }
}

proptest! {
    #[test]
    fn decoders_survive_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), offset in any::<u64>()) {
        let _ = SegmentHeader::decode(&bytes);
        let _ = FrameHeader::decode(&bytes, seed(), offset);
        let _ = Seal::decode(&bytes, seed(), offset);
        let _ = Index::decode(Version::V1, &bytes);
        let _ = Index::decode(Version::V2, &bytes);
        let _ = record::decode(&bytes);
        let mut cursor = FrameCursor::new(Version::V2, Lsn(1), Lsn(3));
        while let Ok(Some(_)) = cursor.next(&bytes) {}
    }

    /// Nearly right bytes get further into a decoder than random ones.
    #[test]
    fn decoders_survive_changed_bytes(changes in prop::collection::vec((0usize..600, any::<u8>()), 1..6)) {
        let mut raw = Vec::new();
        let data = RecordBody::Data { start: 512, bytes: vec![3; 60] };
        let mark = RecordBody::Mark(Mark { id: MarkId(1), class: PointClass::App, label: "label".into() });
        for (lsn, body) in [(1, &data), (2, &mark), (3, &RecordBody::Zero(ByteRange::new(0, 512)))] {
            record::encode(&mut raw, Lsn(lsn), Timestamp(1), lsn == 1, body);
        }
        let mut index = Vec::new();
        let (_, records) = sample(4096, 3, 40);
        for version in [Version::V1, Version::V2] {
            let mut found = Index::new(version);
            found.add_frame(&header());
            for Record { lsn, time, ordered, body } in &records {
                let mut bytes = Vec::new();
                record::encode(&mut bytes, *lsn, *time, *ordered, body);
                found.add_record(&record::decode(&bytes).unwrap().0);
            }
            index.clear();
            found.encode(&mut index);
            prop_assert_eq!(index.len(), found.encoded_len());
            prop_assert_eq!(Index::decode(version, &index), Ok(found));
        }
        for (at, value) in changes {
            let (raw_len, index_len) = (raw.len(), index.len());
            raw[at % raw_len] = value;
            index[at % index_len] = value;
        }
        let mut cursor = FrameCursor::new(Version::V2, Lsn(1), Lsn(3));
        while let Ok(Some(_)) = cursor.next(&raw) {}
        let _ = Index::decode(Version::V2, &index);
    }
}

#[test]
fn a_frame_header_is_valid_at_its_place_only() {
    let bytes = header().encode(seed());
    assert_eq!(FrameHeader::decode(&bytes, seed(), 4096), Ok(header()));
    assert!(matches!(FrameHeader::decode(&bytes, seed(), 8192), Err(FormatError::Torn(_))));
    let other_segment = Seed::new(sample_info().id, Lsn(100));
    assert!(matches!(FrameHeader::decode(&bytes, other_segment, 4096), Err(FormatError::Torn(_))));
    let other_volume = Seed::new(VolumeId([9; 16]), Lsn(1));
    assert!(matches!(FrameHeader::decode(&bytes, other_volume, 4096), Err(FormatError::Torn(_))));
}

#[test]
fn an_absurd_length_is_refused_before_the_checksum() {
    let absurd = FrameHeader { stored_len: u32::MAX, raw_len: u32::MAX, ..header() };
    let error = FrameHeader::decode(&absurd.encode(seed()), seed(), 4096).unwrap_err();
    assert_eq!(error, FormatError::Torn("a frame longer than 16 MiB"));
}

#[test]
fn contradictions_under_a_right_checksum_are_no_torn_write() {
    let wrong = [
        FrameHeader { raw_len: 101, ..header() },
        FrameHeader { codec: Codec::Zstd, ..header() },
        FrameHeader { first_lsn: Lsn(10), ..header() },
        FrameHeader { first_lsn: Lsn(0), ..header() },
        FrameHeader { last_lsn: Lsn(u64::MAX), ..header() },
        FrameHeader { durable_end: 4097, ..header() },
    ];
    for header in wrong {
        let error = FrameHeader::decode(&header.encode(seed()), seed(), 4096).unwrap_err();
        assert!(matches!(error, FormatError::Malformed(_)), "{header:?}: {error:?}");
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let mut raw = Vec::new();
    record::encode(&mut raw, Lsn(1), Timestamp(1), false, &RecordBody::Zero(ByteRange::new(0, 512)));
    for (at, value) in [(0, 8), (0, 255), (1, 2), (1, 3), (2, 1), (3, 1)] {
        let mut changed = raw.clone();
        changed[at] = value;
        assert!(matches!(record::decode(&changed), Err(FormatError::Unknown(_))), "byte {at} = {value}");
    }
    let mut mark = Vec::new();
    let body = RecordBody::Mark(Mark { id: MarkId(1), class: PointClass::App, label: "é".into() });
    record::encode(&mut mark, Lsn(1), Timestamp(1), false, &body);
    assert_eq!(record::decode(&mark).unwrap().0.to_record().body, body);
    for (at, value) in [(1, 1), (48, 0), (48, 5), (49, 1)] {
        let mut changed = mark.clone();
        changed[at] = value;
        assert!(matches!(record::decode(&changed), Err(FormatError::Unknown(_))), "byte {at} = {value}");
    }
    raw[1] = 1;
    let read =
        |version| FrameCursor::new(version, Lsn(1), Lsn(1)).next(&raw).map(|record| record.unwrap().ordered);
    assert_eq!(read(Version::V2), Ok(true));
    assert!(matches!(read(Version::V1), Err(FormatError::Unknown(_))), "ordered in version 1");
    mark[53] = 0xFF;
    assert!(matches!(record::decode(&mark), Err(FormatError::Malformed(_))), "not UTF-8");
}

#[test]
fn segment_names_sort_as_numbers_and_nothing_else_is_one() {
    assert_eq!(segment_name(Lsn(1)), "00000000000000000001.awj");
    for lsn in [1, 9, 10, u64::MAX] {
        assert_eq!(parse_segment_name(&segment_name(Lsn(lsn))), Some(Lsn(lsn)));
    }
    for name in [
        "",
        "1.awj",
        "00000000000000000000.awj",
        "+0000000000000000001.awj",
        "00000000000000000001.awj.tmp",
        "99999999999999999999.awj",
        "volume.toml",
    ] {
        assert_eq!(parse_segment_name(name), None, "{name}");
    }
}
