//! What a sealed segment says about itself at its end, so that marks, instants and LSNs are found without reading it all.
//! See docs/FORMAT.md. Pure.

use crate::journal::format::{FormatError, FrameHeader, SEGMENT_HEADER_LEN, Version, u32_at, u64_at};
use crate::journal::record::{BodyView, FrameCursor, RecordView, class_of, label_of, mark_id_of};
use crate::model::{Lsn, Point, Timestamp};

/// Distance of the frames that get an entry.
const ENTRY_EVERY_BYTES: u64 = 1 << 20;
const MARK_FIXED_LEN: usize = 28;
const BREAK_LEN: usize = 16;

/// The marks of a segment, where its history breaks, and where some of its frames start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    version: Version,
    entries: Vec<Entry>,
    points: Vec<Point>,
    breaks: Vec<Break>,
    /// Bytes of all records before compression; 0 in version 1.
    raw_bytes: u64,
    /// Of the last record; 0 in version 1.
    last_time: Timestamp,
    label_bytes: usize,
    /// No record broke the history since the last restorable mark or the segment's start.
    intact: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First LSN of the frame.
    pub lsn: Lsn,
    /// Byte of the segment the frame starts at.
    pub offset: u64,
    /// The earliest time among the records from this frame up to the next entry; 0 in version 1.
    pub time_min: Timestamp,
}

/// The first record that breaks the history after a restorable mark, or after the start of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Break {
    pub lsn: Lsn,
    /// Of the record before it; 0 when that is in another segment.
    pub time_before: Timestamp,
}

