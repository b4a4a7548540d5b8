//! Reading a way from its end: what it says of some bytes of the volume, the newest records first.

use std::ops::Range;
use std::sync::Arc;

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::fold::RANGES_MAX;
use crate::journal::folded::{Leg, Way};
use crate::journal::reader::Journal;
use crate::journal::records::Records;
use crate::journal::walk::{Opened, Walk};
use crate::model::{ByteRange, ByteRangeSet, Lsn, Record};

/// So many neighbouring parts of a fold, a MiB each, are read rather than searched.
const READ_RATHER: usize = 4;
/// Most ranges that are looked for at a time. Tests have small volumes.
const WANTED_MAX: usize = if cfg!(test) { 9 } else { RANGES_MAX };

/// Bytes of a volume that are looked for, within a window. Where they come to more ranges than are kept in memory the window ends
/// earlier, and the rest is for another time.
pub struct Wanted {
    ranges: ByteRangeSet,
    /// Those of `ranges` that were found in the part at hand.
    found: ByteRangeSet,
    window: ByteRange,
    ranges_max: usize,
}

impl Wanted {
    /// Nothing yet.
    pub fn within(window: ByteRange) -> Wanted {
        let (ranges, found) = (ByteRangeSet::new(), ByteRangeSet::new());
        Wanted { ranges, found, window, ranges_max: WANTED_MAX }
    }

    /// All of a window, which stays as it is: the caller looks whether it is crowded.
    pub fn all_of(window: ByteRange) -> Wanted {
        let mut wanted = Wanted { ranges_max: usize::MAX, ..Wanted::within(window) };
        wanted.insert(window);
        wanted
    }

    /// There are more ranges than should be kept in memory.
    pub fn is_crowded(&self) -> bool {
        self.ranges.range_count() > WANTED_MAX
    }

    pub fn window(&self) -> ByteRange {
        self.window
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn bytes(&self) -> u64 {
        self.ranges.bytes()
    }

    pub fn iter(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.ranges.iter()
    }

    pub fn insert(&mut self, range: ByteRange) {
        if let Some(part) = range.intersect(self.window) {
            self.ranges.insert(part);
            self.shrink();
        }
    }

    /// Takes note of the parts of `range` that are wanted. They still are, until `settle`.
    pub fn find(&mut self, range: ByteRange) -> Vec<ByteRange> {
        let parts: Vec<_> = self.overlapping(range).collect();
        parts.iter().for_each(|part| self.found.insert(*part));
        self.shrink();
        parts
    }

    /// All that was found is wanted no more: what older records say of it does not count.
    pub fn settle(&mut self) {
        for range in std::mem::take(&mut self.found).iter() {
            self.ranges.remove(range);
        }
        self.shrink();
    }

    /// The parts of `range` that are wanted.
    pub fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        self.ranges.overlapping(range)
    }

    fn shrink(&mut self) {
        let too_many = |set: &&ByteRangeSet| set.range_count() > self.ranges_max;
        let set = [&self.ranges, &self.found].into_iter().find(too_many);
        if let Some(middle) = set.and_then(|set| set.iter().nth(self.ranges_max / 2)) {
            let above = ByteRange::new(middle.start, u64::MAX);
            self.window.end = middle.start;
            self.ranges.remove(above);
            self.found.remove(above);
        }
    }
}

impl<S: Store> Journal<S> {
    /// A way whose records speak of every byte in which the states after two records may differ. It may go on after `to`, where
    /// that was folded and is no mark that was kept.
    ///
    /// # Errors
    /// As [`Journal::way`].
    pub fn way_over(&self, from: Lsn, to: Lsn) -> Result<Way, JournalError> {
        match self.way(from, to) {
            Err(JournalError::Folded { .. }) => {
                let folds = self.folds()?;
                let mut marks = folds.folds.iter().flat_map(|fold| &fold.marks);
                self.way(from, *marks.find(|mark| **mark >= to).unwrap_or(&to))
            }
            way => way,
        }
    }

