//! A load of every kind of operation on a small directory tree, at random, as fsstress makes it; names are odd on purpose.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use io_uring::{opcode, types};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::Random;
use crate::ways::system::c_path;

const NAMES: u64 = 12;
const DIRS_DEEP: u64 = 3;
const FILE_BYTES: u64 = 256 << 10;
const PAGE: u64 = 4096;

/// One of few names, so that operations meet: among them ones of 255 bytes, with newlines, and that are not UTF-8.
fn name(random: &mut Random) -> std::ffi::OsString {
    let number = random.below(NAMES);
    let bytes = match number {
        0 => vec![b'n'; 255],
        1 => b"new\nline".to_vec(),
        2 => b"\xff\xfe not UTF-8".to_vec(),
        3 => b" ".to_vec(),
        4 => b"-rf \\ * \"".to_vec(),
        _ => format!("name{number}").into_bytes(),
    };
    std::ffi::OsString::from_vec(bytes)
}

fn dir(root: &Path, random: &mut Random) -> PathBuf {
    let mut path = root.to_owned();
    for _ in 0..random.below(DIRS_DEEP) {
        let below = path.join(name(random));
        if below.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            path = below;
        }
    }
    path
}

fn path(root: &Path, random: &mut Random) -> PathBuf {
    dir(root, random).join(name(random))
}

/// Does so many of them; what the tree as it is does not allow is left out. Returns how many were done.
pub fn change_tree(root: &Path, random: &mut Random, count: u64) -> Result<u64> {
    let mut done = 0;
    for _ in 0..count {
        done += u64::from(change(root, random).is_ok());
    }
    Ok(done)
}

fn change(root: &Path, random: &mut Random) -> io::Result<()> {
    let at = path(root, random);
    let other = path(root, random);
    match random.below(26) {
        0 | 1 => create(&at)?.write_all(&random.bytes(5000)),
        2 => fs::create_dir(&at),
        3 => fs::remove_file(&at),
        4 => match random.below(4) {
            0 => fs::remove_dir_all(&at),
            _ => fs::remove_dir(&at),
        },
        5 | 6 => fs::rename(&at, &other),
        7 => exchange(&at, &other),
        8 => fs::hard_link(&at, &other),
        9 => symlink(name(random), &at),
        10 => special(&at, random),
        11 => nix(nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            &at,
            Mode::from_bits_truncate(0o400 | u32::try_from(random.below(0o7777)).unwrap_or(0)),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )),
        12 => {
            let id = u32::try_from(random.below(9)).unwrap_or(0);
            std::os::unix::fs::lchown(&at, Some(id), Some(id + 1))
        }
        13 => xattr(&at, random),
        14 => times(&at, random),
        15 => open(&at)?.set_len(random.below(FILE_BYTES)),
        16 => append(&at, random),
        17 => punch(&open(&at)?, random),
        18 => map(&open(&at)?, random),
        19 => {
            // As editors save.
            let mut file = create(&at)?;
            file.write_all(&random.bytes(3000))?;
            fs::rename(&at, &other)
        }
        20 => acl(&at),
        // Through a symbolic link, if it is one.
        21 => nix(nix::unistd::truncate(&at, i64::try_from(random.below(FILE_BYTES)).unwrap_or(0))),
        22 => std::os::unix::fs::chown(&at, Some(u32::try_from(random.below(9)).unwrap_or(0)), None),
        _ => {
            let (len, start) = (random.below(20_000), random.below(FILE_BYTES));
            let bytes = random.bytes(usize::try_from(len).unwrap_or(0));
            open(&at)?.write_all_at(&bytes, start)
        }
    }
}

fn nix<T>(done: nix::Result<T>) -> io::Result<()> {
    done.map(drop).map_err(Into::into)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    let file = options.open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    options.open(path)
}

fn append(path: &Path, random: &mut Random) -> io::Result<()> {
    let mut file =
        OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    file.write_all(&random.bytes(1000))
}

fn exchange(one: &Path, two: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    nix(renameat2(AT_FDCWD, one, AT_FDCWD, two, RenameFlags::RENAME_EXCHANGE))
}

fn special(path: &Path, random: &mut Random) -> io::Result<()> {
    // /dev/null, and a block device that there is none of: other operations open what they find, and write to it.
    let kinds =
        [(SFlag::S_IFIFO, 0), (SFlag::S_IFCHR, 0x103), (SFlag::S_IFSOCK, 0), (SFlag::S_IFBLK, 0x7fff)];
    let (kind, device) = random.pick(&kinds);
    nix(mknod(path, kind, Mode::S_IRUSR, device))
}

