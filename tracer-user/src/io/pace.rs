//! How fast work of ours may go that nobody waits for: within a limit, and with pauses while others want the source. Pure: the
//! clock is the caller's.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Pace {
    /// Bytes a second.
    limit: Option<NonZeroU64>,
    /// After work that met others, a pause so many times as long as the work took. What slows the others makes the work slow, too,
    /// so the pause fits any disk; and as it has an end, the work goes on however busy the source is.
    yields: u32,
    ready: Instant,
}

impl Pace {
    /// `yields`: 0 for no pauses but those of the limit.
    pub fn new(limit: Option<NonZeroU64>, yields: u32, now: Instant) -> Pace {
        Pace { limit, yields, ready: now }
    }

    /// How long nothing more is to be done.
    pub fn wait(&self, now: Instant) -> Duration {
        self.ready.saturating_duration_since(now)
    }

    /// `bytes` were done from `begun` to `now`. `met_others`: the source had work of others then.
    pub fn did(&mut self, bytes: u64, begun: Instant, now: Instant, met_others: bool) {
        if let Some(limit) = self.limit {
            // What was done too early is owed; what was not done in time is not made up for.
            self.ready = self.ready.max(begun) + time_of(bytes, limit);
        }
        if met_others {
            self.ready = self.ready.max(now + now.saturating_duration_since(begun) * self.yields);
        }
    }
}

fn time_of(bytes: u64, limit: NonZeroU64) -> Duration {
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(limit.get());
    // Of a year nobody sees the end; more may be no time of the clock.
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)).min(Duration::from_secs(365 * 86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Works from one pause to the next, `work` for each `step` bytes, until so much time has passed; the bytes done.
    fn done_in(pace: &mut Pace, begun: Instant, seconds: u64, step: u64, work: Duration, busy: bool) -> u64 {
        let (mut now, mut done) = (begun, 0);
        while now.duration_since(begun) < Duration::from_secs(seconds) {
            let started = now + pace.wait(now);
            now = started + work;
            pace.did(step, started, now, busy);
            done += step;
        }
        done
    }

    #[test]
    fn a_limit_is_kept_however_fast_the_work_is_and_whatever_its_steps() {
        for (step, work_ms) in [(4096, 0), (MIB, 1), (4 * MIB, 30), (32 * MIB, 500)] {
            let begun = Instant::now();
            let mut pace = Pace::new(NonZeroU64::new(10 * MIB), 4, begun);
            let done = done_in(&mut pace, begun, 100, step, Duration::from_millis(work_ms), false);
            assert!((990 * MIB..=1000 * MIB + 2 * step).contains(&done), "{step}: {done}");
        }
    }

    #[test]
    fn what_was_not_done_in_time_is_not_made_up_for() {
        let begun = Instant::now();
        let mut pace = Pace::new(NonZeroU64::new(MIB), 0, begun);
        let later = begun + Duration::from_secs(1000);
        pace.did(MIB, later, later, false);
        assert_eq!(pace.wait(later), Duration::from_secs(1));
    }

    #[test]
    fn it_yields_to_others_and_never_stands_still() {
        for yields in [1, 4] {
            let begun = Instant::now();
            let mut pace = Pace::new(None, yields, begun);
            let work = Duration::from_millis(10);
            let done = done_in(&mut pace, begun, 100, MIB, work, true) / MIB;
            let at_its_share = 100 * 100 / (u64::from(yields) + 1);
            assert!((at_its_share..=at_its_share + 1).contains(&done), "{yields}: {done}");
            let alone = begun + Duration::from_secs(1000);
            assert_eq!(done_in(&mut pace, alone, 100, MIB, work, false) / MIB, 10_000);
        }
    }

    #[test]
    fn any_numbers_do() {
        let now = Instant::now();
        let mut pace = Pace::new(NonZeroU64::new(1), u32::MAX, now);
        pace.did(u64::MAX, now, now, true);
        assert!(pace.wait(now) > Duration::from_secs(86_400));
    }
}
