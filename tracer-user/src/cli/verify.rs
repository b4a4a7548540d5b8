use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

use crate::cli::{Outcome, Output, Progress, Unit, say, size, tree};
use crate::restore::{HashReport, VerifyProgress, VerifyReport, verify, verify_hashes};

/// Compare two volumes byte by byte, two directory trees, or the replica with its hashes
///
/// All is only read, block devices past the page cache. Exit code 0: every byte of SOURCE is on TARGET (which may be
/// larger). 1: they differ, the differing ranges are on stdout as START..END in bytes, in blocks of 4 KiB. Whoever
/// writes to one of them meanwhile makes a difference: freeze or unmount the source first.
///
/// With --hashes the source is not needed: TARGET is compared with the hashes that `protect` keeps of it in the journal's
/// directory, which may be running meanwhile. Exit code 0: every granule whose hash is known has that hash; how many are
/// not known is said. 1: the differing granules are on stdout.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "afterwrite verify [OPTIONS] <SOURCE> <TARGET>\n       afterwrite verify [OPTIONS] <TARGET> --hashes <FILE>",
    after_help = "Example:\n  afterwrite verify /dev/vg/home /backup/home.img\n  \
                  afterwrite verify /backup/home.img --hashes /journal/home"
)]
pub(super) struct Args {
    /// Block device, image file or directory: the source, or with --hashes the target
    source: PathBuf,
    /// Block device or image file
    #[arg(required_unless_present = "hashes", conflicts_with = "hashes")]
    target: Option<PathBuf>,
    /// The hash list of the replica, or the journal's directory, where it is
    #[arg(long, value_name = "FILE")]
    hashes: Option<PathBuf>,
    /// How long to wait for `protect` to come to rest between two applies
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration, requires = "hashes")]
    wait: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    if let Some(target) = &args.target {
        match (args.source.is_dir(), target.is_dir()) {
            (true, true) => return tree::verify(&args.source, target, args.json, out),
            (false, false) => {}
            (source, _) => {
                let (dir, other) = if source { (&args.source, target) } else { (target, &args.source) };
                anyhow::bail!(
                    "{} is a directory, {} is none; name two directories, or two volumes",
                    dir.display(),
                    other.display()
                );
            }
        }
    }
    let mut shown = Progress::new("comparing", Unit::Bytes, 0);
    let mut show = |at: VerifyProgress| {
        shown.set_total(at.total_bytes);
        if at.differing_bytes > 0 {
            shown.note(format!("{} differ", size(at.differing_bytes)));
        }
        shown.set(at.done_bytes);
    };
    match (&args.target, &args.hashes) {
        (_, Some(hashes)) => {
            let report = verify_hashes(&args.source, hashes, args.wait, &mut show);
            shown.finish();
            tell_of_hashes(args, out, &report?)
        }
        (Some(target), None) => {
            let report = verify(&args.source, target, &mut show);
            shown.finish();
            tell(args, target, out, &report?)
        }
        (None, None) => bail!("nothing to compare with: name a TARGET, or --hashes"),
    }
}

/// `--json` is one object, `crate::restore::VerifyReport`: `identical`, `source_bytes`, `target_bytes`,
/// `source_blake3`, `target_blake3`, `differing_bytes`, `differing` (list of `start`, `end` in bytes, end exclusive), `more` (the list was cut).
fn tell(args: &Args, target: &Path, out: &mut Output, report: &VerifyReport) -> anyhow::Result<Outcome> {
    if args.json {
        out.json(report)?;
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
            target.display(),
            report.differing_bytes,
            report.source_bytes
        ));
        if report.target_bytes < report.source_bytes {
            say(&format!("the target is smaller: {} bytes", report.target_bytes));
        }
        say(
            "what was written to either since the replica's last mark differs, as what mounting and unmounting writes",
        );
    }
    Ok(if report.identical { Outcome::Done } else { Outcome::Wrong })
}

/// `--json` is one object, `crate::restore::HashReport`: `identical` (of what is known), `is_replica`, `volume_bytes`,
/// `target_bytes`, `granule_bytes`, `compared_bytes`, `unknown_granules`, `unknown_bytes`, `differing_bytes`, `differing`
/// (list of `start`, `end` in bytes, end exclusive), `more` (the list was cut), `applied_lsn`, `mark`.
fn tell_of_hashes(args: &Args, out: &mut Output, report: &HashReport) -> anyhow::Result<Outcome> {
    let target = args.source.display();
    if !report.is_replica {
        say(&format!(
            "{target} is not the replica itself, it is compared with the replica's hashes all the same"
        ));
    }
    if report.unknown_granules > 0 {
        let (granules, bytes) = (report.unknown_granules, size(report.unknown_bytes));
        say(&format!("{granules} granules ({bytes}) not covered: their hashes are not known (yet)"));
    }
    if args.json {
        out.json(report)?;
    } else if report.identical {
        let (compared, whole) = (report.compared_bytes, report.volume_bytes);
        out.line(format_args!("as hashed: {compared} of {whole} bytes compared"))?;
    } else {
        for range in &report.differing {
            out.line(range)?;
        }
        let more = if report.more { " (more ranges than are listed)" } else { "" };
        let (differing, compared) = (report.differing_bytes, report.compared_bytes);
        say(&format!("{target} differs from its hashes in {differing} of {compared} bytes compared{more}"));
        if report.target_bytes < report.volume_bytes {
            say(&format!("the target is smaller: {} bytes", report.target_bytes));
        }
    }
    Ok(if report.identical { Outcome::Done } else { Outcome::Wrong })
}
