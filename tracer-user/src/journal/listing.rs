//! What `points --json` and the page say of a journal.

use serde::Serialize;

use crate::journal::{Journal, JournalError};
use crate::model::{Lsn, Point, Stretch, Timeline, VolumeInfo};

/// `volume`: `id`, `source`, `identity`, `size_bytes`, `sector_bytes`, `created`; `last_lsn`; `points`: list of `id`,
/// `class`, `lsn`, `time` (RFC 3339), `label`, `restorable` (without `--force`); `stretches`: list of `from_lsn`,
/// `from_time`, `to_lsn`, `to_time`, between which every record is a point of class crash.
#[derive(Clone, Debug, Serialize)]
pub struct Listing {
    pub volume: VolumeInfo,
    pub last_lsn: Lsn,
    pub points: Vec<Listed>,
    pub stretches: Vec<Stretch>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    #[serde(flatten)]
    pub point: Point,
    pub restorable: bool,
}

impl Listing {
    /// # Errors
    /// As [`Journal::timeline`].
    pub fn of(journal: &Journal) -> Result<Listing, JournalError> {
        let Timeline { points, stretches, last_lsn } = journal.timeline()?;
        let listed = |point: Point| Listed { restorable: point.class.restorable(), point };
        Ok(Listing {
            volume: journal.info().clone(),
            last_lsn,
            points: points.into_iter().map(listed).collect(),
            stretches,
        })
    }

    /// Only the last so many points, and the stretches that reach into their time.
    pub fn keep_last(&mut self, count: usize) {
        let dropped = self.points.len().saturating_sub(count);
        self.points.drain(..dropped);
        if let Some(first) = self.points.first().filter(|_| dropped > 0) {
            let since = first.point.lsn;
            self.stretches.retain(|stretch| stretch.to_lsn >= since);
        }
    }
}
