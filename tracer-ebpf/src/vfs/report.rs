//! From a hook to the ring. Every change is counted, also one for which there is no room.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_kernel_str,
};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, RingBuf};
use tracer_common::vfs::{
    COMM_BYTES, ChangeEvent, EntryEvent, Inode, KIND_CHANGE, KIND_END, KIND_ENTRY, NAME_BYTES, counter, op,
};

use crate::kernel::{Node, Unreadable, id_of, read};
use crate::names;
use crate::settings as at;

const BPF_F_MMAPABLE: u32 = 1 << 10;
pub const BPF_RB_NO_WAKEUP: u64 = 1;

// Its size is set by the loader.
#[map]
pub static VFS_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 16, 0);
#[map]
static VFS_COUNTERS: Array<u64> = Array::with_max_entries(counter::COUNT, BPF_F_MMAPABLE);
/// The last change that a task began in the system call it is in.
#[map]
static BEGUN: LruHashMap<u64, Begun> = LruHashMap::with_max_entries(16384, 0);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Begun {
    pub seq: u64,
    pub inode: Inode,
    pub op: u64,
}

/// What is about to happen to a file.
#[derive(Clone, Copy)]
pub struct Change {
    pub op: u8,
    pub detail: u32,
    pub offset: u64,
    pub length: u64,
}

impl Change {
    #[inline(always)]
    pub fn of(op: u8, detail: u32) -> Change {
        Change { op, detail, offset: 0, length: 0 }
    }

