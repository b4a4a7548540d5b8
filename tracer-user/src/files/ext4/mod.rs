//! Reading ext4, and ext3 and ext2, which are parts of it. Nothing is written: what its journal still has to write to where it
//! belongs is read from the journal ([`recovery`]).
//!
//! The layout is that of fs/ext4/ext4.h and of the kernel's documentation (Documentation/filesystems/ext4). Bytes are not
//! believed: any of them are read or refused.

mod attributes;
mod bytes;
mod content;
mod names;
pub mod recovery;
mod superblock;
#[cfg(test)]
mod tests;

use std::io;

use crate::files::ext4::bytes::{crc, le16, le32};
use crate::files::ext4::recovery::Recovered;
use crate::files::ext4::superblock::Superblock;
use crate::files::volume::Volume;
use crate::files::{Entries, FileSystem, FsError, Node, TakeContent};

const ROOT: u32 = 2;

/// Flags of inodes.
const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;

pub struct Ext4<V> {
    volume: V,
    superblock: Superblock,
    recovered: Recovered,
}

/// The bytes of an inode, and what all of its readers need.
struct Inode {
    number: u32,
    bytes: Vec<u8>,
    mode: u16,
    size: u64,
    flags: u32,
}

/// Whether the volume claims to be one; says nothing of whether it can be read.
pub fn is_ext4(volume: &mut impl Volume) -> Result<bool, FsError> {
    if volume.size_bytes() < superblock::OFFSET + superblock::LEN as u64 {
        return Ok(false);
    }
    let mut bytes = [0; superblock::LEN];
    volume.read_at(superblock::OFFSET, &mut bytes)?;
    Ok(superblock::is_ext4(&bytes))
}

impl<V: Volume> Ext4<V> {
    pub fn open(mut volume: V) -> Result<Ext4<V>, FsError> {
        if !is_ext4(&mut volume)? {
            return Err(FsError::corrupt("there is no ext4 superblock"));
        }
        let mut bytes = [0; superblock::LEN];
        volume.read_at(superblock::OFFSET, &mut bytes)?;
        let superblock = Superblock::decode(&bytes, volume.size_bytes())?;
        let mut this = Ext4 { volume, superblock, recovered: Recovered::default() };
        if let Some(journal) = this.superblock.journal_to_recover {
            this.recovered = this.recover(journal)?;
            // It may have been changed, too.
            let block_bytes = u64::from(this.superblock.block_bytes);
            let block = this.block(superblock::OFFSET / block_bytes)?;
            let start = usize::try_from(superblock::OFFSET % block_bytes).expect("below 64 KiB");
            bytes.copy_from_slice(&block[start..start + superblock::LEN]);
            this.superblock = Superblock::decode(&bytes, this.volume.size_bytes())?;
        }
        Ok(this)
    }

    /// Blocks that are read from the journal, as they were not written to where they belong.
    pub fn recovered_blocks(&self) -> usize {
        self.recovered.len()
    }

    fn block(&mut self, number: u64) -> Result<Vec<u8>, FsError> {
        let mut bytes = vec![0; self.superblock.block_bytes as usize];
        self.read_blocks(number, &mut bytes)?;
        Ok(bytes)
    }

    /// Whole blocks from this one on.
    fn read_blocks(&mut self, first: u64, bytes: &mut [u8]) -> Result<(), FsError> {
        let block_bytes = u64::from(self.superblock.block_bytes);
        let end = first.checked_add(bytes.len() as u64 / block_bytes);
        if end.is_none_or(|end| end > self.superblock.blocks) {
            return Err(FsError::corrupt(format!(
                "a reference to block {first}, of {}",
                self.superblock.blocks
            )));
        }
        self.volume.read_at(first * block_bytes, bytes)?;
        if !self.recovered.is_empty() {
            for (block, bytes) in (first..).zip(bytes.chunks_mut(self.superblock.block_bytes as usize)) {
                if let Some(place) = self.recovered.get(block) {
                    self.volume.read_at(place.block * block_bytes, bytes)?;
                    place.unescape(bytes);
                }
            }
        }
        Ok(())
    }

