//! `afterwrite rewind`: a replica goes to any point of its journal and comes back, also when it is killed on the way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

const VOLUME_BYTES: u64 = 64 * MIB;

fn rewind(protection: &Protection, to: &str) -> Command {
    let mut rewind = afterwrite();
    rewind.arg("rewind").arg(protection.target()).arg("--journal").arg(protection.journal());
    rewind.args(["--to", to]);
    rewind
}

/// Writes at random places, `count` times 64 KiB.
fn change(device: &Path, count: u64, random: &mut Random) -> Result<()> {
    const PIECE: u64 = 64 << 10;
    let file = File::options().write(true).open(device)?;
    for _ in 0..count {
        let at = random.below(VOLUME_BYTES / PIECE) * PIECE;
        file.write_all_at(&random.bytes(usize::try_from(PIECE)?), at)?;
    }
    Ok(file.sync_all()?)
}

/// The replica is what a replay of the point gives.
fn assert_is(protection: &Protection, point: &str) -> Result<()> {
    let image = protection.dir().join("replayed.img");
    protection.replay(point, &image)?;
    let same = run(Command::new("cmp").arg(&image).arg(protection.target()));
    std::fs::remove_file(&image)?;
    same.map(drop).with_context(|| format!("at {point}"))
}

/// Marks one, two and three with changes between them; stopped.
fn three_marks(protection: &Protection, random: &mut Random) -> Result<()> {
    fill_random(protection.device(), VOLUME_BYTES, random)?;
    let protect = protection.start()?;
    for label in ["one", "two", "three"] {
        change(protection.device(), 200, random)?;
        protect.mark(label)?;
    }
    // As long as it runs it is the only one that changes the replica.
    let refused = finish(&mut rewind(protection, "mark:one"), PATIENCE)?;
    says(&refused, 2, &["at work on the journal", "stop that `protect` first"])?;
    protect.stop()
}

fn there_and_back(protection: &Protection) -> Result<()> {
    let mut random = Random::new(seed());
    three_marks(protection, &mut random)?;
    let journal = |protection: &Protection| -> Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(protection.journal())? {
            let entry = entry?;
            files.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
        }
        files.retain(|(name, _)| !name.starts_with("replica."));
        files.sort();
        Ok(files)
    };
    let before = journal(protection)?;
    for point in ["mark:one", "mark:three", "mark:two", "latest", "mark:one"] {
        run(&mut rewind(protection, point))?;
        assert_is(protection, point)?;
        run(afterwrite().arg("verify").arg(protection.target()).arg("--hashes").arg(protection.journal()))?;
    }
    ensure!(journal(protection)? == before, "a rewind wrote to the journal");

    // Nothing was written since the stop: nothing is compared, the journal alone brings it forward.
    let protect = protection.start()?;
    ensure!(protect.log().contains("bringing the target to mark"), "{}", protect.log());
    protect.stop()?;
    assert_identical(protection.device(), protection.target())?;

    // Something was, and is found by comparing with a replica that was brought forward.
    run(&mut rewind(protection, "mark:two"))?;
    change(protection.device(), 100, &mut random)?;
    protection.start()?.stop()?;
    assert_identical(protection.device(), protection.target())?;

    // The probes went on after a kill.
    let protect = protection.start()?;
    change(protection.device(), 50, &mut random)?;
    protect.kill()?;
    run(&mut rewind(protection, "mark:one"))?;
    assert_is(protection, "mark:one")?;
    change(protection.device(), 50, &mut random)?;
    protection.start()?.stop()?;
    assert_identical(protection.device(), protection.target())?;
    protection.check_journal()
}

#[test]
fn an_image_goes_to_any_mark_and_is_the_source_again() -> Result<()> {
    let disk = Loop::new(VOLUME_BYTES)?;
    there_and_back(&Protection::new(disk.path())?)
}

#[test]
fn a_device_goes_to_any_mark_and_is_the_source_again() -> Result<()> {
    let (disk, replica) = (Loop::new(VOLUME_BYTES)?, Loop::new(VOLUME_BYTES)?);
    there_and_back(&Protection::new(disk.path())?.target_at(replica.path()))
}

#[test]
fn killed_amid_a_rewind_it_goes_to_any_point_or_on() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(VOLUME_BYTES)?;
    let protection = Protection::new(disk.path())?;
    three_marks(&protection, &mut random)?;
    let checkpoint = protection.journal().join("replica.checkpoint");
    let is_amid = || std::fs::read_to_string(&checkpoint).is_ok_and(|text| text.contains("applying"));
    let mut amid = 0;
    for round in 0..6 {
        let mut going = rewind(&protection, "mark:one").stdout(Stdio::null()).spawn()?;
        wait_until("it has begun", PATIENCE, || Ok(is_amid() || going.try_wait()?.is_some()))?;
        let (begun, instant) = (Instant::now(), Duration::from_micros(random.below(60_000)));
        wait_until("the instant of the kill", PATIENCE, || Ok(begun.elapsed() >= instant))?;
        going.kill()?;
        going.wait()?;
        amid += u64::from(is_amid());
        let context = || format!("round {round}, killed {instant:?} after it had begun");
        match round % 3 {
            0 => {
                run(&mut rewind(&protection, "mark:two")).with_context(context)?;
                assert_is(&protection, "mark:two").with_context(context)?;
            }
            1 => {
                run(&mut rewind(&protection, "mark:one")).with_context(context)?;
                assert_is(&protection, "mark:one").with_context(context)?;
            }
            _ => change(disk.path(), 20, &mut random)?,
        }
        protection.start().with_context(context)?.stop()?;
        assert_identical(disk.path(), protection.target()).with_context(context)?;
    }
    ensure!(amid > 1, "only {amid} of the kills were amid a rewind");
    protection.check_journal()
}
