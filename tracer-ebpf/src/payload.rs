//! The bytes of a write, copied into the ring at its submission: every piece of every segment of every bio.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel};
use tracer_common::{
    KIND_PIECE, KIND_SUBMIT_PAYLOAD, KIND_WRITE, OP_WRITE, PIECE_BYTES_MAX, PayloadEvent, counter,
};

use crate::kernel::{Any, BioVec, Extent, Memory, Unreadable, bio_vec};
use crate::report::{self, BPF_RB_NO_WAKEUP, EVENTS};
use crate::settings as at;

/// More pieces than a ring of 2 GiB, the largest there is, holds.
const PIECES_MAX: u32 = 1 << 19;
/// `bpf_ringbuf_query`: bytes that wait for the reader.
const BPF_RB_AVAIL_DATA: u64 = 0;
/// Of the ring, as a shift: this much of it is left to events without payload.
const LEFT_TO_EXTENTS: u64 = 4;

/// Reports a write whose first bio is `bio` and whose later ones, if `chained`, are linked to it.
#[inline(always)]
pub fn submit<M: Memory>(extent: Extent, key: u64, bio: u64, chained: bool) -> Result<(), Unreadable> {
    let Some(on_volume) = extent.on_volume() else { return Ok(()) };
    // What the hardware encrypts on its way to the disk can't be compared with the disk, nor restored to it.
    let encrypted = at::bio_crypt() != 0 && M::read::<u64>(bio, at::bio_crypt())? != 0;
    if encrypted || !has_room(extent.bytes) {
        report::submit(extent, key, OP_WRITE, 0);
        return Ok(());
    }
    let mut walk = Walk::begin::<M>(extent, key, bio, chained)?;
    let first = walk.piece()?;
    walk.seq = report::count(counter::SEEN);
    if first.extent.bytes == extent.bytes {
        if walk.emit(KIND_WRITE, first) {
            report::count(counter::PAYLOAD);
            report::count(counter::EMITTED);
        } else {
            report::emit_or_mark(on_volume, key, OP_WRITE, walk.seq, 0);
        }
        return Ok(());
    }
    if !report::emit(on_volume, key, OP_WRITE, KIND_SUBMIT_PAYLOAD, walk.seq, 0, 0) {
        report::mark_dirty(on_volume);
        report::count(counter::MARKED);
        return Ok(());
    }
    report::count(counter::PAYLOAD);
    // SAFETY: the callback has bpf_loop's signature and `walk` outlives the call.
    unsafe { bpf_loop(PIECES_MAX, next_piece as *mut c_void, (&raw mut walk).cast(), 0) };
    if walk.left != 0 {
        report::mark_dirty(on_volume);
        report::count(counter::PAYLOAD_LOST);
    }
    // Last, so that a sum that is right says that all of it is in the ring or in the bitmap.
    report::count(counter::EMITTED);
    Ok(())
}

#[inline(always)]
fn has_room(bytes: u32) -> bool {
    let slot = size_of::<PayloadEvent>() as u64 + 8;
    let wanted = (u64::from(bytes) / PIECE_BYTES_MAX as u64 + 2) * slot;
    let ring = at::ring_bytes();
    EVENTS.query(BPF_RB_AVAIL_DATA) + wanted <= ring - (ring >> LEFT_TO_EXTENTS)
}

#[inline(always)]
pub fn address_of(page: u64, constant: u64) -> u64 {
    page.wrapping_mul(at::page_factor()).wrapping_add(constant)
}

/// Where the walk over a write's memory is.
struct Walk {
    key: u64,
    seq: u64,
    /// The current bio; 0 once the last one is done.
    bio: u64,
    /// Its array of segments.
    vecs: u64,
    /// Number of the current segment, how much of it is done, and what is left of the bio.
    index: u32,
    done: u32,
    left_in_bio: u32,
    /// Left of the write.
    left: u32,
    sector: u64,
    chained: bool,
}

/// Bytes of a write that lie in one segment, a [`PayloadEvent`]'s worth of them at most.
#[derive(Clone, Copy)]
struct Piece {
    extent: Extent,
    address: u64,
    ends_segment: bool,
}

