use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;

use crate::cli::files::AtArgs;
use crate::cli::plan::tell_before;
use crate::cli::{Outcome, Output, say, size};
use crate::files::{Means, RestoreFile, Restored};
use crate::restore::ResolvedPoint;

/// Give back a file, or a directory with all below it, as it was at a point, straight from the journal
///
/// With content, holes, permissions, times, extended attributes and ACLs, hard links among what is restored, and as root owners. It is
/// written beside its place and gets its name when all is on the disk. How file systems are read: `afterwrite files --help`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Points: as of `afterwrite replay`

Exit code 1: restored, but for what standard error lists (an extended attribute or a device that could not be made).

Examples:
  afterwrite restore-file /var/lib/afterwrite/home /alice/thesis.tex --to before-process:rm --output thesis.tex
  afterwrite restore-file /var/lib/afterwrite/home /alice --to mark:nightly --output /tmp/alice --recursive")]
pub(super) struct Args {
    #[command(flatten)]
    at: AtArgs,
    /// What to restore, from the file system's root
    path: OsString,
    /// The file or directory to make
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
    /// A directory with all below it
    #[arg(long)]
    recursive: bool,
    /// Replace what is there, and take a fuzzy point
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `--json`: one object.
///
/// `point` (as in `replay`), `means` (`way`: `journal` or `mount`, `file_system`, `recovered_blocks`), `output`, `restored`: `files`, `dirs`,
/// `others`, `hard_links`, `data_bytes`, `lost` (list of `path`, `what`); `seconds`.
#[derive(Serialize)]
struct Report<'a> {
    point: &'a ResolvedPoint,
    means: &'a Means,
    output: String,
    restored: &'a Restored,
    seconds: f64,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let mut files = args.at.open(args.force)?;
    let path = args.path.as_bytes();
    let options = RestoreFile {
        path: path.to_vec(),
        output: args.output.clone(),
        recursive: args.recursive,
        force: args.force,
    };
    let restored = files.restore(&options);
    let restored = restored.with_context(|| format!("cannot restore {}", path.escape_ascii()))?;
    let seconds = started.elapsed().as_secs_f64();
    for lost in &restored.lost {
        say(&format!("not restored: {}: {}", lost.path, lost.what));
    }
    let outcome = if restored.lost.is_empty() { Outcome::Done } else { Outcome::Wrong };
    if args.json {
        let (point, means, output) = (&files.point, &files.means, args.output.display().to_string());
        out.json(&Report { point, means, output, restored: &restored, seconds })?;
        return Ok(outcome);
    }
    tell_before(files.before.as_ref(), out)?;
    let Restored { files: count, dirs, others, hard_links, data_bytes, .. } = &restored;
    out.line(format_args!(
        "restored {} to {}: {count} files, {dirs} directories, {others} others, {hard_links} hard links, {}, in {seconds:.1} s",
        path.escape_ascii(),
        args.output.display(),
        size(*data_bytes)
    ))?;
    Ok(outcome)
}
