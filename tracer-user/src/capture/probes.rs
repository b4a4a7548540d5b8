//! Attached probes: events, counters, the dirty bitmap, and the ledger beside them.

use std::os::fd::{AsFd, AsRawFd};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya::programs::ProgramFd;
use aya_log::EbpfLogger;
use tracer_common::{counter, session};

use crate::capture::bitmap::Granules;
use crate::capture::features::Rung;
use crate::capture::ledger::Ledger;
use crate::capture::mapped::MappedArray;
use crate::capture::pins::Generation;
use crate::capture::{CaptureError, Counters, Event, Skipped, VolumeExtent};
use crate::model::{ByteRangeSet, MarkId};

/// Attached probes of one volume. Dropping it detaches them, unless they are pinned: then they go on, and what they
/// see waits in ring and bitmap for whoever opens them next.
pub struct Capture {
    pub(super) volume: VolumeExtent,
    pub(super) rung: Rung,
    pub(super) granules: Granules,
    pub(super) ring: RingBuf<MapData>,
    pub(super) ring_bytes: u32,
    pub(super) counters: MappedArray,
    pub(super) dirty: MappedArray,
    pub(super) ledger: Ledger,
    pub(super) session: MappedArray,
    pub(super) skips: Skips,
    pub(super) logger: Option<EbpfLogger<&'static dyn log::Log>>,
    pub(super) pins: Option<Generation>,
    pub(super) _programs: Option<Ebpf>,
}

impl Capture {
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// What one bit of the dirty bitmap stands for.
    pub fn granule_bytes(&self) -> u64 {
        self.granules.granule_bytes
    }

    /// The probes outlive this process.
    pub fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// The next event of the ring; its range is in the ledger before the ring forgets it. `Some(None)` is one that no
    /// probe of this version writes.
    pub fn next_event(&mut self) -> Option<Option<Event>> {
        let item = self.ring.next()?;
        let event = Event::parse(&item, &self.volume);
        match event {
            Some(Event::Submit { range, .. }) => self.ledger.owe(range),
            Some(Event::Complete { .. }) => {}
            None => self.ledger.scan_all(),
        }
        Some(event)
    }

    pub fn counters(&self) -> Counters {
        // Emitted and marked are read before seen: if the sum is right, all that were seen by then had been reported.
        let emitted = self.counters.get(counter::EMITTED);
        let marked = self.counters.get(counter::MARKED);
        Counters {
            emitted,
            marked,
            seen: self.counters.get(counter::SEEN),
            completions_seen: self.counters.get(counter::COMPLETE_SEEN),
            completions_lost: self.counters.get(counter::COMPLETE_LOST),
            read_failed: self.counters.get(counter::READ_FAILED),
        }
    }

    /// How often the kernel did not run a probe because one was running on that processor already.
    pub fn skipped(&self) -> Skipped {
        Skipped {
            submissions: recursion_misses(&self.skips.submit),
            completions: recursion_misses(&self.skips.complete),
        }
    }

    /// Takes all set granules out of the dirty bitmap, as ranges of the volume; they are in the ledger before.
    pub fn take_dirty(&mut self) -> ByteRangeSet {
        self.granules.take(self.dirty.words(), |range| self.ledger.owe(range))
    }

    /// Whether a probe failed to report a write since this was last asked: then it may be anywhere, and the ledger calls
    /// for a look at the whole volume.
    pub fn lost_track(&mut self) -> bool {
        let failures = self.counters.get(counter::READ_FAILED) + self.skipped().submissions;
        if failures == self.session.get(session::FAILURES_HANDLED) {
            return false;
        }
        self.ledger.scan_all();
        self.session.set(session::FAILURES_HANDLED, failures);
        true
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The mark of the ledger's last turn is durable. Its number comes first: a journal that does not have that mark is
    /// not the one this ledger speaks of.
    pub fn settle(&mut self, mark: MarkId) {
        self.session.set(session::SETTLED_MARK, mark.0);
        self.ledger.settle();
    }

    /// Hands the probes' diagnostics to `log`.
    pub fn flush_diagnostics(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Nothing of it stays behind.
    pub fn detach(self) -> Result<(), CaptureError> {
        self.pins.as_ref().map_or(Ok(()), |pins| {
            pins.remove().map_err(|source| CaptureError::Pin { path: pins.path(""), source })
        })
    }
}

/// The two programs, to ask how often they were skipped.
pub struct Skips {
    pub(super) submit: ProgramFd,
    pub(super) complete: ProgramFd,
}

/// aya has no accessor for it; the kernel tells since 5.12. Before, probes are skipped unnoticed.
fn recursion_misses(program: &ProgramFd) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
