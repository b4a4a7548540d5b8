//! What a file system says of an inode, and how it is found again.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, openat, readlinkat, utimensat};
use rustix::io::Errno;

use crate::model::{Attributes, FileTime, NodeKind};

/// MAX_HANDLE_SZ
const HANDLE_BYTES_MAX: usize = 128;
const XATTR_TRIES: usize = 8;
/// How XFS keeps what is listed as `system.posix_acl_access` and `_default`, too.
const XFS_ACL: &[u8] = b"trusted.SGI_ACL_";

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// An inode without opening it: a pipe or device stays alone.
pub fn open_path(dir: impl AsFd, name: &[u8]) -> io::Result<File> {
    Ok(File::from(openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?))
}

/// Reads whatever a descriptor of `open_path` stands for through the kernel's name for it.
pub fn name_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

pub fn attributes(file: &File, metadata: &Metadata) -> io::Result<Attributes> {
    let mut attributes = Attributes {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: metadata.rdev(),
        accessed: time(metadata.atime(), metadata.atime_nsec()),
        modified: modified(metadata),
        ..Attributes::default()
    };
    match attributes.kind() {
        NodeKind::File => attributes.size = metadata.size(),
        NodeKind::Symlink => attributes.link_target = readlinkat(file, "", Vec::new())?.into_bytes(),
        NodeKind::Dir => {}
        NodeKind::Special => {}
    }
    attributes.xattrs = xattrs(file)?;
    Ok(attributes)
}

/// Of last access and modification; `file` may be one of `open_path`.
pub fn set_times(file: &File, attributes: &Attributes) -> io::Result<()> {
    let time = |time: FileTime| Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
    let times =
        Timestamps { last_access: time(attributes.accessed), last_modification: time(attributes.modified) };
    Ok(utimensat(file, "", &times, AtFlags::EMPTY_PATH)?)
}

pub fn changed(metadata: &Metadata) -> FileTime {
    time(metadata.ctime(), metadata.ctime_nsec())
}

pub fn modified(metadata: &Metadata) -> FileTime {
    time(metadata.mtime(), metadata.mtime_nsec())
}

fn time(seconds: i64, nanos: i64) -> FileTime {
    FileTime { seconds, nanos: u32::try_from(nanos).unwrap_or(0) }
}

/// All of them, in the order of their names.
fn xattrs(file: &File) -> io::Result<Xattrs> {
    let path = name_of(file);
    // They may change between two calls.
    for _ in 0..XATTR_TRIES {
        let len = match rustix::fs::listxattr_query(&path) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            len => len?,
        };
        let mut names = vec![0; len];
        match rustix::fs::listxattr(&path, &mut names[..]) {
            Err(Errno::RANGE) => continue,
            len => names.truncate(len?),
        }
        if let Some(mut xattrs) = values(&path, &names)? {
            xattrs.sort();
            return Ok(xattrs);
        }
    }
    Err(io::Error::other("its extended attributes change all the time"))
}

/// `None` if one changed meanwhile.
fn values(path: &str, names: &[u8]) -> io::Result<Option<Xattrs>> {
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !name.starts_with(XFS_ACL)) {
        let read = || {
            let mut value = vec![0; rustix::fs::getxattr_query(path, name)?];
            let len = rustix::fs::getxattr(path, name, &mut value[..])?;
            value.truncate(len);
            Ok(value)
        };
        match read() {
            Ok(value) => xattrs.push((name.to_vec(), value)),
            Err(Errno::RANGE | Errno::NODATA) => return Ok(None),
            // Listed and not shown: of a security module that is not at work.
            Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Some(xattrs))
}

#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_BYTES_MAX],
}

