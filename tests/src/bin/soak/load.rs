//! What writes to the volume during a round, and what must be on it in the end.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, anyhow};

use crate::raw::RawWriters;

const WRITERS: u64 = 3;
/// Batches of the churn, each a sixth of a second: all that is free is read after a trim.
const TRIM_EVERY: u64 = 20;
/// Longer than any round.
const FIO_SECONDS: u64 = 24 * 3600;

/// What a point must hold.
#[derive(Clone, Debug)]
pub enum Content {
    /// The files of the directory `steady`.
    Files(Fs, Manifest),
    /// BLAKE3 of all bytes.
    Bytes(String),
}

pub enum Load {
    Writers(RawWriters),
    Fio(Fio),
    Files(Box<Files>),
}

/// A mounted file system under load.
pub struct Files {
    fs: Fs,
    // Dropped in this order.
    fio: Fio,
    churn: Churn,
    pulse: Pulse,
    steady: Workload,
    mount: Mount,
}

impl Load {
    pub fn raw_writers(device: &Path, size: u64, sector_bytes: u64, random: &mut Random) -> Result<Load> {
        Ok(Load::Writers(RawWriters::start(device, size, sector_bytes, WRITERS, random)?))
    }

    pub fn raw_fio(device: &Path) -> Result<Load> {
        let filename = format!("--filename={}", device.display());
        let job = ["--bsrange=4k-128k", "--verify=crc32c", "--rate=,8m", &filename];
        Ok(Load::Fio(Fio::start(&job, FIO_SECONDS)?))
    }

    pub fn files(fs: Fs, device: &Path, random: &mut Random) -> Result<Load> {
        let mount = Mount::make(fs, device)?;
        let directory = format!("--directory={}", mount.point().display());
        let job =
            ["--size=8m", "--numjobs=2", "--bsrange=4k-64k", "--verify=crc32c", "--rate=,2m", &directory];
        Ok(Load::Files(Box::new(Files {
            fs,
            fio: Fio::start(&job, FIO_SECONDS)?,
            churn: Churn::trimming(mount.point(), "churn", Random::new(random.number()), TRIM_EVERY)?,
            pulse: Pulse::start(&mount.point().join("pulse"))?,
            steady: Workload::new(&mount.point().join("steady"), Random::new(random.number()))?,
            mount,
        })))
    }

    /// Runs `mark`; what the volume held at that instant, as far as it is known.
    pub fn still<T>(&mut self, mark: impl FnOnce() -> Result<T>) -> Result<(T, Option<Content>)> {
        match self {
            Load::Writers(writers) => {
                let paused = writers.pause();
                Ok((mark()?, Some(Content::Bytes(paused.hash()))))
            }
            Load::Fio(_) => Ok((mark()?, None)),
            Load::Files(files) => {
                // Not synced: a frozen file system has written it all the same.
                files.steady.run(60)?;
                Ok((mark()?, Some(Content::Files(files.fs, files.steady.manifest()))))
            }
        }
    }

    /// The longest that one write of the load has taken, as far as that is measured.
    pub fn longest_ms(&self) -> u64 {
        match self {
            Load::Writers(writers) => writers.longest_ms(),
            Load::Fio(_) => 0,
            Load::Files(files) => files.pulse.longest_ms.load(Ordering::Relaxed),
        }
    }

    /// Ends it, unmounts, and looks whether what it wrote is there. The volume is still from here on.
    pub fn finish(self) -> Result<()> {
        match self {
            Load::Writers(writers) => writers.finish(),
            Load::Fio(fio) => fio.stop(),
            Load::Files(files) => {
                let Files { fs: _, fio, churn, pulse, steady, mount } = *files;
                pulse.finish()?;
                fio.stop()?;
                let churn = churn.finish()?;
                for workload in [&churn, &steady] {
                    let found = Manifest::read(workload.dir())?;
                    found.ensure_equals(&workload.manifest()).context("the source has been touched")?;
                }
                mount.unmount()
            }
        }
    }
}

/// A small write and fsync again and again, to see how long one can take.
struct Pulse {
    end: Arc<AtomicBool>,
    longest_ms: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Pulse {
    fn start(path: &Path) -> Result<Pulse> {
        let mut file = File::create(path)?;
        let (end, longest_ms) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, longest) = (end.clone(), longest_ms.clone());
        let thread = std::thread::spawn(move || {
            let mut beats = 0u64;
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                file.rewind()?;
                file.write_all(&beats.to_le_bytes())?;
                file.sync_data()?;
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                longest.fetch_max(took, Ordering::Relaxed);
                beats += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Ok(Pulse { end, longest_ms, thread: Some(thread) })
    }

    fn finish(mut self) -> Result<()> {
        self.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("finished once");
        thread.join().map_err(|_| anyhow!("the pulse panicked"))?.context("the pulse failed")
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The round has failed already: it need not hear that this did too.
            drop(thread.join());
        }
    }
}
