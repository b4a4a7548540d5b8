//! Reading a journal, also while its writer appends.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::io::store::{DirStore, Store};
use crate::journal::error::JournalError;
use crate::journal::folds::{Folds, decode_bytes, read_bytes};
use crate::journal::format::{FRAME_HEADER_LEN, Version};
use crate::journal::index::Index;
use crate::journal::records::Records;
use crate::journal::recovery::TornTail;
use crate::journal::segment::{Chain, segment_name};
use crate::journal::stretches::StretchFinder;
use crate::journal::volume::read_volume;
use crate::journal::walk::{Opened, Step, Summary, Walk, io_error, list_segments, live_segments, summarise};
use crate::journal::writer::lock;
use crate::model::{Lsn, Point, Timeline, VolumeInfo};

/// A journal to read from. Takes no lock and writes nothing; a half-written end is simply where it ends.
pub struct Journal<S: Store = DirStore> {
    store: Arc<S>,
    info: VolumeInfo,
    /// The manifest read last, and its bytes.
    folds: Mutex<Option<(Vec<u8>, Arc<Folds>)>>,
    /// What is known of the open segment, so that following a writer does not read it anew each time.
    tail: Mutex<Option<Tail>>,
}

/// How far the open segment was read and verified, and what was found there.
struct Tail {
    walk: Box<Walk>,
    /// Without the times of frames that need not be looked into.
    index: Index,
    torn: Option<TornTail>,
    /// The frame read last and its header's bytes, to see whether it is still the same one.
    last_frame: Option<(u64, [u8; FRAME_HEADER_LEN])>,
}

impl Tail {
    fn new(walk: Box<Walk>) -> Tail {
        let index = Index::new(walk.header.version);
        Tail { walk, index, torn: None, last_frame: None }
    }

    /// Whether the last frame is as it was: a recovery may have cut it, and a writer put others there.
    fn still_there<S: Store>(&self, store: &S) -> bool {
        let Some((offset, wanted)) = &self.last_frame else { return false };
        let mut bytes = [0; FRAME_HEADER_LEN];
        matches!(store.read_at(&self.walk.name, *offset, &mut bytes), Ok(FRAME_HEADER_LEN))
            && bytes == *wanted
    }

    /// Verifies the frames up to the one that holds `until`, or all there are.
    fn read_on<S: Store>(mut self, store: &S, until: Option<Lsn>) -> Result<Tail, JournalError> {
        let mut raw = Vec::new();
        self.torn = None;
        while until.is_none_or(|until| self.walk.next_lsn <= until) {
            match self.walk.next(store)? {
                Step::Records(header) => {
                    self.index.add_frame(&header);
                    self.last_frame = self
                        .walk
                        .frame
                        .first_chunk()
                        .map(|bytes: &[u8; FRAME_HEADER_LEN]| (header.offset, *bytes));
                    if !self.index.misses_records_of(&header) {
                        continue;
                    }
                    self.walk.unpack(&header, &mut raw)?;
                    let at = |error| JournalError::at(&self.walk.name, header.offset, error);
                    self.index.add_records(&header, &raw).map_err(at)?;
                }
                // Sealed since: all its records were seen.
                Step::Sealed(..) => break,
                Step::Open(torn) => {
                    self.torn = torn;
                    break;
                }
            }
        }
        Ok(self)
    }
}

/// One segment of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub name: String,
    pub first_lsn: Lsn,
    /// `first_lsn - 1` when it holds no record yet.
    pub last_lsn: Lsn,
    /// Size of the file.
    pub bytes: u64,
    pub sealed: bool,
    /// Sealed by a recovery: its own writer left it open.
    pub recovered: bool,
    pub marks: u64,
    /// Bytes of its records before compression; `None` in version 1 of the format.
    pub raw_bytes: Option<u64>,
}

/// One segment on the way through all of them.
struct Visited<'a> {
    info: &'a SegmentInfo,
    index: &'a Index,
    torn: Option<&'a TornTail>,
}

