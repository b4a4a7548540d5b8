use clap::Args;

use crate::cli::{Outcome, Output, say};
use crate::service::{detach, recorded};

/// Remove the probes that a killed `protect` left at work, and what they recorded
///
/// As long as they are there, the next `protect` goes on without reading the volume. Afterwards it compares all of it. A `protect` that
/// is stopped (Ctrl-C, SIGTERM) leaves none, unless it is --early. What is left of any volume is in /sys/fs/bpf/afterwrite; when that is empty, nothing is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  afterwrite detach /dev/sdb\n  afterwrite detach --all")]
pub struct DetachArgs {
    /// The volume, as /dev/NAME or NAME
    #[arg(required_unless_present = "all")]
    volume: Option<String>,
    /// Those of all volumes that are not protected now
    #[arg(long, conflicts_with = "volume")]
    all: bool,
}

pub fn run(args: &DetachArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let volumes = match &args.volume {
        Some(volume) => vec![volume.clone()],
        None => recorded().into_iter().map(|recorded| recorded.volume).collect(),
    };
    for volume in &volumes {
        detach(volume)?;
        out.line(volume)?;
    }
    if volumes.is_empty() {
        say("no probes are at work without a protection");
    }
    Ok(Outcome::Done)
}
