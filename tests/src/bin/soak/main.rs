//! `cargo xtask soak`: random faults against a running `afterwrite protect`, under a random load on random kinds of
//! devices, round after round, each ending in a comparison byte for byte.
//!
//! AFTERWRITE_MINUTES says for how long (default 60), AFTERWRITE_SEED is the seed of the first round; the next one has
//! the next number. A round's seed chooses all that is chosen, not the instants at which the machine does it.

mod faults;
mod guard;
mod load;
mod plan;
mod raw;
mod round;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result};

use plan::Plan;
use round::{Report, run_round};

/// With so many it is clear that something is wrong, and evidence takes space.
const FINDINGS_MAX: usize = 5;

fn main() -> ExitCode {
    match soak() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The number of findings.
fn soak() -> Result<usize> {
    let minutes = number_from_env("AFTERWRITE_MINUTES", 60);
    let first = seed();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // Everything is cleaned up at the end of a round, which an interrupted one comes to at once or soon.
        signal_hook::flag::register(signal, interrupted.clone()).context("cannot catch Ctrl-C")?;
    }
    ensure_tracefs()?;
    let begun = Instant::now();
    let (mut rounds, mut findings) = (0u64, Vec::new());
    let mut sum = Sum::default();
    for seed in first.. {
        if rounds > 0 && begun.elapsed() >= Duration::from_secs(minutes * 60)
            || findings.len() == FINDINGS_MAX
        {
            break;
        }
        rounds += 1;
        let mut random = Random::new(seed);
        let plan = Plan::choose(&mut random);
        println!("round {rounds}, seed {seed}: {plan}");
        let (round_begun, mut report) = (Instant::now(), Report::default());
        let evidence = evidence_of(seed);
        let result = run_round(&plan, &mut random, &evidence, &mut report);
        println!("  {} in {:.0} s: {report}", verdict(&result), round_begun.elapsed().as_secs_f64());
        sum.add(&plan, &report);
        if interrupted.load(Ordering::Relaxed) {
            println!("interrupted: the last round does not count");
            break;
        }
        if let Err(error) = result {
            println!("  {error:#}");
            findings.push(format!("seed {seed}: {error:#}"));
        }
    }
    println!("{rounds} rounds in {:.0} minutes from seed {first}", begun.elapsed().as_secs_f64() / 60.0);
    println!("{sum}");
    println!("{} findings", findings.len());
    findings.iter().for_each(|finding| println!("  {finding}"));
    Ok(findings.len())
}

fn verdict<T>(result: &Result<T>) -> &'static str {
    if result.is_ok() { "identical" } else { "FAILED" }
}

fn evidence_of(seed: u64) -> PathBuf {
    std::env::temp_dir().join(format!("afterwrite-soak-{seed}"))
}

/// Over all rounds.
#[derive(Default)]
struct Sum {
    kinds: BTreeMap<String, u64>,
    faults: BTreeMap<String, u64>,
    reports: Vec<Report>,
}

impl Sum {
    fn add(&mut self, plan: &Plan, report: &Report) {
        let mut kinds = [format!("{:?}", plan.kind), format!("{:?}", plan.content), plan.rung.to_owned()];
        kinds.iter_mut().for_each(|kind| *self.kinds.entry(std::mem::take(kind)).or_default() += 1);
        plan.faults.iter().for_each(|fault| *self.faults.entry(fault.name()).or_default() += 1);
        self.reports.push(report.clone());
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let sum = |of: fn(&Report) -> u64| self.reports.iter().map(of).sum::<u64>();
        writeln!(f, "rounds with: {}", list(&self.kinds))?;
        writeln!(f, "faults: {}", list(&self.faults))?;
        write!(
            f,
            "{} lives, {} adopted, {} refused; the journal failed {} times, the target {}; {} submissions, {} of them \
             marked in the bitmap, {} completions; {} points, {} of known content; longest write of a load {} ms",
            sum(|report| report.seen.lives),
            sum(|report| report.seen.adopted),
            sum(|report| report.seen.refused),
            sum(|report| report.seen.paused),
            sum(|report| report.seen.target_failed),
            sum(|report| report.seen.submissions),
            sum(|report| report.seen.marked),
            sum(|report| report.seen.completions),
            sum(|report| report.points as u64),
            sum(|report| report.known_points as u64),
            self.reports.iter().map(|report| report.longest_write_ms).max().unwrap_or(0),
        )
    }
}