impl Walk {
    #[inline(always)]
    fn begin<M: Memory>(extent: Extent, key: u64, bio: u64, chained: bool) -> Result<Walk, Unreadable> {
        let mut walk = Walk {
            key,
            seq: 0,
            bio: 0,
            vecs: 0,
            index: 0,
            done: 0,
            left_in_bio: 0,
            left: extent.bytes,
            sector: extent.sector,
            chained,
        };
        walk.enter::<M>(bio)?;
        Ok(walk)
    }

    #[inline(always)]
    fn enter<M: Memory>(&mut self, bio: u64) -> Result<(), Unreadable> {
        self.bio = bio;
        // Not typed: the verifier would lose it at the first index it does not know.
        self.vecs = Any::read(bio, at::bio_vecs())?;
        self.index = M::read(bio, at::bio_index())?;
        self.done = M::read(bio, at::bio_done())?;
        self.left_in_bio = M::read(bio, at::bio_size())?;
        Ok(())
    }

    #[inline(always)]
    fn piece(&self) -> Result<Piece, Unreadable> {
        let BioVec { page, len, offset } = bio_vec(self.vecs, self.index)?;
        // A segment of several pages is one run of addresses there, too.
        let start = u64::from(offset) + u64::from(self.done);
        let in_segment = len.wrapping_sub(self.done);
        let bytes = in_segment.min(self.left_in_bio).min(self.left).min(PIECE_BYTES_MAX as u32);
        Ok(Piece {
            extent: Extent { sector: self.sector, bytes },
            address: address_of(page, at::page_constant()).wrapping_add(start),
            ends_segment: bytes == in_segment,
        })
    }

    #[inline(always)]
    fn emit(&self, kind: u8, piece: Piece) -> bool {
        let bytes = piece.extent.bytes;
        let event = report::event(piece.extent, self.key, OP_WRITE, kind, self.seq, 0, 0);
        let Some(mut slot) = EVENTS.reserve::<PayloadEvent>(0) else { return false };
        let slot_ptr = slot.as_mut_ptr();
        // SAFETY: the slot is a PayloadEvent's size; what is not written of it nobody reads.
        let copied = unsafe {
            (&raw mut (*slot_ptr).event).write(event);
            // The verifier has to see the bound: LLVM would drop it, knowing it already.
            let len = read_volatile(&raw const bytes).min(PIECE_BYTES_MAX as u32);
            bpf_probe_read_kernel((&raw mut (*slot_ptr).data).cast(), len, piece.address as *const c_void)
        };
        if copied != 0 {
            slot.discard(BPF_RB_NO_WAKEUP);
            return false;
        }
        slot.submit(BPF_RB_NO_WAKEUP);
        true
    }

    /// To behind the piece.
    #[inline(always)]
    fn advance(&mut self, piece: Piece) -> Result<(), Unreadable> {
        let bytes = piece.extent.bytes;
        self.sector += u64::from(bytes) >> 9;
        self.left = self.left.wrapping_sub(bytes);
        self.left_in_bio = self.left_in_bio.wrapping_sub(bytes);
        if piece.ends_segment {
            self.index += 1;
            self.done = 0;
        } else {
            self.done += bytes;
        }
        if self.left_in_bio == 0 && self.left != 0 {
            let next: u64 = if self.chained { Any::read(self.bio, at::bio_next())? } else { 0 };
            self.bio = next;
            if next != 0 {
                self.enter::<Any>(next)?;
            }
        }
        Ok(())
    }
}

unsafe extern "C" fn next_piece(_index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on the pointer that submit gave it.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    if walk.left == 0 || walk.bio == 0 {
        return 1;
    }
    let Ok(piece) = walk.piece() else { return 1 };
    if piece.extent.bytes == 0 || !walk.emit(KIND_PIECE, piece) {
        return 1;
    }
    match walk.advance(piece) {
        Ok(()) => 0,
        Err(Unreadable) => 1,
    }
}