impl Journal {
    /// # Errors
    /// `NotAJournal`, `UnsupportedVersion`, `Damaged`, `MissingSegment`, `Io`.
    pub fn open(dir: &Path) -> Result<Journal, JournalError> {
        Journal::open_in(DirStore::open(dir))
    }

    /// A journal without a writer, as long as one keeps the lock. All that it shows is on the disk.
    ///
    /// # Errors
    /// As [`Journal::open`], and `Locked`.
    pub fn open_at_rest(dir: &Path) -> Result<(Journal, JournalLock), JournalError> {
        // Before the lock file is made in a directory that is none of ours.
        read_volume(&DirStore::open(dir))?;
        let mut store = lock(dir)?;
        // What a writer that was killed left in the page cache is written now, or is not shown any more. All before the last
        // two segments was synced when they were begun.
        for first in list_segments(&store)?.into_iter().rev().take(2) {
            let name = segment_name(first);
            store.forget_cache(&name).map_err(|error| io_error(&store, "read", &name, error))?;
        }
        Ok((Journal::open(dir)?, JournalLock { _store: store }))
    }
}

/// Keeps writers from a journal.
pub struct JournalLock {
    _store: DirStore,
}

impl<S: Store> Journal<S> {
    /// [`Journal::open`] on any store.
    pub(super) fn open_in(store: S) -> Result<Journal<S>, JournalError> {
        let info = read_volume(&store)?;
        let (folds, tail) = (Mutex::new(None), Mutex::new(None));
        let journal = Journal { store: Arc::new(store), info, folds, tail };
        journal.looking(|folds| journal.firsts(folds))?;
        Ok(journal)
    }

    pub fn info(&self) -> &VolumeInfo {
        &self.info
    }

    /// All marks in order: those of sealed segments from their indexes, those of the open one by reading it.
    ///
    /// # Errors
    /// Damage of a header, seal or index, a missing or replaced segment, damage in the open segment.
    pub fn points(&self) -> Result<Vec<Point>, JournalError> {
        self.looking(|folds| {
            let mut points = self.folded_points(folds)?;
            self.each_segment(folds, |segment| take_points(&mut points, folds, segment.index))?;
            Ok(points)
        })
    }

    /// All that can be restored, seen at once: the marks, and between which records every instant can be.
    ///
    /// # Errors
    /// As [`Journal::points`].
    pub fn timeline(&self) -> Result<Timeline, JournalError> {
        self.looking(|folds| {
            let points = self.folded_points(folds)?;
            let mut finder = StretchFinder::from(points.last().map(|point| (point.lsn, point.time)));
            let mut timeline = Timeline { points, last_lsn: folds.upto(), ..Timeline::default() };
            self.each_segment(folds, |Visited { info, index, .. }| {
                take_points(&mut timeline.points, folds, index);
                timeline.last_lsn = timeline.last_lsn.max(info.last_lsn);
                finder.add(index, info.first_lsn, info.last_lsn, info.sealed);
            })?;
            timeline.stretches = finder.finish(|lsn| self.time_of(lsn))?;
            Ok(timeline)
        })
    }

    /// The last record that can be read now; 0 when there is none.
    ///
    /// # Errors
    /// Damage in the last segment.
    pub fn last_lsn(&self) -> Result<Lsn, JournalError> {
        self.looking(|folds| {
            for first in self.firsts(folds)?.into_iter().rev() {
                match summarise(&*self.store, self.info.id, first)? {
                    Summary::Sealed(sealed) => return Ok(sealed.seal.last_lsn),
                    Summary::Open(_) => {
                        return self.with_tail(first, None, |tail| Lsn(tail.walk.next_lsn.0 - 1));
                    }
                    Summary::HalfCreated(_) => {}
                }
            }
            Ok(Lsn(folds.first_lsn.0 - 1))
        })
    }

    /// The first record that was not folded, whether it is there yet or not.
    ///
    /// # Errors
    /// As [`Journal::folds`].
    pub fn first_lsn(&self) -> Result<Lsn, JournalError> {
        self.folds().map(|folds| folds.first_lsn)
    }

