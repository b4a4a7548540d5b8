//! Reading the source: what changed, and the scan.

use std::time::{Duration, Instant};

use super::Collector;
use crate::collect::pending::MonotonicNs;
use crate::collect::readers::{Read, Wanted};
use crate::collect::scan::{Step, differing};
use crate::collect::slice::{is_zero, slice};
use crate::collect::{CollectError, Entry, Probes, Source};
use crate::io::clock::realtime;
use crate::model::{ByteRange, ByteRangeSet};

/// One turn of the loop reads no more than this before it looks at the ring again.
const SPANS_MAX: usize = 32;
const SPAN_BYTES_MAX: u64 = 256 << 10;
const SCAN_STEPS: usize = 4;
/// Changes rest this long (unless many) so that rewrites of the same block are read once.
const REST_NS: u64 = 20_000_000;
const REST_BYTES_MAX: u64 = 8 << 20;
const RETRY_UNREADABLE: Duration = Duration::from_secs(1);

impl<P: Probes, S: Source + Send + 'static> Collector<P, S> {
    /// One batch of reads: first what changed, then a piece of the scan.
    pub(super) fn copy(&mut self, now: MonotonicNs) -> Result<bool, CollectError> {
        if self.mark_holds_journal() || !self.outbox.is_empty() {
            return Ok(false);
        }
        if !self.unreadable.is_empty() && self.retry_unreadable.elapsed() >= RETRY_UNREADABLE {
            self.retry_unreadable = Instant::now();
            let ranges = std::mem::take(&mut self.unreadable);
            ranges.iter().for_each(|range| self.pending.put_back(range, now));
        }
        let rested = self.mark.is_some()
            || self.stopping.is_some()
            || self.pending.ready_bytes() >= REST_BYTES_MAX
            || self.pending.ready_age_ns(now) >= REST_NS;
        let mut spans =
            if rested { self.pending.take_spans(SPANS_MAX, SPAN_BYTES_MAX, now) } else { Vec::new() };
        // The scan will read these later, and journal all of them.
        spans.retain(|span| !self.scan.will_copy(span.range));
        // However much is written: the scan goes on.
        let begun = Instant::now();
        let steps_max = match self.options.scan_pace.wait(begun).is_zero() {
            false => 0,
            true if spans.len() < SPANS_MAX / 2 => SCAN_STEPS,
            true => 1,
        };
        let steps = self.scan.take_steps(steps_max);
        if spans.is_empty() && steps.is_empty() {
            return Ok(false);
        }
        let changed = spans.iter().map(|span| Wanted { range: span.range, compare: false });
        let scanned = steps
            .iter()
            .map(|step| Wanted { range: step.range(), compare: matches!(step, Step::Compare(_)) });
        let wanted: Vec<Wanted> = changed.chain(scanned).collect();
        let ranges = spans.iter().flat_map(|span| span.parts.iter().map(|(range, _)| *range));
        for range in ranges.chain(steps.iter().map(|step| step.range())) {
            self.under_way.doubt(range);
        }
        let mut read = self.readers.read(&wanted).into_iter();
        self.has_read();
        if !steps.is_empty() {
            let bytes = steps.iter().map(|step| step.range().len()).sum();
            self.options.scan_pace.did(bytes, begun, Instant::now(), self.source.is_busy());
        }
        for (span, read) in spans.iter().zip(read.by_ref()) {
            if let Some(read) = self.readable(span.range, read) {
                self.journal_parts(span.range.start, &read.bytes, span.parts.iter().copied());
            }
        }
        for (step, read) in steps.into_iter().zip(read) {
            let Some(read) = self.readable(step.range(), read) else { continue };
            let changed = match step {
                Step::Copy(range) => [range].into_iter().collect(),
                Step::Compare(range) => self.differing(range, &read),
            };
            self.journal_parts(step.range().start, &read.bytes, changed.iter().map(|range| (range, false)));
        }
        self.flush_outbox()?;
        Ok(true)
    }

    /// What of `range` differs from the replica: only what its hashes don't show to be the same is read there, and all of
    /// that differs if it can't be read.
    fn differing(&mut self, range: ByteRange, read: &Read) -> ByteRangeSet {
        let mut differs = ByteRangeSet::new();
        for suspect in read.suspects.iter() {
            let at = |byte: u64| usize::try_from(byte - range.start).expect("a suspect lies in its range");
            let new = &read.bytes[at(suspect.start)..at(suspect.end)];
            match self.replica.as_mut().map(|replica| replica.read(suspect)) {
                Some(Ok(old)) => differs.extend(&differing(suspect.start, new, old)),
                Some(Err(error)) => {
                    log::warn!(
                        "the replica can't be read, so what was to be compared with it is copied: {error}"
                    );
                    self.replica = None;
                    differs.insert(suspect);
                }
                None => differs.insert(suspect),
            }
        }
        differs
    }

    fn readable(&mut self, range: ByteRange, read: std::io::Result<Read>) -> Option<Read> {
        read.inspect_err(|error| {
            log::warn!("bytes {range} of the source can't be read, will try again: {error}");
            self.unreadable.insert(range);
            self.probes.owe(range);
        })
        .ok()
    }

    /// Journals `parts` of the bytes that were read from `start` on.
    pub(super) fn journal_parts(
        &mut self,
        start: u64,
        bytes: &[u8],
        parts: impl Iterator<Item = (ByteRange, bool)>,
    ) {
        let mut bodies = Vec::new();
        for (range, discarded) in parts {
            let at = |offset: u64| usize::try_from(offset - start).expect("a part lies in the bytes read");
            if self.ordered && discarded && is_zero(&bytes[at(range.start)..at(range.end)]) {
                // As it was journaled when it was submitted.
                continue;
            }
            bodies.extend(slice(range.start, &bytes[at(range.start)..at(range.end)], discarded));
            self.snapshot.journaled_bytes += range.len();
        }
        if !bodies.is_empty() {
            self.changed_since_mark = true;
            self.history_broken();
            self.outbox.push_back(Entry::Records { time: realtime(), bodies });
        }
    }
}
