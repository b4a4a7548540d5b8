//! The last rung: system calls at their beginning, on x86-64, and what the page cache and direct I/O tell of those that are
//! no calls. A call with a file descriptor says which file; one with a path says what user space has to look up.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_loop, bpf_probe_read_user_str};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracer_common::vfs::{
    Inode, KIND_PATH, LENGTH_UNKNOWN, NOT_FOLLOWED, PATH_BYTES_LONG, PATH_BYTES_SHORT, PathEvent, counter, op,
};

use crate::hooks::{self, FICLONE, FICLONERANGE, FIDEDUPERANGE, FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS};
use crate::kernel::{Node, Unreadable, id_of, read};
use crate::names;
use crate::report::{
    BPF_RB_NO_WAKEUP, Change, Entry, VFS_EVENTS, begin, begun, changes, changes_since, count, ended,
    entry_changes, fill, is_own, now,
};
use crate::settings as at;

const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
const AT_SYMLINK_FOLLOW: u64 = 0x400;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
const O_TMPFILE: u64 = 0o20_000_000;
const O_APPEND: u32 = 0o2000;
const FMODE_CREATED: u32 = 1 << 20;
const IOCB_WRITE: u32 = 1 << 18;
const TS_COMPAT: u32 = 2;
const PAGE_SHIFT: u32 = 12;
/// Of an order: there is none above.
const ORDER_MASK: u32 = 31;
const IOVECS_MAX: u64 = 1024;
const IOCBS_MAX: u64 = 256;
const DEDUPE_MAX: u64 = 64;

const IOCB_CMD_PWRITE: u16 = 1;
const IOCB_CMD_PWRITEV: u16 = 8;

/// A task opens a file that it may create or truncate.
#[repr(C)]
#[derive(Clone, Copy)]
struct Open {
    time_ns: u64,
    flags: u64,
}

#[map]
static OPENS: LruHashMap<u64, Open> = LruHashMap::with_max_entries(16384, 0);

/// A call's arguments.
#[derive(Clone, Copy)]
pub struct Call {
    pub regs: u64,
}

impl Call {
    /// Where x86-64 passes them: di, si, dx, r10, r8, r9 of `struct pt_regs`.
    #[inline(always)]
    pub fn arg(self, n: usize) -> Result<u64, Unreadable> {
        const REGISTERS: [u32; 6] = [112, 104, 96, 56, 72, 64];
        read(self.regs, REGISTERS[n])
    }

    /// The file of the descriptor in argument `n`; 0 if it is none.
    #[inline(always)]
    pub fn file(self, n: usize) -> Result<u64, Unreadable> {
        file_of(self.arg(n)? as i32)
    }
}

/// A call of a 32-bit program: other numbers, other arguments.
#[inline(always)]
pub fn is_compat() -> Result<bool, Unreadable> {
    Ok(at::task_status() != 0 && read::<u32>(task(), at::task_status())? & TS_COMPAT != 0)
}

#[inline(always)]
fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

#[inline(always)]
fn file_of(descriptor: i32) -> Result<u64, Unreadable> {
    let files: u64 = read(task(), at::task_files())?;
    if descriptor < 0 || files == 0 {
        return Ok(0);
    }
    let table: u64 = read(files, at::files_table())?;
    if descriptor as u32 >= read::<u32>(table, at::table_max())? {
        return Ok(0);
    }
    let array: u64 = read(table, at::table_files())?;
    read(array + u64::from(descriptor as u32) * 8, 0)
}

#[inline(always)]
pub fn node_of(file: u64) -> Result<Option<Node>, Unreadable> {
    if file == 0 { Ok(None) } else { Node::of_file(file) }
}

/// Where the next write without a position goes.
#[inline(always)]
fn position(file: u64, node: &Node) -> Result<u64, Unreadable> {
    if read::<u32>(file, at::file_flags())? & O_APPEND != 0 {
        return read(node.inode, at::inode_size());
    }
    read(file, at::file_pos())
}

