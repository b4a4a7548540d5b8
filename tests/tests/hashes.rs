//! The replica's hash list: what it proves without the source, and that it never lies.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

fn verify(target: &Path, hashes: &Path) -> Result<Finished> {
    finish(afterwrite().arg("verify").arg(target).arg("--hashes").arg(hashes), PATIENCE)
}

fn verify_json(target: &Path, hashes: &Path) -> Result<Value> {
    let mut command = afterwrite();
    let finished =
        finish(command.arg("verify").arg(target).arg("--json").arg("--hashes").arg(hashes), PATIENCE)?;
    serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))
}

fn flip(path: &Path, at: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    Ok(())
}

#[test]
fn a_flipped_bit_of_the_replica_is_found_while_the_source_is_gone() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(32 * MIB)?;
    fill_random(disk.path(), 24 * MIB, &mut random)?;
    let protection = Protection::new(disk.path())?;
    let protect = protection.start()?;
    protect.mark("one")?;
    // Parts of granules, which are hashed later.
    let device = std::fs::OpenOptions::new().write(true).open(disk.path())?;
    for _ in 0..50 {
        device.write_all_at(&[7; 4096], random.below(32 * MIB / 4096) * 4096)?;
    }
    device.sync_all()?;
    drop(device);
    protect.stop()?;
    drop(disk);

    let before = Manifest::read(protection.journal())?;
    for hashes in [protection.journal().to_owned(), protection.journal().join("replica.hashes")] {
        let finished = verify(protection.target(), &hashes)?;
        ensure!(finished.code == Some(0) && !finished.stderr.contains("not covered"), "{finished:?}");
    }
    let report = verify_json(protection.target(), protection.journal())?;
    ensure!(report["compared_bytes"] == 32 * MIB && report["unknown_granules"] == 0, "{report}");

    flip(protection.target(), 5_000_000)?;
    let finished = verify(protection.target(), protection.journal())?;
    // The granule of 64 KiB that holds the byte.
    ensure!(finished.code == Some(1) && finished.stdout == "4980736..5046272\n", "{finished:?}");
    flip(protection.target(), 5_000_000)?;
    let finished = verify(protection.target(), protection.journal())?;
    ensure!(finished.code == Some(0), "{finished:?}");
    Manifest::read(protection.journal())?.ensure_equals(&before)
}

#[test]
fn what_is_not_known_is_said_and_a_list_without_its_checkpoint_is_refused() -> Result<()> {
    let disk = Loop::new(8 * MIB)?;
    fill_random(disk.path(), 8 * MIB, &mut Random::new(1))?;
    let protection = Protection::new(disk.path())?;
    protection.start()?.stop()?;
    let list = protection.journal().join("replica.hashes");
    let (entries, entry) = (4096, 32);
    flip(&list, entries + 3 * entry + 5)?;
    flip(protection.target(), 3 * 65536)?;
    let finished = verify(protection.target(), &list)?;
    says(&finished, 0, &["1 granules", "not covered"])?;

    let alone = protection.dir().join("alone.hashes");
    std::fs::copy(&list, &alone)?;
    says(&verify(protection.target(), &alone)?, 2, &["replica.checkpoint"])?;
    says(&verify(protection.target(), &protection.dir().join("none"))?, 2, &["none"])?;
    Ok(())
}

#[test]
fn beside_a_busy_protection_no_difference_is_made_up() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(Fs::Ext4.volume_bytes())?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Protection::new(disk.path())?.arg("--mark-every").arg("1s");
    let protect = protection.start()?;
    protect.mark("begun")?;
    let churn = Churn::start(mount.point(), "churn", Random::new(random.number()))?;
    let begun = Instant::now();
    let mut compared = 0;
    while compared < 2 || begun.elapsed() < Duration::from_secs(load_seconds()) {
        let finished = verify(protection.target(), protection.journal())?;
        ensure!(finished.code == Some(0), "{finished:?}");
        compared += 1;
    }
    churn.finish()?;
    mount.unmount()?;
    protect.stop()?;
    let report = verify_json(protection.target(), protection.journal())?;
    ensure!(report["identical"] == true, "{report}");
    assert_identical(disk.path(), protection.target())
}

#[test]
fn after_a_change_behind_its_back_the_resync_by_hashes_finds_it() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(48 * MIB)?;
    fill_random(disk.path(), 48 * MIB, &mut random)?;
    let protection = Protection::new(disk.path())?;
    protection.start()?.stop()?;
    // While nobody looks, and with a list that was lost the second time.
    for round in 0..2 {
        let device = std::fs::OpenOptions::new().write(true).open(disk.path())?;
        for _ in 0..20 {
            device.write_all_at(&[round + 1; 4096], random.below(48 * MIB / 4096) * 4096)?;
        }
        device.sync_all()?;
        drop(device);
        if round == 1 {
            std::fs::remove_file(protection.journal().join("replica.hashes"))?;
        }
        let protect = protection.start()?;
        let journaled = protect.status()?;
        protect.stop()?;
        assert_identical(disk.path(), protection.target()).with_context(|| format!("{journaled}"))?;
    }
    let finished = verify(protection.target(), protection.journal())?;
    ensure!(finished.code == Some(0) && !finished.stderr.contains("not covered"), "{finished:?}");
    Ok(())
}
