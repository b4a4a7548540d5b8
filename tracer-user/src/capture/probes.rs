//! Attached probes: events, counters, the dirty bitmap, and the ledger beside them.

use std::os::fd::{AsFd, AsRawFd};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya::programs::ProgramFd;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracer_common::{counter, session};

use crate::capture::features::Rung;
use crate::capture::ledger::Ledger;
use crate::capture::mapped::MappedArray;
use crate::capture::pins::{Generation, InUse};
use crate::capture::positions::{Positions, RingPositions};
use crate::capture::session::Found;
use crate::capture::{CaptureError, Counters, Event, Skipped, VolumeExtent};
use crate::model::{ByteRangeSet, Granules, MarkId};

/// Attached probes of one volume. Dropping it detaches them, unless they are pinned: then they go on, and what they
/// see waits in ring and bitmap for whoever opens them next.
pub struct Capture {
    pub(super) volume: VolumeExtent,
    pub(super) rung: Rung,
    pub(super) granules: Granules,
    pub(super) payload: bool,
    pub(super) positions: RingPositions,
    pub(super) ring: RingBuf<MapData>,
    pub(super) ring_bytes: u32,
    pub(super) counters: MappedArray,
    pub(super) dirty: MappedArray,
    pub(super) ledger: Ledger,
    pub(super) session: MappedArray,
    pub(super) skips: Skips,
    pub(super) logger: Option<EbpfLogger<&'static dyn log::Log>>,
    pub(super) pins: Option<Generation>,
    pub(super) in_use: Option<InUse>,
    pub(super) _programs: Option<Ebpf>,
}

impl Capture {
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// What is written is copied.
    pub fn copies_payload(&self) -> bool {
        self.payload
    }

    /// How far the ring has been read, and how far it has been filled, in bytes since it was made. What was submitted
    /// before `filled` was read stands before it.
    pub fn positions(&self) -> Positions {
        self.positions.get()
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
        match &event {
            Some(Event::Submit { range, .. }) => self.ledger.owe(*range),
            Some(Event::Piece { .. } | Event::Complete { .. }) => {}
            None => self.ledger.scan_all(),
        }
        Some(event)
    }

    /// Nothing is in the ring, not even an event that a probe has begun to write: that one hides all behind it from
    /// [`Capture::next_event`], though their probes may have counted them as emitted.
    pub fn ring_is_empty(&self) -> bool {
        let mut ring = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut ring, PollTimeout::ZERO), Ok(0))
    }

    pub fn counters(&self) -> Counters {
        Counters::read(|index| self.counters.get(index))
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
        let failures = self.counters.get(counter::READ_FAILED) + recursion_misses(&self.skips.submit);
        if failures == self.session.get(session::FAILURES_HANDLED) {
            return false;
        }
        self.ledger.scan_all();
        self.session.set(session::FAILURES_HANDLED, failures);
        true
    }

    /// Of probes that were attached before there was a journal, if the disk was at rest then.
    pub fn found(&self) -> Option<Found> {
        Found::read(&self.session)
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
pub(super) fn recursion_misses(program: &ProgramFd) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
