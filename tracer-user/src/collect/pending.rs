//! Which ranges of the volume changed and are not in the journal yet. Pure: time is passed in.
//!
//! A range goes from *in flight* (submitted) to *ready* (done, may be read) to the journal. What can't be paired with
//! a completion waits until the device was seen idle after it. Memory is bounded: past the bounds, ranges merge.

use std::collections::HashMap;

use crate::model::{ByteRange, ByteRangeSet};

/// Nanoseconds of CLOCK_MONOTONIC, as the probes stamp events.
pub type MonotonicNs = u64;

const RANGES_MAX: usize = 128 << 10;
const IN_FLIGHT_MAX: usize = 64 << 10;
const MERGE_GRANULE_MIN: u64 = 64 << 10;
/// Unchanged bytes between two ranges that are rather read than skipped: a second read costs more.
const READ_THROUGH_BYTES: u64 = 32 << 10;

#[derive(Debug, Default)]
struct InFlight {
    ranges: Vec<ByteRange>,
    since: MonotonicNs,
    /// An idle device said it is done. Kept all the same, where a completion does not name its range: a suspended dm device
    /// holds bios that nobody counts as under way, and only their completion then tells the truth.
    settled: bool,
}

/// Bytes to be read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub range: ByteRange,
    /// The changed ranges in it, in order, and whether all of each was last discarded.
    pub parts: Vec<(ByteRange, bool)>,
}

#[derive(Debug)]
pub struct Pending {
    size_bytes: u64,
    /// Ranges are widened to multiples of this, for O_DIRECT and to merge neighbours.
    block_bytes: u64,
    completions_name_ranges: bool,
    in_flight: HashMap<u64, InFlight>,
    /// Submitted without a key or through the dirty bitmap, since the last look at the device.
    unpaired: ByteRangeSet,
    /// The same from before `waiting_since`: done once the device was idle later than that.
    waiting: ByteRangeSet,
    waiting_since: MonotonicNs,
    ready: ByteRangeSet,
    ready_since: Option<MonotonicNs>,
    /// Where the last span ended.
    position: u64,
    /// When the current way round the volume began.
    round_since: MonotonicNs,
    discarded: ByteRangeSet,
}

impl Pending {
    pub fn new(size_bytes: u64, block_bytes: u64, completions_name_ranges: bool) -> Pending {
        Pending {
            size_bytes,
            block_bytes,
            completions_name_ranges,
            in_flight: HashMap::new(),
            unpaired: ByteRangeSet::new(),
            waiting: ByteRangeSet::new(),
            waiting_since: 0,
            ready: ByteRangeSet::new(),
            ready_since: None,
            position: 0,
            round_since: 0,
            discarded: ByteRangeSet::new(),
        }
    }

    /// A write was handed to the device. `first`: anything older under the same key is done, since the kernel reuses a
    /// request or bio only after its completion.
    pub fn submit(&mut self, key: u64, first: bool, range: ByteRange, discard: bool, now: MonotonicNs) {
        if discard {
            self.discarded.insert(range);
            if self.discarded.range_count() > RANGES_MAX {
                // Only whether a target may give the space back is forgotten.
                self.discarded = ByteRangeSet::new();
            }
        } else {
            self.discarded.remove(range);
        }
        if key == 0 {
            self.unpaired.insert(self.widen(range));
            bound(&mut self.unpaired, self.size_bytes);
            return;
        }
        if first && let Some(older) = self.in_flight.remove(&key) {
            self.ready_all(older.ranges, now);
        }
        let entry = self.in_flight.entry(key).or_default();
        entry.ranges.push(range);
        (entry.since, entry.settled) = (now, false);
        if self.in_flight.len() > IN_FLIGHT_MAX {
            self.unpair_in_flight();
        }
    }

    /// The device says that a range, or all under the key, is done. A hint: without its submission the range counts
    /// as ready nevertheless.
    pub fn complete(&mut self, key: u64, range: Option<ByteRange>, whole: bool, now: MonotonicNs) {
        let done = self.finished(key, range, whole);
        self.ready_all(done, now);
    }

    /// The device says that it could not write it. What it holds there now may be the old, the new, or a part of both,
    /// and may still change (a write that timed out can land later): it is read now, and again once the device was idle.
    pub fn fail(&mut self, key: u64, range: Option<ByteRange>, whole: bool, now: MonotonicNs) {
        let done = self.finished(key, range, whole);
        for range in &done {
            self.insert_unpaired(*range);
        }
        self.ready_all(done, now);
    }

