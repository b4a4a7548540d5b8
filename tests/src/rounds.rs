use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::unistd::gettid;

use crate::{PATIENCE, wait_until};

/// Writes the number of the round to each place in turn, synced: at any instant each has the number of the one before it, or one
/// less.
pub struct Rounds {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    /// Its thread, for the kernel.
    tid: Arc<AtomicI32>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Rounds {
    pub fn start(places: Vec<PathBuf>) -> Result<Rounds> {
        let open = |path: &PathBuf| {
            let mut options = File::options();
            options.create(true).write(true).truncate(false).custom_flags(libc::O_SYNC).open(path)
        };
        let files = places.iter().map(open).collect::<std::io::Result<Vec<_>>>()?;
        for file in &files {
            file.write_all_at(format!("{:020}", 0).as_bytes(), 0)?;
        }
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tid = Arc::new(AtomicI32::new(0));
        let (stopped, counted, its_tid) = (stop.clone(), count.clone(), tid.clone());
        let thread = std::thread::spawn(move || {
            its_tid.store(gettid().as_raw(), Ordering::Relaxed);
            while !stopped.load(Ordering::Relaxed) {
                let round = counted.fetch_add(1, Ordering::Relaxed) + 1;
                for file in &files {
                    file.write_all_at(format!("{round:020}").as_bytes(), 0)?;
                }
            }
            Ok(())
        });
        Ok(Rounds { stop, count, tid, thread: Some(thread) })
    }

    pub fn wait_for_more(&self, rounds: u64) -> Result<()> {
        let goal = self.count.load(Ordering::Relaxed) + rounds;
        wait_until("rounds are written", PATIENCE, || Ok(self.count.load(Ordering::Relaxed) >= goal))
    }

    /// Whether the kernel holds its writer because a file system is frozen: it waits to begin a write.
    pub fn is_held_by_a_freeze(&self) -> Result<bool> {
        let tid = self.tid.load(Ordering::Relaxed);
        Ok(std::fs::read_to_string(format!("/proc/self/task/{tid}/stack"))?.contains("percpu_rwsem_wait"))
    }

    /// Its writer is held, or slow.
    pub fn wait_for_stall(&self, at_least: Duration) -> Result<()> {
        let begun = Instant::now();
        let (mut seen, mut since) = (0, begun);
        while since.elapsed() < at_least {
            ensure!(begun.elapsed() < PATIENCE, "writes never stood still");
            std::thread::sleep(Duration::from_millis(1));
            let count = self.count.load(Ordering::Relaxed);
            if count != seen {
                (seen, since) = (count, Instant::now());
            }
        }
        Ok(())
    }

    pub fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().context("it runs")?.join().expect("it does not panic")
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
