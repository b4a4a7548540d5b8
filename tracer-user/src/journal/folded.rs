//! Reading the folded part of a journal, and the way to a point through folds and segments.

use std::sync::Arc;

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::folds::{Fold, Folds};
use crate::journal::reader::Journal;
use crate::journal::records::Records;
use crate::model::{Lsn, Point};

/// How to come from one state of the volume to another, as it was when it was asked for.
#[derive(Clone, Debug)]
pub struct Way {
    folds: Arc<Folds>,
    /// In this order. The first may begin from nothing, though one asked for another state: that one is known no more.
    pub legs: Vec<Leg>,
}

/// A part of a way: records of a fold, or of the journal's segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The fold it is in.
    pub(super) fold: Option<Fold>,
    /// It changes the state after this record of the journal,
    pub after: Lsn,
    /// to the one after this.
    pub to: Lsn,
    /// Its records have numbers after this one, which in a fold are its own,
    pub records_after: Lsn,
    /// up to this one.
    pub records_to: Lsn,
}

impl Leg {
    fn raw(after: Lsn, to: Lsn) -> Leg {
        Leg { fold: None, after, to, records_after: after, records_to: to }
    }

    /// A beginning of one that is not in a fold.
    pub(super) fn up_to(&self, to: Lsn) -> Leg {
        Leg::raw(self.after, to)
    }

    /// In a fold there is no state between its ends.
    pub fn is_fold(&self) -> bool {
        self.fold.is_some()
    }

    pub fn records(&self) -> u64 {
        self.records_to.0 - self.records_after.0
    }
}

/// What a way makes one read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WayCost {
    /// Bytes of files, at most.
    pub journal_bytes: u64,
    /// Bytes of records, at most; `None` when not all segments say.
    pub record_bytes: Option<u64>,
}

impl<S: Store> Journal<S> {
    /// The way from the state after record `from`, 0 for nothing, to the one after `to`: the shortest by what is kept.
    ///
    /// # Errors
    /// `Folded` when there is none to `to`.
    pub fn way(&self, from: Lsn, to: Lsn) -> Result<Way, JournalError> {
        self.looking(|folds| {
            let legs = if from < to { self.legs(folds, from, to)? } else { Vec::new() };
            Ok(Way { folds: Arc::new(folds.clone()), legs })
        })
    }

    /// Whether what a way leads through is still there; if not, ask for another one.
    ///
    /// # Errors
    /// The manifest can't be read.
    pub fn is_current(&self, way: &Way) -> Result<bool, JournalError> {
        Ok(*self.folds()? == *way.folds)
    }

    /// # Errors
    /// As [`Journal::records`].
    pub fn leg_records(&self, leg: &Leg) -> Result<Records<S>, JournalError> {
        let (from, to) = (leg.records_after.next(), leg.records_to);
        match &leg.fold {
            None => self.records(from, to),
            Some(fold) => self.in_fold(fold, |journal| journal.records(from, to)),
        }
    }

    /// # Errors
    /// As [`Journal::points`].
    pub fn cost_of(&self, way: &Way) -> Result<WayCost, JournalError> {
        let mut cost = WayCost { journal_bytes: 0, record_bytes: Some(0) };
        for leg in &way.legs {
            let segments = match &leg.fold {
                None => self.segments()?,
                Some(fold) => self.in_fold(fold, Journal::segments)?,
            };
            let read = segments
                .iter()
                .filter(|part| part.first_lsn <= leg.records_to && leg.records_after < part.last_lsn);
            for part in read {
                cost.journal_bytes += part.bytes;
                cost.record_bytes = cost.record_bytes.zip(part.raw_bytes).map(|(sum, more)| sum + more);
            }
        }
        Ok(cost)
    }

    fn legs(&self, folds: &Folds, from: Lsn, to: Lsn) -> Result<Vec<Leg>, JournalError> {
        if from.next() >= folds.first_lsn && from > Lsn::ZERO {
            return Ok(vec![Leg::raw(from, to)]);
        }
        let upto = folds.upto();
        let mut legs = Vec::new();
        let mut at = if folds.is_mark(from) { from } else { Lsn::ZERO };
        let image = folds.images.iter().rfind(|image| image.upto() <= to && image.upto() >= upto);
        if let Some(image) = image.filter(|_| at == Lsn::ZERO) {
            legs.push(self.fold_leg(image, Lsn::ZERO, image.upto())?);
            at = image.upto();
        }
        for fold in &folds.folds {
            let wanted = fold.marks.iter().rfind(|mark| **mark > at && **mark <= to);
            if let Some(mark) = wanted {
                legs.push(self.fold_leg(fold, at, *mark)?);
                at = *mark;
            }
        }
        if at < to {
            if to < upto || at < upto {
                return Err(JournalError::Folded { wanted: to, upto });
            }
            legs.push(Leg::raw(at, to));
        }
        Ok(legs)
    }

    /// From `after`, which is the fold's own beginning or one of its marks, to another one of them.
    fn fold_leg(&self, fold: &Fold, after: Lsn, to: Lsn) -> Result<Leg, JournalError> {
        let own = self.own_points(fold)?;
        let own_lsn = |mark: Lsn| match fold.marks.binary_search(&mark) {
            Ok(at) => own[at].lsn,
            Err(_) => Lsn::ZERO,
        };
        let (records_after, records_to) = (own_lsn(after), own_lsn(to));
        Ok(Leg { fold: Some(fold.clone()), after, to, records_after, records_to })
    }

    /// The marks of all folds, as points of the journal.
    pub(super) fn folded_points(&self, folds: &Folds) -> Result<Vec<Point>, JournalError> {
        let mut points = Vec::new();
        for fold in &folds.folds {
            let own = self.own_points(fold)?;
            points.extend(own.into_iter().zip(&fold.marks).map(|(point, lsn)| Point { lsn: *lsn, ..point }));
        }
        Ok(points)
    }

    /// The marks of a fold, with the numbers that they have in it.
    fn own_points(&self, fold: &Fold) -> Result<Vec<Point>, JournalError> {
        let own = self.in_fold(fold, Journal::points)?;
        if own.len() == fold.marks.len() {
            return Ok(own);
        }
        let what = format!("it has {} marks, and should have {}", own.len(), fold.marks.len());
        Err(JournalError::Damaged { segment: fold.prefix() + "*", offset: 0, what })
    }

    /// Looks into the journal that a fold is.
    pub(super) fn in_fold<T>(
        &self,
        fold: &Fold,
        look: impl FnOnce(&Journal<S>) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        look(&self.fold_journal(fold)?).map_err(|source| self.in_fold_error(fold, source))
    }

    /// The journal that a fold is.
    pub(super) fn fold_journal(&self, fold: &Fold) -> Result<Journal<S>, JournalError> {
        let opened = Journal::open_in(self.store().part(&fold.prefix()));
        opened.map_err(|source| self.in_fold_error(fold, source))
    }

    pub(super) fn in_fold_error(&self, fold: &Fold, source: JournalError) -> JournalError {
        let fold = self.store().path(&fold.prefix()).display().to_string();
        JournalError::InFold { fold, source: Box::new(source) }
    }
}
