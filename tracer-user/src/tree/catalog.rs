//! What a tree's records come to: its inodes and names, without the bytes of files. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::model::{Attributes, NodeId, NodeKind, SourceInode, TreeChange};

/// Directories above each other.
const DEPTH_MAX: usize = 4096;

/// An entry of a directory.
pub type Place = (NodeId, Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub attributes: Attributes,
    pub source: SourceInode,
    /// Of a directory.
    pub entries: BTreeMap<Vec<u8>, NodeId>,
    /// Where it hangs: once, but for files with hard links.
    pub places: Vec<Place>,
}

impl Node {
    pub fn kind(&self) -> NodeKind {
        self.attributes.kind()
    }
}

/// A tree after some of its records. What has no name is forgotten at the next mark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    nodes: HashMap<NodeId, Node>,
    /// The last one of a number.
    by_inode: HashMap<u64, NodeId>,
    /// Without a name, since the last mark.
    loose: BTreeSet<NodeId>,
    last: NodeId,
    /// What was changed since somebody began to ask.
    pub since: Option<Difference>,
}

/// What was changed since a state, and how names were in it. At marks what came and went is forgotten now and then, so that this
/// is not larger than the two states, however many records lie between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What names led to that were touched, and whether it was a directory.
    pub names: HashMap<Place, Option<(NodeId, bool)>>,
    /// Inodes that were not there.
    pub made: HashSet<NodeId>,
    /// Inodes whose attributes were told again.
    pub told: BTreeSet<NodeId>,
    /// How many names and inodes there were when it was done last.
    thinned: usize,
}

/// Fewer are not worth it.
const THIN_MIN: usize = 1 << 16;

