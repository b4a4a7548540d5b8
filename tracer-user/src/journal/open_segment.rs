//! The segment being written: made, appended to, and found again after a crash.

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::format::{FRAME_HEADER_LEN, FrameHeader, Seed, SegmentHeader};
use crate::journal::index::{Entry, Index, point_of};
use crate::journal::record::FrameCursor;
use crate::journal::recovery::TornTail;
use crate::journal::segment::{Chain, segment_name};
use crate::journal::walk::{Step, Walk, io_error};
use crate::model::{Lsn, Timestamp, VolumeInfo};

/// The open segment.
pub struct Segment {
    pub name: String,
    pub first: Lsn,
    pub seed: Seed,
    pub size: u64,
    pub synced: u64,
    pub hasher: blake3::Hasher,
    pub index: Index,
}

impl Segment {
    pub fn append<S: Store>(&mut self, store: &mut S, bytes: &[u8]) -> Result<(), JournalError> {
        store.append(&self.name, bytes).map_err(|error| io_error(store, "write", &self.name, error))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// `frame` is room for the header and then the stored payload.
    pub fn append_frame<S: Store>(
        &mut self,
        store: &mut S,
        header: FrameHeader,
        frame: &mut [u8],
    ) -> Result<(), JournalError> {
        let payload_crc = self.seed.payload_crc(header.offset, &frame[FRAME_HEADER_LEN..]);
        let header = FrameHeader { payload_crc, ..header };
        frame[..FRAME_HEADER_LEN].copy_from_slice(&header.encode(self.seed));
        self.append(store, frame)
    }

    pub fn sync<S: Store>(&mut self, store: &mut S) -> Result<(), JournalError> {
        if self.synced < self.size {
            store.sync(&self.name).map_err(|error| io_error(store, "sync", &self.name, error))?;
            self.synced = self.size;
        }
        Ok(())
    }
}

/// A new segment with its header, durable.
pub fn create_segment<S: Store>(
    store: &mut S,
    info: &VolumeInfo,
    chain: &Chain,
    created: Timestamp,
) -> Result<Segment, JournalError> {
    let first = chain.next_lsn;
    let name = segment_name(first);
    let header = SegmentHeader { volume: info.id, first_lsn: first, created, previous: chain.hash };
    let mut segment = Segment {
        seed: Seed::new(info.id, first),
        first,
        size: 0,
        synced: 0,
        hasher: blake3::Hasher::new(),
        index: Index::default(),
        name,
    };
    store.create(&segment.name).map_err(|error| io_error(store, "create", &segment.name, error))?;
    segment.append(store, &header.encode())?;
    segment.sync(store)?;
    store.sync_dir().map_err(|error| io_error(store, "sync", "", error))?;
    Ok(segment)
}

/// Makes sure that what is read next is on the disk: writes what is dirty, then forgets what only seems clean.
pub fn settle<S: Store>(store: &mut S, name: &str) -> Result<(), JournalError> {
    store
        .sync(name)
        .and_then(|()| store.sync_dir())
        .and_then(|()| store.drop_cache(name))
        .map_err(|error| io_error(store, "sync", name, error))
}

/// Reads the open segment from its start, cuts its torn tail, and gives it back as it is to be continued.
pub fn reopen<S: Store>(
    store: &mut S,
    mut walk: Walk,
) -> Result<(Segment, Lsn, Option<TornTail>), JournalError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&walk.header.encode());
    let mut index = Index::default();
    let mut raw = Vec::new();
    let cut = loop {
        match walk.next(store)? {
            Step::Records(header) => {
                hasher.update(&walk.frame);
                index.add_frame(Entry { lsn: header.first_lsn, offset: header.offset });
                walk.unpack(&header, &mut raw)?;
                let mut cursor = FrameCursor::new(header.first_lsn, header.last_lsn);
                let at = |error| JournalError::at(&walk.name, header.offset, error);
                while let Some(record) = cursor.next(&raw).map_err(at)? {
                    point_of(&record).into_iter().for_each(|point| index.add_point(point));
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
        store
            .truncate(&walk.name, walk.offset)
            .and_then(|()| store.sync(&walk.name))
            .map_err(|error| io_error(store, "cut", &walk.name, error))?;
    }
    let segment = Segment {
        seed: walk.seed(),
        first: walk.header.first_lsn,
        size: walk.offset,
        synced: walk.offset,
        hasher,
        index,
        name: walk.name,
    };
    Ok((segment, walk.next_lsn, cut))
}
