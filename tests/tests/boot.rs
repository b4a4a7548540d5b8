//! Volumes that are written before and after the service runs: `attach` takes over from the last stop, and `finish` is that stop.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

const SIZE: u64 = 96 * MIB;

/// An image with a volume, as it is from boot to boot, and how it is protected.
struct Machine {
    image: PathBuf,
    config: PathBuf,
    random: Random,
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Result<Machine> {
        let dir = scratch()?;
        let (image, config) = (dir.path().join("volume.img"), dir.path().join("config.toml"));
        blank_image(&image, SIZE)?;
        let mut random = Random::new(seed());
        fill_random(&image, SIZE, &mut random)?;
        Ok(Machine { image, config, random, dir })
    }

    /// As its unit has it protected.
    fn protection(&self, disk: &Loop) -> Result<Protection> {
        let (journal, target) = (self.dir.path().join("journal"), self.dir.path().join("replica.img"));
        let paths = [("source", disk.path()), ("journal", &journal), ("target", &target)];
        let lines = paths.map(|(key, path)| format!("{key} = \"{}\"\n", path.display())).concat();
        std::fs::write(&self.config, format!("[volume.root]\n{lines}trust-reboot = true\nearly = true\n"))?;
        let protection = Protection::new(disk.path())?.journal_at(&journal).target_at(&target);
        Ok(protection.arg("--trust-reboot").arg("--early"))
    }

    fn write(&mut self, device: &Path, blocks: impl IntoIterator<Item = u64>) -> Result<()> {
        let file = File::options().write(true).open(device)?;
        for block in blocks {
            file.write_all_at(&[self.random.number() as u8; 4096], block * 4096)?;
        }
        Ok(file.sync_all()?)
    }

    fn attach(&self, protection: &Protection) -> Result<String> {
        run(protection.client().args(["attach", "--config"]).arg(&self.config))
    }

    fn finish(&self, protection: &Protection) -> Result<Finished> {
        finish(protection.client().args(["finish", "--config"]).arg(&self.config), PATIENCE)
    }

    /// All that was written, up to the end of the shutdown.
    fn finish_in_order(&self, protection: &Protection) -> Result<()> {
        let finished = self.finish(protection)?;
        says(&finished, 0, &["stopped in order:"])?;
        ensure!(!protection.is_in_kernel(), "probes are left");
        assert_identical(protection.device(), protection.target())?;
        protection.check_journal()
    }

    /// The marker of the clean stop says that it was in another boot.
    fn reboot(&self) -> Result<()> {
        let path = self.dir.path().join("journal/stopped.toml");
        let text = std::fs::read_to_string(&path).context("there is no marker")?;
        let (start, rest) = text.split_once("boot = \"").context("the marker names no boot")?;
        let (_, end) = rest.split_once('"').context("the marker names no boot")?;
        Ok(std::fs::write(&path, format!("{start}boot = \"another\"{end}"))?)
    }

    /// The first run of the service, and the end of a shutdown.
    fn first_boot(&mut self) -> Result<()> {
        let disk = Loop::over(&self.image)?;
        self.first_boot_of(&disk)
    }

    fn first_boot_of(&mut self, disk: &Loop) -> Result<()> {
        let protection = self.protection(disk)?;
        let (protect, _) = protection.start_and_settle()?;
        protect.stop()?;
        ensure!(protection.is_in_kernel(), "a stop removed the probes");
        self.write(disk.path(), [3, 4])?;
        self.finish_in_order(&protection)
    }
}

fn compared(protect: &Protect<'_>) -> bool {
    protect.log().contains("comparing")
}

#[test]
fn only_what_is_written_between_attach_and_protect_is_read() -> Result<()> {
    let mut machine = Machine::new()?;
    machine.first_boot()?;
    // The next boot, as this kernel sees it: the same, and other probes.
    for round in 0..3 {
        let disk = Loop::fresh(&machine.image)?;
        machine.reboot()?;
        let protection = machine.protection(&disk)?;
        ensure!(machine.attach(&protection)?.contains("from here on"));
        machine.write(disk.path(), (0..100).map(|n| n * 17 + round))?;
        let (protect, status) = protection.start_and_settle()?;
        ensure!(status["probes"] == "early" && !compared(&protect), "{status}\n{}", protect.log());
        let journaled = status["journaled_bytes"].as_u64().context("no journaled_bytes")?;
        ensure!((100 * 4096..2 * MIB).contains(&journaled), "{journaled} bytes were journaled: {status}");
        ensure!(status["counters"]["seen"] == 100, "{status}");
        machine.write(disk.path(), (0..50).map(|n| 10_000 + n * 3))?;
        protect.stop()?;
        // The file systems are not read-only yet.
        machine.write(disk.path(), (0..50).map(|n| 20_000 + n * 5))?;
        machine.finish_in_order(&protection)?;
    }
    Ok(())
}

#[test]
fn a_second_attach_changes_nothing() -> Result<()> {
    let mut machine = Machine::new()?;
    machine.first_boot()?;
    let disk = Loop::over(&machine.image)?;
    let protection = machine.protection(&disk)?;
    let attach = |device: &Path| run(protection.client().arg("attach").arg(device));
    ensure!(attach(disk.path())?.contains("from here on"));
    machine.write(disk.path(), [7, 70, 700])?;
    ensure!(attach(disk.path())?.contains("already"));
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "early" && status["counters"]["seen"] == 3, "{status}");
    ensure!(attach(disk.path())?.contains("already"), "attached beside protect");
    protect.kill()?;
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "adopted" && !compared(&protect), "{status}");
    protect.stop()?;
    machine.finish_in_order(&protection)
}

