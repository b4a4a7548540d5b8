use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::cli::plan::{PlanArgs, tell_before};
use crate::cli::{Outcome, Output, Progress, Unit, size, tree};
use crate::model::PointTarget;
use crate::restore::{RewindOptions, RewindOutcome, RewindPlan, RewindProgress, rewind};

/// Bring a replica to an earlier or later point of its journal, where it stands
///
/// Only what differs is written. `protect` must not be running; started again, it brings the replica forward to the last point.
/// Killed at any instant it can be done again, to the same point or another one. The journal is only read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Points: as of `afterwrite replay`; `afterwrite points JOURNAL` lists them

Examples:
  afterwrite rewind /backup/home.img --journal /var/lib/afterwrite/home --to mark:before-upgrade
  afterwrite rewind /dev/sdb1 --journal /var/lib/afterwrite/home --to time:2026-01-31T12:00:00Z --dry-run")]
pub(super) struct Args {
    /// The replica: the target that `protect` was given
    target: PathBuf,
    /// Directory of its journal
    #[arg(long, value_name = "DIR")]
    journal: PathBuf,
    /// The point to go to
    #[arg(long, value_name = "POINT")]
    to: PointTarget,
    /// Take a fuzzy point
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    plan: PlanArgs,
}

/// `--json`: one object.
///
/// `dry_run`; `plan`: `volume`, `source`, `target`, `volume_bytes`, `from_lsn` (the record the replica is at), `from_mark` (null if
/// that is none), `begun_lsn` (null, or that a rewind or apply was interrupted that touched records up to this one), `point` (`lsn`,
/// `class`, `mark`, `time`, `label`), `back`, `records` (between the two), `journal_bytes`, `write_bytes_max` (null when not
/// known), and of a point before something `before` (as of `replay`); and unless it is a dry run `done`: `records` (of all that were read to restore), `written_bytes`, `zeroed_bytes`, `seconds`.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    plan: &'a RewindPlan,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<Done>,
}

#[derive(Serialize)]
struct Done {
    records: u64,
    written_bytes: u64,
    zeroed_bytes: u64,
    seconds: f64,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    if tree::is_tree(&args.journal) {
        anyhow::bail!(
            "{} is the journal of a directory tree, whose target only goes forward; restore the point into an empty directory: \
             `afterwrite replay {0} --to POINT --target DIR`",
            args.journal.display()
        );
    }
    let options = RewindOptions {
        target: args.target.clone(),
        journal: args.journal.clone(),
        to: args.to.clone(),
        force: args.force,
        dry_run: args.plan.dry_run,
    };
    let started = Instant::now();
    let mut shown: Option<Progress> = None;
    let outcome = rewind(&options, &mut |progress| match progress {
        RewindProgress::Begins(plan) => {
            let most = plan.write_bytes_max.unwrap_or(plan.volume_bytes).min(plan.volume_bytes);
            shown = Some(Progress::new("rewinding", Unit::Bytes, most));
        }
        RewindProgress::Applies(at) => {
            if let Some(shown) = &mut shown {
                shown.note(format!("{} records read", at.records));
                shown.set(at.content_bytes);
            }
        }
    });
    drop(shown);
    report(args, &outcome?, started.elapsed().as_secs_f64(), out)?;
    Ok(Outcome::Done)
}

fn report(args: &Args, outcome: &RewindOutcome, seconds: f64, out: &mut Output) -> anyhow::Result<()> {
    let RewindOutcome { plan, stats } = outcome;
    if args.plan.json {
        let done = stats.as_ref().map(|stats| Done {
            records: stats.records,
            written_bytes: stats.written_bytes,
            zeroed_bytes: stats.zeroed_bytes,
            seconds,
        });
        return out.json(&Report { dry_run: args.plan.dry_run, plan, done });
    }
    let RewindPlan { source, target, point, volume_bytes, from_lsn, records, journal_bytes, .. } = plan;
    out.line(format_args!("replica  {}, of {source}, {}", target.display(), size(*volume_bytes)))?;
    let stands = match (plan.from_mark, plan.begun_lsn) {
        (_, Some(begun)) => format!("interrupted between record {from_lsn} and {begun}"),
        (Some(mark), None) => format!("mark {mark}, record {from_lsn}"),
        (None, None) => format!("record {from_lsn}"),
    };
    out.line(format_args!("from     {stands}"))?;
    tell_before(plan.before.as_ref(), out)?;
    out.line(format_args!("{}  {point}", if plan.back { "back to" } else { "to     " }))?;
    let writes = plan.write_bytes_max.map(|bytes| format!(", at most {} to write", size(bytes)));
    out.line(format_args!(
        "between  {records} records, up to {} of journal{}",
        size(*journal_bytes),
        writes.unwrap_or_default()
    ))?;
    match stats {
        None => out.line("dry run: nothing was written"),
        Some(stats) => out.line(format_args!(
            "rewound  {} written, {} zeroed, in {seconds:.1} s",
            size(stats.written_bytes),
            size(stats.zeroed_bytes)
        )),
    }
}