/// A number in the caller's memory.
#[inline(always)]
fn user<T>(address: u64) -> Result<T, Unreadable> {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_user(address as *const T) }.map_err(|_| Unreadable)
}

/// What a path in a call is relative to.
#[derive(Clone, Copy)]
enum Base {
    Current,
    /// The descriptor in this argument.
    At(usize),
}

/// What a call is about to change.
enum Plan {
    Nothing,
    /// A file's content or attributes.
    File(u64, Change),
    /// What a path names.
    Path(Change, Named),
    TwoPaths(Change, Named, Named),
}

/// A directory's entry, and the caller's address of a path from there.
#[derive(Clone, Copy)]
struct Named {
    base: u64,
    path: u64,
}

#[inline(always)]
pub fn entered(regs: u64, number: u64) -> Result<(), Unreadable> {
    if is_own() {
        return Ok(());
    }
    if is_compat()? {
        count(counter::NOT_UNDERSTOOD);
        return Ok(());
    }
    let call = Call { regs };
    match number {
        2 => return opening(call.arg(1)?),
        257 => return opening(call.arg(2)?),        // openat
        85 => return opening(O_CREAT | O_TRUNC),    // creat
        437 => return opening(user(call.arg(2)?)?), // openat2
        209 => return submitted(call),
        16 if call.arg(1)? as u32 == FIDEDUPERANGE => return deduped(call.arg(2)?),
        _ => {}
    }
    match plan(call, number)? {
        Plan::Nothing => Ok(()),
        Plan::File(file, change) => changes(node_of(file)?, change),
        // What the directories are called is told, whatever file system they are on.
        Plan::Path(change, named) => {
            tell_base(named.base)?;
            path_changes(&change, &named, None)
        }
        Plan::TwoPaths(change, named, other) => {
            tell_base(named.base)?;
            tell_base(other.base)?;
            path_changes(&change, &named, Some(&other))
        }
    }
}

/// Not inlined, as the stack is 512 bytes for all calls together.
#[inline(never)]
fn plan(call: Call, number: u64) -> Result<Plan, Unreadable> {
    use Base::{At, Current};
    match number {
        1 => written(call, None, Some(2)),     // write
        18 => written(call, Some(3), Some(2)), // pwrite64
        20 => written(call, None, None),       // writev
        296 => written(call, Some(3), None),   // pwritev
        328 => pwritev2(call),
        40 => spliced(call, 0, None, 3, op::WRITE),     // sendfile
        275 => spliced(call, 2, Some(3), 4, op::WRITE), // splice
        326 => spliced(call, 2, Some(3), 4, op::COPY),  // copy_file_range
        285 => fallocated(call),
        77 => Ok(Plan::File(call.file(0)?, Change::range(op::TRUNCATE, call.arg(1)?, 0))),
        16 => ioctl(call),
        91 | 93 => file_changes(call, op::ATTRIBUTES), // fchmod, fchown
        190 | 199 => file_changes(call, op::XATTR),    // fsetxattr, fremovexattr
        87 => path(call, op::UNLINK, Current, 0),
        84 => path(call, op::RMDIR, Current, 0),
        263 => path(call, if call.arg(2)? & 0x200 == 0 { op::UNLINK } else { op::RMDIR }, At(0), 1),
        83 => path(call, op::MKDIR, Current, 0),
        258 => path(call, op::MKDIR, At(0), 1),
        133 => path(call, made(call.arg(1)?), Current, 0),
        259 => path(call, made(call.arg(2)?), At(0), 1),
        88 => path(call, op::SYMLINK, Current, 1),
        266 => path(call, op::SYMLINK, At(1), 2),
        82 => two_paths(call, op::RENAME, 0, (Current, 0), (Current, 1)),
        264 => two_paths(call, op::RENAME, 0, (At(0), 1), (At(2), 3)),
        316 => two_paths(call, op::RENAME, call.arg(4)? as u32, (At(0), 1), (At(2), 3)),
        86 => two_paths(call, op::LINK, NOT_FOLLOWED, (Current, 0), (Current, 1)),
        265 => two_paths(call, op::LINK, follows_if(call.arg(4)?), (At(0), 1), (At(2), 3)),
        76 => path(call, op::TRUNCATE, Current, 0),
        90 | 92 | 132 | 235 => path(call, op::ATTRIBUTES, Current, 0), // chmod, chown, utime, utimes
        94 => path_with(call, op::ATTRIBUTES, NOT_FOLLOWED, Current, 0), // lchown
        268 | 261 => path(call, op::ATTRIBUTES, At(0), 1),             // fchmodat, futimesat
        260 => path_with(call, op::ATTRIBUTES, follows_unless(call.arg(4)?), At(0), 1), // fchownat
        280 if call.arg(1)? == 0 => file_changes(call, op::ATTRIBUTES), // utimensat of a descriptor
        452 | 280 => path_with(call, op::ATTRIBUTES, follows_unless(call.arg(3)?), At(0), 1), // fchmodat2
        188 | 197 => path(call, op::XATTR, Current, 0),                // setxattr, removexattr
        189 | 198 => path_with(call, op::XATTR, NOT_FOLLOWED, Current, 0), // lsetxattr, lremovexattr
        463 | 466 => path_with(call, op::XATTR, follows_unless(call.arg(2)?), At(0), 1), // setxattrat, removexattrat
        469 => path_with(call, op::FLAGS, follows_unless(call.arg(4)?), At(0), 1),       // file_setattr
        _ => Ok(Plan::Nothing),
    }
}

