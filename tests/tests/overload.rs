//! A ring far too small for what is written: what finds no room goes to the bitmap, and nothing is lost.

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

fn small_ring_loses_nothing(device: &dyn Device) -> Result<()> {
    let protection = Protection::new(device.path())?.arg("--ring").arg("4KiB");
    let mut protect = protection.start()?;
    // As fast as it goes: a ring of 4 KiB holds 73 events.
    Fio::start(&[&format!("--filename={}", device.path().display()), "--bs=4k", "--iodepth=64"], 3)?
        .finish()?;
    let status = protect.status()?;
    let counter =
        |name: &str| status[0]["counters"][name].as_u64().with_context(|| format!("no counter {name}"));
    let (seen, emitted, marked) = (counter("seen")?, counter("emitted")?, counter("marked")?);
    ensure!(marked > 0, "the ring was never full: {status}");
    ensure!(seen == emitted + marked, "{seen} seen, {emitted} emitted, {marked} marked");
    protect.wait_for("has copied what the bitmap held", |status| status[0]["pending_bytes"] == 0)?;
    protect.mark("after the overload")?;
    protect.stop()?;
    assert_identical(device.path(), protection.target())?;
    let image = protection.dir().join("replayed.img");
    protection.replay("mark:after the overload", &image)?;
    assert_identical(device.path(), &image)
}

#[test]
fn on_loop() -> Result<()> {
    small_ring_loses_nothing(&Loop::new(64 * MIB)?)
}

#[test]
fn on_zram() -> Result<()> {
    small_ring_loses_nothing(&Zram::new(64 * MIB)?)
}
