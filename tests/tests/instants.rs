//! Every instant of a payload capture is what a power cut would have left then: nothing that was acknowledged is missing,
//! nothing later is there, and only what was under way is torn. On the device itself, and on file systems on it.
//!
//! What is acknowledged and what is legal is in `src/legal.rs`. With extents only marks are restored, and judged the same
//! way. AFTERWRITE_INSTANTS is how many instants each test restores (default 6), AFTERWRITE_SECONDS how long the load is.

use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

const DEVICE_BYTES: u64 = 32 * MIB;
/// Of a file system: room for what the writers append.
const VOLUME_BYTES: u64 = 64 * MIB;
const REGION_BYTES: u64 = 2 * MIB;
const WRITERS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Capture {
    Extents,
    Payload,
}

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
    let (protection, name) = protection(device, capture)?;
    let protect = protection.start()?;
    protect.mark("before")?;

    let load = Duration::from_secs(load_seconds());
    let begun_ns = now_ns();
    let (regions, writes) = std::thread::scope(|scope| {
        let marks = scope.spawn(|| mark_during(&protect, load));
        let written = match writing {
            Writing::OneAtATime => {
                let regions = Region::all(WRITERS, REGION_BYTES, unit);
                write_one_at_a_time(device.path(), &regions, load, &mut random)
                    .map(|writes| (regions, writes))
            }
            Writing::ManyAtATime => {
                let region = Region::all(1, REGION_BYTES, unit)[0];
                write_many_at_a_time(device.path(), region, load, &mut random)
                    .map(|writes| (vec![region], vec![writes]))
            }
        };
        marks.join().expect("marks are made or not, without a panic")?;
        written
    })?;
    let ended_ns = now_ns();
    protect.stop()?;
    println!("{name}: {} writes", writes.iter().map(Vec::len).sum::<usize>());

    let history = DeviceHistory::new(initial, regions, writes);
    let points = points(&protection, capture, begun_ns, ended_ns, &mut random)?;
    prove(&protection, &points, |image| history.find(&std::fs::read(image)?))
}

fn protection(device: &dyn Device, capture: Capture) -> Result<(Protection, String)> {
    let protection = Protection::new(device.path())?.arg("--mark-every").arg("never");
    let protection = match capture {
        Capture::Extents => protection,
        Capture::Payload => protection.arg("--capture").arg("payload"),
    };
    Ok((protection, format!("{} {capture:?}", device.path().display())))
}

/// Marks from time to time. On a bare device that is always busy there may be none.
fn mark_during(protect: &Protect<'_>, load: Duration) -> Result<()> {
    let begun = std::time::Instant::now();
    while begun.elapsed() < load * 9 / 10 {
        std::thread::sleep(load / 8);
        protect.mark("during")?;
    }
    Ok(())
}

fn points(
    protection: &Protection,
    capture: Capture,
    begun_ns: u64,
    ended_ns: u64,
    random: &mut Random,
) -> Result<Vec<Point>> {
    let mut points = marks(protection, "during")?;
    ensure!(!points.is_empty(), "no mark during the load can be restored: {:?}", protection.points()?);
    points.truncate(usize::try_from(instants())?);
    if capture == Capture::Payload {
        let listing = run(afterwrite().arg("points").arg(protection.journal()).arg("--json"))?;
        let listing = serde_json::from_str(&listing).with_context(|| format!("not JSON: {listing}"))?;
        points.extend(choose(&Stretch::all(&listing)?, begun_ns, ended_ns, random)?);
    }
    Ok(points)
}

/// Writes to files on the device, and judges instants of it: the kernel recovers the file system, and then it is sound.
fn file_system(device: &dyn Device, fs: Fs, capture: Capture) -> Result<()> {
    let mut random = Random::new(seed());
    let mount = Mount::make(fs, device.path())?;
    let (protection, name) = protection(device, capture)?;
    let protect = protection.start()?;
    // Beside them what nobody syncs.
    let churn = Churn::trimming(mount.point(), "churn", Random::new(random.number()), u64::MAX)?;
    protect.mark("before")?;

    let load = Duration::from_secs(load_seconds());
    let begun_ns = now_ns();
    let files = std::thread::scope(|scope| {
        let marks = scope.spawn(|| mark_during(&protect, load));
        let files = write_files(mount.point(), load, &mut random);
        marks.join().expect("marks are made or not, without a panic")?;
        files
    })?;
    let ended_ns = now_ns();
    churn.finish()?;
    mount.unmount()?;
    protect.stop()?;
    println!("{name}: {} operations on files", files.iter().map(FileHistory::len).sum::<usize>());

    let points = points(&protection, capture, begun_ns, ended_ns, &mut random)?;
    prove(&protection, &points, |image| {
        let device = Loop::over(image)?;
        let options = if fs == Fs::Xfs { "nouuid" } else { "rw" };
        let mount =
            Mount::with_options(device.path(), fs.name(), options).context("recovery by the kernel")?;
        let mut found = Vec::new();
        for file in &files {
            found.extend(file.find(mount.point())?);
        }
        mount.unmount()?;
        fsck(fs, device.path()).context("after the recovery")?;
        Ok(found)
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
    if !payload_is_offered("instants of a bare loop device")? {
        return Ok(());
    }
    bare_device(&Loop::new(DEVICE_BYTES)?, 512, Writing::OneAtATime, Capture::Payload)
}

#[test]
fn instants_on_a_bare_loop_device_with_writes_under_way_are_legal() -> Result<()> {
    if !payload_is_offered("instants of a bare loop device with writes under way")? {
        return Ok(());
    }
    bare_device(&Loop::new(DEVICE_BYTES)?, 512, Writing::ManyAtATime, Capture::Payload)
}

#[test]
fn instants_on_a_bare_zram_device_are_legal() -> Result<()> {
    if !payload_is_offered("instants of a bare zram device")? {
        return Ok(());
    }
    bare_device(&Zram::new(DEVICE_BYTES)?, 4096, Writing::OneAtATime, Capture::Payload)
}

#[test]
fn instants_on_a_bare_zram_device_with_writes_under_way_are_legal() -> Result<()> {
    if !payload_is_offered("instants of a bare zram device with writes under way")? {
        return Ok(());
    }
    bare_device(&Zram::new(DEVICE_BYTES)?, 4096, Writing::ManyAtATime, Capture::Payload)
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
    if !payload_is_offered("instants of ext4 on loop")? {
        return Ok(());
    }
    file_system(&Loop::new(VOLUME_BYTES)?, Fs::Ext4, Capture::Payload)
}

#[test]
fn instants_of_ext4_on_zram_are_legal() -> Result<()> {
    if !payload_is_offered("instants of ext4 on zram")? {
        return Ok(());
    }
    file_system(&Zram::new(VOLUME_BYTES)?, Fs::Ext4, Capture::Payload)
}

#[test]
fn instants_of_xfs_on_loop_are_legal() -> Result<()> {
    if !payload_is_offered("instants of xfs on loop")? {
        return Ok(());
    }
    file_system(&Loop::new(VOLUME_BYTES)?, Fs::Xfs, Capture::Payload)
}

#[test]
fn instants_of_xfs_on_zram_are_legal() -> Result<()> {
    if !payload_is_offered("instants of xfs on zram")? {
        return Ok(());
    }
    file_system(&Zram::new(VOLUME_BYTES)?, Fs::Xfs, Capture::Payload)
}
