//! System calls that the standard library does not have, and the directory in which ways are tried.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::libc;

use crate::ways::{Act, Expected};

pub const PAGE: usize = 4096;

/// Where a way may do as it likes; its name begins the names of all that is made.
pub struct Dir {
    pub path: PathBuf,
    pub prefix: String,
}

impl Dir {
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(self.name(name))
    }

    /// As an event names it.
    pub fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A file of 16 pages, on the disk, whose pages are not in memory.
    pub fn file(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        std::fs::write(&path, vec![7u8; 16 * PAGE]).with_context(|| path.display().to_string())?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        file.sync_all()?;
        // SAFETY: a plain call on a descriptor of ours.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        Ok(file)
    }

    pub fn with_flags(&self, name: &str, flags: i32) -> Result<File> {
        self.file(name)?;
        Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(self.path(name))?)
    }

    pub fn expect(&self, op: &'static str, name: &str) -> Result<Expected> {
        let inode = std::fs::symlink_metadata(self.path(name)).map_or(0, |found| found.ino());
        Ok(Expected { op, inode, path: self.name(name), ..Expected::default() })
    }

    pub fn expect_range(&self, op: &'static str, name: &str, offset: u64, length: u64) -> Result<Expected> {
        Ok(Expected { range: Some((offset, length)), ..self.expect(op, name)? })
    }
}

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path has no 0")
}

/// The result of a system call; `None` if this file system or kernel does not have it.
pub fn done(result: i64) -> Result<Option<i64>> {
    if result >= 0 {
        return Ok(Some(result));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL | libc::EXDEV) => Ok(None),
        _ => Err(error.into()),
    }
}

/// A way that is one call.
pub fn call(expected: Expected, call: impl FnOnce() -> i64 + 'static) -> Result<Act> {
    Ok(Box::new(move || Ok(done(call())?.map(|_| expected))))
}

/// Memory at the beginning of a page, for direct I/O.
pub fn aligned(bytes: usize) -> &'static mut [u8] {
    let layout = std::alloc::Layout::from_size_align(bytes, PAGE).expect("a power of two");
    // SAFETY: the layout is not empty; the memory is never given back.
    unsafe { std::slice::from_raw_parts_mut(std::alloc::alloc_zeroed(layout), bytes) }
}

/// `io_submit` of one write, waited for.
pub fn aio_write(file: RawFd, bytes: &[u8], offset: i64) -> i64 {
    #[repr(C)]
    #[derive(Default)]
    struct Iocb {
        data: u64,
        key: u32,
        flags: u32,
        opcode: u16,
        priority: i16,
        file: u32,
        buffer: u64,
        length: u64,
        offset: i64,
        reserved: u64,
        more_flags: u32,
        event: u32,
    }
    let mut iocb = Iocb {
        opcode: 1,
        file: file.cast_unsigned(),
        buffer: bytes.as_ptr() as u64,
        length: bytes.len() as u64,
        offset,
        ..Iocb::default()
    };
    let mut context = 0u64;
    let mut pointers = [&raw mut iocb];
    let mut event = [0u64; 4];
    // SAFETY: all pointers lead to memory that lives until the write was waited for.
    unsafe {
        if libc::syscall(libc::SYS_io_setup, 4, &raw mut context) < 0 {
            return -1;
        }
        if libc::syscall(libc::SYS_io_submit, context, 1, pointers.as_mut_ptr()) != 1 {
            return -1;
        }
        let none = std::ptr::null::<u8>();
        libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), none);
        libc::syscall(libc::SYS_io_destroy, context);
    }
    event[2].cast_signed()
}

/// One entry, waited for.
pub fn io_uring(entry: io_uring::squeue::Entry) -> i64 {
    let once = || -> io::Result<i32> {
        let mut ring = io_uring::IoUring::new(4)?;
        // SAFETY: what the entry points at outlives this call.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        let result = ring.completion().next().map_or(-libc::EIO, |done| done.result());
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
    };
    match once() {
        Ok(result) => i64::from(result),
        Err(error) => {
            nix::errno::Errno::set_raw(error.raw_os_error().unwrap_or(libc::EIO));
            -1
        }
    }
}
