//! `cargo xtask fuzz`: feeds every decoder with what a fuzzer thinks of, for some time, and keeps what breaks one.
//!
//! It takes the compiler that compiles everything else, told to accept the options of a nightly (`RUSTC_BOOTSTRAP`), so
//! that a machine without rustup fuzzes too. Where that compiler comes without the address sanitizer's runtime, as
//! Debian's does, it is done without.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::tally::Failures;
use crate::{run, setup};

/// Targets that run at the same time.
const SIDE_BY_SIDE: usize = 2;
/// An event with payload is 4145 bytes. Longer inputs find nothing that short ones don't, and slow all down.
const INPUT_BYTES_MAX: u32 = 8192;
/// No decoder needs more for anything, whatever its input says: a frame is 16 MiB at most.
const ALLOCATION_MIB_MAX: u32 = 32;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only these; all when not given
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Not for a time, but so many inputs, the same each time
    #[arg(long, conflicts_with = "seconds")]
    inputs: Option<u32>,
    /// Add what reached new code to the corpus that is in the tree
    #[arg(long)]
    keep: bool,
}

/// What `ci --all` does: the same inputs for the same code, so that it fails for what was changed, not by chance. Chance is for
/// `cargo xtask fuzz` by hand, for as long as one likes.
pub const THE_SAME_EACH_TIME: Arguments =
    Arguments { targets: Vec::new(), seconds: 0, inputs: Some(20_000), keep: false };

pub fn fuzz(arguments: &Arguments) -> Result<()> {
    let targets = chosen(&known()?, &arguments.targets)?;
    setup::setup()?;
    setup::setup_cargo_fuzz()?;
    let binaries = build()?;
    let waiting = Mutex::new(VecDeque::from(targets));
    let broken = Mutex::new(0);
    let take = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        while let Some(target) = take() {
            if let Err(error) = one(&binaries, &target, arguments) {
                eprintln!("{target}: {error:#}");
                *broken.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            }
        }
    };
    std::thread::scope(|scope| (0..SIDE_BY_SIDE).for_each(|_| drop(scope.spawn(work))));
    match broken.into_inner().unwrap_or_else(PoisonError::into_inner) {
        0 => Ok(()),
        count => Err(Failures(count).into()),
    }
}

/// The targets there are, in order.
fn known() -> Result<Vec<String>> {
    let dir = run::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.context("listing the fuzz targets")?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn chosen(known: &[String], wanted: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target {unknown}; there are {}", known.join(", "));
    }
    Ok(if wanted.is_empty() { known } else { wanted }.to_vec())
}

/// Builds all targets; returns where they are.
fn build() -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let dir = run::target_dir().join("fuzz");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = run::output(Command::new(rustc).args(["--print", "sysroot"]))?;
    let runtimes = Path::new(sysroot.trim()).join("lib/rustlib").join(&triple).join("lib");
    let sanitizer = if has_address_sanitizer(&runtimes) { "address" } else { "none" };
    let mut cargo = run::cargo();
    cargo.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "build", "--sanitizer", sanitizer, "--target", &triple]);
    run::run(cargo.arg("--target-dir").arg(&dir))?;
    Ok(dir.join(triple).join("release"))
}

fn has_address_sanitizer(runtimes: &Path) -> bool {
    let Ok(entries) = fs::read_dir(runtimes) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with("_rt.asan.a"))
}

