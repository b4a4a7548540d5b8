//! The segment being written: made, appended to and sealed.

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::format::{
    Codec, FRAME_HEADER_LEN, FrameHeader, FrameKind, Seal, Seed, SegmentHeader, Version,
};
use crate::journal::index::Index;
use crate::journal::packing::{Packer, len_u32};
use crate::journal::segment::{Chain, segment_name};
use crate::journal::walk::io_error;
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

    /// Ends the segment with index and seal, durably. `last` is its last record; `recovered` when its own writer left
    /// it open.
    pub fn seal<S: Store>(
        &mut self,
        store: &mut S,
        packer: &mut Packer,
        last: Lsn,
        recovered: bool,
    ) -> Result<Chain, JournalError> {
        let mut index = vec![0; FRAME_HEADER_LEN];
        self.index.encode(&mut index);
        let raw_len = index.len() - FRAME_HEADER_LEN;
        let mut packed = Vec::new();
        let codec = packer.pack(&index, &mut packed);
        let mut frame = if codec == Codec::Raw { index } else { packed };
        let header = FrameHeader {
            kind: FrameKind::Index,
            codec,
            stored_len: len_u32(frame.len() - FRAME_HEADER_LEN),
            raw_len: len_u32(raw_len),
            marks: len_u32(self.index.points().len()),
            breaks: 0,
            first_lsn: self.first,
            last_lsn: last,
            offset: self.size,
            durable_end: self.synced,
            payload_crc: 0,
        };
        self.append_frame(store, header, &mut frame)?;
        // A seal promises that all before it is durable, so it must not reach the disk first.
        self.sync(store)?;
        let hash = *self.hasher.finalize().as_bytes();
        let seal = Seal { index_offset: header.offset, last_lsn: last, hash, recovered };
        let bytes = seal.encode(self.seed, self.size);
        self.append(store, &bytes)?;
        self.sync(store)?;
        Ok(Chain::after(self.first, last, hash))
    }
}

/// A new segment with its header, durable.
pub fn create_segment<S: Store>(
    store: &mut S,
    info: &VolumeInfo,
    chain: &Chain,
    created: Timestamp,
) -> Result<Segment, JournalError> {
    let name = segment_name(chain.next_lsn);
    let segment = write_header(store, info, chain, created, name)?;
    store.sync_dir().map_err(|error| io_error(store, "sync", "", error))?;
    Ok(segment)
}

/// [`create_segment`] in the place of a segment that holds no record and is of an older version.
pub fn replace_segment<S: Store>(
    store: &mut S,
    info: &VolumeInfo,
    chain: &Chain,
    created: Timestamp,
) -> Result<Segment, JournalError> {
    let name = segment_name(chain.next_lsn);
    let new_name = format!("{name}.new");
    if store.size(&new_name).is_ok() {
        // Of a replacement that failed.
        store.remove(&new_name).map_err(|error| io_error(store, "remove", &new_name, error))?;
    }
    let segment = write_header(store, info, chain, created, new_name.clone())?;
    store
        .rename(&new_name, &name)
        .and_then(|()| store.sync_dir())
        .map_err(|error| io_error(store, "replace", &name, error))?;
    Ok(Segment { name, ..segment })
}

fn write_header<S: Store>(
    store: &mut S,
    info: &VolumeInfo,
    chain: &Chain,
    created: Timestamp,
    name: String,
) -> Result<Segment, JournalError> {
    let version = Version::V2;
    let first = chain.next_lsn;
    let header = SegmentHeader { version, volume: info.id, first_lsn: first, created, previous: chain.hash };
    let mut segment = Segment {
        seed: Seed::new(info.id, first),
        first,
        size: 0,
        synced: 0,
        hasher: blake3::Hasher::new(),
        index: Index::new(version),
        name,
    };
    store.create(&segment.name).map_err(|error| io_error(store, "create", &segment.name, error))?;
    segment.append(store, &header.encode())?;
    segment.sync(store)?;
    Ok(segment)
}
