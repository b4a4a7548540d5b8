//! What the journal of an ext4 says that has not been written to where it belongs: after a power cut, or at a point of class
//! `crash`. As the kernel does it (fs/jbd2/recovery.c), but nothing is written: a block is looked up in the journal instead.

use std::collections::HashMap;

use crate::files::FsError;
use crate::files::ext4::Ext4;
use crate::files::ext4::bytes::{be32, crc, le32};
use crate::files::ext4::content::Run;
use crate::files::volume::Volume;

const MAGIC: u32 = 0xc03b_3998;
const HEADER_LEN: usize = 12;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const BITS_64: u32 = 0x2;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
/// Revocations, 64 bit, commits without waiting, checksums.
const READABLE: u32 = 0x1 | BITS_64 | 0x4 | CSUM_V2 | CSUM_V3;

/// Flags of a block in a descriptor.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;

/// Blocks of the volume, and where in the journal their content is.
#[derive(Default)]
pub struct Recovered(HashMap<u64, Place>);

#[derive(Clone, Copy)]
pub struct Place {
    /// Of the volume.
    pub block: u64,
    /// It began with the journal's magic, which is left away there.
    escaped: bool,
}

impl Place {
    pub fn unescape(self, bytes: &mut [u8]) {
        if self.escaped {
            bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        }
    }
}

impl Recovered {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, block: u64) -> Option<Place> {
        self.0.get(&block).copied()
    }
}

struct Log {
    /// Where its blocks are, in order.
    runs: Vec<Run>,
    blocks: u64,
    first: u64,
    features: u32,
    /// Where checksums begin.
    seed: u32,
}

/// A block that a descriptor announces.
struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

/// A block as a transaction that was committed has it.
struct Logged {
    block: u64,
    sequence: u32,
    place: Place,
}

impl<V: Volume> Ext4<V> {
    pub(super) fn recover(&mut self, journal: u32) -> Result<Recovered, FsError> {
        let inode = self.inode(journal)?;
        let mut runs = Vec::new();
        self.runs_of(&inode, &mut |_, run| {
            runs.push(run);
            Ok(())
        })?;
        let head = Log { runs, blocks: 1, first: 0, features: 0, seed: 0 };
        let superblock = self.log_block(&head, 0)?;
        let kind = be32(&superblock, 4);
        if be32(&superblock, 0) != MAGIC
            || !matches!(kind, SUPERBLOCK_V1 | SUPERBLOCK_V2)
            || be32(&superblock, 12) != self.superblock.block_bytes
        {
            return Err(FsError::corrupt("the ext4 journal has no superblock"));
        }
        let features = if kind == SUPERBLOCK_V2 { be32(&superblock, 0x28) } else { 0 };
        if features & !READABLE != 0 {
            return Err(FsError::unsupported(format!(
                "the ext4 journal has to be recovered and uses features {:#x}",
                features & !READABLE
            )));
        }
        let log = Log {
            blocks: be32(&superblock, 16).into(),
            first: be32(&superblock, 20).into(),
            features,
            seed: crc(!0, &superblock[0x30..0x40]),
            ..head
        };
        let (sequence, start) = (be32(&superblock, 24), u64::from(be32(&superblock, 28)));
        match start {
            0 => Ok(Recovered::default()),
            start => self.committed(&log, sequence, start),
        }
    }

