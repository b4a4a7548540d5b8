//! `cargo xtask deb`: the Debian package.
//!
//! What is in it stands in `tracer-user/Cargo.toml`; here is made what is generated: manual pages and completions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, run, setup};

/// The subcommand.
pub fn command() -> Result<()> {
    setup::setup()?;
    let afterwrite = build::afterwrite(true)?;
    let deb = package(&afterwrite, None)?;
    println!("{}", deb.display());
    Ok(())
}

/// Packs the built binary. For tests: quickly, under another version and in another folder.
pub fn package(afterwrite: &Path, as_version: Option<(&str, &Path)>) -> Result<PathBuf> {
    setup::setup_cargo_deb()?;
    let generated = run::target_dir().join("release/package");
    if generated.exists() {
        fs::remove_dir_all(&generated).with_context(|| format!("cannot empty {}", generated.display()))?;
    }
    let man = generated.join("man");
    fs::create_dir_all(&man).with_context(|| format!("cannot create {}", man.display()))?;
    run::run(Command::new(afterwrite).arg("man").arg(&man))?;
    for shell in ["bash", "zsh", "fish"] {
        let script = run::output(Command::new(afterwrite).args(["completions", shell]))?;
        fs::write(generated.join(format!("afterwrite.{shell}")), script)?;
    }
    let mut cargo = run::cargo();
    cargo.args(["deb", "--package", "afterwrite", "--no-build", "--strip"]);
    if let Some((version, folder)) = as_version {
        let deb = folder.join(format!("afterwrite_{version}_amd64.deb"));
        cargo.args(["--fast", "--deb-version", version, "--output"]).arg(&deb);
    }
    // Its last line is where the package is.
    let said = run::output(&mut cargo)?;
    Ok(PathBuf::from(said.lines().last().context("cargo-deb did not say where the package is")?.trim()))
}
