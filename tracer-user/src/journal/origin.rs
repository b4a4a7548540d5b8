//! The body of an Origin record: see docs/FORMAT.md. Pure.

use crate::journal::format::{FormatError, u32_at, u64_at};
use crate::journal::record::VOLUME_END_MAX;
use crate::model::{
    ByteRange, FileBurst, FileChanges, FileId, FileOps, FilePlaces, Origin, OriginUnknown, PlacedExtent,
    Process, Timestamp,
};

const CHANGES: u8 = 1;
const UNKNOWN: u8 = 2;
const BURST: u8 = 3;
const PLACES: u8 = 4;
const CHANGES_FIXED_LEN: usize = 72;
const UNKNOWN_FIXED_LEN: usize = 32;
const BURST_FIXED_LEN: usize = 56;
const PLACES_FIXED_LEN: usize = 32;
const EXTENT_LEN: usize = 24;
const RANGE_LEN: usize = 16;
/// Most bytes of a process's name.
pub const NAME_LEN_MAX: usize = 255;
/// Most bytes of a path, and of the reason why something is not known.
pub const PATH_LEN_MAX: usize = 65535;
/// Of a file's ranges, and of its extents.
pub const RANGES_MAX: usize = 1024;

/// Bytes of the body.
///
/// # Errors
/// Says what is wrong when the format has no place for it.
pub fn encoded_len(origin: &Origin) -> Result<usize, String> {
    match origin {
        Origin::Changes(changes) => {
            let FileChanges { process, path, new_path, ops, ranges, .. } = changes;
            if process.name.len() > NAME_LEN_MAX || path.len().max(new_path.len()) > PATH_LEN_MAX {
                return Err("a process's name or a path that is too long; leave it empty".into());
            }
            if ops.0 & !FileOps::KNOWN != 0 {
                return Err(format!("operations {:#x}", ops.0));
            }
            if ranges.len() > RANGES_MAX || !ranges_are_sound(ranges) {
                return Err("ranges of a file that overlap, are empty, or are too many; merge them".into());
            }
            Ok(CHANGES_FIXED_LEN
                + process.name.len()
                + path.len()
                + new_path.len()
                + ranges.len() * RANGE_LEN)
        }
        Origin::Unknown(unknown) if unknown.why.len() > PATH_LEN_MAX => {
            Err("a reason that is too long".into())
        }
        Origin::Unknown(unknown) => Ok(UNKNOWN_FIXED_LEN + unknown.why.len()),
        Origin::Burst(burst) if burst.process.name.len() > NAME_LEN_MAX => {
            Err("a process's name that is too long".into())
        }
        Origin::Burst(burst) => Ok(BURST_FIXED_LEN + burst.process.name.len()),
        Origin::Places(FilePlaces { extents, .. })
            if extents.len() > RANGES_MAX || !extents_are_sound(extents) =>
        {
            Err("extents of a file that overlap, are empty, or are too many".into())
        }
        Origin::Places(places) => Ok(PLACES_FIXED_LEN + places.extents.len() * EXTENT_LEN),
    }
}

fn ranges_are_sound(ranges: &[ByteRange]) -> bool {
    let forward = ranges.iter().all(|range| range.start < range.end && range.end <= VOLUME_END_MAX);
    forward && ranges.windows(2).all(|pair| pair[0].end < pair[1].start)
}

fn extents_are_sound(extents: &[PlacedExtent]) -> bool {
    let fits = |start: u64, length| start.checked_add(length).is_some_and(|end| end <= VOLUME_END_MAX);
    let each = |extent: &PlacedExtent| {
        extent.length > 0 && fits(extent.offset, extent.length) && fits(extent.start, extent.length)
    };
    extents.iter().all(each)
        && extents.windows(2).all(|pair| pair[0].offset + pair[0].length <= pair[1].offset)
}

