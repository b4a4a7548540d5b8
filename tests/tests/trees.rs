//! Directory trees: whatever is done to one, its target at a mark is the tree at the mark, with everything that belongs to it.
//! On this machine's best rung of the probes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use afterwrite_tests::*;
use anyhow::{Result, ensure};

const SIZE: u64 = 256 * MIB;
const OPERATIONS: u64 = 300;

/// A tree on a file system of its own; journal and target are elsewhere.
fn tree() -> Result<(Mount, Loop, PathBuf)> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let tree = mount.point().join("tree");
    fs::create_dir(&tree)?;
    Ok((mount, disk, tree))
}

fn protection(tree: &Path) -> Result<Protection> {
    let protection = Protection::new(tree)?;
    let target = protection.dir().join("target");
    Ok(protection.target_at(&target).arg("--mark-every").arg("never"))
}

fn verify(source: &Path, target: &Path) -> Result<()> {
    run(afterwrite().arg("verify").arg(source).arg(target)).map(drop)
}

/// Waits until the target is at the mark.
fn wait_for_mark(protect: &mut Protect<'_>, id: &str) -> Result<()> {
    let id: u64 = id.trim().parse()?;
    protect.wait_for("has brought the target to the mark", |status| {
        status[0]["replica"]["mark"].as_u64() >= Some(id) && status[0]["replica"]["consistent"] == true
    })
}

#[test]
fn at_every_mark_the_target_is_the_tree_and_can_be_restored_as_it_was() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let mut random = Random::new(seed());
    change_tree(&tree, &mut random, OPERATIONS)?;
    let protection = protection(&tree)?;
    let mut protect = protection.start()?;
    let mut copies = Vec::new();
    for round in 0..4 {
        let done = change_tree(&tree, &mut random, OPERATIONS)?;
        ensure!(done > OPERATIONS / 10, "only {done} operations were possible");
        let mark = protect.mark(&format!("round{round}"))?;
        wait_for_mark(&mut protect, &mark)?;
        verify(&tree, protection.target())?;
        let copy = protection.dir().join(format!("copy{round}"));
        run(std::process::Command::new("cp").arg("-a").arg(&tree).arg(&copy))?;
        copies.push((mark, copy));
    }
    protect.stop()?;
    verify(&tree, protection.target())?;
    for (mark, copy) in copies {
        let restored = protection.dir().join(format!("restored{}", mark.trim()));
        protection.replay(&format!("mark:{}", mark.trim()), &restored)?;
        verify(&copy, &restored)?;
    }
    protection.check_journal()
}

#[test]
fn killed_under_load_it_goes_on_and_the_target_is_right() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let protection = protection(&tree)?;
    let protection = protection.plain().arg("--mark-every").arg("300ms");
    let ending = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| {
            let mut random = Random::new(seed() + 1);
            while !ending.load(Ordering::Relaxed) {
                change_tree(&tree, &mut random, 50)?;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Ok::<_, anyhow::Error>(())
        });
        let kills = || -> Result<()> {
            let mut random = Random::new(seed() + 2);
            for _ in 0..kills().min(6) {
                let mut protect = protection.spawn()?;
                protect.wait_for("has begun", |_| true)?;
                std::thread::sleep(std::time::Duration::from_millis(random.below(2500)));
                protect.kill()?;
            }
            Ok(())
        };
        let killed = kills();
        ending.store(true, Ordering::Relaxed);
        load.join().expect("the load does not panic")?;
        killed
    })?;
    let mut protect = protection.start()?;
    let mark = protect.mark("after")?;
    wait_for_mark(&mut protect, &mark)?;
    verify(&tree, protection.target())?;
    protect.stop()?;
    let restored = protection.dir().join("restored");
    protection.replay("latest", &restored)?;
    verify(&tree, &restored)?;
    protection.check_journal()
}

#[test]
fn a_small_change_of_a_large_file_writes_little_and_a_rename_nothing() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let large = tree.join("large");
    let file = File::create(&large)?;
    file.set_len(10 << 30)?;
    file.write_all_at(&[1; 1 << 20], 5 << 30)?;
    let protection = protection(&tree)?;
    let mut protect = protection.start()?;
    let written = |protect: &Protect<'_>| -> Result<u64> {
        Ok(protect.volume_status()?["replica"]["data_bytes"].as_u64().unwrap_or(0))
    };
    wait_for_mark(&mut protect, "1")?;
    let before = written(&protect)?;
    file.write_all_at(&[2; 4096], 7 << 30)?;
    let mark = protect.mark("written")?;
    wait_for_mark(&mut protect, &mark)?;
    let change = written(&protect)? - before;
    fs::rename(&large, tree.join("renamed"))?;
    let mark = protect.mark("renamed")?;
    wait_for_mark(&mut protect, &mark)?;
    let rename = written(&protect)? - before - change;
    println!("4 KiB changed in 10 GiB: {change} bytes written to the target; renamed: {rename} bytes");
    ensure!(change == 4096 && rename == 0, "{change} and {rename} bytes");
    let blocks = |path: &Path| Ok::<_, std::io::Error>(fs::metadata(path)?.blocks());
    ensure!(
        blocks(&protection.target().join("renamed"))? <= blocks(&tree.join("renamed"))? + 64,
        "holes were filled"
    );
    protect.stop()
}

#[test]
fn what_cannot_be_protected_is_refused_with_the_reason() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let refused = |target: &Path, journal: Option<&Path>, hints: &[&str]| -> Result<()> {
        let protection = Protection::new(&tree)?.target_at(target);
        let protection = match journal {
            Some(journal) => protection.journal_at(journal),
            None => protection,
        };
        protection.refused(hints).map(drop)
    };
    let elsewhere = scratch()?;
    refused(&tree.join("target"), None, &["target", "inside of"])?;
    refused(tree.parent().expect("it has one"), None, &["inside of the target"])?;
    refused(&elsewhere.path().join("target"), Some(&tree.join("journal")), &["journal", "inside of"])?;
    fs::write(elsewhere.path().join("file"), "x")?;
    refused(&elsewhere.path().join("file"), None, &["not a directory"])?;
    refused(elsewhere.path(), None, &["not empty", "--force"])?;
    ensure!(elsewhere.path().join("file").exists());
    Protection::new(&elsewhere.path().join("file"))?.refused(&["not a block device"]).map(drop)
}