/// What mknod makes.
#[inline(always)]
fn made(mode: u64) -> u8 {
    match mode & 0o170_000 {
        0 | 0o100_000 => op::CREATE,
        _ => op::MKNOD,
    }
}

#[inline(always)]
pub fn left(result: u64) -> Result<(), Unreadable> {
    let opened = opened(result as i64);
    ended(result as i64);
    opened
}

/// `length`: the argument with the bytes; without, the buffers are in arguments 1 and 2.
#[inline(always)]
fn written(call: Call, offset: Option<usize>, length: Option<usize>) -> Result<Plan, Unreadable> {
    let file = call.file(0)?;
    let Some(node) = node_of(file)? else { return Ok(Plan::Nothing) };
    let offset = match offset {
        Some(n) => call.arg(n)?,
        None => position(file, &node)?,
    };
    let length = match length {
        Some(n) => call.arg(n)?,
        None => bytes_of(call.arg(1)?, call.arg(2)?),
    };
    Ok(if length == 0 { Plan::Nothing } else { Plan::File(file, Change::range(op::WRITE, offset, length)) })
}

#[inline(always)]
fn pwritev2(call: Call) -> Result<Plan, Unreadable> {
    const RWF_APPEND: u64 = 0x10;
    let file = call.file(0)?;
    let Some(node) = node_of(file)? else { return Ok(Plan::Nothing) };
    let offset = if call.arg(5)? & RWF_APPEND != 0 {
        read(node.inode, at::inode_size())?
    } else {
        match call.arg(3)? {
            u64::MAX => position(file, &node)?,
            offset => offset,
        }
    };
    let length = bytes_of(call.arg(1)?, call.arg(2)?);
    Ok(if length == 0 { Plan::Nothing } else { Plan::File(file, Change::range(op::WRITE, offset, length)) })
}

struct Sum {
    vector: u64,
    left: u64,
    bytes: u64,
}

