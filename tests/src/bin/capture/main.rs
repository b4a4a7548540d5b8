//! `cargo xtask bench capture`: what capture costs a writer, beside what other tracers cost it, all in one run.
//!
//! Round after round, each in another order, a writer writes for some seconds: with nobody looking, under `afterwrite protect`
//! with extents and with payload, under blktrace and under bpftrace. What is told of the writes goes to another file system: of
//! volumes in memory to a disk, of a volume on a disk to memory. `protect` does all it does in earnest: journal, compression,
//! sync each second, and the replica, for which a mark is asked for every two seconds. After each of its runs source and
//! replica must be identical.
//!
//! Figures are of a whole machine that may be busy with other things: look at the ratios, which are to the untraced run of
//! the same round. AFTERWRITE_ROUNDS (default 5) and AFTERWRITE_SECONDS (default 4) say how many and how long,
//! AFTERWRITE_VOLUMES names some of zram, loop-memory, loop-disk (default: all), AFTERWRITE_DISK a directory on a disk.

mod tracer;
mod volume;

use std::collections::BTreeMap;
use std::path::PathBuf;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

use tracer::{Tracer, Tracing};
use volume::{Kind, Volume};

/// Of one tracer, a round after the other.
#[derive(Default)]
struct Results {
    measured: Vec<Measured>,
    counters: Counters,
    /// What a tracer says of itself, in the last round.
    said: String,
}

fn main() -> Result<()> {
    let rounds = number_from_env("AFTERWRITE_ROUNDS", 5).max(1);
    let seconds = load_seconds();
    let disk = PathBuf::from(std::env::var_os("AFTERWRITE_DISK").unwrap_or_else(|| "/var/tmp".into()));
    println!(
        "{rounds} rounds of {seconds} s; volumes of {} MiB; journal, replica and traces on another file system (of volumes in \
         memory on {}, of the one on a disk in memory); journal synced each second, a mark every 2 s",
        volume::VOLUME_BYTES / MIB,
        disk.display()
    );
    let names = std::env::var("AFTERWRITE_VOLUMES").unwrap_or_default();
    let known = |name: &str| Kind::ALL.iter().any(|kind| kind.name() == name);
    let unknown = names.split_whitespace().find(|name| !known(name));
    ensure!(unknown.is_none(), "AFTERWRITE_VOLUMES: {unknown:?} is none of zram, loop-memory, loop-disk");
    for kind in Kind::ALL {
        if names.is_empty() || names.split_whitespace().any(|name| name == kind.name()) {
            let volume = Volume::new(kind, &disk)?;
            for writer in Writer::ALL {
                compare(&volume, writer, rounds, seconds)?;
            }
        }
    }
    Ok(())
}

fn compare(volume: &Volume, writer: Writer, rounds: u64, seconds: u64) -> Result<()> {
    let mut tracers =
        vec![Tracer::Untraced, Tracer::Afterwrite(Capture::Extents), Tracer::Afterwrite(Capture::Payload)];
    let mut absent: Vec<String> = Vec::new();
    match tracer::blktrace_obstacle(volume.path(), volume.elsewhere()?.path(), volume.debugfs())? {
        None => tracers.push(Tracer::Blktrace),
        Some(why) => absent.push(format!("blktrace: {why}")),
    }
    tracers.push(Tracer::Bpftrace);

    let mut results: BTreeMap<String, Results> = BTreeMap::new();
    for round in 0..usize::try_from(rounds)? {
        let first = round % tracers.len();
        for tracer in tracers[first..].iter().chain(&tracers[..first]) {
            let (measured, counters, said) = run_under(*tracer, volume, writer, seconds)
                .with_context(|| format!("{tracer} on {}", volume.kind().name()))?;
            eprintln!(
                "{} {writer}, round {}, {tracer}: {:.0} IOPS, p99 {:.0} us",
                volume.kind().name(),
                round + 1,
                measured.iops,
                measured.p99_us
            );
            let results = results.entry(tracer.to_string()).or_default();
            results.measured.push(measured);
            counters
                .into_iter()
                .for_each(|(name, value)| *results.counters.entry(name).or_default() += value);
            results.said = said;
        }
    }
    println!("\n{}, {writer}", volume.kind().name());
    println!(
        "{:12} {:>10} {:>19} {:>7} {:>15} {:>9} {:>17} {:>7}",
        "", "IOPS", "min-max", "ratio", "min-max", "p99 us", "min-max", "ratio"
    );
    let untraced = results[&Tracer::Untraced.to_string()].measured.clone();
    for tracer in &tracers {
        let results = &results[&tracer.to_string()];
        println!("{}", row(&tracer.to_string(), results, &untraced));
    }
    for tracer in &tracers {
        let results = &results[&tracer.to_string()];
        let counted: Vec<_> =
            results.counters.iter().map(|(name, value)| format!("{name} {value}")).collect();
        if !counted.is_empty() || !results.said.is_empty() {
            println!("  {tracer}: {}{}", counted.join(", "), results.said);
        }
    }
    absent.iter().for_each(|why| println!("  not measured: {why}"));
    Ok(())
}