    /// The records `from..=to`, as far as there are any. The first may come from the middle of a segment: only
    /// what is passed on the way is verified.
    ///
    /// # Errors
    /// `Folded` when they do not begin in the segments any more. Damage where the way starts; later damage comes out of the
    /// iterator.
    pub fn records(&self, from: Lsn, to: Lsn) -> Result<Records<S>, JournalError> {
        let from = from.max(Lsn(1));
        let walk = match from > to {
            true => None,
            false => self.looking(|folds| self.walk_before(folds, from))?,
        };
        Ok(Records::new(Arc::clone(&self.store), self.info.id, from, to, walk))
    }

    /// The segments in order.
    ///
    /// # Errors
    /// As [`Journal::points`].
    pub fn segments(&self) -> Result<Vec<SegmentInfo>, JournalError> {
        self.looking(|folds| {
            let mut segments = Vec::new();
            self.each_segment(folds, |segment| segments.push(segment.info.clone()))?;
            Ok(segments)
        })
    }

    /// A half-written end, from headers and the open segment alone; [`Journal::check`] reads everything.
    ///
    /// # Errors
    /// As [`Journal::points`].
    pub fn torn_tail(&self) -> Result<Option<TornTail>, JournalError> {
        self.looking(|folds| {
            let mut torn = None;
            self.each_segment(folds, |segment| torn = segment.torn.cloned())?;
            Ok(torn)
        })
    }

    pub(super) fn store(&self) -> &S {
        &self.store
    }

    pub(super) fn shared_store(&self) -> &Arc<S> {
        &self.store
    }

