use std::path::PathBuf;

use crate::cli::{Outcome, Output, Progress, Unit, say, size};
use crate::restore::verify;

/// Compare two volumes byte by byte
///
/// Both are only read, block devices past the page cache. Exit code 0: every byte of SOURCE is on TARGET (which may be
/// larger). 1: they differ, the differing ranges are on stdout as START..END in bytes, in blocks of 4 KiB. Whoever
/// writes to one of them meanwhile makes a difference: freeze or unmount the source first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite verify /dev/vg/home /backup/home.img")]
pub(super) struct Args {
    /// Block device or image file
    source: PathBuf,
    /// Block device or image file
    target: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `--json` is one object, `crate::restore::VerifyReport`: `identical`, `source_bytes`, `target_bytes`,
/// `source_blake3`, `target_blake3`, `differing_bytes`, `differing` (list of `start`, `end` in bytes, end exclusive), `more` (the list was cut).
pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut shown = Progress::new("comparing", Unit::Bytes, 0);
    let report = verify(&args.source, &args.target, &mut |at| {
        shown.set_total(at.total_bytes);
        if at.differing_bytes > 0 {
            shown.note(format!("{} differ", size(at.differing_bytes)));
        }
        shown.set(at.done_bytes);
    });
    shown.finish();
    let report = report?;
    if args.json {
        out.json(&report)?;
    } else if report.identical {
        out.line(format_args!("identical: {} bytes, blake3 {}", report.source_bytes, report.source_blake3))?;
    } else {
        for range in &report.differing {
            out.line(range)?;
        }
        let more = if report.more { " (more ranges than are listed)" } else { "" };
        say(&format!(
            "{} and {} differ in {} of {} bytes{more}",
            args.source.display(),
            args.target.display(),
            report.differing_bytes,
            report.source_bytes
        ));
        if report.target_bytes < report.source_bytes {
            say(&format!("the target is smaller: {} bytes", report.target_bytes));
        }
    }
    Ok(if report.identical { Outcome::Done } else { Outcome::Wrong })
}
