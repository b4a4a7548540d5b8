use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use crate::cli::{Outcome, Output};
use crate::io::clock::realtime;
use crate::journal::Journal;
use crate::model::{FileBurst, FileChanges, Lsn, Origin, OriginUnknown, Timestamp};
use crate::restore::{OriginQuery, PathGlob, files_at, origins};

/// Show who changed which file and when, as the journal says
///
/// Paths are those within the volume's file system, from its root. A line is what one process did to one file within a tenth
/// of a second. Whiles of which it is not known are shown, too, and bursts: programs of one name that spoiled or removed 100 files within ten seconds which
/// they had not made. What is written to the device itself, past its file system (`dd of=/dev/sdb1`), changes no file and is not told.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  afterwrite log /var/lib/afterwrite/home --file '*.doc' --since 2026-01-31T12:00:00Z
  afterwrite log /var/lib/afterwrite/home --process rm --json
  afterwrite log /var/lib/afterwrite/home --at 104857600    # who wrote what lies 100 MiB into the volume")]
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
    /// Only from then on: 2026-01-31T12:00:00Z, or so long ago: 5m, 2h
    #[arg(long, value_name = "TIME", value_parser = time_or_ago)]
    since: Option<Timestamp>,
    /// Only until then, or until so long ago
    #[arg(long, value_name = "TIME", value_parser = time_or_ago)]
    until: Option<Timestamp>,
    /// Only changes of what lies or lay at this byte of the volume
    #[arg(long, value_name = "BYTE")]
    at: Option<u64>,
    /// Only bursts, which `--to before-burst:` of `replay` counts from 1
    #[arg(long, conflicts_with_all = ["file", "process", "pid", "cgroup", "at"])]
    bursts: bool,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// `--json`: a line for each record. `lsn`, and either `process` (`pid`, `start_ns`, `cgroup`, `name`), `file` (`inode`,
/// `generation`, `dev`), `path`, perhaps `new_path`, `ops`, `first`, `last`, `count`, `ranges` (of the file: `start`, `end`);
/// `unknown` (`from`, `to`, `missing`, `why`); or `burst` (`process`, `began`, `recognised`, `rewritten`, `removed`, `sampled`,
/// `random`, `compared`, `spoiled`).
#[derive(Default, Serialize)]
struct Line<'a> {
    lsn: Lsn,
    #[serde(flatten)]
    changes: Option<&'a FileChanges>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<&'a OriginUnknown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<&'a FileBurst>,
}

fn time_or_ago(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
        return Ok(Timestamp(realtime().0.saturating_sub(ago)));
    }
    text.parse()
        .map_err(|error| format!("{error}; a time is 2026-01-31T12:00:00Z, or 5m for five minutes ago"))
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
        bytes: args.at.map(|byte| files_at(&journal, byte)).transpose().with_context(cannot)?,
    };
    let mut printed = Ok(());
    origins(&journal, |lsn, origin| {
        let wanted = match &origin {
            Origin::Changes(changes) => !args.bursts && query.takes(changes),
            Origin::Unknown(unknown) => !args.bursts && query.takes_unknown(unknown),
            Origin::Burst(burst) => args.at.is_none() && query.takes_burst(burst),
            // What `at` is looked up in.
            Origin::Places(_) => false,
        };
        if wanted {
            printed = print(lsn, &origin, args.json, out);
        }
        printed.is_ok() && !out.is_closed()
    })
    .with_context(cannot)?;
    printed?;
    Ok(Outcome::Done)
}

fn print(lsn: Lsn, origin: &Origin, json: bool, out: &mut Output) -> anyhow::Result<()> {
    match origin {
        _ if json => out.json(&match origin {
            Origin::Changes(changes) => Line { lsn, changes: Some(changes), ..Line::default() },
            Origin::Unknown(unknown) => Line { lsn, unknown: Some(unknown), ..Line::default() },
            Origin::Burst(burst) => Line { lsn, burst: Some(burst), ..Line::default() },
            Origin::Places(_) => return Ok(()),
        }),
        Origin::Changes(FileChanges { process, path, new_path, ops, first, count, .. }) => {
            let path = if path.is_empty() { "?".to_owned() } else { path.escape_ascii().to_string() };
            let to =
                if new_path.is_empty() { String::new() } else { format!(" -> {}", new_path.escape_ascii()) };
            let times = if *count == 1 { String::new() } else { format!(" ({count})") };
            let name = process.name.escape_ascii();
            out.line(format_args!("{first}  {name} ({})  {ops}{times}  {path}{to}", process.pid))
        }
        Origin::Places(_) => Ok(()),
        Origin::Unknown(OriginUnknown { from, to, missing, why }) => {
            let missing = if *missing == 0 { String::new() } else { format!(", {missing} changes") };
            out.line(format_args!("{from}  not known until {to}{missing}: {why}"))
        }
        Origin::Burst(burst) => {
            let FileBurst { process, began, rewritten, removed, sampled, random, compared, spoiled, .. } =
                burst;
            let name = process.name.escape_ascii();
            out.line(format_args!(
                "{began}  BURST {name} ({})  {rewritten} files rewritten, {removed} removed; {random} of {sampled} looked into \
                 hold random bytes, {spoiled} of {compared} compared with before are spoiled",
                process.pid
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_be_so_long_ago() {
        assert_eq!(time_or_ago("1970-01-01T00:00:01Z"), Ok(Timestamp(1_000_000_000)));
        let before = realtime().0;
        let ago = time_or_ago("2m").unwrap().0;
        assert!((before..=realtime().0).contains(&(ago + 120 * 1_000_000_000)), "{ago} {before}");
        assert_eq!(time_or_ago("100000years"), Ok(Timestamp(0)));
        assert!(time_or_ago("yesterday").unwrap_err().contains("5m for five minutes ago"));
    }
}