/// Of a `struct iovec` array in the caller's memory.
#[inline(never)]
fn bytes_of(vector: u64, count: u64) -> u64 {
    if count > IOVECS_MAX {
        return 0;
    }
    let mut sum = Sum { vector, left: count, bytes: 0 };
    // SAFETY: the callback has bpf_loop's signature and `sum` outlives the call.
    unsafe { bpf_loop(IOVECS_MAX as u32, next_buffer as *mut c_void, (&raw mut sum).cast(), 0) };
    sum.bytes
}

unsafe extern "C" fn next_buffer(_index: u64, sum: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on the pointer that bytes_of gave it.
    let sum = unsafe { &mut *sum.cast::<Sum>() };
    if sum.left == 0 {
        return 1;
    }
    let Ok(bytes) = user::<u64>(sum.vector + 8) else {
        sum.bytes = LENGTH_UNKNOWN;
        return 1;
    };
    sum.bytes = sum.bytes.saturating_add(bytes);
    sum.vector += 16;
    sum.left -= 1;
    0
}

/// To the descriptor in argument `to`, at the position that `offset` points at.
#[inline(always)]
fn spliced(call: Call, to: usize, offset: Option<usize>, length: usize, op: u8) -> Result<Plan, Unreadable> {
    let file = call.file(to)?;
    let Some(node) = node_of(file)? else { return Ok(Plan::Nothing) };
    let pointer = match offset {
        Some(n) => call.arg(n)?,
        None => 0,
    };
    let offset = if pointer == 0 { position(file, &node)? } else { user(pointer)? };
    Ok(Plan::File(file, Change::range(op, offset, call.arg(length)?)))
}

#[inline(always)]
fn fallocated(call: Call) -> Result<Plan, Unreadable> {
    let change =
        Change { op: op::FALLOCATE, detail: call.arg(1)? as u32, offset: call.arg(2)?, length: call.arg(3)? };
    Ok(Plan::File(call.file(0)?, change))
}

#[inline(always)]
fn file_changes(call: Call, op: u8) -> Result<Plan, Unreadable> {
    Ok(Plan::File(call.file(0)?, Change::of(op, 0)))
}

#[inline(always)]
fn ioctl(call: Call) -> Result<Plan, Unreadable> {
    let command = call.arg(1)? as u32;
    let change = match command {
        FICLONE => Change::range(op::CLONE, 0, 0),
        // Read before it is known whose command it is.
        FICLONERANGE => {
            let range = call.arg(2)?;
            Change::range(op::CLONE, user(range + 24)?, user(range + 16)?)
        }
        FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR => Change::of(op::FLAGS, 0),
        _ if hooks::may_change(command) => Change::of(op::IOCTL, command),
        _ => return Ok(Plan::Nothing),
    };
    Ok(Plan::File(call.file(0)?, change))
}

struct Dedupe {
    /// `struct file_dedupe_range_info`s in the caller's memory.
    info: u64,
    left: u64,
    length: u64,
    failed: bool,
}

#[inline(never)]
fn deduped(range: u64) -> Result<(), Unreadable> {
    let left = u64::from(user::<u16>(range + 16)?);
    let mut walk = Dedupe { info: range + 24, left, length: user(range + 8)?, failed: left > DEDUPE_MAX };
    // SAFETY: the callback has bpf_loop's signature and `walk` outlives the call.
    unsafe { bpf_loop(DEDUPE_MAX as u32, next_dedupe as *mut c_void, (&raw mut walk).cast(), 0) };
    if walk.failed { Err(Unreadable) } else { Ok(()) }
}

unsafe extern "C" fn next_dedupe(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on the pointer that deduped gave it.
    let walk = unsafe { &mut *walk.cast::<Dedupe>() };
    if walk.left == 0 {
        return 1;
    }
    let one = || {
        let file = file_of(user::<i64>(walk.info)? as i32)?;
        changes(node_of(file)?, Change::range(op::DEDUPE, user(walk.info + 8)?, walk.length))
    };
    if one().is_err() {
        walk.failed = true;
    }
    walk.info += 32;
    walk.left -= 1;
    0
}

