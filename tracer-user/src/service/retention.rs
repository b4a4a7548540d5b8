//! The thread that applies retention beside a running protection. It is not waited for at the end: a prune that is killed
//! has lost nothing, and the next one goes on.

use std::time::Duration;

use crate::journal::{PruneOptions, PrunePlan};
use crate::model::Timestamp;
use crate::service::progress::RetentionStatus;

const EVERY_MIN: Duration = Duration::from_secs(10);
const EVERY_MAX: Duration = Duration::from_secs(3600);
/// So often within the time that every write is kept for.
const RUNS: u32 = 24;

/// The protection beside which it runs.
pub trait Retained {
    /// Waits for its end, at most this long; says whether that has come.
    fn wait_for_end(&self, at_most: Duration) -> bool;
    fn update_retention(&self, change: &mut dyn FnMut(&mut RetentionStatus));
}

pub fn run_retention<E: Into<anyhow::Error>>(
    options: &PruneOptions,
    prune: impl Fn(&PruneOptions, Timestamp) -> Result<PrunePlan, E>,
    retained: &impl Retained,
) {
    // Of this thread only. What it does can wait; should that fail, it is done all the same.
    let _ = rustix::process::nice(19);
    let every = (options.retention.keep_all / RUNS).clamp(EVERY_MIN, EVERY_MAX);
    retained.update_retention(&mut |_| {});
    while !retained.wait_for_end(every) {
        let now = Timestamp(u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0));
        let mut result = prune(options, now).map_err(|error| format!("{:#}", error.into()));
        retained.update_retention(&mut |status| match &mut result {
            Ok(plan) => {
                status.error = None;
                status.freed_bytes += plan.freed_bytes;
            }
            Err(text) => {
                if status.error.as_ref() != Some(text) {
                    log::warn!("retention fails, the protection goes on without it: {text}");
                }
                status.error = Some(std::mem::take(text));
            }
        });
    }
}
