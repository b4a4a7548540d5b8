//! The kernel's functions through which every change of a file or name goes, at their beginning. The arguments are the same
//! from 6.1 to 6.18 but where it says so.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracer_common::vfs::op;

use crate::kernel::{Node, Unreadable, read};
use crate::names;
use crate::report::{Change, Entry, changes, entry_changes, now};
use crate::settings as at;

const IOCB_APPEND: u32 = 0x10;
const FMODE_CREATED: u32 = 1 << 20;
const O_CREAT: u32 = 0o100;
const ATTR_SIZE: u32 = 1 << 3;
const PAGE_BYTES: u64 = 4096;
pub const FICLONE: u32 = 0x4004_9409;
pub const FICLONERANGE: u32 = 0x4020_940d;
pub const FIDEDUPERANGE: u32 = 0xc018_9436;
pub const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
pub const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// When a task began to open a file that it may create.
#[map]
static OPENING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16384, 0);

/// `generic_write_checks(iocb, from)`: every file system's `write_iter` calls it with the inode locked, and so do write,
/// writev, pwritev2, AIO, io_uring, splice, sendfile, and the kernel's own writers (loop, nfsd).
#[inline(always)]
pub fn write(iocb: u64, from: u64) -> Result<(), Unreadable> {
    let Some(node) = Node::of_file(read(iocb, at::kiocb_file())?)? else { return Ok(()) };
    let flags: u32 = read(iocb, at::kiocb_flags())?;
    let offset = match flags & IOCB_APPEND {
        0 => read(iocb, at::kiocb_pos())?,
        _ => read(node.inode, at::inode_size())?,
    };
    let length: u64 = read(from, at::iter_count())?;
    if length == 0 {
        return Ok(());
    }
    changes(Some(node), Change::range(op::WRITE, offset, length))
}

/// `do_page_mkwrite(vmf, …)`
#[inline(always)]
pub fn page_made_writable(fault: u64) -> Result<(), Unreadable> {
    let vma: u64 = read(fault, at::fault_vma())?;
    let file: u64 = read(vma, at::vma_file())?;
    if file == 0 {
        return Ok(());
    }
    let page: u64 = read(fault, at::fault_pgoff())?;
    changes(Node::of_file(file)?, Change::range(op::MMAP, page * PAGE_BYTES, PAGE_BYTES))
}

/// `vfs_fallocate(file, mode, offset, len)`
#[inline(always)]
pub fn fallocate(file: u64, mode: u64, offset: u64, length: u64) -> Result<(), Unreadable> {
    changes(Node::of_file(file)?, Change { op: op::FALLOCATE, detail: mode as u32, offset, length })
}

/// `vfs_copy_file_range`, `vfs_clone_file_range`, `vfs_dedupe_file_range_one` (in, pos, out, pos, len, …)
#[inline(always)]
pub fn copied(op: u8, file: u64, offset: u64, length: u64) -> Result<(), Unreadable> {
    changes(Node::of_file(file)?, Change::range(op, offset, length))
}

/// `notify_change(idmap, dentry, attr, …)`: truncate, O_TRUNC, chmod, chown, utimes.
#[inline(always)]
pub fn attributes(dentry: u64, attr: u64) -> Result<(), Unreadable> {
    let valid: u32 = read(attr, at::attr_valid())?;
    let mut change = Change::of(op::ATTRIBUTES, valid);
    if valid & ATTR_SIZE != 0 {
        change.op = op::TRUNCATE;
        change.offset = read(attr, at::attr_size())?;
    }
    changes(Node::of_dentry(dentry)?, change)
}

/// `__vfs_setxattr_noperm`, `__vfs_removexattr`, `vfs_set_acl`, `vfs_remove_acl`, `vfs_fileattr_set` (idmap, dentry, …)
#[inline(always)]
pub fn dentry_changes(op: u8, dentry: u64) -> Result<(), Unreadable> {
    changes(Node::of_dentry(dentry)?, Change::of(op, 0))
}