    /// Takes out of what is in flight what a completion stands for.
    fn finished(&mut self, key: u64, range: Option<ByteRange>, whole: bool) -> Vec<ByteRange> {
        if key != 0
            && whole
            && let Some(done) = self.in_flight.remove(&key)
        {
            return done.ranges;
        }
        let Some(range) = range else { return Vec::new() };
        if let Some(partly) = self.in_flight.get_mut(&key) {
            let mut left: ByteRangeSet = partly.ranges.iter().copied().collect();
            left.remove(range);
            partly.ranges = left.iter().collect();
            if partly.ranges.is_empty() {
                self.in_flight.remove(&key);
            }
        }
        // Without a key it may be the completion of one of several writes to the range: the others stay unpaired.
        vec![range]
    }

    /// What is there now is known: it need not be read.
    pub fn overwritten(&mut self, range: ByteRange) {
        self.ready.remove(range);
        self.discarded.remove(range);
    }

    /// Written at some time before now, nothing known of its completion.
    pub fn insert_unpaired(&mut self, range: ByteRange) {
        self.discarded.remove(range);
        self.unpaired.insert(self.widen(range));
        bound(&mut self.unpaired, self.size_bytes);
    }

    /// The device had no write under way at some instant after `cutoff`: what was submitted before it is done.
    pub fn settle(&mut self, cutoff: MonotonicNs, now: MonotonicNs) {
        let mut done = Vec::new();
        for entry in self.in_flight.values_mut().filter(|entry| !entry.settled && entry.since <= cutoff) {
            entry.settled = true;
            done.extend_from_slice(&entry.ranges);
        }
        if self.completions_name_ranges {
            self.in_flight.retain(|_, entry| !entry.settled);
        }
        self.ready_all(done, now);
        if self.waiting_since <= cutoff {
            let waiting = std::mem::take(&mut self.waiting);
            self.ready_all(waiting.iter(), now);
            self.waiting = std::mem::take(&mut self.unpaired);
            self.waiting_since = now;
        }
    }

    /// Whether a look at the device could settle something.
    pub fn awaits_device(&self) -> bool {
        self.in_flight.values().any(|entry| !entry.settled)
            || !self.unpaired.is_empty()
            || !self.waiting.is_empty()
    }

    /// What to read next: spans of at most `span_bytes_max`, each with the ready ranges in it. Neighbours that are
    /// close come in one span. Goes round the volume, so that no region waits for a busier one.
    pub fn take_spans(&mut self, spans_max: usize, span_bytes_max: u64, now: MonotonicNs) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        while let Some(range) = self.ready.pop_from(self.position, span_bytes_max) {
            let part = (range, self.discarded.contains_all(range));
            let full = spans.len() == spans_max;
            if range.start < self.position {
                // What was ready before the round that ends here has been taken in it.
                self.ready_since = self.ready_since.map(|since| since.max(self.round_since));
                self.round_since = now;
                self.position = 0;
            }
            match spans.last_mut() {
                Some(span)
                    if range.start >= span.range.end
                        && range.start - span.range.end <= READ_THROUGH_BYTES
                        && range.end - span.range.start <= span_bytes_max =>
                {
                    span.range.end = range.end;
                    span.parts.push(part);
                }
                _ if full => {
                    self.ready.insert(range);
                    break;
                }
                _ => spans.push(Span { range, parts: vec![part] }),
            }
            self.position = range.end;
        }
        if self.ready.is_empty() {
            self.ready_since = None;
        }
        spans
    }

    pub fn put_back(&mut self, range: ByteRange, now: MonotonicNs) {
        self.ready_all([range], now);
    }

    /// Nothing is known to have changed that is not in the journal.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && !self.awaits_device()
    }

    pub fn ready_bytes(&self) -> u64 {
        self.ready.bytes()
    }

    /// Bytes known to have changed that are not in the journal, ready to be read or not.
    pub fn bytes(&self) -> u64 {
        let in_flight = self.in_flight.values().filter(|entry| !entry.settled);
        let in_flight: u64 = in_flight.flat_map(|entry| &entry.ranges).map(|range| range.len()).sum();
        self.ready.bytes() + self.unpaired.bytes() + self.waiting.bytes() + in_flight
    }

    /// How long the oldest ready range has waited, at most.
    pub fn ready_age_ns(&self, now: MonotonicNs) -> u64 {
        self.ready_since.map_or(0, |since| now.saturating_sub(since))
    }

    fn ready_all(&mut self, ranges: impl IntoIterator<Item = ByteRange>, now: MonotonicNs) {
        for range in ranges {
            self.ready.insert(self.widen(range));
            self.ready_since.get_or_insert(now);
        }
        bound(&mut self.ready, self.size_bytes);
    }

    fn unpair_in_flight(&mut self) {
        for (_, entry) in std::mem::take(&mut self.in_flight) {
            entry.ranges.into_iter().for_each(|range| self.unpaired.insert(self.widen(range)));
        }
        bound(&mut self.unpaired, self.size_bytes);
    }

    fn widen(&self, range: ByteRange) -> ByteRange {
        range.align_outward(self.block_bytes, self.size_bytes)
    }
}

