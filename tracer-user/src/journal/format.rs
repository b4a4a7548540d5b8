//! The fixed parts of a segment file as bytes: see docs/FORMAT.md. Pure: no clock, no I/O.
//!
//! Decoding goes in one order: enough bytes, magic, version, lengths within their caps, checksum, fields. What
//! fails before the fields may be a torn write ([`FormatError::Torn`]); what fails after it never is.

use crate::model::{Lsn, Timestamp, VolumeId};

pub const SEGMENT_HEADER_LEN: usize = 128;
pub const FRAME_HEADER_LEN: usize = 64;
pub const SEAL_LEN: usize = 64;
/// Most bytes a frame may hold before compression.
pub const RAW_LEN_MAX: usize = 16 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"AWsegmt\x01";
pub const SEAL_MAGIC: [u8; 8] = *b"AWseal\x01\n";
pub const FRAME_MAGIC: [u8; 4] = *b"\xA5AWf";

/// Bit of the seal's flags.
const SEAL_RECOVERED: u32 = 1;

const _: () = assert!(80 + 44 + 4 == SEGMENT_HEADER_LEN && 60 + 4 == FRAME_HEADER_LEN && 60 + 4 == SEAL_LEN);

/// Layout of a segment: what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// No record is ordered; the index knows neither breaks nor times.
    V1 = 1,
    /// What is written today.
    V2 = 2,
}

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// Too few bytes, no magic, an absurd length or a wrong checksum: a torn write looks so, and damage too.
    Torn(&'static str),
    Version(u16),
    Features(u32),
    /// The checksum holds, and it says something this program does not know.
    Unknown(String),
    /// The checksum holds, and the fields contradict each other.
    Malformed(&'static str),
}

/// Ties checksums to one segment of one volume, so that a block of another one fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u32);

impl Seed {
    pub fn new(volume: VolumeId, segment_first: Lsn) -> Seed {
        Seed(crc32c::crc32c_append(crc32c::crc32c(&volume.0), &segment_first.0.to_le_bytes()))
    }

    fn crc(self, position: u64, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &position.to_le_bytes()), bytes)
    }

    /// Checksum of a frame's stored payload; `offset` is the frame's.
    pub fn payload_crc(self, offset: u64, stored: &[u8]) -> u32 {
        self.crc(offset, stored)
    }
}

