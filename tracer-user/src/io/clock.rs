//! The machine's clocks, in nanoseconds.

use nix::time::{ClockId, clock_gettime};

use crate::model::Timestamp;

/// The time of day.
pub fn realtime() -> Timestamp {
    Timestamp(nanos(ClockId::CLOCK_REALTIME))
}

/// CLOCK_MONOTONIC, by which the probes stamp events.
pub fn monotonic_ns() -> u64 {
    nanos(ClockId::CLOCK_MONOTONIC)
}

fn nanos(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}
