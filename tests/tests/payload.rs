//! Capture of payloads when things do not go well: the ring is too small, protect is killed, memory is changed while it is
//! written, or the bytes can't be had at all. What can't be restored is never said to be.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

const SIZE: u64 = 64 * MIB;

fn protection(device: &dyn Device) -> Result<Protection> {
    Ok(Protection::new(device.path())?.arg("--capture=payload").arg("--mark-every=never"))
}

fn counter(status: &Value, name: &str) -> u64 {
    status[0]["counters"][name].as_u64().unwrap_or(0)
}

fn each_write_is_a_point_again(protect: &mut Protect<'_>) -> Result<()> {
    protect.wait_for("every write is a point again", |status| status[0]["every_write"] == true)
}

/// So that there is more to restore behind the last break than its mark.
fn write_once_more(device: &Path) -> Result<()> {
    let file = File::options().write(true).open(device)?;
    file.write_all_at(&[0xA5; 4096], 0)?;
    Ok(file.sync_all()?)
}

/// It reaches to the last mark, and does not begin with the first one.
fn the_last_stretch_begins_after_the_break(protection: &Protection) -> Result<()> {
    let (points, stretches) = (protection.points()?, Stretch::of_journal(protection.journal())?);
    let lsn = |point: Option<&Value>| point.and_then(|point| point["lsn"].as_u64());
    let last = stretches.last();
    ensure!(last.map(|stretch| stretch.to_lsn) == lsn(points.last()), "{points:?} {stretches:?}");
    ensure!(last.map(|stretch| stretch.from_lsn) > lsn(points.first()), "{points:?} {stretches:?}");
    Ok(())
}

/// Down the ladder (bytes, where, bitmap) and up again: each step is counted, and the history begins anew by itself.
fn a_small_ring_breaks_the_history_and_it_begins_anew(device: &dyn Device) -> Result<()> {
    let protection = protection(device)?.arg("--ring=64KiB");
    let mut protect = protection.start()?;
    protect.signal(Signal::SIGSTOP)?;
    Fio::start(&[&format!("--filename={}", device.path().display()), "--bs=4k", "--iodepth=16"], 1)?
        .finish()?;
    protect.signal(Signal::SIGCONT)?;
    // What was published before the stop says that each write is a point, too.
    protect
        .wait_for("the overrun in the status", |status| status[0]["counters"]["marked"].as_u64() > Some(0))?;
    each_write_is_a_point_again(&mut protect)?;
    let status = protect.status()?;
    let [seen, emitted, marked, payload] =
        ["seen", "emitted", "marked", "payload"].map(|name| counter(&status, name));
    ensure!(seen == emitted + marked, "{status}");
    ensure!(payload > 0 && emitted > payload && marked > 0, "a rung of the ladder was not used: {status}");
    write_once_more(device.path())?;
    protect.stop()?;
    assert_identical(device.path(), protection.target())?;
    the_last_stretch_begins_after_the_break(&protection)?;
    protection.check_journal()
}

#[test]
fn a_small_ring_on_loop() -> Result<()> {
    a_small_ring_breaks_the_history_and_it_begins_anew(&Loop::new(SIZE)?)
}

#[test]
fn a_small_ring_on_zram() -> Result<()> {
    a_small_ring_breaks_the_history_and_it_begins_anew(&Zram::new(SIZE)?)
}

#[test]
fn after_a_kill_the_probes_are_adopted_and_the_history_begins_anew() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let protection = protection(&disk)?;
    let protect = protection.start()?;
    let load = Fio::on_device(disk.path(), 8)?;
    std::thread::sleep(Duration::from_secs(1));
    protect.kill()?;
    std::thread::sleep(Duration::from_millis(500));
    let mut protect = protection.start()?;
    let status = protect.volume_status()?;
    ensure!(status["probes"] == "adopted" && status["capture"] == "payload", "{status}");
    load.finish()?;
    each_write_is_a_point_again(&mut protect)?;
    write_once_more(disk.path())?;
    protect.stop()?;
    assert_identical(disk.path(), protection.target())?;
    the_last_stretch_begins_after_the_break(&protection)?;
    protection.check_journal()
}

#[test]
fn what_can_not_be_copied_is_recorded_as_extents_and_said_to_be() -> Result<()> {
    let disk = Zram::new(SIZE)?;
    let protection = protection(&disk)?.arg("--rung=tracepoint");
    let protect = protection.start()?;
    let status = protect.volume_status()?;
    ensure!(status["capture"] == "extents" && status["every_write"] == false, "{status}");
    ensure!(protect.log().contains("formatted tracepoints"), "{}", protect.log());
    fill_random(disk.path(), SIZE, &mut Random::new(seed()))?;
    protect.stop()?;
    assert_identical(disk.path(), protection.target())?;
    let stretches = Stretch::of_journal(protection.journal())?;
    ensure!(stretches.is_empty(), "{stretches:?}");
    Ok(())
}

/// Writes memory that another thread changes all the time.
fn write_unstable(device: &Path, until: &AtomicBool) -> Result<()> {
    const BYTES: usize = 64 << 10;
    let file = File::options().write(true).custom_flags(nix::libc::O_DIRECT).open(device)?;
    let mut memory = Aligned::new(BYTES);
    let memory: &[u8] = memory.bytes();
    let address = memory.as_ptr() as usize;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0u64;
            while !until.load(Ordering::Relaxed) {
                number += 1;
                for at in (0..BYTES).step_by(512) {
                    // SAFETY: within the memory, which outlives the scope; that others read it meanwhile is the test.
                    unsafe { ((address + at) as *mut u64).write_volatile(number) };
                }
            }
        });
        // Elsewhere each time, so that what is there can be compared before it is written again.
        for at in (0..SIZE).step_by(BYTES).cycle() {
            if until.load(Ordering::Relaxed) {
                break;
            }
            file.write_all_at(memory, at)?;
            // So that a slow machine keeps up: of what the bitmap tells nothing was copied.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })
}

#[test]
fn memory_that_is_changed_while_it_is_written_is_noticed() -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let protection = protection(&disk)?;
    let mut protect = protection.start()?;
    let until = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| write_unstable(disk.path(), &until));
        let noticed = protect.wait_for("has noticed it", |status| {
            status[0]["unstable_writes"].as_u64().is_some_and(|n| n > 0)
        });
        until.store(true, Ordering::Relaxed);
        writing.join().expect("it writes without a panic")?;
        noticed
    })?;
    protect.stop()
}
