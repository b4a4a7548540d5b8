//! Where the kernel maps the memory of a page: found by looking for a number that was just written.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use tracer_common::OP_WRITE;
use tracer_common::calibration::{CONSTANT, COUNT, FOUND, MAGIC, SEARCHED};

use crate::kernel::{self, Any, BioVec, Memory, Unreadable};
use crate::payload::address_of;
use crate::report::BPF_F_MMAPABLE;
use crate::settings as at;

#[map]
static CALIBRATION: Array<u64> = Array::with_max_entries(COUNT, BPF_F_MMAPABLE);

/// The constants tried: multiples of 1 GiB, as both places the kernel chooses at random are.
const GIB: u64 = 1 << 30;
const CONSTANTS_TRIED: u32 = 1 << 14;

/// Finds the constant: the first segment of a write to the disk of the self-test begins with a number that is nowhere else
/// in memory.
#[inline(always)]
pub fn calibrate(request: u64) -> Result<(), Unreadable> {
    if kernel::request_op::<Any>(request)? != Some(OP_WRITE) {
        return Ok(());
    }
    let bio: u64 = Any::read(request, at::request_bio())?;
    let BioVec { page, offset, .. } =
        kernel::bio_vec(Any::read(bio, at::bio_vecs())?, Any::read(bio, at::bio_index())?)?;
    // The queue lies in the map of all memory (a bio may be on a stack), not too far from the page.
    let near = (Any::read::<u64>(request, at::request_q())? & !(GIB - 1))
        .wrapping_sub(address_of(page & !(GIB - 1), 0));
    let mut search = Search {
        page,
        offset: u64::from(offset),
        constant: near.wrapping_sub(u64::from(CONSTANTS_TRIED / 2) * GIB),
        magic: !calibration(MAGIC),
        found: false,
    };
    // SAFETY: the callback has bpf_loop's signature and `search` outlives the call.
    unsafe { bpf_loop(CONSTANTS_TRIED, try_constant as *mut c_void, (&raw mut search).cast(), 0) };
    set_calibration(SEARCHED, calibration(SEARCHED) + 1);
    if search.found {
        set_calibration(FOUND, calibration(FOUND) + 1);
        set_calibration(CONSTANT, search.constant);
    }
    Ok(())
}

struct Search {
    page: u64,
    offset: u64,
    constant: u64,
    magic: u64,
    found: bool,
}

unsafe extern "C" fn try_constant(_index: u64, search: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on the pointer that calibrate gave it.
    let search = unsafe { &mut *search.cast::<Search>() };
    let address = address_of(search.page, search.constant).wrapping_add(search.offset);
    search.found = Any::read::<u64>(address, 0).is_ok_and(|number| number == search.magic);
    if search.found {
        return 1;
    }
    search.constant = search.constant.wrapping_add(GIB);
    0
}

#[inline(always)]
fn calibration(index: u32) -> u64 {
    CALIBRATION.get(index).copied().unwrap_or(0)
}

#[inline(always)]
fn set_calibration(index: u32, value: u64) {
    if let Some(slot) = CALIBRATION.get_ptr_mut(index) {
        // SAFETY: the array's value is 8 bytes, aligned; nobody writes it at the same time.
        unsafe { slot.write_volatile(value) };
    }
}
