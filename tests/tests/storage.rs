//! The disk of the target fails for a while.

use afterwrite_tests::*;
use anyhow::Result;

/// The page cache of ext4 is right and its disk is not when a write-back failed and the same blocks are written again.
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
