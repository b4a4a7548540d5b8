//! Writes whose bytes are captured, until the device reports them done. Pure: time is passed in.
//!
//! Of two that overlap and are under way at once, and of one that was under way while its range was read, nobody knows what
//! the device holds in the end: they are doubtful, and to be read once they are done.

use std::collections::{BTreeMap, HashMap};

use crate::collect::pending::MonotonicNs;
use crate::model::ByteRange;

struct Write {
    range: ByteRange,
    since: MonotonicNs,
    seq: u64,
    /// The bytes so far, as long as some are missing.
    assembling: Option<Vec<u8>>,
    doubtful: bool,
    /// An idle device said so; its completion may still be in the ring.
    done: bool,
}

/// A write that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    pub range: ByteRange,
    /// What the device holds there now has to be read.
    pub doubtful: bool,
}

/// A write of which the last bytes came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    pub key: u64,
    pub range: ByteRange,
    pub since: MonotonicNs,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
pub struct UnderWay {
    writes: HashMap<u64, Write>,
    keys: HashMap<u64, u64>,
    /// Ends by start and key.
    ranges: BTreeMap<(u64, u64), u64>,
    /// No range in it is longer.
    longest: u64,
}

impl UnderWay {
    /// A write whose bytes are known, or, if not, come as pieces. Says whether it overlaps another one.
    pub fn begin(&mut self, key: u64, seq: u64, range: ByteRange, known: bool, now: MonotonicNs) -> bool {
        let overlaps = self.doubt(range);
        let assembling = (!known).then(|| Vec::with_capacity(usize::try_from(range.len()).unwrap_or(0)));
        if !known {
            self.keys.insert(seq, key);
        }
        self.ranges.insert((range.start, key), range.end);
        self.longest = self.longest.max(range.len());
        let write = Write { range, since: now, seq, assembling, doubtful: overlaps, done: false };
        self.writes.insert(key, write);
        overlaps
    }

    /// The next bytes of a write: all of it, once they are the last.
    pub fn piece(&mut self, seq: u64, range: ByteRange, bytes: &[u8]) -> Option<Whole> {
        let key = *self.keys.get(&seq)?;
        let write = self.writes.get_mut(&key)?;
        let so_far = write.assembling.as_mut()?;
        if range.start == write.range.start + so_far.len() as u64 && range.end <= write.range.end {
            so_far.extend_from_slice(bytes);
        }
        if so_far.len() as u64 != write.range.len() {
            return None;
        }
        self.keys.remove(&seq);
        let (range, since) = (write.range, write.since);
        write.assembling.take().map(|bytes| Whole { key, range, since, bytes })
    }

    /// All that is under way there becomes doubtful. Says whether anything is.
    pub fn doubt(&mut self, range: ByteRange) -> bool {
        let keys: Vec<u64> = self.overlapping(range).collect();
        for key in &keys {
            if let Some(write) = self.writes.get_mut(key) {
                write.doubtful = true;
            }
        }
        !keys.is_empty()
    }

    pub fn finish(&mut self, key: u64) -> Option<Done> {
        let write = self.writes.remove(&key)?;
        self.ranges.remove(&(write.range.start, key));
        self.keys.remove(&write.seq);
        if self.writes.is_empty() {
            self.longest = 0;
        }
        Some(Done { range: write.range, doubtful: write.doubtful || write.assembling.is_some() })
    }

    /// It is done, but its completion was not seen: it may have failed.
    pub fn lose(&mut self, key: u64) -> Option<ByteRange> {
        self.finish(key).map(|done| done.range)
    }

    /// The device had no write under way at some instant after `cutoff`: what began before it is done, and its completion
    /// was pushed into the ring before now, if it was seen at all.
    pub fn device_was_idle(&mut self, cutoff: MonotonicNs) {
        let before = self.writes.values_mut().filter(|write| write.since <= cutoff);
        before.for_each(|write| write.done = true);
    }

