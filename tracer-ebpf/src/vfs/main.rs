//! The probes of file systems: who changes which file or name, on every way there is.
//!
//! Each hook stands here for the rungs `fentry` and `kprobe`; those of the rung `syscall`, which sees less, are at the end. What
//! each rung sees is the table in docs/OPERATIONS.md, which a test makes.
#![no_std]
// The BPF targets have atomic adds and ors but no compare-and-swap, so `AtomicU64` lacks its methods there.
#![expect(internal_features)]
#![feature(core_intrinsics)]
#![no_main]

mod hooks;
mod kernel;
mod names;
mod report;
#[path = "../set_by_loader.rs"]
mod set_by_loader;
mod settings;
mod synced;
mod syscalls;

use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, kprobe};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, FExitContext, ProbeContext};
use tracer_common::vfs::{counter, op};

use kernel::Unreadable;

/// Counts a failed read: a change may have gone unseen.
#[inline(always)]
fn settle(result: Result<(), Unreadable>) {
    if result.is_err() {
        report::count(counter::READ_FAILED);
    }
}

/// The arguments of the function a probe is at.
trait Arguments {
    fn at(&self, n: usize) -> u64;
}

impl Arguments for FEntryContext {
    #[inline(always)]
    fn at(&self, n: usize) -> u64 {
        self.arg(n)
    }
}

impl Arguments for ProbeContext {
    #[inline(always)]
    fn at(&self, n: usize) -> u64 {
        self.arg(n).unwrap_or(0)
    }
}

macro_rules! hook {
    ($fentry:ident, $kprobe:ident, $function:literal, |$call:ident| $body:expr) => {
        #[fentry(function = $function)]
        pub fn $fentry($call: FEntryContext) -> i32 {
            settle($body);
            0
        }

        #[kprobe(function = $function)]
        pub fn $kprobe($call: ProbeContext) -> u32 {
            settle($body);
            0
        }
    };
}

hook!(write_fentry, write_kprobe, "generic_write_checks", |call| hooks::write(call.at(0), call.at(1)));
hook!(mkwrite_fentry, mkwrite_kprobe, "do_page_mkwrite", |call| hooks::page_made_writable(call.at(0)));
hook!(fallocate_fentry, fallocate_kprobe, "vfs_fallocate", |call| {
    hooks::fallocate(call.at(0), call.at(1), call.at(2), call.at(3))
});
hook!(copy_fentry, copy_kprobe, "vfs_copy_file_range", |call| {
    hooks::copied(op::COPY, call.at(2), call.at(3), call.at(4))
});
hook!(clone_fentry, clone_kprobe, "vfs_clone_file_range", |call| {
    hooks::copied(op::CLONE, call.at(2), call.at(3), call.at(4))
});
hook!(dedupe_fentry, dedupe_kprobe, "vfs_dedupe_file_range_one", |call| {
    hooks::copied(op::DEDUPE, call.at(2), call.at(3), call.at(4))
});
hook!(attr_fentry, attr_kprobe, "notify_change", |call| hooks::attributes(call.at(1), call.at(2)));
hook!(setxattr_fentry, setxattr_kprobe, "__vfs_setxattr_noperm", |call| hooks::dentry_changes(
    op::XATTR,
    call.at(1)
));
hook!(rmxattr_fentry, rmxattr_kprobe, "__vfs_removexattr", |call| hooks::dentry_changes(
    op::XATTR,
    call.at(1)
));
hook!(setacl_fentry, setacl_kprobe, "vfs_set_acl", |call| hooks::dentry_changes(op::XATTR, call.at(1)));
hook!(rmacl_fentry, rmacl_kprobe, "vfs_remove_acl", |call| hooks::dentry_changes(op::XATTR, call.at(1)));
hook!(flags_fentry, flags_kprobe, "vfs_fileattr_set", |call| hooks::dentry_changes(op::FLAGS, call.at(1)));
hook!(ioctl_fentry, ioctl_kprobe, "do_vfs_ioctl", |call| hooks::ioctl(call.at(0), call.at(2)));
hook!(create_fentry, create_kprobe, "vfs_create", |call| hooks::entry(op::CREATE, call.at(2), 0));
hook!(mkdir_fentry, mkdir_kprobe, "vfs_mkdir", |call| hooks::entry(op::MKDIR, call.at(2), 0));
hook!(mknod_fentry, mknod_kprobe, "vfs_mknod", |call| hooks::entry(op::MKNOD, call.at(2), 0));
hook!(symlink_fentry, symlink_kprobe, "vfs_symlink", |call| hooks::entry(op::SYMLINK, call.at(2), 0));
hook!(unlink_fentry, unlink_kprobe, "vfs_unlink", |call| hooks::entry(op::UNLINK, call.at(2), 0));
hook!(rmdir_fentry, rmdir_kprobe, "vfs_rmdir", |call| hooks::entry(op::RMDIR, call.at(2), 0));
hook!(link_fentry, link_kprobe, "vfs_link", |call| hooks::entry(op::LINK, call.at(3), call.at(0)));
hook!(rename_fentry, rename_kprobe, "vfs_rename", |call| hooks::rename(call.at(0)));
hook!(tmpfile_fentry, tmpfile_kprobe, "vfs_tmpfile", |call| hooks::tmpfile(call.at(1)));
hook!(opening_fentry, opening_kprobe, "do_filp_open", |call| hooks::opening(call.at(2)));
hook!(opened_fentry, opened_kprobe, "vfs_open", |call| hooks::opened(call.at(0), call.at(1)));

macro_rules! tracepoint {
    ($name:ident, $tracepoint:literal, |$ctx:ident| $body:expr) => {
        #[btf_tracepoint(function = $tracepoint)]
        pub fn $name($ctx: BtfTracePointContext) -> i32 {
            settle($body);
            0
        }
    };
}

tracepoint!(sys_enter, "sys_enter", |ctx| syscalls::entered(ctx.arg(0), ctx.arg(1)));
tracepoint!(sys_exit, "sys_exit", |ctx| syscalls::left(ctx.arg(1)));
tracepoint!(dirty_folio, "writeback_dirty_folio", |ctx| syscalls::dirtied(ctx.arg(0), ctx.arg(1)));
tracepoint!(requested, "io_uring_submit_req", |ctx| syscalls::requested(ctx.arg(0)));
tracepoint!(request_done, "io_uring_complete", |ctx| syscalls::requested(ctx.arg(1)));
tracepoint!(direct_io, "iomap_dio_rw_begin", |ctx| syscalls::direct_io(ctx.arg(0), ctx.arg(1)));

// For those who ask for syncs, and for nothing else: see `SyncCapture`.
#[fexit(function = "vfs_fsync_range")]
pub fn synced_fexit(call: FExitContext) -> i32 {
    const RESULT: usize = 4;
    settle(synced::returned(call.arg(0), call.arg(RESULT)));
    0
}

tracepoint!(synced_call, "sys_exit", |ctx| synced::left(ctx.arg(0), ctx.arg(1)));
tracepoint!(synced_request, "io_uring_complete", |ctx| synced::request_done(ctx.arg(1)));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
