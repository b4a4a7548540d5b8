//! Files that fsync and its like brought to their disk, told when that is done: then all of a file has its blocks.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_find_vma, bpf_get_current_task_btf};
use tracer_common::vfs::{Inode, counter};

use crate::kernel::{Node, Unreadable, read};
use crate::report::{VFS_EVENTS, count, lost};
use crate::settings as at;
use crate::syscalls::{Call, is_compat, node_of};

const MS_SYNC: u64 = 4;
/// Of x86-64, in `struct pt_regs`.
const NUMBER: u32 = 120;
const ENOENT: i64 = -2;
const IORING_OP_FSYNC: u8 = 3;

/// `vfs_fsync_range(file, start, end, datasync)` returned: of fsync, fdatasync, msync, of writes that are to be synced (O_SYNC,
/// O_DSYNC), of io_uring, AIO and the kernel's own threads.
#[inline(always)]
pub fn returned(file: u64, result: u64) -> Result<(), Unreadable> {
    match result as i32 {
        0 => tell(node_of(file)?),
        _ => Ok(()),
    }
}

/// A system call returned: of fsync, fdatasync and msync. Meanwhile another thread may have closed the file, and then its
/// descriptor says nothing or something else; but that it was closed is heard of otherwise.
#[inline(always)]
pub fn left(regs: u64, result: i64) -> Result<(), Unreadable> {
    let number: u64 = read(regs, NUMBER)?;
    if !matches!(number, 26 | 74 | 75) || result != 0 || is_compat()? {
        return Ok(());
    }
    let call = Call { regs };
    match number {
        26 => mapping_synced(call.arg(0)?, call.arg(2)?),
        _ => tell(node_of(call.file(0)?)?),
    }
}

/// msync: of a range that several files are mapped to, the first.
#[inline(always)]
fn mapping_synced(address: u64, flags: u64) -> Result<(), Unreadable> {
    if flags & MS_SYNC == 0 {
        return Ok(());
    }
    let mut file = 0u64;
    // SAFETY: the callback has bpf_find_vma's signature, and `file` outlives the call.
    let found = unsafe {
        let task = bpf_get_current_task_btf();
        bpf_find_vma(task, address, file_of_mapping as *mut c_void, (&raw mut file).cast(), 0)
    };
    match found {
        0 => tell(node_of(file)?),
        // Unmapped meanwhile.
        ENOENT => Ok(()),
        // Another thread is about to map something.
        _ => Err(Unreadable),
    }
}

unsafe extern "C" fn file_of_mapping(_task: u64, mapping: u64, file: *mut c_void) -> i64 {
    // SAFETY: bpf_find_vma hands on the pointer that mapping_synced gave it.
    unsafe { *file.cast::<u64>() = read(mapping, at::vma_file()).unwrap_or(0) };
    0
}

/// `io_uring_complete(ctx, req, …)`
#[inline(always)]
pub fn request_done(request: u64) -> Result<(), Unreadable> {
    if request == 0 || read::<u8>(request, at::uring_opcode())? != IORING_OP_FSYNC {
        return Ok(());
    }
    match read::<i32>(request, at::uring_result())? {
        0 => tell(node_of(read(request, at::uring_file())?)?),
        _ => Ok(()),
    }
}

/// Wakes who waits for it.
#[inline(always)]
fn tell(node: Option<Node>) -> Result<(), Unreadable> {
    let Some(node) = node else { return Ok(()) };
    let inode = node.id()?;
    count(counter::SEEN);
    let Some(mut slot) = VFS_EVENTS.reserve::<Inode>(0) else { return lost() };
    slot.write(inode);
    slot.submit(0);
    count(counter::EMITTED);
    Ok(())
}
