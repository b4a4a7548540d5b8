//! Records as the bytes of a frame's raw payload: see docs/FORMAT.md. Pure.

use crate::journal::format::{FormatError, Version, u32_at, u64_at};
use crate::journal::{origin, tree};
use crate::model::{ByteRange, Lsn, Mark, MarkId, PointClass, Record, RecordBody, Timestamp};

pub const RECORD_HEADER_LEN: usize = 40;
/// Most bytes one Data record may carry.
pub const DATA_LEN_MAX: usize = 4 << 20;
/// Most bytes a mark's label may have.
pub const LABEL_LEN_MAX: usize = 4096;
/// Volumes end here.
pub const VOLUME_END_MAX: u64 = 1 << 63;
const MARK_FIXED_LEN: usize = 12;
/// Bit of a record's flags.
const ORDERED: u8 = 1;

/// A record whose bytes still stand in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    pub lsn: Lsn,
    pub time: Timestamp,
    pub ordered: bool,
    pub body: BodyView<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyView<'a> {
    Data {
        start: u64,
        bytes: &'a [u8],
    },
    Zero(ByteRange),
    Discard(ByteRange),
    Mark {
        id: MarkId,
        class: PointClass,
        label: &'a str,
    },
    Gap(ByteRange),
    /// The bytes of an origin that can be decoded.
    Origin(&'a [u8]),
    /// Range and bytes of a change of a tree that can be decoded.
    Tree(ByteRange, &'a [u8]),
}

impl RecordView<'_> {
    /// Ends what can be restored to any instant, until the next restorable mark.
    pub fn breaks(&self) -> bool {
        match self.body {
            BodyView::Data { .. } | BodyView::Zero(_) | BodyView::Discard(_) | BodyView::Origin(_) => {
                !self.ordered
            }
            BodyView::Mark { .. } => false,
            BodyView::Gap(_) | BodyView::Tree(..) => true,
        }
    }

    pub fn to_record(self) -> Record {
        let body = match self.body {
            BodyView::Data { start, bytes } => RecordBody::Data { start, bytes: bytes.to_vec() },
            BodyView::Zero(range) => RecordBody::Zero(range),
            BodyView::Discard(range) => RecordBody::Discard(range),
            BodyView::Mark { id, class, label } => {
                RecordBody::Mark(Mark { id, class, label: label.to_owned() })
            }
            BodyView::Gap(range) => RecordBody::Gap(range),
            BodyView::Tree(range, body) => {
                RecordBody::Tree(tree::decode(range, body).expect("there is a view of what was decoded only"))
            }
            BodyView::Origin(body) => {
                RecordBody::Origin(origin::decode(body).expect("there is a view of what was decoded only"))
            }
        };
        Record { lsn: self.lsn, time: self.time, ordered: self.ordered, body }
    }
}

/// Bytes the record will take in a frame.
///
/// # Errors
/// Says what is wrong with the record when the format has no place for it.
pub fn encoded_len(body: &RecordBody) -> Result<usize, String> {
    let body_len = match body {
        RecordBody::Data { start, bytes } => {
            if bytes.len() > DATA_LEN_MAX {
                return Err(format!(
                    "{} data bytes at once; cut them into records of 1 MiB (4 MiB at most)",
                    bytes.len()
                ));
            }
            // DATA_LEN_MAX is far below 2^63.
            if *start > VOLUME_END_MAX - bytes.len() as u64 {
                return Err(format!("data at byte {start}; volumes end at 2^63"));
            }
            bytes.len()
        }
        RecordBody::Zero(range) | RecordBody::Discard(range) | RecordBody::Gap(range) => {
            if range.start > range.end || range.end > VOLUME_END_MAX {
                return Err(format!("range {range}; ranges run forward and volumes end at 2^63"));
            }
            0
        }
        RecordBody::Mark(mark) => {
            if mark.label.len() > LABEL_LEN_MAX {
                return Err(format!(
                    "a mark's label of {} bytes; use {LABEL_LEN_MAX} at most",
                    mark.label.len()
                ));
            }
            MARK_FIXED_LEN + mark.label.len()
        }
        RecordBody::Origin(origin) => origin::encoded_len(origin)?,
        RecordBody::Tree(change) => tree::encoded_len(change)?,
    };
    Ok(RECORD_HEADER_LEN + body_len)
}

