//! Names: what they lead to now, and what that means for the catalog.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use rustix::fs::OFlags;

use crate::model::{ByteRange, NodeId, NodeKind, TreeChange};
use crate::tree::collector::links::LATELY;
use crate::tree::collector::{Collector, Depth, TURN_NAMES, TreeError};
use crate::tree::event::World;
use crate::tree::inode::{changed, modified, open_path};
use crate::tree::pending::{END, Name};
use crate::tree::source::Found;

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
                    .see(scan.dir, dir, &name, scan.depth)?
                    .is_some_and(|child| child.is_new || scan.depth != Depth::Names)
                {
                    let child = self.catalog.entry(scan.dir, &name);
                    child.into_iter().for_each(|child| self.scan(child, scan.depth));
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
        // Paths come in order: of one that shares directories with the one before, only the rest is looked at.
        let mut way: Vec<(Vec<u8>, NodeId)> = Vec::new();
        for name in names {
            match name {
                Name::Entry { dir, name } => {
                    // Outside of the tree; or not known yet, and will be looked at when it is.
                    if let Some(node) = self.catalog.of_inode(dir) {
                        self.look_at(node, &name)?;
                    }
                }
                Name::Path(path) => self.look_along(&path, &mut way)?,
            }
            self.hear_meanwhile()?;
        }
        Ok(any)
    }

    /// Each name of the path; `way` is what was looked at just now, and what it led to.
    fn look_along(&mut self, path: &[Vec<u8>], way: &mut Vec<(Vec<u8>, NodeId)>) -> Result<(), TreeError> {
        let shared = way.iter().zip(path).take_while(|((seen, _), name)| seen == *name).count();
        way.truncate(shared);
        for name in &path[shared..] {
            let dir = way.last().map_or(NodeId::ROOT, |(_, node)| *node);
            match self.look_at(dir, name)? {
                Some(node) => way.push((name.clone(), node)),
                None => break,
            }
        }
        Ok(())
    }

    fn look_at(&mut self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, TreeError> {
        let Some(open) = self.open_dir(dir)? else { return Ok(None) };
        let before = self.catalog.entry(dir, name);
        let seen = self.see(dir, &open, name, Depth::Names)?;
        let node = self.catalog.entry(dir, name);
        if let (Some(seen), Some(node)) = (&seen, node)
            && (seen.is_new || seen.moved && self.by_path)
        {
            self.scan(node, Depth::Below);
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
    fn see(
        &mut self,
        dir: NodeId,
        open: &File,
        name: &[u8],
        depth: Depth,
    ) -> Result<Option<Seen>, TreeError> {
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
            if let Some(known) = known {
                self.emit(TreeChange::Unlink { dir, name: name.to_vec() })?;
                self.refresh_others(known)?;
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
            known.map_or(Ok(()), |known| self.refresh_others(known))?;
        }
        if !is_new {
            if depth == Depth::Contents {
                self.doubt(node, &found);
            } else if moved || depth == Depth::Below {
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

    /// A file that lost a name by which its attributes may have been changed just before: by another name, if it has one.
    fn refresh_others(&mut self, node: NodeId) -> Result<(), TreeError> {
        match self.catalog.node(node).is_some_and(|node| !node.places.is_empty()) {
            true => self.refresh(node, false),
            false => Ok(()),
        }
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

    /// Of a file whose length was changed by path, which led nowhere any more, it is not known which it was; of others it is.
    fn doubt_moved(&mut self, node: NodeId, found: &Found) {
        if self.cut_by_path.is_none_or(|at| at.elapsed() > LATELY) {
            return;
        }
        let Some(known) = self.catalog.node(node) else { return };
        let number = found.metadata.ino();
        let unchanged = known.attributes.modified == modified(&found.metadata)
            && known.attributes.size == found.metadata.size();
        if known.kind() == NodeKind::File && !unchanged {
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

    /// What is at the path now.
    pub(super) fn found_at(&self, path: &[Vec<u8>]) -> Option<FoundAt> {
        let mut dir = None::<File>;
        for name in path {
            dir = Some(open_path(dir.as_ref().unwrap_or(self.source.dir()), name).ok()?);
        }
        let metadata = dir.as_ref().unwrap_or(self.source.dir()).metadata().ok()?;
        let is_link = metadata.is_symlink();
        self.source.is_of(&metadata).then(|| FoundAt { number: metadata.ino(), is_link })
    }
}

/// What a path leads to, without following a link at its end.
pub(super) struct FoundAt {
    pub number: u64,
    pub is_link: bool,
}

/// A directory that a name leads to.
struct Seen {
    is_new: bool,
    moved: bool,
}

/// Removed or truncated while it was read.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE))
}