/// `do_vfs_ioctl(file, fd, cmd, arg)`: looks at every command first, and leaves a file system's own to it.
#[inline(always)]
pub fn ioctl(file: u64, command: u64) -> Result<(), Unreadable> {
    match may_change(command as u32) {
        true => changes(Node::of_file(file)?, Change::of(op::IOCTL, command as u32)),
        false => Ok(()),
    }
}

/// Whether it may be a file system's own command that changes something, by its number: one that only hands something out
/// does not, nor do those that all files have; and those that all file systems have are seen elsewhere.
#[inline(always)]
pub fn may_change(command: u32) -> bool {
    const READ: u32 = 2;
    const FIFREEZE: u32 = 0xc004_5877;
    const FITHAW: u32 = 0xc004_5878;
    const FS_IOC_FIEMAP: u32 = 0xc020_660b;
    let (direction, kind) = (command >> 30, command >> 8 & 0xff);
    direction != READ
        && !(direction == 0 && (kind == 0 || kind == 0x54))
        && !matches!(
            command,
            FICLONE
                | FICLONERANGE
                | FIDEDUPERANGE
                | FS_IOC_SETFLAGS
                | FS_IOC_FSSETXATTR
                | FS_IOC_FIEMAP
                | FIFREEZE
                | FITHAW
        )
}

/// `vfs_create`, `vfs_mkdir`, `vfs_mknod`, `vfs_symlink` (idmap, dir, dentry, …), `vfs_unlink`, `vfs_rmdir` (the same), and
/// `vfs_link(old, idmap, dir, dentry, …)` with the inode of `old`.
#[inline(always)]
pub fn entry(op: u8, dentry: u64, linked: u64) -> Result<(), Unreadable> {
    let Some(node) = Node::of_dentry(dentry)? else { return Ok(()) };
    let inode = if linked == 0 { node.inode } else { read(linked, at::dentry_inode())? };
    if linked != 0 {
        names::tell(linked, node.dev)?;
    }
    entry_changes(&Entry { op, detail: 0, time_ns: now(), inode, dentry, other: 0, dev: node.dev })
}

/// `vfs_rename(renamedata)`
#[inline(always)]
pub fn rename(data: u64) -> Result<(), Unreadable> {
    let dentry: u64 = read(data, at::rename_old())?;
    let Some(node) = Node::of_dentry(dentry)? else { return Ok(()) };
    let other: u64 = read(data, at::rename_new())?;
    let detail: u32 = read(data, at::rename_flags())?;
    names::forget(node.id()?);
    let inode = node.inode;
    entry_changes(&Entry { op: op::RENAME, detail, time_ns: now(), inode, dentry, other, dev: node.dev })
}

/// `vfs_tmpfile(idmap, parent path, …)`
#[inline(always)]
pub fn tmpfile(path: u64) -> Result<(), Unreadable> {
    let dentry: u64 = read(path, at::path_dentry())?;
    changes(Node::of_dentry(dentry)?, Change::of(op::TMPFILE, 0))
}

/// `do_filp_open(dfd, name, flags)`: nothing yet says that the file is not there.
#[inline(always)]
pub fn opening(flags: u64) -> Result<(), Unreadable> {
    if read::<u32>(flags, at::open_flag())? & O_CREAT != 0 {
        let _ = OPENING.insert(&bpf_get_current_pid_tgid(), &now(), 0);
    }
    Ok(())
}

/// `vfs_open(path, file)`: it was made if it was not there.
#[inline(always)]
pub fn opened(path: u64, file: u64) -> Result<(), Unreadable> {
    if read::<u32>(file, at::file_mode())? & FMODE_CREATED == 0 {
        return Ok(());
    }
    created(read(path, at::path_dentry())?)
}

/// It was made since this task began to open it.
#[inline(always)]
pub fn created(dentry: u64) -> Result<(), Unreadable> {
    let Some(node) = Node::of_dentry(dentry)? else { return Ok(()) };
    // SAFETY: the entry is this task's own.
    let time_ns = unsafe { OPENING.get(&bpf_get_current_pid_tgid()) }.copied().unwrap_or_else(now);
    let entry =
        Entry { op: op::CREATE, detail: 0, time_ns, inode: node.inode, dentry, other: 0, dev: node.dev };
    entry_changes(&entry)
}