/// In the same boot, and with other probes than those that `protect` would attach.
#[test]
fn what_is_written_behind_the_back_of_both_is_found() -> Result<()> {
    let mut machine = Machine::new()?;
    let disk = Loop::over(&machine.image)?;
    machine.first_boot_of(&disk)?;
    let mut protection = machine.protection(&disk)?;
    for (written, ring) in [(false, "--ring=1MiB"), (true, "--ring=1MiB"), (true, "--ring=16MiB")] {
        if written {
            machine.write(disk.path(), [5000])?;
        }
        machine.attach(&protection)?;
        machine.write(disk.path(), [6000])?;
        protection = protection.plain().arg("--trust-reboot").arg("--early").arg(ring);
        let (protect, status) = protection.start_and_settle()?;
        ensure!(status["probes"] == "early", "{status}");
        ensure!(compared(&protect) == written, "{}", protect.log());
        protect.stop()?;
        machine.finish_in_order(&protection)?;
    }
    Ok(())
}

/// A root: mounted all the time, read-only before attach and at the end.
#[test]
fn a_reboot_is_trusted_if_the_volume_was_mounted_read_only_and_not_mounted_for_writing_since() -> Result<()> {
    let machine = Machine::new()?;
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&machine.image))?;
    for (boot, is_compared) in
        [("first", false), ("second", false), ("left read-write", true), ("missed", true)]
    {
        let disk = Loop::fresh(&machine.image)?;
        if boot == "missed" {
            // A boot in which nobody was there, and this one.
            drop(Mount::with_options(disk.path(), "ext4", "rw")?);
            drop(disk);
            continue;
        }
        let protection = machine.protection(&disk)?;
        machine.attach(&protection)?;
        let mount = Mount::with_options(disk.path(), "ext4", "ro")?;
        mount.remount("rw")?;
        std::fs::write(mount.point().join(boot), [7; 9999])?;
        let (protect, status) = protection.start_and_settle()?;
        if boot != "first" {
            ensure!(compared(&protect) == is_compared, "{boot}: {status}\n{}", protect.log());
        }
        std::fs::write(mount.point().join(boot), [8; 9999])?;
        protect.stop()?;
        if boot != "second" {
            mount.remount("ro")?;
        }
        says(&machine.finish(&protection)?, 0, &["stopped in order:"])?;
        machine.reboot()?;
    }
    let disk = Loop::fresh(&machine.image)?;
    let protection = machine.protection(&disk)?;
    machine.attach(&protection)?;
    let (protect, status) = protection.start_and_settle()?;
    ensure!(compared(&protect), "{status}\n{}", protect.log());
    protect.stop()?;
    machine.finish_in_order(&protection)
}

#[test]
fn a_disk_that_went_after_attach_is_another_one() -> Result<()> {
    let mut machine = Machine::new()?;
    machine.first_boot()?;
    let disk = Loop::over(&machine.image)?;
    let protection = machine.protection(&disk)?;
    machine.attach(&protection)?;
    run(Command::new("losetup").arg("--detach").arg(disk.path()))?;
    machine.write(&machine.image.clone(), [5, 6000])?;
    run(Command::new("losetup").arg(disk.path()).arg(&machine.image))?;
    ensure!(machine.attach(&protection)?.contains("from here on"));
    machine.write(disk.path(), [8000])?;
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "early" && compared(&protect), "{status}");
    protect.stop()?;
    machine.finish_in_order(&protection)
}

/// At the end of a shutdown and in the initramfs the place of the journal is a directory of the root.
#[test]
fn a_journal_that_is_not_mounted_is_not_taken_for_one_on_the_volume() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let (config, place) = (mount.point().join("config.toml"), mount.point().join("backup"));
    let (source, place) = (disk.path().display(), place.display());
    let text = format!(
        "[volume.root]\nsource = \"{source}\"\njournal = \"{place}/j\"\ntarget = \"{place}/t\"\n\
         trust-reboot = true\nearly = true\n"
    );
    std::fs::write(&config, text)?;
    let protection = Protection::new(disk.path())?;
    let list = run(protection.client().args(["attach", "--list", "--config"]).arg(&config))?;
    ensure!(list.trim() == source.to_string(), "{list}");
    run(protection.client().args(["attach", "--config"]).arg(&config))?;
    let finished = finish(protection.client().args(["finish", "--config"]).arg(&config), PATIENCE)?;
    says(&finished, 2, &["/etc/fstab"]).map(drop)
}

#[test]
fn what_cannot_be_finished_is_said() -> Result<()> {
    let mut machine = Machine::new()?;
    let disk = Loop::over(&machine.image)?;
    machine.first_boot_of(&disk)?;
    let protection = machine.protection(&disk)?;
    says(&machine.finish(&protection)?, 2, &["no probes are at work", "compares all"])?;
    machine.attach(&protection)?;
    let journal = machine.dir.path().join("journal");
    std::fs::rename(&journal, journal.with_extension("away"))?;
    says(&machine.finish(&protection)?, 2, &["/etc/fstab", "compares the whole volume"])?;
    ensure!(protection.is_in_kernel());
    std::fs::rename(journal.with_extension("away"), &journal)?;
    // The service never ran.
    machine.write(disk.path(), [77])?;
    machine.finish_in_order(&protection)?;
    machine.write(disk.path(), [78])?;
    machine.attach(&protection)?;
    says(&machine.finish(&protection)?, 2, &["has to be compared"])?;
    ensure!(!machine.dir.path().join("journal/stopped.toml").exists(), "there is a marker");
    Ok(())
}
