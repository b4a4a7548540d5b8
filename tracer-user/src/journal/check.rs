//! Reading a whole journal to prove that every byte of it is as it was written.

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::folds::{FOLDS_NAME, Fold, Folds};
use crate::journal::format::{FrameHeader, Version};
use crate::journal::index::Index;
use crate::journal::reader::Journal;
use crate::journal::record::{BodyView, FrameCursor};
use crate::journal::recovery::TornTail;
use crate::journal::segment::{Chain, segment_name};
use crate::journal::walk::{Opened, Step, Summary, Walk, io_error, summarise};
use crate::model::{Lsn, MarkId};

/// What [`Journal::check`] found in a journal that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Folds and base images.
    pub folds: u64,
    /// Those of folds, too, as all that follows.
    pub segments: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    pub records: u64,
    pub marks: u64,
    pub last_lsn: Lsn,
    /// Bytes at the end that never were durable; opening the journal for writing cuts them off.
    pub torn_tail: Option<TornTail>,
}

impl<S: Store> Journal<S> {
    /// Reads everything: every checksum, the BLAKE3 chain, that LSNs and marks ascend without a hole, that indexes
    /// tell the truth. `progress` gets bytes done and bytes in all. A torn tail is reported, not an error.
    ///
    /// # Errors
    /// The first damage found, by segment and byte.
    pub fn check(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, JournalError> {
        self.looking(|folds| self.check_all(folds, progress))
    }

    fn check_all(
        &self,
        folds: &Folds,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CheckReport, JournalError> {
        let store = self.store();
        let firsts = self.firsts(folds)?;
        let size_of = |first: &Lsn| {
            let name = segment_name(*first);
            store.size(&name).map_err(|error| io_error(store, "read", &name, error))
        };
        let folded = folds.all().map(|fold| fold.bytes).sum::<u64>();
        let total = folded + firsts.iter().map(size_of).sum::<Result<u64, _>>()?;
        let mut report = CheckReport { last_lsn: Lsn(folds.first_lsn.0 - 1), ..CheckReport::default() };
        for fold in folds.all() {
            self.check_fold(fold, &mut report, progress, total)?;
        }
        let mut last_mark = None;
        let mut chain = folds.chain();
        for first in &firsts {
            chain.expect_name(*first)?;
            let before = report.bytes;
            report.segments += 1;
            report.bytes += size_of(first)?;
            let mut walk = match Walk::open(store, self.info().id, *first)? {
                Opened::Walk(walk) => walk,
                Opened::HalfCreated(torn) => {
                    report.torn_tail = Some(torn);
                    continue;
                }
            };
            chain.expect_header(&walk.header)?;
            let mut found = Found { index: Index::new(walk.header.version), last_mark, raw: Vec::new() };
            let mut hasher = blake3::Hasher::new();
            hasher.update(&walk.header.encode());
            loop {
                match walk.next(store)? {
                    Step::Records(header) => {
                        hasher.update(&walk.frame);
                        found.add(&mut walk, &header)?;
                        progress(before + walk.offset, total.max(before + walk.offset));
                    }
                    Step::Sealed(seal, index) => {
                        hasher.update(&walk.frame);
                        let damaged = |offset, what: &str| JournalError::Damaged {
                            segment: walk.name.clone(),
                            offset,
                            what: what.to_owned(),
                        };
                        if hasher.finalize() != seal.hash {
                            let offset = seal.index_offset + walk.frame.len() as u64;
                            return Err(damaged(
                                offset,
                                "the seal's hash is not that of the bytes before it",
                            ));
                        }
                        if index != found.index {
                            return Err(damaged(seal.index_offset, "the index is not that of the records"));
                        }
                        chain = Chain::after(*first, seal.last_lsn, seal.hash);
                        break;
                    }
                    Step::Open(torn) => {
                        report.torn_tail = torn;
                        break;
                    }
                }
            }
            report.last_lsn = Lsn(walk.next_lsn.0 - 1);
            report.records += walk.next_lsn.0 - first.0;
            report.marks += found.index.points().len() as u64;
            last_mark = found.last_mark;
        }
        progress(report.bytes, total.max(report.bytes));
        Ok(report)
    }
}

impl<S: Store> Journal<S> {
    /// Its own journal is whole, ends in the seal that the manifest names, and holds the marks it should.
    fn check_fold(
        &self,
        fold: &Fold,
        report: &mut CheckReport,
        progress: &mut dyn FnMut(u64, u64),
        total: u64,
    ) -> Result<(), JournalError> {
        let before = report.bytes;
        let found = self.in_fold(fold, |journal| {
            let found = journal.check(&mut |done, _| progress(before + done, total.max(before + done)))?;
            let hash = journal.last_hash()?;
            let what = match () {
                () if hash != Some(fold.hash) => "its last seal is not the one that was made for it",
                () if found.marks != fold.marks.len() as u64 => "it holds another number of marks",
                () => return Ok(found),
            };
            Err(JournalError::Damaged { segment: FOLDS_NAME.to_owned(), offset: 0, what: what.to_owned() })
        })?;
        report.folds += 1;
        report.segments += found.segments;
        report.bytes += found.bytes;
        report.records += found.records;
        report.marks += found.marks;
        Ok(())
    }

    /// Of the seal at the end; `None` when the last segment is open.
    fn last_hash(&self) -> Result<Option<[u8; 32]>, JournalError> {
        let Some(last) = self.looking(|folds| self.firsts(folds))?.pop() else { return Ok(None) };
        Ok(match summarise(self.store(), self.info().id, last)? {
            Summary::Sealed(sealed) => Some(sealed.seal.hash),
            _ => None,
        })
    }
}

/// What the records of one segment add up to.
struct Found {
    index: Index,
    last_mark: Option<MarkId>,
    raw: Vec<u8>,
}

impl Found {
    fn add(&mut self, walk: &mut Walk, header: &FrameHeader) -> Result<(), JournalError> {
        walk.unpack(header, &mut self.raw)?;
        let damaged = |what: &str| JournalError::Damaged {
            segment: walk.name.clone(),
            offset: header.offset,
            what: what.to_owned(),
        };
        self.index.add_frame(header);
        let (mut marks, mut breaks) = (0, 0);
        let mut cursor = FrameCursor::new(self.index.version(), header.first_lsn, header.last_lsn);
        let at = |error| JournalError::at(&walk.name, header.offset, error);
        while let Some(record) = cursor.next(&self.raw).map_err(at)? {
            self.index.add_record(&record);
            breaks += u32::from(record.breaks());
            let BodyView::Mark { id, .. } = record.body else { continue };
            if self.last_mark.is_some_and(|last| last >= id) {
                return Err(damaged("a mark whose number does not ascend"));
            }
            self.last_mark = Some(id);
            marks += 1;
        }
        if marks != header.marks {
            return Err(damaged("a frame that holds another number of marks than it says"));
        }
        if self.index.version() != Version::V1 && breaks != header.breaks {
            return Err(damaged("a frame that breaks the history more or less often than it says"));
        }
        Ok(())
    }
}