/// Medians, and of each round the ratio to the untraced run of it.
fn row(name: &str, results: &Results, untraced: &[Measured]) -> String {
    let of = |value: fn(&Measured) -> f64| {
        let values: Vec<f64> = results.measured.iter().map(value).collect();
        let ratios: Vec<f64> = values.iter().zip(untraced).map(|(own, other)| own / value(other)).collect();
        (values, ratios)
    };
    let (iops, iops_ratios) = of(|measured| measured.iops);
    let (p99, p99_ratios) = of(|measured| measured.p99_us);
    let range = |values: &[f64], digits: usize| {
        let (least, most) = values
            .iter()
            .fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(*value), most.max(*value)));
        format!("{least:.digits$}-{most:.digits$}")
    };
    format!(
        "{name:12} {:>10.0} {:>19} {:>7.3} {:>15} {:>9.0} {:>17} {:>7.2}",
        median(&iops),
        range(&iops, 0),
        median(&iops_ratios),
        range(&iops_ratios, 3),
        median(&p99),
        range(&p99, 0),
        median(&p99_ratios)
    )
}

fn run_under(
    tracer: Tracer,
    volume: &Volume,
    writer: Writer,
    seconds: u64,
) -> Result<(Measured, Counters, String)> {
    let dir = volume.elsewhere()?;
    let measure = || writer.measure(volume.path(), seconds, None);
    let traced = |tracing: Tracing| {
        let measured = measure();
        drop(tracing);
        measured
    };
    match tracer {
        Tracer::Untraced => Ok((measure()?, Counters::new(), String::new())),
        Tracer::Blktrace => {
            let measured = traced(tracer::blktrace(volume.path(), dir.path(), volume.debugfs())?)?;
            Ok((measured, Counters::new(), written(dir.path())?))
        }
        Tracer::Bpftrace => {
            let measured = traced(tracer::bpftrace(volume.path(), dir.path())?)?;
            let said = format!("{} in the last round", tracer::bpftrace_events(dir.path())?);
            Ok((measured, Counters::new(), said))
        }
        Tracer::Afterwrite(capture) => {
            let protection = Protection::new(volume.path())?.arg("--mark-every").arg("2s");
            let protection = capture.args().into_iter().fold(protection, Protection::arg);
            let protection = protection.journal_at(&dir.path().join("journal"));
            let protection = protection.target_at(&dir.path().join("replica.img"));
            let mut protect = protection.start()?;
            protect.wait_for("has the replica", |status| status[0]["replica"]["consistent"] == true)?;
            let before = counters(&protect)?;
            let measured = measure()?;
            let counted = risen(&before, &counters(&protect)?);
            protect.stop()?;
            assert_identical(volume.path(), protection.target())?;
            Ok((measured, counted, String::new()))
        }
    }
}

fn written(dir: &std::path::Path) -> Result<String> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(format!("{} MiB of traces in the last round", bytes / MIB))
}
