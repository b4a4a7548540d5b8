//! `cargo xtask bench first-copy`: what a writer gets done while the volume is copied for the first time, with pauses while it is at
//! work (`--yield on`, the default), without, and with a limit.
//!
//! Round after round a writer writes for some seconds, first with nobody looking, then from the beginning of a first copy on. The
//! volume is a loop device past the page cache, full of random bytes, on AFTERWRITE_DISK (default /var/tmp); journal and replica
//! are in memory. Look at the ratios, which are to the untouched run of the same round.

use std::path::PathBuf;
use std::time::Instant;

use afterwrite_tests::*;
use anyhow::Result;

const WAYS: [(&str, &[&str]); 3] = [
    ("--yield off", &["--yield=off"]),
    ("--yield on", &[]),
    ("--limit-baseline 100MiB", &["--limit-baseline=100MiB"]),
];

/// Of one way, a round after the other.
#[derive(Default)]
struct Results {
    iops: Vec<f64>,
    p99: Vec<f64>,
    /// Of the volume, when the writer ended.
    copied: Vec<f64>,
    copy_seconds: Vec<f64>,
}

fn main() -> Result<()> {
    let rounds = number_from_env("AFTERWRITE_ROUNDS", 3).max(1);
    let volume_bytes = number_from_env("AFTERWRITE_VOLUME_MIB", 768) * MIB;
    let seconds = load_seconds();
    let disk = PathBuf::from(std::env::var_os("AFTERWRITE_DISK").unwrap_or_else(|| "/var/tmp".into()));
    let dir = tempfile::Builder::new().prefix("afterwrite-bench-").tempdir_in(&disk)?;
    let image = dir.path().join("volume.img");
    blank_image(&image, volume_bytes)?;
    fill_random(&image, volume_bytes, &mut Random::new(1))?;
    let volume = Loop::direct(&image)?;
    println!("{rounds} rounds of {seconds} s; a volume of {} MiB on {}", volume_bytes / MIB, disk.display());
    for writer in [Writer::Random4K, Writer::Single4K] {
        let mut untouched = Vec::new();
        let mut results: [Results; WAYS.len()] = Default::default();
        for round in 0..rounds {
            let alone = writer.measure(volume.path(), seconds, None)?;
            untouched.push(alone.iops);
            for at in 0..WAYS.len() {
                // Another order each round.
                let at = (at + round as usize) % WAYS.len();
                run_beside(&volume, writer, seconds, WAYS[at].1, &alone, &mut results[at])?;
            }
        }
        println!("{writer}: untouched {:.0} IOPS", median(&untouched));
        for ((name, _), of) in WAYS.iter().zip(&results) {
            println!(
                "  {name}: {:.2} of the IOPS ({:.2?}), p99 {:.1} times; copied meanwhile {:.0} %, all of it in {:.1} s",
                median(&of.iops),
                of.iops,
                median(&of.p99),
                100.0 * median(&of.copied),
                median(&of.copy_seconds),
            );
        }
    }
    Ok(())
}

fn run_beside(
    volume: &Loop,
    writer: Writer,
    seconds: u64,
    args: &[&str],
    alone: &Measured,
    results: &mut Results,
) -> Result<()> {
    let protection = Protection::new(volume.path())?.arg("--mark-every=never").arg("--origin=off");
    let protection = args.iter().fold(protection, |protection, arg| protection.arg(arg));
    let begun = Instant::now();
    let mut protect = protection.spawn()?;
    protect.wait_for("copies", |status| status[0]["scan_done_bytes"].as_u64() > Some(0))?;
    let beside = writer.measure(volume.path(), seconds, None)?;
    let status = protect.volume_status()?;
    let bytes = |field: &str| status[field].as_u64().unwrap_or(0) as f64;
    results.copied.push(bytes("scan_done_bytes") / bytes("scan_total_bytes"));
    protect.wait_live()?;
    results.copy_seconds.push(begun.elapsed().as_secs_f64());
    results.iops.push(beside.iops / alone.iops);
    results.p99.push(beside.p99_us / alone.p99_us);
    protect.stop()?;
    assert_identical(volume.path(), protection.target())
}
