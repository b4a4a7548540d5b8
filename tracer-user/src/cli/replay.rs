use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::cli::plan::{PlanArgs, tell_before};
use crate::cli::{Outcome, Output, Progress, Unit, say, size, tree};
use crate::model::{Lsn, PointTarget};
use crate::restore::{ReplayOptions, ReplayOutcome, ReplayPlan, ReplayProgress, replay};

/// Rebuild a point of a journal in an image file or on a block device
///
/// The journal is only read, also while `protect` is writing it. The target is complete and on disk when the command
/// ends with 0; otherwise it must not be used.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Points: latest (the last mark), mark:NUMBER, mark:LABEL, lsn:NUMBER,
        time:RFC3339 (the last write at or before, where every write can be restored; else the last mark),
        before-process:NAME (just before its first change of a file; NAME@2 is the second process of that name, NAME@last
        the last one, NAME@RFC3339 the first from then on), before-file:GLOB (just before the first change of such a file),
        before-burst:last (just before many files were rewritten or removed at once; or :N, :RFC3339)

Examples:
  afterwrite replay /var/lib/afterwrite/home --to latest --target home.img
  afterwrite replay /var/lib/afterwrite/home --to time:2026-01-31T12:00:00Z --target /dev/sdb1 --dry-run")]
pub(super) struct Args {
    /// Directory of the journal
    journal: PathBuf,
    /// The point to restore
    #[arg(long, value_name = "POINT")]
    to: PointTarget,
    /// Raw image file (created when missing) or block device to write; of a tree a directory, empty or new
    #[arg(long, value_name = "PATH")]
    target: PathBuf,
    /// Overwrite a target that is not empty, and take a fuzzy point
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    plan: PlanArgs,
}

/// `--json`: one object.
///
/// `dry_run`; `plan`: `volume`, `source`, `point` (`lsn`, `class`, `mark`, `time`, `label`), `base_lsn` (the base image it
/// begins with, 0 for none), `records`, `first_lsn` (of the records after base and folds), `last_lsn`,
/// `journal_bytes`, `write_bytes_max` (null when not known), `volume_bytes`, `target`, and of a point before something `before`; and unless it is a dry run `done`: `records`, `data_bytes`, `zero_bytes`,
/// `written_bytes`, `zeroed_bytes`, `undefined_bytes` (zeros no record speaks of), `seconds`.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    plan: &'a ReplayPlan,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<Done>,
}

#[derive(Serialize)]
struct Done {
    records: u64,
    data_bytes: u64,
    zero_bytes: u64,
    written_bytes: u64,
    zeroed_bytes: u64,
    undefined_bytes: u64,
    seconds: f64,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    if tree::is_tree(&args.journal) {
        let Args { journal, to, target, force, plan: PlanArgs { dry_run, json } } = args;
        let (force, dry_run, json) = (*force, *dry_run, *json);
        return tree::replay(&tree::Replay { journal, to, target, force, dry_run, json }, out);
    }
    let options = ReplayOptions {
        journal: args.journal.clone(),
        to: args.to.clone(),
        target: args.target.clone(),
        force: args.force,
        dry_run: args.plan.dry_run,
    };
    let started = Instant::now();
    let mut shown: Option<Progress> = None;
    let outcome = replay(&options, &mut |progress| match progress {
        ReplayProgress::Begins(plan) => {
            shown = Some(Progress::new("restoring", Unit::Records, plan.records));
        }
        ReplayProgress::Applies(at) => {
            if let Some(shown) = &mut shown {
                shown.note(size(at.content_bytes));
                shown.set(at.records);
            }
        }
        ReplayProgress::Syncs => {
            if let Some(shown) = &mut shown {
                shown.note("waiting for the disk");
            }
        }
    });
    drop(shown);
    report(args, &outcome?, started.elapsed().as_secs_f64(), out)?;
    Ok(Outcome::Done)
}

fn report(args: &Args, outcome: &ReplayOutcome, seconds: f64, out: &mut Output) -> anyhow::Result<()> {
    let ReplayOutcome { plan, stats, undefined_bytes } = outcome;
    if *undefined_bytes > 0 {
        say(&format!(
            "warning: the journal says nothing of {} of the volume at this point; they are zeros",
            size(*undefined_bytes)
        ));
    }
    if args.plan.json {
        let done = stats.as_ref().map(|stats| Done {
            records: stats.records,
            data_bytes: stats.data_bytes,
            zero_bytes: stats.zero_bytes,
            written_bytes: stats.written_bytes,
            zeroed_bytes: stats.zeroed_bytes,
            undefined_bytes: *undefined_bytes,
            seconds,
        });
        return out.json(&Report { dry_run: args.plan.dry_run, plan, done });
    }
    let ReplayPlan { source, point, first_lsn, last_lsn, journal_bytes, volume_bytes, .. } = plan;
    let writes = plan.write_bytes_max.map(|bytes| format!(", at most {} to write", size(bytes)));
    tell_before(plan.before.as_ref(), out)?;
    out.line(format_args!("point    {point}"))?;
    out.line(format_args!("volume   {source}, {} ({volume_bytes} bytes)", size(*volume_bytes)))?;
    if plan.base_lsn > Lsn::ZERO {
        out.line(format_args!("base     the volume at record {}", plan.base_lsn))?;
    }
    out.line(format_args!(
        "records  {first_lsn} to {last_lsn}, up to {} of journal{}",
        size(*journal_bytes),
        writes.unwrap_or_default()
    ))?;
    out.line(format_args!("target   {}", plan.target.display()))?;
    match stats {
        None => out.line("dry run: nothing was written"),
        Some(stats) => out.line(format_args!(
            "restored {} written, {} zeroed, in {seconds:.1} s",
            size(stats.written_bytes),
            size(stats.zeroed_bytes)
        )),
    }
}
