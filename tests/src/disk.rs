//! The disk of a journal or of a target, which can be broken in several ways and mended again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{Device, Fs, Loop, Mount, PATIENCE, blank_image, mount_tmpfs, run, wait_until};

const DISK_BYTES: u64 = 3 << 30;
/// How long `afterwrite` may keep a broken file system busy, so that it can't be unmounted.
const BUSY_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakage {
    /// No space left.
    Full,
    /// The file system went read-only (ext4) or shut down (XFS), as after a fault of its metadata.
    ShutDown,
    /// Writes to what was never written fail with EIO.
    IoErrors,
}

/// A file system on a loop device over a sparse image in a tmpfs.
pub struct Disk {
    fs: Fs,
    broken: Option<Breakage>,
    // Dropped in this order.
    mount: Mount,
    _device: Loop,
    pool: Mount,
}

impl Disk {
    /// `fs` is ext4 or XFS.
    pub fn new(fs: Fs) -> Result<Disk> {
        let pool = mount_tmpfs(DISK_BYTES)?;
        let image = pool.point().join("disk.img");
        blank_image(&image, DISK_BYTES)?;
        let device = Loop::over(&image)?;
        let mount = Mount::make(fs, device.path())?;
        Ok(Disk { fs, broken: None, mount, _device: device, pool })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.point().join(name)
    }

    pub fn break_it(&mut self, how: Breakage) -> Result<()> {
        self.broken = Some(how);
        match (how, self.fs) {
            (Breakage::Full, _) => fill(&self.ballast()),
            (Breakage::ShutDown, Fs::Ext4) => self.mount.remount("abort"),
            (Breakage::ShutDown, _) => {
                let mut shut_down = Command::new("xfs_io");
                run(shut_down.args(["-x", "-c", "shutdown"]).arg(self.mount.point())).map(drop)
            }
            // The pool has what it has, and no page more.
            (Breakage::IoErrors, _) => wait_until("the pool has no room left", PATIENCE, || {
                let pool = nix::sys::statvfs::statvfs(self.pool.point())?;
                let used_bytes = (pool.blocks() - pool.blocks_free()) * pool.fragment_size();
                // Refused when more has been written meanwhile.
                Ok(self.pool.remount(&format!("size={used_bytes}")).is_ok())
            }),
        }
    }

    /// Takes the cause away. Says whether the file system is well again: one that shut down has to be unmounted, which
    /// cannot be done as long as `afterwrite` has files open in it.
    pub fn mend(&mut self) -> Result<bool> {
        match self.broken {
            None => return Ok(true),
            Some(Breakage::Full) => std::fs::remove_file(self.ballast())?,
            Some(Breakage::IoErrors) => self.pool.remount(&format!("size={DISK_BYTES}"))?,
            Some(Breakage::ShutDown) => {}
        }
        self.broken = Some(Breakage::ShutDown);
        // What is left of I/O errors may be no more than pages in the cache that are clean and not on the disk.
        if self.can_be_written() || self.mount.cycle(BUSY_MAX).is_ok() {
            self.broken = None;
        }
        Ok(self.broken.is_none())
    }

    fn can_be_written(&self) -> bool {
        let path = self.path("probe");
        let written =
            std::fs::write(&path, "is it writable?").and_then(|()| std::fs::File::open(&path)?.sync_all());
        written.and_then(|()| std::fs::remove_file(&path)).is_ok()
    }

    /// What is in the page cache only is no proof.
    pub fn forget_cache(&mut self) -> Result<()> {
        ensure!(self.broken.is_none(), "the disk is still broken");
        self.mount.cycle(PATIENCE)
    }

    fn ballast(&self) -> PathBuf {
        self.path("ballast")
    }
}

/// Allocates, without writing, until not a block is left.
fn fill(ballast: &Path) -> Result<()> {
    let file = std::fs::File::create(ballast)?;
    let (mut end, mut step) = (0, 1i64 << 30);
    while step >= 4096 {
        match nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), end, step) {
            Ok(()) => end += step,
            Err(nix::errno::Errno::ENOSPC) => step /= 2,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