fn bound(set: &mut ByteRangeSet, size_bytes: u64) {
    merge_to(set, RANGES_MAX, size_bytes);
}

/// Merges neighbours over ever larger holes until there are few. To name too much is harmless, to forget is not.
pub fn merge_to(set: &mut ByteRangeSet, ranges_max: usize, size_bytes: u64) {
    let mut granule = MERGE_GRANULE_MIN;
    while set.range_count() > ranges_max {
        *set = set.iter().map(|range| range.align_outward(granule, size_bytes)).collect();
        granule *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 1 << 20;

    fn block(index: u64) -> ByteRange {
        ByteRange::with_len(index * 4096, 4096)
    }

    fn all_ready(pending: &mut Pending) -> Vec<ByteRange> {
        parts(pending).into_iter().map(|(range, _)| range).collect()
    }

    fn parts(pending: &mut Pending) -> Vec<(ByteRange, bool)> {
        pending.take_spans(usize::MAX, SIZE, 0).into_iter().flat_map(|span| span.parts).collect()
    }

    #[test]
    fn close_ranges_are_read_together_and_far_ones_are_not() {
        let mut pending = Pending::new(SIZE, 4096, false);
        for index in [0, 2, 100, 101] {
            pending.put_back(block(index), 0);
        }
        let spans = pending.take_spans(2, SIZE, 0);
        assert_eq!(spans[0].range, ByteRange::new(0, 3 * 4096));
        assert_eq!(spans[0].parts, [(block(0), false), (block(2), false)]);
        assert_eq!(spans[1].range, ByteRange::with_len(100 * 4096, 2 * 4096));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_busy_region_does_not_starve_the_others() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.put_back(block(0), 0);
        pending.put_back(block(200), 0);
        assert_eq!(pending.take_spans(1, SIZE, 0)[0].range, block(0));
        pending.put_back(block(0), 0);
        assert_eq!(pending.take_spans(1, SIZE, 0)[0].range, block(200));
    }

    #[test]
    fn a_range_is_ready_only_after_its_completion() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(1, true, block(3), false, 10);
        assert_eq!(parts(&mut pending), []);
        assert!(!pending.is_empty());
        pending.complete(1, Some(block(3)), true, 11);
        assert_eq!(parts(&mut pending), [(block(3), false)]);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_partial_completion_leaves_the_rest_in_flight() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(1, true, ByteRange::new(0, 8192), false, 0);
        pending.complete(1, Some(block(0)), false, 1);
        assert_eq!(all_ready(&mut pending), [block(0)]);
        assert!(pending.awaits_device());
        pending.complete(1, Some(block(1)), true, 2);
        assert_eq!(all_ready(&mut pending), [block(1)]);
    }

    #[test]
    fn a_reused_key_says_that_the_older_write_is_done() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(1, true, block(0), false, 0);
        pending.submit(1, true, block(5), false, 1);
        assert_eq!(all_ready(&mut pending), [block(0)]);
    }

    #[test]
    fn all_ranges_of_a_merged_discard_complete_together() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(1, true, block(0), true, 0);
        pending.submit(1, false, block(9), true, 0);
        pending.complete(1, None, true, 1);
        assert_eq!(parts(&mut pending), [(block(0), true), (block(9), true)]);
    }

    #[test]
    fn a_lost_completion_is_settled_by_an_idle_device() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(1, true, block(0), false, 100);
        pending.submit(2, true, block(2), false, 200);
        pending.settle(150, 210);
        assert_eq!(all_ready(&mut pending), [block(0)]);
        assert!(pending.awaits_device());
        pending.settle(250, 300);
        assert_eq!(all_ready(&mut pending), [block(2)]);
    }

    #[test]
    fn a_completion_after_the_device_seemed_idle_still_counts() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(1, true, block(4), false, 0);
        pending.settle(100, 100);
        assert_eq!(all_ready(&mut pending), [block(4)]);
        assert!(pending.is_empty());
        // A dm device was suspended meanwhile; a bio's completion names no range.
        pending.complete(1, None, true, 200);
        assert_eq!(all_ready(&mut pending), [block(4)]);
    }

    #[test]
    fn where_completions_name_ranges_a_lost_one_is_waited_for_once() {
        let mut pending = Pending::new(SIZE, 4096, true);
        pending.submit(1, true, block(4), false, 0);
        pending.settle(100, 100);
        assert_eq!(all_ready(&mut pending), [block(4)]);
        pending.submit(1, true, block(9), false, 200);
        assert_eq!(all_ready(&mut pending), [], "the key is another write's now");
        pending.complete(7, Some(block(4)), true, 300);
        assert_eq!(all_ready(&mut pending), [block(4)], "not lost, but late");
    }

    #[test]
    fn a_keyless_completion_may_be_another_write_s() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(0, true, block(4), false, 0);
        pending.submit(0, true, block(4), false, 0);
        pending.complete(0, Some(block(4)), false, 1);
        assert_eq!(all_ready(&mut pending), [block(4)]);
        assert!(pending.awaits_device(), "the other one is not done");
    }

    #[test]
    fn unpaired_ranges_wait_a_whole_period() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.insert_unpaired(block(7));
        pending.settle(100, 150);
        assert_eq!(all_ready(&mut pending), []);
        pending.settle(149, 199);
        assert_eq!(all_ready(&mut pending), [], "the idle instant has to be later than the range");
        pending.settle(150, 200);
        assert_eq!(all_ready(&mut pending), [block(7)]);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_failed_write_is_read_now_and_again_once_the_device_was_idle() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(1, true, block(3), false, 0);
        pending.submit(2, true, block(6), true, 0);
        pending.fail(1, Some(block(3)), true, 10);
        pending.fail(2, None, true, 10);
        assert_eq!(parts(&mut pending), [(block(3), false), (block(6), false)], "a failed discard is none");
        assert!(pending.awaits_device());
        pending.settle(20, 70);
        pending.settle(80, 130);
        assert_eq!(all_ready(&mut pending), [block(3), block(6)]);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_completion_without_its_submission_counts() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.complete(77, Some(block(1)), true, 0);
        assert_eq!(all_ready(&mut pending), [block(1)]);
    }

    #[test]
    fn a_write_after_a_discard_is_no_discard() {
        let mut pending = Pending::new(SIZE, 4096, false);
        pending.submit(1, true, block(0), true, 0);
        pending.complete(1, None, true, 0);
        pending.submit(2, true, block(0), false, 0);
        pending.complete(2, None, true, 0);
        assert_eq!(parts(&mut pending), [(block(0), false)]);
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_forgotten() {
        let size = 1 << 40;
        let mut pending = Pending::new(size, 4096, false);
        let written: Vec<_> = (0..400_000u64).map(|i| block(i * 64)).collect();
        for range in &written {
            pending.submit(0, true, *range, false, 0);
        }
        assert!(pending.unpaired.range_count() <= RANGES_MAX);
        pending.settle(0, 1);
        pending.settle(1, 2);
        for range in &written {
            assert!(pending.ready.contains_all(*range));
        }
    }

    proptest! {
        /// Whatever the probes say, in whatever order: a written block is in some set until it was taken.
        #[test]
        fn no_submission_is_forgotten(ops in prop::collection::vec((0u8..7, 0u64..8, 0u64..64), 1..200)) {
            let mut pending = Pending::new(SIZE, 4096, false);
            let mut owed: Vec<ByteRange> = Vec::new();
            for (now, (op, key, at)) in (1u64..).zip(ops) {
                match op {
                    0 | 1 => { pending.submit(key, op == 0, block(at), false, now); owed.push(block(at)); }
                    2 => pending.complete(key, Some(block(at)), at % 2 == 0, now),
                    3 => { pending.insert_unpaired(block(at)); owed.push(block(at)); }
                    4 => pending.settle(now.saturating_sub(at), now),
                    5 => pending.fail(key, Some(block(at)), at % 2 == 0, now),
                    _ => for span in pending.take_spans(2, SIZE, 0) {
                        for (range, _) in span.parts {
                            owed.retain(|o| o.intersect(range).is_none());
                        }
                    },
                }
            }
            pending.settle(1000, 1000);
            pending.settle(1000, 1000);
            let got: ByteRangeSet = all_ready(&mut pending).into_iter().collect();
            for range in owed {
                prop_assert!(got.contains_all(range), "{range} was forgotten");
            }
        }
    }
}
