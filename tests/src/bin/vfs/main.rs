//! `cargo xtask bench vfs`: what seeing changes of files costs who makes them. A writer writes 4 KiB at a time over and over into a
//! file in memory (tmpfs) and on ext4 over memory, and makes and removes files there, without probes, with probes that watch
//! another file system, and with probes that watch this one, in turns. Told are the medians of the time for each operation, and
//! the events a second.
//!
//! AFTERWRITE_ROUNDS is how often each is measured (default 5), AFTERWRITE_SECONDS how long (default 2), AFTERWRITE_FILE_RUNG the rung
//! (default: the best).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result};

const BLOCK: usize = 4096;
const FILE_BLOCKS: u64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Probes {
    None,
    Elsewhere,
    Here,
}

impl Probes {
    const ALL: [Probes; 3] = [Probes::None, Probes::Elsewhere, Probes::Here];

    fn in_words(self) -> &'static str {
        match self {
            Probes::None => "no probes",
            Probes::Elsewhere => "watching another",
            Probes::Here => "watching it",
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
    println!("{:6} {:24} {:18} {:>12} {:>12}", "on", "operation", "probes", "ns each", "each second");
    for (fs, mount) in [("tmpfs", &tmpfs), ("ext4", &ext4)] {
        for work in WORKS {
            let mut costs: [Vec<f64>; 3] = Default::default();
            for _ in 0..rounds {
                for (probes, costs) in Probes::ALL.into_iter().zip(&mut costs) {
                    let watched = match probes {
                        Probes::None => None,
                        Probes::Elsewhere => Some(Watcher::begin(other.point())?),
                        Probes::Here => Some(Watcher::begin(mount.point())?),
                    };
                    let begun = Instant::now();
                    let done = (work.run)(mount.point(), length)?;
                    costs.push(begun.elapsed().as_nanos() as f64 / done as f64);
                    drop(watched);
                }
            }
            for (probes, costs) in Probes::ALL.into_iter().zip(&mut costs) {
                let each = median(costs);
                println!(
                    "{fs:6} {:24} {:18} {each:>12.0} {:>12.0}",
                    work.name,
                    probes.in_words(),
                    1e9 / each
                );
            }
        }
    }
    for mount in [tmpfs, ext4, other] {
        mount.unmount()?;
    }
    Ok(())
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

/// `afterwrite changes` at work, saying nothing.
struct Watcher(Child);

impl Watcher {
    fn begin(dir: &Path) -> Result<Watcher> {
        let mut command = Command::new(binary());
        command.args(["changes", "--quiet"]);
        if let Ok(rung) = std::env::var("AFTERWRITE_FILE_RUNG") {
            command.args(["--rung", &rung]);
        }
        let mut child = command.arg(dir).stdout(Stdio::piped()).spawn()?;
        let mut first = String::new();
        let output = child.stdout.take().context("it is piped")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut first)?;
        anyhow::ensure!(first.contains("rung"), "afterwrite changes said {first:?}");
        Ok(Watcher(child))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
