//! The volume as it was after a record, read here and there straight from the journal.
//!
//! The way to the record is gone from its end, a MiB of the journal at a time and only as far back as what is asked for needs.
//! Of each frame it is noted which bytes of the volume its records speak of and no newer frame does. To read some bytes, the
//! frames that have them are unpacked, the last ones used from memory.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use rangemap::RangeMap;

use crate::io::store::{DirStore, Store};
use crate::journal::error::JournalError;
use crate::journal::folded::{Leg, Way};
use crate::journal::folds::Fold;
use crate::journal::reader::Journal;
use crate::journal::record::{BodyView, FrameCursor, decode};
use crate::journal::segment::segment_name;
use crate::journal::walk::{Opened, Step, Walk};
use crate::model::{ByteRange, Lsn};

/// Most ranges that are kept in memory, some 300 MB at worst.
const RANGES_MAX: usize = 1 << 22;
/// Most bytes of unpacked frames that are kept, and one frame more.
const FRAME_BYTES_MAX: usize = 32 << 20;

/// A volume at a point, to be read from. Memory is bounded by `RANGES_MAX` and `FRAME_BYTES_MAX`.
pub struct View<S: Store = DirStore> {
    journal: Journal<S>,
    way: Way,
    /// The parts of the way, from its beginning.
    parts: Vec<Part<S>>,
    /// So many of `parts` were not gone to their beginning.
    parts_left: usize,
    frames: Vec<FramePlace>,
    /// The frame that has the newest content of these bytes.
    places: RangeMap<u64, u32>,
    ranges_max: usize,
    cache: VecDeque<(u32, Arc<Vec<u8>>)>,
    cached_bytes: usize,
}

/// Records of a fold, or of the journal's segments.
struct Part<S: Store> {
    /// With the journal that it is.
    fold: Option<(Fold, Journal<S>)>,
    records: Range<Lsn>,
    /// The first records of its segments, those still to be looked at.
    segments: Vec<Lsn>,
    segment: Lsn,
    /// Of `segment`, still to be looked at: the first record of a frame, its place, and the record after the last frame.
    spans: Vec<(Lsn, u64, Lsn)>,
}

#[derive(Clone, Copy)]
struct FramePlace {
    part: u32,
    segment: Lsn,
    lsn: Lsn,
    offset: u64,
}

impl<S: Store> Journal<S> {
    /// The volume as it was after record `to`.
    ///
    /// # Errors
    /// As [`Journal::way`]; damage that was found in the manifest or the headers of segments.
    pub fn into_view(self, to: Lsn) -> Result<View<S>, JournalError> {
        let way = self.way(Lsn::ZERO, to)?;
        let parts: Vec<_> = way.legs.iter().map(|leg| Part::open(&self, leg)).collect::<Result<_, _>>()?;
        Ok(View {
            journal: self,
            parts_left: parts.len(),
            parts,
            way,
            frames: Vec::new(),
            places: RangeMap::new(),
            ranges_max: RANGES_MAX,
            cache: VecDeque::new(),
            cached_bytes: 0,
        })
    }
}

impl<S: Store> View<S> {
    pub fn size_bytes(&self) -> u64 {
        self.journal.info().size_bytes
    }

    /// Fills `buffer` from byte `start` of the volume on. What no record speaks of are zeros.
    ///
    /// # Errors
    /// Damage on the way; `Pruned` if it may be because the journal was pruned meanwhile; `Scattered`.
    pub fn read_at(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), JournalError> {
        let read = self.read(ByteRange::with_len(start, buffer.len() as u64), buffer);
        match read {
            Err(error) if !self.journal.is_current(&self.way).unwrap_or(true) => {
                Err(JournalError::Pruned { source: Box::new(error) })
            }
            read => read,
        }
    }

    #[cfg(test)]
    pub fn set_ranges_max(&mut self, ranges_max: usize) {
        self.ranges_max = ranges_max;
    }

