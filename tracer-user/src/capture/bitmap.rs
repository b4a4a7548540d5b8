//! Bitmaps in memory that the kernel or the next process shares: a bit for each granule of the volume. Pure but for the
//! atomics, which a model of the memory can stand in for.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::{ByteRange, ByteRangeSet, Granules};

/// 64 granules.
pub trait Word {
    fn load(&self) -> u64;
    fn set(&self, bits: u64);
    fn clear(&self, bits: u64);
}

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Acquire)
    }

    fn set(&self, bits: u64) {
        self.fetch_or(bits, Ordering::AcqRel);
    }

    fn clear(&self, bits: u64) {
        self.fetch_and(!bits, Ordering::AcqRel);
    }
}

/// Where bitmaps are: in memory shared with the kernel, or in a test's.
pub trait Words {
    type Word: Word;
    fn words(&self) -> &[Self::Word];
}

/// As the bits of a bitmap.
impl Granules {
    pub fn words(self) -> usize {
        usize::try_from(self.count().div_ceil(64)).expect("2^18 words at most")
    }

    /// Sets the bits of all granules that the range touches.
    pub fn set(self, words: &[impl Word], range: ByteRange) {
        for (index, bits) in self.bits_of(range) {
            // Most writes hit what is set already: looking is cheaper than an atomic write.
            if words[index].load() & bits != bits {
                words[index].set(bits);
            }
        }
    }

    /// Clears the bits of all granules that the range touches.
    pub fn clear(self, words: &[impl Word], range: ByteRange) {
        self.bits_of(range).for_each(|(index, bits)| words[index].clear(bits));
    }

    /// The granules that are set.
    pub fn ranges(self, words: &[impl Word]) -> ByteRangeSet {
        let mut ranges = ByteRangeSet::new();
        for (index, word) in words.iter().enumerate() {
            self.ranges_of(index, word.load()).for_each(|range| ranges.insert(range));
        }
        ranges
    }

    /// Takes the granules that are set out of the bitmap while others set bits in it. `keep` is told of each before its
    /// bit is cleared, so that whoever is killed in between has it in one of two places. A bit set after the look stays
    /// for the next time; one that is set again between look and clear is in what is returned.
    pub fn take(self, words: &[impl Word], mut keep: impl FnMut(ByteRange)) -> ByteRangeSet {
        let mut ranges = ByteRangeSet::new();
        for (index, word) in words.iter().enumerate() {
            let bits = word.load();
            if bits == 0 {
                continue;
            }
            for range in self.ranges_of(index, bits) {
                keep(range);
                ranges.insert(range);
            }
            word.clear(bits);
        }
        ranges
    }

    /// Index and bits of each word that the range has a part in.
    fn bits_of(self, range: ByteRange) -> impl Iterator<Item = (usize, u64)> {
        let volume = ByteRange::new(0, self.volume_bytes());
        let Range { start: first, end } = volume.intersect(range).map_or(0..0, |range| self.touched(range));
        (first / 64..end.div_ceil(64)).map(move |word| {
            let from = first.max(word * 64) % 64;
            let to = (end - 1).min(word * 64 + 63) % 64;
            let index = usize::try_from(word).expect("2^18 words at most");
            (index, (u64::MAX >> (63 - to)) & (u64::MAX << from))
        })
    }

    /// Runs of set bits of one word.
    fn ranges_of(self, index: usize, bits: u64) -> impl Iterator<Item = ByteRange> {
        let first = index as u64 * 64;
        let mut left = bits;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let from = left.trailing_zeros();
            let run = (left >> from).trailing_ones();
            left &= u64::MAX.checked_shl(from + run).unwrap_or(0);
            let at = |bit: u32| {
                (first + u64::from(bit)).saturating_mul(self.granule_bytes()).min(self.volume_bytes())
            };
            Some(ByteRange::new(at(from), at(from + run)))
        })
        .filter(|range| !range.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bitmap_stays_within_two_mib() {
        for size in [1u64 << 20, 1 << 40, (1 << 40) + 1, 3 << 41, 1 << 62] {
            assert!(Granules::at_least(4096, size).words() * 8 <= 2 << 20);
        }
    }

    proptest! {
        #[test]
        fn what_is_set_is_taken_once(ranges in prop::collection::vec((0u64..1_000_000, 1u64..300_000), 0..20)) {
            let granules = Granules::new(1_000_001, 4096).unwrap();
            let words: Vec<AtomicU64> = (0..granules.words()).map(|_| AtomicU64::new(0)).collect();
            let mut expected = ByteRangeSet::new();
            for (start, len) in ranges {
                let range = ByteRange::new(start, (start + len).min(granules.volume_bytes()));
                granules.set(&words, range);
                expected.insert(range.align_outward(4096, granules.volume_bytes()));
            }
            prop_assert_eq!(&granules.ranges(&words), &expected);
            let mut kept = ByteRangeSet::new();
            prop_assert_eq!(&granules.take(&words, |range| kept.insert(range)), &expected);
            prop_assert_eq!(&kept, &expected);
            prop_assert!(granules.ranges(&words).is_empty());
        }
    }
}
