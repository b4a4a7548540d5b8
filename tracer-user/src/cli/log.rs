use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use crate::cli::{Outcome, Output};
use crate::journal::Journal;
use crate::model::{FileChanges, Lsn, Origin, OriginUnknown, Timestamp};
use crate::restore::{OriginQuery, PathGlob, origins};

/// Show who changed which file and when, as the journal says
///
/// Paths are those within the volume's file system, from its root. A line is what one process did to one file within a tenth
/// of a second. Whiles of which it is not known are shown, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  afterwrite log /var/lib/afterwrite/home --file '*.doc' --since 2026-01-31T12:00:00Z
  afterwrite log /var/lib/afterwrite/home --process rm --json")]
pub(super) struct Args {
    /// Directory of the journal
    journal: PathBuf,
    /// Only files whose path matches: /etc/* (not below), /etc/** (below, too), *.doc (in any directory)
    #[arg(long, value_name = "GLOB")]
    file: Option<PathGlob>,
    /// Only processes of this name, as the kernel has it (15 bytes)
    #[arg(long, value_name = "NAME")]
    process: Option<String>,
    /// Only the process of this number
    #[arg(long)]
    pid: Option<u32>,
    /// Only processes of this cgroup, by the number of its directory (`stat -c %i`)
    #[arg(long, value_name = "NUMBER")]
    cgroup: Option<u64>,
    /// Only from then on
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only until then
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// `--json`: a line for each record. `lsn`, and either `process` (`pid`, `start_ns`, `cgroup`, `name`), `file` (`inode`,
/// `generation`, `dev`), `path`, perhaps `new_path`, `ops`, `first`, `last`, `count`, `ranges` (of the file: `start`, `end`); or
/// `unknown` (`from`, `to`, `missing`, `why`).
#[derive(Serialize)]
struct Line<'a> {
    lsn: Lsn,
    #[serde(flatten)]
    changes: Option<&'a FileChanges>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<&'a OriginUnknown>,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let cannot = || format!("cannot read the journal {}", args.journal.display());
    let journal = Journal::open(&args.journal).with_context(cannot)?;
    if journal.info().is_tree() {
        anyhow::bail!(
            "{} is the journal of a directory tree, which does not say who changed what; `afterwrite points` shows its marks, \
             `afterwrite changes` who changes a directory now",
            args.journal.display()
        );
    }
    let query = OriginQuery {
        file: args.file.clone(),
        process: args.process.clone(),
        pid: args.pid,
        cgroup: args.cgroup,
        since: args.since,
        until: args.until,
    };
    let mut printed = Ok(());
    origins(&journal, |lsn, origin| {
        printed = match &origin {
            Origin::Changes(changes) if query.takes(changes) => {
                print(lsn, Some(changes), None, args.json, out)
            }
            Origin::Unknown(unknown) if query.takes_unknown(unknown) => {
                print(lsn, None, Some(unknown), args.json, out)
            }
            _ => Ok(()),
        };
        printed.is_ok() && !out.is_closed()
    })
    .with_context(cannot)?;
    printed?;
    Ok(Outcome::Done)
}

fn print(
    lsn: Lsn,
    changes: Option<&FileChanges>,
    unknown: Option<&OriginUnknown>,
    json: bool,
    out: &mut Output,
) -> anyhow::Result<()> {
    if json {
        return out.json(&Line { lsn, changes, unknown });
    }
    if let Some(OriginUnknown { from, to, missing, why }) = unknown {
        let missing = if *missing == 0 { String::new() } else { format!(", {missing} changes") };
        return out.line(format_args!("{from}  not known until {to}{missing}: {why}"));
    }
    let Some(FileChanges { process, path, new_path, ops, first, count, .. }) = changes else { return Ok(()) };
    let path = if path.is_empty() { "?".to_owned() } else { path.escape_ascii().to_string() };
    let to = if new_path.is_empty() { String::new() } else { format!(" -> {}", new_path.escape_ascii()) };
    let times = if *count == 1 { String::new() } else { format!(" ({count})") };
    let name = process.name.escape_ascii();
    out.line(format_args!("{first}  {name} ({})  {ops}{times}  {path}{to}", process.pid))
}
