use rangemap::RangeMap;

use crate::model::ByteRange;

/// One operation on a target, as the coalescer gives it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    Write {
        /// Byte of the volume where `bytes` go.
        start: u64,
        bytes: &'a [u8],
    },
    Zero {
        range: ByteRange,
        /// The space may be given back.
        discard: bool,
    },
}

impl<'a> Op<'a> {
    /// The bytes of the volume it changes.
    pub fn range(self) -> ByteRange {
        match self {
            Op::Write { start, bytes } => ByteRange::with_len(start, bytes.len() as u64),
            Op::Zero { range, .. } => range,
        }
    }

    /// What it writes; `None` for zeros.
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Op::Write { bytes, .. } => Some(bytes),
            Op::Zero { .. } => None,
        }
    }
}

/// Collects writes in bounded memory so that a target sees few large ones in order: a later write wins over an earlier
/// one, and what lies side by side goes out as one. Pure: the caller gives what `flush` hands out to the target.
pub struct Coalescer {
    overlay: RangeMap<u64, Piece>,
    /// The bytes of `Piece::Data`, with the byte of the volume they start at. Overwritten parts stay until the flush.
    buffers: Vec<(u64, Vec<u8>)>,
    held_bytes: usize,
    held_bytes_max: usize,
    joined: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Index into `buffers`.
    Data(usize),
    Zero {
        discard: bool,
    },
}

const HELD_BYTES_MAX: usize = 32 << 20;
/// What one entry costs besides its bytes, so that many empty ones are bounded too.
const ENTRY_BYTES: usize = 128;
const WRITE_BYTES_MAX: usize = 4 << 20;
/// Zeros shorter than this beside data are written with it: a hole there would cost more than it saves.
const HOLE_BYTES_MIN: u64 = 32 << 10;

impl Default for Coalescer {
    fn default() -> Coalescer {
        Coalescer::new(HELD_BYTES_MAX)
    }
}

impl Coalescer {
    /// Holds about `held_bytes_max` bytes before `is_full` says so.
    pub fn new(held_bytes_max: usize) -> Coalescer {
        Coalescer {
            overlay: RangeMap::new(),
            buffers: Vec::new(),
            held_bytes: 0,
            held_bytes_max,
            joined: Vec::new(),
        }
    }

    pub fn write(&mut self, start: u64, bytes: Vec<u8>) {
        let range = ByteRange::with_len(start, bytes.len() as u64);
        if range.is_empty() {
            return;
        }
        self.held_bytes += bytes.len() + ENTRY_BYTES;
        self.overlay.insert(range.start..range.end, Piece::Data(self.buffers.len()));
        self.buffers.push((start, bytes));
    }

    pub fn zero(&mut self, range: ByteRange, discard: bool) {
        if range.is_empty() {
            return;
        }
        self.held_bytes += ENTRY_BYTES;
        self.overlay.insert(range.start..range.end, Piece::Zero { discard });
    }

    /// Time to flush.
    pub fn is_full(&self) -> bool {
        self.held_bytes >= self.held_bytes_max
    }