struct Submit {
    /// Pointers to `struct iocb`s.
    pointers: u64,
    left: u64,
    failed: bool,
}

/// `io_submit(context, count, iocbs)`
#[inline(always)]
fn submitted(call: Call) -> Result<(), Unreadable> {
    all_submitted(call.arg(2)?, call.arg(1)?)
}

#[inline(never)]
fn all_submitted(pointers: u64, left: u64) -> Result<(), Unreadable> {
    let mut walk = Submit { pointers, left, failed: left > IOCBS_MAX };
    // SAFETY: the callback has bpf_loop's signature and `walk` outlives the call.
    unsafe { bpf_loop(IOCBS_MAX as u32, next_iocb as *mut c_void, (&raw mut walk).cast(), 0) };
    if walk.failed { Err(Unreadable) } else { Ok(()) }
}

unsafe extern "C" fn next_iocb(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on the pointer that submitted gave it.
    let walk = unsafe { &mut *walk.cast::<Submit>() };
    if walk.left == 0 {
        return 1;
    }
    let one = || {
        let iocb: u64 = user(walk.pointers)?;
        let command: u16 = user(iocb + 16)?;
        if command != IOCB_CMD_PWRITE && command != IOCB_CMD_PWRITEV {
            return Ok(());
        }
        let node = node_of(file_of(user::<u32>(iocb + 20)? as i32)?)?;
        let (buffer, bytes): (u64, u64) = (user(iocb + 24)?, user(iocb + 32)?);
        let length = if command == IOCB_CMD_PWRITE { bytes } else { bytes_of(buffer, bytes) };
        changes(node, Change::range(op::WRITE, user(iocb + 40)?, length))
    };
    if one().is_err() {
        walk.failed = true;
    }
    walk.pointers += 8;
    walk.left -= 1;
    0
}

#[inline(always)]
fn opening(flags: u64) -> Result<(), Unreadable> {
    if flags & (O_CREAT | O_TRUNC) != 0 || flags & O_TMPFILE == O_TMPFILE {
        let _ = OPENS.insert(&bpf_get_current_pid_tgid(), &Open { time_ns: now(), flags }, 0);
    }
    Ok(())
}

/// Whether the file that was opened was made, or cut, by that.
#[inline(always)]
fn opened(descriptor: i64) -> Result<(), Unreadable> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the entry is this task's own.
    let Some(open) = unsafe { OPENS.get(&thread) }.copied() else { return Ok(()) };
    let _ = OPENS.remove(&thread);
    if descriptor < 0 {
        return Ok(());
    }
    let file = file_of(descriptor as i32)?;
    let Some(node) = node_of(file)? else { return Ok(()) };
    if open.flags & O_TMPFILE == O_TMPFILE {
        return changes_since(&node, &Change::of(op::TMPFILE, 0), open.time_ns);
    }
    if read::<u32>(file, at::file_mode())? & FMODE_CREATED != 0 {
        let Node { dentry, inode, dev } = node;
        let time_ns = open.time_ns;
        return entry_changes(&Entry { op: op::CREATE, detail: 0, time_ns, inode, dentry, other: 0, dev });
    }
    if open.flags & O_TRUNC != 0 {
        return changes_since(&node, &Change::range(op::TRUNCATE, 0, 0), open.time_ns);
    }
    Ok(())
}

#[inline(always)]
fn path(call: Call, op: u8, base: Base, path: usize) -> Result<Plan, Unreadable> {
    path_with(call, op, 0, base, path)
}

#[inline(always)]
fn path_with(call: Call, op: u8, detail: u32, base: Base, path: usize) -> Result<Plan, Unreadable> {
    let size = if op == op::TRUNCATE { call.arg(1)? } else { 0 };
    let named = Named { base: base_of(call, base)?, path: call.arg(path)? };
    Ok(Plan::Path(Change { op, detail, offset: size, length: 0 }, named))
}

