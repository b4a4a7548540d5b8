//! The thread that applies retention beside a running protection. It is not waited for at the end: a prune that is killed
//! has lost nothing, and the next one goes on.

use std::path::Path;
use std::time::Duration;

use crate::journal::{PruneOptions, prune};
use crate::model::Timestamp;
use crate::service::progress::{RetentionStatus, SharedProgress};

const EVERY_MIN: Duration = Duration::from_secs(10);
const EVERY_MAX: Duration = Duration::from_secs(3600);
/// So often within the time that every write is kept for.
const RUNS: u32 = 24;

pub fn run_retention(dir: &Path, options: &PruneOptions, progress: &SharedProgress) {
    // Of this thread only. What it does can wait; should that fail, it is done all the same.
    let _ = rustix::process::nice(19);
    let every = (options.retention.keep_all / RUNS).clamp(EVERY_MIN, EVERY_MAX);
    progress.update(|p| p.retention = Some(RetentionStatus::default()));
    loop {
        progress.wait_for_end(every);
        if progress.get().journal_ended || progress.get().failure.is_some() {
            return;
        }
        let now = Timestamp(u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0));
        let result = prune(dir, options, now);
        progress.update(|p| {
            let status = p.retention.get_or_insert_default();
            match result {
                Ok(plan) => {
                    status.error = None;
                    status.freed_bytes += plan.freed_bytes;
                }
                Err(error) => {
                    let text = format!("{:#}", anyhow::Error::from(error));
                    if status.error.as_ref() != Some(&text) {
                        log::warn!("retention fails, the protection goes on without it: {text}");
                    }
                    status.error = Some(text);
                }
            }
        });
    }
}
