//! The guest's root directory: busybox, afterwrite, the tools and modules a scenario asks for, the scenario.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::kernel::Unpacked;
use crate::run;
use crate::scenario::{Bus, Scenario};

/// Every guest needs its disks; and a checksum that ext4 and xfs ask for by a name no dependency tells.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "crc32c_generic"];

/// `afterwrite` is the binary without debug information: most of it, and of no use to the guest.
pub fn build(scenario: &Scenario, kernel: &Unpacked, afterwrite: &Path) -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in ["/proc", "/sys", "/dev", "/tmp", "/run", "/mnt", "/root", "/etc"] {
        archive.directory(directory);
    }
    // Debian's programs may look in any of the four directories of programs.
    archive.symlink("/sbin", "bin");
    archive.symlink("/usr", ".");
    archive.symlink("/etc/mtab", "/proc/self/mounts");

    busybox(&mut archive)?;
    for tool in &scenario.tools {
        let path = run::find(tool).with_context(|| {
            format!(
                "`{tool}`, which scenario {} needs, is not installed: run `cargo xtask setup`",
                scenario.name
            )
        })?;
        program(&mut archive, tool, &path)?;
    }
    if Path::new("/etc/mke2fs.conf").exists() {
        archive.file("/etc/mke2fs.conf", fs::read("/etc/mke2fs.conf")?);
    }
    // A Debian gets it as a package.
    if scenario.debian.is_none() {
        program(&mut archive, "afterwrite", afterwrite)?;
    }
    for name in &scenario.programs {
        program(&mut archive, name, &run::target_dir().join("debug").join(name))?;
    }

    let known = MODULES.iter().filter(|name| kernel.has(name)).map(|name| (*name).to_owned());
    let names: Vec<String> = known.chain(scenario.modules.iter().cloned()).collect();
    let mut order = String::new();
    for (name, content) in kernel.modules(&names)? {
        order.push_str(&name);
        order.push('\n');
        archive.file(&format!("/modules/{name}"), content);
    }
    archive.file("/modules/order", order.into_bytes());
    let parameters: String = scenario.parameters.iter().map(|parameter| format!("{parameter}\n")).collect();
    archive.file("/modules/parameters", parameters.into_bytes());

    let init = if scenario.debian.is_some() { "debian-init.sh" } else { "init.sh" };
    archive.executable("/init", read(&run::root().join("vm-tests").join(init))?);
    for library in ["lib.sh", "devices.sh", "logged.sh", "debian-setup.sh", "debian-run.sh"] {
        archive.file(&format!("/{library}"), read(&run::root().join("vm-tests").join(library))?);
    }
    archive.file("/scenario.sh", read(&scenario.script)?);
    archive.file("/disks", disks(scenario).into_bytes());
    archive.file("/timeout", format!("{}\n", scenario.timeout_seconds).into_bytes());
    Ok(archive)
}

/// What lib.sh reads to know the disks: `source=/dev/vda`, a line each. Kernels name NVMe and SCSI disks in no
/// particular order: lib.sh finds them by their number, `source=nvme:1`.
pub fn disks(scenario: &Scenario) -> String {
    let mut text = String::new();
    let virtio = ('a'..='z').map(|letter| format!("/dev/vd{letter}"));
    let nvme = (1..).map(|number| format!("nvme:{number}"));
    let scsi = (1..).map(|number| format!("scsi:{number}"));
    let places: [(Bus, &mut dyn Iterator<Item = String>); 3] =
        [(Bus::Virtio, &mut { virtio }), (Bus::Nvme, &mut { nvme }), (Bus::Scsi, &mut { scsi })];
    for (bus, places) in places {
        for (disk, place) in scenario.disks_on(bus).zip(places) {
            text.push_str(&format!("{}={place}\n", disk.name));
        }
    }
    text
}

fn busybox(archive: &mut Archive) -> Result<()> {
    let path = run::find("busybox").context("`busybox` is not installed: run `cargo xtask setup`")?;
    let applets = run::output(Command::new(&path).arg("--list"))?;
    archive.executable("/bin/busybox", read(&path)?);
    for applet in applets.lines().filter(|name| *name != "busybox") {
        archive.symlink(&format!("/bin/{applet}"), "busybox");
    }
    if !shared_libraries(&path)?.is_empty() {
        bail!("{} needs shared libraries: install busybox-static instead", path.display());
    }
    Ok(())
}

fn program(archive: &mut Archive, name: &str, path: &Path) -> Result<()> {
    for library in shared_libraries(path)? {
        // /usr is / in the guest.
        let inside = library.strip_prefix("/usr").unwrap_or(&library);
        if !archive.contains(inside) {
            // The kernel starts the loader among them as a program.
            archive.executable(inside, read(Path::new(&library))?);
        }
    }
    archive.executable(&format!("/bin/{name}"), read(path)?);
    Ok(())
}

fn shared_libraries(program: &Path) -> Result<Vec<String>> {
    // ldd fails for a static program, and says so on stderr: then there are none.
    let listing = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&listing.stdout);
    if let Some(lost) = text.lines().find(|line| line.contains("=> not found")) {
        bail!("{}: {}", program.display(), lost.trim());
    }
    Ok(libraries(&text))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)` of ldd's output.
fn libraries(listing: &str) -> Vec<String> {
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(str::to_owned).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_taken_and_the_vdso_is_not() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries(listing), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries("\tstatically linked\n").is_empty());
    }
}
