use serde::Serialize;
use tracer_common::{
    BLOCK_EVENT_BYTES, BlockEvent, COMPLETE_WHOLE, KIND_COMPLETE, KIND_PIECE, KIND_SUBMIT,
    KIND_SUBMIT_PAYLOAD, KIND_WRITE, OP_DISCARD, OP_SECURE_ERASE, OP_WRITE_ZEROES, PIECE_BYTES_MAX,
    SECTOR_BYTES, counter,
};

use crate::capture::VolumeExtent;
use crate::model::ByteRange;

/// What is done to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Write,
    /// Reads as zeros once it is done.
    Zeroes,
    /// May read as anything.
    Discard,
}

/// The bytes of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Only where is known.
    None,
    /// They come as [`Event::Piece`]s under the same `seq`, in order, all of them or none past some point.
    Follows,
    /// As many as the range has.
    Whole(Vec<u8>),
}

/// What a probe reported, with byte ranges relative to the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The range is about to change.
    Submit {
        /// Pairs it with its completion; 0 when the rung can't tell.
        key: u64,
        /// The first range of its request: what was submitted under the same key before is done.
        first: bool,
        range: ByteRange,
        change: Change,
        /// CLOCK_MONOTONIC.
        time_ns: u64,
        seq: u64,
        payload: Payload,
    },
    /// A part of a write's bytes; empty where it lies outside of the volume.
    Piece { seq: u64, range: ByteRange, bytes: Vec<u8> },
    /// A hint that a range may be read now; also when the write failed, though what the device then holds may still
    /// change.
    Complete { key: u64, range: Option<ByteRange>, whole: bool, failed: bool },
}

impl Event {
    /// `None` for bytes that no probe of this version writes. Ring bytes are untrusted: length first, then a copy.
    pub fn parse(bytes: &[u8], volume: &VolumeExtent) -> Option<Event> {
        let (event, data) = bytes.split_first_chunk::<BLOCK_EVENT_BYTES>()?;
        // SAFETY: BlockEvent is repr(C) of integers without padding, so any bytes of its size are a value of it.
        let event: BlockEvent = unsafe { event.as_ptr().cast::<BlockEvent>().read_unaligned() };
        let on_disk = ByteRange::with_len(event.sector.checked_mul(SECTOR_BYTES)?, u64::from(event.bytes));
        let range = on_disk.intersect(volume.on_disk).map(|range| {
            ByteRange::new(range.start - volume.on_disk.start, range.end - volume.on_disk.start)
        });
        // What of the data lies on the volume.
        let on_volume = || {
            let from = volume.on_disk.start.saturating_sub(on_disk.start);
            let (from, len) =
                (usize::try_from(from).ok()?, usize::try_from(range.map_or(0, ByteRange::len)).ok()?);
            data.get(from..from.checked_add(len)?).map(<[u8]>::to_vec)
        };
        let carries_data = matches!(event.kind, KIND_PIECE | KIND_WRITE);
        if data.len() != if carries_data { PIECE_BYTES_MAX } else { 0 }
            || (carries_data && event.bytes as usize > PIECE_BYTES_MAX)
        {
            return None;
        }
        let payload = match event.kind {
            KIND_WRITE => Payload::Whole(on_volume()?),
            KIND_SUBMIT_PAYLOAD => Payload::Follows,
            _ => Payload::None,
        };
        match event.kind {
            KIND_SUBMIT | KIND_SUBMIT_PAYLOAD | KIND_WRITE => Some(Event::Submit {
                key: event.key,
                first: event.part == 0,
                range: range?,
                change: match event.op {
                    OP_DISCARD | OP_SECURE_ERASE => Change::Discard,
                    OP_WRITE_ZEROES => Change::Zeroes,
                    _ => Change::Write,
                },
                time_ns: event.time_ns,
                seq: event.seq,
                payload,
            }),
            KIND_PIECE => match range {
                Some(range) => Some(Event::Piece { seq: event.seq, range, bytes: on_volume()? }),
                None => Some(Event::Piece { seq: event.seq, range: ByteRange::new(0, 0), bytes: Vec::new() }),
            },
            KIND_COMPLETE => Some(Event::Complete {
                key: event.key,
                range,
                whole: event.part == COMPLETE_WHOLE,
                failed: event.error != 0,
            }),
            _ => None,
        }
    }
}

