//! Names: what they lead to now, and what that means for the catalog.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use rustix::fs::OFlags;

use crate::model::{ByteRange, FileOp, NodeId, NodeKind, TreeChange};
use crate::tree::collector::{Collector, TURN_NAMES, TreeError};
use crate::tree::event::{Change, World};
use crate::tree::inode::{changed, modified};
use crate::tree::pending::{END, Name};
use crate::tree::source::Found;

/// So long after one moved a path that leads nowhere may have led through it.
const LINKS_MOVED: std::time::Duration = std::time::Duration::from_secs(60);

impl<W: World> Collector<W> {
    /// Goes on with the directories that are gone through. Says whether there were any.
    pub(super) fn go_through(&mut self) -> Result<bool, TreeError> {
        let Some(mut scan) = self.scans.pop_front() else { return Ok(false) };
        if scan.names.is_empty() {
            let Some(dir) = self.catalog.node(scan.dir) else { return Ok(true) };
            let number = dir.source.number;
            match self.source.list(&dir.source.handle) {
                Ok(names) => scan.names = names,
                Err(error) => {
                    self.fails(number, &error);
                    self.scans.push_back(scan);
                    // So that it is not tried all the time.
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    return Ok(false);
                }
            }
            self.unreadable.remove(&number);
            // What is known and not there any more is looked for by its name.
            let known: Vec<_> = match self.catalog.node(scan.dir) {
                Some(dir) => dir.entries.keys().cloned().collect(),
                None => Vec::new(),
            };
            let there: std::collections::HashSet<&Vec<u8>> = scan.names.iter().collect();
            let gone: Vec<_> = known.into_iter().filter(|name| !there.contains(name)).collect();
            scan.names.extend(gone);
        }
        let dir = self.open_dir(scan.dir)?;
        let count = scan.names.len().min(TURN_NAMES);
        if let Some(dir) = &dir {
            for name in scan.names.drain(..count) {
                if self
                    .see(scan.dir, dir, &name, scan.deep)?
                    .is_some_and(|child| child.fresh_or_deep(scan.deep))
                {
                    let child = self.catalog.entry(scan.dir, &name);
                    child.into_iter().for_each(|child| self.scan(child, scan.deep));
                }
            }
        }
        match dir.is_some() && !scan.names.is_empty() {
            true => self.scans.push_front(scan),
            false => self.refresh(scan.dir, self.lost.is_none())?,
        }
        Ok(true)
    }

    /// Looks at names that may lead elsewhere.
    pub(super) fn look_at_names(&mut self, all: bool) -> Result<bool, TreeError> {
        let names = self.pending.take_names(Instant::now(), all);
        let any = !names.is_empty();
        for name in names {
            match name {
                Name::Entry { dir, name } => {
                    // Outside of the tree; or not known yet, and will be looked at when it is.
                    if let Some(node) = self.catalog.of_inode(dir) {
                        self.look_at(node, &name)?;
                    }
                }
                Name::Path(path) => {
                    let mut dir = NodeId::ROOT;
                    for name in path {
                        match self.look_at(dir, &name)? {
                            Some(node) => dir = node,
                            None => break,
                        }
                    }
                }
            }
        }
        Ok(any)
    }

