//! A virtual machine as QEMU is told of it, and its end.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::run;
use crate::scenario::{Bus, Disk, Scenario};

const MEMORY_MIB: u32 = 1024;

/// A machine without disks, and without anything to start. Its serial port goes to the file `console`.
pub fn machine(console: &Path, processors: u32) -> Result<Command> {
    let mut qemu = run::program("qemu-system-x86_64")?;
    let mut serial = OsString::from("file:");
    serial.push(console);
    // Emulated, on one thread: with one thread per guest CPU both kernels broke when probes were attached under I/O.
    qemu.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", &processors.to_string()])
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial"])
        .arg(serial);
    Ok(qemu)
}

/// What is handed to the machine as a disk.
pub enum Backing<'a> {
    /// A raw image.
    Image(&'a Path),
    /// The socket of an NBD server.
    Served(&'a Path),
}

/// Adds a disk; one that is not virtio-blk is attached by [`adapters`].
pub fn add_disk(qemu: &mut Command, disk: &Disk, backing: &Backing<'_>) -> Result<()> {
    let backing = match backing {
        // A cache that QEMU leaves alone: the guest's flushes are for the server.
        Backing::Served(socket) => format!(
            "cache=writeback,file.driver=nbd,file.server.type=unix,file.server.path={}",
            escaped(socket)?
        ),
        // These live no longer than the run, so the host need not sync them; a crash of the guest loses nothing.
        Backing::Image(image) => format!("cache=unsafe,file={}", escaped(image)?),
    };
    let interface = if disk.bus == Bus::Virtio { "virtio" } else { "none" };
    let drive = format!("if={interface},id={},format=raw,discard=unmap,{backing}", disk.name);
    qemu.args(["-drive", &drive]);
    Ok(())
}

/// QEMU's devices for the disks that are not virtio-blk, numbered from 1.
pub fn adapters(scenario: &Scenario) -> Vec<String> {
    let mut devices = Vec::new();
    // In a subsystem of its own, so that the kernel takes it for one that may have several paths.
    let nvme = ["nvme-subsys,id=subsystem", "nvme,id=nvme,serial=afterwrite,subsys=subsystem"];
    for (bus, adapters, device, number) in [
        (Bus::Nvme, &nvme[..], "nvme-ns,bus=nvme", "nsid"),
        (Bus::Scsi, &["virtio-scsi-pci,id=scsi"], "scsi-hd,bus=scsi.0", "scsi-id"),
    ] {
        let mut disks = (1..).zip(scenario.disks_on(bus)).peekable();
        if disks.peek().is_some() {
            devices.extend(adapters.iter().map(|adapter| (*adapter).to_owned()));
        }
        devices.extend(disks.map(|(index, disk)| {
            let (name, sector) = (&disk.name, disk.sector_bytes);
            let sectors = format!("logical_block_size={sector},physical_block_size={sector}");
            format!("{device},{number}={index},drive={name},{sectors}")
        }));
    }
    devices
}

/// Starts it; what QEMU itself has to say goes to the file `messages`.
pub fn start(mut qemu: Command, messages: &Path) -> Result<Child> {
    let messages = File::create(messages)?;
    qemu.stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages);
    qemu.spawn().context("cannot start qemu-system-x86_64")
}

/// `None`: it was still running when the time was over, and was ended.
pub fn wait(mut qemu: Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = qemu.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            qemu.kill()?;
            qemu.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A path within one of QEMU's comma-separated options.
fn escaped(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8, which QEMU needs", path.display()))?;
    Ok(text.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hanging_guest_is_stopped() {
        let child = Command::new("sleep").arg("60").spawn().expect("sleep exists");
        let begun = Instant::now();
        assert_eq!(wait(child, Duration::from_millis(100)).expect("it can be killed"), None);
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
