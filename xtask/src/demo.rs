//! `cargo xtask demo`: Afterwrite from the first byte to the last proof, on this machine, in a minute.
//!
//! An ext4 volume on a loop device is protected while git, cargo, SQLite and file churn work on it. Marks are made
//! under that load; before each, every workload writes down what must be there from then on. Afterwards each mark is
//! rebuilt from the journal alone and held against that.

mod compile;
mod files;
mod git;
mod ground;
mod kept;
mod load;
mod proof;
mod protect;
mod sqlite;
mod table;
mod volume;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::demo::ground::{Ground, Interrupt};
use crate::demo::load::{Load, Promise, Workloads};
use crate::demo::protect::{Client, Protect};
use crate::demo::table::{Amounts, Events, Lag, Report, size};
use crate::demo::volume::{Loop, Mount};
use crate::tally::Failures;
use crate::{build, run, setup};

const VOLUME_BYTES: u64 = 1 << 30;
const MARKS: u32 = 5;
/// How long anything may take that is waited for, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub struct Arguments {
    /// How long the workload runs once the volume is copied
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
    /// Keep volume, journal, replica and logs
    #[arg(long)]
    keep: bool,
}

impl Arguments {
    /// Enough to see each part of it once.
    pub fn short() -> Arguments {
        Arguments { seconds: 10, keep: false }
    }
}

/// A mark, and what must be found at it.
struct Made {
    label: String,
    class: String,
    frozen_ms: Option<u64>,
    promise: Promise,
}

pub fn command(arguments: &Arguments) -> Result<()> {
    if !run::is_root() {
        bail!(
            "the demo makes a loop device, mounts and loads BPF programs, which needs root: run it as root, or with \
             `sudo -E env \"PATH=$PATH\" cargo xtask demo`"
        );
    }
    setup::setup()?;
    // As for the tests: a binary that is there already.
    let afterwrite =
        std::env::var_os("AFTERWRITE_BIN").map_or_else(|| build::afterwrite(true), |path| Ok(path.into()))?;

    let interrupt = Interrupt::catch()?;
    let ground = Ground::take(&run::target_dir().join("demo"), arguments.seconds)?;
    let result = demo(arguments, &ground, &afterwrite, &interrupt);
    if interrupt.came() && !arguments.keep {
        ground.clear()?;
        bail!("interrupted: everything is cleaned up");
    }
    match result {
        Ok(()) if !arguments.keep => ground.clear(),
        Ok(()) => {
            println!("kept: {}", ground.dir().display());
            Ok(())
        }
        Err(error) => {
            println!("journal, replica, volume and logs are kept in {}", ground.dir().display());
            Err(error)
        }
    }
}

fn demo(arguments: &Arguments, ground: &Ground, afterwrite: &Path, interrupt: &Interrupt) -> Result<()> {
    let dir = ground.dir();
    let device = Loop::make(&dir.join("volume.img"), VOLUME_BYTES)?;
    run::output(run::program("mkfs.ext4")?.arg("-q").arg(device.path()))?;
    let mount = Mount::new(device.path(), &dir.join("volume"), "rw")?;
    println!("volume      ext4, {}, on {}", size(VOLUME_BYTES), device.path().display());
    let workloads = Workloads::prepare(mount.point(), dir)?;
    mount.sync()?;
    let traffic_before = device.traffic()?;
    println!("prepared    a clone of this repository, a compiled crate, a bank in SQLite, some files");

    let client = Client::new(afterwrite, dir)?;
    let load = Load::default();
    let mut report = Report { volume_bytes: VOLUME_BYTES, ..Report::default() };
    let (protect, made) = under_load(arguments, &device, &client, &load, &workloads, interrupt, &mut report)?;

    // Unmounted before protect stops: what it marks last is then all there ever was.
    mount.unmount()?;
    report.load = workloads.summary();
    report.events = at_rest(&client, interrupt)?;
    protect.stop(interrupt)?;
    report.at_end = Amounts { device: device.traffic()?, journal_bytes: directory_bytes(&client.journal())? };
    report.at_live.device = report.at_live.device.since(traffic_before);
    report.at_end.device = report.at_end.device.since(traffic_before);
    println!("stopped     the volume is unmounted, protect has drained, marked and ended");

    let mut failed = 0;
    for mark in &made {
        interrupt.check()?;
        match proof::prove(&client, mark, &workloads, dir, VOLUME_BYTES) {
            Ok(proof) => {
                println!("proven      {proof}");
                report.replays.push(proof.replay);
            }
            Err(error) => {
                println!("NOT PROVEN  mark {} ({}): {error:#}", mark.label, mark.class);
                failed += 1;
            }
        }
    }
    interrupt.check()?;
    report.marks(&made, report.replays.len());
    let last = proof::prove_end(&client, &device, dir, VOLUME_BYTES);
    println!("\n{report}");
    match last {
        Ok(sum) => println!("the replica is identical to the source: sha256 {sum}"),
        Err(error) => {
            println!("NOT PROVEN  the end: {error:#}");
            failed += 1;
        }
    }
    if failed > 0 { Err(Failures(failed).into()) } else { Ok(()) }
}