    /// What all transactions from there on come to that were committed.
    fn committed(&mut self, log: &Log, mut sequence: u32, mut at: u64) -> Result<Recovered, FsError> {
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let (mut logged, mut revoked_here, mut logged_here) = (Vec::new(), Vec::new(), Vec::new());
        let mut passed = 0;
        // Once around at most.
        while passed < log.blocks {
            let block = self.log_block(log, at)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            (at, passed) = (log.after(at), passed + 1);
            match be32(&block, 4) {
                DESCRIPTOR => {
                    let Some(tags) = log.tags(&block) else { break };
                    for tag in tags {
                        let place = Place { block: log.place(at)?, escaped: tag.flags & ESCAPED != 0 };
                        logged_here.push((Logged { block: tag.block, sequence, place }, tag.checksum));
                        (at, passed) = (log.after(at), passed + 1);
                    }
                }
                REVOKE => {
                    let Some(blocks) = log.revoked(&block) else { break };
                    revoked_here.extend(blocks);
                }
                COMMIT if log.commit_holds(&block) => {
                    for block in revoked_here.drain(..) {
                        revoked.insert(block, sequence);
                    }
                    logged.append(&mut logged_here);
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        let mut recovered = Recovered::default();
        for (Logged { block, sequence, place }, checksum) in logged {
            // A number may come round to where it was.
            let newer = |revoked: u32| revoked.wrapping_sub(sequence).cast_signed() >= 0;
            if revoked.get(&block).is_some_and(|revoked| newer(*revoked)) {
                continue;
            }
            let content = self.block(place.block)?;
            if !log.tag_holds(sequence, checksum, &content) {
                return Err(FsError::corrupt(format!(
                    "the ext4 journal has block {block} with a wrong checksum"
                )));
            }
            recovered.0.insert(block, place);
        }
        Ok(recovered)
    }

    fn log_block(&mut self, log: &Log, at: u64) -> Result<Vec<u8>, FsError> {
        self.block(log.place(at)?)
    }
}

impl Log {
    /// The block of the volume that a block of the journal is.
    fn place(&self, at: u64) -> Result<u64, FsError> {
        let after = self.runs.partition_point(|run| run.logical <= at);
        let run = after.checked_sub(1).map(|before| self.runs[before]);
        let run = run.filter(|run| at - run.logical < run.blocks);
        let place = run.and_then(|run| run.physical.checked_add(at - run.logical));
        place.ok_or_else(|| FsError::corrupt(format!("the ext4 journal has no block {at}")))
    }

    fn after(&self, at: u64) -> u64 {
        if at + 1 >= self.blocks { self.first } else { at + 1 }
    }

    fn has_checksums(&self) -> bool {
        self.features & (CSUM_V2 | CSUM_V3) != 0
    }

    /// What a block is without the checksum at its end; `None` when that is wrong.
    fn whole<'a>(&self, block: &'a [u8]) -> Option<&'a [u8]> {
        if !self.has_checksums() {
            return Some(block);
        }
        let (bytes, checksum) = block.split_last_chunk::<4>()?;
        (crc(crc(self.seed, bytes), &[0; 4]) == u32::from_be_bytes(*checksum)).then_some(bytes)
    }

    fn tags(&self, block: &[u8]) -> Option<Vec<Tag>> {
        let mut rest = self.whole(block)?.get(HEADER_LEN..)?;
        let is_64 = self.features & BITS_64 != 0;
        let len = match self.features {
            features if features & CSUM_V3 != 0 => 16,
            features => 8 + if is_64 { 4 } else { 0 } + if features & CSUM_V2 != 0 { 2 } else { 0 },
        };
        let mut tags = Vec::new();
        loop {
            let (tag, after) = rest.split_at_checked(len)?;
            let low = u64::from(be32(tag, 0));
            let high = u64::from(if is_64 { be32(tag, 8) } else { 0 }) << 32;
            let tag = match self.features & CSUM_V3 {
                0 => {
                    let both = be32(tag, 4);
                    Tag { block: low | high, flags: both & 0xffff, checksum: both >> 16 }
                }
                _ => Tag { block: low | high, flags: be32(tag, 4), checksum: be32(tag, 12) },
            };
            let skipped = if tag.flags & SAME_UUID == 0 { 16 } else { 0 };
            let is_last = tag.flags & LAST != 0;
            tags.push(tag);
            rest = match after.get(skipped..) {
                Some(rest) => rest,
                None if is_last => &[],
                None => return None,
            };
            if is_last || rest.len() < len {
                return Some(tags);
            }
        }
    }

    fn revoked(&self, block: &[u8]) -> Option<Vec<u64>> {
        let bytes = self.whole(block)?;
        let count = (be32(bytes, HEADER_LEN) as usize).min(bytes.len());
        let bytes = bytes.get(HEADER_LEN + 4..count)?;
        Some(match self.features & BITS_64 {
            0 => bytes.chunks_exact(4).map(|bytes| be32(bytes, 0).into()).collect(),
            _ => bytes
                .chunks_exact(8)
                .map(|bytes| u64::from(be32(bytes, 0)) << 32 | u64::from(be32(bytes, 4)))
                .collect(),
        })
    }

    fn commit_holds(&self, block: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let sum = crc(crc(crc(self.seed, &block[..16]), &[0; 4]), &block[20..]);
        sum == le32(block, 16).swap_bytes()
    }

    fn tag_holds(&self, sequence: u32, checksum: u32, content: &[u8]) -> bool {
        let sum = || crc(crc(self.seed, &sequence.to_be_bytes()), content);
        match self.features & (CSUM_V2 | CSUM_V3) {
            0 => true,
            features if features & CSUM_V3 != 0 => sum() == checksum,
            _ => sum() & 0xffff == checksum,
        }
    }
}

#[cfg(any(test, fuzzing))]
pub mod fuzzing {
    use super::Log;

    /// Any block of the journal is taken or refused, whatever the features.
    pub fn blocks(data: &[u8]) {
        const BLOCK_BYTES: usize = 1024;
        let Some((features, rest)) = data.split_first_chunk::<4>() else { return };
        let mut block = rest[..rest.len().min(BLOCK_BYTES)].to_vec();
        block.resize(BLOCK_BYTES, 0);
        let features = u32::from_le_bytes(*features);
        for features in [features, features & !(super::CSUM_V2 | super::CSUM_V3)] {
            let log = Log { runs: Vec::new(), blocks: 8, first: 1, features, seed: 0 };
            let tags = log.tags(&block).map_or(0, |tags| tags.len());
            let revoked = log.revoked(&block).map_or(0, |blocks| blocks.len());
            assert!(tags <= BLOCK_BYTES / 8 && revoked <= BLOCK_BYTES / 4);
            log.commit_holds(&block);
        }
    }
}
