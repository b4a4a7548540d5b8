//! Every instant of a payload capture is what a power cut would have left then: nothing that was acknowledged is missing,
//! nothing later is there, and only what was under way is torn. On the device itself, and on file systems on it.
//!
//! What is acknowledged and what is legal is in `src/legal.rs`. With extents only marks are restored, and judged the same
//! way. AFTERWRITE_INSTANTS is how many instants each test restores (default 4), AFTERWRITE_SECONDS how long the load is.

use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result};

const DEVICE_BYTES: u64 = 32 * MIB;
/// Of a file system: room for what the writers append.
const VOLUME_BYTES: u64 = 64 * MIB;
const REGION_BYTES: u64 = 2 * MIB;
const WRITERS: u32 = 4;
/// Of each test.
const INSTANTS: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    /// Several threads, a write each at a time.
    OneAtATime,
    /// One thread, many at a time.
    ManyAtATime,
}

/// Writes to the bare device, of sectors of `unit` bytes, and judges instants of it.
fn bare_device(device: &dyn Device, unit: u64, writing: Writing, capture: Capture) -> Result<()> {
    let mut random = Random::new(seed());
    let mut initial = random.bytes(usize::try_from(DEVICE_BYTES / 2)?);
    initial.resize(usize::try_from(DEVICE_BYTES)?, 0);
    std::fs::write(device.path(), &initial)?;
    let protection = capture.protection(device.path())?;

    let (mut writing_random, length) = (Random::new(random.number()), Duration::from_secs(load_seconds()));
    let path = device.path();
    let load = || match writing {
        Writing::OneAtATime => {
            let regions = Region::all(WRITERS, REGION_BYTES, unit);
            let writes = write_one_at_a_time(path, &regions, length, &mut writing_random)?;
            Ok((regions, writes))
        }
        Writing::ManyAtATime => {
            let regions = Region::all(1, REGION_BYTES, unit);
            let writes = write_many_at_a_time(path, regions[0], length, &mut writing_random)?;
            Ok((regions, vec![writes]))
        }
    };
    let chosen = (length, instants(INSTANTS));
    let ((regions, writes), points) = capture.points_of(&protection, chosen, &mut random, load, || Ok(()))?;
    println!("{}: {} writes", device.path().display(), writes.iter().map(Vec::len).sum::<usize>());
    let history = DeviceHistory::new(initial, regions, writes);
    prove(&protection, &points, |image| history.find(&std::fs::read(image)?))
}

/// Writes to files on the device, and judges instants of it: the kernel recovers the file system, and then it is sound.
fn file_system(device: &dyn Device, fs: Fs, capture: Capture) -> Result<()> {
    let mut random = Random::new(seed());
    let mount = Mount::make(fs, device.path())?;
    let protection = capture.protection(device.path())?;
    // Beside the files that are synced some that are not.
    let churn = Churn::trimming(mount.point(), "churn", Random::new(random.number()), u64::MAX)?;

    let (mut writing_random, length) = (Random::new(random.number()), Duration::from_secs(load_seconds()));
    let point = mount.point().to_owned();
    let chosen = (length, instants(INSTANTS));
    let load = || write_files(&point, length, &mut writing_random);
    let end = || {
        churn.finish()?;
        mount.unmount()
    };
    let (files, points) = capture.points_of(&protection, chosen, &mut random, load, end)?;
    let operations: usize = files.iter().map(FileHistory::len).sum();
    println!("{} on {}: {operations} operations on files", fs.name(), device.path().display());

    prove(&protection, &points, |image| {
        let device = Loop::over(image)?;
        let mount = Mount::recovered(fs, device.path()).context("recovery by the kernel")?;
        let found: Vec<_> = files.iter().map(|file| file.find(mount.point())).collect::<Result<_>>()?;
        mount.unmount()?;
        fsck(fs, device.path()).context("after the recovery")?;
        Ok(found.concat())
    })
}

#[test]
fn marks_on_a_bare_loop_device_are_legal() -> Result<()> {
    bare_device(&Loop::new(DEVICE_BYTES)?, 512, Writing::OneAtATime, Capture::Extents)
}

#[test]
fn marks_on_a_bare_zram_device_are_legal() -> Result<()> {
    bare_device(&Zram::new(DEVICE_BYTES)?, 4096, Writing::ManyAtATime, Capture::Extents)
}

#[test]
fn instants_on_a_bare_loop_device_are_legal() -> Result<()> {
    bare_device(&Loop::new(DEVICE_BYTES)?, 512, Writing::OneAtATime, Capture::Payload)
}

#[test]
fn instants_on_a_bare_loop_device_with_writes_under_way_are_legal() -> Result<()> {
    bare_device(&Loop::new(DEVICE_BYTES)?, 512, Writing::ManyAtATime, Capture::Payload)
}

#[test]
fn instants_on_a_bare_zram_device_are_legal() -> Result<()> {
    bare_device(&Zram::new(DEVICE_BYTES)?, 4096, Writing::OneAtATime, Capture::Payload)
}

#[test]
fn instants_on_a_bare_zram_device_with_writes_under_way_are_legal() -> Result<()> {
    bare_device(&Zram::new(DEVICE_BYTES)?, 4096, Writing::ManyAtATime, Capture::Payload)
}

#[test]
fn instants_of_an_overloaded_capture_on_loop_are_legal() -> Result<()> {
    bare_device(&Loop::new(DEVICE_BYTES)?, 512, Writing::ManyAtATime, Capture::Overloaded)
}

#[test]
fn instants_of_an_overloaded_capture_on_zram_are_legal() -> Result<()> {
    bare_device(&Zram::new(DEVICE_BYTES)?, 4096, Writing::OneAtATime, Capture::Overloaded)
}

#[test]
fn instants_of_ext4_under_an_overloaded_capture_are_legal() -> Result<()> {
    file_system(&Loop::new(VOLUME_BYTES)?, Fs::Ext4, Capture::Overloaded)
}

#[test]
fn marks_of_ext4_are_legal() -> Result<()> {
    file_system(&Loop::new(VOLUME_BYTES)?, Fs::Ext4, Capture::Extents)
}

#[test]
fn marks_of_xfs_are_legal() -> Result<()> {
    file_system(&Zram::new(VOLUME_BYTES)?, Fs::Xfs, Capture::Extents)
}

#[test]
fn instants_of_ext4_on_loop_are_legal() -> Result<()> {
    file_system(&Loop::new(VOLUME_BYTES)?, Fs::Ext4, Capture::Payload)
}

#[test]
fn instants_of_ext4_on_zram_are_legal() -> Result<()> {
    file_system(&Zram::new(VOLUME_BYTES)?, Fs::Ext4, Capture::Payload)
}

#[test]
fn instants_of_xfs_on_loop_are_legal() -> Result<()> {
    file_system(&Loop::new(VOLUME_BYTES)?, Fs::Xfs, Capture::Payload)
}

#[test]
fn instants_of_xfs_on_zram_are_legal() -> Result<()> {
    file_system(&Zram::new(VOLUME_BYTES)?, Fs::Xfs, Capture::Payload)
}
