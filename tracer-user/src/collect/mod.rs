//! From events to records: which ranges changed, reading them, the scan of the whole volume, and marks.

mod collector;
mod compare;
mod freezer;
mod group;
mod hooks;
mod mark;
mod pending;
mod readers;
mod sample;
mod scan;
mod slice;
mod staged;
#[cfg(test)]
mod tests;
mod under_way;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use serde::Serialize;

use crate::capture::{Capture, Counters, Event, Positions, Skipped};
use crate::io::{AlignedBuf, Pace};
use crate::model::{
    ActivityShown, ByteRange, ByteRangeSet, GranuleHash, Granules, Mark, MarkId, Origin, Point, RecordBody,
    Timestamp,
};

pub use collector::{Begin, Collector, CollectorParts, Ended};
pub use freezer::{Freeze, Freezer, Reply as FreezeReply, serve as serve_freezer};
pub use group::{GroupOrder, GroupPart, GroupStep};
pub use hooks::Hooks;

/// Where events come from, and what outlives the collector: the probes, or a test's own disk.
///
/// The ledger remembers what is owed to the journal. Whoever takes a range out of the ring or the dirty bitmap has it in
/// the ledger before; it leaves the ledger when a mark is durable that was made after the range was journaled.
pub trait Probes {
    /// `Some(None)` is an event that can't be understood.
    fn next_event(&mut self) -> Option<Option<Event>>;
    /// Not even an event that a probe has begun to write, and that `next_event` can't give yet.
    fn ring_is_empty(&self) -> bool;
    /// They copy what is written: then submissions come with payload where there is room.
    fn copy_payload(&self) -> bool {
        false
    }
    /// How far the ring is read and filled.
    fn positions(&self) -> Positions {
        Positions::default()
    }
    fn counters(&self) -> Counters;
    /// Takes what was put into the dirty bitmap for want of room in the ring.
    fn take_dirty(&mut self) -> ByteRangeSet;
    /// A write went unreported since this was last asked: it may be anywhere.
    fn lost_track(&mut self) -> bool;
    fn owe(&mut self, range: ByteRange);
    /// Journal and device say the same now.
    fn turn(&mut self);
    /// The mark of the last turn is durable.
    fn settle(&mut self, mark: MarkId);
    /// What the scan found of all but `left` is durable.
    fn keep_unscanned(&mut self, left: &ByteRangeSet);
    fn skipped(&self) -> Skipped {
        Skipped::default()
    }
    fn flush_diagnostics(&mut self) {}
}

impl Probes for Capture {
    fn next_event(&mut self) -> Option<Option<Event>> {
        Capture::next_event(self)
    }

    fn ring_is_empty(&self) -> bool {
        Capture::ring_is_empty(self)
    }

    fn copy_payload(&self) -> bool {
        self.copies_payload()
    }

    fn positions(&self) -> Positions {
        Capture::positions(self)
    }

    fn counters(&self) -> Counters {
        Capture::counters(self)
    }

    fn take_dirty(&mut self) -> ByteRangeSet {
        Capture::take_dirty(self)
    }

    fn lost_track(&mut self) -> bool {
        Capture::lost_track(self)
    }

    fn owe(&mut self, range: ByteRange) {
        self.ledger().owe(range);
    }

    fn turn(&mut self) {
        self.ledger().turn();
    }

    fn settle(&mut self, mark: MarkId) {
        Capture::settle(self, mark);
    }

    fn keep_unscanned(&mut self, left: &ByteRangeSet) {
        self.ledger().keep_unscanned(left);
    }

    fn skipped(&self) -> Skipped {
        Capture::skipped(self)
    }

    fn flush_diagnostics(&mut self) {
        Capture::flush_diagnostics(self);
    }
}

/// The protected volume as the collector uses it: a block device, or a test's own disk.
pub trait Source: Sync {
    /// Bytes now; a volume that changes its size ends the protection.
    fn size_bytes(&self) -> std::io::Result<u64>;
    /// Reads what the device holds, not what a cache does. Several threads read at once.
    fn read(&self, range: ByteRange) -> std::io::Result<AlignedBuf>;
    /// Whether the device has a write under way; `None` when it can't tell.
    fn writing(&self) -> Option<bool>;
    /// Whether each completion says which range is done, as of a request; a bio's need not.
    fn completions_name_ranges(&self) -> bool;
    /// Whether others have it read or write now; asked while nothing is read by `read`.
    fn is_busy(&self) -> bool;
    /// Mount points of the file systems on the volume, the topmost first.
    fn mounts(&self) -> std::io::Result<Vec<PathBuf>>;
}

/// The replica, for comparing.
pub trait ReplicaBytes {
    fn read(&mut self, range: ByteRange) -> std::io::Result<&[u8]>;
    /// Its hashes, if there are any: then only what they don't show to be the same is read.
    fn hashes(&self) -> Option<Arc<dyn ReplicaHashes>> {
        None
    }
}

