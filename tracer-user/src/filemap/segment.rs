//! The file that holds the records: a header, then frames with a checksum each. Pure, see docs/FORMAT.md.

use crate::filemap::record::{RECORD_BYTES_MAX, Record, RecordError};

const MAGIC: [u8; 8] = *b"AWFILMAP";
const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 32;
pub const FRAME_HEADER_BYTES: usize = 8;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    #[error("it does not begin as a file of maps does")]
    Magic,
    #[error("it is of version {0}, and this afterwrite knows {VERSION}; use a newer one")]
    Version(u32),
    #[error("it needs the features {0:#x}, which this afterwrite does not know; use a newer one")]
    Features(u32),
    #[error("the checksum of its header is wrong")]
    HeaderChecksum,
    #[error("it is number {found}, and its name says {expected}")]
    Number { found: u64, expected: u64 },
    #[error("damaged at byte {offset}, in front of sound records")]
    Damaged { offset: u64 },
    #[error("the record at byte {offset} is not understood")]
    Record {
        offset: u64,
        #[source]
        source: RecordError,
    },
}

pub fn header(number: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// A record as it stands at byte `offset` of segment `number`.
pub fn frame(number: u64, offset: u64, record: &Record) -> Vec<u8> {
    let payload = record.encode();
    let len = u32::try_from(payload.len()).expect("at most RECORD_BYTES_MAX").to_le_bytes();
    let checksum = checksum(number, offset, len, &payload).to_le_bytes();
    [&len, &checksum, &payload[..]].concat()
}

/// What a segment holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Scanned {
    /// With where each begins.
    pub records: Vec<(u64, Record)>,
    /// Behind it nothing is sound: a torn tail, or nothing.
    pub end: u64,
}

/// Reads all of a segment. What is torn at its end is left out; damage in the middle is an error.
pub fn scan(number: u64, bytes: &[u8]) -> Result<Scanned, SegmentError> {
    check_header(number, bytes)?;
    let (mut records, mut at) = (Vec::new(), HEADER_BYTES);
    while let Some(payload) = sound(number, bytes, at) {
        let offset = at as u64;
        let record = Record::decode(payload).map_err(|source| SegmentError::Record { offset, source })?;
        records.push((offset, record));
        at += FRAME_HEADER_BYTES + payload.len();
    }
    let offset = at as u64;
    if (at + 1..bytes.len()).any(|later| sound(number, bytes, later).is_some()) {
        return Err(SegmentError::Damaged { offset });
    }
    Ok(Scanned { records, end: offset })
}

fn check_header(number: u64, bytes: &[u8]) -> Result<(), SegmentError> {
    let bytes = bytes.first_chunk::<HEADER_BYTES>().ok_or(SegmentError::Magic)?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if bytes[..8] != MAGIC {
        return Err(SegmentError::Magic);
    }
    if word(8) != VERSION {
        return Err(SegmentError::Version(word(8)));
    }
    if crc32c::crc32c(&bytes[..28]) != word(28) {
        return Err(SegmentError::HeaderChecksum);
    }
    if word(12) != 0 {
        return Err(SegmentError::Features(word(12)));
    }
    match u64::from(word(16)) | u64::from(word(20)) << 32 {
        found if found == number => Ok(()),
        found => Err(SegmentError::Number { found, expected: number }),
    }
}

/// The payload of the frame at `at`, if there is one.
fn sound(number: u64, bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (expected, rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*len) as usize;
    if count == 0 || count > RECORD_BYTES_MAX {
        return None;
    }
    let payload = rest.get(..count)?;
    (checksum(number, at as u64, *len, payload) == u32::from_le_bytes(*expected)).then_some(payload)
}

/// Covers where the frame stands, so that one of another place or file fails.
fn checksum(number: u64, offset: u64, len: [u8; 4], payload: &[u8]) -> u32 {
    let place = crc32c::crc32c(&[&number.to_le_bytes()[..], &offset.to_le_bytes(), &len].concat());
    crc32c::crc32c_append(place, payload)
}

#[cfg(any(test, fuzzing))]
pub(super) fn with_checksums(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = header(number).to_vec();
    let mut rest = bytes;
    while let Some((len, more)) = rest.split_first() {
        let payload = &more[..usize::from(*len).min(more.len())];
        rest = &more[payload.len()..];
        let length = u32::try_from(payload.len()).expect("at most 255").to_le_bytes();
        let checksum = checksum(number, out.len() as u64, length, payload).to_le_bytes();
        out.extend([&length, &checksum, payload].concat());
    }
    out
}
