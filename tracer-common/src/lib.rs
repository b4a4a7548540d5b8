//! The ABI between the probes (`tracer-ebpf`) and the collector (`afterwrite`), defined once.
//!
//! Everything here is `repr(C)`, has explicit padding, and holds neither `bool` nor `enum`:
//! ring bytes are untrusted, so a reader checks the length, copies, then interprets.
#![no_std]

pub mod vfs;

/// Bytes in a sector as the block layer counts, whatever the device's own sector size.
pub const SECTOR_BYTES: u64 = 512;

/// Grows with every change of [`BlockEvent`] or [`PayloadEvent`]: another version's events are not read.
pub const EVENT_VERSION: u64 = 2;

/// A write was handed to the driver (request-based) or queued (bio-based). Authoritative.
pub const KIND_SUBMIT: u8 = 1;
/// The device reported the write done: its range may be read now. A hint only.
pub const KIND_COMPLETE: u8 = 2;
/// As [`KIND_SUBMIT`], and the bytes follow: [`KIND_PIECE`]s under the same `seq`, in order of sectors, unless one found
/// no room; the write is then in the dirty bitmap, too.
pub const KIND_SUBMIT_PAYLOAD: u8 = 3;
/// A [`PayloadEvent`]: bytes of a write, `sector` and `bytes` being those of this piece.
pub const KIND_PIECE: u8 = 4;
/// A [`PayloadEvent`] that is submission and only piece in one.
pub const KIND_WRITE: u8 = 5;

/// Just the range of the completion event is done, more of the request is to come.
pub const COMPLETE_RANGE: u16 = 0;
/// All that was submitted under the key is done. The event's range may be empty or, for a bio that dm split and for
/// merged discards, wrong.
pub const COMPLETE_WHOLE: u16 = 1;

/// `REQ_OP_*` of the kernel, the ones that change a device (include/linux/blk_types.h, 6.1 to 6.18).
pub const OP_WRITE: u8 = 1;
pub const OP_DISCARD: u8 = 3;
pub const OP_SECURE_ERASE: u8 = 5;
pub const OP_ZONE_APPEND: u8 = 7;
pub const OP_WRITE_ZEROES: u8 = 9;
/// First of the driver-private operations, which carry no sector range.
pub const OP_DRIVER_FIRST: u8 = 34;

/// What a probe reports about one contiguous range of the disk.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEvent {
    /// Number of this submission among all seen, from 0; a hole is a lost event. Completions have 0.
    pub seq: u64,
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC).
    pub time_ns: u64,
    /// Relative to the whole disk, also for a partition, in 512-byte sectors.
    pub sector: u64,
    /// Address of the request or bio: pairs a completion with its submission. 0 on the tracepoint rung.
    pub key: u64,
    pub bytes: u32,
    /// Thread group of the task that ran the probe; for write-back a kernel thread's.
    pub pid: u32,
    /// The completion's `blk_status_t` or errno; 0 is success.
    pub error: u32,
    /// `KIND_*`.
    pub kind: u8,
    /// `OP_*`.
    pub op: u8,
    /// Submission: number of this range within its request, from 0 (merged discards hold many).
    /// Completion: [`COMPLETE_RANGE`] or [`COMPLETE_WHOLE`].
    pub part: u16,
}

pub const BLOCK_EVENT_BYTES: usize = 48;
const _: () = assert!(size_of::<BlockEvent>() == BLOCK_EVENT_BYTES);
const _: () = assert!(align_of::<BlockEvent>() == 8);

/// Bytes of a write that one event carries at most.
pub const PIECE_BYTES_MAX: usize = 4096;

/// Bytes of a write as they were when it was submitted.
#[repr(C)]
pub struct PayloadEvent {
    pub event: BlockEvent,
    /// `event.bytes` of them; the rest is whatever the ring held.
    pub data: [u8; PIECE_BYTES_MAX],
}

pub const PAYLOAD_EVENT_BYTES: usize = BLOCK_EVENT_BYTES + PIECE_BYTES_MAX;
const _: () = assert!(size_of::<PayloadEvent>() == PAYLOAD_EVENT_BYTES);