    fn read(&mut self, wanted: ByteRange, buffer: &mut [u8]) -> Result<(), JournalError> {
        buffer.fill(0);
        if wanted.is_empty() {
            return Ok(());
        }
        while self.places.gaps(&(wanted.start..wanted.end)).next().is_some() && self.go_back()? {}
        let found: Vec<_> = self.places.overlapping(wanted.start..wanted.end).collect();
        let found: Vec<_> = found.into_iter().map(|(range, frame)| (range.clone(), *frame)).collect();
        for (range, frame) in found {
            let Some(range) = ByteRange::new(range.start, range.end).intersect(wanted) else { continue };
            let at = |byte: u64| usize::try_from(byte - wanted.start).expect("it is within the buffer");
            let part = self.frames[frame as usize].part as usize;
            self.read_frame(frame, range, &mut buffer[at(range.start)..at(range.end)])
                .map_err(|error| self.in_part(part, error))?;
        }
        Ok(())
    }

    /// Goes on to the beginning of the way by a part of a segment; `false` when it is there.
    fn go_back(&mut self) -> Result<bool, JournalError> {
        while let Some(number) = self.parts_left.checked_sub(1) {
            let part = &mut self.parts[number];
            let Some(span) = part.spans.pop() else {
                match part.next_segment(&self.journal) {
                    Ok(true) => {}
                    Ok(false) => self.parts_left = number,
                    Err(error) => return Err(self.in_part(number, error)),
                }
                continue;
            };
            self.look_at(number, span).map_err(|error| self.in_part(number, error))?;
            return Ok(true);
        }
        Ok(false)
    }

    fn in_part(&self, part: usize, error: JournalError) -> JournalError {
        match (&self.parts[part].fold, error) {
            (_, error @ JournalError::Scattered { .. }) | (None, error) => error,
            (Some((fold, _)), error) => self.journal.in_fold_error(fold, error),
        }
    }

    /// Notes what the frames of a span speak of and no newer one does.
    fn look_at(
        &mut self,
        part_number: usize,
        (lsn, offset, end): (Lsn, u64, Lsn),
    ) -> Result<(), JournalError> {
        let part = &self.parts[part_number];
        let journal = part.journal(&self.journal);
        let segment = part.segment;
        let mut walk = open_walk(journal, segment, lsn, offset)?;
        let mut raw = Vec::new();
        let mut spoken: Vec<(FramePlace, RangeMap<u64, ()>)> = Vec::new();
        while walk.next_lsn < end {
            let Step::Records(header) = walk.next(journal.store())? else {
                return Err(JournalError::gone(Lsn(end.0 - 1)));
            };
            walk.unpack(&header, &mut raw)?;
            let at = |error| JournalError::at(&walk.name, header.offset, error);
            let mut ranges = RangeMap::new();
            let mut cursor = FrameCursor::new(walk.header.version, header.first_lsn, header.last_lsn);
            while let Some(record) = cursor.next(&raw).map_err(at)? {
                if let Some((range, _)) = content(&record.body).filter(|_| part.records.contains(&record.lsn))
                    && !range.is_empty()
                {
                    ranges.insert(range.start..range.end, ());
                }
            }
            let part = u32::try_from(part_number).expect("a way has few legs");
            spoken.push((FramePlace { part, segment, lsn: header.first_lsn, offset: header.offset }, ranges));
        }
        for (place, ranges) in spoken.into_iter().rev() {
            let number = u32::try_from(self.frames.len()).expect("a journal has fewer frames");
            self.frames.push(place);
            for (range, ()) in ranges {
                let news: Vec<_> = self.places.gaps(&range).collect();
                news.into_iter().for_each(|new| self.places.insert(new, number));
            }
        }
        match self.places.len() > self.ranges_max {
            true => Err(JournalError::Scattered { ranges_max: self.ranges_max }),
            false => Ok(()),
        }
    }