    /// Hands all that is held to `sink`, by rising offset and without overlap, and forgets it: also after an error,
    /// where the sink is left in an unknown state and only starting again from a checkpoint helps.
    pub fn flush<E>(&mut self, mut sink: impl FnMut(Op<'_>) -> Result<(), E>) -> Result<(), E> {
        let overlay = std::mem::take(&mut self.overlay);
        let buffers = std::mem::take(&mut self.buffers);
        self.held_bytes = 0;
        let mut pieces = overlay.iter().peekable();
        self.joined.clear();
        let mut joined_start = 0;
        while let Some((range, piece)) = pieces.next() {
            let range = ByteRange::new(range.start, range.end);
            let follows = !self.joined.is_empty() && joined_start + self.joined.len() as u64 == range.start;
            let next_touches = pieces.peek().is_some_and(|(next, _)| next.start == range.end);
            let bytes = match *piece {
                Piece::Data(index) => Some(slice(&buffers[index], range)),
                Piece::Zero { .. } if range.len() < HOLE_BYTES_MIN && (follows || next_touches) => None,
                Piece::Zero { discard } => {
                    give(&mut self.joined, joined_start, &mut sink)?;
                    sink(Op::Zero { range, discard })?;
                    continue;
                }
            };
            let len = bytes.map_or(range.len() as usize, <[u8]>::len);
            if !follows || self.joined.len() + len > WRITE_BYTES_MAX {
                give(&mut self.joined, joined_start, &mut sink)?;
                joined_start = range.start;
            }
            match bytes {
                // Nothing to join with: no copy.
                Some(bytes) if self.joined.is_empty() && (!next_touches || len >= WRITE_BYTES_MAX) => {
                    sink(Op::Write { start: range.start, bytes })?;
                }
                Some(bytes) => self.joined.extend_from_slice(bytes),
                None => self.joined.resize(self.joined.len() + len, 0),
            }
        }
        give(&mut self.joined, joined_start, &mut sink)
    }
}

fn give<E>(
    joined: &mut Vec<u8>,
    start: u64,
    sink: &mut impl FnMut(Op<'_>) -> Result<(), E>,
) -> Result<(), E> {
    if joined.is_empty() {
        return Ok(());
    }
    let done = sink(Op::Write { start, bytes: joined });
    joined.clear();
    done
}

fn slice((start, bytes): &(u64, Vec<u8>), range: ByteRange) -> &[u8] {
    // A piece is a part of the buffer it names, so both offsets are below the buffer's length.
    &bytes[(range.start - start) as usize..(range.end - start) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn flushed(coalescer: &mut Coalescer) -> Vec<(ByteRange, Option<Vec<u8>>, bool)> {
        let mut ops = Vec::new();
        let done: Result<(), Infallible> = coalescer.flush(|op| {
            ops.push(match op {
                Op::Write { start, bytes } => {
                    (ByteRange::with_len(start, bytes.len() as u64), Some(bytes.to_vec()), false)
                }
                Op::Zero { range, discard } => (range, None, discard),
            });
            Ok(())
        });
        done.unwrap();
        ops
    }

    #[test]
    fn neighbours_go_out_as_one_write_in_order() {
        let mut coalescer = Coalescer::default();
        for start in [8192, 0, 4096, 20480] {
            coalescer.write(start, vec![start as u8 | 1; 4096]);
        }
        let ranges: Vec<_> = flushed(&mut coalescer).into_iter().map(|op| op.0).collect();
        assert_eq!(ranges, [ByteRange::new(0, 12288), ByteRange::new(20480, 24576)]);
        assert!(flushed(&mut coalescer).is_empty());
    }

    #[test]
    fn long_runs_are_cut_at_four_mebibytes() {
        let mut coalescer = Coalescer::default();
        (0..10).for_each(|n| coalescer.write(n << 20, vec![1; 1 << 20]));
        let lens: Vec<_> = flushed(&mut coalescer).into_iter().map(|op| op.0.len() >> 20).collect();
        assert_eq!(lens, [4, 4, 2]);
    }

    #[test]
    fn zeros_become_holes_unless_they_are_crumbs_between_data() {
        let mut coalescer = Coalescer::default();
        coalescer.write(0, vec![1; 4096]);
        coalescer.zero(ByteRange::new(4096, 8192), false);
        coalescer.write(8192, vec![2; 4096]);
        coalescer.zero(ByteRange::new(12288, 1 << 20), true);
        coalescer.zero(ByteRange::new(2 << 20, (2 << 20) + 512), false);
        let ops = flushed(&mut coalescer);
        assert_eq!(ops.len(), 3);
        assert_eq!(
            ops[0].1.as_deref(),
            Some([vec![1; 4096], vec![0; 4096], vec![2; 4096]].concat().as_slice())
        );
        assert_eq!(ops[1], (ByteRange::new(12288, 1 << 20), None, true));
        assert_eq!(ops[2], (ByteRange::new(2 << 20, (2 << 20) + 512), None, false));
    }

    #[test]
    fn memory_is_bounded_by_bytes_and_by_entries() {
        let mut coalescer = Coalescer::new(10_000);
        coalescer.write(0, vec![1; 9_000]);
        assert!(!coalescer.is_full());
        (0..9).for_each(|n| coalescer.zero(ByteRange::with_len(n * 10, 1), false));
        assert!(coalescer.is_full());
        flushed(&mut coalescer);
        assert!(!coalescer.is_full());
    }

    #[test]
    fn an_error_of_the_sink_ends_the_flush_and_drops_the_rest() {
        let mut coalescer = Coalescer::default();
        (0..4).for_each(|n| coalescer.write(n * 1_000_000, vec![1; 4096]));
        let mut calls = 0;
        let result = coalescer.flush(|_| {
            calls += 1;
            if calls == 2 { Err("broken") } else { Ok(()) }
        });
        assert_eq!((result, calls), (Err("broken"), 2));
        assert!(flushed(&mut coalescer).is_empty());
    }

    proptest! {
        #[test]
        fn overlay_equals_writing_in_order(
            ops in prop::collection::vec((0u8..4, 0u64..200_000, 0usize..70_000, 1u8..), 0..60),
            flush_every in 1usize..20,
        ) {
            let mut model = vec![0xee; 300_000];
            let mut disk = model.clone();
            let mut coalescer = Coalescer::default();
            let apply = |coalescer: &mut Coalescer, disk: &mut Vec<u8>| {
                let mut last_end = 0;
                for (range, bytes, _) in flushed(coalescer) {
                    assert!(range.start >= last_end, "ops overlap or are out of order");
                    last_end = range.end;
                    let part = &mut disk[range.start as usize..range.end as usize];
                    match bytes {
                        Some(bytes) => part.copy_from_slice(&bytes),
                        None => part.fill(0),
                    }
                }
            };
            for (number, (kind, start, len, byte)) in ops.into_iter().enumerate() {
                let at = start as usize;
                if kind < 3 {
                    model[at..at + len].fill(byte);
                    coalescer.write(start, vec![byte; len]);
                } else {
                    model[at..at + len].fill(0);
                    coalescer.zero(ByteRange::with_len(start, len as u64), byte % 2 == 0);
                }
                if number % flush_every == 0 {
                    apply(&mut coalescer, &mut disk);
                }
            }
            apply(&mut coalescer, &mut disk);
            prop_assert!(model == disk);
        }
    }
}
