//! Probes outlive `afterwrite protect`: what it does after a kill, an upgrade, a clean stop, a `detach`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const SIZE: u64 = 96 * MIB;

/// 4 KiB blocks, each to a place of its own, and on the device when it returns.
fn write_blocks(device: &Path, blocks: impl IntoIterator<Item = u64>, random: &mut Random) -> Result<()> {
    let file = File::options().write(true).open(device)?;
    for block in blocks {
        file.write_all_at(&[random.number() as u8; 4096], block * 4096)?;
    }
    Ok(file.sync_all()?)
}

/// Where its pins are, if there are any.
fn pins(device: &Path) -> PathBuf {
    Path::new("/sys/fs/bpf/afterwrite").join(device.file_name().expect("a device has a name"))
}

fn stop_and_compare(protect: Protect<'_>, protection: &Protection, device: &Path) -> Result<()> {
    protect.stop()?;
    assert_identical(device, protection.target())?;
    protection.check_journal()
}

#[test]
fn killed_it_goes_on_without_reading_the_volume() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    fill_random(disk.path(), SIZE, &mut random)?;
    let protection = Protection::new(disk.path())?;
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "new" && status["pinned"] == true, "{status}");
    write_blocks(disk.path(), (0..100).map(|n| n * 17), &mut random)?;
    protect.kill()?;
    write_blocks(disk.path(), (0..100).map(|n| 20_000 + n * 31), &mut random)?;

    let recording = run(protection.client().args(["status", "--json"]))?;
    let recording: Value = serde_json::from_str(&recording)?;
    let name = disk.path().file_name().expect("a device has a name").to_string_lossy().into_owned();
    let entry =
        recording.as_array().and_then(|all| all.iter().find(|volume| volume["volume"] == name.as_str()));
    ensure!(entry.is_some_and(|volume| volume["state"] == "recording"), "{recording}");

    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "adopted", "{status}");
    let journaled = status["journaled_bytes"].as_u64().context("no journaled_bytes")?;
    ensure!((200 * 4096..16 * MIB).contains(&journaled), "{journaled} bytes were read again: {status}");
    let counters = &status["counters"];
    ensure!(counters["seen"] == 200, "both lives are counted: {status}");
    stop_and_compare(protect, &protection, disk.path())
}

#[test]
fn nothing_stays_behind_after_a_clean_stop() -> Result<()> {
    let disk = Loop::new(16 * MIB)?;
    let protection = Protection::new(disk.path())?;
    let protect = protection.start()?;
    ensure!(pins(disk.path()).exists());
    protect.stop()?;
    ensure!(!pins(disk.path()).exists());
    Ok(())
}

#[test]
fn after_a_clean_stop_the_volume_is_read_only_if_it_was_written_since() -> Result<()> {
    let mut random = Random::new(seed());
    for disk in [Box::new(Loop::new(SIZE)?) as Box<dyn Device>, Box::new(Zram::new(SIZE)?)] {
        fill_random(disk.path(), SIZE, &mut random)?;
        let protection = Protection::new(disk.path())?;
        let (protect, _) = protection.start_and_settle()?;
        write_blocks(disk.path(), [5, 6], &mut random)?;
        protect.stop()?;
        let (protect, status) = protection.start_and_settle()?;
        ensure!(status["probes"] == "new", "{status}");
        ensure!(status["journaled_bytes"].as_u64() < Some(MIB), "{status}");
        ensure!(!protect.log().contains("comparing"), "{}", protect.log());
        protect.stop()?;
        // One block, one time as it was before: it is written, all the same.
        write_blocks(disk.path(), [7], &mut random)?;
        let (protect, _) = protection.start_and_settle()?;
        ensure!(protect.log().contains("comparing"), "{}", protect.log());
        stop_and_compare(protect, &protection, disk.path())?;
    }
    Ok(())
}

#[test]
fn detach_ends_the_recording_and_the_next_start_compares() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Zram::new(64 * MIB)?;
    fill_random(disk.path(), 64 * MIB, &mut random)?;
    let protection = Protection::new(disk.path())?;
    let (protect, _) = protection.start_and_settle()?;

    let detach = || finish(protection.client().arg("detach").arg(disk.path()), PATIENCE);
    says(&detach()?, 2, &["already protected", "afterwrite status"])?;
    protect.kill()?;
    ensure!(detach()?.code == Some(0) && !pins(disk.path()).exists());
    says(&detach()?, 2, &["no probes", "afterwrite status"])?;
    // Nobody sees this one.
    write_blocks(disk.path(), [7, 900], &mut random)?;

    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "new", "{status}");
    stop_and_compare(protect, &protection, disk.path())
}

