//! An fsync is a save: the file is mapped while it stays open.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Result, ensure};
use nix::libc;

#[test]
fn a_file_that_is_synced_is_mapped_with_its_blocks_while_it_is_open() -> Result<()> {
    for fs in Fs::ALL {
        let ground = Ground::new(fs)?;
        let map = ground.map(&["--rung", "syscall"])?;
        let mut open = Vec::new();
        for way in Sync::ALL.into_iter().filter(|way| way.is_seen_on("syscall")) {
            let path = ground.tree().join(way.name());
            open.push(way.save(&path, &[5; 50_000])?);
            let mapped = map.wait_for(way.name())?;
            ensure!(mapped["why"] == "fsync" && mapped["unsettled"] == false, "{fs:?} {way:?}: {mapped}");
            ensure!(mapped["size"] == 50_000, "{fs:?} {way:?}: {mapped}");
            ensure!(mapped_extents(&mapped) == filefrag(&path)?[..1], "{fs:?} {way:?}: {mapped}");
        }
        map.stop()?;
        drop(open);
    }
    Ok(())
}

#[test]
fn what_is_synced_elsewhere_or_otherwise_is_no_save() -> Result<()> {
    let (ground, other) = (Ground::new(Fs::Ext4)?, Ground::new(Fs::Ext4)?);
    let map = ground.map(&["--exclude", "not this"])?;
    let mut open = Vec::new();
    // The first file of another file system has the same inode as the first one here.
    for path in [other.tree().join("a"), ground.mount.point().join("b"), ground.tree().join("not this")] {
        open.push(Sync::Fsync.save(&path, &[1; 5000])?);
    }
    let mut file = File::create(ground.tree().join("c"))?;
    file.write_all(&[1; 5000])?;
    // SAFETY: the calls take numbers only.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
        libc::syncfs(file.as_raw_fd());
        libc::sync();
    }
    File::open(ground.tree())?.sync_all()?;
    let removed = File::create(ground.tree().join("d"))?;
    fs::remove_file(ground.tree().join("d"))?;
    removed.sync_all()?;
    open.push(Sync::Fsync.save(&ground.tree().join("last"), &[1; 5000])?);
    map.wait_for("last")?;
    ensure!(Vec::from_iter(map.maps()?.into_keys()) == ["last"], "{:?}", map.maps()?);
    map.stop()
}

#[test]
fn what_did_not_change_since_is_not_mapped_again_by_an_fsync() -> Result<()> {
    let ground = Ground::new(Fs::Ext4)?;
    let map = ground.map(&[])?;
    let file = Sync::Fsync.save(&ground.tree().join("file"), &[1; 5000])?;
    map.wait_for("file")?;
    // So that the clock has ticked since it changed.
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..30 {
        file.sync_all()?;
        // So that each is heard of by itself.
        std::thread::sleep(Duration::from_millis(3));
    }
    let maps =
        || -> Result<usize> { Ok(map.said()?.iter().filter(|line| line.get("map").is_some()).count()) };
    let again = Sync::Fsync.save(&ground.tree().join("file"), &[2; 5000])?;
    wait_until("the change is mapped", PATIENCE, || Ok(maps()? >= 2))?;
    again.sync_all()?;
    let last = Sync::Fsync.save(&ground.tree().join("last"), &[1; 5000])?;
    map.wait_for("last")?;
    // One for each change and the last, and some for what was looked at within a tick of them; not one for each fsync.
    ensure!((3..=12).contains(&maps()?), "{:?}", map.said()?);
    drop((file, again, last));
    map.stop()
}

#[test]
fn with_fsync_off_only_closes_and_renames_are_saves() -> Result<()> {
    let ground = Ground::new(Fs::Ext4)?;
    let map = ground.map(&["--fsync=off"])?;
    let ready = map.said()?;
    ensure!(ready[0]["ready"]["fsync"].is_null(), "{ready:?}");
    let open = Sync::Fsync.save(&ground.tree().join("open"), &[1; 5000])?;
    fs::write(ground.tree().join("last"), [1; 5000])?;
    map.wait_for("last")?;
    ensure!(Vec::from_iter(map.maps()?.into_keys()) == ["last"], "{:?}", map.maps()?);
    drop(open);
    map.wait_for("open")?;
    map.stop()
}