/// By which the file system finds this inode again, however it is called then, and no later one of the same number.
pub fn handle_of(file: &File) -> io::Result<Vec<u8>> {
    let mut raw = RawHandle { bytes: HANDLE_BYTES_MAX as u32, kind: 0, handle: [0; HANDLE_BYTES_MAX] };
    let mut mount = 0i32;
    // SAFETY: the path is a C string, and both pointers are to memory as large as the call is told.
    let done = unsafe {
        libc::name_to_handle_at(
            file.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut raw).cast::<libc::file_handle>(),
            &raw mut mount,
            AtFlags::EMPTY_PATH.bits().cast_signed(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut handle = raw.kind.to_le_bytes().to_vec();
    handle.extend_from_slice(&raw.handle[..(raw.bytes as usize).min(HANDLE_BYTES_MAX)]);
    Ok(handle)
}

/// The handle of an inode by its number and generation, in the form of another one (`like`) of the same file system. `None` if
/// that form is not known.
pub fn handle_of_inode(like: &[u8], number: u64, generation: u32) -> Option<Vec<u8>> {
    /// ext2 to ext4, XFS with inodes of 32 bits, and more.
    const INO32_GEN: i32 = 1;
    const XFS_INO64_GEN: i32 = 0x81;
    const BTRFS: i32 = 0x4d;
    let (kind, bytes) = like.split_first_chunk::<4>()?;
    let (number, generation) = (number.to_ne_bytes(), generation.to_ne_bytes());
    let bytes = match (i32::from_le_bytes(*kind), bytes.len()) {
        (INO32_GEN, 8) => {
            let number = u32::try_from(u64::from_ne_bytes(number)).ok()?;
            [&number.to_ne_bytes()[..], &generation].concat()
        }
        (XFS_INO64_GEN, 12) => [&number[..], &generation].concat(),
        // Between them the subvolume: files of others are not found by it.
        (BTRFS, 20) => [&number[..], &bytes[8..16], &generation].concat(),
        _ => return None,
    };
    Some([&kind[..], &bytes].concat())
}

/// `None` if the inode is no more.
pub fn open_handle(mount: BorrowedFd<'_>, handle: &[u8], flags: OFlags) -> io::Result<Option<File>> {
    let Some((kind, bytes)) = handle.split_first_chunk::<4>() else { return Ok(None) };
    let mut raw = RawHandle { bytes: 0, kind: i32::from_le_bytes(*kind), handle: [0; HANDLE_BYTES_MAX] };
    let Some(room) = raw.handle.get_mut(..bytes.len()) else { return Ok(None) };
    room.copy_from_slice(bytes);
    raw.bytes = u32::try_from(bytes.len()).unwrap_or(0);
    let flags = (flags | OFlags::CLOEXEC | OFlags::NOFOLLOW).bits().cast_signed();
    // SAFETY: the pointer is to a handle as long as it says.
    let fd = unsafe {
        libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut raw).cast::<libc::file_handle>(), flags)
    };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESTALE | libc::ENOENT) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: the call made this descriptor, and nobody else has it.
    Ok(Some(unsafe { File::from_raw_fd(fd) }))
}

/// Brings the range, or all from its start to 2^63, to the disk: what is stored into it through a mapping afterwards is reported anew.
pub fn clean(file: &File, start: u64, len: u64) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // 0: to the end, however far.
    let len = if start + len > i64::MAX.cast_unsigned() { 0 } else { len };
    let (start, len) = (start.cast_signed(), len.cast_signed());
    // SAFETY: the call takes numbers only.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_made_of_number_and_generation_in_a_form_that_is_known() {
        let (number, generation) = (0x1122_3344_u32, 0x5566_7788_u32);
        let (long, short) = (u64::from(number).to_ne_bytes(), number.to_ne_bytes());
        let generation_bytes = generation.to_ne_bytes();
        let made = |like: &[u8]| handle_of_inode(like, number.into(), generation);
        let of = |kind: u8, parts: &[&[u8]]| [&[kind, 0, 0, 0], &parts.concat()[..]].concat();
        assert_eq!(made(&of(1, &[&[9; 8]])), Some(of(1, &[&short, &generation_bytes])));
        assert_eq!(made(&of(0x81, &[&[9; 12]])), Some(of(0x81, &[&long, &generation_bytes])));
        assert_eq!(made(&of(0x4d, &[&[9; 20]])), Some(of(0x4d, &[&long, &[9; 8], &generation_bytes])));
        // tmpfs has a form of its own under the first number.
        assert_eq!(made(&of(1, &[&[9; 12]])), None);
        assert_eq!(made(&of(7, &[&[9; 8]])), None);
        assert_eq!(made(&[1, 0]), None);
        assert_eq!(handle_of_inode(&of(1, &[&[9; 8]]), 1 << 32, generation), None);
    }
}