/// Protects the volume from before the baseline to the end of the load, and makes the marks.
fn under_load(
    arguments: &Arguments,
    device: &Loop,
    client: &Client,
    load: &Load,
    workloads: &Workloads,
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<(Protect, Vec<Made>)> {
    let lag = Mutex::new(Lag::default());
    let done = thread::scope(|scope| {
        // However this closure is left: the threads end.
        let _stop = load.stop_at_the_end();
        let running = workloads.start(scope, load);
        let sampler = scope.spawn(|| sample(client, load, &lag));

        let begun = Instant::now();
        let mut protect = Protect::start(client, device.path())?;
        println!("protecting  the workload runs since before; log in {}", protect.log().display());
        protect.wait_live(client, interrupt)?;
        report.baseline = begun.elapsed();
        let journal_bytes =
            client.status()?["journal_bytes"].as_u64().context("a status without journal_bytes")?;
        report.at_live = Amounts { device: device.traffic()?, journal_bytes };
        println!("live        the volume is copied, after {:.1} s", report.baseline.as_secs_f64());

        let live = Instant::now();
        let duration = Duration::from_secs(arguments.seconds);
        let mut made = Vec::new();
        for (number, due) in due(duration, MARKS) {
            while live.elapsed() < due && load.pause(Duration::from_millis(20)) {
                interrupt.check()?;
                protect.check_runs()?;
            }
            if !load.goes_on() {
                break;
            }
            made.push(mark(client, workloads, number).with_context(|| protect.said())?);
        }
        while live.elapsed() < duration && load.pause(Duration::from_millis(20)) {
            interrupt.check()?;
            protect.check_runs()?;
        }
        report.seconds = live.elapsed();
        load.stop();
        for (name, thread) in running {
            let result = thread.join();
            result
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .with_context(|| name.to_owned())?;
        }
        sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ensure!(made.len() == MARKS as usize, "the load ended early");
        Ok((protect, made))
    });
    report.lag = lag.into_inner().expect("its only other user has been joined");
    done
}

/// When each mark is made: evenly, and not at the edges.
fn due(duration: Duration, marks: u32) -> impl Iterator<Item = (u32, Duration)> {
    (1..=marks).map(move |number| (number, duration * number / (marks + 1)))
}

fn mark(client: &Client, workloads: &Workloads, number: u32) -> Result<Made> {
    let label = format!("demo-{number}");
    // What is promised now must not be deleted before the mark is made.
    let pinned = workloads.pin();
    let promise = pinned.promise();
    let begun = Instant::now();
    let made = client.mark(&label)?;
    drop(pinned);
    let class = made["class"].as_str().context("a mark without class")?.to_owned();
    let frozen_ms = made["frozen_ms"].as_u64();
    println!(
        "marked      {label} ({class}) after {:.1} s, frozen for {} ms",
        begun.elapsed().as_secs_f64(),
        frozen_ms.map_or("?".into(), |ms| ms.to_string())
    );
    ensure!(class == "fs", "mark {label} is {class}: the file system could not be frozen");
    Ok(Made { label, class, frozen_ms, promise })
}

/// What the probes have counted, once every event has been dealt with.
fn at_rest(client: &Client, interrupt: &Interrupt) -> Result<Events> {
    let mut status = client.status()?;
    wait_until("all is in the journal", PATIENCE, Some(interrupt), || {
        status = client.status()?;
        Ok(status["pending_bytes"] == 0)
    })?;
    Events::of(&status)
}

fn directory_bytes(dir: &Path) -> Result<u64> {
    let sizes = fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.sum()
}

fn sample(client: &Client, load: &Load, lag: &Mutex<Lag>) {
    while load.pause(Duration::from_millis(100)) {
        // Not there before protect is up; whether it is up is watched elsewhere.
        if let Ok(status) = client.status() {
            lag.lock().expect("no thread panics with it").see(&status);
        }
    }
}

/// A condition that can't be waited for otherwise, looked at again and again.
fn wait_until(
    what: &str,
    limit: Duration,
    interrupt: Option<&Interrupt>,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let begun = Instant::now();
    while !condition()? {
        interrupt.map_or(Ok(()), Interrupt::check)?;
        ensure!(begun.elapsed() < limit, "waited {} s in vain until {what}", limit.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// In a drop an error can only be shown.
fn tell<T>(result: Result<T>) {
    if let Err(error) = result {
        eprintln!("cleaning up: {error:#}");
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_made_evenly_and_with_load_before_and_after() {
        let times: Vec<_> = due(Duration::from_secs(30), 5).map(|(_, due)| due.as_secs()).collect();
        assert_eq!(times, [5, 10, 15, 20, 25]);
    }

    #[test]
    fn what_does_not_come_is_named() {
        let error = wait_until("pigs fly", Duration::ZERO, None, || Ok(false)).expect_err("they do not");
        assert!(error.to_string().contains("pigs fly"), "{error}");
    }
}