/// Appends what [`encoded_len`] accepted.
pub fn encode(out: &mut Vec<u8>, origin: &Origin) {
    let short = |len: usize| u16::try_from(len).expect("encoded_len caps it").to_le_bytes();
    match origin {
        Origin::Changes(changes) => {
            let FileChanges { process, file, path, new_path, ops, first, last, count, ranges } = changes;
            out.extend([CHANGES, u8::try_from(process.name.len()).expect("encoded_len caps it")]);
            out.extend([ranges.len(), path.len(), new_path.len()].into_iter().flat_map(short));
            out.extend(
                [ops.0, process.pid, file.dev, file.generation].into_iter().flat_map(u32::to_le_bytes),
            );
            let words = [file.inode, process.start_ns, process.cgroup, first.0, last.0, *count];
            out.extend(words.into_iter().flat_map(u64::to_le_bytes));
            out.extend([&process.name, path, new_path].into_iter().flatten());
            for range in ranges {
                out.extend(range.start.to_le_bytes());
                out.extend(range.end.to_le_bytes());
            }
        }
        Origin::Unknown(OriginUnknown { from, to, missing, why }) => {
            out.extend([UNKNOWN, 0]);
            out.extend(short(why.len()));
            out.extend([0; 4]);
            out.extend([from.0, to.0, *missing].into_iter().flat_map(u64::to_le_bytes));
            out.extend(why.as_bytes());
        }
        Origin::Burst(burst) => encode_burst(out, burst),
        Origin::Places(FilePlaces { file, at, extents }) => {
            out.extend([PLACES, 0]);
            out.extend(short(extents.len()));
            out.extend([file.dev, file.generation, 0].into_iter().flat_map(u32::to_le_bytes));
            out.extend([file.inode, at.0].into_iter().flat_map(u64::to_le_bytes));
            let words = extents.iter().flat_map(|extent| [extent.offset, extent.start, extent.length]);
            out.extend(words.flat_map(u64::to_le_bytes));
        }
    }
}

fn encode_burst(out: &mut Vec<u8>, burst: &FileBurst) {
    let FileBurst { process, began, recognised, rewritten, removed, sampled, random, compared, spoiled } =
        burst;
    let name_len = u8::try_from(process.name.len()).expect("encoded_len caps it");
    out.extend([BURST, name_len, *compared, *spoiled]);
    let numbers = [process.pid, *rewritten, *removed, *sampled, *random];
    out.extend(numbers.into_iter().flat_map(u32::to_le_bytes));
    let words = [process.start_ns, process.cgroup, began.0, recognised.0];
    out.extend(words.into_iter().flat_map(u64::to_le_bytes));
    out.extend(&process.name);
}

/// The frame's checksum was right, so nothing here is torn.
pub fn decode(body: &[u8]) -> Result<Origin, FormatError> {
    match body.first() {
        Some(&CHANGES) => decode_changes(body).map(Origin::Changes),
        Some(&UNKNOWN) => decode_unknown(body).map(Origin::Unknown),
        Some(&BURST) => decode_burst(body).map(Origin::Burst),
        Some(&PLACES) => decode_places(body).map(Origin::Places),
        Some(what) => Err(FormatError::Unknown(format!("an origin of kind {what}"))),
        None => Err(FormatError::Malformed("an empty origin")),
    }
}

fn decode_changes(body: &[u8]) -> Result<FileChanges, FormatError> {
    let Some((fixed, rest)) = body.split_first_chunk::<CHANGES_FIXED_LEN>() else {
        return Err(FormatError::Malformed("an incomplete origin"));
    };
    let short = |at: usize| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]]));
    let (name, ranges, path, new_path) = (usize::from(fixed[1]), short(2), short(4), short(6));
    if rest.len() != name + path + new_path + ranges * RANGE_LEN || ranges > RANGES_MAX {
        return Err(FormatError::Malformed("an origin of another length than announced"));
    }
    let (name, rest) = rest.split_at(name);
    let (path, rest) = rest.split_at(path);
    let (new_path, rest) = rest.split_at(new_path);
    let range = |bytes: &[u8]| ByteRange { start: u64_at(bytes, 0), end: u64_at(bytes, 8) };
    let ranges: Vec<_> = rest.chunks_exact(RANGE_LEN).map(range).collect();
    if !ranges_are_sound(&ranges) {
        return Err(FormatError::Malformed("an origin whose ranges are not in order"));
    }
    let ops = FileOps(u32_at(fixed, 8));
    if ops.0 & !FileOps::KNOWN != 0 {
        return Err(FormatError::Unknown(format!("an origin with operations {:#x}", ops.0)));
    }
    Ok(FileChanges {
        process: Process {
            pid: u32_at(fixed, 12),
            start_ns: u64_at(fixed, 32),
            cgroup: u64_at(fixed, 40),
            name: name.to_vec(),
        },
        file: FileId { inode: u64_at(fixed, 24), generation: u32_at(fixed, 20), dev: u32_at(fixed, 16) },
        path: path.to_vec(),
        new_path: new_path.to_vec(),
        ops,
        first: Timestamp(u64_at(fixed, 48)),
        last: Timestamp(u64_at(fixed, 56)),
        count: u64_at(fixed, 64),
        ranges,
    })
}

