//! From a hook to the ring, or, when the ring is full, to the dirty bitmap. Every submission is counted in both cases.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use aya_ebpf::programs::TracePointContext;
use tracer_common::{
    BlockEvent, COMPLETE_RANGE, COMPLETE_WHOLE, KIND_COMPLETE, KIND_SUBMIT, OP_DISCARD, OP_SECURE_ERASE,
    OP_WRITE, counter, session,
};

use crate::kernel::{self, Any, Extent, Memory, Unreadable};
use crate::payload;
use crate::settings as at;

/// The range of a completion that can't say one.
const NOWHERE: Extent = Extent { sector: 0, bytes: 0 };
pub const BPF_F_MMAPABLE: u32 = 1 << 10;
pub const BPF_RB_NO_WAKEUP: u64 = 1;
/// More bios than a request holds (the kernel's cap on discard ranges is 65535, NVMe's 256).
const BIOS_MAX: u32 = 1 << 16;

// Sizes of EVENTS, DIRTY and LEDGER are set by the loader.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 16, 0);
#[map]
static DIRTY: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(counter::COUNT, BPF_F_MMAPABLE);
/// For user space alone, which keeps here what has to outlive it: what it owes to the journal …
#[map]
static LEDGER: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// … and what these probes are (`tracer_common::session`).
#[map]
static SESSION: Array<u64> = Array::with_max_entries(session::COUNT, BPF_F_MMAPABLE);
/// The kernel's numbers of the disk and its partitions, for the tracepoint rung, which shows either.
#[map]
static FORMAT_DEVS: HashMap<u32, u8> = HashMap::with_max_entries(1024, 0);

#[inline(always)]
pub fn request_issued<M: Memory>(request: u64) -> Result<(), Unreadable> {
    let Some(op) = kernel::request_op::<M>(request)? else { return Ok(()) };
    if op == OP_DISCARD || op == OP_SECURE_ERASE {
        return merged_discard_issued(request, op);
    }
    let extent = kernel::request_extent::<M>(request)?;
    if at::payload() != 0 && op == OP_WRITE {
        return payload::submit::<M>(extent, request, M::read(request, at::request_bio())?, true);
    }
    submit(extent, request, op, 0);
    Ok(())
}

/// NVMe merges discards that do not touch into one request: its own range says nothing, the bios' ranges do.
#[inline(always)]
fn merged_discard_issued(request: u64, op: u8) -> Result<(), Unreadable> {
    let mut walk =
        BioWalk { request, bio: Any::read(request, at::request_bio())?, op, part: 0, failed: false };
    // SAFETY: the callback has bpf_loop's signature and `walk` outlives the call.
    unsafe { bpf_loop(BIOS_MAX, next_bio as *mut c_void, (&raw mut walk).cast(), 0) };
    if walk.failed { Err(Unreadable) } else { Ok(()) }
}

struct BioWalk {
    request: u64,
    bio: u64,
    op: u8,
    part: u16,
    failed: bool,
}

unsafe extern "C" fn next_bio(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on the pointer that merged_discard_issued gave it.
    let walk = unsafe { &mut *walk.cast::<BioWalk>() };
    if walk.bio == 0 {
        return 1;
    }
    let next = kernel::bio_extent::<Any>(walk.bio).and_then(|extent| {
        submit(extent, walk.request, walk.op, walk.part);
        Any::read(walk.bio, at::bio_next())
    });
    walk.part = walk.part.saturating_add(1);
    match next {
        Ok(next) => {
            walk.bio = next;
            0
        }
        Err(Unreadable) => {
            walk.failed = true;
            1
        }
    }
}

/// Called before the request is advanced: its sector is where this completion starts.
#[inline(always)]
pub fn request_completed<M: Memory>(request: u64, error: u8, bytes: u32) -> Result<(), Unreadable> {
    // The second completion after a flush sequence has no bytes and says nothing.
    if bytes == 0 {
        return Ok(());
    }
    let Some(op) = kernel::request_op::<M>(request)? else { return Ok(()) };
    let whole = kernel::request_extent::<M>(request)?;
    let part = if bytes >= whole.bytes { COMPLETE_WHOLE } else { COMPLETE_RANGE };
    // A merged discard's own range may lie off the volume though one of its bios was on it.
    let merged = op == OP_DISCARD || op == OP_SECURE_ERASE;
    match (Extent { sector: whole.sector, bytes }).on_volume() {
        Some(extent) => complete(extent, request, op, part, u32::from(error)),
        None if merged => complete(NOWHERE, request, op, part, u32::from(error)),
        None => {}
    }
    Ok(())
}

#[inline(always)]
pub fn bio_queued<M: Memory>(bio: u64) -> Result<(), Unreadable> {
    let Some(op) = kernel::bio_op::<M>(bio)? else { return Ok(()) };
    let extent = kernel::bio_extent::<M>(bio)?;
    if at::payload() != 0 && op == OP_WRITE {
        return payload::submit::<M>(extent, bio, bio, false);
    }
    submit(extent, bio, op, 0);
    Ok(())
}

/// The bio's range is no longer the one it was queued with (dm splits it): the key says which one is done.
#[inline(always)]
pub fn bio_completed<M: Memory>(bio: u64) -> Result<(), Unreadable> {
    let Some(op) = kernel::bio_op::<M>(bio)? else { return Ok(()) };
    let error: u8 = M::read(bio, at::bio_status())?;
    complete(NOWHERE, bio, op, COMPLETE_WHOLE, u32::from(error));
    Ok(())
}

#[inline(always)]
pub fn formatted_submit(ctx: &TracePointContext) -> Result<(), Unreadable> {
    let Some((extent, op)) = formatted(ctx, at::format_queue_rwbs())? else { return Ok(()) };
    submit(extent, 0, op, 0);
    Ok(())
}

