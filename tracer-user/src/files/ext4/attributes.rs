//! What an inode says of itself, extended attributes and ACLs among it.

use crate::files::FsError;
use crate::files::ext4::bytes::{le16, le32};
use crate::files::ext4::{Ext4, Inode};
use crate::files::volume::Volume;
use crate::model::{Attributes, FileTime, NodeKind};

const XATTR_MAGIC: u32 = 0xea02_0000;
const XATTR_BLOCK_HEADER_LEN: usize = 32;
const XATTR_ENTRY_LEN: usize = 16;
const LINK_TARGET_MAX: u64 = 4096;
/// A shorter target of a symbolic link stands where a file's extents do.
const LINK_INLINE_MAX: u64 = 60;

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

impl<V: Volume> Ext4<V> {
    pub(super) fn attributes(&mut self, inode: &Inode) -> Result<Attributes, FsError> {
        let bytes = &inode.bytes;
        let wide = |low: usize, high: usize| u32::from(le16(bytes, low)) | u32::from(le16(bytes, high)) << 16;
        let mut attributes = Attributes {
            mode: inode.mode.into(),
            uid: wide(0x2, 0x78),
            gid: wide(0x18, 0x7a),
            accessed: inode.time(0x8, 0x8c),
            modified: inode.time(0x10, 0x88),
            xattrs: self.xattrs(inode)?,
            ..Attributes::default()
        };
        match attributes.kind() {
            NodeKind::File => attributes.size = inode.size,
            NodeKind::Symlink => attributes.link_target = self.link_target(inode)?,
            NodeKind::Special => attributes.rdev = inode.device(),
            NodeKind::Dir => {}
        }
        Ok(attributes)
    }

    fn link_target(&mut self, inode: &Inode) -> Result<Vec<u8>, FsError> {
        if inode.size > LINK_TARGET_MAX {
            return Err(FsError::corrupt(format!("symbolic link inode {} is too long", inode.number)));
        }
        let len = usize::try_from(inode.size).expect("checked above");
        if inode.size < LINK_INLINE_MAX {
            return Ok(inode.bytes[0x28..0x28 + len].to_vec());
        }
        let mut target = vec![0; len];
        self.blocks_of(inode, &mut |at, bytes| {
            let at = usize::try_from(at).unwrap_or(len).min(len);
            let count = bytes.len().min(len - at);
            target[at..at + count].copy_from_slice(&bytes[..count]);
            Ok(())
        })?;
        Ok(target)
    }

    /// Those in the inode and those in a block, in the order of their names.
    fn xattrs(&mut self, inode: &Inode) -> Result<Xattrs, FsError> {
        let wrong =
            || FsError::corrupt(format!("the extended attributes of inode {} have no end", inode.number));
        let mut xattrs = Vec::new();
        let start = 128 + inode.extra_len();
        if inode.bytes.len() >= start + 4 && inode.extra_len() > 0 && le32(&inode.bytes, start) == XATTR_MAGIC
        {
            let room = &inode.bytes[start + 4..];
            decode(room, room, &mut xattrs).ok_or_else(wrong)?;
        }
        let block = u64::from(le32(&inode.bytes, 0x68)) | u64::from(le16(&inode.bytes, 0x76)) << 32;
        if block != 0 {
            let block = self.block(block)?;
            if le32(&block, 0) != XATTR_MAGIC {
                return Err(wrong());
            }
            decode(&block[XATTR_BLOCK_HEADER_LEN..], &block, &mut xattrs).ok_or_else(wrong)?;
        }
        xattrs.sort();
        Ok(xattrs)
    }
}

impl Inode {
    fn time(&self, at: usize, extra_at: usize) -> FileTime {
        let seconds = i64::from(le32(&self.bytes, at).cast_signed());
        if extra_at + 4 > 128 + self.extra_len() {
            return FileTime { seconds, nanos: 0 };
        }
        let extra = le32(&self.bytes, extra_at);
        FileTime { seconds: seconds + (i64::from(extra & 3) << 32), nanos: (extra >> 2).min(999_999_999) }
    }

    fn device(&self) -> u64 {
        let (old, new) = (le32(&self.bytes, 0x28), le32(&self.bytes, 0x2c));
        match old {
            0 => libc::makedev((new & 0xf_ff00) >> 8, (new & 0xff) | ((new >> 12) & 0xf_ff00)),
            old => libc::makedev((old >> 8) & 0xff, old & 0xff),
        }
    }
}

/// `values` is what the places of values count from.
fn decode(mut entries: &[u8], values: &[u8], xattrs: &mut Xattrs) -> Option<()> {
    while entries.len() >= 4 && le32(entries, 0) != 0 {
        let name = entries.get(XATTR_ENTRY_LEN..XATTR_ENTRY_LEN + usize::from(entries[0]))?;
        let (offset, len) = (usize::from(le16(entries, 2)), le32(entries, 8) as usize);
        let value = values.get(offset..offset.checked_add(len)?)?;
        let prefix: &[u8] = match entries[1] {
            0 => b"",
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            7 => b"system.",
            _ => return None,
        };
        let value = if matches!(entries[1], 2 | 3) { acl(value)? } else { value.to_vec() };
        xattrs.push(([prefix, name].concat(), value));
        entries = entries.get((XATTR_ENTRY_LEN + name.len()).next_multiple_of(4)..)?;
    }
    Some(())
}

/// From how ext4 keeps an ACL to how the kernel is given it.
fn acl(mut bytes: &[u8]) -> Option<Vec<u8>> {
    const ON_DISK: u32 = 1;
    const GIVEN: u32 = 2;
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let mut out = GIVEN.to_le_bytes().to_vec();
    if bytes.len() < 4 || le32(bytes, 0) != ON_DISK {
        return None;
    }
    bytes = &bytes[4..];
    while bytes.len() >= 4 {
        out.extend_from_slice(&bytes[..4]);
        let with_id = matches!(le16(bytes, 0), USER | GROUP);
        out.extend_from_slice(if with_id { bytes.get(4..8)? } else { &[0xff; 4] });
        bytes = &bytes[if with_id { 8 } else { 4 }..];
    }
    bytes.is_empty().then_some(out)
}