fn decode_unknown(body: &[u8]) -> Result<OriginUnknown, FormatError> {
    let Some((fixed, why)) = body.split_first_chunk::<UNKNOWN_FIXED_LEN>() else {
        return Err(FormatError::Malformed("an incomplete origin"));
    };
    if fixed[1] != 0 || fixed[4..8] != [0; 4] {
        return Err(FormatError::Unknown("something in the reserved bytes of an origin".into()));
    }
    if why.len() != usize::from(u16::from_le_bytes([fixed[2], fixed[3]])) {
        return Err(FormatError::Malformed("an origin of another length than announced"));
    }
    let why = std::str::from_utf8(why).map_err(|_| FormatError::Malformed("a reason that is not UTF-8"))?;
    Ok(OriginUnknown {
        from: Timestamp(u64_at(fixed, 8)),
        to: Timestamp(u64_at(fixed, 16)),
        missing: u64_at(fixed, 24),
        why: why.to_owned(),
    })
}

fn decode_burst(body: &[u8]) -> Result<FileBurst, FormatError> {
    let Some((fixed, name)) = body.split_first_chunk::<BURST_FIXED_LEN>() else {
        return Err(FormatError::Malformed("an incomplete origin"));
    };
    if name.len() != usize::from(fixed[1]) {
        return Err(FormatError::Malformed("an origin of another length than announced"));
    }
    Ok(FileBurst {
        process: Process {
            pid: u32_at(fixed, 4),
            start_ns: u64_at(fixed, 24),
            cgroup: u64_at(fixed, 32),
            name: name.to_vec(),
        },
        began: Timestamp(u64_at(fixed, 40)),
        recognised: Timestamp(u64_at(fixed, 48)),
        rewritten: u32_at(fixed, 8),
        removed: u32_at(fixed, 12),
        sampled: u32_at(fixed, 16),
        random: u32_at(fixed, 20),
        compared: fixed[2],
        spoiled: fixed[3],
    })
}

