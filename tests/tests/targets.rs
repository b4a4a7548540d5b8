//! One volume with several targets: each is kept current, fails, heals, comes and goes by itself.

use std::path::{Path, PathBuf};
use std::time::Instant;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const SIZE: u64 = 64 * MIB;

/// A protection with a second target.
struct Two {
    protection: Protection,
    second: PathBuf,
}

impl Two {
    fn new(device: &Path) -> Result<Two> {
        Two::with_second(device, None)
    }

    fn with_second(device: &Path, second: Option<PathBuf>) -> Result<Two> {
        let protection = Protection::new(device)?.arg("--mark-every").arg("never");
        let second = second.unwrap_or_else(|| protection.dir().join("second.img"));
        let two = Two { protection, second };
        Ok(two.with_both())
    }

    /// From the next start on.
    fn with_both(mut self) -> Two {
        self.protection =
            self.protection.plain().arg("--mark-every").arg("never").arg("--target").arg(&self.second);
        self
    }

    fn with_the_first(mut self) -> Two {
        self.protection = self.protection.plain().arg("--mark-every").arg("never");
        self
    }

    fn assert_identical(&self) -> Result<()> {
        assert_identical(self.protection.device(), self.protection.target()).context("the first target")?;
        assert_identical(self.protection.device(), &self.second).context("the second target")?;
        self.protection.check_journal()
    }
}

/// Makes a mark; its number.
fn mark(protect: &Protect<'_>, label: &str) -> Result<u64> {
    protect.mark(label)?;
    protect.volume_status()?["last_mark"]["id"].as_u64().context("a mark was made")
}

fn is_at(replica: &Value, id: u64) -> bool {
    replica["consistent"] == true && replica["mark"].as_u64() >= Some(id)
}

/// Writes, makes a mark, and waits until the targets of these places are there.
fn advance(protect: &mut Protect<'_>, device: &Path, random: &mut Random, places: &[usize]) -> Result<u64> {
    fill_random(device, SIZE / 4, random)?;
    let id = mark(protect, "later")?;
    protect.wait_for("has the targets at the mark", |status| {
        places.iter().all(|place| is_at(&status[0]["replicas"][place], id))
    })?;
    Ok(id)
}

#[test]
fn two_targets_are_the_source_and_each_is_verified_and_rewound_by_itself() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    let two = Two::new(disk.path())?;
    let mut protect = two.protection.start()?;
    let earlier = advance(&mut protect, disk.path(), &mut random, &[0, 1])?;
    let as_of_then = two.protection.dir().join("then.img");
    std::fs::write(&as_of_then, std::fs::read(disk.path())?)?;
    advance(&mut protect, disk.path(), &mut random, &[0, 1])?;
    let status = protect.volume_status()?;
    ensure!(status["replicas"][1]["target"] == two.second.display().to_string(), "{status}");
    protect.stop()?;
    two.assert_identical()?;

    let journal = two.protection.journal();
    let hashes = |target: &Path| run(afterwrite().arg("verify").arg(target).arg("--hashes").arg(journal));
    hashes(two.protection.target())?;
    hashes(&two.second)?;
    says(
        &finish(afterwrite().arg("verify").arg(&as_of_then).arg("--hashes").arg(journal), PATIENCE)?,
        2,
        &["several replicas", "replica.hashes"],
    )?;
    let to = format!("mark:{earlier}");
    run(afterwrite().arg("rewind").arg(&two.second).arg("--journal").arg(journal).args(["--to", &to]))?;
    run(afterwrite().arg("verify").arg(&as_of_then).arg(&two.second))?;
    assert_identical(disk.path(), two.protection.target())?;
    says(
        &finish(
            afterwrite().arg("rewind").arg(&as_of_then).arg("--journal").arg(journal).args(["--to", &to]),
            PATIENCE,
        )?,
        2,
        &["not a replica", "second.img"],
    )?;
    // Nothing to compare, and the one is behind.
    two.protection.start()?.stop()?;
    two.assert_identical()
}

