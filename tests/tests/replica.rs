//! The promise itself: under load, the replica becomes the source, and every mark is a sound file system.

use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

/// Protects a busy file system, makes three marks under load, stops, and checks everything there is to check.
fn protects_a_busy_file_system(device: &dyn Device, fs: Fs) -> Result<()> {
    let mut random = Random::new(seed());
    let mount = Mount::make(fs, device.path())?;
    let protection = Protection::new(device.path())?;
    let protect = protection.start()?;

    let fio = Fio::in_directory(mount.point(), load_seconds())?;
    let churn = Churn::start(mount.point(), "churn", Random::new(random.number()))?;
    let mut steady = Workload::new(&mount.point().join("steady"), Random::new(random.number()))?;
    let mut marks = Vec::new();
    let (begun, load) = (Instant::now(), Duration::from_secs(load_seconds()));
    for (label, part) in ["one", "two", "three"].into_iter().zip(1..) {
        wait_until("the mark is due", load + PATIENCE, || Ok(begun.elapsed() >= load * part / 4))?;
        // Not synced: a frozen file system has written it all the same.
        steady.run(150)?;
        protect.mark(label)?;
        marks.push((label, steady.manifest()));
    }
    fio.finish()?;
    let churn = churn.finish()?;
    protect.mark("four")?;
    let last = churn.manifest();
    mount.unmount()?;
    protect.stop()?;

    assert_identical(device.path(), protection.target())?;
    check_file_system(fs, protection.target())?;
    protection.check_journal()?;
    let image = protection.dir().join("replayed.img");
    for (label, manifest) in marks.iter().map(|(label, manifest)| (*label, manifest)) {
        protection.replay(&format!("mark:{label}"), &image)?;
        check_image(fs, &image, "steady".as_ref(), manifest).with_context(|| format!("mark {label}"))?;
        std::fs::remove_file(&image)?;
    }
    protection.replay("mark:four", &image)?;
    check_image(fs, &image, "churn".as_ref(), &last).context("mark four")?;
    std::fs::remove_file(&image)?;
    protection.replay("latest", &image)?;
    assert_identical(device.path(), &image).context("replay to the latest point")?;
    let verify = run(afterwrite().arg("verify").arg(device.path()).arg(protection.target()));
    verify.context("verify of source and replica").map(drop)
}

#[test]
fn ext4_on_loop() -> Result<()> {
    protects_a_busy_file_system(&Loop::new(Fs::Ext4.volume_bytes())?, Fs::Ext4)
}

#[test]
fn ext4_on_zram() -> Result<()> {
    protects_a_busy_file_system(&Zram::new(Fs::Ext4.volume_bytes())?, Fs::Ext4)
}

#[test]
fn ext4_on_loop_with_4096_byte_sectors() -> Result<()> {
    protects_a_busy_file_system(&Loop::with_sectors(Fs::Ext4.volume_bytes(), 4096)?, Fs::Ext4)
}

#[test]
fn xfs_on_loop() -> Result<()> {
    protects_a_busy_file_system(&Loop::new(Fs::Xfs.volume_bytes())?, Fs::Xfs)
}

#[test]
fn xfs_on_zram() -> Result<()> {
    protects_a_busy_file_system(&Zram::new(Fs::Xfs.volume_bytes())?, Fs::Xfs)
}

#[test]
fn btrfs_on_loop() -> Result<()> {
    protects_a_busy_file_system(&Loop::new(Fs::Btrfs.volume_bytes())?, Fs::Btrfs)
}

#[test]
fn btrfs_on_zram() -> Result<()> {
    protects_a_busy_file_system(&Zram::new(Fs::Btrfs.volume_bytes())?, Fs::Btrfs)
}

#[test]
fn stopped_under_load_the_replica_is_the_last_point_and_sound() -> Result<()> {
    let disk = Loop::new(Fs::Ext4.volume_bytes())?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Protection::new(disk.path())?;
    let protect = protection.start()?;
    let churn = Churn::start(mount.point(), "churn", Random::new(seed()))?;
    churn.wait_for(500)?;
    protect.stop()?;
    churn.finish()?;

    check_file_system(Fs::Ext4, protection.target())?;
    let image = protection.dir().join("replayed.img");
    protection.replay("latest", &image)?;
    ensure!(
        finish(std::process::Command::new("cmp").arg(&image).arg(protection.target()), PATIENCE)?.code
            == Some(0),
        "the replica is not the last point of its journal"
    );
    Ok(())
}

#[test]
fn target_may_be_a_larger_block_device() -> Result<()> {
    let (disk, target) = (Loop::new(32 * MIB)?, Zram::new(48 * MIB)?);
    fill_random(disk.path(), 20 * MIB, &mut Random::new(seed()))?;
    let protection = Protection::new(disk.path())?.target_at(target.path());
    let protect = protection.start()?;
    Fio::on_device(disk.path(), 1)?.finish()?;
    protect.stop()?;
    assert_identical(disk.path(), target.path())
}

#[test]
fn file_system_inside_a_file_on_the_volume_is_frozen_too() -> Result<()> {
    let disk = Loop::new(Fs::Ext4.volume_bytes())?;
    let outer = Mount::make(Fs::Ext4, disk.path())?;
    let image = outer.point().join("inner.img");
    blank_image(&image, 32 * MIB)?;
    let inner_disk = Loop::over(&image)?;
    let inner = Mount::make(Fs::Ext4, inner_disk.path())?;
    let protection = Protection::new(disk.path())?;
    let protect = protection.start()?;
    let churn = Churn::start(outer.point(), "churn", Random::new(seed()))?;
    let mut steady = Workload::new(&inner.point().join("steady"), Random::new(11))?;
    steady.run(100)?;
    protect.mark("nested")?;
    let manifest = steady.manifest();
    churn.finish()?;
    protect.stop()?;

    let replayed = protection.dir().join("replayed.img");
    protection.replay("mark:nested", &replayed)?;
    let device = Loop::read_only(&replayed)?;
    let mount = Mount::read_only(Fs::Ext4, device.path())?;
    check_image(Fs::Ext4, &mount.point().join("inner.img"), "steady".as_ref(), &manifest)
}

#[test]
fn read_only_device_that_becomes_writable() -> Result<()> {
    let disk = Loop::new(16 * MIB)?;
    let read_only = |flag: &str| run(std::process::Command::new("blockdev").arg(flag).arg(disk.path()));
    fill_random(disk.path(), 8 * MIB, &mut Random::new(seed()))?;
    read_only("--setro")?;
    let protection = Protection::new(disk.path())?;
    let protect = protection.start()?;
    protect.mark("read-only")?;
    read_only("--setrw")?;
    fill_random(disk.path(), 16 * MIB, &mut Random::new(seed() + 1))?;
    protect.stop()?;
    assert_identical(disk.path(), protection.target())
}