#[inline(always)]
fn follows_unless(flags: u64) -> u32 {
    if flags & AT_SYMLINK_NOFOLLOW != 0 { NOT_FOLLOWED } else { 0 }
}

#[inline(always)]
fn follows_if(flags: u64) -> u32 {
    if flags & AT_SYMLINK_FOLLOW != 0 { 0 } else { NOT_FOLLOWED }
}

#[inline(always)]
fn two_paths(
    call: Call,
    op: u8,
    detail: u32,
    (base, path): (Base, usize),
    (other_base, other): (Base, usize),
) -> Result<Plan, Unreadable> {
    let first = Named { base: base_of(call, base)?, path: call.arg(path)? };
    let second = Named { base: base_of(call, other_base)?, path: call.arg(other)? };
    Ok(Plan::TwoPaths(Change::of(op, detail), first, second))
}

/// Not inlined, as `plan`.
#[inline(never)]
fn path_changes(change: &Change, named: &Named, other: Option<&Named>) -> Result<(), Unreadable> {
    let other_base = match other {
        Some(other) => id_of_base(other.base)?,
        None => Inode::default(),
    };
    let base = id_of_base(named.base)?;
    let seq = begin(change.op, base);
    let time_ns = now();
    let mut told = tell_path(change, &Told { path: named.path, base, time_ns, seq, which: 0 });
    if let (true, Some(other)) = (told, other) {
        told = tell_path(change, &Told { path: other.path, base: other_base, time_ns, seq, which: 1 });
    }
    count(if told { counter::EMITTED } else { counter::LOST });
    Ok(())
}

#[inline(never)]
fn tell_base(dentry: u64) -> Result<(), Unreadable> {
    if dentry == 0 {
        return Ok(());
    }
    names::tell(dentry, read(read(dentry, at::dentry_sb())?, at::sb_dev())?)
}

/// The directory's entry; 0 for none.
#[inline(always)]
fn base_of(call: Call, base: Base) -> Result<u64, Unreadable> {
    let descriptor = match base {
        Base::Current => AT_FDCWD,
        Base::At(n) => call.arg(n)? as i32,
    };
    if descriptor == AT_FDCWD {
        return read(read(task(), at::task_fs())?, at::fs_pwd_dentry());
    }
    match file_of(descriptor)? {
        0 => Ok(0),
        file => read(file, at::file_dentry()),
    }
}

#[inline(always)]
fn id_of_base(dentry: u64) -> Result<Inode, Unreadable> {
    if dentry == 0 {
        return Ok(Inode::default());
    }
    let dev: u32 = read(read(dentry, at::dentry_sb())?, at::sb_dev())?;
    id_of(read(dentry, at::dentry_inode())?, dev)
}

/// One of a call's paths, as it is told.
struct Told {
    path: u64,
    base: Inode,
    time_ns: u64,
    seq: u64,
    which: u32,
}

/// A short event if the path fits, else a long one. Says whether it was told: else there was no room, or the path is not in
/// memory yet.
#[inline(never)]
fn tell_path(change: &Change, told: &Told) -> bool {
    match tell_path_in::<PATH_BYTES_SHORT>(change, told) {
        Fits::No => matches!(tell_path_in::<PATH_BYTES_LONG>(change, told), Fits::Yes),
        fits => matches!(fits, Fits::Yes),
    }
}

enum Fits {
    Yes,
    No,
    Lost,
}

