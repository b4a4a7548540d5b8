//! The fixtures themselves, without afterwrite: what the other tests stand on.

use std::process::Command;
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Result, ensure};

#[test]
fn file_systems_on_both_kinds_of_device_hold_what_the_workload_says() -> Result<()> {
    for fs in Fs::ALL {
        let (disk, zram) = (Loop::new(fs.volume_bytes())?, Zram::new(fs.volume_bytes())?);
        for device in [&disk as &dyn Device, &zram] {
            let mount = Mount::make(fs, device.path())?;
            let mut workload = Workload::new(&mount.point().join("files"), Random::new(7))?;
            workload.run(1500)?;
            mount.fstrim()?;
            mount.unmount()?;
            let again = Mount::with_options(device.path(), fs.name(), "ro")?;
            let found = Manifest::read(&again.point().join("files"))?;
            ensure!(found.len() >= 4);
            found.ensure_equals(&workload.manifest())?;
            again.unmount()?;
            check_file_system(fs, device.path())?;
        }
    }
    Ok(())
}

#[test]
fn image_taken_from_a_frozen_file_system_passes_and_an_altered_one_does_not() -> Result<()> {
    for fs in Fs::ALL {
        let disk = Loop::new(fs.volume_bytes())?;
        let mount = Mount::make(fs, disk.path())?;
        let churn = Churn::start(mount.point(), "churn", Random::new(1))?;
        let mut steady = Workload::new(&mount.point().join("steady"), Random::new(2))?;
        steady.run(300)?;
        let dir = scratch()?;
        let copy = dir.path().join("copy.img");
        run(Command::new("fsfreeze").arg("--freeze").arg(mount.point()))?;
        let copied = run(Command::new("cp").arg("--sparse=always").arg(disk.image()).arg(&copy));
        run(Command::new("fsfreeze").arg("--unfreeze").arg(mount.point()))?;
        copied?;
        let manifest = steady.manifest();
        steady.run(50)?;
        churn.finish()?;
        // btrfs does not always mount a copy beside its original.
        mount.unmount()?;
        check_image(fs, &copy, "steady".as_ref(), &manifest)?;
        let later = check_image(fs, &copy, "steady".as_ref(), &steady.manifest());
        ensure!(later.is_err(), "{}: another manifest passed too", fs.name());
    }
    Ok(())
}

#[test]
fn comparison_finds_one_byte() -> Result<()> {
    let disk = Loop::new(4 * MIB)?;
    fill_random(disk.path(), 4 * MIB, &mut Random::new(3))?;
    let dir = scratch()?;
    let copy = dir.path().join("copy.img");
    std::fs::copy(disk.image(), &copy)?;
    assert_identical(disk.path(), &copy)?;
    let mut bytes = std::fs::read(&copy)?;
    bytes[3_000_000] ^= 1;
    std::fs::write(&copy, bytes)?;
    let error = assert_identical(disk.path(), &copy).expect_err("one byte differs").to_string();
    ensure!(error.contains("3000001"), "{error}");
    Ok(())
}

#[test]
fn fio_and_churn_stop_when_told() -> Result<()> {
    let disk = Loop::new(Fs::Ext4.volume_bytes())?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let fio = Fio::in_directory(mount.point(), 600)?;
    let churn = Churn::start(mount.point(), "churn", Random::new(5))?;
    churn.wait_for(500)?;
    let workload = churn.finish()?;
    Manifest::read(workload.dir())?.ensure_equals(&workload.manifest())?;
    fio.stop()?;
    Fio::in_directory(mount.point(), 1)?.finish()?;
    mount.unmount()
}

#[test]
fn partitions_are_made_and_go_with_their_disk() -> Result<()> {
    let first = {
        let mut disk = Loop::new(8 * MIB)?;
        let first = disk.add_partition(MIB, 2 * MIB)?;
        let second = disk.add_partition(3 * MIB, 5 * MIB)?;
        let size = run(Command::new("blockdev").arg("--getsize64").arg(&second))?;
        ensure!(size.trim() == (5 * MIB).to_string(), "{size}");
        first
    };
    ensure!(!first.exists());
    Ok(())
}

#[test]
fn command_that_does_not_end_is_killed_and_told() {
    let error = finish(
        Command::new("sh").args(["-c", "echo begun; exec tail -f /dev/null"]),
        Duration::from_millis(300),
    );
    let error = error.expect_err("it never ends").to_string();
    assert!(error.contains("has not ended") && error.contains("begun"), "{error}");
}
