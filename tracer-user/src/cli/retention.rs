use std::time::Duration;

use crate::journal::{PruneOptions, Retention};

/// A base image is made when replaying from the last one means so many times its bytes.
const IMAGE_FACTOR: u64 = 4;

/// What of the history is kept, for `journal prune` and `protect`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Retention")]
pub(super) struct RetentionArgs {
    /// Keep every write for this long [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    keep_all: Option<Duration>,
    /// Keep every restorable mark for this long [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    keep_marks: Option<Duration>,
    /// Keep the last mark of each of so many hours that have one [default: 48]
    #[arg(long, value_name = "COUNT")]
    hourly: Option<usize>,
    /// Of so many days (UTC) [default: 14]
    #[arg(long, value_name = "COUNT")]
    daily: Option<usize>,
    /// Of so many weeks (from Monday, UTC) [default: 8]
    #[arg(long, value_name = "COUNT")]
    weekly: Option<usize>,
    /// Treat marks that were given a label as all others; else they are kept for ever
    #[arg(long)]
    drop_labelled: bool,
}

impl RetentionArgs {
    /// Whether any was given.
    #[cfg(feature = "capture")]
    pub(super) fn are_given(&self) -> bool {
        let RetentionArgs { keep_all, keep_marks, hourly, daily, weekly, drop_labelled } = self;
        let times = keep_all.or(*keep_marks).is_some();
        times || hourly.or(*daily).or(*weekly).is_some() || *drop_labelled
    }

    pub(super) fn options(&self, lazy: bool) -> PruneOptions {
        let default = Retention::default();
        let retention = Retention {
            keep_all: self.keep_all.unwrap_or(default.keep_all),
            keep_marks: self.keep_marks.unwrap_or(default.keep_marks),
            hourly: self.hourly.unwrap_or(default.hourly),
            daily: self.daily.unwrap_or(default.daily),
            weekly: self.weekly.unwrap_or(default.weekly),
            drop_labelled: self.drop_labelled,
        };
        PruneOptions { retention, image_factor: IMAGE_FACTOR, lazy, keep_from: None }
    }
}
