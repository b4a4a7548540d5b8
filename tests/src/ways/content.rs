//! Ways to change what a file holds.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use io_uring::{opcode, types};
use nix::libc;

use crate::ways::Sight::{Full, None as Unseen, Pages};
use crate::ways::system::{Dir, PAGE, aio_write, aligned, c_path, call, done, io_uring};
use crate::ways::{Act, Way};

const F: &str = "file";
const TEXT: &[u8] = b"some bytes";
const N: u64 = TEXT.len() as u64;

macro_rules! ways {
    ($($name:literal $functions:ident $calls:ident $prepare:expr,)*) => {
        vec![$(Way { name: $name, prepare: $prepare, functions: $functions, calls: $calls },)*]
    };
}

pub fn ways() -> Vec<Way> {
    ways! {
        "write" Full Full |dir| {
            let (mut file, expected) = (dir.file(F)?, dir.expect_range("write", F, 100, N)?);
            file.seek(SeekFrom::Start(100))?;
            Ok(Box::new(move || { file.write_all(TEXT)?; Ok(Some(expected)) }))
        },
        "write, appending" Full Full |dir| {
            let mut file = dir.with_flags(F, libc::O_APPEND)?;
            let expected = dir.expect_range("write", F, 16 * PAGE as u64, N)?;
            Ok(Box::new(move || { file.write_all(TEXT)?; Ok(Some(expected)) }))
        },
        "pwrite" Full Full |dir| {
            let (file, expected) = (dir.file(F)?, dir.expect_range("write", F, 5000, N)?);
            Ok(Box::new(move || { file.write_all_at(TEXT, 5000)?; Ok(Some(expected)) }))
        },
        "write again, page dirty" Full Full |dir| {
            let (file, expected) = (dir.file(F)?, dir.expect_range("write", F, 5000, N)?);
            file.write_all_at(TEXT, 5000)?;
            Ok(Box::new(move || { file.write_all_at(TEXT, 5000)?; Ok(Some(expected)) }))
        },
        "writev" Full Full |dir| {
            let file = dir.file(F)?;
            call(dir.expect_range("write", F, 0, 2 * N)?, move || vector(&file, Vector::Here))
        },
        "pwritev" Full Full |dir| {
            let file = dir.file(F)?;
            call(dir.expect_range("write", F, 300, 2 * N)?, move || vector(&file, Vector::At))
        },
        "pwritev2, appending" Full Full |dir| {
            let file = dir.file(F)?;
            let end = 16 * PAGE as u64;
            call(dir.expect_range("write", F, end, 2 * N)?, move || vector(&file, Vector::Append))
        },
        "direct write" Full Full |dir| {
            let (file, bytes) = (dir.with_flags(F, libc::O_DIRECT)?, &*aligned(2 * PAGE));
            let expected = dir.expect_range("write", F, PAGE as u64, 2 * PAGE as u64)?;
            Ok(Box::new(move || { file.write_all_at(bytes, PAGE as u64)?; Ok(Some(expected)) }))
        },
        "AIO" Full Full |dir| {
            let file = dir.file(F)?;
            call(dir.expect_range("write", F, 9000, N)?, move || aio_write(file.as_raw_fd(), TEXT, 9000))
        },
        "AIO, direct" Full Full |dir| {
            let (file, bytes) = (dir.with_flags(F, libc::O_DIRECT)?, &*aligned(PAGE));
            let expected = dir.expect_range("write", F, PAGE as u64, PAGE as u64)?;
            call(expected, move || aio_write(file.as_raw_fd(), bytes, PAGE as i64))
        },
        "io_uring write" Full Pages |dir| {
            let file = dir.file(F)?;
            let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), TEXT.as_ptr(), N as u32).offset(7000).build();
            call(dir.expect_range("write", F, 7000, N)?, move || { let _open = &file; io_uring(entry) })
        },
        "io_uring write, direct" Full Pages |dir| {
            let (file, bytes) = (dir.with_flags(F, libc::O_DIRECT)?, &*aligned(PAGE));
            let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), PAGE as u32).offset(0).build();
            call(dir.expect_range("write", F, 0, PAGE as u64)?, move || { let _open = &file; io_uring(entry) })
        },
        "io_uring write by a worker" Full Pages |dir| {
            let file = dir.file(F)?;
            let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), TEXT.as_ptr(), N as u32).offset(7000).build()
                .flags(io_uring::squeue::Flags::ASYNC);
            call(dir.expect_range("write", F, 7000, N)?, move || { let _open = &file; io_uring(entry) })
        },
        "sendfile" Full Full |dir| {
            let (from, to) = (dir.file("from")?, dir.file(F)?);
            let expected = dir.expect_range("write", F, 0, 3000)?;
            // SAFETY: a plain call.
            call(expected, move || unsafe {
                libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), std::ptr::null_mut(), 3000) as i64
            })
        },
        "splice from a pipe" Full Full |dir| {
            let (file, (reader, mut writer)) = (dir.file(F)?, std::io::pipe()?);
            writer.write_all(TEXT)?;
            let mut offset = 4000i64;
            // SAFETY: a plain call; the offset lives as long.
            call(dir.expect_range("write", F, 4000, N)?, move || unsafe {
                let none = std::ptr::null_mut();
                libc::splice(reader.as_raw_fd(), none, file.as_raw_fd(), &raw mut offset, N as usize, 0) as i64
            })
        },
        "copy_file_range" Full Full |dir| {
            let (from, to) = (dir.file("from")?, dir.file(F)?);
            let (mut at, mut offset) = (0i64, 8000i64);
            // SAFETY: a plain call; the offsets live as long.
            call(dir.expect_range("copy", F, 8000, 5000)?, move || unsafe {
                libc::copy_file_range(from.as_raw_fd(), &raw mut at, to.as_raw_fd(), &raw mut offset, 5000, 0) as i64
            })
        },
        "FICLONE" Full Full |dir| {
            let (from, to) = (dir.file("from")?, dir.file(F)?);
            // SAFETY: a plain call.
            call(dir.expect_range("clone", F, 0, 0)?, move || unsafe {
                i64::from(libc::ioctl(to.as_raw_fd(), 0x4004_9409, from.as_raw_fd()))
            })
        },
        "FICLONERANGE" Full Full |dir| {
            let (from, to) = (dir.file("from")?, dir.file(F)?);
            let range = [from.as_raw_fd() as u64, 0, 2 * PAGE as u64, 4 * PAGE as u64];
            let expected = dir.expect_range("clone", F, 4 * PAGE as u64, 2 * PAGE as u64)?;
            // SAFETY: the range lives as long as the call.
            call(expected, move || unsafe {
                let _open = &from;
                i64::from(libc::ioctl(to.as_raw_fd(), 0x4020_940d, range.as_ptr()))
            })
        },
        "FIDEDUPERANGE" Full Full |dir| {
            let (from, to) = (dir.file("from")?, dir.file(F)?);
            // Offset, length and count of the source; descriptor, offset, results of the target.
            let mut range = [0, PAGE as u64, 1, to.as_raw_fd() as u64, 2 * PAGE as u64, 0, 0];
            // SAFETY: the range lives as long as the call.
            call(dir.expect_range("dedupe", F, 2 * PAGE as u64, PAGE as u64)?, move || unsafe {
                let _open = &to;
                i64::from(libc::ioctl(from.as_raw_fd(), 0xc018_9436, range.as_mut_ptr()))
            })
        },
        "store through a shared mapping" Full Pages |dir| store(dir),
        "fallocate" Full Full |dir| fallocate(dir, 0, 20 * PAGE as u64),
        "fallocate, punch a hole" Full Full |dir| fallocate(dir, 3, PAGE as u64),
        "fallocate, zero a range" Full Full |dir| fallocate(dir, 0x10, PAGE as u64),
        "fallocate, collapse a range" Full Full |dir| fallocate(dir, 8, 4 * PAGE as u64),
        "fallocate, insert a range" Full Full |dir| fallocate(dir, 0x20, 4 * PAGE as u64),
        "io_uring fallocate" Full Unseen |dir| {
            let file = dir.file(F)?;
            let entry = opcode::Fallocate::new(types::Fd(file.as_raw_fd()), 2 * PAGE as u64).offset(PAGE as u64).mode(3);
            let entry = entry.build();
            let expected = dir.expect_range("fallocate", F, PAGE as u64, 2 * PAGE as u64)?;
            call(expected, move || { let _open = &file; io_uring(entry) })
        },
        "truncate" Full Full |dir| {
            dir.file(F)?;
            let path = c_path(&dir.path(F));
            // SAFETY: the path ends with a 0.
            call(dir.expect_range("truncate", F, 5, 0)?, move || unsafe { i64::from(libc::truncate(path.as_ptr(), 5)) })
        },
        "ftruncate" Full Full |dir| {
            let (file, expected) = (dir.file(F)?, dir.expect_range("truncate", F, 70_000, 0)?);
            Ok(Box::new(move || { file.set_len(70_000)?; Ok(Some(expected)) }))
        },
        "open with O_TRUNC" Full Full |dir| {
            dir.file(F)?;
            let (path, expected) = (dir.path(F), dir.expect_range("truncate", F, 0, 0)?);
            Ok(Box::new(move || { File::options().write(true).truncate(true).open(path)?; Ok(Some(expected)) }))
        },
    }
}

