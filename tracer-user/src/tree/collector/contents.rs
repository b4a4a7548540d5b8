//! Content and attributes of inodes, read by their handles: where they hang does not matter.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use rustix::fs::OFlags;

use crate::model::{ByteRange, ByteRangeSet, NodeId, NodeKind, TreeChange};
use crate::tree::collector::names::is_gone;
use crate::tree::collector::{Collector, TURN_BYTES, TreeError};
use crate::tree::event::World;
use crate::tree::inode::changed;
use crate::tree::pending::{Content, END};
use crate::tree::source::{Found, Piece, read};

/// Of so many files all of the file system is written back.
const SYNCED_AT_ONCE: usize = 64;
/// Clocks of file systems tick this seldom at most: a time older than that is not given again.
const TICK_NS: i128 = 20_000_000;

impl<W: World> Collector<W> {
    /// Names first: then what they lead to is known. Says whether there was anything.
    pub(super) fn look(&mut self, all: bool) -> Result<bool, TreeError> {
        let names = self.look_at_names(all)?;
        let contents = self.pending.take_contents(Instant::now(), all);
        let any = !contents.is_empty();
        if self.always_clean && !self.frozen && contents.len() >= SYNCED_AT_ONCE {
            // Each is written back before it is read: together they wait for the disk once.
            self.write_back();
        }
        let mut budget = if all { u64::MAX } else { TURN_BYTES };
        for (number, content) in contents {
            match budget {
                0 => self.pending.again(number, &content, Instant::now()),
                _ => self.read_inode(number, content, &mut budget)?,
            }
        }
        Ok(names || any)
    }

    fn read_inode(&mut self, number: u64, content: Content, budget: &mut u64) -> Result<(), TreeError> {
        // Outside of the tree; or not known yet, and will be read when it is.
        let Some(node) = self.catalog.of_inode(number) else {
            self.unreadable.remove(&number);
            return Ok(());
        };
        let whole = content.ranges.iter().any(|range| range.start == 0 && range.end == END);
        let is_file = self.catalog.node(node).is_some_and(|node| node.kind() == NodeKind::File);
        if is_file && !content.ranges.is_empty() {
            let clean = content.clean || self.always_clean;
            if !self.read_ranges(node, number, content.ranges, clean, budget)? {
                return Ok(());
            }
        }
        // With the file system frozen, a time of change proves that what was read now is all that led to it.
        self.refresh(node, self.lost.is_none() || self.frozen && whole)
    }

    /// Says whether all was read.
    fn read_ranges(
        &mut self,
        node: NodeId,
        number: u64,
        mut ranges: ByteRangeSet,
        clean: bool,
        budget: &mut u64,
    ) -> Result<bool, TreeError> {
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
        let file = match self.open(node, flags) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(true),
            Err(error) => {
                self.fails(number, &error);
                return Ok(false);
            }
        };
        let wanted: Vec<ByteRange> = ranges.iter().collect();
        for range in wanted {
            let mut failed = None;
            let done = read(&file, range, clean, &mut |piece| {
                let change = match piece {
                    Piece::Data { start, bytes } => {
                        *budget = budget.saturating_sub(bytes.len() as u64);
                        TreeChange::Data { node, start, bytes }
                    }
                    Piece::Hole(range) => TreeChange::Hole { node, range },
                };
                if let Err(error) = self.emit(change).and_then(|()| self.hear_meanwhile()) {
                    failed = Some(error);
                }
                Ok(*budget > 0 && failed.is_none())
            });
            if let Some(error) = failed {
                return Err(error);
            }
            match done {
                Ok(end) => ranges.remove(ByteRange { start: range.start, end: end.max(range.start) }),
                Err(error) if is_gone(&error) => return Ok(true),
                Err(error) => {
                    self.fails(number, &error);
                    return Ok(false);
                }
            }
            if *budget == 0 {
                break;
            }
        }
        self.unreadable.remove(&number);
        if !ranges.is_empty() {
            self.pending.again(number, &Content { ranges, clean }, Instant::now());
            return Ok(false);
        }
        Ok(true)
    }

    /// Journals the attributes if they are others than known. `read`: the content was read before that, if there is any.
    pub(super) fn refresh(&mut self, node: NodeId, read: bool) -> Result<(), TreeError> {
        let Some(known) = self.catalog.node(node) else { return Ok(()) };
        let (number, handle) = (known.source.number, known.source.handle.clone());
        let found = self.source.open_inode(&handle, OFlags::PATH).and_then(|file| {
            file.map(|file| Ok(Found { metadata: file.metadata()?, file, handle })).transpose()
        });
        match found {
            Ok(Some(found)) => self.refresh_as(node, &found, read),
            Ok(None) => {
                self.unreadable.remove(&number);
                Ok(())
            }
            Err(error) => {
                self.fails(number, &error);
                Ok(())
            }
        }
    }

    /// As it was found under a name.
    pub(super) fn refresh_found(&mut self, node: NodeId, found: &Found) -> Result<(), TreeError> {
        self.refresh_as(node, found, false)
    }

    fn refresh_as(&mut self, node: NodeId, found: &Found, read: bool) -> Result<(), TreeError> {
        let Some(known) = self.catalog.node(node) else { return Ok(()) };
        let number = found.metadata.ino();
        let attributes = match found.attributes() {
            Ok(attributes) => attributes,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => {
                self.fails(number, &error);
                return Ok(());
            }
        };
        self.unreadable.remove(&number);
        let was_trusted = known.source.changed == changed(&found.metadata);
        let settled = !self.pending.has_inode(number) && self.has_settled(found);
        let trusted = was_trusted || read && settled;
        let source = found.inode(trusted);
        if attributes.same(&known.attributes) && source.changed == known.source.changed {
            return Ok(());
        }
        self.emit(TreeChange::Inode { node, attributes: Box::new(attributes), source })
    }

    /// Whatever changed it was heard of, and a later change will have a later time.
    pub(super) fn has_settled(&self, found: &Found) -> bool {
        let at = i128::from(found.metadata.ctime()) * 1_000_000_000 + i128::from(found.metadata.ctime_nsec());
        at + TICK_NS <= i128::from(self.heard_until.0)
    }
}
