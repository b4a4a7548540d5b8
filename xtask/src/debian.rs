//! The root disk of a virtual machine that is a Debian with systemd, made of Debian's packages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