    /// Wants every byte that the records of a way speak of.
    ///
    /// # Errors
    /// Damage on the way.
    pub fn want_touched(&self, way: &Way, wanted: &mut Wanted) -> Result<(), JournalError> {
        for leg in &way.legs {
            for record in up_to(leg.records_to, self.leg_records(leg)?) {
                record?.body.content_range().into_iter().for_each(|range| wanted.insert(range));
            }
        }
        Ok(())
    }

    /// Goes along a way from its end to its beginning.
    pub fn back<'a>(&'a self, way: &Way) -> Back<'a, S> {
        Back { journal: self, legs: way.legs.clone(), at: None }
    }
}

/// A way part by part, the last one first. Parts are some MiB of the journal; in each the records come in their order.
pub struct Back<'a, S: Store> {
    journal: &'a Journal<S>,
    /// Still to be gone, the last one first.
    legs: Vec<Leg>,
    at: Option<OpenLeg<S>>,
}

struct OpenLeg<S: Store> {
    /// As far as it was not gone; in a fold all of it.
    left: Leg,
    /// The journal that a fold is.
    fold: Option<Journal<S>>,
    records: Range<Lsn>,
    /// The first records of its segments, those still to be looked at.
    segments: Vec<Lsn>,
    segment: Lsn,
    spans: Vec<Span>,
    /// Of `spans`, still to be looked at.
    pieces: Vec<Piece>,
}

/// The records from one entry of an index up to the next.
struct Span {
    /// Of the frame it begins with.
    frame: (Lsn, u64),
    from: Lsn,
    to: Lsn,
}

/// Spans side by side.
struct Piece {
    spans: Range<usize>,
    /// Where on the volume its records are, at most.
    bytes: ByteRange,
    /// They are in the order of the volume.
    sorted: bool,
}

impl<S: Store> Back<'_, S> {
    /// The next part that may speak of what is wanted; `None` at the way's beginning, or when nothing is wanted.
    ///
    /// # Errors
    /// Damage on the way; a journal that was pruned meanwhile may look damaged.
    pub fn next_part(
        &mut self,
        wanted: &Wanted,
    ) -> Result<Option<impl Iterator<Item = Result<Record, JournalError>> + use<S>>, JournalError> {
        while !wanted.is_empty() {
            let Some(leg) = &mut self.at else {
                let Some(leg) = self.legs.pop() else { break };
                self.at = Some(OpenLeg::open(self.journal, &leg)?);
                continue;
            };
            let journal = leg.fold.as_ref().unwrap_or(self.journal);
            let Some(piece) = leg.pieces.pop() else {
                let Some(first) = leg.segments.pop() else {
                    self.at = None;
                    continue;
                };
                let (spans, pieces) = pieces(journal, first, &leg.records, leg.fold.is_some())?;
                (leg.segment, leg.spans, leg.pieces) = (first, spans, pieces);
                continue;
            };
            if wanted.overlapping(piece.bytes).next().is_none() {
                continue;
            }
            let middle = piece.spans.start + piece.spans.len() / 2;
            if piece.sorted
                && piece.spans.len() > READ_RATHER
                && let Some(first) = records(journal, leg.segment, &leg.spans[middle..=middle])?.next()
                && let Some(range) = first?.body.content_range()
            {
                let (below, above) = (piece.spans.start..middle, middle..piece.spans.end);
                let border = range.start.clamp(piece.bytes.start, piece.bytes.end);
                let below_bytes = ByteRange::new(piece.bytes.start, border);
                let above_bytes = ByteRange::new(border, piece.bytes.end);
                leg.pieces.push(Piece { spans: below, bytes: below_bytes, sorted: true });
                leg.pieces.push(Piece { spans: above, bytes: above_bytes, sorted: true });
                continue;
            }
            if !leg.left.is_fold() {
                leg.left = leg.left.up_to(Lsn(leg.spans[piece.spans.start].from.0 - 1));
            }
            return records(journal, leg.segment, &leg.spans[piece.spans]).map(Some);
        }
        Ok(None)
    }

    /// The way that was not gone yet, from its beginning.
    pub fn rest(mut self) -> Vec<Leg> {
        self.legs.extend(self.at.map(|leg| leg.left).filter(|leg| leg.records() > 0));
        self.legs
    }
}

