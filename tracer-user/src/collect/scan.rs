//! The walk over the whole volume: the baseline, and the comparison with the replica after a restart. Pure.

use crate::model::{ByteRange, ByteRangeSet, Granules};

/// A piece ends at a multiple of this, so that it holds whole granules of the hash list.
const PIECE_BYTES: u64 = 1 << 20;

const _: () = assert!(PIECE_BYTES.is_multiple_of(Granules::BYTES_MAX));

/// What the scan does with a piece of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Journal it whatever it holds.
    Copy(ByteRange),
    /// Journal what differs from the replica.
    Compare(ByteRange),
}

#[derive(Debug)]
pub struct Scan {
    copy: ByteRangeSet,
    compare: ByteRangeSet,
    total_bytes: u64,
}

impl Step {
    pub fn range(self) -> ByteRange {
        match self {
            Step::Copy(range) | Step::Compare(range) => range,
        }
    }
}

impl Scan {
    /// Of `unscanned`. `same_as_replica`: ranges whose last content in the journal is what the replica holds, so that
    /// comparing is enough. All else is copied.
    pub fn new(size_bytes: u64, unscanned: &ByteRangeSet, same_as_replica: &ByteRangeSet) -> Scan {
        let compare: ByteRangeSet =
            unscanned.iter().flat_map(|range| same_as_replica.overlapping(range)).collect();
        let copy = unscanned.iter().flat_map(|range| compare.gaps(range)).collect();
        Scan { copy, compare, total_bytes: size_bytes }
    }

    /// Starts over, copying everything.
    pub fn restart(&mut self) {
        let whole = [ByteRange::new(0, self.total_bytes)].into_iter().collect();
        *self = Scan::new(self.total_bytes, &whole, &ByteRangeSet::new());
    }

    /// What it has not come to.
    pub fn left(&self) -> ByteRangeSet {
        let mut left = self.copy.clone();
        left.extend(&self.compare);
        left
    }

    pub fn left_bytes(&self) -> u64 {
        self.copy.bytes() + self.compare.bytes()
    }

    /// Takes the next pieces. What can't be read is the caller's to remember.
    pub fn take_steps(&mut self, steps_max: usize) -> Vec<Step> {
        std::iter::from_fn(|| {
            let step = self.next_step()?;
            match step {
                Step::Copy(range) => self.copy.remove(range),
                Step::Compare(range) => self.compare.remove(range),
            }
            Some(step)
        })
        .take(steps_max)
        .collect()
    }

    fn next_step(&self) -> Option<Step> {
        let first = |set: &ByteRangeSet| set.iter().next();
        let cut = |range: ByteRange| {
            let piece_end = (range.start / PIECE_BYTES + 1) * PIECE_BYTES;
            ByteRange::new(range.start, range.end.min(piece_end))
        };
        match (first(&self.copy), first(&self.compare)) {
            (Some(copy), Some(compare)) if compare.start < copy.start => Some(Step::Compare(cut(compare))),
            (Some(copy), _) => Some(Step::Copy(cut(copy))),
            (None, compare) => compare.map(|range| Step::Compare(cut(range))),
        }
    }

    /// Whether a range will be read and journaled whole anyway.
    pub fn will_copy(&self, range: ByteRange) -> bool {
        self.copy.contains_all(range)
    }

    pub fn is_done(&self) -> bool {
        self.copy.is_empty() && self.compare.is_empty()
    }

    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    pub fn done_bytes(&self) -> u64 {
        self.total_bytes - self.left_bytes()
    }
}

/// The ranges of `new` that differ from `old`, in blocks of 4 KiB; both start at byte `start` of the volume.
pub fn differing(start: u64, new: &[u8], old: &[u8]) -> ByteRangeSet {
    const BLOCK: usize = 4096;
    new.chunks(BLOCK)
        .zip(old.chunks(BLOCK))
        .zip((start..).step_by(BLOCK))
        .filter(|((new, old), _)| new != old)
        .map(|((new, _), at)| ByteRange::with_len(at, new.len() as u64))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_or_compared_once() {
        let size = 5 << 20;
        let same: ByteRangeSet =
            [ByteRange::new(1 << 20, 2 << 20), ByteRange::new(4 << 20, size)].into_iter().collect();
        let whole = [ByteRange::new(0, size)].into_iter().collect();
        let mut scan = Scan::new(size, &whole, &same);
        let (mut copied, mut compared) = (ByteRangeSet::new(), ByteRangeSet::new());
        while let [step] = scan.take_steps(1)[..] {
            match step {
                Step::Copy(range) => copied.insert(range),
                Step::Compare(range) => compared.insert(range),
            }
        }
        assert_eq!(compared, same);
        assert_eq!(copied.bytes() + compared.bytes(), size);
        assert!(scan.is_done() && scan.done_bytes() == size);
    }

    #[test]
    fn pieces_end_at_whole_mebibytes() {
        let same: ByteRangeSet = [ByteRange::new(4096, (3 << 20) + 512)].into_iter().collect();
        let whole = [ByteRange::new(0, 4 << 20)].into_iter().collect();
        let mut scan = Scan::new(4 << 20, &whole, &same);
        let ends: Vec<u64> = scan.take_steps(100).into_iter().map(|step| step.range().end).collect();
        assert_eq!(ends, [4096, 1 << 20, 2 << 20, 3 << 20, (3 << 20) + 512, 4 << 20]);
    }

    #[test]
    fn differing_blocks_are_found() {
        let old = vec![1u8; 10_000];
        let mut new = old.clone();
        new[9_000] = 2;
        assert_eq!(differing(4096, &new, &old).iter().collect::<Vec<_>>(), [ByteRange::new(12_288, 14_096)]);
    }
}