#[inline(always)]
fn tell_path_in<const N: usize>(change: &Change, told: &Told) -> Fits {
    let Some(mut slot) = VFS_EVENTS.reserve::<PathEvent<N>>(0) else { return Fits::Lost };
    let room: *mut PathEvent<N> = slot.as_mut_ptr();
    // SAFETY: the slot is as large as the event, and each member is written whole before it is submitted; the helper checks
    // the caller's address itself.
    let (filled, length) = unsafe {
        let filled = fill(&raw mut (*room).event, KIND_PATH, change, told.base, told.time_ns, told.seq);
        (&raw mut (*room).which).write(told.which);
        (&raw mut (*room).zero).write(0);
        let path = told.path as *const c_void;
        (filled, bpf_probe_read_user_str((&raw mut (*room).path).cast(), N as u32, path))
    };
    if length < 0 || filled.is_err() {
        slot.discard(BPF_RB_NO_WAKEUP);
        return Fits::Lost;
    }
    // One that just fits goes into a long event, too.
    if length >= N as i64 && N < PATH_BYTES_LONG {
        slot.discard(BPF_RB_NO_WAKEUP);
        return Fits::No;
    }
    slot.submit(BPF_RB_NO_WAKEUP);
    Fits::Yes
}

/// `writeback_dirty_folio(folio, mapping)`: by a store through a mapping, by io_uring, by a thread of the kernel; or by a call
/// that was reported itself.
#[inline(always)]
pub fn dirtied(folio: u64, mapping: u64) -> Result<(), Unreadable> {
    if mapping == 0 {
        return Ok(());
    }
    let inode: u64 = read(mapping, at::mapping_inode())?;
    let Some(node) = Node::of_inode(inode)? else { return Ok(()) };
    let id = node.id()?;
    // A call dirties more than it changes: the rest of a folio, the page of the old end of the file. What is stored there
    // before it was written back is told by nobody, so who copies has to know of all that is dirty.
    if at::ends() == 0 && begun().is_some_and(|begun| begun.inode == id) {
        return Ok(());
    }
    let order = order_of(folio)?;
    let index: u64 = read(folio, at::folio_index())?;
    changes(Some(node), Change::range(op::DIRTY, index << PAGE_SHIFT, 1 << (PAGE_SHIFT + order)))
}

/// Of a folio's pages, as a power of two.
#[inline(always)]
fn order_of(folio: u64) -> Result<u32, Unreadable> {
    if read::<u64>(folio, at::folio_flags())? & (1 << at::pg_head()) == 0 {
        return Ok(0);
    }
    Ok(u32::from(read::<u8>(folio, at::folio_order())?) & ORDER_MASK)
}

/// `io_uring_submit_req(req)`, which was `io_uring_submit_sqe(req, …)`: the request is prepared, and done now or later;
/// `io_uring_complete(ctx, req, …)`: it is done.
#[inline(always)]
pub fn requested(request: u64) -> Result<(), Unreadable> {
    if request == 0 {
        return Ok(());
    }
    let unseen = match read::<u8>(request, at::uring_opcode())? {
        // IORING_OP_OPENAT, OPENAT2
        18 | 28 => {
            let command = request + u64::from(at::uring_command());
            read::<u64>(command, at::uring_open_flags())? & (O_CREAT | O_TRUNC) != 0
        }
        // FALLOCATE, RENAMEAT, UNLINKAT, MKDIRAT, SYMLINKAT, LINKAT, FSETXATTR, SETXATTR, URING_CMD, FTRUNCATE
        17 | 35..=39 | 41 | 42 | 46 | 55 => true,
        // WRITEV, WRITE_FIXED, WRITE
        2 | 5 | 23 => at::direct_unseen() != 0,
        _ => false,
    };
    if unseen && !is_own() {
        count(counter::UNSEEN);
    }
    Ok(())
}

/// `iomap_dio_rw_begin(iocb, iter, …)`
#[inline(always)]
pub fn direct_io(iocb: u64, iter: u64) -> Result<(), Unreadable> {
    if read::<u32>(iocb, at::kiocb_flags())? & IOCB_WRITE == 0 {
        return Ok(());
    }
    let Some(node) = Node::of_file(read(iocb, at::kiocb_file())?)? else { return Ok(()) };
    let id = node.id()?;
    if begun().is_some_and(|begun| begun.inode == id) {
        return Ok(());
    }
    hooks::write(iocb, iter)
}