impl Index {
    /// Of a segment without frames.
    pub fn new(version: Version) -> Index {
        Index {
            version,
            entries: Vec::new(),
            points: Vec::new(),
            breaks: Vec::new(),
            raw_bytes: 0,
            last_time: Timestamp(0),
            label_bytes: 0,
            intact: true,
        }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn points(&self) -> &[Point] {
        &self.points
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn last_time(&self) -> Timestamp {
        self.last_time
    }

    /// Bytes of all records before compression; `None` when it was not noted.
    pub fn raw_bytes(&self) -> Option<u64> {
        (self.version != Version::V1).then_some(self.raw_bytes)
    }

    /// Whether all it says is about the records `first..=last`, in frames that end where the index frame starts.
    pub fn lies_within(&self, first: Lsn, last: Lsn, index_offset: u64) -> bool {
        let records = first..=last;
        let frames = SEGMENT_HEADER_LEN as u64..index_offset;
        self.entries.iter().all(|entry| records.contains(&entry.lsn) && frames.contains(&entry.offset))
            && self.points.iter().all(|point| records.contains(&point.lsn))
            && self.breaks.iter().all(|found| records.contains(&found.lsn))
    }

    /// Where the history breaks in a segment that holds the records `first..=last`. In one of version 1 every record but
    /// a mark does that.
    pub fn breaks(&self, first: Lsn, last: Lsn) -> Vec<Break> {
        if self.version != Version::V1 {
            return self.breaks.clone();
        }
        let start = (first, Timestamp(0));
        let marks = self.points.iter().filter(|point| point.lsn < last);
        let after = marks.map(|point| (point.lsn.next(), point.time));
        std::iter::once(start)
            .chain(after)
            .filter(|(lsn, _)| *lsn <= last)
            .filter(|(lsn, _)| self.points.binary_search_by_key(lsn, |point| point.lsn).is_err())
            .map(|(lsn, time_before)| Break { lsn, time_before })
            .collect()
    }

    /// The last known frame that starts at or before `lsn`.
    pub fn frame_before(&self, lsn: Lsn) -> Option<Entry> {
        let after = self.entries.partition_point(|entry| entry.lsn <= lsn);
        after.checked_sub(1).map(|at| self.entries[at])
    }

    /// Takes note of a frame; frames come in order.
    pub fn add_frame(&mut self, header: &FrameHeader) {
        let due = |last: &Entry| header.offset - last.offset >= ENTRY_EVERY_BYTES;
        if self.entries.last().is_none_or(due) {
            let time_min = Timestamp(if self.version == Version::V1 { 0 } else { u64::MAX });
            self.entries.push(Entry { lsn: header.first_lsn, offset: header.offset, time_min });
        }
        if self.version != Version::V1 {
            self.raw_bytes += u64::from(header.raw_len);
        }
    }

    /// Whether a frame has to be looked into to know all marks and breaks; times are known only of those that were.
    pub fn misses_records_of(&self, header: &FrameHeader) -> bool {
        header.marks > 0 || (header.breaks > 0 && self.intact)
    }

    /// Takes note of the records of the frame added last.
    pub fn add_records(&mut self, header: &FrameHeader, raw: &[u8]) -> Result<(), FormatError> {
        let mut cursor = FrameCursor::new(self.version, header.first_lsn, header.last_lsn);
        while let Some(record) = cursor.next(raw)? {
            self.add_record(&record);
        }
        Ok(())
    }

    /// Takes note of a record of the frame added last.
    pub fn add_record(&mut self, record: &RecordView<'_>) {
        if let BodyView::Mark { id, class, label } = record.body {
            let (lsn, time) = (record.lsn, record.time);
            self.intact |= class.restorable();
            self.add_point(Point { id, class, lsn, time, label: label.to_owned() });
        }
        if self.version == Version::V1 {
            return;
        }
        if record.breaks() && self.intact {
            self.intact = false;
            self.breaks.push(Break { lsn: record.lsn, time_before: self.last_time });
        }
        self.last_time = record.time;
        if let Some(entry) = self.entries.last_mut() {
            entry.time_min = entry.time_min.min(record.time);
        }
    }

    fn add_point(&mut self, point: Point) {
        self.label_bytes += point.label.len();
        self.points.push(point);
    }

    /// Size of the encoding in bytes.
    pub fn encoded_len(&self) -> usize {
        let (head_len, entry_len) = lengths(self.version);
        head_len
            + self.entries.len() * entry_len
            + self.points.len() * MARK_FIXED_LEN
            + self.label_bytes
            + self.breaks.len() * BREAK_LEN
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let count =
            |n: usize| u32::try_from(n).expect("the writer seals long before 2^32 entries").to_le_bytes();
        out.extend_from_slice(&count(self.entries.len()));
        out.extend_from_slice(&count(self.points.len()));
        if self.version != Version::V1 {
            out.extend_from_slice(&count(self.breaks.len()));
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&self.raw_bytes.to_le_bytes());
            out.extend_from_slice(&self.last_time.0.to_le_bytes());
        }
        for entry in &self.entries {
            out.extend_from_slice(&entry.lsn.0.to_le_bytes());
            out.extend_from_slice(&entry.offset.to_le_bytes());
            if self.version != Version::V1 {
                out.extend_from_slice(&entry.time_min.0.to_le_bytes());
            }
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
        for Break { lsn, time_before } in &self.breaks {
            out.extend_from_slice(&lsn.0.to_le_bytes());
            out.extend_from_slice(&time_before.0.to_le_bytes());
        }
    }

    pub fn decode(version: Version, bytes: &[u8]) -> Result<Index, FormatError> {
        const SHORT: FormatError = FormatError::Malformed("an incomplete index");
        const ORDER: FormatError = FormatError::Malformed("an index out of order");
        let (head_len, entry_len) = lengths(version);
        let (head, mut rest) = bytes.split_at_checked(head_len).ok_or(SHORT)?;
        let mut index = Index::new(version);
        let mut breaks = 0;
        if version != Version::V1 {
            breaks = u32_at(head, 8);
            if u32_at(head, 12) != 0 {
                return Err(FormatError::Unknown("something in the reserved bytes of an index".into()));
            }
            index.raw_bytes = u64_at(head, 16);
            index.last_time = Timestamp(u64_at(head, 24));
        }
        for _ in 0..u32_at(head, 0) {
            let (bytes, after) = rest.split_at_checked(entry_len).ok_or(SHORT)?;
            let time_min = Timestamp(if version == Version::V1 { 0 } else { u64_at(bytes, 16) });
            let entry = Entry { lsn: Lsn(u64_at(bytes, 0)), offset: u64_at(bytes, 8), time_min };
            if index.entries.last().is_some_and(|last| last.lsn >= entry.lsn || last.offset >= entry.offset) {
                return Err(ORDER);
            }
            index.entries.push(entry);
            rest = after;
        }
        for _ in 0..u32_at(head, 4) {
            let (fixed, after) = rest.split_at_checked(MARK_FIXED_LEN).ok_or(SHORT)?;
            let label_len = u16::from_le_bytes([fixed[26], fixed[27]]);
            let (label, after) = after.split_at_checked(usize::from(label_len)).ok_or(SHORT)?;
            if fixed[25] != 0 {
                return Err(FormatError::Unknown("something in the reserved byte of an index".into()));
            }
            index.add_point(Point {
                lsn: Lsn(u64_at(fixed, 0)),
                time: Timestamp(u64_at(fixed, 8)),
                id: mark_id_of(u64_at(fixed, 16))?,
                class: class_of(fixed[24])?,
                label: label_of(label, label_len)?.to_owned(),
            });
            rest = after;
        }
        for _ in 0..breaks {
            let (bytes, after) = rest.split_at_checked(BREAK_LEN).ok_or(SHORT)?;
            let found = Break { lsn: Lsn(u64_at(bytes, 0)), time_before: Timestamp(u64_at(bytes, 8)) };
            if index.breaks.last().is_some_and(|last| last.lsn >= found.lsn) {
                return Err(ORDER);
            }
            index.breaks.push(found);
            rest = after;
        }
        let broken = index.breaks.last().map(|last| last.lsn);
        let marked = index.points.iter().rfind(|point| point.class.restorable()).map(|point| point.lsn);
        index.intact = broken.is_none() || broken < marked;
        if rest.is_empty() { Ok(index) } else { Err(FormatError::Malformed("bytes after the index")) }
    }
}

/// Of the counts at the start, and of an entry.
fn lengths(version: Version) -> (usize, usize) {
    match version {
        Version::V1 => (8, 16),
        Version::V2 => (32, 24),
    }
}
