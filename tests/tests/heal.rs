//! Journal or target fail, or nobody empties the ring: the source's writes go on, `status` says so, and it heals by itself.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

const SIZE: u64 = 64 * MIB;

/// A small disk of its own with ext4 on it, for journal or target.
struct SmallDisk {
    mount: Mount,
    _disk: Loop,
}

impl SmallDisk {
    fn new(size_bytes: u64) -> Result<SmallDisk> {
        let disk = Loop::new(size_bytes)?;
        Ok(SmallDisk { mount: Mount::make(Fs::Ext4, disk.path())?, _disk: disk })
    }

    fn point(&self) -> &Path {
        self.mount.point()
    }

    /// From here on every read, write and sync fails, and what was not synced is lost.
    fn pull(&self) -> Result<()> {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.point())).map(drop)
    }

    /// Mounted again, as it can be once nobody holds files of it open.
    fn plug(&mut self) -> Result<()> {
        self.mount.cycle(PATIENCE)
    }

    /// Takes all room that is left.
    fn fill(&self) -> Result<()> {
        let stat = nix::sys::statvfs::statvfs(self.point())?;
        let free = stat.blocks_free() * stat.fragment_size();
        let ballast = self.point().join("ballast");
        File::create(&ballast)?;
        for bytes in [free, free - free / 64, free - free / 16] {
            let all =
                finish(Command::new("fallocate").args(["-l", &bytes.to_string()]).arg(&ballast), PATIENCE)?;
            if all.code == Some(0) {
                return Ok(());
            }
        }
        anyhow::bail!("the disk can't be filled")
    }

    fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.point().join("ballast"))?)
    }
}

/// Writes all over the device and says how long it took: with the backup's side out of order, too, it must end.
fn write_all(device: &Path, random: &mut Random) -> Result<Duration> {
    let begun = Instant::now();
    fill_random(device, SIZE, random)?;
    Ok(begun.elapsed())
}

fn text(status: &Value, path: &str) -> String {
    status.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Live again, with a mark of now, and identical after the stop.
fn heals(mut protect: Protect<'_>, protection: &Protection, device: &Path) -> Result<()> {
    protect.wait_live()?;
    protect.wait_for("has healed", |status| {
        status[0]["paused"].is_null() && status[0]["replica"]["error"].is_null()
    })?;
    protect.mark("healed")?;
    let mut last = Value::Null;
    protect.wait_for("has counted all", |status| {
        last = status[0]["counters"].clone();
        let count = |name: &str| last[name].as_u64().unwrap_or(0);
        count("seen") == count("emitted") + count("marked")
    })?;
    protect.stop()?;
    assert_identical(device, protection.target())?;
    protection.check_journal()
}

/// A protection whose journal is on the small disk, which is full now.
fn paused_by_a_full_disk<'a>(
    protection: &'a Protection,
    small: &SmallDisk,
    device: &Path,
    random: &mut Random,
) -> Result<Protect<'a>> {
    let mut protect = protection.start()?;
    small.fill()?;
    write_all(device, random)?;
    protect.wait_for("is paused", |status| status[0]["state"] == "paused")?;
    Ok(protect)
}

#[test]
fn a_full_journal_disk_pauses_and_goes_on_when_there_is_room() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    let small = SmallDisk::new(400 * MIB)?;
    let protection = Protection::new(disk.path())?.journal_at(&small.point().join("journal"));
    let protect = paused_by_a_full_disk(&protection, &small, disk.path(), &mut random)?;
    let status = protect.volume_status()?;
    ensure!(text(&status, "/paused").contains("no space left"), "{status}");
    ensure!(status["recording"] == "bitmap", "{status}");
    // Still paused, and still nobody waits.
    write_all(disk.path(), &mut random)?;
    let mark = finish(protection.client().args(["mark", "--label", "now"]), PATIENCE)?;
    says(&mark, 2, &["paused", "no space left"])?;
    small.empty()?;
    heals(protect, &protection, disk.path())
}

