use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use crate::cli::plan::PlanArgs;
use crate::cli::retention::RetentionArgs;
use crate::cli::{Outcome, Output, size, tree};
use crate::io::clock::realtime;
use crate::journal::{Journal, PrunePlan, plan_prune, prune};
use crate::model::{Lsn, Point};

/// Apply retention: fold old history into marks, thin out old marks, and free the space
///
/// Every write is kept for a time, then the marks only, then the last mark of each hour, day and week. What remains of older
/// history is a base image and the differences from mark to mark; of a directory tree, too, of which all marks are kept from the one
/// on that its target is at. Works beside `protect`, on sealed segments only. Killed at any
/// instant it has lost nothing that is kept; the next one goes on. Needs room in the journal's directory for what it folds.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  afterwrite journal prune /var/lib/afterwrite/home --dry-run
  afterwrite journal prune /var/lib/afterwrite/home --keep-all 48h --keep-marks 14d --hourly 0 --daily 30 --weekly 52")]
pub(super) struct PruneArgs {
    /// Directory of the journal
    journal: PathBuf,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    plan: PlanArgs,
}

/// `--json`: one object.
///
/// `dry_run`; `upto`: the record up to which the history is folded, 0 for none; `dropped`: list of the marks that go, as in
/// `points`; `kept_marks`: how many there are up to that record; `folds_made`; `image`: null or the mark of which a base image
/// is made; `segments`: list of the files that go; `freed_bytes`: of them and of folds that others replace.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    upto: Lsn,
    dropped: &'a [Point],
    kept_marks: u64,
    folds_made: u64,
    image: Option<&'a Point>,
    segments: Vec<String>,
    freed_bytes: u64,
}

pub(super) fn run(args: &PruneArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let cannot = || format!("cannot prune {}", args.journal.display());
    let now = realtime();
    let options = args.retention.options(false);
    let dir = &args.journal;
    let plan = match (tree::is_tree(dir), args.plan.dry_run) {
        (true, true) => crate::tree::plan_prune(dir, &options, now).with_context(cannot)?,
        (true, false) => crate::tree::prune(dir, &options, now).with_context(cannot)?,
        (false, true) => {
            plan_prune(&Journal::open(dir).with_context(cannot)?, &options, now).with_context(cannot)?
        }
        (false, false) => prune(dir, &options, now).with_context(cannot)?,
    };
    report(args, &plan, out)?;
    Ok(Outcome::Done)
}

fn report(args: &PruneArgs, plan: &PrunePlan, out: &mut Output) -> anyhow::Result<()> {
    let segments = plan.segment_names();
    let PrunePlan { upto, dropped, kept_marks, image, freed_bytes, .. } = plan;
    if args.plan.json {
        return out.json(&Report {
            dry_run: args.plan.dry_run,
            upto: *upto,
            dropped,
            kept_marks: *kept_marks,
            folds_made: plan.made(),
            image: image.as_ref(),
            segments,
            freed_bytes: *freed_bytes,
        });
    }
    if plan.is_empty() {
        return out.line("nothing to do: no sealed segment is old enough, and no mark goes");
    }
    out.line(format_args!("folded   up to record {upto}, with {kept_marks} marks; {} go", dropped.len()))?;
    for Point { id, class, time, label, .. } in dropped {
        out.line(format!("  mark {id} {class} {time} {}", label.escape_debug()).trim_end())?;
    }
    out.line(format_args!("made     {} folds", plan.made()))?;
    if let Some(mark) = image {
        out.line(format_args!("image    of mark {}, {}", mark.id, mark.time))?;
    }
    out.line(format_args!(
        "freed    {}, in {} segments and older folds",
        size(*freed_bytes),
        segments.len()
    ))?;
    if args.plan.dry_run {
        out.line("dry run: nothing was changed")?;
    }
    Ok(())
}