/// Appends a record that [`encoded_len`] accepted. Only content and origins are `ordered`.
pub fn encode(out: &mut Vec<u8>, lsn: Lsn, time: Timestamp, ordered: bool, body: &RecordBody) {
    let (kind, start, len): (u8, u64, u64) = match body {
        RecordBody::Data { start, bytes } => (1, *start, bytes.len() as u64),
        RecordBody::Zero(range) => (2, range.start, range.len()),
        RecordBody::Discard(range) => (3, range.start, range.len()),
        RecordBody::Mark(_) => (6, 0, 0),
        RecordBody::Origin(_) => (4, 0, 0),
        RecordBody::Tree(change) => (5, tree::range(change).start, tree::range(change).len()),
        RecordBody::Gap(range) => (7, range.start, range.len()),
    };
    let body_len = match body {
        RecordBody::Data { bytes, .. } => bytes.len(),
        RecordBody::Mark(mark) => MARK_FIXED_LEN + mark.label.len(),
        RecordBody::Origin(origin) => origin::encoded_len(origin).expect("it was accepted"),
        RecordBody::Tree(change) => tree::encoded_len(change).expect("it was accepted"),
        _ => 0,
    };
    out.extend_from_slice(&[kind, if ordered { ORDERED } else { 0 }, 0, 0]);
    out.extend_from_slice(&u32::try_from(body_len).expect("encoded_len caps bodies at 4 MiB").to_le_bytes());
    for field in [lsn.0, time.0, start, len] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    match body {
        RecordBody::Data { bytes, .. } => out.extend_from_slice(bytes),
        RecordBody::Origin(origin) => origin::encode(out, origin),
        RecordBody::Tree(change) => tree::encode(out, change),
        RecordBody::Mark(mark) => {
            let label_len = u16::try_from(mark.label.len()).expect("encoded_len caps labels at 4096 bytes");
            out.extend_from_slice(&mark.id.0.to_le_bytes());
            out.extend_from_slice(&[mark.class as u8, 0]);
            out.extend_from_slice(&label_len.to_le_bytes());
            out.extend_from_slice(mark.label.as_bytes());
        }
        _ => {}
    }
}

/// Goes through the records of one frame and holds them to what its header promised.
#[derive(Clone, Copy, Debug)]
pub struct FrameCursor {
    version: Version,
    at: usize,
    next: Lsn,
    last: Lsn,
}

impl FrameCursor {
    /// `version` is that of the segment.
    pub fn new(version: Version, first: Lsn, last: Lsn) -> FrameCursor {
        FrameCursor { version, at: 0, next: first, last }
    }

    /// The next record of `raw`, the frame's raw payload; None after the last one.
    pub fn next<'a>(&mut self, raw: &'a [u8]) -> Result<Option<RecordView<'a>>, FormatError> {
        if self.next > self.last {
            return if self.at == raw.len() {
                Ok(None)
            } else {
                Err(FormatError::Malformed("bytes after the last record of a frame"))
            };
        }
        let (record, len) = decode(&raw[self.at..])?;
        if record.lsn != self.next {
            return Err(FormatError::Malformed("a record out of its order"));
        }
        if matches!(record.body, BodyView::Origin(_) | BodyView::Tree(..)) && self.version == Version::V1 {
            return Err(FormatError::Unknown(
                "an origin or a change of a tree in a segment of version 1".into(),
            ));
        }
        if record.ordered && self.version == Version::V1 {
            return Err(FormatError::Unknown("an ordered record in a segment of version 1".into()));
        }
        self.at += len;
        self.next = self.next.next();
        Ok(Some(record))
    }
}

