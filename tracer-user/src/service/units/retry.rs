//! When what ended by itself is started again: less and less often, until it ran for a while.

use std::time::{Duration, Instant};

const AGAIN_FIRST: Duration = Duration::from_secs(1);
pub const AGAIN_MAX: Duration = Duration::from_secs(60);
/// What ran so long did not fail at its start.
pub const STEADY: Duration = Duration::from_secs(60);

pub struct Retry {
    at: Option<Instant>,
    pause: Duration,
}

impl Default for Retry {
    /// At once.
    fn default() -> Retry {
        Retry { at: None, pause: AGAIN_FIRST }
    }
}

impl Retry {
    pub fn is_due(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| at <= now)
    }

    /// It ran since then, if it could be started at all.
    pub fn failed(&mut self, since: Option<Instant>, now: Instant) {
        if since.is_some_and(|since| now - since >= STEADY) {
            self.pause = AGAIN_FIRST;
        }
        self.at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(AGAIN_MAX);
    }

    /// How long until it is; `None`: it has not failed.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(now))
    }
}