    #[inline(always)]
    pub fn range(op: u8, offset: u64, length: u64) -> Change {
        Change { op, detail: 0, offset, length }
    }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// A change of content or attributes of the node, if it is one that is watched.
#[inline(always)]
pub fn changes(node: Option<Node>, change: Change) -> Result<(), Unreadable> {
    let Some(node) = node else { return Ok(()) };
    changes_since(&node, &change, now())
}

#[inline(always)]
pub fn changes_since(node: &Node, change: &Change, time_ns: u64) -> Result<(), Unreadable> {
    if is_own() {
        return Ok(());
    }
    names::tell(node.dentry, node.dev)?;
    emit(node, change, time_ns)
}

/// Not inlined, and not below `tell`: the stack is 512 bytes for all calls together.
#[inline(never)]
fn emit(node: &Node, change: &Change, time_ns: u64) -> Result<(), Unreadable> {
    let inode = node.id()?;
    let seq = begin(change.op, inode);
    let Some(mut slot) = VFS_EVENTS.reserve::<ChangeEvent>(0) else { return lost() };
    // SAFETY: the slot is as large as the event.
    if unsafe { fill(slot.as_mut_ptr(), KIND_CHANGE, change, inode, time_ns, seq) }.is_err() {
        slot.discard(BPF_RB_NO_WAKEUP);
        lost_count();
        return Err(Unreadable);
    }
    slot.submit(BPF_RB_NO_WAKEUP);
    count(counter::EMITTED);
    Ok(())
}

/// A name comes, goes or moves.
pub struct Entry {
    pub op: u8,
    pub detail: u32,
    pub time_ns: u64,
    /// The inode that is named; 0 if it is not made yet.
    pub inode: u64,
    /// The name, in its directory.
    pub dentry: u64,
    /// The new name of a rename; else 0.
    pub other: u64,
    pub dev: u32,
}

#[inline(never)]
pub fn entry_changes(entry: &Entry) -> Result<(), Unreadable> {
    if is_own() {
        return Ok(());
    }
    let dev = entry.dev;
    let parent: u64 = read(entry.dentry, at::dentry_parent())?;
    names::tell(parent, dev)?;
    if entry.other != 0 {
        names::tell(read(entry.other, at::dentry_parent())?, dev)?;
    }
    let inode = id_of(entry.inode, dev)?;
    let dir = id_of(read(parent, at::dentry_inode())?, dev)?;
    let (mut other_dir, mut victim) = (Inode::default(), Inode::default());
    if entry.other != 0 {
        let parent: u64 = read(entry.other, at::dentry_parent())?;
        other_dir = id_of(read(parent, at::dentry_inode())?, dev)?;
        victim = id_of(read(entry.other, at::dentry_inode())?, dev)?;
    }
    let seq = begin(entry.op, inode);
    let Some(mut slot) = VFS_EVENTS.reserve::<EntryEvent>(0) else { return lost() };
    let room = slot.as_mut_ptr();
    // SAFETY: the slot is as large as the event, and each member is written whole before it is submitted.
    let read = unsafe {
        let change = Change::of(entry.op, entry.detail);
        let filled = fill(&raw mut (*room).event, KIND_ENTRY, &change, inode, entry.time_ns, seq);
        (&raw mut (*room).dir).write(dir);
        (&raw mut (*room).other_dir).write(other_dir);
        (&raw mut (*room).victim).write(victim);
        let first = name_of(entry.dentry, &raw mut (*room).name);
        let second = name_of(entry.other, &raw mut (*room).other_name);
        first && second && filled.is_ok()
    };
    if !read {
        slot.discard(BPF_RB_NO_WAKEUP);
        lost_count();
        return Err(Unreadable);
    }
    slot.submit(BPF_RB_NO_WAKEUP);
    count(counter::EMITTED);
    Ok(())
}

/// Copies the name, with a 0 behind it; an empty one for no dentry.
///
/// # Safety
/// `room` is writable.
#[inline(always)]
pub unsafe fn name_of(dentry: u64, room: *mut [u8; NAME_BYTES]) -> bool {
    // SAFETY: by the caller's word it is writable.
    let room = unsafe { &mut *room };
    room[0] = 0;
    if dentry == 0 {
        return true;
    }
    let Ok(name) = read::<u64>(dentry, at::dentry_name()) else { return false };
    // SAFETY: the helper checks the address itself; what it copies ends with a 0.
    unsafe {
        bpf_probe_read_kernel_str(room.as_mut_ptr().cast(), NAME_BYTES as u32, name as *const c_void) >= 0
    }
}

/// Counts a change and, where somebody asks for it later, remembers it. Returns its number.
#[inline(always)]
pub fn begin(op: u8, inode: Inode) -> u64 {
    let seq = count(counter::SEEN);
    if at::ends() != 0 || at::syscalls() != 0 {
        let _ = BEGUN.insert(&bpf_get_current_pid_tgid(), &Begun { seq, inode, op: u64::from(op) }, 0);
    }
    seq
}

/// The event of a change, in place: the stack is small.
///
/// # Safety
/// `room` is writable.
#[inline(always)]
pub unsafe fn fill(
    room: *mut ChangeEvent,
    kind: u8,
    change: &Change,
    inode: Inode,
    time_ns: u64,
    seq: u64,
) -> Result<(), Unreadable> {
    let ids = bpf_get_current_pid_tgid();
    // SAFETY: the helpers have no preconditions.
    let (task, cgroup) = unsafe { (bpf_get_current_task(), bpf_get_current_cgroup_id()) };
    let leader: u64 = read(task, at::task_leader())?;
    let start_ns = read(leader, at::task_start())?;
    // SAFETY: by the caller's word it is writable, and each member is written; the helper checks the other address itself.
    unsafe {
        (&raw mut (*room).kind).write(kind);
        (&raw mut (*room).op).write(change.op);
        (&raw mut (*room).zero).write(0);
        (&raw mut (*room).detail).write(change.detail);
        (&raw mut (*room).seq).write(seq);
        (&raw mut (*room).time_ns).write(time_ns);
        (&raw mut (*room).inode).write(inode);
        (&raw mut (*room).offset).write(change.offset);
        (&raw mut (*room).length).write(change.length);
        (&raw mut (*room).cgroup).write(cgroup);
        (&raw mut (*room).process_start_ns).write(start_ns);
        (&raw mut (*room).pid).write((ids >> 32) as u32);
        (&raw mut (*room).tid).write(ids as u32);
        let comm = (leader + u64::from(at::task_comm())) as *const c_void;
        match bpf_probe_read_kernel((&raw mut (*room).comm).cast(), COMM_BYTES as u32, comm) {
            0 => Ok(()),
            _ => Err(Unreadable),
        }
    }
}

/// What this task began in the system call it is in.
#[inline(always)]
pub fn begun() -> Option<Begun> {
    // SAFETY: the entry is this task's own.
    unsafe { BEGUN.get(&bpf_get_current_pid_tgid()) }.copied()
}

/// The system call that a task was in is over.
#[inline(always)]
pub fn ended(result: i64) {
    let Some(begun) = begun() else { return };
    let _ = BEGUN.remove(&bpf_get_current_pid_tgid());
    if at::syscalls() != 0 && begun.op == u64::from(op::RENAME) {
        // Which inodes moved this rung does not know: all tell their names anew.
        count(counter::EPOCH);
    }
    if at::ends() == 0 {
        return;
    }
    let change = Change { op: 0, detail: 0, offset: result as u64, length: 0 };
    if let Some(mut slot) = VFS_EVENTS.reserve::<ChangeEvent>(0) {
        // SAFETY: the slot is as large as the event.
        match unsafe { fill(slot.as_mut_ptr(), KIND_END, &change, begun.inode, now(), begun.seq) } {
            Ok(()) => slot.submit(BPF_RB_NO_WAKEUP),
            Err(Unreadable) => slot.discard(BPF_RB_NO_WAKEUP),
        }
    }
}

#[inline(always)]
pub fn is_own() -> bool {
    (bpf_get_current_pid_tgid() >> 32) as u32 == at::own_pid()
}

#[inline(always)]
pub fn lost() -> Result<(), Unreadable> {
    lost_count();
    Ok(())
}

#[inline(always)]
fn lost_count() {
    count(counter::LOST);
}

/// Adds one and returns what was there before.
#[inline(always)]
pub fn count(index: u32) -> u64 {
    let Some(slot) = VFS_COUNTERS.get_ptr_mut(index) else { return 0 };
    // SAFETY: the array's value is 8 bytes, aligned, and lives as long as the map; all users go through atomics.
    // Not relaxed: LLVM 22 makes an add without a fetch of that, and the value returned is then wrong.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(slot, 1) }
}

/// See [`counter::EPOCH`].
#[inline(always)]
pub fn epoch() -> u64 {
    VFS_COUNTERS.get(counter::EPOCH).copied().unwrap_or(0)
}
