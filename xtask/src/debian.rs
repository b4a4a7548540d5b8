//! The root disk of a virtual machine that is a Debian with systemd, made of Debian's packages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::kernel::Unpacked;
use crate::scenario::{Initramfs, InitramfsTool, Scenario};
use crate::{image, run, setup};

const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,kmod,e2fsprogs";
/// The modules of a virtual machine's root; all that dracut else takes is for other machines.
const ROOT_DRIVERS: &str = "ext4 virtio_blk virtio_pci";
const BYTES: u64 = 1 << 30;

/// The image, made once; a run works on a copy.
pub fn root_image(dir: &Path) -> Result<PathBuf> {
    let image = dir.join(format!("debian-{SUITE}.img"));
    if image.exists() {
        return Ok(image);
    }
    let tree = dir.join(format!("debian-{SUITE}.tree"));
    bootstrap(&tree, PACKAGES)?;
    into_image(&tree, &image)?;
    Ok(image)
}

/// A root disk and its initramfs, which Debian's tools have made of the package and the scenario's configuration.
pub fn bootable(
    dir: &Path,
    scenario: &Scenario,
    initramfs: &Initramfs,
    kernel: &Unpacked,
    package: &Path,
) -> Result<(PathBuf, PathBuf)> {
    let (image, initrd) = (dir.join("bootable.img"), dir.join("bootable.initrd"));
    let tree = dir.join("bootable.tree");
    let tool = match initramfs.made_by {
        InitramfsTool::InitramfsTools => "initramfs-tools,busybox-static,zstd",
        InitramfsTool::Dracut => "dracut-core,zstd",
    };
    let packages: String = scenario.packages.iter().map(|package| format!(",{package}")).collect();
    bootstrap(&tree, &format!("{PACKAGES},{tool}{packages}"))?;
    let release = kernel.modules_dir.file_name().context("a kernel has a release")?;
    let modules = tree.join("usr/lib/modules");
    fs::create_dir_all(&modules)?;
    run::run(run::program("cp")?.arg("-a").args([&kernel.modules_dir, &modules]))?;
    run::run(run::program("cp")?.args([&kernel.image, &kernel.config, &tree.join("boot")]))?;
    fs::create_dir_all(tree.join("etc/afterwrite"))?;
    fs::copy(&initramfs.config, tree.join("etc/afterwrite/config.toml"))?;
    fs::write(tree.join("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n")?;
    fs::copy(package, tree.join("afterwrite.deb"))?;
    let chroot = || -> Result<std::process::Command> {
        let mut chroot = run::program("chroot")?;
        chroot.arg(&tree).env("DEBIAN_FRONTEND", "noninteractive");
        Ok(chroot)
    };
    run::run(chroot()?.arg("depmod").arg(release))?;
    // All it depends on is there.
    run::run(chroot()?.args(["dpkg", "--install", "/afterwrite.deb"]))?;
    fs::remove_file(tree.join("afterwrite.deb"))?;
    let made = format!("boot/initrd.img-{}", release.to_string_lossy());
    match initramfs.made_by {
        InitramfsTool::InitramfsTools => {
            run::run(chroot()?.args(["update-initramfs", "-c", "-k"]).arg(release))?;
        }
        InitramfsTool::Dracut => {
            let any_machine = ["dracut", "--force", "--no-hostonly", "--drivers", ROOT_DRIVERS];
            run::run(chroot()?.args(any_machine).arg(format!("/{made}")).arg(release))?;
        }
    }
    let made = tree.join(made);
    fs::copy(&made, &initrd).with_context(|| format!("there is no {}", made.display()))?;

    let files = dir.join("bootable.files");
    fs::create_dir_all(&files)?;
    let vm_tests = run::root().join("vm-tests");
    for library in ["lib.sh", "debian-run.sh"] {
        fs::copy(vm_tests.join(library), files.join(library))?;
    }
    fs::copy(&scenario.script, files.join("scenario.sh"))?;
    fs::write(files.join("disks"), image::disks(scenario))?;
    run::run(run::program("sh")?.arg(vm_tests.join("debian-setup.sh")).args([&tree, &files]))?;
    fs::remove_dir_all(&files)?;
    into_image(&tree, &image)?;
    Ok((image, initrd))
}

/// A new tree of Debian's packages.
fn bootstrap(tree: &Path, packages: &str) -> Result<()> {
    setup::setup_mmdebstrap()?;
    // Of an interrupted run.
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    let packages = format!("--include={packages}");
    run::run(run::program("mmdebstrap")?.args(["--variant=minbase", &packages, SUITE]).arg(tree))
}

/// The tree becomes an image.
fn into_image(tree: &Path, image: &Path) -> Result<()> {
    let unfinished = image.with_extension("new");
    File::create(&unfinished)?.set_len(BYTES)?;
    run::run(run::program("mkfs.ext4")?.args(["-q", "-d"]).args([tree, &unfinished]))?;
    fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    Ok(fs::rename(&unfinished, image)?)
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