/// The hashes of the replica's granules. Several threads look at once.
pub trait ReplicaHashes: Send + Sync {
    fn granules(&self) -> Granules;
    /// One for each of `granules`; `None` when in doubt.
    fn hashes(&self, granules: Range<u64>) -> Vec<Option<GranuleHash>>;
}

/// What the collector hands to the journal.
pub enum Entry {
    Records {
        time: Timestamp,
        bodies: Vec<RecordBody>,
    },
    /// Writes in the order of their submission, and where one is missing a Gap.
    Ordered {
        records: Vec<(Timestamp, RecordBody)>,
    },
    /// Who changed what. `ordered` where each write is a point, and each of these then is.
    Origins {
        time: Timestamp,
        origins: Vec<Origin>,
        ordered: bool,
    },
    /// To be made durable at once; then whoever asked is answered.
    Mark {
        time: Timestamp,
        mark: Mark,
        frozen_ms: Option<u64>,
        reply: Option<MarkReply>,
    },
    /// All before it is to be made durable, and this number to be acknowledged.
    Barrier(u64),
}

/// What the journal tells the collector.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// Number of the last mark of a restorable class that is durable.
    pub mark: AtomicU64,
    pub barrier: AtomicU64,
}

/// Where the outcome of a mark goes; the text is for people.
pub type MarkReply = SyncSender<Result<MarkDone, String>>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MarkDone {
    #[serde(flatten)]
    pub point: Point,
    /// How long writers to the file systems were held at most: from asking for the freeze to the thaw. `None` if nothing
    /// was frozen.
    pub frozen_ms: Option<u64>,
}

pub enum Command {
    Mark {
        label: String,
        reply: Option<MarkReply>,
        /// It is one of several volumes' at the same instant.
        group: Option<GroupPart>,
    },
    /// Drain, make a last mark, end.
    Stop,
}

#[derive(Clone, Debug)]
pub struct CollectorOptions {
    pub mark_every: Option<Duration>,
    pub freeze_timeout: Duration,
    /// The number of the next mark.
    pub next_mark: MarkId,
    /// Of the walk over the volume; what changes is read at once.
    pub scan_pace: Pace,
}

/// Where the protection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The first copy of the volume.
    #[default]
    Baseline,
    /// Comparing with the replica after a restart.
    Resync,
    Live,
    /// The journal can't be written: the probes go on recording where is written, and it is tried again.
    Paused,
    Stopping,
}

/// The collector's part of `status`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CollectorStatus {
    pub state: State,
    pub counters: Counters,
    pub skipped: Skipped,
    /// The ring had no room within the last second: writes go through the dirty bitmap.
    pub overrun: bool,
    /// The fullest the ring was within the last 200 ms, of `ring_bytes`.
    pub ring_used_bytes: u64,
    /// What was written since the last restorable mark is known in part only; the next such mark closes the gap.
    pub gap_open: bool,
    /// Each write since the last mark is a point that can be restored.
    pub every_write: bool,
    /// Copied writes that were otherwise on the device once they were done, of the few that are compared: their memory was
    /// changed while it was written.
    pub unstable_writes: u64,
    /// Writes that the device said have failed, in this session: what it holds there is read, now and once it was idle.
    pub failed_writes: u64,
    pub scan_done_bytes: u64,
    pub scan_total_bytes: u64,
    /// Changed and not in the journal yet.
    pub pending_bytes: u64,
    /// Age of the oldest change that is not in the journal yet.
    pub pending_ms: u64,
    /// Bytes of records handed to the journal in this session.
    pub journaled_bytes: u64,
    /// Ranges of the source that can't be read now; no mark can be made until they can.
    pub unreadable_bytes: u64,
    pub marks: u64,
    pub last_frozen_ms: Option<u64>,
    /// Why the last mark is not of class app although it should be.
    pub last_hook_error: Option<String>,
    pub last_mark_error: Option<String>,
    #[serde(flatten)]
    pub activity: ActivityShown,
}

#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error(
        "the source changed its size from {was} to {now} bytes: the journal is for the old size; start again with a new journal and target"
    )]
    Resized { was: u64, now: u64 },
    #[error("the source's size can't be read any more")]
    Gone(#[source] std::io::Error),
    #[error("the helper process that freezes file systems can't be spoken to")]
    Freezer(#[source] std::io::Error),
    #[error("the threads that read the source can't be started")]
    Readers(#[source] std::io::Error),
    #[error(
        "the ring holds an event that no probe of this version writes: start again, and reinstall if it comes back"
    )]
    UnknownEvent,
    #[error("the journal ended")]
    JournalEnded,
}
