//! Where the content of inodes is: extents, or the block map of older file systems.

use crate::files::FsError;
use crate::files::ext4::bytes::{le16, le32};
use crate::files::ext4::{EXTENTS, Ext4, Inode};
use crate::files::volume::Volume;

const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENT_LEN: usize = 12;
const DEPTH_MAX: u16 = 5;
/// An extent longer than that was allocated and not written: it reads as zeros.
const WRITTEN_LEN_MAX: u16 = 1 << 15;
/// So much is read at a time.
const RUN_BYTES_MAX: u64 = 1 << 20;
const DIRECT_BLOCKS: usize = 12;

/// Blocks that lie side by side in a file and on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub logical: u64,
    pub physical: u64,
    pub blocks: u64,
}

type TakeBlocks<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), FsError>;
type TakeRun<'a, V> = &'a mut dyn FnMut(&mut Ext4<V>, Run) -> Result<(), FsError>;

impl<V: Volume> Ext4<V> {
    /// What is written of an inode, in whole blocks that begin before its end, in order: byte and content.
    pub(super) fn blocks_of(&mut self, inode: &Inode, take: TakeBlocks<'_>) -> Result<(), FsError> {
        let block_bytes = u64::from(self.superblock.block_bytes);
        let blocks = inode.size.div_ceil(block_bytes);
        self.runs_of(inode, &mut |this, run| {
            let end = run.logical.saturating_add(run.blocks).min(blocks);
            let mut at = run.logical;
            while at < end {
                let count = (end - at).min(RUN_BYTES_MAX / block_bytes);
                let mut bytes = vec![0; usize::try_from(count * block_bytes).expect("a MiB at most")];
                this.read_blocks(run.physical + (at - run.logical), &mut bytes)?;
                take(at * block_bytes, &bytes)?;
                at += count;
            }
            Ok(())
        })
    }

    /// `len_max` bytes of a regular file from `start` on, fewer at its end, zeros in its holes; `None` of what is none.
    pub fn bytes_at(&mut self, file: u32, start: u64, len_max: usize) -> Result<Option<Vec<u8>>, FsError> {
        let inode = self.inode(file)?;
        if !inode.is_file() {
            return Ok(None);
        }
        let block_bytes = u64::from(self.superblock.block_bytes);
        let end = inode.size.min(start.saturating_add(len_max as u64));
        if start >= end {
            return Ok(Some(Vec::new()));
        }
        let into = |at: u64| usize::try_from(at).expect("len_max at most");
        let mut bytes = vec![0; into(end - start)];
        let wanted = start / block_bytes..end.div_ceil(block_bytes);
        self.runs_of(&inode, &mut |this, run| {
            let end_of_run = run.logical.saturating_add(run.blocks);
            for block in run.logical.max(wanted.start)..end_of_run.min(wanted.end) {
                let content = this.block(run.physical + (block - run.logical))?;
                let at = block * block_bytes;
                let (from, to) = (at.max(start), (at + block_bytes).min(end));
                bytes[into(from - start)..into(to - start)]
                    .copy_from_slice(&content[into(from - at)..into(to - at)]);
            }
            Ok(())
        })?;
        Ok(Some(bytes))
    }

    pub(super) fn runs_of(&mut self, inode: &Inode, take: TakeRun<'_, V>) -> Result<(), FsError> {
        let root = inode.bytes[0x28..0x64].to_vec();
        let mut next = 0;
        match inode.flags & EXTENTS {
            0 => self.mapped(inode, &root, take),
            _ => self.extents(inode, &root, None, &mut next, take),
        }
    }

    /// `depth` is that a node must have; `next` is the block of the file after the last extent.
    fn extents(
        &mut self,
        inode: &Inode,
        node: &[u8],
        depth: Option<u16>,
        next: &mut u64,
        take: TakeRun<'_, V>,
    ) -> Result<(), FsError> {
        let wrong =
            || FsError::corrupt(format!("the extents of inode {} contradict each other", inode.number));
        let (count, its_depth) = (usize::from(le16(node, 2)), le16(node, 6));
        if le16(node, 0) != EXTENT_MAGIC
            || its_depth > DEPTH_MAX
            || depth.is_some_and(|depth| depth != its_depth)
            || (count + 1) * EXTENT_LEN > node.len()
        {
            return Err(wrong());
        }
        for entry in node.chunks_exact(EXTENT_LEN).skip(1).take(count) {
            let logical = u64::from(le32(entry, 0));
            if logical < *next {
                return Err(wrong());
            }
            if its_depth > 0 {
                let child = self.block(u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32)?;
                self.extents(inode, &child, Some(its_depth - 1), next, take)?;
                continue;
            }
            let len = le16(entry, 4);
            let blocks = u64::from(if len > WRITTEN_LEN_MAX { len - WRITTEN_LEN_MAX } else { len });
            *next = logical + blocks;
            if len <= WRITTEN_LEN_MAX {
                let physical = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
                take(self, Run { logical, physical, blocks })?;
            }
        }
        Ok(())
    }

    fn mapped(&mut self, inode: &Inode, map: &[u8], take: TakeRun<'_, V>) -> Result<(), FsError> {
        let blocks = inode.size.div_ceil(self.superblock.block_bytes.into());
        let per_block = u64::from(self.superblock.block_bytes) / 4;
        let mut logical = 0;
        for (at, number) in map.chunks_exact(4).map(|bytes| le32(bytes, 0)).enumerate() {
            let depth = (at + 1).saturating_sub(DIRECT_BLOCKS);
            let spans = per_block.pow(u32::try_from(depth).expect("three at most"));
            if logical >= blocks {
                break;
            }
            self.indirect(number, depth, logical, blocks, take)?;
            logical += spans;
        }
        Ok(())
    }

    fn indirect(
        &mut self,
        number: u32,
        depth: usize,
        logical: u64,
        end: u64,
        take: TakeRun<'_, V>,
    ) -> Result<(), FsError> {
        if number == 0 || logical >= end {
            return Ok(());
        }
        if depth == 0 {
            return take(self, Run { logical, physical: number.into(), blocks: 1 });
        }
        let per_block = u64::from(self.superblock.block_bytes) / 4;
        let spans = per_block.pow(u32::try_from(depth - 1).expect("two at most"));
        let block = self.block(number.into())?;
        for (at, number) in (0..).zip(block.chunks_exact(4).map(|bytes| le32(bytes, 0))) {
            self.indirect(number, depth - 1, logical + at * spans, end, take)?;
        }
        Ok(())
    }
}
