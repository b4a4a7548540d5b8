//! The ways to bring a file to its disk that are saves, though it stays open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use nix::libc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    Fsync,
    Fdatasync,
    /// Of a store through a shared mapping.
    Msync,
    IoUring,
    /// A write to a file that is open with O_DSYNC.
    SyncedWrite,
}

impl Sync {
    pub const ALL: [Sync; 5] = [Sync::Fsync, Sync::Fdatasync, Sync::Msync, Sync::IoUring, Sync::SyncedWrite];

    pub fn name(self) -> &'static str {
        match self {
            Sync::Fsync => "fsync",
            Sync::Fdatasync => "fdatasync",
            Sync::Msync => "msync",
            Sync::IoUring => "io_uring",
            Sync::SyncedWrite => "synced write",
        }
    }

    /// Whether this rung of the probes sees it; `best` may be any.
    pub fn is_seen_on(self, rung: &str) -> bool {
        rung == "fentry" || self != Sync::SyncedWrite
    }

    /// Makes the file, or writes over it, and returns it open.
    pub fn save(self, path: &Path, bytes: &[u8]) -> Result<File> {
        let flags = if self == Sync::SyncedWrite { libc::O_DSYNC } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match self {
            Sync::Msync => store_and_sync(&file, bytes)?,
            _ => file.write_all_at(bytes, 0)?,
        }
        match self {
            Sync::Fsync => file.sync_all()?,
            Sync::Fdatasync => file.sync_data()?,
            Sync::IoUring => sync_by_ring(&file)?,
            Sync::Msync | Sync::SyncedWrite => {}
        }
        Ok(file)
    }
}

fn store_and_sync(file: &File, bytes: &[u8]) -> Result<()> {
    file.set_len(bytes.len() as u64)?;
    let (protection, descriptor) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes.len(), protection, libc::MAP_SHARED, descriptor, 0) };
    ensure!(address != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    // SAFETY: the mapping is as long as the bytes, and nobody uses it but these calls.
    let synced = unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), address.cast(), bytes.len());
        let synced = libc::msync(address, bytes.len(), libc::MS_SYNC);
        libc::munmap(address, bytes.len());
        synced
    };
    ensure!(synced == 0, "msync of {} bytes failed", bytes.len());
    Ok(())
}

fn sync_by_ring(file: &File) -> Result<()> {
    let mut ring = IoUring::new(2)?;
    let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd())).build();
    // SAFETY: the file outlives the request, which is waited for.
    unsafe { ring.submission().push(&entry) }.context("the ring is empty")?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().context("one was waited for")?;
    ensure!(done.result() == 0, "fsync by io_uring: {}", io::Error::from_raw_os_error(-done.result()));
    Ok(())
}
