//! `cargo xtask soak` and `cargo xtask bench`: programs of `tests/` that run for long, so not as tests.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};

use crate::{build, run, setup};

#[derive(clap::Args)]
pub struct Arguments {
    /// For how long; the last round is finished, and there is one at least
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Of the first round, the next one has the next number; default: the clock
    #[arg(long)]
    seed: Option<u64>,
}

pub fn command(arguments: &Arguments) -> Result<()> {
    let mut settings = vec![("AFTERWRITE_MINUTES", arguments.minutes.to_string())];
    settings.extend(arguments.seed.map(|seed| ("AFTERWRITE_SEED", seed.to_string())));
    become_program("soak", &settings)
}

/// Builds the program and runs it instead of this one, so that Ctrl-C is for it alone to handle.
fn become_program(name: &str, settings: &[(&str, String)]) -> Result<()> {
    if !run::is_root() {
        bail!(
            "it makes devices, mounts and loads BPF programs, which needs root: run `sudo -E cargo xtask {name}`"
        );
    }
    setup::setup()?;
    let afterwrite = build::afterwrite(true)?;
    run::run(run::cargo().args(["build", "--package", "afterwrite-tests", "--bin", name]))?;
    let mut program = std::process::Command::new(run::target_dir().join("debug").join(name));
    program.env("AFTERWRITE_BIN", afterwrite).envs(settings.iter().map(|(name, value)| (name, value)));
    Err(program.exec()).with_context(|| format!("cannot run {name}"))
}