/// Runs one target to its end.
fn one(binaries: &Path, target: &str, arguments: &Arguments) -> Result<()> {
    let kept = run::root().join("fuzz/corpus").join(target);
    let of_target = |what: &str| run::target_dir().join("fuzz").join(what).join(target);
    let crashes = of_target("artifacts");
    let found = of_target(if arguments.inputs.is_some() { "corpus-from-nothing" } else { "corpus" });
    if arguments.inputs.is_some() && found.exists() {
        fs::remove_dir_all(&found).with_context(|| format!("cannot remove {}", found.display()))?;
    }
    for dir in [&kept, &found, &crashes] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let log = run::target_dir().join("fuzz").join(format!("{target}.log"));
    let binary = binaries.join(target);
    let extent = match arguments.inputs {
        Some(inputs) => ["-seed=1".to_owned(), format!("-runs={inputs}")],
        None => [format!("-max_total_time={}", arguments.seconds), "-runs=-1".to_owned()],
    };
    let limits = [
        format!("-max_len={INPUT_BYTES_MAX}"),
        format!("-malloc_limit_mb={ALLOCATION_MIB_MAX}"),
        "-rss_limit_mb=1024".to_owned(),
        "-timeout=10".to_owned(),
        "-print_final_stats=1".to_owned(),
        format!("-artifact_prefix={}/", crashes.display()),
    ];
    let begun = Instant::now();
    let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let status = Command::new(&binary)
        .args(extent)
        .args(limits)
        .args([&found, &kept])
        .stdout(std::process::Stdio::null())
        .stderr(output)
        .status()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    if !status.success() {
        bail!(
            "broken ({status}):\n{}\n{}Fix the decoder, and keep the input in {}",
            what_broke(&text),
            inputs_in(&crashes)?,
            kept.display()
        );
    }
    let runs = runs(&text).with_context(|| format!("{} does not say how many inputs ran", log.display()))?;
    println!("{target}: {runs} inputs in {:.0} s, none broke it", begun.elapsed().as_secs_f64());
    if arguments.keep {
        // The fewest inputs that together reach all code; how often they reach it does not count.
        let mut merge = Command::new(&binary);
        merge.args(["-set_cover_merge=1", "-use_counters=0", &format!("-max_len={INPUT_BYTES_MAX}")]);
        run::output(merge.args([&kept, &found]))?;
    }
    Ok(())
}

/// From the first line that says what is wrong on; before it are the fuzzer's many lines on its progress.
fn what_broke(log: &str) -> String {
    let is_progress = |line: &&str| !line.contains("panicked at") && !line.contains("ERROR: ");
    log.lines().skip_while(is_progress).take(100).collect::<Vec<_>>().join("\n")
}

/// The inputs that broke a target, as text: where a gate runs, nothing but what it prints may be kept.
fn inputs_in(dir: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.context("listing what broke the target")?.path();
        let encoded = run::output(Command::new("base64").arg("--wrap=0").arg(&path))?;
        writeln!(text, "{} (base64): {encoded}", path.display()).expect("writing to a string");
    }
    Ok(text)
}

/// The number of inputs, from libFuzzer's last words.
fn runs(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_not_there_is_named_with_those_that_are() {
        let known = ["event", "frame"].map(str::to_owned);
        assert_eq!(chosen(&known, &[]).expect("all"), known);
        assert_eq!(chosen(&known, &known[1..]).expect("it is there"), known[1..]);
        let error = chosen(&known, &["evnt".to_owned()]).expect_err("a typing error").to_string();
        assert!(error.contains("evnt") && error.contains("event, frame"), "{error}");
    }

    #[test]
    fn every_target_is_known_and_has_a_corpus() {
        let known = known().expect("the targets are in the tree");
        assert!(known.contains(&"segment".to_owned()), "{known:?}");
        for name in known {
            assert!(run::root().join("fuzz/corpus").join(&name).is_dir(), "{name}");
        }
    }

    #[test]
    fn what_broke_a_target_begins_with_the_panic() {
        let log = "#1 INITED\n#2 NEW\nthread '<unnamed>' panicked at src/x.rs:1:2:\nno\n==7== ERROR: libFuzzer\n #0";
        assert!(what_broke(log).starts_with("thread '<unnamed>' panicked at src/x.rs:1:2:\nno\n"));
        assert_eq!(
            what_broke("#1\n==7== ERROR: AddressSanitizer\n #0"),
            "==7== ERROR: AddressSanitizer\n #0"
        );
    }

    #[test]
    fn the_count_of_inputs_is_read_from_the_log() {
        let log = "Done 1234 runs\nstat::number_of_executed_units: 1234\nstat::average_exec_per_sec: 12\n";
        assert_eq!(runs(log), Some(1234));
        assert_eq!(runs("Done 1234 runs\n"), None);
    }
}