    /// What a frame left in a range of which it has all.
    fn read_frame(&mut self, frame: u32, range: ByteRange, buffer: &mut [u8]) -> Result<(), JournalError> {
        let FramePlace { part, segment, lsn, offset } = self.frames[frame as usize];
        let part = &self.parts[part as usize];
        let journal = part.journal(&self.journal);
        let cached = self.cache.iter().position(|(there, _)| *there == frame);
        let raw = match cached.and_then(|at| self.cache.remove(at)) {
            Some((_, raw)) => raw,
            None => {
                let mut walk = open_walk(journal, segment, lsn, offset)?;
                let Step::Records(header) = walk.next(journal.store())? else {
                    return Err(JournalError::gone(lsn));
                };
                let mut raw = Vec::new();
                walk.unpack(&header, &mut raw)?;
                self.cached_bytes += raw.len();
                Arc::new(raw)
            }
        };
        // Its records were looked at before, in order and whole.
        let mut rest = &raw[..];
        while !rest.is_empty() {
            let at = |error| JournalError::at(&segment_name(segment), offset, error);
            let (record, len) = decode(rest).map_err(at)?;
            rest = &rest[len..];
            let Some((its, bytes)) = content(&record.body).filter(|_| part.records.contains(&record.lsn))
            else {
                continue;
            };
            let Some(both) = its.intersect(range) else { continue };
            let within = |of: ByteRange| {
                let at = |byte: u64| usize::try_from(byte - of.start).expect("records are short");
                at(both.start)..at(both.end)
            };
            match bytes {
                Some(bytes) => buffer[within(range)].copy_from_slice(&bytes[within(its)]),
                None => buffer[within(range)].fill(0),
            }
        }
        self.cache.push_back((frame, raw));
        while self.cached_bytes > FRAME_BYTES_MAX && self.cache.len() > 1 {
            self.cached_bytes -= self.cache.pop_front().map_or(0, |(_, raw)| raw.len());
        }
        Ok(())
    }
}

impl<S: Store> Part<S> {
    fn open(journal: &Journal<S>, leg: &Leg) -> Result<Part<S>, JournalError> {
        let open = |fold: &Fold| Ok::<_, JournalError>((fold.clone(), journal.fold_journal(fold)?));
        let fold = leg.fold.as_ref().map(open).transpose()?;
        let its = fold.as_ref().map_or(journal, |(_, its)| its);
        let segments = its.looking(|folds| its.firsts(folds))?;
        let records = leg.records_after.next()..leg.records_to.next();
        Ok(Part { fold, records, segments, segment: Lsn::ZERO, spans: Vec::new() })
    }

    fn journal<'a>(&'a self, journal: &'a Journal<S>) -> &'a Journal<S> {
        self.fold.as_ref().map_or(journal, |(_, its)| its)
    }

    /// Goes to the segment before; `false` when there is none.
    fn next_segment(&mut self, journal: &Journal<S>) -> Result<bool, JournalError> {
        let Some(first) = self.segments.pop() else { return Ok(false) };
        self.segment = first;
        if first >= self.records.end {
            return Ok(true);
        }
        let Some((index, last, _)) = self.journal(journal).index_of(first)? else { return Ok(true) };
        let ends = index.entries().iter().skip(1).map(|entry| entry.lsn).chain([last.next()]);
        let spans = index.entries().iter().zip(ends);
        self.spans = spans
            .map(|(entry, end)| (entry.lsn, entry.offset, end.min(self.records.end)))
            .filter(|(lsn, _, end)| lsn < end && *end > self.records.start)
            .collect();
        Ok(true)
    }
}

fn open_walk<S: Store>(
    journal: &Journal<S>,
    segment: Lsn,
    lsn: Lsn,
    offset: u64,
) -> Result<Box<Walk>, JournalError> {
    match Walk::open(journal.store(), journal.info().id, segment)? {
        Opened::HalfCreated(_) => Err(JournalError::gone(lsn)),
        Opened::Walk(mut walk) => {
            walk.seek(lsn, offset);
            Ok(walk)
        }
    }
}

/// Which bytes of the volume a record says the content of, and these, if they are not zeros.
fn content<'a>(body: &BodyView<'a>) -> Option<(ByteRange, Option<&'a [u8]>)> {
    match *body {
        BodyView::Data { start, bytes } => {
            Some((ByteRange::with_len(start, bytes.len() as u64), Some(bytes)))
        }
        BodyView::Zero(range) | BodyView::Discard(range) => Some((range, None)),
        BodyView::Mark { .. } | BodyView::Gap(_) | BodyView::Origin(_) | BodyView::Tree(..) => None,
    }
}
