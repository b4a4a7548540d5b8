//! Each rung of the ladder by which submissions are seen gives the same replica.

use std::process::Command;

use afterwrite_tests::*;
use anyhow::{Context, Result};

fn gives_an_identical_replica(rung: &str, device: &dyn Device) -> Result<()> {
    let protection = Protection::new(device.path())?.arg("--rung").arg(rung);
    let mut protect = protection.start()?;
    protect.wait_for("names its rung", |status| status.to_string().contains(&format!("\"{rung}\"")))?;
    Fio::on_device(device.path(), 2)?.finish()?;
    protect.mark("written")?;
    run(Command::new("blkdiscard")
        .args(["--force", "--offset", "4194304", "--length", "8388608"])
        .arg(device.path()))?;
    run(Command::new("blkdiscard")
        .args(["--force", "--zeroout", "--offset", "16777216", "--length", "1048576"])
        .arg(device.path()))?;
    protect.stop()?;
    assert_identical(device.path(), protection.target()).with_context(|| format!("rung {rung}"))
}

fn on_both(rung: &str) -> Result<()> {
    gives_an_identical_replica(rung, &Loop::new(32 * MIB)?).context("loop")?;
    gives_an_identical_replica(rung, &Zram::new(32 * MIB)?).context("zram")
}

#[test]
fn tp_btf() -> Result<()> {
    on_both("tp_btf")
}

#[test]
fn raw_tp() -> Result<()> {
    on_both("raw_tp")
}

#[test]
fn tracepoint() -> Result<()> {
    on_both("tracepoint")
}
