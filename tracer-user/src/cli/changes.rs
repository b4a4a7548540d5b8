use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::capture::vfs::{VfsOptions, VfsRung, attach};
use crate::cli::{Outcome, Output};
use crate::io::mount_table::mount_of;
use crate::origin::{FileWatch, Seen};

const POLL: Duration = Duration::from_millis(2);
const EVENTS_MAX: usize = 4096;

/// Show who changes which file of a file system, as it happens, until it is interrupted
///
/// One JSON object a line. The first has `rung`, and `absent`, the hooks this kernel does not have.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite changes /srv/data")]
pub(super) struct Args {
    /// Any path on the file system
    path: PathBuf,
    /// A rung to use instead of the best: fentry, kprobe or syscall
    #[arg(long)]
    rung: Option<VfsRung>,
    /// Report the end of each call that made a change, too
    #[arg(long)]
    ends: bool,
    /// Take the events and say nothing but what is missing, to measure what they cost
    #[arg(long, hide = true)]
    quiet: bool,
    /// Bytes of the ring
    #[arg(long, default_value_t = 8 << 20, hide = true)]
    ring: u32,
}

#[derive(Serialize)]
struct Ready<'a> {
    rung: VfsRung,
    absent: &'a [&'static str],
}

#[derive(Serialize)]
struct Line {
    op: &'static str,
    detail: u32,
    seq: u64,
    /// CLOCK_MONOTONIC, before the change.
    time_ns: u64,
    pid: u32,
    tid: u32,
    process: String,
    cgroup: u64,
    dev: u32,
    inode: u64,
    generation: u32,
    offset: u64,
    length: Option<u64>,
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    new_path: String,
}

#[derive(Serialize)]
struct End {
    end_of: u64,
    time_ns: u64,
    tid: u32,
    result: i64,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let (dev, _) = mount_of(&args.path)
        .with_context(|| format!("cannot tell the file system of {}", args.path.display()))?
        .with_context(|| format!("{} is on no file system that is mounted here", args.path.display()))?;
    let options = VfsOptions { rung: args.rung, ring_bytes: args.ring, ends: args.ends };
    let mut watch = FileWatch::new(attach(&options)?);
    watch.watch(&BTreeSet::from([dev]))?;
    print(out, &Ready { rung: watch.rung(), absent: watch.absent() })?;
    let mut missing = 0;
    loop {
        let seen = watch.drain(EVENTS_MAX);
        if out.is_closed() {
            return Ok(Outcome::Done);
        }
        if seen.is_empty() {
            std::thread::sleep(POLL);
        }
        for seen in seen {
            match seen {
                Seen::Change(..) | Seen::End { .. } if args.quiet => {}
                Seen::Change(change, paths) => print(out, &line(change, paths))?,
                Seen::End { seq, time_ns, tid, result } => {
                    print(out, &End { end_of: seq, time_ns, tid, result })?;
                }
                Seen::NotUnderstood => anyhow::bail!("an event is not understood, please report it"),
            }
        }
        let counters = watch.counters();
        if counters.missing() != missing {
            missing = counters.missing();
            print(out, &counters)?;
        }
    }
}

fn line(change: crate::capture::vfs::VfsChange, paths: crate::origin::Paths) -> Line {
    Line {
        op: change.op.name(),
        detail: change.detail,
        seq: change.seq,
        time_ns: change.time_ns,
        pid: change.process.pid,
        tid: change.tid,
        process: String::from_utf8_lossy(&change.process.name).into_owned(),
        cgroup: change.process.cgroup,
        dev: change.file.dev,
        inode: change.file.inode,
        generation: change.file.generation,
        offset: change.offset,
        length: change.length,
        path: String::from_utf8_lossy(&paths.path).into_owned(),
        new_path: String::from_utf8_lossy(&paths.new_path).into_owned(),
    }
}

fn print(out: &mut Output, value: &impl Serialize) -> anyhow::Result<()> {
    out.json(value)?;
    out.finish()
}
