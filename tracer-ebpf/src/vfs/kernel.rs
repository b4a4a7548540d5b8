//! Reading the kernel's structures at the offsets the loader found.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use tracer_common::vfs::Inode;

use crate::settings as at;

/// Memory could not be read.
pub struct Unreadable;

/// `s_dev` of the file systems that are watched.
#[map]
static FILE_SYSTEMS: HashMap<u32, u8> = HashMap::with_max_entries(256, 0);

#[inline(always)]
pub fn read<T>(base: u64, offset: u32) -> Result<T, Unreadable> {
    let address = (base + u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address itself and fails on one that is not readable.
    unsafe { bpf_probe_read_kernel(address) }.map_err(|_| Unreadable)
}

/// The number of the file system, if it is watched.
#[inline(always)]
pub fn watched(super_block: u64) -> Result<Option<u32>, Unreadable> {
    let dev: u32 = read(super_block, at::sb_dev())?;
    // SAFETY: the value is never read.
    Ok(unsafe { FILE_SYSTEMS.get(&dev) }.map(|_| dev))
}

/// A file or directory of a watched file system.
#[derive(Clone, Copy)]
pub struct Node {
    /// 0 if it has no name that is known.
    pub dentry: u64,
    /// 0 if there is none yet.
    pub inode: u64,
    pub dev: u32,
}

impl Node {
    #[inline(always)]
    pub fn of_inode(inode: u64) -> Result<Option<Node>, Unreadable> {
        if inode == 0 {
            return Ok(None);
        }
        let Some(dev) = watched(read(inode, at::inode_sb())?)? else { return Ok(None) };
        let alias: u64 = read(inode, at::inode_aliases())?;
        let dentry = if alias == 0 { 0 } else { alias - u64::from(at::dentry_alias()) };
        Ok(Some(Node { dentry, inode, dev }))
    }

    /// A file's path may be one of another file system (overlayfs): then the inode knows its own name.
    #[inline(always)]
    pub fn of_file(file: u64) -> Result<Option<Node>, Unreadable> {
        let inode: u64 = read(file, at::file_inode())?;
        if inode == 0 {
            return Ok(None);
        }
        let Some(dev) = watched(read(inode, at::inode_sb())?)? else { return Ok(None) };
        let dentry: u64 = read(file, at::file_dentry())?;
        if dentry != 0 && read::<u64>(dentry, at::dentry_inode())? == inode {
            return Ok(Some(Node { dentry, inode, dev }));
        }
        Node::of_inode(inode)
    }

    #[inline(always)]
    pub fn of_dentry(dentry: u64) -> Result<Option<Node>, Unreadable> {
        let Some(dev) = watched(read(dentry, at::dentry_sb())?)? else { return Ok(None) };
        Ok(Some(Node { dentry, inode: read(dentry, at::dentry_inode())?, dev }))
    }

    #[inline(always)]
    pub fn id(&self) -> Result<Inode, Unreadable> {
        id_of(self.inode, self.dev)
    }
}

/// Number 0 for no inode.
#[inline(always)]
pub fn id_of(inode: u64, dev: u32) -> Result<Inode, Unreadable> {
    if inode == 0 {
        return Ok(Inode { number: 0, generation: 0, dev });
    }
    Ok(Inode {
        number: read(inode, at::inode_number())?,
        generation: read(inode, at::inode_generation())?,
        dev,
    })
}
