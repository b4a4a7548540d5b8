use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::unistd::User;
use serde::Serialize;

use crate::cli::{Outcome, Output, say};
#[cfg(feature = "capture")]
use crate::filemap::Fsyncs;
use crate::filemap::{Criteria, Report, WatchOptions, Why, watch};

/// Map files to the blocks they lie in, each time one is saved, until it is interrupted
///
/// A file is saved when it is closed after it was open for writing, when it gets its name by a rename, and when an fsync of it
/// is over. The map goes to a cache on another file system; `afterwrite copy` copies by it later.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  afterwrite map /srv/data --cache /var/lib/afterwrite/maps --exclude '**/*.tmp' --max-size 1GiB"
)]
pub(super) struct Args {
    /// A directory on the file system; what is below it is mapped
    path: PathBuf,
    /// Directory for the maps, not on the same file system
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// Only files whose path below PATH matches, like '**/*.db'; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// No files whose path below PATH matches
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// No smaller files
    #[arg(long, value_name = "SIZE", default_value = "0B")]
    min_size: ByteSize,
    /// No larger files
    #[arg(long, value_name = "SIZE")]
    max_size: Option<ByteSize>,
    /// Only files of this user, by name or number
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Map a file when it was not saved again for so long, instead of at once
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// Map what is there already, too, unless the cache knows it
    #[arg(long)]
    all: bool,
    /// How often the cache is brought to its disk
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
    sync_every: Duration,
    #[cfg(feature = "capture")]
    #[command(flatten)]
    fsync: super::map_fsync::FsyncArgs,
    /// Say each map, one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Ready {
        path: &'a Path,
        device: Option<&'a Path>,
        /// Files that the cache knows.
        known: usize,
        /// How fsyncs are heard of, if they are.
        fsync: Option<&'a str>,
    },
    Map {
        path: String,
        why: Why,
        number: u64,
        save: u64,
        inode: u64,
        size: u64,
        unsettled: bool,
        extents: &'a [crate::io::fiemap::Extent],
        /// CLOCK_MONOTONIC.
        heard_ns: u64,
        recorded_ns: u64,
    },
    /// A queue was full, for the n-th time.
    Lost(u64),
    Rescanned {
        mapped: u64,
    },
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let criteria = Criteria {
        include: (!args.include.is_empty()).then(|| globs(&args.include)).transpose()?,
        exclude: globs(&args.exclude)?,
        size_min: args.min_size.as_u64(),
        size_max: args.max_size.map_or(u64::MAX, |size| size.as_u64()),
        owner: args.owner.as_deref().map(owner).transpose()?,
        quiet: args.quiet,
    };
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    // Before there is a second thread, which would get them.
    signals.thread_block().context("cannot block signals")?;
    let stop = SignalFd::new(&signals).context("cannot wait for signals")?;
    #[cfg(feature = "capture")]
    let (fsyncs, rung) = match args.fsync.listen(&args.path)? {
        Some(probes) => {
            let rung = probes.rung().to_string();
            (Some(Box::new(probes) as Box<dyn Fsyncs>), Some(rung))
        }
        None => (None, None),
    };
    #[cfg(not(feature = "capture"))]
    let (fsyncs, rung) = (None, None::<String>);
    let options = WatchOptions {
        path: args.path.clone(),
        cache: args.cache.clone(),
        criteria,
        all: args.all,
        sync_every: args.sync_every,
        fsyncs,
    };
    let (mut maps, mut lost, mut written) = (0, 0, Ok(()));
    watch(options, &stop, &mut |report| {
        match &report {
            Report::Mapped { map, .. } if map.why != Why::Settled => maps += 1,
            Report::Ready { path, known, fsyncs, .. } => {
                say(&format!("mapping what is saved below {}; {known} files are known", path.display()));
                if rung.is_some() && !fsyncs {
                    say(
                        "a file that is synced is not mapped before it is closed or renamed: afterwrite does not know how \
                         this file system's handles are made",
                    );
                }
            }
            Report::Lost => {
                lost += 1;
                say(
                    "more was saved than the kernel remembers; looking for what changed (fs.fanotify.max_queued_events)",
                );
            }
            Report::Rescanned { mapped } if *mapped > 0 => {
                say(&format!("{mapped} files had changed while nobody was told"));
            }
            _ => {}
        }
        if args.json && written.is_ok() {
            written = print(out, &report, rung.as_deref(), lost);
        }
    })?;
    written?;
    say(&format!("{maps} maps; the queue was full {lost} times"));
    Ok(Outcome::Done)
}

fn print(out: &mut Output, report: &Report<'_>, rung: Option<&str>, lost: u64) -> anyhow::Result<()> {
    match report {
        Report::Ready { path, device, known, fsyncs } => {
            out.json(&Line::Ready { path, device: *device, known: *known, fsync: rung.filter(|_| *fsyncs) })?;
            out.finish()
        }
        Report::Mapped { map, heard_ns, recorded_ns } => out.json(&Line::Map {
            path: String::from_utf8_lossy(&map.path).into_owned(),
            why: map.why,
            number: map.number,
            save: map.save,
            inode: map.inode,
            size: map.size,
            unsettled: map.is_unsettled(),
            extents: &map.extents,
            heard_ns: *heard_ns,
            recorded_ns: *recorded_ns,
        }),
        Report::Lost => out.json(&Line::Lost(lost)),
        Report::Rescanned { mapped } => out.json(&Line::Rescanned { mapped: *mapped }),
        Report::Idle => out.finish(),
    }
}

fn globs(patterns: &[String]) -> anyhow::Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(glob.with_context(|| format!("{pattern} is no pattern; see --help for an example"))?);
    }
    set.build().context("the patterns are too large")
}

fn owner(name: &str) -> anyhow::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let user = User::from_name(name).context("cannot look up users")?;
    let user = user.with_context(|| format!("there is no user {name}; `getent passwd` lists them"))?;
    Ok(user.uid.as_raw())
}
