//! A small disk of our own, to try things on: a loop device over memory, gone when it is dropped.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// include/uapi/linux/loop.h
mod ioctl {
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
    nix::ioctl_write_int_bad!(loop_set_fd, 0x4C00);
    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
}

pub struct ScratchDisk {
    path: PathBuf,
    device: File,
}

impl ScratchDisk {
    /// # Errors
    /// Where there is no loop device to be had (no module, no permission).
    pub fn new(bytes: u64) -> io::Result<ScratchDisk> {
        // Another process may take the device that is free between the two calls.
        const ATTEMPTS: usize = 20;
        let memory: OwnedFd = memfd_create(c"afterwrite-scratch", MFdFlags::MFD_CLOEXEC)?;
        File::from(memory.try_clone()?).set_len(bytes)?;
        let mut last = io::ErrorKind::NotFound.into();
        for _ in 0..ATTEMPTS {
            match ScratchDisk::over(memory.as_raw_fd()) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => last = error,
                other => return other,
            }
        }
        Err(last)
    }

    fn over(memory: RawFd) -> io::Result<ScratchDisk> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        // SAFETY: the call takes no argument.
        let number = unsafe { ioctl::loop_ctl_get_free(control.as_raw_fd()) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(&path)?;
        // SAFETY: both descriptors are open; the kernel keeps its own reference to the memory.
        unsafe { ioctl::loop_set_fd(device.as_raw_fd(), memory) }?;
        Ok(ScratchDisk { path, device })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Open for O_DIRECT.
    pub fn file(&self) -> &File {
        &self.device
    }
}

impl Drop for ScratchDisk {
    fn drop(&mut self) {
        // SAFETY: the call takes no argument. The device goes once the last one has closed it.
        if let Err(error) = unsafe { ioctl::loop_clr_fd(self.device.as_raw_fd()) } {
            log::warn!("{} can't be given back: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::io::{AlignedBuf, BlockDevice};

    #[test]
    fn it_is_a_disk_and_goes_when_it_is_dropped() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP: loop devices need root");
            return;
        }
        let disk = ScratchDisk::new(1 << 20).unwrap();
        let path = disk.path().to_owned();
        assert_eq!(BlockDevice::open(&path).unwrap().size_bytes, 1 << 20);
        let mut bytes = AlignedBuf::with_capacity(4096);
        bytes.set_len(4096);
        bytes.fill(7);
        disk.file().write_all_at(&bytes, 8192).unwrap();
        bytes.fill(0);
        disk.file().read_exact_at(&mut bytes, 8192).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        drop(disk);
        let backing = format!("/sys/block/{}/loop", path.file_name().unwrap().to_str().unwrap());
        assert!(!Path::new(&backing).exists());
    }
}