#[test]
fn one_that_fails_holds_nobody_up_and_heals() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    let mut small = Disk::new(Fs::Ext4)?;
    let two = Two::with_second(disk.path(), Some(small.path("second.img")))?;
    let mut protect = two.protection.start()?;
    advance(&mut protect, disk.path(), &mut random, &[0, 1])?;
    small.break_it(Breakage::ShutDown)?;
    for _ in 0..2 {
        advance(&mut protect, disk.path(), &mut random, &[0])?;
    }
    protect.wait_for("says which target fails", |status| {
        let replicas = &status[0]["replicas"];
        replicas[0]["error"].is_null() && replicas[1]["error"].is_string()
    })?;
    let status = protect.volume_status()?;
    ensure!(status["state"] == "live" && status["paused"].is_null(), "{status}");
    ensure!(status["replica"]["target"] == two.second.display().to_string(), "the worst: {status}");
    let table = run(two.protection.client().arg("status"))?;
    ensure!(table.contains("1 of 2 fail") && table.contains("    current  "), "{table}");
    let of_second = table.lines().find(|line| line.starts_with("    fails") && line.ends_with("second.img"));
    ensure!(of_second.is_some_and(|line| line.contains(" marks  ")), "{table}");
    let behind = |place: usize| status["replicas"][place]["behind_marks"].as_u64().unwrap_or(0);
    ensure!(behind(0) < 2 && behind(1) >= 2, "{status}");
    // At the end nobody waits for it, and that is said.
    protect.signal(nix::sys::signal::Signal::SIGINT)?;
    says(&protect.ended()?, 2, &["second.img", "could not be brought to the last mark"])?;
    assert_identical(disk.path(), two.protection.target())?;

    // Away at the start, too.
    let mut protect = two.protection.start()?;
    advance(&mut protect, disk.path(), &mut random, &[0])?;
    ensure!(protect.volume_status()?["replicas"][1]["error"].is_string(), "{}", protect.volume_status()?);
    ensure!(small.mend()?, "the disk of the target is busy: {}", protect.status()?);
    protect.wait_for("has healed", |status| status[0]["replicas"][1]["error"].is_null())?;
    advance(&mut protect, disk.path(), &mut random, &[0, 1])?;
    protect.stop()?;
    two.assert_identical()
}

#[test]
fn a_full_one_goes_on_when_it_has_room() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    // Less than the volume.
    let small = mount_tmpfs(SIZE / 2)?;
    let two = Two::with_second(disk.path(), Some(small.point().join("second.img")))?;
    let mut protect = two.protection.start()?;
    fill_random(disk.path(), SIZE, &mut random)?;
    let id = mark(&protect, "full")?;
    protect.wait_for("says that the second is full", |status| {
        let replicas = &status[0]["replicas"];
        is_at(&replicas[0], id) && replicas[1]["error"].as_str().is_some_and(|why| why.contains("no space"))
    })?;
    small.remount(&format!("size={}", 2 * SIZE))?;
    advance(&mut protect, disk.path(), &mut random, &[0, 1])?;
    protect.stop()?;
    two.assert_identical()
}

/// The one that is further is compared with; the other one comes after it by the journal alone.
#[test]
fn killed_with_targets_at_different_points_it_compares_and_both_are_the_source() -> Result<()> {
    let mut random = Random::new(seed());
    for replaced in [false, true] {
        let disk = Loop::new(SIZE)?;
        let mut small = Disk::new(Fs::Ext4)?;
        // Either place may be the one that is behind.
        let two = Two::with_second(disk.path(), Some(small.path("second.img")))?;
        let mut protect = two.protection.start()?;
        advance(&mut protect, disk.path(), &mut random, &[0, 1])?;
        small.break_it(Breakage::ShutDown)?;
        advance(&mut protect, disk.path(), &mut random, &[0])?;
        fill_random(disk.path(), SIZE / 8, &mut random)?;
        protect.kill()?;
        ensure!(small.mend()?, "the disk of the target is busy");
        if replaced {
            // Nobody knows what was written now: all is compared.
            run(two.protection.client().arg("detach").arg(disk.path()))?;
            fill_random(disk.path(), SIZE / 2, &mut random)?;
        }
        let mut protect = two.protection.start()?;
        protect.wait_for("has both targets", |status| {
            let replicas = status[0]["replicas"].as_array().cloned().unwrap_or_default();
            replicas.len() == 2 && replicas.iter().all(|replica| replica["error"].is_null())
        })?;
        protect.kill()?;
        two.protection.start()?.stop()?;
        two.assert_identical().with_context(|| format!("compared: {replaced}"))?;
    }
    Ok(())
}

