//! Writers to a device without a file system, which know what must be on it.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

const ALIGNMENT: u64 = 4096;
const WRITE_BYTES_MAX: u64 = 128 << 10;
const PACE: Duration = Duration::from_millis(8);
/// Now and then a writer goes as fast as it can for so many small writes.
const BURST: u64 = 2000;

/// Several writers, each with a part of the device of its own: direct and buffered writes, zeroes, discards.
pub struct RawWriters {
    device: PathBuf,
    writers: Vec<Writer>,
    end: Arc<AtomicBool>,
    longest_ms: Arc<AtomicU64>,
}

struct Writer {
    start: u64,
    model: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// All writers stand still between two operations.
pub struct Paused<'w> {
    models: Vec<MutexGuard<'w, Vec<u8>>>,
}

impl RawWriters {
    /// `device` holds `size_bytes` zeroes. `sector_bytes`: what a write may be a multiple of.
    pub fn start(
        device: &Path,
        size_bytes: u64,
        sector_bytes: u64,
        count: u64,
        random: &mut Random,
    ) -> Result<RawWriters> {
        let (end, longest_ms) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let part = size_bytes / count / MIB * MIB;
        let mut writers = Vec::new();
        for index in 0..count {
            let start = index * part;
            let len = if index + 1 == count { size_bytes - start } else { part };
            let model = Arc::new(Mutex::new(vec![0; usize::try_from(len)?]));
            let hand = Hand::new(device, start, len, sector_bytes, Random::new(random.number()))?;
            let (ended, shared, longest) = (end.clone(), model.clone(), longest_ms.clone());
            let thread = std::thread::spawn(move || hand.write_until(&ended, &shared, &longest));
            writers.push(Writer { start, model, thread: Some(thread) });
        }
        Ok(RawWriters { device: device.to_owned(), writers, end, longest_ms })
    }

    pub fn pause(&self) -> Paused<'_> {
        let models = self.writers.iter().map(|writer| writer.model.lock());
        // A writer that panicked says so when it is joined.
        let models = models.map(|locked| locked.unwrap_or_else(PoisonError::into_inner)).collect();
        Paused { models }
    }

    /// The longest that one write took.
    pub fn longest_ms(&self) -> u64 {
        self.longest_ms.load(Ordering::Relaxed)
    }

    /// Ends them, and looks whether the device holds what they wrote.
    pub fn finish(mut self) -> Result<()> {
        self.end.store(true, Ordering::Relaxed);
        for writer in &mut self.writers {
            let thread = writer.thread.take().expect("finished once");
            thread.join().map_err(|_| anyhow!("a writer panicked"))?.context("a writer failed")?;
        }
        let file = File::options().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(&self.device)?;
        let chunk = usize::try_from(MIB)?;
        let mut aligned = Aligned::new(chunk);
        for (writer, model) in self.writers.iter().zip(&self.pause().models) {
            for (at, wanted) in (writer.start..).step_by(chunk).zip(model.chunks(chunk)) {
                let found = &mut aligned.bytes()[..wanted.len()];
                file.read_exact_at(found, at)?;
                ensure!(found == wanted, "the source itself has other bytes than were written, near {at}");
            }
        }
        Ok(())
    }
}

impl Drop for RawWriters {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.writers.iter_mut().filter_map(|writer| writer.thread.take()) {
            // The round has failed already: it need not hear that this did too.
            drop(thread.join());
        }
    }
}

impl Paused<'_> {
    /// Of all bytes of the device.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.models.iter().for_each(|model| {
            hasher.update(model);
        });
        hasher.finalize().to_hex().to_string()
    }
}

/// One writer's own things.
struct Hand {
    device: PathBuf,
    direct: File,
    buffered: File,
    start: u64,
    len: u64,
    sector_bytes: u64,
    random: Random,
    aligned: Aligned,
}

impl Hand {
    fn new(device: &Path, start: u64, len: u64, sector_bytes: u64, random: Random) -> Result<Hand> {
        let direct = File::options().write(true).custom_flags(OFlag::O_DIRECT.bits()).open(device)?;
        let buffered = File::options().write(true).open(device)?;
        let aligned = Aligned::new(usize::try_from(WRITE_BYTES_MAX)?);
        Ok(Hand { device: device.to_owned(), direct, buffered, start, len, sector_bytes, random, aligned })
    }

    fn write_until(mut self, end: &AtomicBool, model: &Mutex<Vec<u8>>, longest_ms: &AtomicU64) -> Result<()> {
        let mut burst = 0;
        while !end.load(Ordering::Relaxed) {
            {
                let mut model = model.lock().map_err(|_| anyhow!("another writer panicked"))?;
                let begun = Instant::now();
                if burst > 0 { self.write_direct(&mut model, 4096) } else { self.step(&mut model) }?;
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                longest_ms.fetch_max(took, Ordering::Relaxed);
            }
            burst = if burst > 0 { burst - 1 } else { 0 };
            if burst == 0 {
                std::thread::sleep(PACE);
                burst = if self.random.below(200) == 0 { self.random.below(BURST) } else { 0 };
            }
        }
        Ok(())
    }

    fn step(&mut self, model: &mut [u8]) -> Result<()> {
        match self.random.below(20) {
            0 => {
                let (at, len) = self.range(ALIGNMENT, 4 * MIB);
                let range = [self.start + at, len].map(|number| number.to_string());
                let mut discard = Command::new("blkdiscard");
                run(discard
                    .args(["--force", "--offset", &range[0], "--length", &range[1]])
                    .arg(&self.device))?;
                zero(model, at, len)
            }
            1 => {
                let (at, len) = self.range(ALIGNMENT, MIB);
                let (offset, length) = (i64::try_from(self.start + at)?, i64::try_from(len)?);
                let zero_range = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&self.direct, zero_range, offset, length)?;
                zero(model, at, len)
            }
            2 | 3 => {
                let (at, len) = self.range(self.sector_bytes, WRITE_BYTES_MAX);
                let bytes = self.random.bytes(usize::try_from(len)?);
                self.buffered.write_all_at(&bytes, self.start + at)?;
                self.buffered.sync_data()?;
                put(model, at, &bytes)
            }
            _ => self.write_direct(model, WRITE_BYTES_MAX),
        }
    }

    fn write_direct(&mut self, model: &mut [u8], bytes_max: u64) -> Result<()> {
        let (at, len) = self.range(self.sector_bytes, bytes_max);
        let bytes = &mut self.aligned.bytes()[..usize::try_from(len)?];
        // Some of what is written compresses.
        if self.random.below(4) == 0 {
            bytes.fill(u8::try_from(self.random.below(256))?);
        } else {
            bytes.copy_from_slice(&self.random.bytes(usize::try_from(len)?));
        }
        self.direct.write_all_at(bytes, self.start + at)?;
        put(model, at, bytes)
    }

    /// A random range of the own part, of `bytes_max` at most.
    fn range(&mut self, unit: u64, bytes_max: u64) -> (u64, u64) {
        let at = self.random.below(self.len / unit) * unit;
        let len = (1 + self.random.below(bytes_max / unit)) * unit;
        (at, len.min(self.len - at))
    }
}

fn put(model: &mut [u8], at: u64, bytes: &[u8]) -> Result<()> {
    let at = usize::try_from(at)?;
    model[at..at + bytes.len()].copy_from_slice(bytes);
    Ok(())
}

fn zero(model: &mut [u8], at: u64, len: u64) -> Result<()> {
    model[usize::try_from(at)?..usize::try_from(at + len)?].fill(0);
    Ok(())
}
