use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, RingBuf};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: usize = 4096;

/// Bytes since the ring was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    pub read: u64,
    pub filled: u64,
}

/// The pages in which reader and kernel say where they are in a ring (the first two of its map), for looking only.
pub struct RingPositions {
    pages: NonNull<AtomicU64>,
}

// SAFETY: the memory is only read, through atomics.
unsafe impl Send for RingPositions {}

impl RingPositions {
    pub fn new(ring: &RingBuf<MapData>) -> std::io::Result<RingPositions> {
        let length = NonZeroUsize::new(2 * PAGE).ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let pages =
            unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, ring.as_fd(), 0) }?;
        Ok(RingPositions { pages: pages.cast() })
    }

    pub fn get(&self) -> Positions {
        let load = |page: usize| {
            // SAFETY: both pages are mapped as long as self, and begin with the position.
            unsafe { self.pages.byte_add(page * PAGE).as_ref() }.load(Ordering::Acquire)
        };
        Positions { read: load(0), filled: load(1) }
    }
}

impl Drop for RingPositions {
    fn drop(&mut self) {
        // SAFETY: this is the very mapping that `new` made; no reference outlives self.
        let unmapped = unsafe { munmap(self.pages.cast(), 2 * PAGE) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}
