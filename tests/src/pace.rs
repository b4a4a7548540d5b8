//! How fast the writers of a proof write: in bursts and with pauses, in which nothing is under way.

use std::thread;
use std::time::{Duration, Instant};

use crate::Random;

/// Of each period, the last part is a pause of all writers: long enough that a mark can be made on a bare device.
const PERIOD_MS: u64 = 300;
const WRITING_MS: u64 = 200;
/// Between two writes of a writer, unless it is in a burst. Limits the journal, which is replayed many times.
const BETWEEN_US_MAX: u64 = 4000;

/// Shared by all writers of a load.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    start: Instant,
    load: Duration,
}

impl Pace {
    pub fn start(load: Duration) -> Pace {
        Pace { start: Instant::now(), load }
    }

    /// Waits until the next write is due; says whether there is one.
    pub fn next(&self, random: &mut Random) -> bool {
        if random.below(3) > 0 {
            thread::sleep(Duration::from_micros(random.below(BETWEEN_US_MAX)));
        }
        let age_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let within_ms = age_ms % PERIOD_MS;
        if within_ms >= WRITING_MS {
            thread::sleep(Duration::from_millis(PERIOD_MS - within_ms));
        }
        self.start.elapsed() < self.load
    }
}
