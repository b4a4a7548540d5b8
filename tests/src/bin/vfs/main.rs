//! `cargo xtask bench vfs`: what seeing changes of files costs who makes them. A writer writes 4 KiB at a time over and over into a
//! file in memory (tmpfs) and on ext4 over memory, and makes and removes files there, without probes, with probes that watch
//! another file system, and with probes that watch this one, and with inotifywait and lsyncd in their place, in turns. Told are the
//! medians of the writer's processor time for each operation with the lowest and highest, how that is to the time when nobody watches, how many operations
//! a second were watched so, and how many events of all rounds the watcher missed (of lsyncd that is not known).
//!
//! AFTERWRITE_ROUNDS is how often each is measured (default 5), AFTERWRITE_SECONDS how long (default 2), AFTERWRITE_FILE_RUNG the rung
//! (default: the best).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Result, ensure};

const BLOCK: usize = 4096;
const FILE_BLOCKS: u64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    Elsewhere,
    Here,
    Inotifywait,
    Lsyncd,
}

impl Who {
    const ALL: [Who; 5] = [Who::Nobody, Who::Elsewhere, Who::Here, Who::Inotifywait, Who::Lsyncd];

    fn in_words(self) -> &'static str {
        match self {
            Who::Nobody => "nobody",
            Who::Elsewhere => "probes, of another",
            Who::Here => "probes, of it",
            Who::Inotifywait => "inotifywait",
            Who::Lsyncd => "lsyncd",
        }
    }
}

#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    run: fn(&Path, Duration) -> Result<u64>,
}

const WORKS: [Work; 2] =
    [Work { name: "pwrite of 4 KiB", run: write }, Work { name: "create, write, unlink", run: churn }];

fn main() -> Result<()> {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (rounds, length) =
        (number("AFTERWRITE_ROUNDS", 5), Duration::from_secs(number("AFTERWRITE_SECONDS", 2)));
    let tmpfs = mount_tmpfs(64 * MIB)?;
    let disk = Loop::new(96 * MIB)?;
    let ext4 = Mount::make(Fs::Ext4, disk.path())?;
    let other = mount_tmpfs(MIB)?;
    println!("{rounds} rounds of {} s for each; medians", length.as_secs());
    println!(
        "| On | Operation | Watched by | ns of processor each (lowest to highest) | to nobody | each second | missed |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (fs, mount) in [("tmpfs", &tmpfs), ("ext4", &ext4)] {
        for work in WORKS {
            let (mut costs, mut rates): ([Vec<f64>; 5], [Vec<f64>; 5]) = Default::default();
            let mut missed = [0; 5];
            for _ in 0..rounds {
                for (at, who) in Who::ALL.into_iter().enumerate() {
                    let (costs, rates, missed) = (&mut costs[at], &mut rates[at], &mut missed[at]);
                    // Without what an earlier round left.
                    let dir = tempfile::tempdir_in(mount.point())?;
                    let watch = Watch::begin(who, dir.path(), other.point())?;
                    let (begun, used) = (Instant::now(), processor_ns()?);
                    let done = (work.run)(dir.path(), length)? as f64;
                    costs.push((processor_ns()? - used) / done);
                    rates.push(done / begun.elapsed().as_secs_f64());
                    *missed += watch.map_or(0, Watch::end);
                }
            }
            let alone = median(&costs[0]);
            for (at, who) in Who::ALL.into_iter().enumerate() {
                let costs = &costs[at];
                let each = median(costs);
                let lowest = costs.iter().copied().fold(f64::INFINITY, f64::min);
                let highest = costs.iter().copied().fold(0.0, f64::max);
                let missed = if who == Who::Lsyncd { String::new() } else { missed[at].to_string() };
                println!(
                    "| {fs} | {} | {} | {each:.0} ({lowest:.0} to {highest:.0}) | {:.2} | {:.0} | {missed} |",
                    work.name,
                    who.in_words(),
                    each / alone,
                    median(&rates[at])
                );
            }
        }
    }
    for mount in [tmpfs, ext4, other] {
        mount.unmount()?;
    }
    Ok(())
}

/// Of this thread so far: other work on the machine adds nothing to it.
fn processor_ns() -> Result<f64> {
    let used = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(used.tv_sec() as f64 * 1e9 + used.tv_nsec() as f64)
}

fn write(dir: &Path, length: Duration) -> Result<u64> {
    let (file, block) = (File::create(dir.join("written"))?, [7u8; BLOCK]);
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < length {
        for _ in 0..64 {
            file.write_all_at(&block, done % FILE_BLOCKS * BLOCK as u64)?;
            done += 1;
        }
    }
    Ok(done)
}

fn churn(dir: &Path, length: Duration) -> Result<u64> {
    let begun = Instant::now();
    let mut done = 0u64;
    while begun.elapsed() < length {
        let path = dir.join(format!("file{done}"));
        std::fs::write(&path, b"some bytes")?;
        std::fs::remove_file(&path)?;
        done += 1;
    }
    Ok(done)
}

/// A watcher at work, and what it says.
struct Watch {
    watcher: Watcher,
    /// Events that it says it missed.
    missed: Option<JoinHandle<u64>>,
    _target: Option<tempfile::TempDir>,
}

impl Watch {
    fn begin(who: Who, dir: &Path, other: &Path) -> Result<Option<Watch>> {
        Ok(match who {
            Who::Nobody => None,
            Who::Elsewhere => Some(Watch::probes(other)?),
            Who::Here => Some(Watch::probes(dir)?),
            Who::Inotifywait => {
                let mut watcher = Watcher::inotifywait(dir, "modify,create,delete,close_write")?;
                // It has no name for what overflows its queue.
                let missed = lines(watcher.output()?, |line| u64::from(line.is_empty()));
                Some(Watch { watcher, missed: Some(missed), _target: None })
            }
            Who::Lsyncd => {
                let target = scratch()?;
                let watcher = Watcher::lsyncd(dir, target.path(), &[])?;
                Some(Watch { watcher, missed: None, _target: Some(target) })
            }
        })
    }

    /// `afterwrite changes`, saying nothing but what is missing.
    fn probes(dir: &Path) -> Result<Watch> {
        let mut command = Command::new(binary());
        command.args(["changes", "--quiet"]);
        if let Ok(rung) = std::env::var("AFTERWRITE_FILE_RUNG") {
            command.args(["--rung", &rung]);
        }
        let mut watcher = Watcher::start(command.arg(dir).stdout(Stdio::piped()))?;
        let mut output = watcher.output()?;
        let mut first = String::new();
        output.read_line(&mut first)?;
        ensure!(first.contains("rung"), "afterwrite changes said {first:?}");
        let mut lost = 0;
        let missed = lines(output, move |line| {
            let counters: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            let now = counters["lost"].as_u64().unwrap_or(0);
            now - std::mem::replace(&mut lost, now)
        });
        Ok(Watch { watcher, missed: Some(missed), _target: None })
    }

    fn end(self) -> u64 {
        drop(self.watcher);
        self.missed.map_or(0, |missed| missed.join().expect("it reads lines without a panic"))
    }
}

/// The sum of what `missed` makes of each.
fn lines(
    output: BufReader<ChildStdout>,
    mut missed: impl FnMut(&str) -> u64 + Send + 'static,
) -> JoinHandle<u64> {
    std::thread::spawn(move || output.lines().map_while(Result::ok).map(|line| missed(&line)).sum())
}