/// What the probes counted, in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Submissions seen. Once the probes are at rest, seen == emitted + marked.
    pub seen: u64,
    /// Submissions that went through the ring.
    pub emitted: u64,
    /// Submissions for which the ring was full: they are in the dirty bitmap.
    pub marked: u64,
    pub completions_seen: u64,
    pub completions_lost: u64,
    /// Of those emitted the ones whose bytes were copied, too.
    pub payload: u64,
    /// Of those copied the ones not all of whose bytes found room: they are in the dirty bitmap as well.
    pub payload_lost: u64,
    /// Kernel memory a probe could not read: the volume is then compared as a whole.
    pub read_failed: u64,
}

impl Counters {
    /// Emitted and marked are read before seen: if the sum is right, all that were seen by then had been reported.
    pub fn read(value: impl Fn(u32) -> u64) -> Counters {
        let emitted = value(counter::EMITTED);
        let marked = value(counter::MARKED);
        Counters {
            emitted,
            marked,
            seen: value(counter::SEEN),
            completions_seen: value(counter::COMPLETE_SEEN),
            completions_lost: value(counter::COMPLETE_LOST),
            payload: value(counter::PAYLOAD),
            payload_lost: value(counter::PAYLOAD_LOST),
            read_failed: value(counter::READ_FAILED),
        }
    }

    /// Every submission up to `now` had been reported when these were read, before ring and bitmap were emptied.
    pub fn cover_all_until(&self, now: &Counters) -> bool {
        self.seen == self.emitted + self.marked
            && (now.seen, now.in_bitmap()) == (self.seen, self.in_bitmap())
    }

    /// How often something was put into the dirty bitmap.
    pub fn in_bitmap(&self) -> u64 {
        self.marked + self.payload_lost
    }
}

/// Runs of a probe that the kernel skipped (`recursion_misses`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// A write may have gone unseen: the volume is then compared as a whole.
    pub submissions: u64,
    /// Harmless: completions are hints.
    pub completions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(event: BlockEvent) -> [u8; BLOCK_EVENT_BYTES] {
        // SAFETY: same size, and BlockEvent has no padding.
        unsafe { std::mem::transmute(event) }
    }

    fn event() -> BlockEvent {
        BlockEvent {
            seq: 7,
            time_ns: 9,
            sector: 2048,
            key: 0xffff_8880,
            bytes: 8192,
            pid: 1,
            error: 0,
            kind: KIND_SUBMIT,
            op: 1,
            part: 0,
        }
    }

    fn volume() -> VolumeExtent {
        VolumeExtent {
            disk_major: 7,
            disk_first_minor: 0,
            on_disk: ByteRange::new(1 << 20, 1 << 30),
            ..Default::default()
        }
    }

    #[test]
    fn ranges_become_relative_to_the_volume() {
        let parsed = Event::parse(&bytes_of(event()), &volume());
        let Some(Event::Submit { range, first: true, change: Change::Write, seq: 7, .. }) = parsed else {
            panic!("{parsed:?}")
        };
        assert_eq!(range, ByteRange::new(0, 8192));
    }

    #[test]
    fn a_write_across_the_border_is_cut() {
        let mut over = event();
        over.sector = 2040;
        let Some(Event::Submit { range, .. }) = Event::parse(&bytes_of(over), &volume()) else { panic!() };
        assert_eq!(range, ByteRange::new(0, 4096));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            if let Some(Event::Submit { range, .. }) = Event::parse(&bytes, &volume()) {
                assert!(range.end <= volume().on_disk.len());
            }
        }
    }
}
