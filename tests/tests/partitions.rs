//! One partition of a busy disk: all of it, and nothing of its neighbour.

use std::process::Command;

use afterwrite_tests::*;
use anyhow::Result;

#[test]
fn partition_is_protected_although_writes_cross_its_borders() -> Result<()> {
    let mut disk = Loop::new(64 * MIB)?;
    // Borders on a sector that is on no page: 102392 is where FACTS.md saw requests merge.
    let border = 51_196 * 1024;
    disk.add_partition(MIB, border - MIB)?;
    let volume = disk.add_partition(border, 8 * MIB)?;
    let protection = Protection::new(&volume)?;
    let protect = protection.start()?;

    let whole = format!("--filename={}", disk.path().display());
    // 4 KiB pieces in order, submitted many at once, merge into requests that begin before the border and end after.
    let around = |at: u64, len: u64| [format!("--offset={at}"), format!("--size={len}")];
    let batch = ["--iodepth=64", "--iodepth_batch_submit=64", "--iodepth_batch_complete_min=64"];
    let batches = [&batch[..], &["--rw=write", "--bs=4k", &whole]].concat();
    let starts = around(border - 4 * MIB, 8 * MIB);
    let ends = around(border + 4 * MIB, 8 * MIB);
    let jobs = [
        Fio::start(&[&batches[..], &[&*starts[0], &*starts[1]]].concat(), 2)?,
        Fio::start(&[&batches[..], &[&*ends[0], &*ends[1]]].concat(), 2)?,
        Fio::start(&["--bsrange=4k-64k", &format!("--filename={}", volume.display())], 2)?,
    ];
    for job in jobs {
        job.finish()?;
    }
    // Large writes and a discard over both borders at once.
    let length = (16 * MIB).to_string();
    let offset = (border - 4 * MIB).to_string();
    run(Command::new("blkdiscard")
        .args(["--force", "--offset", &offset, "--length", &length])
        .arg(disk.path()))?;
    protect.mark("discarded")?;
    fill_random(disk.path(), 64 * MIB, &mut Random::new(seed()))?;
    protect.stop()?;
    assert_identical(&volume, protection.target())
}

#[test]
fn journal_and_replica_may_lie_on_the_neighbour() -> Result<()> {
    let mut disk = Loop::new(192 * MIB)?;
    let neighbour = disk.add_partition(MIB, 160 * MIB)?;
    let volume = disk.add_partition(161 * MIB, 16 * MIB)?;
    let mount = Mount::make(Fs::Ext4, &neighbour)?;
    let protection = Protection::new(&volume)?
        .journal_at(&mount.point().join("journal"))
        .target_at(&mount.point().join("replica.img"));
    let protect = protection.start()?;
    Fio::on_device(&volume, 1)?.finish()?;
    protect.stop()?;
    assert_identical(&volume, protection.target())
}