#[test]
fn one_that_is_added_is_built_from_the_journal_and_one_that_is_left_out_may_come_back() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Zram::new(SIZE)?;
    let two = Two::new(disk.path())?.with_the_first();
    let mut protect = two.protection.start()?;
    fill_random(disk.path(), SIZE, &mut random)?;
    advance(&mut protect, disk.path(), &mut random, &[0])?;
    protect.stop()?;
    ensure!(!two.second.exists());

    let two = two.with_both();
    let mut protect = two.protection.start()?;
    protect.wait_for("has built the second", |status| status[0]["replicas"][1]["consistent"] == true)?;
    let status = protect.volume_status()?;
    ensure!(status["journaled_bytes"].as_u64() < Some(MIB), "the source was copied again: {status}");
    ensure!(status["replicas"][1]["written_bytes"].as_u64() >= Some(SIZE), "{status}");
    ensure!(status["replicas"][0]["written_bytes"].as_u64() < Some(MIB), "{status}");
    protect.stop()?;
    two.assert_identical()?;

    // Only the second for a while; the first waits where it is.
    let two = two.with_the_first();
    let alone = two.protection.target().to_owned();
    let stays = std::fs::read(&two.second)?;
    let mut protect = two.protection.start()?;
    let left_at = advance(&mut protect, disk.path(), &mut random, &[0])?;
    let left_out = &protect.volume_status()?["left_out"];
    ensure!(
        left_out[0]["target"].as_str().is_some_and(|target| target.ends_with("second.img")),
        "{left_out}"
    );
    let table = run(two.protection.client().arg("status"))?;
    ensure!(table.contains("    left out  at mark "), "{table}");
    protect.stop()?;
    ensure!(std::fs::read(&two.second)? == stays, "what is not named was written");
    assert_identical(disk.path(), &alone)?;

    let two = two.with_both();
    let mut protect = two.protection.start()?;
    protect.wait_for("has both", |status| is_at(&status[0]["replicas"][1], left_at))?;
    let status = protect.volume_status()?;
    ensure!(status["replicas"][1]["written_bytes"].as_u64() < Some(SIZE), "it was built anew: {status}");
    protect.stop()?;
    two.assert_identical()
}

#[test]
fn a_target_is_refused_that_is_named_twice_or_new_and_in_use() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let two = Two::new(disk.path())?;
    two.protection.start()?.stop()?;
    let link = two.protection.dir().join("link.img");
    std::os::unix::fs::symlink(&two.second, &link)?;
    let two = Two { second: two.second.clone(), protection: two.protection.arg("--target").arg(&link) };
    two.protection.refused(&["are one target", "link.img"])?;
    std::fs::remove_file(&link)?;
    std::fs::write(&link, "something else")?;
    two.protection.refused(&["link.img", "--force"])?;
    ensure!(std::fs::read(&link)? == b"something else");
    two.assert_identical()
}

#[test]
fn the_service_protects_to_several_targets() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    let mut service = Service::new()?;
    let second = service.path("second.img");
    let table = service.table("volume", "data", disk.path(), "mark-every = \"1s\"");
    let one = format!("target = \"{}\"", service.path("data.replica").display());
    ensure!(table.contains(&one), "{table}");
    let several =
        format!("target = [\"{}\", \"{}\"]", service.path("data.replica").display(), second.display());
    service.configure(std::slice::from_ref(&table))?;
    service.start()?;
    service.wait_live(&[disk.path()])?;
    fill_random(disk.path(), SIZE / 2, &mut random)?;
    service.configure(&[table.replace(&one, &several)])?;
    run(service.client().args(["reload"]))?;
    service.wait_for("have a second target", |status| {
        let volume = status.as_array().and_then(|volumes| volumes.first()).unwrap_or(&Value::Null);
        volume["replicas"].as_array().is_some_and(|replicas| {
            replicas.len() == 2 && replicas.iter().all(|replica| replica["consistent"] == true)
        })
    })?;
    fill_random(disk.path(), SIZE / 2, &mut random)?;
    service.stop()?;
    assert_identical(disk.path(), &service.path("data.replica"))?;
    assert_identical(disk.path(), &second)
}

