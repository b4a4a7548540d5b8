//! What pinned probes say of themselves (`tracer_common::session`), and whether they are those one would attach now.

use tracer_common::{EVENT_VERSION, SECTOR_BYTES, session};

use crate::capture::features::{LADDER, Rung};
use crate::capture::mapped::MappedArray;
use crate::capture::{VolumeExtent, object};
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
        let bytes = |index: u32, out: &mut [u8]| {
            for (word, chunk) in (index..).zip(out.chunks_mut(8)) {
                chunk.copy_from_slice(&words.get(word).to_le_bytes());
            }
        };
        let mut volume = VolumeId([0; 16]);
        bytes(session::VOLUME_ID, &mut volume.0);
        let mut object = [0; 32];
        bytes(session::OBJECT, &mut object);
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
        let bytes = |index: u32, from: &[u8]| {
            for (word, chunk) in (index..).zip(from.chunks(8)) {
                words.set(word, u64::from_le_bytes(chunk.try_into().expect("whole words")));
            }
        };
        words.set(session::FORMAT, session::FORMAT_V1);
        bytes(session::VOLUME_ID, &self.volume.0);
        words.set(session::DISK_SEQUENCE, self.disk_sequence);
        words.set(session::DISK_DEV, self.disk_dev.into());
        words.set(session::VOLUME_START, self.on_disk.start / SECTOR_BYTES);
        words.set(session::VOLUME_END, self.on_disk.end / SECTOR_BYTES);
        let rung = LADDER.iter().position(|rung| *rung == self.rung).expect("every rung is on the ladder");
        words.set(session::RUNG, rung as u64);
        words.set(session::REQUEST_BASED, self.request_based.into());
        words.set(session::PAYLOAD, self.payload.into());
        bytes(session::OBJECT, &self.object);
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

/// Whether these are probes of another version of this program, which this one can't speak for.
pub fn is_foreign(words: &MappedArray) -> bool {
    let format = words.get(session::FORMAT);
    format != 0 && format != session::FORMAT_V1
}

/// The last mark that let the ledger forget something; 0 when none did.
pub fn settled_mark(words: &MappedArray) -> MarkId {
    MarkId(words.get(session::SETTLED_MARK))
}
