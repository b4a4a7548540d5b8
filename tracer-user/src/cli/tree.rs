//! The commands as they are for directory trees.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;

use crate::cli::{Outcome, Output, say, size};
use crate::journal::Journal;
use crate::model::{PointTarget, Timestamp};
use crate::restore::{ResolvedPoint, resolve};
use crate::tree::{Applied, TreeCheckpoint, TreeVerify, replay_tree, verify_trees};

/// `replay` as it is asked for.
pub(super) struct Replay<'a> {
    pub journal: &'a Path,
    pub to: &'a PointTarget,
    pub target: &'a Path,
    pub force: bool,
    pub dry_run: bool,
    pub json: bool,
}

/// `--json`: one object.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    source: &'a str,
    point: &'a ResolvedPoint,
    target: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<Applied>,
    seconds: f64,
}

/// Whether the journal is that of a tree.
pub(super) fn is_tree(journal: &Path) -> bool {
    Journal::open(journal).is_ok_and(|journal| journal.info().is_tree())
}

pub(super) fn replay(args: &Replay<'_>, out: &mut Output) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let journal = Journal::open(args.journal)?;
    let timeline = journal.timeline()?;
    let before = |time: Timestamp| {
        // Only marks can be restored.
        let mark = timeline.points.iter().rev().find(|mark| mark.class.restorable() && mark.time <= time);
        mark.map(|mark| PointTarget::Mark(mark.id.to_string()))
            .context("there is no mark at or before that time")
    };
    let to = match args.to {
        to if to.is_before_something() => anyhow::bail!(
            "the journal of a tree does not say who changed what; name a mark or a time (`afterwrite points JOURNAL`)"
        ),
        PointTarget::Time(time) => before(*time)?,
        PointTarget::Lsn(lsn) if !timeline.points.iter().any(|mark| mark.lsn == *lsn) => {
            anyhow::bail!(
                "record {lsn} is no mark, and of a tree only marks can be restored (`afterwrite points JOURNAL`)"
            )
        }
        other => other.clone(),
    };
    let point = resolve(&timeline, &to, None, args.force).context("cannot restore that point")?;
    refuse_own(args)?;
    let done = match args.dry_run {
        true => None,
        false => Some(replay_tree(&journal, point.lsn, args.target, args.force).with_context(|| {
            format!("the restore stopped: {} is incomplete and must not be used", args.target.display())
        })?),
    };
    let (source, seconds) = (journal.info().source.as_str(), started.elapsed().as_secs_f64());
    if args.json {
        let report =
            Report { dry_run: args.dry_run, source, point: &point, target: args.target, done, seconds };
        out.json(&report)?;
        return Ok(Outcome::Done);
    }
    out.line(format_args!("point    {point}"))?;
    out.line(format_args!("tree     {source}"))?;
    out.line(format_args!("target   {}", args.target.display()))?;
    match done {
        None => out.line("dry run: nothing was written")?,
        Some(Applied { data_bytes, names, .. }) => {
            out.line(format_args!(
                "restored {} of content, {names} names, in {seconds:.1} s",
                size(data_bytes)
            ))?;
        }
    }
    Ok(Outcome::Done)
}

fn refuse_own(args: &Replay<'_>) -> anyhow::Result<()> {
    let Ok(target) = args.target.canonicalize() else { return Ok(()) };
    let replica = TreeCheckpoint::read(args.journal).ok().flatten();
    if args
        .journal
        .canonicalize()
        .is_ok_and(|journal| target.starts_with(&journal) || journal.starts_with(&target))
    {
        anyhow::bail!(
            "the target {} and the journal lie in one another; name another directory",
            target.display()
        );
    }
    if replica.is_some_and(|replica| {
        Path::new(&replica.target_path).canonicalize().is_ok_and(|path| path == target)
    }) {
        anyhow::bail!(
            "{} is the target that this journal keeps current; restore to another directory",
            args.target.display()
        );
    }
    Ok(())
}

/// `--json`: one object, `crate::tree::TreeVerify`: `identical`, `inodes`, `bytes`, `differing` (list of `path`, `what`),
/// `more` (the list was cut).
pub(super) fn verify(source: &Path, target: &Path, json: bool, out: &mut Output) -> anyhow::Result<Outcome> {
    let report = verify_trees(source, target)?;
    let TreeVerify { identical, inodes, bytes, differing, more } = &report;
    if json {
        out.json(&report)?;
    } else if *identical {
        out.line(format_args!("identical: {inodes} inodes, {} of content", size(*bytes)))?;
    } else {
        for difference in differing {
            out.line(format_args!("{}: {}", difference.path, difference.what))?;
        }
        let more = if *more { " (more than are listed)" } else { "" };
        say(&format!(
            "{} and {} differ in {} things{more}",
            source.display(),
            target.display(),
            differing.len()
        ));
    }
    Ok(if *identical { Outcome::Done } else { Outcome::Wrong })
}