enum Vector {
    Here,
    At,
    Append,
}

fn vector(file: &File, how: Vector) -> i64 {
    let part = libc::iovec { iov_base: TEXT.as_ptr().cast_mut().cast(), iov_len: TEXT.len() };
    let parts = [part, part];
    let (file, parts) = (file.as_raw_fd(), parts.as_ptr());
    const RWF_APPEND: i32 = 0x10;
    // SAFETY: the buffers are only read, and live as long as the call.
    let written = unsafe {
        match how {
            Vector::Here => libc::writev(file, parts, 2),
            Vector::At => libc::pwritev(file, parts, 2, 300),
            Vector::Append => libc::pwritev2(file, parts, 2, 300, RWF_APPEND),
        }
    };
    written as i64
}

fn store(dir: &Dir) -> Result<Act> {
    let (file, expected) = (dir.file(F)?, dir.expect_range("mmap", F, 3 * PAGE as u64, PAGE as u64)?);
    Ok(Box::new(move || {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which is left there.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), 16 * PAGE, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        anyhow::ensure!(memory != libc::MAP_FAILED, "mmap failed");
        // SAFETY: within the mapping, of which there is no reference.
        unsafe { memory.cast::<u8>().add(3 * PAGE + 17).write_volatile(1) };
        Ok(Some(expected))
    }))
}

fn fallocate(dir: &Dir, mode: i32, offset: u64) -> Result<Act> {
    let (file, length) = (dir.file(F)?, 2 * PAGE as u64);
    let expected = dir.expect_range("fallocate", F, offset, length)?;
    Ok(Box::new(move || {
        // SAFETY: a plain call.
        let result =
            unsafe { libc::fallocate(file.as_raw_fd(), mode, offset.cast_signed(), length.cast_signed()) };
        Ok(done(i64::from(result))?.map(|_| expected))
    }))
}
