//! `cargo xtask bench ring`: up to which rate of writes a ring of this size holds what capture puts into it.
//!
//! For each size, and for extents and payload, a writer's rate is doubled step by step until a counter says that capture
//! stepped down (to the bitmap, or from payload to extents), or until the device is no faster. After each step a mark is made and the replica brought to it: the
//! processor time told is that of all of `afterwrite`, from the first write to the replica, for each GiB that was
//! written. The volume is a zram device; journal and replica are on another file system.
//!
//! AFTERWRITE_SECONDS is how long a step is (default 4), AFTERWRITE_DISK a directory on a disk for journal and replica.

use std::path::PathBuf;

use afterwrite_tests::*;
use anyhow::Result;

const RINGS_MIB: [u64; 4] = [1, 4, 16, 64];
const VOLUME_BYTES: u64 = 256 * MIB;
/// A writer that gets less of the rate that was asked for is at the end of its tether.
const ACHIEVED_MIN: f64 = 0.9;
const STEPS_MAX: u32 = 8;
/// As many as a writer has under way.
const UNDER_WAY_MAX: u64 = 32;

/// What a ring came to.
struct Reached {
    capture: Capture,
    ring_mib: u64,
    writer: Writer,
    /// MiB a second that were held, and at which capture stepped down, if it did.
    held_mib: f64,
    degraded_mib: Option<f64>,
    /// Of the last step that was held.
    cpu_seconds_per_gib: f64,
}

fn main() -> Result<()> {
    let disk = PathBuf::from(std::env::var_os("AFTERWRITE_DISK").unwrap_or_else(|| "/var/tmp".into()));
    println!(
        "steps of {} s on zram, {} MiB; journal and replica in {}; processor time until the replica is at a mark behind all \
         writes",
        load_seconds(),
        VOLUME_BYTES / MIB,
        disk.display()
    );
    let mut all = Vec::new();
    for capture in [Capture::Extents, Capture::Payload] {
        for writer in [Writer::Random4K, Writer::Sequential128K] {
            for ring_mib in RINGS_MIB {
                all.push(step_up(capture, writer, ring_mib, &disk)?);
            }
        }
    }
    println!(
        "\n{:8} {:>5}  {:37} {:>10} {:>14} {:>10}",
        "capture", "ring", "writer", "held", "steps down at", "CPU s/GiB"
    );
    for reached in &all {
        let degraded = reached.degraded_mib.map_or("not seen".to_owned(), |mib| format!("{mib:.0} MiB/s"));
        println!(
            "{:8} {:>5}  {:37} {:>4.0} MiB/s {degraded:>14} {:>10.2}",
            format!("{:?}", reached.capture).to_lowercase(),
            format!("{}M", reached.ring_mib),
            reached.writer.to_string(),
            reached.held_mib,
            reached.cpu_seconds_per_gib
        );
    }
    Ok(())
}

fn step_up(capture: Capture, writer: Writer, ring_mib: u64, disk: &std::path::Path) -> Result<Reached> {
    let volume = Zram::new(VOLUME_BYTES)?;
    fill_random(volume.path(), VOLUME_BYTES, &mut Random::new(1))?;
    let dir = tempfile::Builder::new().prefix("afterwrite-bench-").tempdir_in(disk)?;
    let protection = capture.protection(volume.path())?.arg("--ring").arg(format!("{ring_mib}MiB"));
    let protection =
        protection.journal_at(&dir.path().join("journal")).target_at(&dir.path().join("replica.img"));
    let mut protect = protection.start()?;
    brought_to_a_mark(&mut protect)?;

    let mut reached =
        Reached { capture, ring_mib, writer, held_mib: 0.0, degraded_mib: None, cpu_seconds_per_gib: 0.0 };
    for step in 0..STEPS_MAX {
        let iops = (64 * MIB / writer.block_bytes()) << step;
        let (before, cpu_before) =
            (counters(&protect)?, cpu_seconds(protect.pid().as_raw().cast_unsigned())?);
        let measured = writer.measure(volume.path(), load_seconds(), Some(iops))?;
        let rose = risen(&before, &counters(&protect)?);
        brought_to_a_mark(&mut protect)?;
        let written_gib = measured.bytes as f64 / (1024 * MIB) as f64;
        let cpu_seconds_per_gib =
            (cpu_seconds(protect.pid().as_raw().cast_unsigned())? - cpu_before) / written_gib;
        let mib = measured.iops * writer.block_bytes() as f64 / MIB as f64;
        let counted: Vec<_> = rose.iter().map(|(name, value)| format!("{name} +{value}")).collect();
        println!(
            "{capture:?}, ring {ring_mib} MiB, {writer}: {iops} IOPS wanted, {:.0} had ({mib:.0} MiB/s), {cpu_seconds_per_gib:.2} CPU s/GiB; {}",
            measured.iops,
            counted.join(", ")
        );
        if stepped_down(capture, &rose) {
            reached.degraded_mib = Some(mib);
            break;
        }
        (reached.held_mib, reached.cpu_seconds_per_gib) = (mib, cpu_seconds_per_gib);
        if measured.iops < ACHIEVED_MIN * iops as f64 {
            break;
        }
    }
    protect.stop()?;
    assert_identical(volume.path(), protection.target())?;
    Ok(reached)
}

/// Whether capture had less than it should: `marked` went to the bitmap, and under payload what `payload` does not count
/// was told without its bytes. A few writes may be between two counters at the moment they are read.
fn stepped_down(capture: Capture, rose: &Counters) -> bool {
    let by = |name: &str| rose.get(name).copied().unwrap_or(0);
    by("marked") > 0 || (capture == Capture::Payload && by("payload") + UNDER_WAY_MAX < by("seen"))
}

fn brought_to_a_mark(protect: &mut Protect<'_>) -> Result<()> {
    protect.mark("step")?;
    protect.wait_for("has brought the replica to the mark", |status| {
        let replica = &status[0]["replica"];
        replica["consistent"] == true && replica["mark"] == status[0]["last_mark"]["id"]
    })
}
