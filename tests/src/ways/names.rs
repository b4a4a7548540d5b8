//! Ways to change names, attributes and what else is known of a file.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::Result;
use io_uring::{opcode, types};
use nix::libc;

use crate::ways::Sight::{Full, None as Unseen};
use crate::ways::system::{Dir, c_path, call, done, io_uring};
use crate::ways::{Act, Expected, Way};

const F: &str = "file";
const G: &str = "other";
const AT: i32 = libc::AT_FDCWD;

macro_rules! ways {
    ($($name:literal $functions:ident $calls:ident $prepare:expr,)*) => {
        vec![$(Way { name: $name, prepare: $prepare, functions: $functions, calls: $calls },)*]
    };
}

/// A call of C on paths that end with a 0.
macro_rules! on_path {
    ($dir:expr, $op:literal, $name:expr, |$path:ident| $call:expr) => {{
        let $path = c_path(&$dir.path($name));
        // SAFETY: the paths end with a 0, and all that is pointed at lives as long as the call.
        call($dir.expect($op, $name)?, move || unsafe { i64::from($call) })
    }};
}

pub fn ways() -> Vec<Way> {
    ways! {
        "create by open" Full Full |dir| {
            let (path, name) = (dir.path(F), dir.name(F));
            Ok(Box::new(move || {
                File::create_new(path)?;
                Ok(Some(Expected { op: "create", path: name, ..Expected::default() }))
            }))
        },
        "create by openat2" Full Full |dir| {
            let how = [(libc::O_CREAT | libc::O_WRONLY) as u64, 0o600, 0];
            on_path!(dir, "create", F, |path| libc::syscall(libc::SYS_openat2, AT, path.as_ptr(), how.as_ptr(), 24))
        },
        "create by io_uring" Full Unseen |dir| {
            let path = c_path(&dir.path(F));
            let entry = opcode::OpenAt::new(types::Fd(AT), path.as_ptr()).flags(libc::O_CREAT).mode(0o600).build();
            call(dir.expect("create", F)?, move || { let _lives = &path; io_uring(entry) })
        },
        "create by mknod" Full Full |dir| {
            // As the system call says, without looking whether it is a regular file.
            let path = c_path(&dir.path(F));
            let expected = dir.expect("create", F)?;
            // SAFETY: the path ends with a 0.
            call(expected, move || unsafe { i64::from(libc::mknod(path.as_ptr(), libc::S_IFREG | 0o600, 0)) })
        },
        "mknod of a pipe" Full Full |dir| {
            on_path!(dir, "mknod", F, |path| libc::mkfifo(path.as_ptr(), 0o600))
        },
        "mkdir" Full Full |dir| on_path!(dir, "mkdir", F, |path| libc::mkdir(path.as_ptr(), 0o700)),
        "rmdir" Full Full |dir| {
            std::fs::create_dir(dir.path(F))?;
            on_path!(dir, "rmdir", F, |path| libc::rmdir(path.as_ptr()))
        },
        "symlink" Full Full |dir| {
            on_path!(dir, "symlink", F, |path| libc::symlink(c"anywhere".as_ptr(), path.as_ptr()))
        },
        "link" Full Full |dir| {
            dir.file(F)?;
            two(dir, Two::Link)
        },
        "unlink" Full Full |dir| {
            dir.file(F)?;
            on_path!(dir, "unlink", F, |path| libc::unlink(path.as_ptr()))
        },
        "unlink by io_uring" Full Unseen |dir| {
            dir.file(F)?;
            let path = c_path(&dir.path(F));
            let entry = opcode::UnlinkAt::new(types::Fd(AT), path.as_ptr()).build();
            call(dir.expect("unlink", F)?, move || { let _lives = &path; io_uring(entry) })
        },
        "rename" Full Full |dir| {
            dir.file(F)?;
            two(dir, Two::Rename)
        },
        "rename over a file" Full Full |dir| {
            dir.file(F)?;
            dir.file(G)?;
            two(dir, Two::Rename)
        },
        "rename, noreplace" Full Full |dir| {
            dir.file(F)?;
            two(dir, Two::RenameWith(1))
        },
        "rename, exchange" Full Full |dir| {
            dir.file(F)?;
            dir.file(G)?;
            two(dir, Two::RenameWith(2))
        },
        "rename, whiteout" Full Full |dir| {
            dir.file(F)?;
            two(dir, Two::RenameWith(4))
        },
        "rename by io_uring" Full Unseen |dir| {
            dir.file(F)?;
            let (from, to) = (c_path(&dir.path(F)), c_path(&dir.path(G)));
            let entry = opcode::RenameAt::new(types::Fd(AT), from.as_ptr(), types::Fd(AT), to.as_ptr()).build();
            let expected = Expected { new_path: Some(dir.name(G)), ..dir.expect("rename", F)? };
            call(expected, move || { let _live = (&from, &to); io_uring(entry) })
        },
        "open with O_TMPFILE" Full Full |dir| {
            let path = c_path(&dir.path);
            let expected = Expected { op: "tmpfile", ..Expected::default() };
            // SAFETY: the path ends with a 0.
            call(expected, move || unsafe {
                libc::open(path.as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o600).into()
            })
        },
        "link of an O_TMPFILE" Full Full |dir| {
            let path = c_path(&dir.path);
            // SAFETY: the path ends with a 0.
            let file = unsafe { libc::open(path.as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o600) };
            let (from, to) = (c_path(format!("/proc/self/fd/{file}").as_ref()), c_path(&dir.path(F)));
            let expected =
                Expected { op: "link", new_path: Some(dir.name(F)), ..Expected::default() };
            // SAFETY: the paths end with a 0.
            call(expected, move || unsafe {
                libc::linkat(AT, from.as_ptr(), AT, to.as_ptr(), libc::AT_SYMLINK_FOLLOW).into()
            })
        },
        "chmod" Full Full |dir| {
            dir.file(F)?;
            on_path!(dir, "attributes", F, |path| libc::chmod(path.as_ptr(), 0o640))
        },
        "fchmod" Full Full |dir| {
            let file = dir.file(F)?;
            on_path!(dir, "attributes", F, |_path| libc::fchmod(file.as_raw_fd(), 0o640))
        },
        "chown" Full Full |dir| {
            dir.file(F)?;
            on_path!(dir, "attributes", F, |path| libc::chown(path.as_ptr(), 7, 7))
        },
        "utimensat" Full Full |dir| {
            dir.file(F)?;
            let times = [libc::timespec { tv_sec: 5, tv_nsec: 5 }; 2];
            on_path!(dir, "attributes", F, |path| libc::utimensat(AT, path.as_ptr(), times.as_ptr(), 0))
        },
        "futimens" Full Full |dir| {
            let (file, times) = (dir.file(F)?, [libc::timespec { tv_sec: 5, tv_nsec: 5 }; 2]);
            on_path!(dir, "attributes", F, |_path| libc::futimens(file.as_raw_fd(), times.as_ptr()))
        },
        "setxattr" Full Full |dir| {
            dir.file(F)?;
            let value = b"value";
            on_path!(dir, "xattr", F, |path| {
                libc::setxattr(path.as_ptr(), c"user.way".as_ptr(), value.as_ptr().cast(), 5, 0)
            })
        },
        "fsetxattr" Full Full |dir| {
            let (file, value) = (dir.file(F)?, b"value");
            on_path!(dir, "xattr", F, |_path| {
                libc::fsetxattr(file.as_raw_fd(), c"user.way".as_ptr(), value.as_ptr().cast(), 5, 0)
            })
        },
        "removexattr" Full Full |dir| {
            dir.file(F)?;
            let path = c_path(&dir.path(F));
            // SAFETY: the strings end with a 0.
            let set = unsafe {
                libc::setxattr(path.as_ptr(), c"user.way".as_ptr(), b"value".as_ptr().cast(), 5, 0)
            };
            if done(set.into())?.is_none() {
                return Ok(Box::new(|| Ok(None)));
            }
            on_path!(dir, "xattr", F, |path| libc::removexattr(path.as_ptr(), c"user.way".as_ptr()))
        },
        "setting an ACL" Full Full |dir| {
            dir.file(F)?;
            // Version 2; user rw, user 7 rw, group r, mask rw, others none.
            let mut acl = vec![2u8, 0, 0, 0];
            for (tag, access, id) in [(1, 6, u32::MAX), (2, 6, 7), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)] {
                acl.extend([tag, 0, access, 0]);
                acl.extend(id.to_le_bytes());
            }
            on_path!(dir, "xattr", F, |path| {
                let name = c"system.posix_acl_access".as_ptr();
                libc::setxattr(path.as_ptr(), name, acl.as_ptr().cast(), acl.len(), 0)
            })
        },
        "chattr" Full Full |dir| {
            let (file, mut flags) = (dir.file(F)?, 0i64);
            // SAFETY: the flags live as long as the call.
            unsafe { libc::ioctl(file.as_raw_fd(), 0x8008_6601, &raw mut flags) };
            flags ^= 0x80;
            on_path!(dir, "flags", F, |_path| libc::ioctl(file.as_raw_fd(), 0x4008_6602, &raw const flags))
        },
        "a command of the file system's own" Full Full |dir| {
            // Of ext4: allocate what is delayed.
            let file = dir.file(F)?;
            on_path!(dir, "ioctl", F, |_path| libc::ioctl(file.as_raw_fd(), 0x660c, 0))
        },
    }
}

enum Two {
    Link,
    Rename,
    /// By renameat2.
    RenameWith(u32),
}

/// From `F` to `G`.
fn two(dir: &Dir, how: Two) -> Result<Act> {
    let (from, to) = (c_path(&dir.path(F)), c_path(&dir.path(G)));
    let op = if matches!(how, Two::Link) { "link" } else { "rename" };
    let expected = Expected { new_path: Some(dir.name(G)), ..dir.expect(op, F)? };
    // SAFETY: both paths end with a 0.
    call(expected, move || unsafe {
        match how {
            Two::Link => libc::link(from.as_ptr(), to.as_ptr()).into(),
            Two::Rename => libc::rename(from.as_ptr(), to.as_ptr()).into(),
            Two::RenameWith(flags) => libc::renameat2(AT, from.as_ptr(), AT, to.as_ptr(), flags).into(),
        }
    })
}
