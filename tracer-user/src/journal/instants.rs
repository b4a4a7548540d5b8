//! Records by the time they were made.

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::folds::Folds;
use crate::journal::format::Version;
use crate::journal::reader::Journal;
use crate::model::{Lsn, Stretch, Timestamp};

impl<S: Store> Journal<S> {
    /// When a record was made, which must be there.
    ///
    /// # Errors
    /// `MissingSegment` and damage; `Damaged` when the journal ends before it.
    pub fn time_of(&self, lsn: Lsn) -> Result<Timestamp, JournalError> {
        match self.records(lsn, lsn)?.next() {
            Some(record) => Ok(record?.time),
            None => Err(JournalError::gone(lsn)),
        }
    }

    /// The last record, in the order of LSNs, that one of the `stretches` holds and that was made at or before `time`. Reads
    /// a few MiB of records near it, and indexes.
    ///
    /// # Errors
    /// Damage on the way.
    pub fn last_instant(
        &self,
        stretches: &[Stretch],
        time: Timestamp,
    ) -> Result<Option<(Lsn, Timestamp)>, JournalError> {
        self.looking(|folds| self.last_instant_in(folds, stretches, time))
    }

    fn last_instant_in(
        &self,
        folds: &Folds,
        stretches: &[Stretch],
        time: Timestamp,
    ) -> Result<Option<(Lsn, Timestamp)>, JournalError> {
        let Some(earliest) = stretches.first().map(|stretch| stretch.from_lsn) else { return Ok(None) };
        for first in self.firsts(folds)?.into_iter().rev() {
            let Some((index, last, knows_times)) = self.index_of(first)? else { continue };
            if last < earliest {
                break;
            }
            // There only marks can be restored.
            if index.version() == Version::V1 {
                continue;
            }
            let mut end = last;
            for entry in index.entries().iter().rev() {
                let window = (entry.lsn, end);
                end = Lsn(entry.lsn.0 - 1);
                if knows_times && entry.time_min > time {
                    continue;
                }
                if let Some(found) = self.last_in(window, stretches, time)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    fn last_in(
        &self,
        (from, to): (Lsn, Lsn),
        stretches: &[Stretch],
        time: Timestamp,
    ) -> Result<Option<(Lsn, Timestamp)>, JournalError> {
        let overlapping: Vec<_> =
            stretches.iter().filter(|stretch| stretch.from_lsn <= to && from <= stretch.to_lsn).collect();
        let mut found = None;
        for stretch in overlapping {
            // The mark it begins with may stand in a fold only; it is found as a mark.
            for record in self.records(from.max(stretch.from_lsn), to.min(stretch.to_lsn))? {
                let record = record?;
                if record.time <= time {
                    found = Some((record.lsn, record.time));
                }
            }
        }
        Ok(found)
    }
}