    fn inode(&mut self, number: u32) -> Result<Inode, FsError> {
        let Superblock { block_bytes, inode_bytes, descriptor_bytes, inodes, .. } = self.superblock;
        if number == 0 || number > inodes {
            return Err(FsError::corrupt(format!("a reference to inode {number}, of {inodes}")));
        }
        let group = (number - 1) / self.superblock.inodes_per_group;
        let in_group = (number - 1) % self.superblock.inodes_per_group;

        let at = u64::from(group) * u64::from(descriptor_bytes);
        let first = u64::from(self.superblock.first_data_block) + 1;
        let descriptors = self.block(first + at / u64::from(block_bytes))?;
        let descriptor = &descriptors[(at % u64::from(block_bytes)) as usize..][..descriptor_bytes.into()];
        let high = if descriptor_bytes >= 64 { le32(descriptor, 0x28) } else { 0 };
        let table = u64::from(le32(descriptor, 8)) | u64::from(high) << 32;

        let at = u64::from(in_group) * u64::from(inode_bytes);
        let block = table.saturating_add(at / u64::from(block_bytes));
        let bytes =
            self.block(block)?[(at % u64::from(block_bytes)) as usize..][..inode_bytes.into()].to_vec();
        let inode = Inode {
            number,
            mode: le16(&bytes, 0),
            size: u64::from(le32(&bytes, 4)) | u64::from(le32(&bytes, 0x6c)) << 32,
            flags: le32(&bytes, 0x20),
            bytes,
        };
        if self.superblock.seed.is_some_and(|seed| !inode.checksum_holds(seed)) {
            return Err(FsError::corrupt(format!("the checksum of inode {number} is wrong")));
        }
        if inode.mode == 0 {
            return Err(FsError::corrupt(format!("a reference to inode {number}, which is free")));
        }
        for (flag, what) in [(ENCRYPTED, "is encrypted"), (INLINE_DATA, "keeps its data in the inode")] {
            if inode.flags & flag != 0 {
                return Err(FsError::unsupported(format!("inode {number} {what}")));
            }
        }
        Ok(inode)
    }
}

impl Inode {
    /// Bytes of the fields after the first 128.
    fn extra_len(&self) -> usize {
        if self.bytes.len() > 128 {
            usize::from(le16(&self.bytes, 0x80)).min(self.bytes.len() - 128)
        } else {
            0
        }
    }

    fn checksum_holds(&self, seed: u32) -> bool {
        let bytes = &self.bytes;
        let seed = crc(crc(seed, &self.number.to_le_bytes()), &bytes[0x64..0x68]);
        let low = crc(crc(seed, &bytes[..0x7c]), &[0; 2]);
        let has_high = self.extra_len() >= 4;
        let rest = if has_high {
            crc(crc(crc(low, &bytes[0x7e..0x82]), &[0; 2]), &bytes[0x84..])
        } else {
            crc(low, &bytes[0x7e..])
        };
        let high = if has_high { u32::from(le16(bytes, 0x82)) << 16 } else { rest & 0xffff_0000 };
        rest == high | u32::from(le16(bytes, 0x7c))
    }

    fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

impl<V: Volume> FileSystem for Ext4<V> {
    type Handle = u32;

    fn root(&self) -> u32 {
        ROOT
    }

    fn node(&mut self, handle: &u32) -> Result<Node, FsError> {
        let inode = self.inode(*handle)?;
        let attributes = self.attributes(&inode)?;
        Ok(Node { inode: (*handle).into(), links: le16(&inode.bytes, 0x1a).into(), attributes })
    }

    fn entries(&mut self, dir: &u32) -> Result<Entries<u32>, FsError> {
        let inode = self.inode(*dir)?;
        if !inode.is_dir() {
            return Err(FsError::corrupt(format!("inode {dir} is not a directory")));
        }
        let mut entries = Vec::new();
        let block_bytes = self.superblock.block_bytes as usize;
        self.blocks_of(&inode, &mut |_, bytes| {
            bytes.chunks(block_bytes).try_for_each(|block| names::decode(*dir, block, &mut entries))
        })?;
        Ok(entries)
    }

    fn content(&mut self, file: &u32, take: TakeContent<'_>) -> Result<(), FsError> {
        let inode = self.inode(*file)?;
        self.blocks_of(&inode, &mut |at, bytes| {
            let len = usize::try_from(inode.size.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
            let taken = if len == 0 { Ok(()) } else { take(at, &bytes[..len]) };
            taken.map_err(|source: io::Error| FsError::Io { what: "write what was read".to_owned(), source })
        })
    }
}
