//! `afterwrite protect` killed at any instant: no write is lost, and the source is left alone.

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

/// Waits for the instant itself, which is what these tests choose at random.
fn wait_for(instant: Duration) -> Result<()> {
    let start = Instant::now();
    wait_until("the instant of the kill", PATIENCE, || Ok(start.elapsed() >= instant))
}

/// Starts once more, stops in order, and compares.
fn converges(protection: &Protection, device: &dyn Device, mount: Option<Mount>) -> Result<()> {
    let protect = protection.start()?;
    mount.map_or(Ok(()), Mount::unmount)?;
    protect.stop()?;
    assert_identical(device.path(), protection.target())?;
    protection.check_journal()
}

/// A write and fsync get through: the file system has not been left frozen.
fn writable(mount: &Mount) -> Result<()> {
    let (sender, receiver) = channel();
    let path = mount.point().join("writable");
    std::thread::spawn(move || {
        let written = std::fs::File::create(path).and_then(|file| file.sync_all());
        // Nobody listens any more when it was too late.
        drop(sender.send(written));
    });
    receiver.recv_timeout(Duration::from_secs(30)).context("the file system is still frozen")??;
    Ok(())
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[test]
fn killed_at_random_instants_under_load_the_replica_converges() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(64 * MIB)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Protection::new(disk.path())?;
    let fio = Fio::in_directory(mount.point(), 24 * 3600)?;
    let churn = Churn::start(mount.point(), "churn", Random::new(random.number()))?;
    for nth in 1..=kills() {
        let mut protect = protection.spawn()?;
        // Half of them wait for life, as the most is going on then.
        if random.below(2) == 0 {
            protect.wait_live()?;
        }
        let instant = Duration::from_millis(random.below(900));
        println!("kill {nth} after {instant:?}");
        wait_for(instant)?;
        protect.kill().with_context(|| format!("kill {nth}"))?;
    }
    // On a slow machine none of them may have lived for as long as a mark takes.
    let protect = protection.start()?;
    protect.mark("lived")?;
    protect.kill()?;
    writable(&mount)?;
    fio.stop()?;
    let workload = churn.finish()?;
    Manifest::read(workload.dir())?
        .ensure_equals(&workload.manifest())
        .context("the source has been touched")?;
    converges(&protection, &disk, Some(mount))?;

    // The points of all those lives are sound, the first and the last looked at.
    let points = protection.points()?;
    let ids = points.iter().filter(|point| point["class"] == "fs").filter_map(|point| point["id"].as_u64());
    let ids: Vec<u64> = ids.collect();
    ensure!(!ids.is_empty(), "no point of class fs: {points:?}");
    for id in [ids[0], ids[ids.len() - 1]] {
        let image = protection.dir().join("replayed.img");
        protection.replay(&format!("mark:{id}"), &image)?;
        check_file_system(Fs::Ext4, &image).with_context(|| format!("mark {id} of {ids:?}"))?;
        std::fs::remove_file(&image)?;
    }
    Ok(())
}

#[test]
fn killed_during_the_baseline_it_begins_where_it_can() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(192 * MIB)?;
    fill_random(disk.path(), 192 * MIB, &mut random)?;
    let protection = Protection::new(disk.path())?;
    for megabytes in [1, 40, 120] {
        let mut protect = protection.spawn()?;
        let journal = protection.journal();
        wait_until("the baseline has come so far", PATIENCE, || {
            Ok(bytes_in(journal) > megabytes * MIB || protect.has_ended()?)
        })?;
        protect.kill()?;
    }
    converges(&protection, &disk, None)
}

#[test]
fn killed_while_it_applies_the_replica_converges() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let mut random = Random::new(seed());
    let disk = Loop::new(64 * MIB)?;
    let protection = Protection::new(disk.path())?;
    for round in 0..3 {
        let protect = protection.start()?;
        let before = std::fs::metadata(protection.target())?;
        fill_random(disk.path(), 48 * MIB, &mut random)?;
        // Not waited for: the applier begins when the mark is durable, which is when the command would return.
        let mut mark = protection.client().args(["mark", "--label", "torn"]).spawn()?;
        let written = wait_until("the replica is written to", PATIENCE, || {
            let now = std::fs::metadata(protection.target())?;
            Ok((now.mtime(), now.mtime_nsec(), now.blocks())
                != (before.mtime(), before.mtime_nsec(), before.blocks()))
        });
        written.with_context(|| format!("round {round}:\n{}", protect.log()))?;
        protect.kill()?;
        mark.kill()?;
        mark.wait()?;
    }
    converges(&protection, &disk, None)
}

#[test]
fn killed_in_a_mark_it_leaves_no_file_system_frozen() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(Fs::Ext4.volume_bytes())?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let protection = Protection::new(disk.path())?;
    let churn = Churn::start(mount.point(), "churn", Random::new(random.number()))?;
    for round in 0..6 {
        let protect = protection.start()?;
        let mut mark = protection.client().args(["mark", "--label", "torn"]).spawn()?;
        let instant = Duration::from_millis(random.below(80));
        println!("kill in mark {round} after {instant:?}");
        wait_for(instant)?;
        protect.kill()?;
        writable(&mount)
            .with_context(|| format!("round {round}, killed {instant:?} after the mark was asked for"))?;
        mark.kill()?;
        mark.wait()?;
    }
    churn.finish()?;
    converges(&protection, &disk, Some(mount))
}
