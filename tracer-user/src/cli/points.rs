use std::path::PathBuf;

use anyhow::Context;

use crate::cli::{Outcome, Output, size};
use crate::journal::{Journal, Listed, Listing};
use crate::model::{Point, PointClass, Stretch};

/// List the points one can restore: the marks, and between which records every instant can be restored
///
/// Class says what a point promises: app (frozen after a pre-hook), fs (frozen file system), crash (as after a power
/// cut), fuzzy (equal to no instant; `replay` takes it with --force only).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite points /var/lib/afterwrite/home")]
pub(super) struct Args {
    /// Directory of the journal
    journal: PathBuf,
    /// Print JSON: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let cannot = || format!("cannot list the points of {}", args.journal.display());
    let journal = Journal::open(&args.journal).with_context(cannot)?;
    let listing = Listing::of(&journal).with_context(cannot)?;
    if args.json {
        out.json(&listing)?;
        return Ok(Outcome::Done);
    }
    let Listing { volume, last_lsn, points, stretches } = listing;
    out.line(format_args!("{}, {}, {last_lsn} records", volume.source, size(volume.size_bytes)))?;
    out.line(format_args!("{:>8}  {:5}  {:>10}  {:24}  LABEL", "MARK", "CLASS", "RECORD", "TIME"))?;
    for Listed { point: Point { id, class, lsn, time, label }, .. } in &points {
        // Padded by the line, for these are values of their own formatting.
        let (id, lsn, time) = (id.to_string(), lsn.to_string(), time.to_string());
        let row = format!("{id:>8}  {class:5}  {lsn:>10}  {time:24}  {}", label.escape_debug());
        out.line(row.trim_end())?;
    }
    let is_end = |point: &Point| point.label == "stop" && point.class == PointClass::Crash;
    if points.iter().any(|listed| is_end(&listed.point)) {
        out.line("stop: the end of a protection that was stopped in order; of class crash where nothing was frozen at that instant")?;
    }
    if points.is_empty() {
        out.line("no point yet: the baseline is not finished")?;
    }
    if !stretches.is_empty() {
        out.line("every instant between these records can be restored, class crash; elsewhere marks only, as there writes were not")?;
        out.line("journaled in their order (the first copy, a start, a ring that was full, a payload that could not be copied):")?;
        out.line(format_args!("{:>8}  {:24}  {:>10}  TIME", "FROM", "TIME", "TO"))?;
    }
    for Stretch { from_lsn, from_time, to_lsn, to_time } in &stretches {
        let (from, from_time, to) = (from_lsn.to_string(), from_time.to_string(), to_lsn.to_string());
        out.line(format_args!("{from:>8}  {from_time:24}  {to:>10}  {to_time}"))?;
    }
    Ok(Outcome::Done)
}