fn decode_places(body: &[u8]) -> Result<FilePlaces, FormatError> {
    let Some((fixed, extents)) = body.split_first_chunk::<PLACES_FIXED_LEN>() else {
        return Err(FormatError::Malformed("an incomplete origin"));
    };
    if fixed[1] != 0 || fixed[12..16] != [0; 4] {
        return Err(FormatError::Unknown("something in the reserved bytes of an origin".into()));
    }
    let count = usize::from(u16::from_le_bytes([fixed[2], fixed[3]]));
    if extents.len() != count * EXTENT_LEN || count > RANGES_MAX {
        return Err(FormatError::Malformed("an origin of another length than announced"));
    }
    let extent = |bytes: &[u8]| PlacedExtent {
        offset: u64_at(bytes, 0),
        start: u64_at(bytes, 8),
        length: u64_at(bytes, 16),
    };
    let extents: Vec<_> = extents.chunks_exact(EXTENT_LEN).map(extent).collect();
    if !extents_are_sound(&extents) {
        return Err(FormatError::Malformed("an origin whose extents are not in order"));
    }
    Ok(FilePlaces {
        file: FileId { inode: u64_at(fixed, 16), generation: u32_at(fixed, 8), dev: u32_at(fixed, 4) },
        at: Timestamp(u64_at(fixed, 24)),
        extents,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FileOp;

    fn changes() -> FileChanges {
        let mut ops = FileOps::default();
        ops.insert(FileOp::Write);
        ops.insert(FileOp::Rename);
        FileChanges {
            process: Process { pid: 77, start_ns: 99, cgroup: 1, name: b"mv".to_vec() },
            file: FileId { inode: 12, generation: 5, dev: 7 << 20 },
            path: b"/a".to_vec(),
            new_path: b"/\xff".to_vec(),
            ops,
            first: Timestamp(500),
            last: Timestamp(600),
            count: 3,
            ranges: vec![ByteRange { start: 0, end: 10 }],
        }
    }

    /// They stand in journals: docs/FORMAT.md.
    #[test]
    fn golden_bytes_of_origins() {
        let hex = |origin: &Origin| {
            let mut bytes = Vec::new();
            encode(&mut bytes, origin);
            assert_eq!(encoded_len(origin), Ok(bytes.len()));
            assert_eq!(decode(&bytes).unwrap(), *origin);
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let word = |number: u64| number.to_le_bytes().map(|byte| format!("{byte:02x}")).concat();
        let head = "01020100020002000280000"; // what, lengths, and the beginning of the operations
        let expected = format!(
            "{head}04d0000000000700005000000{}{}{}{}{}{}6d762f612fff{}{}",
            word(12),
            word(99),
            word(1),
            word(500),
            word(600),
            word(3),
            word(0),
            word(10)
        );
        assert_eq!(hex(&Origin::Changes(changes())), expected);
        let unknown = OriginUnknown { from: Timestamp(5), to: Timestamp(6), missing: 7, why: "why".into() };
        let expected = format!("0200030000000000{}{}{}776879", word(5), word(6), word(7));
        assert_eq!(hex(&Origin::Unknown(unknown)), expected);
        let process = Process { pid: 77, start_ns: 99, cgroup: 1, name: b"rm".to_vec() };
        let (began, recognised) = (Timestamp(5), Timestamp(6));
        let (rewritten, removed, sampled, random) = (1, 2, 3, 4);
        let rest = format!("4d00000001000000020000000300000004000000{}{}", word(99), word(1))
            + &format!("{}{}726d", word(5), word(6));
        // Those of before what they held was compared have zeros there.
        for (compared, spoiled, head) in [(0, 0, "03020000"), (7, 6, "03020706")] {
            let process = process.clone();
            let burst = FileBurst {
                process,
                began,
                recognised,
                rewritten,
                removed,
                sampled,
                random,
                compared,
                spoiled,
            };
            assert_eq!(hex(&Origin::Burst(burst)), format!("{head}{rest}"));
        }
        let extents = vec![PlacedExtent { offset: 0, start: 4096, length: 512 }];
        let places = FilePlaces { file: changes().file, at: Timestamp(5), extents };
        let expected = format!(
            "040001000000700005000000000000000c00000000000000{}{}{}{}",
            word(5),
            word(0),
            word(4096),
            word(512)
        );
        assert_eq!(hex(&Origin::Places(places)), expected);
    }

    #[test]
    fn what_the_format_has_no_place_for_is_refused() {
        let range = |start, end| ByteRange { start, end };
        for ranges in [
            vec![range(5, 5)],
            vec![range(0, 5), range(5, 9)],
            vec![range(10, 20), range(0, 5)],
            vec![range(0, VOLUME_END_MAX + 1)],
            (0..1025).map(|at| range(at * 2, at * 2 + 1)).collect(),
        ] {
            assert!(encoded_len(&Origin::Changes(FileChanges { ranges, ..changes() })).is_err());
        }
        assert!(encoded_len(&Origin::Changes(FileChanges { path: vec![1; 65536], ..changes() })).is_err());
        assert!(encoded_len(&Origin::Changes(FileChanges { ops: FileOps(1), ..changes() })).is_err());
    }

    #[test]
    fn extents_that_overlap_or_hold_nothing_are_refused() {
        let places = |extents: &[(u64, u64, u64)]| {
            let extent = |&(offset, start, length): &_| PlacedExtent { offset, start, length };
            let extents = extents.iter().map(extent).collect();
            Origin::Places(FilePlaces { file: FileId::default(), at: Timestamp(0), extents })
        };
        assert!(encoded_len(&places(&[(0, 100, 5), (5, 0, 5)])).is_ok());
        for wrong in [
            &[(0, 100, 0)][..],
            &[(0, 100, 5), (4, 0, 5)],
            &[(0, VOLUME_END_MAX, 1)],
            &[(9, 0, 1), (0, 9, 1)],
        ] {
            assert!(encoded_len(&places(wrong)).is_err(), "{wrong:?}");
            let mut bytes = Vec::new();
            encode(&mut bytes, &places(wrong));
            assert!(decode(&bytes).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_not_known_or_contradicts_itself_is_no_origin() {
        let mut good = Vec::new();
        encode(&mut good, &Origin::Changes(changes()));
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            decode(&bytes)
        };
        assert!(matches!(with(0, 5), Err(FormatError::Unknown(_))));
        assert!(matches!(with(11, 0x80), Err(FormatError::Unknown(_))), "an operation that is not known");
        for (at, value) in [(1, 9), (2, 2), (4, 9), (6, 9)] {
            assert!(matches!(with(at, value), Err(FormatError::Malformed(_))), "byte {at}");
        }
        let last = good.len() - 8;
        assert!(matches!(with(last, 0), Err(FormatError::Malformed(_))), "an empty range");
        assert!(decode(&[]).is_err() && decode(&good[..40]).is_err());
    }
}