/// A disk without a serial number is known by its name, which another one has after a boot.
#[test]
fn another_disk_of_the_same_name_is_not_taken_for_the_replica() -> Result<()> {
    let mut random = Random::new(seed());
    let (disk, target) = (Loop::new(SIZE)?, Zram::new(SIZE)?);
    fill_random(disk.path(), SIZE, &mut random)?;
    let protection = Protection::new(disk.path())?.target_at(target.path()).arg("--mark-every=never");
    let built_again = "is built again";
    protection.start()?.stop()?;
    let protect = protection.start()?;
    ensure!(!protect.log().contains(built_again), "{}", protect.log());
    protect.stop()?;

    target.exchange(SIZE)?;
    let protect = protection.start()?;
    ensure!(protect.log().contains(built_again), "{}", protect.log());
    protect.stop()?;
    assert_identical(disk.path(), target.path())?;

    target.exchange(SIZE)?;
    let others = vec![7; 4096];
    std::fs::write(target.path(), &others)?;
    protection.refused(&["another disk", "--force"])?;
    ensure!(std::fs::read(target.path())?.starts_with(&others), "the disk was overwritten");
    protection.plain().arg("--mark-every=never").arg("--force").start()?.stop()?;
    assert_identical(disk.path(), target.path())
}

/// Mounting is enough: the super block says so from then on. Whoever went on working with it loses nothing by a start.
#[test]
fn a_replica_that_was_mounted_is_gone_on_with_by_force_only() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    Fs::Ext4.make(disk.path())?;
    let protection = Protection::new(disk.path())?.arg("--mark-every=never");
    protection.start()?.stop()?;
    let image = Loop::over(protection.target())?;
    let mount = Mount::with_options(image.path(), "ext4", "rw")?;
    std::fs::write(mount.point().join("worked on"), "by somebody")?;
    mount.unmount()?;
    drop(image);
    let theirs = std::fs::read(protection.target())?;

    protection.refused(&["mounted it or wrote to it", "protect --force"])?;
    ensure!(std::fs::read(protection.target())? == theirs, "what somebody wrote was overwritten");
    let forced = protection.plain().arg("--mark-every=never").arg("--force");
    let protect = forced.start()?;
    ensure!(protect.log().contains("is built again"), "{}", protect.log());
    protect.stop()?;
    assert_identical(disk.path(), forced.target())
}

/// Of all that was copied so far the time tells how much it may be, at any look; how long it took at least is no matter of the machine.
#[test]
fn limits_are_kept() -> Result<()> {
    const RATE: u64 = 8 * MIB;
    let mut random = Random::new(seed());
    let disk = Loop::new(SIZE)?;
    fill_random(disk.path(), SIZE, &mut random)?;
    let protection = Protection::new(disk.path())?.arg("--mark-every=never");
    let protection = protection.arg("--limit-baseline=8MiB").arg("--limit-apply=8MiB");
    let begun = Instant::now();
    let mut protect = protection.spawn()?;
    // Two steps of either are done before they have to wait.
    let kept = |status: &Value| {
        let most = begun.elapsed().as_secs_f64() * RATE as f64 * 1.25;
        let done = |path: &str, step: u64| {
            status.pointer(path).and_then(Value::as_u64).unwrap_or(0).saturating_sub(2 * step)
        };
        ensure!(done("/scan_done_bytes", 4 * MIB) as f64 <= most, "copied too fast: {status}");
        ensure!(done("/replicas/0/written_bytes", 32 * MIB) as f64 <= most, "applied too fast: {status}");
        Ok(())
    };
    let mut last = Ok(());
    protect.wait_for("has copied and applied", |status| {
        last = kept(&status[0]);
        last.is_err() || status[0]["replica"]["consistent"] == true
    })?;
    last?;
    ensure!(begun.elapsed().as_secs() >= SIZE / RATE / 2, "{:?}", begun.elapsed());
    // What is applied alone, the source having been read long before.
    fill_random(disk.path(), SIZE, &mut random)?;
    let begun = Instant::now();
    let id = mark(&protect, "all of it")?;
    protect.wait_for("has applied it", |status| is_at(&status[0]["replicas"][0], id))?;
    ensure!(begun.elapsed().as_secs() >= SIZE / RATE / 2, "applied too fast: {:?}", begun.elapsed());
    protect.stop()?;
    assert_identical(disk.path(), protection.target())
}
