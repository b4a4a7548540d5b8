//! What pinned probes say of themselves (`tracer_common::session`), and whether they are those one would attach now.

use tracer_common::{EVENT_VERSION, SECTOR_BYTES, session};

use crate::capture::features::{LADDER, Rung};
use crate::capture::mapped::MappedArray;
use crate::capture::{VolumeExtent, object};
use crate::io::IoCounts;
use crate::model::{ByteRange, MarkId, VolumeId};

/// All that decides whether probes can be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub volume: VolumeId,
    pub disk_sequence: u64,
    pub disk_dev: u32,
    /// The volume's bytes on the disk.
    pub on_disk: ByteRange,
    pub rung: Rung,
    pub request_based: bool,
    /// They copy what is written.
    pub payload: bool,
    /// BLAKE3 of the object file.
    pub object: [u8; 32],
    pub event_version: u64,
}

impl Session {
    /// Of the probes this program has.
    pub fn of(volume: &VolumeExtent, id: VolumeId, rung: Rung, payload: bool) -> Session {
        Session {
            volume: id,
            disk_sequence: volume.disk_sequence,
            disk_dev: volume.disk_dev(),
            on_disk: volume.on_disk,
            rung,
            request_based: volume.request_based,
            payload,
            object: *blake3::hash(object::EMBEDDED).as_bytes(),
            event_version: EVENT_VERSION,
        }
    }

    /// `None` when it is of a version this program does not know, or not yet (or no longer) complete.
    pub fn read(words: &MappedArray) -> Option<Session> {
        if words.get(session::FORMAT) != session::FORMAT_V1 || words.get(session::READY) != 1 {
            return None;
        }
        let volume = VolumeId(read_bytes(words, session::VOLUME_ID));
        let object = read_bytes(words, session::OBJECT);
        let (start, end) = (words.get(session::VOLUME_START), words.get(session::VOLUME_END));
        if start > end || end > u64::MAX / SECTOR_BYTES {
            return None;
        }
        Some(Session {
            volume,
            disk_sequence: words.get(session::DISK_SEQUENCE),
            disk_dev: u32::try_from(words.get(session::DISK_DEV)).ok()?,
            on_disk: ByteRange::new(start * SECTOR_BYTES, end * SECTOR_BYTES),
            rung: *LADDER.get(usize::try_from(words.get(session::RUNG)).ok()?)?,
            request_based: words.get(session::REQUEST_BASED) != 0,
            payload: words.get(session::PAYLOAD) != 0,
            object,
            event_version: words.get(session::EVENT_VERSION),
        })
    }

    /// All but [`set_ready`].
    pub fn write(&self, words: &MappedArray) {
        words.set(session::FORMAT, session::FORMAT_V1);
        write_bytes(words, session::VOLUME_ID, &self.volume.0);
        words.set(session::DISK_SEQUENCE, self.disk_sequence);
        words.set(session::DISK_DEV, self.disk_dev.into());
        words.set(session::VOLUME_START, self.on_disk.start / SECTOR_BYTES);
        words.set(session::VOLUME_END, self.on_disk.end / SECTOR_BYTES);
        let rung = LADDER.iter().position(|rung| *rung == self.rung).expect("every rung is on the ladder");
        words.set(session::RUNG, rung as u64);
        words.set(session::REQUEST_BASED, self.request_based.into());
        words.set(session::PAYLOAD, self.payload.into());
        write_bytes(words, session::OBJECT, &self.object);
        words.set(session::EVENT_VERSION, self.event_version);
    }

    /// The same bytes of the same disk, in this life of it. A kernel that does not number them (before 5.15) can't tell.
    pub fn is_of_disk(&self, volume: &VolumeExtent) -> bool {
        self.disk_sequence != 0
            && self.disk_sequence == volume.disk_sequence
            && self.disk_dev == volume.disk_dev()
            && self.on_disk == volume.on_disk
    }
}

pub fn set_ready(words: &MappedArray) {
    words.set(session::READY, 1);
}

/// What a disk was when its probes had just been attached, and no write was under way: what had been written before is in it,
/// what was written later was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the kernel had counted.
    pub counts: IoCounts,
    /// BLAKE3 of the volume's beginning, where file systems note that they were mounted for writing.
    pub head: [u8; 32],
}

impl Found {
    pub(super) fn read(words: &MappedArray) -> Option<Found> {
        (words.get(session::FOUND) == 1).then(|| Found {
            counts: IoCounts {
                counted: words.get(session::FOUND_COUNTED) != 0,
                reads: 0,
                writes: words.get(session::FOUND_WRITES),
                written_sectors: words.get(session::FOUND_WRITTEN_SECTORS),
                discards: words.get(session::FOUND_DISCARDS),
                discarded_sectors: words.get(session::FOUND_DISCARDED_SECTORS),
            },
            head: read_bytes(words, session::FOUND_HEAD),
        })
    }

    pub(super) fn write(&self, words: &MappedArray) {
        words.set(session::FOUND_COUNTED, self.counts.counted.into());
        words.set(session::FOUND_WRITES, self.counts.writes);
        words.set(session::FOUND_WRITTEN_SECTORS, self.counts.written_sectors);
        words.set(session::FOUND_DISCARDS, self.counts.discards);
        words.set(session::FOUND_DISCARDED_SECTORS, self.counts.discarded_sectors);
        write_bytes(words, session::FOUND_HEAD, &self.head);
        words.set(session::FOUND, 1);
    }
}

pub fn is_unclaimed(words: &MappedArray) -> bool {
    words.get(session::UNCLAIMED) == 1
}

pub fn set_unclaimed(words: &MappedArray) {
    words.set(session::UNCLAIMED, 1);
}

/// From here on they record for this volume's journal. Killed before the last step, nobody has claimed them.
pub fn claim(words: &MappedArray, volume: VolumeId) {
    write_bytes(words, session::VOLUME_ID, &volume.0);
    words.set(session::UNCLAIMED, 0);
}

fn read_bytes<const N: usize>(words: &MappedArray, index: u32) -> [u8; N] {
    let mut bytes = [0; N];
    for (word, chunk) in (index..).zip(bytes.chunks_mut(8)) {
        chunk.copy_from_slice(&words.get(word).to_le_bytes());
    }
    bytes
}

fn write_bytes(words: &MappedArray, index: u32, bytes: &[u8]) {
    for (word, chunk) in (index..).zip(bytes.chunks(8)) {
        words.set(word, u64::from_le_bytes(chunk.try_into().expect("whole words")));
    }
}

/// Whether these are probes of another version of this program, which this one can't speak for.
pub fn is_foreign(words: &MappedArray) -> bool {
    let format = words.get(session::FORMAT);
    format != 0 && format != session::FORMAT_V1
}

/// The last mark that let the ledger forget something; 0 when none did.
pub fn settled_mark(words: &MappedArray) -> MarkId {
    MarkId(words.get(session::SETTLED_MARK))
}