impl<S: Store> OpenLeg<S> {
    fn open(journal: &Journal<S>, leg: &Leg) -> Result<OpenLeg<S>, JournalError> {
        let fold = leg.fold.as_ref().map(|fold| journal.fold_journal(fold)).transpose()?;
        let its = fold.as_ref().unwrap_or(journal);
        let segments = its.looking(|folds| its.firsts(folds))?;
        let records = leg.records_after.next()..leg.records_to.next();
        let (spans, pieces) = (Vec::new(), Vec::new());
        Ok(OpenLeg { left: leg.clone(), fold, records, segments, segment: Lsn::ZERO, spans, pieces })
    }
}

/// What of `wanted` is in the segment that starts with `first`, in the order of the journal. In a fold, what lies between two
/// marks is in the order of the volume.
fn pieces<S: Store>(
    journal: &Journal<S>,
    first: Lsn,
    wanted: &Range<Lsn>,
    is_fold: bool,
) -> Result<(Vec<Span>, Vec<Piece>), JournalError> {
    let (mut spans, mut pieces) = (Vec::<Span>::new(), Vec::<Piece>::new());
    if first >= wanted.end {
        return Ok((spans, pieces));
    }
    let Some((index, last, _)) = journal.index_of(first)? else { return Ok((spans, pieces)) };
    for (at, entry) in index.entries().iter().enumerate() {
        let end = index.entries().get(at + 1).map_or(last, |next| Lsn(next.lsn.0 - 1));
        let (from, to) = (entry.lsn.max(wanted.start), end.min(Lsn(wanted.end.0 - 1)));
        if from > to {
            continue;
        }
        let marks_before = index.points().partition_point(|point| point.lsn < from);
        let has_mark = index.points().get(marks_before).is_some_and(|point| point.lsn <= to);
        let sorted = is_fold && !has_mark;
        let number = spans.len();
        spans.push(Span { frame: (entry.lsn, entry.offset), from, to });
        match pieces.last_mut().filter(|piece| sorted && piece.sorted) {
            Some(piece) => piece.spans.end = number + 1,
            None => {
                let bytes = ByteRange::new(0, u64::MAX);
                pieces.push(Piece { spans: number..number + 1, bytes, sorted });
            }
        }
    }
    Ok((spans, pieces))
}

/// The records of some spans of a segment.
fn records<S: Store>(
    journal: &Journal<S>,
    segment: Lsn,
    spans: &[Span],
) -> Result<impl Iterator<Item = Result<Record, JournalError>> + use<S>, JournalError> {
    let (first, last) = (&spans[0], &spans[spans.len() - 1]);
    let volume = journal.info().id;
    let walk = match Walk::open(journal.store(), volume, segment)? {
        Opened::HalfCreated(_) => None,
        Opened::Walk(mut walk) => {
            walk.seek(first.frame.0, first.frame.1);
            Some(walk)
        }
    };
    let records = Records::new(Arc::clone(journal.shared_store()), volume, first.from, last.to, walk);
    Ok(up_to(last.to, records))
}

/// Records that have to go up to this one.
fn up_to<S: Store>(
    last: Lsn,
    mut records: Records<S>,
) -> impl Iterator<Item = Result<Record, JournalError>> + use<S> {
    let mut at = Lsn::ZERO;
    let mut ended = false;
    std::iter::from_fn(move || match records.next() {
        Some(Ok(record)) => {
            at = record.lsn;
            Some(Ok(record))
        }
        _ if ended => None,
        other => {
            ended = true;
            match other {
                None if at == last => None,
                None => Some(Err(JournalError::gone(last))),
                other => other,
            }
        }
    })
}
