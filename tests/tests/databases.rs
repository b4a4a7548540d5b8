//! Databases under load, restored to any instant: they start, find no damage, and have every transaction that was
//! acknowledged before it.
//!
//! AFTERWRITE_INSTANTS is how many instants each test restores (default 2, 50 at most: each has a server started).

use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result};

const VOLUME_BYTES: u64 = 192 * MIB;
const INSTANTS_MAX: u64 = 50;

fn chosen() -> (Duration, u64) {
    (Duration::from_secs(load_seconds()), instants(2).min(INSTANTS_MAX))
}

fn postgres(capture: Capture) -> Result<()> {
    let mut random = Random::new(seed());
    let device = Loop::new(VOLUME_BYTES)?;
    let mount = Mount::make(Fs::Ext4, device.path())?;
    let server = Postgres::create(mount.point())?;
    server.prepare()?;
    let protection = capture.protection(device.path())?;
    let load = || server.transactions(load_seconds());
    let (operations, points) = capture.points_of(&protection, chosen(), &mut random, load, || Ok(()))?;
    // A restored one that finds its process id in use would not start.
    server.stop()?;
    mount.unmount()?;
    println!("PostgreSQL: {} transactions", operations.len());

    prove(&protection, &points, |image| {
        let device = Loop::over(image)?;
        let mount = Mount::recovered(Fs::Ext4, device.path()).context("recovery by the kernel")?;
        let server = Postgres::recover(mount.point()).context("recovery by PostgreSQL")?;
        let found = server.find(&operations)?;
        server.stop()?;
        Postgres::checksums(mount.point())?;
        mount.unmount()?;
        fsck(Fs::Ext4, device.path()).context("after the recovery")?;
        Ok(found)
    })
}

fn sqlite(capture: Capture) -> Result<()> {
    let mut random = Random::new(seed());
    let device = Loop::new(64 * MIB)?;
    let mount = Mount::make(Fs::Ext4, device.path())?;
    let database = Sqlite::create(mount.point())?;
    let protection = capture.protection(device.path())?;
    let (length, _) = chosen();
    let mut clients = Random::new(random.number());
    let load = || database.transactions(length, &mut clients);
    let (operations, points) =
        capture.points_of(&protection, chosen(), &mut random, load, || mount.unmount())?;
    println!("SQLite: {} transactions", operations.len());

    prove(&protection, &points, |image| {
        let device = Loop::over(image)?;
        let mount = Mount::recovered(Fs::Ext4, device.path()).context("recovery by the kernel")?;
        let found = Sqlite::at(mount.point()).find(&operations)?;
        mount.unmount()?;
        fsck(Fs::Ext4, device.path()).context("after the recovery")?;
        Ok(found)
    })
}

#[test]
fn marks_of_postgresql_have_every_acknowledged_transaction() -> Result<()> {
    postgres(Capture::Extents)
}

#[test]
fn instants_of_postgresql_have_every_acknowledged_transaction() -> Result<()> {
    postgres(Capture::Payload)
}

#[test]
fn marks_of_sqlite_have_every_acknowledged_transaction() -> Result<()> {
    sqlite(Capture::Extents)
}

#[test]
fn instants_of_sqlite_have_every_acknowledged_transaction() -> Result<()> {
    sqlite(Capture::Payload)
}