/// Indexes into the `COUNTERS` array map (u64 each).
pub mod counter {
    /// Submissions of the volume that a probe saw. `SEEN == EMITTED + MARKED` once the probes are at rest.
    pub const SEEN: u32 = 0;
    /// Submissions reported through the ring.
    pub const EMITTED: u32 = 1;
    /// Submissions for which the ring had no room; their granules are set in the dirty bitmap.
    pub const MARKED: u32 = 2;
    /// Completions of the volume that a probe saw.
    pub const COMPLETE_SEEN: u32 = 3;
    /// Completions for which the ring had no room. Harmless: they are hints.
    pub const COMPLETE_LOST: u32 = 4;
    /// Kernel memory that could not be read, so that a write may have gone unseen: compare the whole volume.
    pub const READ_FAILED: u32 = 5;
    /// Submissions of those emitted whose bytes were to follow.
    pub const PAYLOAD: u32 = 6;
    /// Of those the ones some of whose bytes did not: no room, or not readable. They are in the dirty bitmap.
    pub const PAYLOAD_LOST: u32 = 7;
    pub const COUNT: u32 = 8;
}

/// Indexes into the `CALIBRATION` array map (u64 each), by which the self-test of payload capture finds where the kernel
/// maps memory.
pub mod calibration {
    /// A number that stands at the beginning of what is written, and nowhere else in memory.
    pub const MAGIC: u32 = 0;
    /// `PAGE_CONSTANT` as it was found in the last write …
    pub const CONSTANT: u32 = 1;
    /// … in how many writes it was found, and in how many it was looked for.
    pub const FOUND: u32 = 2;
    pub const SEARCHED: u32 = 3;
    pub const COUNT: u32 = 4;
}

/// Indexes into the `SESSION` array map (u64 each): what pinned probes are, for the process that finds them. No probe
/// reads it. Words past the last one are 0.
pub mod session {
    /// [`FORMAT_V1`]; anything else is of another version of this program.
    pub const FORMAT: u32 = 0;
    /// 1 once all probes are attached and all that an older generation owed is in this one's ledger.
    pub const READY: u32 = 1;
    /// The volume's id in its journal, 16 bytes in two words.
    pub const VOLUME_ID: u32 = 2;
    /// The kernel's number of this life of the disk (`diskseq`), never used twice since boot.
    pub const DISK_SEQUENCE: u32 = 4;
    /// `DISK_DEV`, `VOLUME_START`, `VOLUME_END` as the probes have them.
    pub const DISK_DEV: u32 = 5;
    pub const VOLUME_START: u32 = 6;
    pub const VOLUME_END: u32 = 7;
    /// Rung of the ladder from the top, from 0.
    pub const RUNG: u32 = 8;
    pub const REQUEST_BASED: u32 = 9;
    /// BLAKE3 of the object file, 32 bytes in four words.
    pub const OBJECT: u32 = 10;
    /// [`EVENT_VERSION`](super::EVENT_VERSION) of the probes.
    pub const EVENT_VERSION: u32 = 14;
    /// The last mark whose durability let the ledger forget what was owed: a journal without it is not this session's.
    pub const SETTLED_MARK: u32 = 15;
    /// Writes the probes could not report (kernel memory not readable, a probe not run) for which the ledger already
    /// calls for a look at the whole volume.
    pub const FAILURES_HANDLED: u32 = 16;
    /// 1 if they copy what is written.
    pub const PAYLOAD: u32 = 17;
    /// 1 until a journal is told of the volume: the probes were attached before one could be read, and VOLUME_ID means
    /// nothing yet.
    pub const UNCLAIMED: u32 = 18;
    /// 1 if the words that follow say what the disk was when the probes had just been attached …
    pub const FOUND: u32 = 19;
    /// … what the kernel had counted of its I/O, and whether it was told to …
    pub const FOUND_COUNTED: u32 = 20;
    pub const FOUND_WRITES: u32 = 21;
    pub const FOUND_WRITTEN_SECTORS: u32 = 22;
    pub const FOUND_DISCARDS: u32 = 23;
    pub const FOUND_DISCARDED_SECTORS: u32 = 24;
    /// … and BLAKE3 of the volume's beginning, 32 bytes in four words.
    pub const FOUND_HEAD: u32 = 25;
    pub const COUNT: u32 = 32;

    /// "AWSESS" and version 1.
    pub const FORMAT_V1: u64 = 0x0001_5353_4553_5741;
}
