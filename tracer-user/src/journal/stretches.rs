//! Between which records every instant can be restored, from the indexes of the segments. Pure.

use crate::journal::index::Index;
use crate::model::{Lsn, Point, Stretch, Timestamp};

/// Goes along the segments of a journal.
pub struct StretchFinder {
    found: Vec<Found>,
    /// Nothing before it counts.
    start: Option<(Lsn, Timestamp)>,
    /// The restorable mark since which nothing broke the history.
    since: Option<(Lsn, Timestamp)>,
    /// Further marks since then: where there is nothing else, there is no instant but theirs.
    marks: u64,
    last: Lsn,
    /// Of the record `last`; `None` when the index does not say.
    last_time: Option<Timestamp>,
}

struct Found {
    from: (Lsn, Timestamp),
    to: Lsn,
    to_time: Option<Timestamp>,
}

impl StretchFinder {
    /// `mark` is the end of what was folded: all before it is in no stretch.
    pub fn from(mark: Option<(Lsn, Timestamp)>) -> StretchFinder {
        let (last, last_time) = mark.map_or((Lsn::ZERO, None), |(lsn, time)| (lsn, Some(time)));
        StretchFinder { found: Vec::new(), start: mark, since: mark, marks: 0, last, last_time }
    }

    /// The index of the next segment, which holds the records `first..=last`. `whole` is false when not all of its
    /// records were looked at.
    pub fn add(&mut self, index: &Index, first: Lsn, last: Lsn, whole: bool) {
        if last < first {
            return;
        }
        let start = self.start.map_or(Lsn::ZERO, |(lsn, _)| lsn);
        let mut marks = index.points().iter().filter(|point| point.lsn >= start).peekable();
        for broken in index.breaks(first, last).into_iter().filter(|broken| broken.lsn > start) {
            while let Some(mark) = marks.next_if(|mark| mark.lsn < broken.lsn) {
                self.mark(mark);
            }
            let to_time = match broken.lsn == first {
                true => self.last_time,
                false => whole.then_some(broken.time_before),
            };
            self.end(Lsn(broken.lsn.0 - 1), to_time);
        }
        marks.for_each(|mark| self.mark(mark));
        if last < self.last {
            return;
        }
        self.last = last;
        let knows_times = whole && index.raw_bytes().is_some();
        self.last_time = knows_times.then_some(index.last_time());
    }

    /// `time_of` is asked for the times that no index tells.
    pub fn finish<E>(
        mut self,
        mut time_of: impl FnMut(Lsn) -> Result<Timestamp, E>,
    ) -> Result<Vec<Stretch>, E> {
        self.end(self.last, self.last_time);
        let stretch = |found: Found| {
            let Found { from: (from_lsn, from_time), to: to_lsn, to_time } = found;
            let to_time = to_time.map_or_else(|| time_of(to_lsn), Ok)?;
            Ok(Stretch { from_lsn, from_time, to_lsn, to_time })
        };
        self.found.into_iter().map(stretch).collect()
    }

    fn mark(&mut self, mark: &Point) {
        match self.since {
            Some((since, _)) => self.marks += u64::from(mark.lsn > since),
            None if mark.class.restorable() => self.since = Some((mark.lsn, mark.time)),
            None => {}
        }
    }

    fn end(&mut self, to: Lsn, to_time: Option<Timestamp>) {
        let marks = std::mem::take(&mut self.marks);
        if let Some(from) = self.since.take()
            && to.0.saturating_sub(from.0.0) > marks
        {
            self.found.push(Found { from, to, to_time });
        }
    }
}