impl Catalog {
    pub fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node)
    }

    pub fn entry(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.nodes.get(&dir)?.entries.get(name).copied()
    }

    /// The inode of the source with this number, as far as it is known.
    pub fn of_inode(&self, number: u64) -> Option<NodeId> {
        self.by_inode.get(&number).copied()
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The highest number that an inode ever had.
    pub fn last(&self) -> NodeId {
        self.last
    }

    /// The number the next new inode gets.
    pub fn next(&self) -> NodeId {
        NodeId(self.last.0 + 1)
    }

    /// From the root; `None` for what has no name, or hangs on nothing.
    pub fn path(&self, node: NodeId) -> Option<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let mut at = node;
        while at != NodeId::ROOT {
            let (dir, name) = self.nodes.get(&at)?.places.first()?;
            names.push(name.clone());
            if names.len() > DEPTH_MAX {
                return None;
            }
            at = *dir;
        }
        names.reverse();
        Some(names)
    }

    pub fn apply(&mut self, change: &TreeChange) {
        match change {
            TreeChange::Inode { node, attributes, source } => self.tell(*node, attributes, source),
            TreeChange::Link { dir, name, node } => self.link(*dir, name, *node),
            TreeChange::Unlink { dir, name } => self.unlink(*dir, name),
            TreeChange::Data { .. } | TreeChange::Hole { .. } => {}
        }
    }

    /// A mark: what has no name is gone for good.
    pub fn mark(&mut self) {
        while let Some(node) = self.loose.pop_first() {
            let Some(gone) = self.nodes.get(&node).filter(|there| there.places.is_empty()) else { continue };
            let names: Vec<_> = gone.entries.keys().cloned().collect();
            for name in names {
                self.unlink(node, &name);
            }
            let Some(gone) = self.nodes.remove(&node) else { continue };
            if self.by_inode.get(&gone.source.number) == Some(&node) {
                self.by_inode.remove(&gone.source.number);
            }
        }
        self.thin();
    }

    /// Forgets of the difference what came and went.
    fn thin(&mut self) {
        let Some(mut since) = self.since.take() else { return };
        if since.names.len() + since.told.len() > 2 * since.thinned + THIN_MIN {
            since.names.retain(|(dir, name), before| before.map(|(node, _)| node) != self.entry(*dir, name));
            since.told.retain(|node| self.nodes.contains_key(node));
            since.made.retain(|node| self.nodes.contains_key(node));
            since.thinned = since.names.len() + since.told.len();
        }
        self.since = Some(since);
    }

    fn tell(&mut self, node: NodeId, attributes: &Attributes, source: &SourceInode) {
        self.last = self.last.max(node);
        if let Some(since) = &mut self.since {
            since.told.insert(node);
            if !self.nodes.contains_key(&node) {
                since.made.insert(node);
            }
        }
        self.by_inode.insert(source.number, node);
        match self.nodes.get_mut(&node) {
            Some(known) => {
                known.attributes.clone_from(attributes);
                known.source.clone_from(source);
            }
            None => {
                let (attributes, source) = (attributes.clone(), source.clone());
                self.nodes
                    .insert(node, Node { attributes, source, entries: BTreeMap::new(), places: Vec::new() });
                if node != NodeId::ROOT {
                    self.loose.insert(node);
                }
            }
        }
    }

    fn link(&mut self, dir: NodeId, name: &[u8], node: NodeId) {
        let Some(linked) = self.nodes.get(&node) else { return };
        if !self.nodes.contains_key(&dir) || node == NodeId::ROOT {
            return;
        }
        if linked.kind() == NodeKind::Dir
            && let Some((old_dir, old_name)) = linked.places.first().cloned()
        {
            self.unlink(old_dir, &old_name);
        }
        self.unlink(dir, name);
        self.touch(dir, name);
        if let Some(dir) = self.nodes.get_mut(&dir) {
            dir.entries.insert(name.to_vec(), node);
        }
        if let Some(linked) = self.nodes.get_mut(&node) {
            linked.places.push((dir, name.to_vec()));
        }
        self.loose.remove(&node);
    }

    fn unlink(&mut self, dir: NodeId, name: &[u8]) {
        self.touch(dir, name);
        let Some(node) = self.nodes.get_mut(&dir).and_then(|dir| dir.entries.remove(name)) else { return };
        let Some(unlinked) = self.nodes.get_mut(&node) else { return };
        unlinked.places.retain(|(of, named)| *of != dir || named != name);
        if unlinked.places.is_empty() {
            self.loose.insert(node);
        }
    }

    /// Before a name is changed.
    fn touch(&mut self, dir: NodeId, name: &[u8]) {
        let before = self.entry(dir, name);
        let is_dir = |node: NodeId| self.nodes.get(&node).is_some_and(|node| node.kind() == NodeKind::Dir);
        let before = before.map(|node| (node, is_dir(node)));
        if let Some(since) = &mut self.since {
            since.names.entry((dir, name.to_vec())).or_insert(before);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn inode(node: u64, mode: u32) -> TreeChange {
        let attributes = Box::new(Attributes { mode, ..Attributes::default() });
        let source = SourceInode { number: 100 + node, ..SourceInode::default() };
        TreeChange::Inode { node: NodeId(node), attributes, source }
    }

    pub fn link(dir: u64, name: &str, node: u64) -> TreeChange {
        TreeChange::Link { dir: NodeId(dir), name: name.into(), node: NodeId(node) }
    }

    pub fn unlink(dir: u64, name: &str) -> TreeChange {
        TreeChange::Unlink { dir: NodeId(dir), name: name.into() }
    }

    pub const DIR: u32 = 0o040_755;
    pub const FILE: u32 = 0o100_644;

    /// `/a` (2), `/a/b` (3), `/a/b/f` (4), `/f` (4)
    pub fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        for change in [
            inode(1, DIR),
            inode(2, DIR),
            inode(3, DIR),
            inode(4, FILE),
            link(1, "a", 2),
            link(2, "b", 3),
            link(3, "f", 4),
            link(1, "f", 4),
        ] {
            catalog.apply(&change);
        }
        catalog.mark();
        catalog
    }

    /// One of: a new inode, a name less, another name or place.
    pub fn some_change(
        catalog: &Catalog,
        (what, which, dir, name): (u8, usize, usize, u8),
    ) -> Vec<TreeChange> {
        let mut nodes: Vec<NodeId> =
            catalog.nodes().map(|(id, _)| id).filter(|id| *id != NodeId::ROOT).collect();
        let mut dirs: Vec<NodeId> =
            catalog.nodes().filter(|(_, node)| node.kind() == NodeKind::Dir).map(|(id, _)| id).collect();
        nodes.sort();
        dirs.sort();
        let (dir, name) = (dirs[dir % dirs.len()], vec![b'a' + name % 4]);
        let mut changes = Vec::new();
        let node = match what {
            0 | 1 => {
                let new = inode(catalog.next().0, if what == 0 { FILE } else { DIR });
                changes.push(new);
                catalog.next()
            }
            2 => return vec![TreeChange::Unlink { dir, name }],
            _ if nodes.is_empty() => return changes,
            _ => nodes[which % nodes.len()],
        };
        // No directory is put below itself, as no file system would.
        let mut at = dir;
        while at != node && at != NodeId::ROOT {
            match catalog.node(at).and_then(|node| node.places.first()) {
                Some((above, _)) => at = *above,
                None => return changes,
            }
        }
        if at != node {
            changes.push(TreeChange::Link { dir, name, node });
        }
        changes
    }

    fn path(catalog: &Catalog, node: u64) -> Option<String> {
        let names = catalog.path(NodeId(node))?;
        Some(names.iter().map(|name| format!("/{}", name.escape_ascii())).collect())
    }

    #[test]
    fn a_directory_has_one_place_and_a_file_as_many_as_names() {
        let mut catalog = catalog();
        assert_eq!(catalog.node(NodeId(4)).unwrap().places.len(), 2);
        catalog.apply(&link(1, "c", 3));
        assert_eq!((path(&catalog, 3).as_deref(), catalog.entry(NodeId(2), b"b")), (Some("/c"), None));
        assert_eq!(path(&catalog, 4).as_deref(), Some("/c/f"));
    }

    #[test]
    fn what_has_no_name_can_come_back_until_the_next_mark() {
        let mut catalog = catalog();
        catalog.apply(&unlink(1, "a"));
        catalog.apply(&link(1, "z", 2));
        catalog.mark();
        assert_eq!(path(&catalog, 3).as_deref(), Some("/z/b"));
        catalog.apply(&unlink(1, "z"));
        catalog.mark();
        // The file has another name.
        assert!(catalog.node(NodeId(3)).is_none() && path(&catalog, 4).as_deref() == Some("/f"));
        assert_eq!(catalog.of_inode(103), None);
        assert_eq!(catalog.next(), NodeId(5));
    }

    #[test]
    fn a_difference_says_how_names_were_first() {
        let mut catalog = catalog();
        catalog.since = Some(Difference::default());
        catalog.apply(&inode(5, FILE));
        catalog.apply(&link(1, "f", 5));
        catalog.apply(&unlink(1, "f"));
        catalog.mark();
        let since = catalog.since.take().unwrap();
        assert_eq!(since.names[&(NodeId(1), b"f".to_vec())], Some((NodeId(4), false)));
        assert!(since.made.contains(&NodeId(5)) && catalog.node(NodeId(5)).is_none());
    }
}
