//! `cargo xtask bench restart`: how long a start takes until the protection is live, and until its first mark is durable
//! and on the replica; after a SIGKILL, where it goes on with what its probes recorded, and after the probes are gone too,
//! as with an unclean stop of the machine, where it compares the whole volume. Same volume, same change, one run.
//!
//! AFTERWRITE_REPEATS is how often each is measured (default 3), AFTERWRITE_FILL_GIB how much of the 8 GiB is filled
//! with random bytes (default 2; the rest are holes), AFTERWRITE_TMP where volume, journal and replica are: a disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Result, ensure};

const GIB: u64 = 1 << 30;
const VOLUME_BYTES: u64 = 8 * GIB;
const CHANGED_BYTES: u64 = 100 * MIB;
const CHANGE_BYTES: u64 = 64 << 10;
/// Longer than the first copy takes on a slow disk.
const COPY_MAX: Duration = Duration::from_secs(3600);

/// From the start of the process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Took {
    live: Duration,
    first_mark: Duration,
}

fn main() -> Result<()> {
    let repeats = number_from_env("AFTERWRITE_REPEATS", 3).max(1);
    let filled_bytes = number_from_env("AFTERWRITE_FILL_GIB", 2).min(8) * GIB;
    let mut random = Random::new(seed());
    let dir = scratch()?;
    let image = dir.path().join("volume.img");
    blank_image(&image, VOLUME_BYTES)?;
    fill_random(&image, filled_bytes, &mut random)?;
    // Reads of it are reads of the disk.
    let volume = Loop::direct(&image)?;
    let protection = Protection::new(volume.path())?.arg("--mark-every").arg("never");

    let begun = Instant::now();
    let mut protect = protection.spawn()?;
    wait_for_first_mark(&mut protect, begun)?;
    println!(
        "first copy: {:.1} s, of {} GiB filled {}",
        begun.elapsed().as_secs_f64(),
        8,
        filled_bytes / GIB
    );

    let (mut adopted, mut compared) = (Vec::new(), Vec::new());
    for repeat in 1..=repeats {
        for (name, detached, results) in [("adopted", false, &mut adopted), ("compared", true, &mut compared)]
        {
            change(volume.path(), filled_bytes, &mut random)?;
            protect.wait_for("has read what changed", |status| status[0]["pending_bytes"] == 0)?;
            protect.kill()?;
            if detached {
                run(protection.client().arg("detach").arg(volume.path()))?;
            }
            let begun = Instant::now();
            protect = protection.spawn()?;
            let took = wait_for_first_mark(&mut protect, begun)?;
            let status = protect.status()?;
            ensure!((status[0]["probes"] == "new") == detached, "not {name}: {status}");
            println!(
                "repeat {repeat}, {name}: live after {:.2} s, first mark on the replica after {:.2} s, {} MiB journaled",
                took.live.as_secs_f64(),
                took.first_mark.as_secs_f64(),
                status[0]["journaled_bytes"].as_u64().unwrap_or(0) / MIB
            );
            results.push(took);
        }
    }
    protect.stop()?;
    assert_identical(volume.path(), protection.target())?;
    let (adopted, compared) = (median(&adopted), median(&compared));
    let line = |what: &str, of: fn(&Took) -> Duration| {
        let (fast, slow) = (of(&adopted).as_secs_f64(), of(&compared).as_secs_f64());
        println!(
            "{what}: {fast:.2} s after SIGKILL, {slow:.2} s with a full compare: {:.1} times",
            slow / fast
        );
    };
    println!(
        "medians of {repeats}, {} MiB changed of 8 GiB ({} GiB filled)",
        CHANGED_BYTES / MIB,
        filled_bytes / GIB
    );
    line("live", |took| took.live);
    line("first mark on the replica", |took| took.first_mark);
    println!("source and replica are identical");
    Ok(())
}

/// Waits until it is live, and until a mark of this life is durable and on the replica.
fn wait_for_first_mark(protect: &mut Protect<'_>, begun: Instant) -> Result<Took> {
    let mut live = None;
    wait_until("the first mark is on the replica", COPY_MAX, || {
        ensure!(!protect.has_ended()?, "protect has ended: {}", protect.log());
        // No answer yet.
        let Ok(status) = protect.status() else { return Ok(false) };
        let status = &status[0];
        if live.is_none() && status["state"] == "live" {
            live = Some(begun.elapsed());
            protect.mark("measured")?;
            return Ok(false);
        }
        let replica = &status["replica"];
        Ok(live.is_some() && replica["consistent"] == true && replica["mark"] == status["last_mark"]["id"])
    })?;
    Ok(Took { live: live.expect("waited for"), first_mark: begun.elapsed() })
}

/// Writes at random places of what is filled, and syncs.
fn change(device: &Path, filled_bytes: u64, random: &mut Random) -> Result<()> {
    let file = File::options().write(true).open(device)?;
    for _ in 0..CHANGED_BYTES / CHANGE_BYTES {
        let at = random.below(filled_bytes / CHANGE_BYTES) * CHANGE_BYTES;
        file.write_all_at(&random.bytes(usize::try_from(CHANGE_BYTES)?), at)?;
    }
    Ok(file.sync_all()?)
}

fn median(all: &[Took]) -> Took {
    let middle = |of: fn(&Took) -> Duration| {
        let mut times: Vec<Duration> = all.iter().map(of).collect();
        times.sort();
        times[times.len() / 2]
    };
    Took { live: middle(|took| took.live), first_mark: middle(|took| took.first_mark) }
}
