//! A small disk of our own, to try things on: a loop device over memory or a file. The kernel takes it back once nobody has it open,
//! however its process ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::model::ByteRange;

/// include/uapi/linux/loop.h
mod ioctl {
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);

    pub const LO_FLAGS_AUTOCLEAR: u32 = 4;

    /// `struct loop_config` with the `struct loop_info64` in it.
    #[repr(C)]
    pub struct LoopConfig {
        pub fd: u32,
        pub block_size: u32,
        /// lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit
        pub places: [u64; 5],
        /// lo_number, lo_encrypt_type, lo_encrypt_key_size
        pub numbers: [u32; 3],
        pub lo_flags: u32,
        /// lo_file_name, lo_crypt_name, lo_encrypt_key
        pub names: [u8; 160],
        pub lo_init: [u64; 2],
        pub reserved: [u64; 8],
    }

    const _: () = assert!(size_of::<LoopConfig>() == 304);
}

pub struct ScratchDisk {
    path: PathBuf,
    device: File,
}

impl ScratchDisk {
    /// # Errors
    /// Where there is no loop device to be had (no module, no permission).
    pub fn new(bytes: u64) -> io::Result<ScratchDisk> {
        let memory: OwnedFd = memfd_create(c"afterwrite-scratch", MFdFlags::MFD_CLOEXEC)?;
        let memory = File::from(memory);
        memory.set_len(bytes)?;
        ScratchDisk::over(&memory, ByteRange::new(0, bytes))
    }

    /// Over a range of a file, which the kernel keeps open.
    ///
    /// # Errors
    /// As [`ScratchDisk::new`].
    pub fn over(file: &File, range: ByteRange) -> io::Result<ScratchDisk> {
        // Another process may take the device that is free between the two calls.
        const ATTEMPTS: usize = 20;
        let mut last = io::ErrorKind::NotFound.into();
        for _ in 0..ATTEMPTS {
            match ScratchDisk::attach(file.as_raw_fd(), range) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => last = error,
                other => return other,
            }
        }
        Err(last)
    }

    fn attach(backing: RawFd, range: ByteRange) -> io::Result<ScratchDisk> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        // SAFETY: the call takes no argument.
        let number = unsafe { ioctl::loop_ctl_get_free(control.as_raw_fd()) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(&path)?;
        let config = ioctl::LoopConfig {
            fd: u32::try_from(backing).expect("an open descriptor is not negative"),
            block_size: 0,
            places: [0, 0, 0, range.start, range.len()],
            numbers: [0; 3],
            lo_flags: ioctl::LO_FLAGS_AUTOCLEAR,
            names: [0; 160],
            lo_init: [0; 2],
            reserved: [0; 8],
        };
        // SAFETY: both descriptors are open, and `config` has the layout the kernel reads; it keeps its own reference to the
        // file.
        unsafe { ioctl::loop_configure(device.as_raw_fd(), &config) }?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::io::{AlignedBuf, BlockDevice};

    #[test]
    fn it_is_a_disk_and_goes_with_its_last_user() {
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
        let backing = format!("/sys/block/{}/loop", path.file_name().unwrap().to_str().unwrap());
        assert!(Path::new(&backing).exists());
        // No more happens when the process is killed.
        let ScratchDisk { device, .. } = disk;
        drop(device);
        // udev may be looking at it, and some kernels take it back a moment later.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Path::new(&backing).exists() {
            assert!(Instant::now() < deadline, "{} was left behind", path.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