#[inline(always)]
pub fn formatted_complete(ctx: &TracePointContext) -> Result<(), Unreadable> {
    let Some((extent, op)) = formatted(ctx, at::format_complete_rwbs())? else { return Ok(()) };
    let error: i32 = field(ctx, at::format_complete_error())?;
    if let Some(extent) = extent.on_volume() {
        complete(extent, 0, op, COMPLETE_RANGE, error.unsigned_abs());
    }
    Ok(())
}

/// Extent and operation of a formatted tracepoint. `rwbs` has no letter for write-zeroes before 6.16 ('N'), so all
/// that is not read or flush counts as a write: the collector reads the range and finds the zeros itself.
#[inline(always)]
fn formatted(ctx: &TracePointContext, rwbs_offset: u32) -> Result<Option<(Extent, u8)>, Unreadable> {
    let dev: u32 = field(ctx, at::format_dev())?;
    // SAFETY: nothing removes entries while the programs are attached.
    if unsafe { FORMAT_DEVS.get(&dev) }.is_none() {
        return Ok(None);
    }
    let sectors: u32 = field(ctx, at::format_nr_sector())?;
    let rwbs: [u8; 2] = field(ctx, rwbs_offset)?;
    // A leading F is a flush before the operation.
    let letter = if rwbs[0] == b'F' { rwbs[1] } else { rwbs[0] };
    if letter == b'R' || letter == b'F' || letter == 0 || sectors == 0 {
        return Ok(None);
    }
    let op = if letter == b'D' { OP_DISCARD } else { OP_WRITE };
    let sector: u64 = field(ctx, at::format_sector())?;
    Ok(Some((Extent { sector, bytes: sectors << 9 }, op)))
}

#[inline(always)]
fn field<T>(ctx: &TracePointContext, offset: u32) -> Result<T, Unreadable> {
    // SAFETY: the helper behind read_at checks the address itself.
    unsafe { ctx.read_at(offset as usize) }.map_err(|_| Unreadable)
}

#[inline(always)]
pub fn submit(extent: Extent, key: u64, op: u8, part: u16) {
    let Some(extent) = extent.on_volume() else { return };
    emit_or_mark(extent, key, op, count(counter::SEEN), part);
}

/// Reports the submission that was counted as number `seq`.
#[inline(always)]
pub fn emit_or_mark(extent: Extent, key: u64, op: u8, seq: u64, part: u16) {
    if emit(extent, key, op, KIND_SUBMIT, seq, part, 0) {
        count(counter::EMITTED);
    } else {
        mark_dirty(extent);
        count(counter::MARKED);
    }
}

#[inline(always)]
fn complete(extent: Extent, key: u64, op: u8, part: u16, error: u32) {
    count(counter::COMPLETE_SEEN);
    if !emit(extent, key, op, KIND_COMPLETE, 0, part, error) {
        count(counter::COMPLETE_LOST);
    }
}

#[inline(always)]
pub fn emit(extent: Extent, key: u64, op: u8, kind: u8, seq: u64, part: u16, error: u32) -> bool {
    let event = event(extent, key, op, kind, seq, part, error);
    let Some(mut slot) = EVENTS.reserve::<BlockEvent>(0) else { return false };
    slot.write(event);
    slot.submit(BPF_RB_NO_WAKEUP);
    true
}

/// To be made before room is taken in the ring: then what was acknowledged before its time stands before it in the ring.
#[inline(always)]
pub fn event(extent: Extent, key: u64, op: u8, kind: u8, seq: u64, part: u16, error: u32) -> BlockEvent {
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    BlockEvent {
        seq,
        time_ns,
        sector: extent.sector,
        key,
        bytes: extent.bytes,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        error,
        kind,
        op,
        part,
    }
}

/// Adds one and returns what was there before.
#[inline(always)]
pub fn count(index: u32) -> u64 {
    let Some(slot) = COUNTERS.get_ptr_mut(index) else { return 0 };
    // SAFETY: the array's value is 8 bytes, aligned, and lives as long as the map; all users go through atomics.
    // Not relaxed: LLVM 22 makes an add without a fetch of that, and the value returned is then wrong.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(slot, 1) }
}

struct DirtyWalk {
    word: u64,
    first: u64,
    last: u64,
}

/// Sets the bits of all granules that the extent touches.
#[inline(always)]
pub fn mark_dirty(extent: Extent) {
    let shift = at::granule_shift() & 63;
    let start = extent.sector - at::volume_start();
    let first = start >> shift;
    let last = (start + u64::from(extent.bytes >> 9) - 1) >> shift;
    let mut walk = DirtyWalk { word: first >> 6, first, last };
    let words = (last >> 6) - (first >> 6) + 1;
    // SAFETY: the callback has bpf_loop's signature and `walk` outlives the call.
    unsafe { bpf_loop(words as u32, mark_word as *mut c_void, (&raw mut walk).cast(), 0) };
}

unsafe extern "C" fn mark_word(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on the pointer that mark_dirty gave it.
    let walk = unsafe { &mut *walk.cast::<DirtyWalk>() };
    let from = walk.first.max(walk.word << 6) & 63;
    let to = walk.last.min((walk.word << 6) | 63) & 63;
    let mask = (u64::MAX >> (63 - to)) & (u64::MAX << from);
    if let Some(slot) = DIRTY.get_ptr_mut(walk.word as u32) {
        // SAFETY: as in `count`.
        unsafe { atomic_or::<u64, u64, { AtomicOrdering::Relaxed }>(slot, mask) };
    }
    walk.word += 1;
    0
}
