//! What may watch a volume while it is written.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Between bpftrace's programs being loaded and their being attached.
const ATTACHING: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    Untraced,
    Afterwrite(Capture),
    Blktrace,
    Bpftrace,
}

impl fmt::Display for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tracer::Untraced => "untraced",
            Tracer::Afterwrite(Capture::Extents) => "extents",
            Tracer::Afterwrite(Capture::Payload) => "payload",
            Tracer::Afterwrite(Capture::Overloaded) => "payload, overloaded",
            Tracer::Blktrace => "blktrace",
            Tracer::Bpftrace => "bpftrace",
        })
    }
}

/// Processes that trace; ended and waited for when dropped.
pub struct Tracing {
    processes: Vec<Child>,
}

impl Drop for Tracing {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let pid = Pid::from_raw(i32::try_from(process.id()).expect("process ids are small"));
            // One that has ended by itself has nothing left to write out.
            let _ = kill(pid, Signal::SIGINT);
            drop(process.wait());
        }
    }
}

/// Why blktrace does not work here; `None` where it does. A kernel that is locked down refuses it debugfs.
pub fn blktrace_obstacle(device: &Path, dir: &Path, debugfs: &Path) -> Result<Option<String>> {
    let mut once = blktrace_of(device, dir, debugfs);
    once.args(["-w", "1"]);
    let tried = finish(&mut once, PATIENCE)?;
    let works = tried.code == Some(0) && !tried.stderr.contains("FAILED");
    Ok((!works).then(|| tried.stderr.lines().next().unwrap_or_default().to_owned()))
}

/// blktrace with its defaults: all it can see, to files.
pub fn blktrace(device: &Path, dir: &Path, debugfs: &Path) -> Result<Tracing> {
    let mut command = blktrace_of(device, dir, debugfs);
    let tracing = Tracing { processes: vec![spawn(&mut command, &dir.join("log"))?] };
    let enable = trace_of(device)?.join("enable");
    wait_until("blktrace traces", PATIENCE, || Ok(std::fs::read_to_string(&enable)?.trim() == "1"))?;
    Ok(tracing)
}

fn blktrace_of(device: &Path, dir: &Path, debugfs: &Path) -> Command {
    let mut command = Command::new("blktrace");
    command.arg("-d").arg(device).arg("-D").arg(dir).arg("-r").arg(debugfs);
    command
}

/// A line for each write, at the tracepoint where Afterwrite sees it too: at submission.
pub fn bpftrace(device: &Path, dir: &Path) -> Result<Tracing> {
    let name = name_of(device)?;
    let (major, minor) = number_of(name)?;
    let tracepoint = match Path::new("/sys/block").join(name).join("mq").exists() {
        true => "block_rq_issue",
        false => "block_bio_queue",
    };
    let program = format!(
        "tracepoint:block:{tracepoint} /args->dev == {} && strncmp(args->rwbs, \"W\", 1) == 0/ \
         {{ printf(\"%llu %d %llu %u\\n\", nsecs, pid, args->sector, args->nr_sector); }}",
        major << 20 | minor
    );
    let mut command = Command::new("bpftrace");
    command.arg("-o").arg(dir.join("events")).args(["-e", &program]);
    let log = dir.join("log");
    let mut tracing = Tracing { processes: vec![spawn(&mut command, &log)?] };
    let process = &mut tracing.processes[0];
    let fds = format!("/proc/{}/fd", process.id());
    wait_until("bpftrace has loaded its program", PATIENCE, || {
        ensure!(process.try_wait()?.is_none(), "bpftrace: {}", std::fs::read_to_string(&log)?);
        let links =
            std::fs::read_dir(&fds)?.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        Ok(links.into_iter().any(|link| link.to_string_lossy().contains("bpf-prog")))
    })?;
    std::thread::sleep(ATTACHING);
    Ok(tracing)
}

/// How many events it has seen, if it has told; what it lost is in the log.
pub fn bpftrace_events(dir: &Path) -> Result<String> {
    let events = std::fs::read(dir.join("events"))?;
    let lines = events.iter().filter(|byte| **byte == b'\n').count();
    let log = std::fs::read_to_string(dir.join("log"))?;
    let all = String::from_utf8_lossy(&events);
    let lost: u64 = all
        .lines()
        .chain(log.lines())
        .filter_map(|line| line.strip_prefix("Lost ")?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    Ok(format!("{lines} lines, {lost} lost"))
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let log = File::create(log)?;
    let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot run {command:?}: is it installed?"))
}

fn name_of(device: &Path) -> Result<&str> {
    device.file_name().and_then(|name| name.to_str()).context("a device has a name")
}

fn trace_of(device: &Path) -> Result<PathBuf> {
    Ok(Path::new("/sys/block").join(name_of(device)?).join("trace"))
}

fn number_of(name: &str) -> Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/sys/block/{name}/dev"))?;
    let (major, minor) = text.trim().split_once(':').context("MAJOR:MINOR")?;
    Ok((major.parse()?, minor.parse()?))
}
