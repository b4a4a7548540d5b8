//! The machine's clocks, in nanoseconds.

use nix::time::{ClockId, clock_gettime};

use crate::model::Timestamp;

/// Readings of two clocks within this time are good enough.
const TIGHT_NS: u64 = 5_000;
const READINGS_MAX: u32 = 20;

/// The time of day.
pub fn realtime() -> Timestamp {
    Timestamp(nanos(ClockId::CLOCK_REALTIME))
}

/// CLOCK_MONOTONIC, by which the probes stamp events.
pub fn monotonic_ns() -> u64 {
    nanos(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds from 1970 to the zero of CLOCK_MONOTONIC: what makes the time of an event a time of day. The clocks can't be
/// read at once, and whoever reads them may be stopped in between: of some readings the tightest counts. Errs to earlier.
pub fn monotonic_zero_ns() -> u64 {
    let reading = || {
        let (before, realtime, after) = (monotonic_ns(), realtime().0, monotonic_ns());
        (after.saturating_sub(before), realtime.saturating_sub(after))
    };
    let mut best = reading();
    for _ in 0..READINGS_MAX {
        if best.0 <= TIGHT_NS {
            break;
        }
        best = best.min(reading());
    }
    best.1
}

fn nanos(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}
