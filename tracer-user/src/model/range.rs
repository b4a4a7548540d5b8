use std::fmt;

use serde::{Deserialize, Serialize};

/// Half-open range of bytes `[start, end)` of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    pub fn new(start: u64, end: u64) -> ByteRange {
        debug_assert!(start <= end, "a range ends where it starts or later");
        ByteRange { start, end }
    }

    /// `len` bytes from `start`; saturates at the end of the address space.
    pub fn with_len(start: u64, len: u64) -> ByteRange {
        ByteRange { start, end: start.saturating_add(len) }
    }

    pub fn len(self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    pub fn intersect(self, other: ByteRange) -> Option<ByteRange> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(ByteRange { start, end })
    }

    /// Grown outward to multiples of `granule`, but not past `limit`.
    pub fn align_outward(self, granule: u64, limit: u64) -> ByteRange {
        let start = self.start - self.start % granule;
        let end = self.end.checked_next_multiple_of(granule).unwrap_or(u64::MAX);
        ByteRange { start, end: end.min(limit).max(self.end.min(limit)).max(start) }
    }

    /// Cut into pieces of `piece` bytes at most.
    pub fn chunks(self, piece: u64) -> impl Iterator<Item = ByteRange> {
        (self.start..self.end)
            .step_by(usize::try_from(piece).unwrap_or(usize::MAX))
            .map(move |start| ByteRange { start, end: start.saturating_add(piece).min(self.end) })
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A set of bytes of a volume as disjoint, non-adjacent ranges in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByteRangeSet {
    ranges: rangemap::RangeSet<u64>,
    bytes: u64,
}

impl ByteRangeSet {
    pub fn new() -> ByteRangeSet {
        ByteRangeSet::default()
    }

    pub fn insert(&mut self, range: ByteRange) {
        if !range.is_empty() {
            self.bytes += range.len() - self.overlap_bytes(range);
            self.ranges.insert(range.start..range.end);
        }
    }

    pub fn remove(&mut self, range: ByteRange) {
        if !range.is_empty() {
            self.bytes -= self.overlap_bytes(range);
            self.ranges.remove(range.start..range.end);
        }
    }

    pub fn extend(&mut self, other: &ByteRangeSet) {
        other.iter().for_each(|range| self.insert(range));
    }

    /// Takes the first range, cut to `len_max` bytes, out of the set.
    pub fn pop_first(&mut self, len_max: u64) -> Option<ByteRange> {
        let first = self.ranges.first()?;
        let range = ByteRange { start: first.start, end: first.end.min(first.start.saturating_add(len_max)) };
        self.remove(range);
        Some(range)
    }

    pub fn iter(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.ranges.iter().map(|r| ByteRange { start: r.start, end: r.end })
    }

    /// The parts of `range` that are in the set.
    pub fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        self.ranges
            .overlapping(range.start..range.end)
            .filter_map(move |r| ByteRange { start: r.start, end: r.end }.intersect(range))
    }

    /// The parts of `range` that are not in the set.
    pub fn gaps(&self, range: ByteRange) -> Vec<ByteRange> {
        self.ranges
            .gaps(&(range.start..range.end))
            .map(|r| ByteRange { start: r.start, end: r.end })
            .collect()
    }

    pub fn contains_all(&self, range: ByteRange) -> bool {
        self.overlap_bytes(range) == range.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    fn overlap_bytes(&self, range: ByteRange) -> u64 {
        self.overlapping(range).map(ByteRange::len).sum()
    }
}

impl FromIterator<ByteRange> for ByteRangeSet {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = ByteRangeSet::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn set_agrees_with_a_plain_bitmap(ops in prop::collection::vec((any::<bool>(), 0u64..200, 0u64..50), 0..80)) {
            let mut model = [false; 256];
            let mut set = ByteRangeSet::new();
            for (insert, start, len) in ops {
                let range = ByteRange::with_len(start, len);
                model[start as usize..(start + len) as usize].fill(insert);
                if insert { set.insert(range) } else { set.remove(range) }
            }
            for (at, wanted) in model.iter().enumerate() {
                prop_assert_eq!(set.contains_all(ByteRange::with_len(at as u64, 1)), *wanted);
            }
            prop_assert_eq!(set.bytes(), model.iter().filter(|b| **b).count() as u64);
        }
    }

    #[test]
    fn align_outward_stops_at_the_limit() {
        assert_eq!(ByteRange::new(5000, 9000).align_outward(4096, 100_000), ByteRange::new(4096, 12288));
        assert_eq!(ByteRange::new(5000, 9000).align_outward(4096, 9728), ByteRange::new(4096, 9728));
    }

    #[test]
    fn pop_first_cuts_long_ranges() {
        let mut set: ByteRangeSet = [ByteRange::new(10, 30)].into_iter().collect();
        assert_eq!(set.pop_first(15), Some(ByteRange::new(10, 25)));
        assert_eq!(set.pop_first(15), Some(ByteRange::new(25, 30)));
        assert_eq!(set.pop_first(15), None);
    }
}
