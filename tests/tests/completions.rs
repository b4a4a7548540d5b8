//! Completions that the probes do not see: a program that interrupts itself on a processor is not run, and a full ring
//! takes none. Whatever is missing, the replica is right. AFTERWRITE_RUNS says how many runs (default 4).

use std::fmt;
use std::ops::AddAssign;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

const DEVICE_BYTES: u64 = 24 * MIB;
const LOAD_SECONDS: u64 = 2;

/// What was seen on all devices of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    submissions: u64,
    marked: u64,
    completions: u64,
    completions_lost: u64,
    recursion_misses: u64,
    /// Devices with fewer completions than submissions.
    short: u64,
    /// Submissions whose completion never came, on those.
    unpaired: u64,
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Sum) {
        self.submissions += other.submissions;
        self.marked += other.marked;
        self.completions += other.completions;
        self.completions_lost += other.completions_lost;
        self.recursion_misses += other.recursion_misses;
        self.short += other.short;
        self.unpaired += other.unpaired;
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} submissions ({} marked in the bitmap), {} completions seen, of them {} lost to a full ring, {} misses by \
             recursion; {} submissions without a completion, on {} devices",
            self.submissions,
            self.marked,
            self.completions,
            self.completions_lost,
            self.recursion_misses,
            self.unpaired,
            self.short
        )
    }
}

#[test]
fn whatever_completions_are_missing_the_replica_is_right() -> Result<()> {
    let runs = number_from_env("AFTERWRITE_RUNS", 4);
    let mut random = Random::new(seed());
    let mut sum = Sum::default();
    for number in 1..=runs {
        // In a small ring completions find no room; in a large one all that is missing was not seen.
        let ring = random.pick(&["256KiB", "16MiB"]);
        let seen = run_once(ring).with_context(|| format!("run {number} of {runs}, ring {ring}"))?;
        println!("run {number}, ring {ring}: {seen}");
        sum += seen;
    }
    println!("{runs} runs: {sum}; 0 wrong replicas of {}", runs * 3);
    ensure!(sum.submissions > 0 && sum.completions > 0, "nothing was seen: {sum}");
    Ok(())
}

/// Three devices written at once by small and large writers, so that their completions interrupt each other.
fn run_once(ring: &str) -> Result<Sum> {
    let devices: [Box<dyn Device>; 3] = [
        Box::new(Loop::new(DEVICE_BYTES)?),
        Box::new(Loop::with_sectors(DEVICE_BYTES, 4096)?),
        Box::new(Zram::new(DEVICE_BYTES)?),
    ];
    let protections = devices
        .iter()
        .map(|device| {
            let protection = Protection::new(device.path())?;
            Ok(["--ring", ring, "--mark-every", "never"].into_iter().fold(protection, Protection::arg))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut protects = protections.iter().map(Protection::spawn).collect::<Result<Vec<_>>>()?;
    protects.iter_mut().try_for_each(Protect::wait_live)?;
    let mut load = Vec::new();
    for device in &devices {
        let filename = format!("--filename={}", device.path().display());
        load.push(Fio::start(&[&filename, "--bs=4k", "--iodepth=64", "--numjobs=2"], LOAD_SECONDS)?);
        load.push(Fio::start(&[&filename, "--bsrange=64k-1m", "--iodepth=8"], LOAD_SECONDS)?);
    }
    load.into_iter().try_for_each(Fio::finish)?;
    let mut sum = Sum::default();
    for mut protect in protects {
        protect.wait_for("has copied everything", |status| status[0]["pending_bytes"] == 0)?;
        sum += seen_by(&protect)?;
        protect.stop()?;
    }
    for (device, protection) in devices.iter().zip(&protections) {
        assert_identical(device.path(), protection.target()).with_context(|| sum.to_string())?;
    }
    Ok(sum)
}

fn seen_by(protect: &Protect<'_>) -> Result<Sum> {
    let status = protect.status()?;
    let counter = |name: &str| {
        status[0]["counters"][name].as_u64().with_context(|| format!("no counter {name} in {status}"))
    };
    let (submissions, completions) = (counter("seen")?, counter("completions_seen")?);
    Ok(Sum {
        submissions,
        marked: counter("marked")?,
        completions,
        completions_lost: counter("completions_lost")?,
        recursion_misses: recursion_misses(protect)?,
        short: u64::from(completions < submissions),
        unpaired: submissions.saturating_sub(completions),
    })
}

/// Of all BPF programs that the process holds.
fn recursion_misses(protect: &Protect<'_>) -> Result<u64> {
    let dir = format!("/proc/{}/fdinfo", protect.pid());
    let mut misses = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| dir.clone())? {
        // One that was closed meanwhile is none of a program.
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
        misses.extend(line.map(|number| number.trim().parse::<u64>()).transpose()?);
    }
    ensure!(!misses.is_empty(), "no program in {dir}");
    Ok(misses.iter().sum())
}
