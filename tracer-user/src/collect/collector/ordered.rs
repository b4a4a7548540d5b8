//! Writes whose bytes the probes copied: journaled in the order of their submission, so that each is a point.
//!
//! What can't be journaled so breaks that history: a Gap record says it before any later write, and a mark begins it anew
//! as soon as all that is in doubt was read.

use std::time::{Duration, Instant};

use super::{BLOCK_BYTES, Collector};
use crate::capture::{Change, Payload};
use crate::collect::pending::MonotonicNs;
use crate::collect::slice::slice;
use crate::collect::under_way::{Done, Whole};
use crate::collect::{Entry, Probes, Source};
use crate::model::{ByteRange, PointClass, RecordBody, Timestamp};

/// After a break the history begins anew this often at most.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// A write up to this size is journaled as it is; in a larger one runs of zeros are looked for.
const AS_IT_IS_BYTES: usize = 16 << 10;

/// A submission as the ring told it.
pub(super) struct Submission {
    pub key: u64,
    pub first: bool,
    pub range: ByteRange,
    pub change: Change,
    pub seq: u64,
    pub payload: Payload,
    pub time_ns: MonotonicNs,
}

/// Where the history stands.
#[derive(Default)]
pub(super) struct History {
    /// What was journaled last can't be restored, before the next mark.
    broken: bool,
    renewed: Option<Instant>,
    /// How far the ring was filled when the device was last read: what such a read may show was submitted before.
    read_at: u64,
    /// Every write acknowledged before this time has been taken from the ring, none submitted after it.
    until: MonotonicNs,
}