/// The record `bytes` start with, and its length. The frame's checksum was right, so nothing here is torn.
pub fn decode(bytes: &[u8]) -> Result<(RecordView<'_>, usize), FormatError> {
    let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER_LEN>() else {
        return Err(FormatError::Malformed("an incomplete record"));
    };
    let body_len = u32_at(header, 4) as usize;
    let Some(body) = rest.get(..body_len) else {
        return Err(FormatError::Malformed("a record longer than its frame"));
    };
    let ordered = header[1] & ORDERED != 0 && matches!(header[0], 1..=4);
    if header[1] != if ordered { ORDERED } else { 0 } || header[2..4] != [0; 2] {
        return Err(FormatError::Unknown(format!("a record with flags {:#04x}", header[1])));
    }
    let (start, len) = (u64_at(header, 24), u64_at(header, 32));
    let end = start.checked_add(len).filter(|end| *end <= VOLUME_END_MAX);
    let end = end.ok_or(FormatError::Malformed("a record past the end of all volumes"))?;
    let range = ByteRange { start, end };
    let view = match header[0] {
        1 if len == body_len as u64 && body_len <= DATA_LEN_MAX => BodyView::Data { start, bytes: body },
        2 if body.is_empty() => BodyView::Zero(range),
        3 if body.is_empty() => BodyView::Discard(range),
        4 if start == 0 && len == 0 => {
            origin::decode(body)?;
            BodyView::Origin(body)
        }
        5 => {
            tree::decode(range, body)?;
            BodyView::Tree(range, body)
        }
        6 if start == 0 && len == 0 => decode_mark(body)?,
        7 if body.is_empty() => BodyView::Gap(range),
        1..=4 | 6 | 7 => return Err(FormatError::Malformed("a record whose lengths contradict each other")),
        kind => return Err(FormatError::Unknown(format!("a record of kind {kind}"))),
    };
    let (lsn, time) = (Lsn(u64_at(header, 8)), Timestamp(u64_at(header, 16)));
    let record = RecordView { lsn, time, ordered, body: view };
    Ok((record, RECORD_HEADER_LEN + body_len))
}

fn decode_mark(body: &[u8]) -> Result<BodyView<'_>, FormatError> {
    let Some((fixed, label)) = body.split_first_chunk::<MARK_FIXED_LEN>() else {
        return Err(FormatError::Malformed("an incomplete mark"));
    };
    if fixed[9] != 0 {
        return Err(FormatError::Unknown("something in the reserved byte of a mark".into()));
    }
    Ok(BodyView::Mark {
        id: mark_id_of(u64_at(fixed, 0))?,
        class: class_of(fixed[8])?,
        label: label_of(label, u16::from_le_bytes([fixed[10], fixed[11]]))?,
    })
}

/// Each mark has one after it.
pub(super) fn mark_id_of(number: u64) -> Result<MarkId, FormatError> {
    match number {
        u64::MAX => Err(FormatError::Malformed("a mark after which there can't be another")),
        number => Ok(MarkId(number)),
    }
}

pub(super) fn class_of(byte: u8) -> Result<PointClass, FormatError> {
    match byte {
        1 => Ok(PointClass::Fuzzy),
        2 => Ok(PointClass::Crash),
        3 => Ok(PointClass::Fs),
        4 => Ok(PointClass::App),
        class => Err(FormatError::Unknown(format!("a mark of class {class}"))),
    }
}

pub(super) fn label_of(bytes: &[u8], len: u16) -> Result<&str, FormatError> {
    if bytes.len() != usize::from(len) || bytes.len() > LABEL_LEN_MAX {
        return Err(FormatError::Malformed("a label of another length than announced"));
    }
    std::str::from_utf8(bytes).map_err(|_| FormatError::Malformed("a label that is not UTF-8"))
}
