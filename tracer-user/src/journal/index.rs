//! What a sealed segment says about itself at its end, so that marks and LSNs are found without reading it all.
//! See docs/FORMAT.md. Pure.

use crate::journal::format::{FormatError, u32_at, u64_at};
use crate::journal::record::{BodyView, RecordView, class_of, label_of};
use crate::model::{Lsn, MarkId, Point, Timestamp};

/// Distance of the frames that get an entry.
const ENTRY_EVERY_BYTES: u64 = 1 << 20;
const ENTRY_LEN: usize = 16;
const MARK_FIXED_LEN: usize = 28;

/// The marks of a segment, and where some of its frames start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    entries: Vec<Entry>,
    points: Vec<Point>,
    label_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First LSN of the frame.
    pub lsn: Lsn,
    /// Byte of the segment the frame starts at.
    pub offset: u64,
}

impl Index {
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    pub fn into_points(self) -> Vec<Point> {
        self.points
    }

    /// The last known frame that starts at or before `lsn`.
    pub fn frame_before(&self, lsn: Lsn) -> Option<Entry> {
        let after = self.entries.partition_point(|entry| entry.lsn <= lsn);
        after.checked_sub(1).map(|at| self.entries[at])
    }

    /// Takes note of a frame; frames come in order.
    pub fn add_frame(&mut self, entry: Entry) {
        let due = |last: &Entry| entry.offset - last.offset >= ENTRY_EVERY_BYTES;
        if self.entries.last().is_none_or(due) {
            self.entries.push(entry);
        }
    }

    pub fn add_point(&mut self, point: Point) {
        self.label_bytes += point.label.len();
        self.points.push(point);
    }

    /// Size of the encoding in bytes.
    pub fn encoded_len(&self) -> usize {
        8 + self.entries.len() * ENTRY_LEN + self.points.len() * MARK_FIXED_LEN + self.label_bytes
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let count =
            |n: usize| u32::try_from(n).expect("the writer seals long before 2^32 entries").to_le_bytes();
        out.extend_from_slice(&count(self.entries.len()));
        out.extend_from_slice(&count(self.points.len()));
        for entry in &self.entries {
            out.extend_from_slice(&entry.lsn.0.to_le_bytes());
            out.extend_from_slice(&entry.offset.to_le_bytes());
        }
        for point in &self.points {
            for field in [point.lsn.0, point.time.0, point.id.0] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            let label_len = u16::try_from(point.label.len()).expect("labels are capped at 4096 bytes");
            out.extend_from_slice(&[point.class as u8, 0]);
            out.extend_from_slice(&label_len.to_le_bytes());
            out.extend_from_slice(point.label.as_bytes());
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Index, FormatError> {
        const SHORT: FormatError = FormatError::Malformed("an incomplete index");
        let (counts, mut rest) = bytes.split_first_chunk::<8>().ok_or(SHORT)?;
        let mut index = Index::default();
        for _ in 0..u32_at(counts, 0) {
            let (entry, after) = rest.split_first_chunk::<ENTRY_LEN>().ok_or(SHORT)?;
            let entry = Entry { lsn: Lsn(u64_at(entry, 0)), offset: u64_at(entry, 8) };
            if index.entries.last().is_some_and(|last| last.lsn >= entry.lsn || last.offset >= entry.offset) {
                return Err(FormatError::Malformed("an index out of order"));
            }
            index.entries.push(entry);
            rest = after;
        }
        for _ in 0..u32_at(counts, 4) {
            let (fixed, after) = rest.split_first_chunk::<MARK_FIXED_LEN>().ok_or(SHORT)?;
            let label_len = u16::from_le_bytes([fixed[26], fixed[27]]);
            let (label, after) = after.split_at_checked(usize::from(label_len)).ok_or(SHORT)?;
            if fixed[25] != 0 {
                return Err(FormatError::Unknown("something in the reserved byte of an index".into()));
            }
            index.add_point(Point {
                lsn: Lsn(u64_at(fixed, 0)),
                time: Timestamp(u64_at(fixed, 8)),
                id: MarkId(u64_at(fixed, 16)),
                class: class_of(fixed[24])?,
                label: label_of(label, label_len)?.to_owned(),
            });
            rest = after;
        }
        if rest.is_empty() { Ok(index) } else { Err(FormatError::Malformed("bytes after the index")) }
    }
}

/// The point a record makes, if it is a mark.
pub fn point_of(record: &RecordView<'_>) -> Option<Point> {
    match record.body {
        BodyView::Mark { id, class, label } => {
            Some(Point { id, class, lsn: record.lsn, time: record.time, label: label.to_owned() })
        }
        _ => None,
    }
}
