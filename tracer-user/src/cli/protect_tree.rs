//! `protect` of a directory.

use std::time::{Duration, Instant};

use crate::cli::protect::say_stopped;
use crate::cli::{Outcome, say, size};
use crate::service::{TreeEvent, TreeOptions, TreeStatus, protect_tree};

const SAY_EVERY: Duration = Duration::from_secs(5);

pub(super) fn run(options: &TreeOptions) -> anyhow::Result<Outcome> {
    let mut said = None::<(&'static str, Instant)>;
    let last = protect_tree(options, &mut |event| match event {
        TreeEvent::Attached { status, resumed } => {
            let next = if resumed { "comparing the tree with the journal" } else { "copying the tree" };
            say(&format!("seeing every change of {} ({}); {next}", status.source, status.rung));
            if let Some(why) = &status.not_frozen {
                say(&format!("its file system is not frozen for marks: {why}"));
            }
        }
        TreeEvent::Stopping => say("stopping: making a last mark (again to stop at once)"),
        TreeEvent::Progress(status) => {
            let copying = status.state != "live";
            if said
                .is_none_or(|(state, when)| state != status.state || copying && when.elapsed() >= SAY_EVERY)
            {
                said = Some((status.state, Instant::now()));
                say(&line(status));
            }
        }
    })?;
    let Some(status) = last else { anyhow::bail!("interrupted before the last mark; start again to resume") };
    say_stopped(&status.source, &status.target, status.replica.mark, status.last_mark.as_ref());
    Ok(Outcome::Done)
}

fn line(status: &TreeStatus) -> String {
    let TreeStatus { source, state, collector, last_mark, .. } = status;
    let mark = last_mark.as_ref().map_or("none".into(), |mark| mark.id.to_string());
    format!(
        "{source}: {state}, {} inodes, {} read, mark {mark}",
        collector.inodes,
        size(collector.data_bytes)
    )
}