    /// All completions up to the last [`UnderWay::device_was_idle`] were taken: what is done and still here is lost.
    pub fn settle(&mut self) -> Vec<ByteRange> {
        let keys: Vec<u64> =
            self.writes.iter().filter(|(_, write)| write.done).map(|(key, _)| *key).collect();
        keys.into_iter().filter_map(|key| self.lose(key)).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Of none that is under way anything is in doubt, or missing.
    pub fn is_certain(&self) -> bool {
        self.writes.values().all(|write| !write.doubtful && write.assembling.is_none())
    }

    pub fn ranges(&self) -> impl Iterator<Item = ByteRange> {
        self.writes.values().map(|write| write.range)
    }

    fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = u64> {
        let from = range.start.saturating_sub(self.longest);
        self.ranges
            .range((from, 0)..(range.end, 0))
            .filter(move |(_, end)| **end > range.start)
            .map(|((_, key), _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::with_len(start, len)
    }

    #[test]
    fn a_write_alone_is_certain() {
        let mut under_way = UnderWay::default();
        assert!(!under_way.begin(1, 0, range(0, 4096), true, 0));
        assert!(!under_way.begin(2, 1, range(4096, 4096), true, 0));
        assert!(under_way.is_certain());
        assert_eq!(under_way.finish(1), Some(Done { range: range(0, 4096), doubtful: false }));
        assert_eq!(under_way.finish(1), None);
    }

    #[test]
    fn two_at_once_are_both_in_doubt() {
        let mut under_way = UnderWay::default();
        under_way.begin(1, 0, range(0, 8192), true, 0);
        assert!(under_way.begin(2, 1, range(4096, 8192), true, 0));
        assert!(under_way.finish(1).unwrap().doubtful && under_way.finish(2).unwrap().doubtful);
    }

    #[test]
    fn one_that_was_read_meanwhile_is_in_doubt() {
        let mut under_way = UnderWay::default();
        under_way.begin(1, 0, range(0, 4096), true, 0);
        under_way.doubt(range(4095, 1));
        assert!(!under_way.is_certain());
        assert!(under_way.finish(1).unwrap().doubtful);
    }

    #[test]
    fn pieces_make_a_whole_and_a_missing_one_a_doubt() {
        let mut under_way = UnderWay::default();
        under_way.begin(1, 7, range(0, 6), false, 5);
        assert!(!under_way.is_certain());
        assert_eq!(under_way.piece(7, range(0, 4), b"abcd"), None);
        assert_eq!(under_way.piece(8, range(4, 2), b"xx"), None, "another write's");
        assert_eq!(
            under_way.piece(7, range(4, 2), b"ef"),
            Some(Whole { key: 1, range: range(0, 6), since: 5, bytes: b"abcdef".to_vec() })
        );
        assert!(!under_way.finish(1).unwrap().doubtful);

        under_way.begin(1, 9, range(0, 6), false, 0);
        assert_eq!(under_way.piece(9, range(4, 2), b"ef"), None, "the one before it is missing");
        assert!(under_way.finish(1).unwrap().doubtful);
    }

    #[test]
    fn an_idle_device_ends_what_began_before() {
        let mut under_way = UnderWay::default();
        under_way.begin(1, 0, range(0, 4096), true, 10);
        under_way.begin(2, 1, range(8192, 4096), true, 20);
        under_way.device_was_idle(15);
        under_way.begin(3, 2, range(16384, 4096), true, 10);
        assert_eq!(under_way.settle(), [range(0, 4096)], "not one that was taken after the look");
        assert!(!under_way.is_empty());
    }

    proptest! {
        #[test]
        fn overlaps_are_those_that_a_look_at_all_finds(writes in prop::collection::vec((0u64..200, 1u64..60), 1..40)) {
            let mut under_way = UnderWay::default();
            let mut all: Vec<ByteRange> = Vec::new();
            for (key, (start, len)) in (1..).zip(writes) {
                let new = range(start, len);
                let overlaps = all.iter().any(|old| old.intersect(new).is_some());
                prop_assert_eq!(under_way.begin(key, key, new, true, 0), overlaps);
                all.push(new);
                if key % 3 == 0 {
                    under_way.finish(key);
                    all.pop();
                }
            }
        }
    }
}
