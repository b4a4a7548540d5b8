//! `cargo xtask ci`: the one gate, the same by hand and in CI.

use std::time::Instant;

use anyhow::Result;

use crate::{demo, fuzz, run, setup, test};

/// `all`: what a change seldom breaks, too, and what takes hours.
pub fn ci(all: bool) -> Result<()> {
    step("setup", setup::setup)?;
    step("format", || {
        run::run(run::cargo().args(["fmt", "--all", "--check"]))?;
        // Its own workspace.
        run::run(run::cargo().args(["fmt", "--manifest-path", "tracer-ebpf/Cargo.toml", "--check"]))?;
        run::run(run::cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
    })?;
    step("lints", || {
        run::run(run::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
        let without_capture = ["clippy", "-p", "afterwrite", "--no-default-features", "--all-targets"];
        run::run(run::cargo().args(without_capture).args(["--", "-D", "warnings"]))
    })?;
    step("documentation", || {
        run::run(run::cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if all {
        step("dependencies", dependencies)?;
        step("fuzz targets", || fuzz::fuzz(&fuzz::THE_SAME_EACH_TIME))?;
    }
    // What the README calls first.
    step("demo", || demo::command(&demo::Arguments::short()))?;
    step("tests", || test::test(&[], all))
}

fn dependencies() -> Result<()> {
    setup::setup_cargo_deny()?;
    // Advisories are left out, see deny.toml.
    run::run(run::cargo().args(["deny", "--workspace", "check", "bans", "licenses", "sources"]))?;
    let probes = ["deny", "--manifest-path", "tracer-ebpf/Cargo.toml", "--config", "deny.toml"];
    run::run(run::cargo().args(probes).args(["check", "bans", "licenses", "sources"]))?;
    let fuzz = ["deny", "--manifest-path", "fuzz/Cargo.toml", "--config", "deny.toml"];
    run::run(run::cargo().args(fuzz).args(["check", "bans", "licenses", "sources"]))
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let begun = Instant::now();
    let result = work();
    eprintln!("== {name}: {:.0} s", begun.elapsed().as_secs_f64());
    result
}