/// The first 128 bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub version: Version,
    pub volume: VolumeId,
    pub first_lsn: Lsn,
    pub created: Timestamp,
    /// BLAKE3 that the segment before was sealed with; zeros in the first.
    pub previous: [u8; 32],
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = [0; SEGMENT_HEADER_LEN];
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&(self.version as u16).to_le_bytes());
        out[10..12].copy_from_slice(&(SEGMENT_HEADER_LEN as u16).to_le_bytes());
        // 12..16: required features, none so far.
        out[16..32].copy_from_slice(&self.volume.0);
        put_u64(&mut out, 32, self.first_lsn.0);
        put_u64(&mut out, 40, self.created.0);
        out[48..80].copy_from_slice(&self.previous);
        let crc = crc32c::crc32c(&out[..124]);
        put_u32(&mut out, 124, crc);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, FormatError> {
        let bytes = prefix::<SEGMENT_HEADER_LEN>(bytes, "an incomplete segment header")?;
        if bytes[0..8] != SEGMENT_MAGIC {
            return Err(FormatError::Torn("no segment header"));
        }
        let version = match u16::from_le_bytes([bytes[8], bytes[9]]) {
            1 => Version::V1,
            2 => Version::V2,
            // There never was such a version: bytes not yet written.
            0 => return Err(FormatError::Torn("an incomplete segment header")),
            version => return Err(FormatError::Version(version)),
        };
        if u16::from_le_bytes([bytes[10], bytes[11]]) as usize != SEGMENT_HEADER_LEN {
            return Err(FormatError::Torn("a wrong length in the segment header"));
        }
        if u32_at(bytes, 124) != crc32c::crc32c(&bytes[..124]) {
            return Err(FormatError::Torn("a wrong checksum of the segment header"));
        }
        match u32_at(bytes, 12) {
            0 => {}
            features => return Err(FormatError::Features(features)),
        }
        if bytes[80..124] != [0; 44] {
            return Err(FormatError::Unknown("something in the reserved bytes of the segment header".into()));
        }
        let first_lsn = Lsn(u64_at(bytes, 32));
        if first_lsn == Lsn::ZERO {
            return Err(FormatError::Malformed("a segment that starts at LSN 0"));
        }
        Ok(SegmentHeader {
            version,
            volume: VolumeId(bytes_at(bytes, 16)),
            first_lsn,
            created: Timestamp(u64_at(bytes, 40)),
            previous: bytes_at(bytes, 48),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    Records = 1,
    Index = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Raw = 0,
    Zstd = 1,
}

/// The 64 bytes before a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub kind: FrameKind,
    pub codec: Codec,
    pub stored_len: u32,
    pub raw_len: u32,
    /// How many of the records are marks: a reader after marks skips the others.
    pub marks: u32,
    /// How many of the records break the history between two marks: unordered content and gaps. 0 in version 1, where
    /// all content does.
    pub breaks: u32,
    pub first_lsn: Lsn,
    pub last_lsn: Lsn,
    /// Byte of the segment this header starts at.
    pub offset: u64,
    /// Bytes of the segment known to be synced before this frame was written.
    pub durable_end: u64,
    pub payload_crc: u32,
}

impl FrameHeader {
    pub fn encode(&self, seed: Seed) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        out[0..4].copy_from_slice(&FRAME_MAGIC);
        out[4] = self.kind as u8;
        out[5] = self.codec as u8;
        put_u32(&mut out, 8, self.stored_len);
        put_u32(&mut out, 12, self.raw_len);
        put_u32(&mut out, 16, self.marks);
        put_u32(&mut out, 20, self.breaks);
        put_u64(&mut out, 24, self.first_lsn.0);
        put_u64(&mut out, 32, self.last_lsn.0);
        put_u64(&mut out, 40, self.offset);
        put_u64(&mut out, 48, self.durable_end);
        put_u32(&mut out, 56, self.payload_crc);
        let crc = seed.crc(self.offset, &out[..60]);
        put_u32(&mut out, 60, crc);
        out
    }

    /// The bytes, when they are a frame header written for this place, whatever it says.
    fn checked(bytes: &[u8], seed: Seed, offset: u64) -> Result<&[u8; FRAME_HEADER_LEN], FormatError> {
        let bytes = prefix::<FRAME_HEADER_LEN>(bytes, "an incomplete frame header")?;
        if bytes[0..4] != FRAME_MAGIC {
            return Err(FormatError::Torn("no frame"));
        }
        if u32_at(bytes, 8).max(u32_at(bytes, 12)) as usize > RAW_LEN_MAX {
            return Err(FormatError::Torn("a frame longer than 16 MiB"));
        }
        if u32_at(bytes, 60) != seed.crc(offset, &bytes[..60]) {
            return Err(FormatError::Torn("a wrong checksum of the frame header"));
        }
        if u64_at(bytes, 40) != offset {
            return Err(FormatError::Torn("a frame of another place"));
        }
        Ok(bytes)
    }

    /// `durable_end` of the frame header at `offset`, if there is one.
    pub fn durable_end_at(bytes: &[u8], seed: Seed, offset: u64) -> Option<u64> {
        FrameHeader::checked(bytes, seed, offset).ok().map(|bytes| u64_at(bytes, 48))
    }

    pub fn decode(bytes: &[u8], seed: Seed, offset: u64) -> Result<FrameHeader, FormatError> {
        let bytes = FrameHeader::checked(bytes, seed, offset)?;
        let kind = match bytes[4] {
            1 => FrameKind::Records,
            2 => FrameKind::Index,
            kind => return Err(FormatError::Unknown(format!("a frame of kind {kind}"))),
        };
        let codec = match bytes[5] {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            codec => return Err(FormatError::Unknown(format!("a frame of codec {codec}"))),
        };
        if bytes[6..8] != [0; 2] {
            return Err(FormatError::Unknown("something in the reserved bytes of a frame".into()));
        }
        let header = FrameHeader {
            kind,
            codec,
            stored_len: u32_at(bytes, 8),
            raw_len: u32_at(bytes, 12),
            marks: u32_at(bytes, 16),
            breaks: u32_at(bytes, 20),
            first_lsn: Lsn(u64_at(bytes, 24)),
            last_lsn: Lsn(u64_at(bytes, 32)),
            offset,
            durable_end: u64_at(bytes, 48),
            payload_crc: u32_at(bytes, 56),
        };
        let lengths_agree = match codec {
            Codec::Raw => header.stored_len == header.raw_len,
            Codec::Zstd => header.stored_len < header.raw_len,
        };
        if !lengths_agree {
            return Err(FormatError::Malformed("a frame whose lengths contradict its codec"));
        }
        if header.first_lsn > header.last_lsn
            || header.first_lsn == Lsn::ZERO
            || header.last_lsn.0 == u64::MAX
        {
            return Err(FormatError::Malformed("a frame with impossible LSNs"));
        }
        if header.durable_end > offset {
            return Err(FormatError::Malformed("a frame durable before it was written"));
        }
        Ok(header)
    }

    /// Where the next frame starts.
    pub fn end(&self) -> u64 {
        self.offset + FRAME_HEADER_LEN as u64 + u64::from(self.stored_len)
    }
}