    /// What was folded, as it is now.
    ///
    /// # Errors
    /// `Damaged` and `UnsupportedVersion` of the manifest.
    pub fn folds(&self) -> Result<Arc<Folds>, JournalError> {
        let bytes = read_bytes(&*self.store)?;
        let mut known = self.folds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, folds)) = known.as_ref().filter(|(there, _)| *there == bytes) {
            return Ok(Arc::clone(folds));
        }
        let folds = Arc::new(decode_bytes(&bytes)?);
        *known = Some((bytes, Arc::clone(&folds)));
        Ok(folds)
    }

    /// Looks at the journal; once more when it was pruned meanwhile, so that files were gone.
    pub(super) fn looking<T>(
        &self,
        mut look: impl FnMut(&Folds) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        loop {
            let folds = self.folds()?;
            match look(&folds) {
                Err(_) if *self.folds()? != *folds => {}
                result => return result,
            }
        }
    }

    /// The first LSNs of the segments, the first of which starts what was not folded. Of a journal that was not, there is one
    /// at least.
    pub(super) fn firsts(&self, folds: &Folds) -> Result<Vec<Lsn>, JournalError> {
        live_segments(&*self.store, folds)
    }

    fn each_segment(&self, folds: &Folds, mut visit: impl FnMut(Visited<'_>)) -> Result<(), JournalError> {
        let mut chain = folds.chain();
        for first in self.firsts(folds)? {
            chain.expect_name(first)?;
            let name = segment_name(first);
            match summarise(&*self.store, self.info.id, first)? {
                Summary::Sealed(sealed) => {
                    chain.expect_header(&sealed.header)?;
                    chain = Chain::after(first, sealed.seal.last_lsn, sealed.seal.hash);
                    let info = SegmentInfo {
                        name,
                        first_lsn: first,
                        last_lsn: sealed.seal.last_lsn,
                        bytes: sealed.bytes,
                        sealed: true,
                        recovered: sealed.seal.recovered,
                        marks: sealed.index.points().len() as u64,
                        raw_bytes: sealed.index.raw_bytes(),
                    };
                    visit(Visited { info: &info, index: &sealed.index, torn: None });
                }
                Summary::Open(walk) => {
                    chain.expect_header(&walk.header)?;
                    let (last_lsn, index, torn) = self.with_tail(first, None, |tail| {
                        (Lsn(tail.walk.next_lsn.0 - 1), tail.index.clone(), tail.torn.clone())
                    })?;
                    let bytes = self
                        .store
                        .size(&name)
                        .map_err(|error| io_error(&*self.store, "read", &name, error))?;
                    let marks = index.points().len() as u64;
                    let info = SegmentInfo {
                        name,
                        first_lsn: first,
                        last_lsn,
                        bytes,
                        sealed: false,
                        recovered: false,
                        marks,
                        raw_bytes: index.raw_bytes(),
                    };
                    visit(Visited { info: &info, index: &index, torn: torn.as_ref() });
                }
                Summary::HalfCreated(torn) => {
                    let last_lsn = Lsn(first.0 - 1);
                    let info = SegmentInfo {
                        name,
                        first_lsn: first,
                        last_lsn,
                        bytes: torn.bytes,
                        sealed: false,
                        recovered: false,
                        marks: 0,
                        raw_bytes: Some(0),
                    };
                    let index = Index::new(Version::V2);
                    visit(Visited { info: &info, index: &index, torn: Some(&torn) });
                }
            }
        }
        Ok(())
    }

    /// What is known of the segment that starts with `first`: its index, its last record, and whether all of its records
    /// were looked at for it. `None` when it holds nothing.
    pub(super) fn index_of(&self, first: Lsn) -> Result<Option<(Index, Lsn, bool)>, JournalError> {
        Ok(match summarise(&*self.store, self.info.id, first)? {
            Summary::HalfCreated(_) => None,
            Summary::Sealed(sealed) => Some((sealed.index, sealed.seal.last_lsn, true)),
            Summary::Open(_) => {
                Some(self.with_tail(first, None, |tail| {
                    (tail.index.clone(), Lsn(tail.walk.next_lsn.0 - 1), false)
                })?)
            }
        })
    }

    /// A walk that stands at a frame that starts at or before `from`; None when the journal ends before it.
    fn walk_before(&self, folds: &Folds, from: Lsn) -> Result<Option<Box<Walk>>, JournalError> {
        if from < folds.first_lsn {
            return Err(JournalError::Folded { wanted: from, upto: folds.upto() });
        }
        let firsts = self.firsts(folds)?;
        let after = firsts.partition_point(|first| *first <= from);
        let Some(first) = after.checked_sub(1).map(|at| firsts[at]) else { return Ok(None) };
        let entry = match summarise(&*self.store, self.info.id, first)? {
            Summary::HalfCreated(_) => return Ok(None),
            Summary::Sealed(sealed) => sealed.index.frame_before(from),
            Summary::Open(_) => self.with_tail(first, Some(from), |tail| tail.index.frame_before(from))?,
        };
        match Walk::open(&*self.store, self.info.id, first)? {
            Opened::HalfCreated(_) => Ok(None),
            Opened::Walk(mut walk) => {
                entry.into_iter().for_each(|entry| walk.seek(entry.lsn, entry.offset));
                Ok(Some(walk))
            }
        }
    }

    /// Reads on in the open segment that starts with `first`, until `until` or its end, and looks at the result.
    fn with_tail<T>(
        &self,
        first: Lsn,
        until: Option<Lsn>,
        look: impl FnOnce(&Tail) -> T,
    ) -> Result<T, JournalError> {
        let mut slot = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let known = slot.take().filter(|tail| tail.walk.header.first_lsn == first);
        // What was read before may have been cut off by a recovery since: then only a fresh start tells.
        if let Some(tail) = known
            && tail.still_there(&*self.store)
            && let Ok(tail) = tail.read_on(&*self.store, until)
            && tail.torn.is_none()
        {
            return Ok(look(slot.insert(tail)));
        }
        let walk = match Walk::open(&*self.store, self.info.id, first)? {
            Opened::Walk(walk) => walk,
            Opened::HalfCreated(torn) => {
                let what = "its header vanished while it was read".to_owned();
                return Err(JournalError::Damaged { segment: torn.segment, offset: 0, what });
            }
        };
        let tail = Tail::new(walk).read_on(&*self.store, until)?;
        Ok(look(slot.insert(tail)))
    }
}

/// The points of a segment that can still be restored: what was folded stands for all before its end.
fn take_points(points: &mut Vec<Point>, folds: &Folds, index: &Index) {
    let upto = folds.upto();
    points.extend(index.points().iter().filter(|point| point.lsn > upto).cloned());
}