fn xattr(path: &Path, random: &mut Random) -> io::Result<()> {
    let (path, value) = (c_path(path), random.bytes(20));
    // Of links and devices there are none of users'.
    let name = random.pick(&[c"user.one", c"user.two", c"trusted.three"]);
    // SAFETY: the strings end with a 0, and the value is as long as is said.
    let done = unsafe {
        match random.below(3) {
            0 => libc::lremovexattr(path.as_ptr(), name.as_ptr()),
            _ => libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0),
        }
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn acl(path: &Path) -> io::Result<()> {
    // Version 2; owner rw, user 7 rw, group r, mask rw, others none.
    let mut acl = vec![2u8, 0, 0, 0];
    for (tag, access, id) in
        [(1, 6, u32::MAX), (2, 6, 7), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)]
    {
        acl.extend([tag, 0, access, 0]);
        acl.extend(u32::to_le_bytes(id));
    }
    let path = c_path(path);
    // SAFETY: the strings end with a 0, and the value is as long as is said.
    let done = unsafe {
        libc::lsetxattr(path.as_ptr(), c"system.posix_acl_access".as_ptr(), acl.as_ptr().cast(), acl.len(), 0)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn times(path: &Path, random: &mut Random) -> io::Result<()> {
    let time =
        libc::timespec { tv_sec: i64::try_from(random.below(1 << 31)).unwrap_or(0), tv_nsec: 123_456_789 };
    let (path, times) = (c_path(path), [time, time]);
    // SAFETY: the path ends with a 0, and there are two times.
    let done =
        unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn punch(file: &File, random: &mut Random) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let (start, len) = (random.below(FILE_BYTES / PAGE) * PAGE, (1 + random.below(8)) * PAGE);
    let mode = random.pick(&[
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        FallocateFlags::FALLOC_FL_ZERO_RANGE,
        FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
        FallocateFlags::FALLOC_FL_INSERT_RANGE,
        FallocateFlags::empty(),
    ]);
    nix(fallocate(file, mode, i64::try_from(start).unwrap_or(0), i64::try_from(len).unwrap_or(0)))
}

/// Stores through a mapping.
fn map(file: &File, random: &mut Random) -> io::Result<()> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Ok(());
    }
    let len = usize::try_from(size).unwrap_or(0);
    // SAFETY: a new mapping of the whole file; nothing else is pointed at it.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for _ in 0..4 {
        let at = usize::try_from(random.below(size)).unwrap_or(0);
        // SAFETY: `at` is below the length of the mapping, and the file's size, which only this thread changes.
        unsafe { mapped.cast::<u8>().add(at).write(random.number() as u8) };
    }
    // SAFETY: mapped above.
    unsafe { libc::munmap(mapped, len) };
    Ok(())
}

/// The same by io_uring, which on the rung `syscall` nothing tells of.
pub fn change_tree_by_ring(root: &Path, random: &mut Random, count: u64) -> Result<u64> {
    let mut done = 0;
    for _ in 0..count {
        done += u64::from(change_by_ring(root, random).is_ok());
    }
    Ok(done)
}

fn change_by_ring(root: &Path, random: &mut Random) -> io::Result<()> {
    let (at, other) = (path(root, random), path(root, random));
    let (from, to) = (c_path(&at), c_path(&other));
    let dir = types::Fd(libc::AT_FDCWD);
    let entry = match random.below(8) {
        0 => {
            let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_NONBLOCK | libc::O_TRUNC;
            let entry = opcode::OpenAt::new(dir, from.as_ptr()).flags(flags).mode(0o600).build();
            let descriptor = by_ring(entry)?;
            // SAFETY: the descriptor was made just now, and nobody else has it.
            drop(unsafe { File::from_raw_fd(i32::try_from(descriptor).unwrap_or(-1)) });
            return Ok(());
        }
        1 => opcode::UnlinkAt::new(dir, from.as_ptr()).build(),
        2 => opcode::MkDirAt::new(dir, from.as_ptr()).mode(0o700).build(),
        3 | 4 => opcode::RenameAt::new(dir, from.as_ptr(), dir, to.as_ptr()).build(),
        5 => opcode::LinkAt::new(dir, from.as_ptr(), dir, to.as_ptr()).build(),
        6 => {
            let file = open(&at)?;
            let (start, mode) = (random.below(FILE_BYTES / PAGE) * PAGE, random.pick(&[0, 3]));
            let entry =
                opcode::Fallocate::new(types::Fd(file.as_raw_fd()), 3 * PAGE).offset(start).mode(mode);
            return by_ring(entry.build()).map(drop);
        }
        _ => {
            let (file, bytes) = (open(&at)?, random.bytes(3000));
            let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), 3000);
            return by_ring(entry.offset(random.below(FILE_BYTES)).build()).map(drop);
        }
    };
    by_ring(entry).map(drop)
}

/// What the entry points at is there until this returns.
fn by_ring(entry: io_uring::squeue::Entry) -> io::Result<i64> {
    match crate::ways::system::io_uring(entry) {
        done if done >= 0 => Ok(done),
        _ => Err(io::Error::last_os_error()),
    }
}