impl<P: Probes, S: Source + Send + 'static> Collector<P, S> {
    pub(super) fn submitted(&mut self, submission: Submission, now: MonotonicNs) {
        let Submission { key, first, range, change, seq, payload, time_ns } = submission;
        let since = time_ns.min(now);
        if !self.ordered {
            self.pending.submit(key, first, range, change == Change::Discard, since);
            return;
        }
        self.history_reaches(time_ns);
        self.sample.overwritten(range);
        let time = self.time_of(time_ns);
        if first && key != 0 {
            // Its completion was not seen.
            if let Some(range) = self.under_way.lose(key) {
                self.sample.give_up();
                self.doubt(range, since, time);
            }
            self.pending.complete(key, None, true, since);
        }
        match (payload, change) {
            (Payload::Whole(bytes), _) => {
                self.begin_write(key, seq, range, true, time_ns);
                self.stage(Whole { key, range, since: time_ns, bytes }, now);
            }
            (Payload::Follows, _) => self.begin_write(key, seq, range, false, time_ns),
            (Payload::None, Change::Zeroes) => {
                self.begin_write(key, seq, range, true, time_ns);
                self.staged.push(time, RecordBody::Zero(range));
            }
            // Until it is written again, anything is as good. What it is, is seen once it is done.
            (Payload::None, Change::Discard) => {
                // A write under way may be done after it.
                if self.under_way.doubt(range) {
                    self.break_history(time, range);
                }
                self.staged.push(time, RecordBody::Discard(range));
                self.pending.submit(key, first, range, true, since);
            }
            (Payload::None, Change::Write) => {
                self.break_history(time, range);
                self.pending.submit(key, first, range, false, since);
            }
        }
    }

    fn begin_write(&mut self, key: u64, seq: u64, range: ByteRange, known: bool, time_ns: MonotonicNs) {
        if self.under_way.begin(key, seq, range, known, time_ns) {
            self.break_history(self.time_of(time_ns), range);
        }
        if known {
            self.pending.overwritten(range);
        }
    }

    pub(super) fn piece(&mut self, seq: u64, range: ByteRange, bytes: &[u8], now: MonotonicNs) {
        if let Some(whole) = self.under_way.piece(seq, range, bytes) {
            self.pending.overwritten(whole.range);
            self.stage(whole, now);
        }
    }

    fn stage(&mut self, whole: Whole, now: MonotonicNs) {
        let Whole { key, range, since, bytes } = whole;
        let time = self.time_of(since);
        self.sample.begin(key, range, &bytes, now);
        if bytes.len() <= AS_IT_IS_BYTES {
            self.staged.push(time, RecordBody::Data { start: range.start, bytes });
        } else {
            slice(range.start, &bytes, false).into_iter().for_each(|body| self.staged.push(time, body));
        }
        self.snapshot.journaled_bytes += range.len();
    }

    /// A completion; says whether it was that of a write with known bytes.
    pub(super) fn completed(
        &mut self,
        key: u64,
        range: Option<ByteRange>,
        whole: bool,
        failed: bool,
        now: MonotonicNs,
    ) -> bool {
        if failed && let Some(range) = range {
            self.under_way.doubt(range);
        }
        if !whole {
            return false;
        }
        let time = self.time_of(now);
        match self.under_way.finish(key) {
            None => false,
            Some(Done { range, doubtful }) => {
                if failed {
                    // It may still change.
                    self.pending.insert_unpaired(range);
                }
                if failed || doubtful {
                    self.doubt(range, now, time);
                } else {
                    self.sample.done(key);
                }
                true
            }
        }
    }

    /// Compares a write with what came of it; if that is something else, it is read and journaled like any doubt.
    pub(super) fn look_at_sample(&mut self, now: MonotonicNs) {
        if let Some(range) = self.sample.wanted() {
            let around = range.align_outward(BLOCK_BYTES, self.size_bytes);
            let from = usize::try_from(range.start - around.start).expect("less than a block");
            match self.source.read(around) {
                Ok(bytes) => {
                    let len = usize::try_from(range.len()).expect("it was in memory");
                    self.sample.read(&bytes[from..from + len], self.probes.positions().filled);
                }
                // Whoever has to read it will say so.
                Err(_) => self.sample.give_up(),
            }
        }
        if let Some(range) = self.sample.verdict(self.probes.positions().read) {
            self.snapshot.unstable_writes += 1;
            log::warn!(
                "memory was changed while it was written to bytes {range}: reading what the device holds"
            );
            self.doubt(range, now, self.time_of(now));
        }
    }

    /// What the device holds there is not known.
    pub(super) fn doubt(&mut self, range: ByteRange, now: MonotonicNs, time: Timestamp) {
        self.break_history(time, range);
        self.pending.put_back(range, now);
    }

    /// The completion of a copied write was not seen, if it is not in the ring up to where that was when the device was idle:
    /// it may have failed.
    pub(super) fn settle_copied(&mut self, now: MonotonicNs) {
        let time = self.time_of(now);
        self.under_way.settle().into_iter().for_each(|range| self.doubt(range, now, time));
    }

    fn break_history(&mut self, time: Timestamp, range: ByteRange) {
        self.history.broken = true;
        self.staged.gap(time, range);
    }

    /// Something was journaled that is no write in its order.
    pub(super) fn history_broken(&mut self) {
        self.history.broken = true;
    }

    /// Hands on what was staged, once it is known whether a write is missing before it: every write that was submitted after
    /// a missing one was completed has been taken from the ring after the missing one was counted.
    pub(super) fn flush_staged(&mut self) {
        let wanted = self.staged.is_due()
            || self.mark.is_some()
            || self.stopping.is_some()
            || !self.scan.is_done()
            || self.pending.ready_bytes() > 0;
        if self.staged.is_empty() || !wanted || self.mark_holds_journal() {
            return;
        }
        self.lost_track();
        if self.probes.counters().in_bitmap() != self.snapshot.counters.in_bitmap() {
            self.take_dirty();
        }
        self.journal_gaps();
        self.changed_since_mark = true;
        let portions = self.staged.take().into_iter();
        self.outbox.extend(portions.map(|records| Entry::Ordered { records }));
    }

    /// A write of this time was taken from the ring, or the ring was seen empty after it.
    pub(super) fn history_reaches(&mut self, time: MonotonicNs) {
        self.history.until = self.history.until.max(time);
    }

    pub(super) fn has_read(&mut self) {
        self.history.read_at = self.probes.positions().filled;
    }

    /// Whether all that was journaled, up to the last record, is what a power cut would have left, and when: nothing is in
    /// doubt, and every write that a read may have shown has been taken since, from the ring or from the bitmap.
    pub(super) fn exact(&self) -> Option<Timestamp> {
        let exact = self.ordered
            && self.scan.is_done()
            && self.pending.is_empty()
            && self.unreadable.is_empty()
            && self.gaps.is_empty()
            && self.staged.is_empty()
            && self.under_way.is_certain()
            && self.probes.positions().read >= self.history.read_at
            && self.probes.counters().in_bitmap() == self.snapshot.counters.in_bitmap();
        exact.then(|| self.time_of(self.history.until))
    }

    /// After a break a mark begins the history anew.
    pub(super) fn renew_history(&mut self) {
        let due = self.history.renewed.is_none_or(|at| at.elapsed() >= RENEW_EVERY);
        if !self.history.broken || !due || self.mark.is_some() || !self.restorable_made {
            return;
        }
        let Some(time) = self.exact() else { return };
        self.history.renewed = Some(Instant::now());
        self.turn_ledger();
        self.append_mark(String::new(), None, PointClass::Crash, time, None);
    }

    pub(super) fn history_begins(&mut self) {
        self.history.broken = false;
    }

    /// Whether each write is a point now.
    pub(super) fn every_write_is_a_point(&self) -> bool {
        self.ordered && self.restorable_made && !self.history.broken
    }
}
