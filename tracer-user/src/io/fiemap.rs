//! Where a file lies on its device, by FIEMAP.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const EXTENTS_A_CALL: usize = 128;
const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_HEADER_BYTES: usize = 32;

/// As FIEMAP tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Extent {
    /// In the file, in bytes.
    pub offset: u64,
    /// On the device, in bytes.
    pub physical: u64,
    pub length: u64,
    /// FIEMAP_EXTENT_*
    pub flags: u32,
}

impl Extent {
    const LAST: u32 = 0x1;
    const UNKNOWN: u32 = 0x2;
    const DELALLOC: u32 = 0x4;
    const UNWRITTEN: u32 = 0x800;
    const MERGED: u32 = 0x1000;
    const SHARED: u32 = 0x2000;

    pub fn is_last(&self) -> bool {
        self.flags & Extent::LAST != 0
    }

    /// It has no blocks yet.
    pub fn is_unsettled(&self) -> bool {
        self.flags & (Extent::DELALLOC | Extent::UNKNOWN) != 0
    }

    /// Reads as zeros.
    pub fn is_unwritten(&self) -> bool {
        self.flags & Extent::UNWRITTEN != 0
    }

    /// Its bytes are those of the device, from `physical` on: nothing is encoded, inline or not aligned.
    pub fn is_plain(&self) -> bool {
        self.flags & !(Extent::LAST | Extent::UNWRITTEN | Extent::MERGED | Extent::SHARED) == 0
    }
}

/// `struct fiemap` with room for extents.
#[repr(C)]
pub struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [RawExtent; EXTENTS_A_CALL],
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const _: () =
    assert!(size_of::<RawExtent>() == 56 && size_of::<Fiemap>() == FIEMAP_HEADER_BYTES + 56 * EXTENTS_A_CALL);

nix::ioctl_readwrite_bad!(fiemap, nix::request_code_readwrite!(b'f', 11, FIEMAP_HEADER_BYTES), Fiemap);
nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
// `struct fsxattr`; the first is its flags.
nix::ioctl_read!(get_extended_flags, b'X', 31, [u32; 7]);

/// The extents, in the order of the file, and whether there are more than `extents_max`. `settled` waits until blocks are
/// allocated and written.
pub fn extents_of(file: &File, settled: bool, extents_max: usize) -> io::Result<(Vec<Extent>, bool)> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut map = Fiemap {
        start: 0,
        length: u64::MAX,
        flags: if settled { FIEMAP_FLAG_SYNC } else { 0 },
        mapped: 0,
        count: EXTENTS_A_CALL as u32,
        reserved: 0,
        extents: [RawExtent::default(); EXTENTS_A_CALL],
    };
    loop {
        // SAFETY: the structure has room for as many extents as its `count` says.
        unsafe { fiemap(file.as_raw_fd(), &raw mut map) }?;
        let mapped = (map.mapped as usize).min(EXTENTS_A_CALL);
        extents.extend(map.extents[..mapped].iter().map(|raw| Extent {
            offset: raw.logical,
            physical: raw.physical,
            length: raw.length,
            flags: raw.flags,
        }));
        let Some(last) = extents.last() else { return Ok((extents, false)) };
        if mapped < EXTENTS_A_CALL || last.is_last() {
            return Ok((extents, false));
        }
        map.start = last.offset.saturating_add(last.length);
        map.length = u64::MAX - map.start;
        if extents.len() >= extents_max {
            extents.truncate(extents_max);
            return Ok((extents, true));
        }
    }
}

/// Whether what the device holds at its extents is what the file holds: not so where the data goes through the file system's
/// log, is encrypted, compressed, kept in the inode, or on another device of the file system.
pub fn is_stored_plainly(file: &File) -> io::Result<bool> {
    const COMPRESSED: libc::c_long = 0x4;
    const ENCRYPTED: libc::c_long = 0x800;
    const JOURNALED: libc::c_long = 0x4000;
    const INLINE: libc::c_long = 0x1000_0000;
    let mut flags: libc::c_long = 0;
    // SAFETY: the call stores an int (though its number says long) into what has room for a long.
    unsafe { get_flags(file.as_raw_fd(), &raw mut flags) }?;
    const REALTIME: u32 = 0x1;
    let mut extended = [0; 7];
    // SAFETY: the call stores a struct fsxattr, which is 28 bytes of integers.
    unsafe { get_extended_flags(file.as_raw_fd(), &raw mut extended) }?;
    Ok(flags & (COMPRESSED | ENCRYPTED | JOURNALED | INLINE) == 0 && extended[0] & REALTIME == 0)
}
