use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::capture::bitmap::Words;

/// A BPF array of u64 (BPF_F_MMAPABLE) as shared memory: both sides use it through atomics.
pub struct MappedArray {
    /// The loader needs the map's descriptor until the programs that use it are loaded.
    _map: MapData,
    words: NonNull<AtomicU64>,
    len: usize,
    mapped_bytes: usize,
}

// SAFETY: the memory is only touched through atomics.
unsafe impl Send for MappedArray {}

impl MappedArray {
    /// `map` is an array of `len` values of 8 bytes, which the kernel lays out without holes.
    pub fn new(map: MapData, len: usize) -> std::io::Result<MappedArray> {
        let mapped_bytes = (len * size_of::<u64>()).next_multiple_of(4096);
        let length = NonZeroUsize::new(mapped_bytes).ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let address = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd(),
                0,
            )
        }?;
        Ok(MappedArray { _map: map, words: address.cast(), len, mapped_bytes })
    }

    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is at least `len` words, page-aligned, zero-initialised by the kernel, and lives as
        // long as self.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }

    pub fn set(&self, index: u32, value: u64) {
        self.words()[index as usize].store(value, Ordering::Release);
    }

    pub fn get(&self, index: u32) -> u64 {
        self.words().get(index as usize).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

impl Words for MappedArray {
    type Word = AtomicU64;

    fn words(&self) -> &[AtomicU64] {
        self.words()
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: this is the very mapping that `new` made; no reference outlives self.
        let unmapped = unsafe { munmap(self.words.cast(), self.mapped_bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}
