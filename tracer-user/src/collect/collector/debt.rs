//! When the ledger may forget: marks and pieces of the scan that became durable.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Collector;
use crate::collect::scan::Scan;
use crate::collect::{Entry, Probes, Source};
use crate::model::{ByteRangeSet, MarkId, PointClass};

/// While the volume is scanned, what was found is made durable this often, so that a restart goes on from there.
const BARRIER_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Debt {
    /// The ledger was turned, and no mark of that instant appended yet.
    turned: bool,
    /// The mark of the last turn.
    mark: Option<MarkId>,
    barriers: u64,
    /// The barrier that was asked for, and what was left of the scan then.
    barrier: Option<(u64, ByteRangeSet)>,
    /// Bytes left of the scan at the last barrier.
    left_bytes: Option<u64>,
    next_barrier: Option<Instant>,
}

impl Debt {
    pub(super) fn new(scan: &Scan) -> Debt {
        Debt { left_bytes: Some(scan.left_bytes()), ..Debt::default() }
    }

    /// What an outstanding barrier would say is no longer so.
    pub(super) fn scan_restarted(&mut self) {
        self.barrier = None;
        self.left_bytes = None;
    }
}

impl<P: Probes, S: Source + Send + 'static> Collector<P, S> {
    /// Journal and device say the same at this instant. A mark of it is to follow, or not.
    pub(super) fn turn_ledger(&mut self) {
        self.probes.turn();
        // Of these the journal has what was submitted; what they leave on the device is not known yet.
        for range in self.under_way.ranges() {
            self.probes.owe(range);
        }
        self.debt.turned = true;
        self.debt.mark = None;
    }

    /// A mark is on its way to the journal.
    pub(super) fn mark_appended(&mut self, mark: MarkId, class: PointClass) {
        if self.debt.turned && class.restorable() {
            self.debt.turned = false;
            self.debt.mark = Some(mark);
        }
    }

    pub(super) fn pay_debt(&mut self) {
        let durable = self.acknowledged.mark.load(Ordering::Acquire);
        if let Some(mark) = self.debt.mark.take_if(|mark| mark.0 <= durable) {
            self.probes.settle(mark);
        }
        let reached = self.acknowledged.barrier.load(Ordering::Acquire);
        if let Some((_, left)) = self.debt.barrier.take_if(|(number, _)| *number <= reached) {
            self.probes.keep_unscanned(&left);
        }
        self.ask_for_barrier();
    }

    fn ask_for_barrier(&mut self) {
        let left = self.scan.left_bytes();
        let now = Instant::now();
        let due = self.scan.is_done() || self.debt.next_barrier.is_none_or(|at| now >= at);
        if !due
            || self.debt.barrier.is_some()
            || self.debt.left_bytes == Some(left)
            || self.mark_holds_journal()
        {
            return;
        }
        self.debt.barriers += 1;
        self.debt.left_bytes = Some(left);
        self.debt.next_barrier = Some(now + BARRIER_EVERY);
        self.debt.barrier = Some((self.debt.barriers, self.scan.left()));
        self.outbox.push_back(Entry::Barrier(self.debt.barriers));
    }
}
