//! Going through the records of a journal across its segments.

use std::sync::Arc;

use crate::io::store::{DirStore, Store};
use crate::journal::error::JournalError;
use crate::journal::format::FrameHeader;
use crate::journal::record::FrameCursor;
use crate::journal::segment::{Chain, segment_name};
use crate::journal::walk::{Opened, Step, Walk, list_segments};
use crate::model::{Lsn, Record, VolumeId};

/// Records in the order of their LSNs. Ends after the last one wanted, or where the journal ends for now; after an
/// error it ends too.
pub struct Records<S: Store = DirStore> {
    store: Arc<S>,
    volume: VolumeId,
    from: Lsn,
    to: Lsn,
    walk: Option<Box<Walk>>,
    raw: Vec<u8>,
    frame: Option<(FrameHeader, FrameCursor)>,
}

impl<S: Store> Records<S> {
    /// `walk` stands at a frame that starts at or before `from`; without one there is nothing.
    pub(super) fn new(
        store: Arc<S>,
        volume: VolumeId,
        from: Lsn,
        to: Lsn,
        walk: Option<Box<Walk>>,
    ) -> Records<S> {
        Records { store, volume, from, to, walk, raw: Vec::new(), frame: None }
    }

    fn advance(&mut self) -> Result<Option<Record>, JournalError> {
        while let Some(walk) = &mut self.walk {
            if let Some((header, cursor)) = &mut self.frame {
                let at = |error| JournalError::at(&walk.name, header.offset, error);
                match cursor.next(&self.raw).map_err(at)? {
                    Some(record) if record.lsn > self.to => return Ok(None),
                    Some(record) if record.lsn >= self.from => return Ok(Some(record.to_record())),
                    Some(_) => {}
                    None => self.frame = None,
                }
                continue;
            }
            if walk.next_lsn > self.to {
                return Ok(None);
            }
            match walk.next(&*self.store)? {
                Step::Records(header) if header.last_lsn < self.from => {}
                Step::Records(header) => {
                    walk.unpack(&header, &mut self.raw)?;
                    let version = walk.header.version;
                    let cursor = FrameCursor::new(version, header.first_lsn, header.last_lsn);
                    self.frame = Some((header, cursor));
                }
                Step::Sealed(seal, _) => {
                    let chain = Chain::after(walk.header.first_lsn, seal.last_lsn, seal.hash);
                    self.walk = follow(&*self.store, self.volume, &chain)?;
                }
                Step::Open(_) => return Ok(None),
            }
        }
        Ok(None)
    }
}

impl<S: Store> Iterator for Records<S> {
    type Item = Result<Record, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if !matches!(next, Ok(Some(_))) {
            self.walk = None;
        }
        next.transpose()
    }
}

/// The segment that comes next in the chain; None when it is not there yet.
fn follow<S: Store>(store: &S, volume: VolumeId, chain: &Chain) -> Result<Option<Box<Walk>>, JournalError> {
    let firsts = list_segments(store)?;
    if firsts.binary_search(&chain.next_lsn).is_err() {
        return match firsts.iter().find(|first| **first > chain.next_lsn) {
            None => Ok(None),
            Some(found) => Err(JournalError::MissingSegment {
                missing: segment_name(chain.next_lsn),
                found: segment_name(*found),
            }),
        };
    }
    match Walk::open(store, volume, chain.next_lsn)? {
        Opened::HalfCreated(_) => Ok(None),
        Opened::Walk(walk) => {
            chain.expect_header(&walk.header)?;
            Ok(Some(walk))
        }
    }
}
