use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{PATIENCE, Random, Workload, run, scratch, wait_until};

/// Operations between two trims.
const BATCH: u64 = 100;

/// A pace of about 20 MB/s, so that the journal of a test can be replayed several times within it.
const OPERATIONS_PER_SECOND: u32 = 600;

/// A workload that goes on in a thread until it is told to end, and trims its file system now and then.
pub struct Churn {
    end: Arc<AtomicBool>,
    operations: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Workload>>>,
}

impl Churn {
    /// In the new directory `dir` of the file system mounted at `mount_point`; trims after each batch.
    pub fn start(mount_point: &Path, dir: &str, random: Random) -> Result<Churn> {
        Churn::trimming(mount_point, dir, random, 1)
    }

    /// As [`Churn::start`], but trims only after so many batches.
    pub fn trimming(mount_point: &Path, dir: &str, random: Random, batches: u64) -> Result<Churn> {
        let mut workload = Workload::new(&mount_point.join(dir), random)?;
        let mount_point = mount_point.to_owned();
        let end = Arc::new(AtomicBool::new(false));
        let operations = Arc::new(AtomicU64::new(0));
        let (ended, counted) = (Arc::clone(&end), Arc::clone(&operations));
        let thread = std::thread::spawn(move || {
            let (start, mut done) = (Instant::now(), 0);
            while !ended.load(Ordering::Relaxed) {
                for _ in 0..BATCH {
                    workload.step()?;
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                done += BATCH;
                let due = Duration::from_secs(done) / OPERATIONS_PER_SECOND;
                wait_until("the next batch is due", PATIENCE, || {
                    Ok(start.elapsed() >= due || ended.load(Ordering::Relaxed))
                })?;
                if (done / BATCH).is_multiple_of(batches) {
                    run(Command::new("fstrim").arg(&mount_point))?;
                }
            }
            Ok(workload)
        });
        Ok(Churn { end, operations, thread: Some(thread) })
    }

    /// Waits until it has done so many operations in all.
    pub fn wait_for(&self, operations: u64) -> Result<()> {
        wait_until("the workload has done its operations", PATIENCE, || {
            let failed = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            Ok(failed || self.operations.load(Ordering::Relaxed) >= operations)
        })
    }

    /// Ends it soon, and returns it with what must be on the disk then.
    pub fn finish(mut self) -> Result<Workload> {
        self.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("finished once");
        thread.join().map_err(|_| anyhow!("the workload's thread panicked"))?.context("the workload failed")
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The test has failed already: it need not hear that this did too.
            drop(thread.join());
        }
    }
}

/// fio writing at random and reading back what it wrote to verify it; killed when dropped.
pub struct Fio {
    child: Child,
    dir: TempDir,
}

impl Fio {
    /// In files of `dir`, for `seconds`. At a rate that keeps the journal to what a test can replay several times.
    pub fn in_directory(dir: &Path, seconds: u64) -> Result<Fio> {
        let directory = format!("--directory={}", dir.display());
        let job = ["--size=12m", "--numjobs=2", "--bsrange=4k-64k", "--verify=crc32c", "--rate=,12m"];
        Fio::start(&[&job[..], &[&directory]].concat(), seconds)
    }

    /// On a device, for `seconds`.
    pub fn on_device(device: &Path, seconds: u64) -> Result<Fio> {
        let filename = format!("--filename={}", device.display());
        Fio::start(&[&filename, "--bsrange=4k-256k", "--verify=crc32c", "--rate=,64m"], seconds)
    }

    /// Any job; `args` are added to those of a random, direct, verified write.
    pub fn start(args: &[&str], seconds: u64) -> Result<Fio> {
        let dir = scratch()?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let child = Command::new("fio")
            // Threads, not processes: killing it must end all of it.
            .args([
                "--thread",
                "--name=load",
                "--rw=randwrite",
                "--direct=1",
                "--ioengine=libaio",
                "--iodepth=8",
            ])
            .args(["--verify_backlog=64", "--verify_fatal=1", "--time_based", "--randrepeat=0"])
            .arg(format!("--runtime={seconds}"))
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run fio")?;
        Ok(Fio { child, dir })
    }

    /// Waits until it is through; an error with its output if it read back what it did not write.
    pub fn finish(mut self) -> Result<()> {
        let mut status = None;
        wait_until("fio is through", PATIENCE * 4, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        let status = status.expect("waited for");
        ensure!(status.success(), "fio: {status}:\n{}", self.log());
        Ok(())
    }

    /// Ends it now; an error if it has ended by itself or found a fault.
    pub fn stop(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("fio has ended by itself: {status}:\n{}", self.log());
        }
        kill(pid_of(&self.child), Signal::SIGINT)?;
        wait_until("fio has ended", PATIENCE, || Ok(self.child.try_wait()?.is_some()))?;
        let log = self.log();
        ensure!(!log.contains("verify") && !log.contains("error="), "fio found a fault:\n{log}");
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Gone meanwhile is as good.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"))
}
