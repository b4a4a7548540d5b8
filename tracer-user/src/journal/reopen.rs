//! Bringing a journal that another writer left to where a new one can begin: see docs/FORMAT.md, "Recovery".

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::folds::read_folds;
use crate::journal::format::{SEAL_LEN, SEGMENT_HEADER_LEN, Seed, SegmentHeader, Version};
use crate::journal::index::Index;
use crate::journal::open_segment::{Segment, create_segment, replace_segment};
use crate::journal::packing::Packer;
use crate::journal::recovery::{Recovery, TornTail};
use crate::journal::segment::{Chain, segment_name};
use crate::journal::walk::{Sealed, Step, Summary, Walk, io_error, live_segments, summarise};
use crate::model::{Lsn, MarkId, Timestamp, VolumeInfo};

/// Where a new writer begins.
pub struct Reopened {
    /// Holds nothing but its header.
    pub segment: Segment,
    pub next_lsn: Lsn,
    pub next_mark: MarkId,
    /// Of the last record; 0 if that is not known.
    pub last_time: Timestamp,
    pub recovery: Recovery,
}

/// Verifies the chain, seals the segment that was left open, and begins the next one, unless the open one is empty.
pub fn reopen<S: Store>(
    store: &mut S,
    info: &VolumeInfo,
    packer: &mut Packer,
) -> Result<Reopened, JournalError> {
    let folds = read_folds(store)?;
    let firsts = live_segments(store, &folds)?;
    let last = firsts.last();
    let mut chain = folds.chain();
    let mut last_mark = folds.last_mark;
    let mut created = info.created;
    let mut last_time = Timestamp(0);
    let mut empty = None;
    let (mut cut, mut closed) = (None, None);
    // Those that may hold what was not durable: the one left open, and the next one half created.
    for first in firsts.iter().rev().take(2) {
        let name = segment_name(*first);
        store.forget_cache(&name).map_err(|error| io_error(store, "read anew", &name, error))?;
    }
    for first in &firsts {
        chain.expect_name(*first)?;
        match summarise(store, info.id, *first)? {
            Summary::Sealed(sealed) => {
                chain.expect_header(&sealed.header)?;
                if Some(first) == last {
                    settle_seal(store, &sealed)?;
                }
                created = sealed.header.created;
                last_time = sealed.index.last_time();
                chain = Chain::after(*first, sealed.seal.last_lsn, sealed.seal.hash);
                last_mark = sealed.index.points().last().map_or(last_mark, |point| point.id);
            }
            Summary::HalfCreated(torn) => {
                store
                    .remove(&torn.segment)
                    .and_then(|()| store.sync_dir())
                    .map_err(|error| io_error(store, "remove", &torn.segment, error))?;
                cut = Some(torn);
            }
            Summary::Open(walk) => {
                chain.expect_header(&walk.header)?;
                let mut left = settle_open(store, *walk)?;
                cut = left.cut;
                if left.last < *first {
                    empty = Some(left.segment);
                    continue;
                }
                created = left.created;
                last_time = left.segment.index.last_time();
                last_mark = left.segment.index.points().last().map_or(last_mark, |point| point.id);
                chain = left.segment.seal(store, packer, left.last, true)?;
                closed = Some(left.segment.name);
            }
        }
    }
    let next_lsn = chain.next_lsn;
    let segment = match empty {
        Some(segment) if segment.index.version() == Version::V1 => {
            replace_segment(store, info, &chain, created)?
        }
        Some(segment) => segment,
        None => create_segment(store, info, &chain, created)?,
    };
    let recovery = Recovery { cut, closed, last_lsn: Lsn(next_lsn.0 - 1) };
    let next_mark = MarkId(last_mark.0 + 1);
    Ok(Reopened { segment, next_lsn, next_mark, last_time, recovery })
}

/// A segment that was left open, without its torn tail and durable.
struct Left {
    segment: Segment,
    created: Timestamp,
    /// Its last record; the one before its first when there is none.
    last: Lsn,
    cut: Option<TornTail>,
}

/// Reads a segment that was left open, cuts its torn tail, and makes what is left durable.
///
/// After a failed sync the page cache shows bytes that never reached the disk and calls them clean, so that another
/// sync would save nothing. The cache was told to forget them. Should it still show some, what no frame proves to be on
/// the disk is written anew: the very bytes that were verified.
fn settle_open<S: Store>(store: &mut S, mut walk: Walk) -> Result<Left, JournalError> {
    let durable = walk.known_durable(store)?;
    let header = walk.header.encode();
    if durable < SEGMENT_HEADER_LEN as u64 {
        rewrite(store, &walk.name, 0, &header)?;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header);
    let mut index = Index::new(walk.header.version);
    let mut raw = Vec::new();
    let cut = loop {
        match walk.next(store)? {
            Step::Records(header) => {
                hasher.update(&walk.frame);
                index.add_frame(&header);
                walk.unpack(&header, &mut raw)?;
                let at = |error| JournalError::at(&walk.name, header.offset, error);
                index.add_records(&header, &raw).map_err(at)?;
                if durable < header.end() {
                    rewrite(store, &walk.name, header.offset, &walk.frame)?;
                }
            }
            Step::Open(torn) => break torn,
            Step::Sealed(..) => {
                let what = "it was sealed while it was being recovered".to_owned();
                return Err(JournalError::Damaged { segment: walk.name, offset: walk.offset, what });
            }
        }
    };
    if cut.is_some() {
        store.truncate(&walk.name, walk.offset).map_err(|error| io_error(store, "cut", &walk.name, error))?;
    }
    settle(store, &walk.name)?;
    let segment = Segment {
        seed: walk.seed(),
        first: walk.header.first_lsn,
        size: walk.offset,
        synced: walk.offset,
        hasher,
        index,
        name: walk.name,
    };
    Ok(Left { segment, created: walk.header.created, last: Lsn(walk.next_lsn.0 - 1), cut })
}

/// Makes sure that the seal at the journal's end is on the disk. All before it was there when it was written.
fn settle_seal<S: Store>(store: &mut S, sealed: &Sealed) -> Result<(), JournalError> {
    let SegmentHeader { volume, first_lsn, .. } = sealed.header;
    let (name, offset) = (segment_name(first_lsn), sealed.bytes - SEAL_LEN as u64);
    rewrite(store, &name, offset, &sealed.seal.encode(Seed::new(volume, first_lsn), offset))?;
    settle(store, &name)
}

fn rewrite<S: Store>(store: &mut S, name: &str, offset: u64, bytes: &[u8]) -> Result<(), JournalError> {
    store.rewrite(name, offset, bytes).map_err(|error| io_error(store, "write", name, error))
}

fn settle<S: Store>(store: &mut S, name: &str) -> Result<(), JournalError> {
    store.sync(name).and_then(|()| store.sync_dir()).map_err(|error| io_error(store, "sync", name, error))
}
