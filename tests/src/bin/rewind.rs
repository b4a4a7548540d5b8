//! `cargo xtask bench rewind`: what it takes to have an earlier point: `rewind` of the replica where it stands, beside `replay`
//! to a new target; and both again when history was folded. The volume is filled, rewritten so many times, and then as much
//! as a hundredth of it is written at random places, 4 KiB each; the point is the one before that.
//!
//! AFTERWRITE_VOLUME_GIB (default 4) and AFTERWRITE_REWRITES (default 0) say how much, AFTERWRITE_WITHIN in how many hundredths
//! of the volume those places are (default 100, everywhere), AFTERWRITE_REPEATS how often each is measured (default 3),
//! AFTERWRITE_TMP where all of it is: a disk. Nothing is in the page cache when a command begins; bytes are those of its
//! system calls.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

const GIB: u64 = 1 << 30;
const PIECE: u64 = 4 << 10;
/// Longer than any of it takes on a slow disk.
const LONG: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
struct Took {
    seconds: f64,
    read_bytes: f64,
    written_bytes: f64,
    peak_bytes: f64,
}

fn main() -> Result<()> {
    let volume_bytes = number_from_env("AFTERWRITE_VOLUME_GIB", 4).max(1) * GIB;
    let rewrites = number_from_env("AFTERWRITE_REWRITES", 0);
    let within = number_from_env("AFTERWRITE_WITHIN", 100).clamp(1, 100);
    let repeats = number_from_env("AFTERWRITE_REPEATS", 3).max(1);
    let mut random = Random::new(seed());
    let dir = scratch()?;
    let image = dir.path().join("volume.img");
    blank_image(&image, volume_bytes)?;
    fill_random(&image, volume_bytes, &mut random)?;
    let volume = Loop::direct(&image)?;
    let protection = Protection::new(volume.path())?.arg("--mark-every").arg("never");
    let mut protect = protection.spawn()?;
    wait_until("the volume is copied", LONG, || Ok(state(&protect) == "live" || protect.has_ended()?))?;
    protect.mark("first")?;
    for nth in 1..=rewrites {
        fill_random(volume.path(), volume_bytes, &mut random)?;
        protect.mark(&format!("rewritten-{nth}"))?;
        at_rest(&mut protect)?;
    }
    at_rest(&mut protect)?;
    // The next start seals the segment.
    protect.stop()?;
    let before = protection.points()?.last().context("no point")?["id"].to_string();
    let protect = protection.start()?;
    change(volume.path(), volume_bytes, within, &mut random)?;
    protect.mark("after")?;
    protect.stop()?;
    println!(
        "volume {} GiB, rewritten {rewrites} times, then {} MiB in {within} % of it; medians of {repeats}",
        volume_bytes / GIB,
        volume_bytes / 100 / MIB
    );
    measure("whole history", &protection, &before, repeats)?;
    let prune =
        ["journal", "prune", "--keep-all", "0s", "--keep-marks", "0s", "--hourly", "1", "--drop-labelled"];
    let pruned = finish(afterwrite().args(prune).arg(protection.journal()), LONG)?;
    ensure!(pruned.code == Some(0), "{}", pruned.stderr);
    measure("folded", &protection, &before, repeats)
}

fn state(protect: &Protect<'_>) -> String {
    protect
        .volume_status()
        .map_or_else(|_| String::new(), |status| status["state"].as_str().unwrap_or_default().into())
}

/// Waits until the replica is at the last mark.
fn at_rest(protect: &mut Protect<'_>) -> Result<()> {
    wait_until("the replica is at the last mark", LONG, || {
        let status = protect.volume_status()?;
        Ok(status["replica"]["mark"] == status["last_mark"]["id"])
    })
}

fn measure(history: &str, protection: &Protection, before: &str, repeats: u64) -> Result<()> {
    let before = format!("mark:{before}");
    println!("{history}: journal {} MiB", bytes_in(protection.journal())? / MIB);
    let new = protection.dir().join("replayed.img");
    let rewind = |to: &str| {
        let mut rewind = afterwrite();
        rewind.arg("rewind").arg(protection.target()).arg("--journal").arg(protection.journal());
        rewind.args(["--to", to]);
        rewind
    };
    let mut all =
        [("replay to before", Vec::new()), ("rewind to before", Vec::new()), ("and on to after", Vec::new())];
    for _ in 0..repeats {
        let mut replay = afterwrite();
        replay.arg("replay").arg(protection.journal()).args(["--to", &before, "--target"]).arg(&new);
        all[0].1.push(run_measured(&mut replay)?);
        all[1].1.push(run_measured(&mut rewind(&before))?);
        let same = finish(Command::new("cmp").arg(&new).arg(protection.target()), LONG)?;
        ensure!(same.code == Some(0), "rewind and replay differ: {}", same.stdout);
        all[2].1.push(run_measured(&mut rewind("mark:after"))?);
        std::fs::remove_file(&new)?;
    }
    for (what, took) in &all {
        let middle = |of: fn(&Took) -> f64| median(&took.iter().map(of).collect::<Vec<_>>());
        println!(
            "  {what}: {:.2} s, {:.0} MiB read, {:.0} MiB written, {:.0} MiB of memory at most",
            middle(|took| took.seconds),
            middle(|took| took.read_bytes) / MIB as f64,
            middle(|took| took.written_bytes) / MIB as f64,
            middle(|took| took.peak_bytes) / MIB as f64
        );
    }
    Ok(())
}

fn run_measured(command: &mut Command) -> Result<Took> {
    nix::unistd::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let number = |text: &str, name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let (mut peak_kib, mut seconds) = (0.0, 0.0);
    wait_until("it has ended", LONG, || {
        peak_kib = proc("status").ok().and_then(|status| number(&status, "VmHWM:")).unwrap_or(peak_kib);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        seconds = begun.elapsed().as_secs_f64();
        Ok(waitid(Id::Pid(pid), flags)? != nix::sys::wait::WaitStatus::StillAlive)
    })?;
    // It is not waited for yet, so its counts are still there.
    let io = proc("io")?;
    let bytes = |name: &str| number(&io, name).with_context(|| format!("no {name} in {io}"));
    let (read_bytes, written_bytes) = (bytes("rchar:")?, bytes("wchar:")?);
    let status = child.wait()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(Took { seconds, read_bytes, written_bytes, peak_bytes: peak_kib * 1024.0 })
}

fn change(device: &Path, volume_bytes: u64, within: u64, random: &mut Random) -> Result<()> {
    let file = File::options().write(true).open(device)?;
    for _ in 0..volume_bytes / 100 / PIECE {
        let at = random.below(volume_bytes * within / 100 / PIECE) * PIECE;
        file.write_all_at(&random.bytes(usize::try_from(PIECE)?), at)?;
    }
    Ok(file.sync_all()?)
}

fn bytes_in(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
