//! The root disk of a virtual machine that is a Debian with systemd, made of Debian's packages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{run, setup};

const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,kmod,e2fsprogs";
const BYTES: u64 = 1 << 30;

/// The image, made once; a run works on a copy.
pub fn root_image(dir: &Path) -> Result<PathBuf> {
    let image = dir.join(format!("debian-{SUITE}.img"));
    if image.exists() {
        return Ok(image);
    }
    setup::setup_mmdebstrap()?;
    let tree = dir.join(format!("debian-{SUITE}.tree"));
    // Of an interrupted run.
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    let packages = format!("--include={PACKAGES}");
    run::run(run::program("mmdebstrap")?.args(["--variant=minbase", &packages, SUITE]).arg(&tree))?;
    let unfinished = image.with_extension("new");
    File::create(&unfinished)?.set_len(BYTES)?;
    run::run(run::program("mkfs.ext4")?.args(["-q", "-d"]).args([&tree, &unfinished]))?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    fs::rename(&unfinished, &image)?;
    Ok(image)
}

/// A copy of it for one run, with these packages in /scenario.
pub fn copy_root(image: &Path, copy: &Path, packages: &[PathBuf]) -> Result<()> {
    run::run(run::program("cp")?.arg("--sparse=always").args([image, copy]))?;
    let mut requests = String::from("mkdir /scenario\n");
    for package in packages {
        let name = package.file_name().context("a package has a name")?.to_string_lossy();
        requests.push_str(&format!("write {} /scenario/{name}\n", package.display()));
    }
    let file = copy.with_extension("debugfs");
    fs::write(&file, requests)?;
    // It exits with 0 whatever went wrong.
    let said = run::program("debugfs")?.args(["-w", "-f"]).args([&file, copy]).output()?;
    let words = String::from_utf8_lossy(&said.stderr);
    let failed = words.lines().find(|line| !line.starts_with("debugfs ") && !line.trim().is_empty());
    ensure!(failed.is_none(), "debugfs cannot write the packages into {}: {words}", copy.display());
    Ok(fs::remove_file(&file)?)
}