#[test]
fn a_journal_disk_that_fails_is_taken_up_again_when_it_works() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Zram::new(SIZE)?;
    let mut small = SmallDisk::new(400 * MIB)?;
    let protection = Protection::new(disk.path())?.journal_at(&small.point().join("journal"));
    let mut protect = protection.start()?;
    for _ in 0..2 {
        small.pull()?;
        write_all(disk.path(), &mut random)?;
        protect.wait_for("is paused", |status| status[0]["state"] == "paused")?;
        ensure!(!text(&protect.volume_status()?, "/paused").is_empty());
        write_all(disk.path(), &mut random)?;
        small.plug()?;
        protect.wait_live()?;
    }
    heals(protect, &protection, disk.path())
}

#[test]
fn stopped_while_paused_it_says_so_and_the_next_start_goes_on() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    let small = SmallDisk::new(400 * MIB)?;
    let protection = Protection::new(disk.path())?.journal_at(&small.point().join("journal"));
    let protect = paused_by_a_full_disk(&protection, &small, disk.path(), &mut random)?;
    protect.signal(Signal::SIGTERM)?;
    says(&protect.ended()?, 2, &["the probes go on recording", "no space left"])?;
    write_all(disk.path(), &mut random)?;
    small.empty()?;
    let protect = protection.start()?;
    ensure!(protect.volume_status()?["probes"] == "adopted");
    heals(protect, &protection, disk.path())
}

#[test]
fn a_failing_target_does_not_stop_the_journal() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    let mut small = SmallDisk::new(200 * MIB)?;
    let protection = Protection::new(disk.path())?.target_at(&small.point().join("replica.img"));
    let mut protect = protection.start()?;
    small.pull()?;
    for label in ["while away", "still away"] {
        write_all(disk.path(), &mut random)?;
        protect.mark(label)?;
    }
    protect.wait_for("says that the target fails", |status| !status[0]["replica"]["error"].is_null())?;
    let status = protect.volume_status()?;
    ensure!(status["state"] == "live" && status["paused"].is_null(), "{status}");
    ensure!(status["replica"]["consistent"] == false, "{status}");
    small.plug()?;
    heals(protect, &protection, disk.path())?;
    let points = protection.points()?;
    let labels = points.iter().filter(|point| point["label"].as_str().is_some_and(|l| l.ends_with("away")));
    ensure!(labels.count() == 2, "{points:?}");
    Ok(())
}

#[test]
fn a_target_that_fails_while_nothing_is_applied_is_noticed() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mut small = SmallDisk::new(200 * MIB)?;
    let protection =
        Protection::new(disk.path())?.target_at(&small.point().join("replica.img")).arg("--mark-every=never");
    let mut protect = protection.start()?;
    small.pull()?;
    protect.wait_for("says that the target fails", |status| !status[0]["replica"]["error"].is_null())?;
    small.plug()?;
    heals(protect, &protection, disk.path())
}

#[test]
fn a_target_that_is_gone_is_found_again() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Zram::new(SIZE)?;
    let small = SmallDisk::new(200 * MIB)?;
    let protection = Protection::new(disk.path())?.target_at(&small.point().join("replica.img"));
    let mut protect = protection.start()?;
    small.fill()?;
    // On a full disk a sparse image can't grow.
    write_all(disk.path(), &mut random)?;
    protect.mark("full")?;
    protect.wait_for("says that the target fails", |status| !status[0]["replica"]["error"].is_null())?;
    let away = small.point().join("away.img");
    std::fs::rename(protection.target(), &away)?;
    small.empty()?;
    protect.wait_for("misses the target", |status| {
        status[0]["replica"]["error"].as_str().is_some_and(|why| why.contains("replica.img"))
    })?;
    std::fs::rename(&away, protection.target())?;
    heals(protect, &protection, disk.path())
}

#[test]
fn stopped_by_a_signal_writes_go_through_the_bitmap() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    let protection = Protection::new(disk.path())?.arg("--ring=64KiB");
    let mut protect = protection.start()?;
    protect.signal(Signal::SIGSTOP)?;
    let file = File::options().write(true).open(disk.path())?;
    for _ in 0..3 {
        write_all(disk.path(), &mut random)?;
        for block in 0..2000u64 {
            std::os::unix::fs::FileExt::write_all_at(&file, &[block as u8; 512], block * 8192)?;
            if block % 4 == 0 {
                file.sync_data()?;
            }
        }
        file.sync_data()?;
    }
    protect.signal(Signal::SIGCONT)?;
    protect.wait_for("has taken the bitmap", |status| status[0]["counters"]["marked"].as_u64() > Some(0))?;
    heals(protect, &protection, disk.path())
}
