//! `cargo xtask test`: everything that checks Afterwrite, in one go, with one sum as the last line.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::tally::Tally;
use crate::vm::{self, Choice, How};
use crate::{build, run, setup};

/// For the complete set, what a default run does a few times: runs of a stress test, and instants that each test of
/// restored instants judges (eight tests of 125 are a thousand; those of databases keep to 50).
const NUMBERS_OF_ALL: [(&str, &str); 2] = [("AFTERWRITE_RUNS", "200"), ("AFTERWRITE_INSTANTS", "125")];

pub fn test(names: &[String], all: bool) -> Result<()> {
    if !run::is_root() {
        bail!(
            "the tests make loop devices, mount and load BPF programs, which needs root: run `sudo -E cargo xtask \
             test` (unit tests alone need none: `cargo test -p afterwrite`)"
        );
    }
    setup::setup()?;
    if all {
        setup::setup_browser()?;
    }
    let afterwrite = build::afterwrite(true)?;

    let mut tally = cargo_tests(names, &afterwrite, all)?;
    println!("tests of this machine: {tally}");

    let scenarios = vm::scenarios()?;
    let choice = if all { Choice::All } else { Choice::Default };
    let selected = vm::select(&scenarios, names, choice);
    let guests = vm::run(&selected, &afterwrite, How { full: all, ..How::default() })?;
    println!("scenarios in virtual machines: {guests}");

    tally.add(guests);
    tally.finish()
}

fn cargo_tests(names: &[String], afterwrite: &Path, all: bool) -> Result<Tally> {
    let mut cargo = run::cargo();
    cargo
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        // What passing tests print goes to the log, and none skips unseen.
        .arg("--show-output")
        .args(all.then_some("--include-ignored"))
        .args(names)
        .env("AFTERWRITE_BIN", afterwrite);
    let unset = |(name, _): &&(&str, &str)| all && std::env::var_os(name).is_none();
    cargo.envs(NUMBERS_OF_ALL.iter().filter(unset).copied());
    let log = run::target_dir().join("test.log");
    let mut all_lines =
        BufWriter::new(File::create(&log).with_context(|| format!("cannot create {}", log.display()))?);
    println!("all that the tests print: {}", log.display());
    let mut tally = Tally::default();
    let succeeded = run::watch(&mut cargo, |line| {
        if tally.see_cargo_test(line) {
            println!("{line}");
        }
        writeln!(all_lines, "{line}").with_context(|| format!("cannot write {}", log.display()))
    })?;
    all_lines.flush()?;
    if !succeeded && !tally.has_failures() {
        tally.fail(
            "cargo test: it did not compile, or a test process died before it could say anything".to_owned(),
        );
    }
    Ok(tally)
}