#[test]
fn other_probes_take_over_without_a_gap() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    fill_random(disk.path(), SIZE, &mut random)?;
    let mut protection = Protection::new(disk.path())?.arg("--ring=4KiB");
    let (protect, _) = protection.start_and_settle()?;
    protect.kill()?;
    // Far more than the ring holds: the rest is in the bitmap.
    write_blocks(disk.path(), (0..300).map(|n| n * 80), &mut random)?;

    // An upgrade, whose probes differ from those at work in a letter of what they log.
    let upgraded = protection.dir().join("afterwrite-upgraded");
    let mut bytes = std::fs::read(binary())?;
    let changed =
        replace_all(&mut bytes, b"kernel memory could not be read", b"kernel memory could not be READ");
    ensure!(changed > 0, "the probes' text is not in the binary");
    std::fs::write(&upgraded, bytes)?;
    run(Command::new("chmod").arg("+x").arg(&upgraded))?;
    protection = protection.binary(&upgraded);
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "replaced", "{status}");
    ensure!(status["journaled_bytes"].as_u64() < Some(32 * MIB), "the volume was read again: {status}");
    write_blocks(disk.path(), [11, 12], &mut random)?;
    protect.kill()?;

    // The same upgrade again is none; another size of the ring is one.
    write_blocks(disk.path(), [13, 24_000], &mut random)?;
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "adopted", "{status}");
    protect.kill()?;
    write_blocks(disk.path(), [14, 24_001], &mut random)?;
    protection = protection.plain().arg("--ring=1MiB").arg("--rung=raw_tp");
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "replaced" && status["rung"] == "raw_tp", "{status}");
    stop_and_compare(protect, &protection, disk.path())
}

#[test]
fn what_is_recorded_for_one_journal_is_not_given_to_another() -> Result<()> {
    let disk = Loop::new(16 * MIB)?;
    let protection = Protection::new(disk.path())?;
    protection.start()?.kill()?;
    let other = Protection::new(disk.path())?;
    other.refused(&["another journal", "afterwrite detach"])?;
    protection.start()?.stop()
}

#[test]
fn a_device_that_was_another_meanwhile_is_compared() -> Result<()> {
    let mut random = Random::new(seed());
    let dir = scratch()?;
    let image = dir.path().join("volume.img");
    blank_image(&image, 64 * MIB)?;
    fill_random(&image, 64 * MIB, &mut random)?;
    let disk = Loop::over(&image)?;
    let protection = Protection::new(disk.path())?;
    let (protect, _) = protection.start_and_settle()?;
    protect.kill()?;
    // The same file at the same device again, changed in between.
    run(Command::new("losetup").arg("--detach").arg(disk.path()))?;
    write_blocks(&image, [5, 6000], &mut random)?;
    run(Command::new("losetup").arg(disk.path()).arg(&image))?;
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "new", "{status}");
    stop_and_compare(protect, &protection, disk.path())
}

#[test]
fn killed_in_the_baseline_it_goes_on_with_the_rest() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(2 * SIZE)?;
    fill_random(disk.path(), 2 * SIZE, &mut random)?;
    let protection = Protection::new(disk.path())?;
    let mut protect = protection.spawn()?;
    protect.wait_for("has copied a part", |status| {
        status[0]["durable_lsn"].as_u64() > Some(100)
            && status[0]["scan_done_bytes"].as_u64() > Some(64 * MIB)
    })?;
    protect.kill()?;
    write_blocks(disk.path(), [1, 45_000], &mut random)?;
    let (protect, status) = protection.start_and_settle()?;
    ensure!(status["probes"] == "adopted", "{status}");
    stop_and_compare(protect, &protection, disk.path())
}

/// How often it was found.
fn replace_all(bytes: &mut [u8], old: &[u8], new: &[u8]) -> usize {
    assert_eq!(old.len(), new.len());
    let found: Vec<usize> = (0..bytes.len().saturating_sub(old.len()))
        .filter(|at| bytes[*at] == old[0] && &bytes[*at..*at + old.len()] == old)
        .collect();
    found.iter().for_each(|at| bytes[*at..*at + old.len()].copy_from_slice(new));
    found.len()
}