    fn look_at(&mut self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, TreeError> {
        let Some(open) = self.open_dir(dir)? else { return Ok(None) };
        let before = self.catalog.entry(dir, name);
        let seen = self.see(dir, &open, name, false)?;
        let node = self.catalog.entry(dir, name);
        if let (Some(seen), Some(node)) = (&seen, node)
            && (seen.is_new || seen.moved && self.by_path)
        {
            self.scan(node, true);
        }
        if before != node {
            // Its times are others.
            self.refresh(dir, false)?;
        }
        Ok(node)
    }

    /// `None`: it is none, or no more.
    fn open_dir(&mut self, dir: NodeId) -> Result<Option<File>, TreeError> {
        if self.catalog.node(dir).is_none_or(|dir| dir.kind() != NodeKind::Dir) {
            return Ok(None);
        }
        match self.open(dir, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(open) => Ok(open),
            Err(error) => {
                let number = self.catalog.node(dir).map_or(0, |dir| dir.source.number);
                self.fails(number, &error);
                Ok(None)
            }
        }
    }

    /// Brings one name of the catalog to what it leads to now. Says what is to be done about a directory.
    fn see(&mut self, dir: NodeId, open: &File, name: &[u8], deep: bool) -> Result<Option<Seen>, TreeError> {
        let known = self.catalog.entry(dir, name);
        let found = match self.source.look(open, name) {
            Ok(found) => found,
            Err(error) => {
                let number = self.catalog.node(dir).map_or(0, |dir| dir.source.number);
                self.fails(number, &error);
                self.pending.name(Name::Entry { dir: number, name: name.to_vec() }, None, Instant::now());
                return Ok(None);
            }
        };
        let Some(found) = found else {
            if known.is_some() {
                self.emit(TreeChange::Unlink { dir, name: name.to_vec() })?;
            }
            return Ok(None);
        };
        let of_number = self.catalog.of_inode(found.metadata.ino());
        let same =
            |node: &NodeId| self.catalog.node(*node).is_some_and(|node| node.source.handle == found.handle);
        let node = of_number.filter(same);
        let (is_new, node) = match node {
            Some(node) => (false, node),
            None => match self.make(&found)? {
                Some(node) => (true, node),
                None => return Ok(None),
            },
        };
        let moved = known != Some(node);
        if moved {
            self.emit(TreeChange::Link { dir, name: name.to_vec(), node })?;
        }
        if !is_new {
            if deep {
                self.doubt(node, &found);
            } else if moved && self.by_path {
                self.doubt_moved(node, &found);
            }
            self.refresh_found(node, &found)?;
        }
        let is_dir = found.metadata.is_dir();
        Ok(is_dir.then_some(Seen { is_new, moved }))
    }

    /// An inode that is not known: its content is read when it is its turn.
    fn make(&mut self, found: &Found) -> Result<Option<NodeId>, TreeError> {
        let number = found.metadata.ino();
        let attributes = match found.attributes() {
            Ok(attributes) => attributes,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => {
                self.fails(number, &error);
                return Ok(None);
            }
        };
        let node = self.catalog.next();
        let (has_content, is_dir) =
            (attributes.kind() == NodeKind::File && attributes.size > 0, attributes.kind() == NodeKind::Dir);
        let trusted = self.lost.is_none() && !has_content && !is_dir && self.has_settled(found);
        self.emit(TreeChange::Inode {
            node,
            attributes: Box::new(attributes),
            source: found.inode(trusted),
        })?;
        if has_content {
            self.read_all_of(number);
        }
        Ok(Some(node))
    }

    /// A file that may have changed while nobody looked.
    fn doubt(&mut self, node: NodeId, found: &Found) {
        let Some(known) = self.catalog.node(node) else { return };
        let unchanged = known.source.changed == changed(&found.metadata)
            && known.attributes.size == found.metadata.size()
            && known.source.changed.seconds != 0;
        if known.kind() == NodeKind::File && !unchanged {
            self.read_all_of(found.metadata.ino());
        }
    }

    /// Of calls with a path that leads nowhere any more it is not known which file they changed; of others it is.
    fn doubt_moved(&mut self, node: NodeId, found: &Found) {
        let Some(known) = self.catalog.node(node) else { return };
        let number = found.metadata.ino();
        let unchanged = known.attributes.modified == modified(&found.metadata)
            && known.attributes.size == found.metadata.size();
        if known.kind() == NodeKind::File && !unchanged && !self.pending.has_inode(number) {
            self.read_all_of(number);
        }
    }

    fn read_all_of(&mut self, number: u64) {
        self.pending.content(
            number,
            Some(ByteRange { start: 0, end: END }),
            self.always_clean,
            None,
            Instant::now(),
        );
    }

    /// A path may have led through a symbolic link that is not there any more, or another one: then nobody knows what was changed.
    pub(super) fn is_misled(&mut self, change: &Change, now: Instant) -> bool {
        let paths = change.names.iter().filter_map(|name| match name {
            Name::Path(path) => Some(path),
            Name::Entry { .. } => None,
        });
        let mut misled = false;
        for path in paths {
            let moves = change.op == FileOp::Symlink
                || change.op == FileOp::Rename
                    && matches!(self.catalog_at(path), Some((NodeKind::Symlink | NodeKind::Dir, _)));
            if moves {
                self.links_moved = Some(now);
            }
            let led = if change.op.may_follow_links() {
                &path[..]
            } else {
                path.split_last().map_or(&path[..], |(_, dirs)| dirs)
            };
            let there = self.inode_of_path(led);
            if led.is_empty() || there.is_some() && there == self.catalog_at(led).map(|(_, number)| number) {
                continue;
            }
            let recently = self.links_moved.is_some_and(|moved| now.duration_since(moved) < LINKS_MOVED);
            let is_link = |len| matches!(self.catalog_at(&led[..len]), Some((NodeKind::Symlink, _)));
            let was_link = (1..=led.len()).any(is_link);
            misled |= recently || was_link;
        }
        misled
    }

    /// What the catalog has there, and its number.
    fn catalog_at(&self, path: &[Vec<u8>]) -> Option<(NodeKind, u64)> {
        let mut node = NodeId::ROOT;
        for name in path {
            node = self.catalog.entry(node, name)?;
        }
        self.catalog.node(node).map(|node| (node.kind(), node.source.number))
    }

    pub(super) fn inode_of_path(&self, path: &[Vec<u8>]) -> Option<u64> {
        let mut found = self.source.root().ok()?;
        for name in path {
            found = self.source.look(&found.file, name).ok()??;
        }
        Some(found.metadata.ino())
    }
}

/// A directory that a name leads to.
struct Seen {
    is_new: bool,
    moved: bool,
}

impl Seen {
    fn fresh_or_deep(&self, deep: bool) -> bool {
        self.is_new || deep
    }
}

/// Removed or truncated while it was read.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE))
}
