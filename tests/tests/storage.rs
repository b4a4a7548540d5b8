//! The disk of the target, or of the journal, fails for a while and stays mounted. The page cache of ext4 is right then and
//! its disk is not, when a write-back has failed and the same blocks are written again.

use afterwrite_tests::*;
use anyhow::{Result, ensure};

fn target_is_right_on_the_disk_too(fs: Fs) -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(64 * MIB)?;
    let mut target_disk = Disk::new(fs)?;
    let protection = Protection::new(disk.path())?.arg("--mark-every").arg("never");
    let protection = protection.target_at(&target_disk.path("replica.img"));
    let mut protect = protection.start()?;
    protect.wait_for("has applied the baseline", |status| status[0]["replica"]["consistent"] == true)?;
    target_disk.break_it(Breakage::IoErrors)?;
    fill_random(disk.path(), 48 * MIB, &mut random)?;
    protect.mark("not on the disk")?;
    protect.wait_for("says that its target fails", |status| status[0]["replica"]["error"].is_string())?;
    // Mended, and mounted all the time.
    target_disk.mend()?;
    protect.wait_for("has healed", |status| status[0]["replica"]["consistent"] == true)?;
    protect.stop()?;
    assert_identical(disk.path(), protection.target())?;
    target_disk.forget_cache()?;
    assert_identical(disk.path(), protection.target())
}

#[test]
fn target_on_ext4_is_right_after_write_backs_that_failed() -> Result<()> {
    target_is_right_on_the_disk_too(Fs::Ext4)
}

#[test]
fn target_on_xfs_is_right_after_write_backs_that_failed() -> Result<()> {
    target_is_right_on_the_disk_too(Fs::Xfs)
}

/// One that shut down has to be unmounted before anything can be written again.
#[test]
fn disks_of_journal_and_target_can_be_unmounted_while_they_fail() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(64 * MIB)?;
    let (mut journal_disk, mut target_disk) = (Disk::new(Fs::Xfs)?, Disk::new(Fs::Ext4)?);
    let protection = Protection::new(disk.path())?.arg("--mark-every").arg("1s");
    let protection = protection.journal_at(&journal_disk.path("journal"));
    let protection = protection.target_at(&target_disk.path("replica.img"));
    let mut protect = protection.start()?;
    protect.wait_for("has applied the baseline", |status| status[0]["replica"]["consistent"] == true)?;

    target_disk.break_it(Breakage::ShutDown)?;
    fill_random(disk.path(), 8 * MIB, &mut random)?;
    protect.wait_for("says that its target fails", |status| status[0]["replica"]["error"].is_string())?;
    ensure!(target_disk.mend()?, "the target's disk is busy: {}", protect.status()?);
    protect.wait_for("has healed", |status| status[0]["replica"]["consistent"] == true)?;

    journal_disk.break_it(Breakage::ShutDown)?;
    fill_random(disk.path(), 8 * MIB, &mut random)?;
    protect.wait_for("says that its journal fails", |status| status[0]["paused"].is_string())?;
    ensure!(journal_disk.mend()?, "the journal's disk is busy: {}", protect.status()?);
    protect.wait_for("has healed", |status| status[0]["paused"].is_null())?;
    protect.stop()?;
    assert_identical(disk.path(), protection.target())?;
    protection.check_journal()
}

fn journal_is_right_on_the_disk_too(fs: Fs) -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(64 * MIB)?;
    let mut journal_disk = Disk::new(fs)?;
    let protection = Protection::new(disk.path())?.arg("--mark-every").arg("never");
    let protection = protection.journal_at(&journal_disk.path("journal"));
    let mut protect = protection.start()?;
    // Twice: what was left open is sealed, and something comes after it.
    for _ in 0..2 {
        journal_disk.break_it(Breakage::IoErrors)?;
        fill_random(disk.path(), 24 * MIB, &mut random)?;
        protect.wait_for("says that its journal fails", |status| status[0]["paused"].is_string())?;
        journal_disk.mend()?;
        protect.wait_for("has healed", |status| status[0]["paused"].is_null())?;
        protect.mark("healed")?;
    }
    protect.stop()?;
    journal_disk.forget_cache()?;
    protection.check_journal()?;
    let image = protection.dir().join("replayed.img");
    protection.replay("latest", &image)?;
    assert_identical(disk.path(), &image)
}

#[test]
fn journal_on_ext4_is_right_after_write_backs_that_failed() -> Result<()> {
    journal_is_right_on_the_disk_too(Fs::Ext4)
}

#[test]
fn journal_on_xfs_is_right_after_write_backs_that_failed() -> Result<()> {
    journal_is_right_on_the_disk_too(Fs::Xfs)
}
