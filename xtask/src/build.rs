//! `cargo xtask build`.

use std::path::PathBuf;

use anyhow::Result;

use crate::run;

/// Builds the binary and returns its path. The build script compiles the probes.
pub fn afterwrite(release: bool) -> Result<PathBuf> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--package", "afterwrite"]);
    if release {
        cargo.arg("--release");
    }
    run::run(&mut cargo)?;
    let profile = if release { "release" } else { "debug" };
    Ok(run::target_dir().join(profile).join("afterwrite"))
}
