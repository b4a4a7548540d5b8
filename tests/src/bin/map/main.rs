//! `cargo xtask bench map`: how long after a file is closed its map is in the cache, and how many saves a second are followed,
//! beside inotifywait, which only says that a file was closed, and lsyncd, which copies it. Files of 4 KiB to 1 MiB (each size from
//! power to power as likely as the next), every eighth in pieces of 4 KiB, are written on ext4 and xfs over memory, each a new one,
//! paced for the latency and as fast as it goes for the rate. The writer reads the clock when close has returned; in the rows `fsync`
//! when fsync has, and closes later.
//!
//! AFTERWRITE_SAVES is how many saves are measured each time (default 4000).

mod follower;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::Result;

use follower::{AfterwriteMap, Follower, InotifyWait, Lsyncd};

const VOLUME_BYTES: u64 = 2 << 30;
const PACE: Duration = Duration::from_millis(4);
/// So many of the newest files are kept.
const KEPT: usize = 400;
/// lsyncd takes too long for more.
const LSYNCD_SAVES: usize = 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Saved {
    Closed,
    Synced,
}

impl Saved {
    /// As maps say it.
    fn why(self) -> &'static str {
        match self {
            Saved::Closed => "close",
            Saved::Synced => "fsync",
        }
    }
}

fn main() -> Result<()> {
    let saves = usize::try_from(number_from_env("AFTERWRITE_SAVES", 4000))?;
    println!(
        "{saves} saves each; latency in ms from close, or fsync, to the record (inotifywait: the line; lsyncd: the copy)"
    );
    println!(
        "{:5} {:22} {:>8} {:>8} {:>8} {:>8} {:>8}   {:>9} {:>9} {:>6}",
        "on", "who", "p50", "p99", "p99.9", "max", "own p99", "saves/s", "followed", "missed"
    );
    for fs in [Fs::Ext4, Fs::Xfs] {
        let disk = Loop::new(VOLUME_BYTES)?;
        let mount = Mount::make(fs, disk.path())?;
        let tree = mount.point().join("tree");
        std::fs::create_dir(&tree)?;
        let (memory, on_disk) = (scratch()?, tempfile::tempdir_in("/var/tmp")?);
        for (who, saved) in [("nobody", Saved::Closed), ("nobody, fsync", Saved::Synced)] {
            println!("{:5} {:22} {:>56.0}", fs.name(), who, flood(&tree, "alone", saves, saved)?.0);
            clear(&tree)?;
        }
        for (who, saved) in [
            ("map, cache in memory", Saved::Closed),
            ("map, cache on disk", Saved::Closed),
            ("map in memory, fsync", Saved::Synced),
            ("map on disk, fsync", Saved::Synced),
            ("inotifywait", Saved::Closed),
            ("lsyncd", Saved::Closed),
        ] {
            let mut follower: Box<dyn Follower> = match who {
                "map, cache in memory" | "map in memory, fsync" => {
                    Box::new(AfterwriteMap::start(&tree, memory.path(), saved.why())?)
                }
                "map, cache on disk" | "map on disk, fsync" => {
                    Box::new(AfterwriteMap::start(&tree, on_disk.path(), saved.why())?)
                }
                "inotifywait" => Box::new(InotifyWait::start(&tree)?),
                _ => Box::new(Lsyncd::start(&tree, memory.path())?),
            };
            let one_by_one = who == "lsyncd";
            let count = if one_by_one { LSYNCD_SAVES } else { saves };
            let mut latencies = paced(&tree, follower.as_mut(), count, one_by_one, saved)?;
            latencies.sort_by(f64::total_cmp);
            let own = follower.own_p99()?;
            let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part).round() as usize];
            let (rate, closed) = flood(&tree, "flood", count, saved)?;
            let begun = Instant::now();
            let mut followed = 0;
            while followed < count && begun.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(10));
                followed = follower.seen()?.iter().filter(|(name, _)| name.starts_with("flood")).count();
            }
            let last = follower.seen()?.values().copied().max().unwrap_or(0);
            let first = closed.first().copied().unwrap_or(0);
            println!(
                "{:5} {:22} {:>8.3} {:>8.3} {:>8.3} {:>8.3} {:>8}   {:>9.0} {:>9.0} {:>6}",
                fs.name(),
                who,
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0),
                own.map_or_else(String::new, |own| format!("{own:.3}")),
                rate,
                followed as f64 * 1e9 / last.saturating_sub(first).max(1) as f64,
                count - followed,
            );
            drop(follower);
            clear(&tree)?;
        }
        mount.unmount()?;
    }
    Ok(())
}

/// Milliseconds for each; what nobody saw in a minute is that minute.
fn paced(
    tree: &Path,
    follower: &mut dyn Follower,
    saves: usize,
    one_by_one: bool,
    saved: Saved,
) -> Result<Vec<f64>> {
    let (mut random, mut closed, mut open) = (Random::new(1), Vec::new(), None);
    for n in 0..saves {
        let name = format!("paced{n}");
        let begun = Instant::now();
        let file = save(&tree.join(&name), &mut random, n, saved)?;
        closed.push((name, monotonic_ns()?));
        // The one before is closed now, at the latest.
        drop(std::mem::replace(&mut open, file));
        match one_by_one {
            true => follower.wait_for(n + 1)?,
            false => std::thread::sleep(PACE.saturating_sub(begun.elapsed())),
        }
        forget(tree, "paced", n)?;
    }
    follower.wait_for(saves)?;
    let seen = follower.seen()?;
    let latency = |(name, closed): &(String, u64)| {
        // Before close returned: at once.
        seen.get(name).map_or(60_000.0, |seen| seen.saturating_sub(*closed) as f64 / 1e6)
    };
    Ok(closed.iter().map(latency).collect())
}

/// Saves a second, and when each was closed.
fn flood(tree: &Path, prefix: &str, saves: usize, saved: Saved) -> Result<(f64, Vec<u64>)> {
    let (mut random, mut closed) = (Random::new(1), Vec::new());
    let begun = Instant::now();
    for n in 0..saves {
        save(&tree.join(format!("{prefix}{n}")), &mut random, n, saved)?;
        closed.push(monotonic_ns()?);
        forget(tree, prefix, n)?;
    }
    Ok((saves as f64 / begun.elapsed().as_secs_f64(), closed))
}

/// Returns the file if it is to stay open.
fn save(path: &Path, random: &mut Random, n: usize, saved: Saved) -> Result<Option<File>> {
    static BYTES: [u8; 1 << 20] = [7; 1 << 20];
    // From 4 KiB to 1 MiB.
    let power = 12 + random.below(9);
    let len = usize::try_from(((1 << power) + random.below(1 << power)).min(1 << 20))?;
    let file = File::create(path)?;
    if n.is_multiple_of(8) {
        for at in (0..len).step_by(8192) {
            file.write_all_at(&BYTES[..4096], at as u64)?;
        }
    } else {
        file.write_all_at(&BYTES[..len], 0)?;
    }
    if saved == Saved::Closed {
        return Ok(None);
    }
    file.sync_all()?;
    Ok(Some(file))
}

fn forget(tree: &Path, prefix: &str, n: usize) -> Result<()> {
    match n.checked_sub(KEPT) {
        Some(old) => Ok(std::fs::remove_file(tree.join(format!("{prefix}{old}")))?),
        None => Ok(()),
    }
}

fn clear(tree: &Path) -> Result<()> {
    for entry in std::fs::read_dir(tree)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn monotonic_ns() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec())?)
}