/// The last 64 bytes of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    pub index_offset: u64,
    pub last_lsn: Lsn,
    /// BLAKE3 over all bytes of the segment before the seal.
    pub hash: [u8; 32],
    /// Written by a recovery: the segment's own writer left it open.
    pub recovered: bool,
}

impl Seal {
    /// `offset` is the byte of the segment the seal starts at.
    pub fn encode(&self, seed: Seed, offset: u64) -> [u8; SEAL_LEN] {
        let mut out = [0; SEAL_LEN];
        out[0..8].copy_from_slice(&SEAL_MAGIC);
        put_u64(&mut out, 8, self.index_offset);
        put_u64(&mut out, 16, self.last_lsn.0);
        out[24..56].copy_from_slice(&self.hash);
        put_u32(&mut out, 56, if self.recovered { SEAL_RECOVERED } else { 0 });
        let crc = seed.crc(offset, &out[..60]);
        put_u32(&mut out, 60, crc);
        out
    }

    pub fn decode(bytes: &[u8], seed: Seed, offset: u64) -> Result<Seal, FormatError> {
        let bytes = prefix::<SEAL_LEN>(bytes, "an incomplete seal")?;
        if bytes[0..8] != SEAL_MAGIC {
            return Err(FormatError::Torn("no seal"));
        }
        if u32_at(bytes, 60) != seed.crc(offset, &bytes[..60]) {
            return Err(FormatError::Torn("a wrong checksum of the seal"));
        }
        let flags = u32_at(bytes, 56);
        if flags & !SEAL_RECOVERED != 0 {
            return Err(FormatError::Unknown(format!("a seal with flags {flags:#x}")));
        }
        let seal = Seal {
            index_offset: u64_at(bytes, 8),
            last_lsn: Lsn(u64_at(bytes, 16)),
            hash: bytes_at(bytes, 24),
            recovered: flags & SEAL_RECOVERED != 0,
        };
        if seal.index_offset < SEGMENT_HEADER_LEN as u64 || seal.index_offset >= offset {
            return Err(FormatError::Malformed("a seal that points outside of its segment"));
        }
        if seal.last_lsn.0 == u64::MAX {
            return Err(FormatError::Malformed("a seal with an impossible LSN"));
        }
        Ok(seal)
    }
}

fn prefix<'a, const N: usize>(bytes: &'a [u8], missing: &'static str) -> Result<&'a [u8; N], FormatError> {
    bytes.first_chunk::<N>().ok_or(FormatError::Torn(missing))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk::<N>().expect("field positions lie within the fixed length just checked")
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
