//! Reading the kernel's structures at the offsets the loader found.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use tracer_common::{OP_DRIVER_FIRST, SECTOR_BYTES};

use crate::settings as at;

/// Kernel memory could not be read.
pub struct Unreadable;

/// How the kernel's structures are read.
pub trait Memory {
    /// The member at `offset` of the structure at `base`.
    fn read<T: Copy>(base: u64, offset: u32) -> Result<T, Unreadable>;
}

/// By a helper, which takes any address: works in every program, at some 25 ns a member.
pub struct Any;

impl Memory for Any {
    #[inline(always)]
    fn read<T: Copy>(base: u64, offset: u32) -> Result<T, Unreadable> {
        let address = (base + u64::from(offset)) as *const T;
        // SAFETY: the helper checks the address itself and fails on one that is not readable.
        unsafe { bpf_probe_read_kernel(address) }.map_err(|_| Unreadable)
    }
}

/// By a plain load, where the verifier knows of the type of what `base` points to: only from the arguments of a tp_btf
/// program on, from pointer to pointer, and never by an offset that it does not know. A load that faults reads as 0.
pub struct Typed;

impl Memory for Typed {
    #[inline(always)]
    fn read<T: Copy>(base: u64, offset: u32) -> Result<T, Unreadable> {
        let address = (base + u64::from(offset)) as *const T;
        // SAFETY: the verifier lets only such loads pass that are harmless.
        Ok(unsafe { address.read_volatile() })
    }
}

/// A contiguous piece of the disk and what is done to it.
#[derive(Clone, Copy)]
pub struct Extent {
    pub sector: u64,
    pub bytes: u32,
}

impl Extent {
    /// The part that lies on the volume.
    #[inline(always)]
    pub fn on_volume(self) -> Option<Extent> {
        let sectors = u64::from(self.bytes) / SECTOR_BYTES;
        let start = self.sector.max(at::volume_start());
        let end = (self.sector + sectors).min(at::volume_end());
        if start >= end {
            return None;
        }
        Some(Extent { sector: start, bytes: ((end - start) * SECTOR_BYTES) as u32 })
    }
}

/// The operations that change a device: all but reads, flushes, zone management and driver-private ones.
#[inline(always)]
pub fn changes_device(op: u8) -> bool {
    use tracer_common::{OP_DISCARD, OP_SECURE_ERASE, OP_WRITE, OP_WRITE_ZEROES, OP_ZONE_APPEND};
    op < OP_DRIVER_FIRST
        && (op == OP_WRITE
            || op == OP_DISCARD
            || op == OP_SECURE_ERASE
            || op == OP_ZONE_APPEND
            || op == OP_WRITE_ZEROES)
}

/// The kernel's `struct bio_vec`; the loader has checked that it is this.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BioVec {
    pub page: u64,
    pub len: u32,
    pub offset: u32,
}

/// Element `index` of the array at `vecs`.
#[inline(always)]
pub fn bio_vec(vecs: u64, index: u32) -> Result<BioVec, Unreadable> {
    Any::read(vecs + u64::from(index) * size_of::<BioVec>() as u64, 0)
}

#[inline(always)]
fn disk_is_protected<M: Memory>(disk: u64) -> Result<bool, Unreadable> {
    if disk == 0 {
        return Ok(false);
    }
    let major: u32 = M::read(disk, at::gendisk_major())?;
    let minor: u32 = M::read(disk, at::gendisk_first_minor())?;
    Ok(((major << 20) | minor) == at::disk_dev())
}

/// The operation, if the request is one of the protected disk and changes it.
#[inline(always)]
pub fn request_op<M: Memory>(request: u64) -> Result<Option<u8>, Unreadable> {
    let op = M::read::<u32>(request, at::request_cmd_flags())? as u8;
    if !changes_device(op) {
        return Ok(None);
    }
    let queue: u64 = M::read(request, at::request_q())?;
    let disk: u64 = M::read(queue, at::queue_disk())?;
    Ok(if disk_is_protected::<M>(disk)? { Some(op) } else { None })
}

#[inline(always)]
pub fn request_extent<M: Memory>(request: u64) -> Result<Extent, Unreadable> {
    Ok(Extent {
        sector: M::read(request, at::request_sector())?,
        bytes: M::read(request, at::request_data_len())?,
    })
}

/// The operation, if the bio is one to the protected disk and changes it.
#[inline(always)]
pub fn bio_op<M: Memory>(bio: u64) -> Result<Option<u8>, Unreadable> {
    let op = M::read::<u32>(bio, at::bio_opf())? as u8;
    if !changes_device(op) {
        return Ok(None);
    }
    let bdev: u64 = M::read(bio, at::bio_bdev())?;
    if bdev == 0 {
        return Ok(None);
    }
    let disk: u64 = M::read(bdev, at::bdev_disk())?;
    Ok(if disk_is_protected::<M>(disk)? { Some(op) } else { None })
}

#[inline(always)]
pub fn bio_extent<M: Memory>(bio: u64) -> Result<Extent, Unreadable> {
    Ok(Extent { sector: M::read(bio, at::bio_sector())?, bytes: M::read(bio, at::bio_size())? })
}
