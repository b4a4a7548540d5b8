//! Tells where an inode hangs, once for each that comes up: by walking up the directory entries at the time of the event, so
//! that a path is known also of what is gone when somebody asks.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracer_common::vfs::{Inode, KIND_NAME, NameEvent, counter};

use crate::kernel::{Unreadable, id_of, read};
use crate::report::{BPF_RB_NO_WAKEUP, VFS_EVENTS, count, epoch, name_of, now};
use crate::settings as at;

/// Directories above each other.
const DEPTH_MAX: u32 = 256;

/// Inodes whose place was told, and in which epoch.
#[map]
static TOLD: LruHashMap<Inode, u64> = LruHashMap::with_max_entries(32768, 0);

struct Walk {
    dentry: u64,
    epoch: u64,
    dev: u32,
    failed: bool,
}

/// Tells of the entry and of all above it, up to the first that was told of.
#[inline(never)]
pub fn tell(dentry: u64, dev: u32) -> Result<(), Unreadable> {
    if dentry == 0 {
        return Ok(());
    }
    let mut walk = Walk { dentry, epoch: epoch(), dev, failed: false };
    // SAFETY: the callback has bpf_loop's signature and `walk` outlives the call.
    unsafe { bpf_loop(DEPTH_MAX, next as *mut c_void, (&raw mut walk).cast(), 0) };
    if walk.failed { Err(Unreadable) } else { Ok(()) }
}

unsafe extern "C" fn next(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on the pointer that `tell` gave it.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    match step(walk) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(Unreadable) => {
            walk.failed = true;
            1
        }
    }
}

/// Says whether to go on with the entry above.
#[inline(always)]
fn step(walk: &mut Walk) -> Result<bool, Unreadable> {
    let inode: u64 = read(walk.dentry, at::dentry_inode())?;
    let parent: u64 = read(walk.dentry, at::dentry_parent())?;
    let id = id_of(inode, walk.dev)?;
    // SAFETY: a value of another processor's is as good.
    if id.number == 0 || unsafe { TOLD.get(&id) }.copied() == Some(walk.epoch) {
        return Ok(id.number == 0 && parent != walk.dentry && up(walk, parent));
    }
    let above = id_of(read(parent, at::dentry_inode())?, walk.dev)?;
    let Some(mut slot) = VFS_EVENTS.reserve::<NameEvent>(0) else {
        count(counter::NAMES_LOST);
        return Ok(false);
    };
    let room = slot.as_mut_ptr();
    // SAFETY: the slot is as large as the event, and each member is written whole before it is submitted.
    let named = unsafe {
        (&raw mut (*room).kind).write(KIND_NAME);
        (&raw mut (*room).zero).write([0; 7]);
        (&raw mut (*room).time_ns).write(now());
        (&raw mut (*room).inode).write(id);
        (&raw mut (*room).parent).write(above);
        name_of(walk.dentry, &raw mut (*room).name)
    };
    if !named {
        slot.discard(BPF_RB_NO_WAKEUP);
        return Err(Unreadable);
    }
    slot.submit(BPF_RB_NO_WAKEUP);
    let _ = TOLD.insert(&id, &walk.epoch, 0);
    Ok(parent != walk.dentry && up(walk, parent))
}

#[inline(always)]
fn up(walk: &mut Walk, parent: u64) -> bool {
    walk.dentry = parent;
    true
}

/// The inode gets another name: the next event that comes up with it tells it anew.
#[inline(always)]
pub fn forget(id: Inode) {
    let _ = TOLD.remove(&id);
}
