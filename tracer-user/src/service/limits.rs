use std::num::NonZeroU64;
use std::time::Instant;

use crate::io::Pace;

/// What our own work may take of the machine, so that it is not in the way of the source's load.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes a second that the first copy, or the comparison after a restart, reads of the source.
    pub baseline: Option<NonZeroU64>,
    /// Bytes a second that are applied to each target.
    pub apply: Option<NonZeroU64>,
    /// Pause while others read or write the source.
    pub yields: bool,
}

/// With others at work the scan takes a fifth of the time, so that it comes to its end whatever they do.
const SCAN_YIELDS: u32 = 4;
/// The targets half of it: their lag is not to grow for long, and their disks are most often others.
const APPLY_YIELDS: u32 = 1;

impl Limits {
    pub fn of_scan(&self) -> Pace {
        self.pace(self.baseline, SCAN_YIELDS)
    }

    pub fn of_target(&self) -> Pace {
        self.pace(self.apply, APPLY_YIELDS)
    }

    fn pace(&self, limit: Option<NonZeroU64>, yields: u32) -> Pace {
        Pace::new(limit, if self.yields { yields } else { 0 }, Instant::now())
    }
}
