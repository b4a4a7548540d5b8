//! What others make of 4 KiB changed in the large file: rsync, told to look for what differs and to write it in place, and lsyncd,
//! which calls that rsync. They have a copy of the directory with the large file already, and nothing else to look at.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use afterwrite_tests::{Loop, MIB, Watcher, run, wait_until};

use crate::loads::{LARGE, change_at};
use crate::{SIZE, Written, quiet_ext4};

const LIMIT: Duration = Duration::from_secs(1800);
const IN_PLACE: [&str; 2] = ["--inplace", "--no-whole-file"];

/// Prints a line of the table for each.
pub fn compare(tree: &Path) -> Result<()> {
    let disk = Loop::new(SIZE)?;
    let mount = quiet_ext4(&disk)?;
    let (source, copy) = (tree.join(LARGE).join(""), mount.point().join("copy"));
    run(Command::new("rsync").arg("-aS").arg(&source).arg(&copy))?;

    let written = Written::begin(&disk, &mount)?;
    change_at(&source.join("file"), 8192)?;
    let begun = Instant::now();
    run(Command::new("rsync").arg("-a").args(IN_PLACE).arg(&source).arg(&copy))?;
    tell("rsync -a --inplace --no-whole-file", begun.elapsed(), written.end()?);

    let lsyncd = Watcher::lsyncd(&source, &copy, &IN_PLACE)?;
    let written = Written::begin(&disk, &mount)?;
    let begun = Instant::now();
    let (at, bytes) = change_at(&source.join("file"), 16384)?;
    let file = File::open(copy.join("file"))?;
    wait_until("lsyncd has copied it", LIMIT, || {
        let mut there = [0; 4096];
        file.read_exact_at(&mut there, at)?;
        Ok(there == bytes)
    })?;
    let took = begun.elapsed();
    drop((lsyncd, file));
    tell("lsyncd, with that rsync, without delay", took, written.end()?);
    mount.unmount()
}

fn tell(who: &str, took: Duration, written: u64) {
    let written = written as f64 / MIB as f64;
    println!("| the same by {who} | | {:.1} s | | | | {written:.2} MiB | |", took.as_secs_f64());
}
