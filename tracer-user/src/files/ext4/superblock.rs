//! What an ext4 says of itself. Pure.

use crate::files::FsError;
use crate::files::ext4::bytes::{crc, le16, le32};

pub const OFFSET: u64 = 1024;
pub const LEN: usize = 1024;
const MAGIC: u16 = 0xef53;

const HAS_JOURNAL: u32 = 0x4;
const RECOVER: u32 = 0x4;
const JOURNAL_DEVICE: u32 = 0x8;
const BITS_64: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// Of the features without which a file system must not be read: names with types, recovery, extents, 64 bit, protection
/// against being mounted twice, flexible groups, seed of checksums, large directories, names without case.
const READABLE: u32 = 0x2 | RECOVER | 0x40 | BITS_64 | 0x100 | 0x200 | CSUM_SEED | 0x4000 | 0x2_0000;
/// And those that are another way to keep content.
const NAMES: [(u32, &str); 6] = [
    (0x1, "compression"),
    (JOURNAL_DEVICE, "a journal on another device"),
    (0x10, "meta_bg"),
    (0x400, "ea_inode"),
    (0x8000, "inline_data"),
    (0x1_0000, "encryption"),
];
const METADATA_CSUM: u32 = 0x400;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub block_bytes: u32,
    pub blocks: u64,
    pub first_data_block: u32,
    pub inodes: u32,
    pub inodes_per_group: u32,
    pub inode_bytes: u16,
    pub descriptor_bytes: u16,
    /// Where checksums begin, where there are some.
    pub seed: Option<u32>,
    /// The journal's inode, when what it holds is still to be written to where it belongs.
    pub journal_to_recover: Option<u32>,
}

pub fn is_ext4(bytes: &[u8; LEN]) -> bool {
    le16(bytes, 0x38) == MAGIC
}

impl Superblock {
    pub fn decode(bytes: &[u8; LEN], volume_bytes: u64) -> Result<Superblock, FsError> {
        if !is_ext4(bytes) {
            return Err(FsError::corrupt("there is no ext4 superblock"));
        }
        let (compat, incompat, ro_compat) = (le32(bytes, 0x5c), le32(bytes, 0x60), le32(bytes, 0x64));
        let unknown = incompat & !READABLE;
        if unknown != 0 {
            let named: Vec<_> =
                NAMES.iter().filter(|(bit, _)| unknown & bit != 0).map(|(_, name)| *name).collect();
            let named = if named.is_empty() { format!("features {unknown:#x}") } else { named.join(" and ") };
            return Err(FsError::unsupported(format!("this ext4 uses {named}")));
        }
        let has_csums = ro_compat & METADATA_CSUM != 0;
        if has_csums && crc(!0, &bytes[..0x3fc]) != le32(bytes, 0x3fc) {
            return Err(FsError::corrupt("the superblock's checksum is wrong"));
        }
        let log_block = le32(bytes, 0x18);
        let is_64 = incompat & BITS_64 != 0;
        let blocks_high = if is_64 { le32(bytes, 0x150) } else { 0 };
        let superblock = Superblock {
            block_bytes: if log_block <= 6 { 1024 << log_block } else { 0 },
            blocks: u64::from(le32(bytes, 4)) | u64::from(blocks_high) << 32,
            first_data_block: le32(bytes, 0x14),
            inodes: le32(bytes, 0),
            inodes_per_group: le32(bytes, 0x28),
            inode_bytes: if le32(bytes, 0x4c) == 0 { 128 } else { le16(bytes, 0x58) },
            descriptor_bytes: if is_64 { le16(bytes, 0xfe) } else { 32 },
            seed: has_csums.then(|| match incompat & CSUM_SEED {
                0 => crc(!0, &bytes[0x68..0x78]),
                _ => le32(bytes, 0x270),
            }),
            journal_to_recover: (compat & HAS_JOURNAL != 0 && incompat & RECOVER != 0)
                .then(|| le32(bytes, 0xe0)),
        };
        superblock.check(is_64, volume_bytes)?;
        Ok(superblock)
    }

    fn check(&self, is_64: bool, volume_bytes: u64) -> Result<(), FsError> {
        let Superblock { block_bytes, blocks, inode_bytes, descriptor_bytes, .. } = self;
        let sound = *block_bytes != 0
            && blocks.checked_mul((*block_bytes).into()).is_some_and(|bytes| bytes <= volume_bytes)
            && self.inodes_per_group > 0
            && inode_bytes.is_power_of_two()
            && (128..=*block_bytes).contains(&u32::from(*inode_bytes))
            && descriptor_bytes.is_power_of_two()
            && (if is_64 { 64 } else { 32 }..=1024).contains(descriptor_bytes);
        match sound {
            true => Ok(()),
            false => Err(FsError::corrupt("the superblock contradicts itself or the volume's size")),
        }
    }
}
