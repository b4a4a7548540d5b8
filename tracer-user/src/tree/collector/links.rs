//! Calls whose path may have led through a symbolic link that is not there any more, or another one: what they changed nobody
//! knows. Only where names come as paths, which are looked up when the call is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::{FileOp, NodeId, NodeKind, TreeChange};
use crate::tree::collector::Collector;
use crate::tree::event::{Change, World};
use crate::tree::pending::Name;

/// No call is heard of later than this.
pub(super) const LATELY: Duration = Duration::from_secs(60);
/// How often what is older is forgotten.
const FORGETS: Duration = Duration::from_secs(10);

/// More are not remembered one by one.
const LINKS_MAX: usize = 1 << 16;
const RENAME_EXCHANGE: u32 = 2;

/// Names from the root of the tree on.
type Path = Vec<Vec<u8>>;

/// Where a symbolic link was lately, and may not be any more. Pure.
#[derive(Debug, Default)]
pub struct Links {
    lately: BTreeMap<Path, Instant>,
    /// Since when there may have been one anywhere.
    anywhere: Option<Instant>,
    forgot: Option<Instant>,
}

impl Links {
    fn forget(&mut self, now: Instant) {
        let is_old = |at: Instant| now.duration_since(at) >= LATELY;
        self.anywhere = self.anywhere.filter(|since| !is_old(*since));
        if self.forgot.is_none_or(|forgot| now.duration_since(forgot) > FORGETS) {
            self.forgot = Some(now);
            self.lately.retain(|_, noted| !is_old(*noted));
        }
    }

    fn note(&mut self, path: Path, now: Instant) {
        if self.lately.len() >= LINKS_MAX {
            self.lately.clear();
            self.anywhere = Some(now);
        }
        self.lately.insert(path, now);
    }

    fn contains(&self, path: &[Vec<u8>]) -> bool {
        self.anywhere.is_some() || self.lately.contains_key(path)
    }

    /// What is at `from`, or below, is or was at `to`, too. Nothing moves into itself.
    fn moves(&mut self, from: &[Vec<u8>], to: &[Vec<u8>], now: Instant) {
        if to.starts_with(from) {
            return;
        }
        let below = self.lately.range(from.to_vec()..).take_while(|(path, _)| path.starts_with(from));
        let moved: Vec<Path> = below.map(|(path, _)| [to, &path[from.len()..]].concat()).collect();
        moved.into_iter().for_each(|path| self.note(path, now));
    }
}

impl<W: World> Collector<W> {
    /// Whether it is not known what the change was of.
    pub(super) fn is_misled(&mut self, change: &Change, now: Instant) -> bool {
        let path = |name: &Name| match name {
            Name::Path(path) => Some(path.clone()),
            Name::Entry { .. } => None,
        };
        let paths: Vec<Path> = change.names.iter().filter_map(path).collect();
        self.links.forget(now);
        self.note_links(change, &paths, now);
        paths.iter().any(|path| self.may_mislead(path, change.follows))
    }

    fn note_links(&mut self, change: &Change, paths: &[Path], now: Instant) {
        match (change.op, paths) {
            (FileOp::Symlink, [path, ..]) => self.links.note(path.clone(), now),
            // What came from elsewhere may be a link, or a directory with links.
            (FileOp::Rename, [path]) => self.links.note(path.clone(), now),
            (FileOp::Rename, [from, to, ..]) => {
                let exchanged = change.detail & RENAME_EXCHANGE != 0;
                for (from, to) in [(from, to)].into_iter().chain(exchanged.then_some((to, from))) {
                    self.links.moves(from, to, now);
                    for below in self.links_below(from) {
                        self.links.note([from, &below[..]].concat(), now);
                        self.links.note([to, &below[..]].concat(), now);
                    }
                }
            }
            (FileOp::Link, [from, to, ..]) if self.was_link(from) => self.links.note(to.clone(), now),
            _ => {}
        }
    }

    /// Before the catalog changes: the links that are not there any more then.
    pub(super) fn note_links_gone(&mut self, change: &TreeChange) {
        let (dir, name, node) = match change {
            TreeChange::Unlink { dir, name } => (*dir, name, None),
            TreeChange::Link { dir, name, node } => (*dir, name, Some(*node)),
            _ => return,
        };
        let is = |node, kind| self.catalog.node(node).is_some_and(|node| node.kind() == kind);
        let replaced = self.catalog.entry(dir, name).filter(|old| is(*old, NodeKind::Symlink));
        let moved = node.filter(|node| is(*node, NodeKind::Dir));
        let mut gone = Vec::new();
        if replaced.is_some()
            && let Some(mut path) = self.catalog.path(dir)
        {
            path.push(name.clone());
            gone.push(path);
        }
        if let Some(path) = moved.and_then(|moved| self.catalog.path(moved)) {
            gone.extend(self.links_below(&path).into_iter().map(|below| [&path[..], &below].concat()));
        }
        let now = Instant::now();
        gone.into_iter().for_each(|path| self.links.note(path, now));
    }

    /// A link was there, by the path or on the way, and it is not known that the same is still there.
    fn may_mislead(&self, path: &Path, follows: bool) -> bool {
        let dirs = path.len().saturating_sub(1);
        if (1..=dirs).any(|len| self.was_link(&path[..len])) {
            return !self.is_as_known(&path[..dirs]);
        }
        follows && self.was_link(path) && !self.is_as_known(path)
    }

    fn was_link(&self, path: &[Vec<u8>]) -> bool {
        self.links.contains(path) || matches!(self.catalog_at(path), Some((NodeKind::Symlink, _)))
    }

    /// A link that is not known yet is taken for the one that was there.
    fn is_as_known(&self, path: &[Vec<u8>]) -> bool {
        match (self.found_at(path), self.catalog_at(path)) {
            (Some(found), Some((_, number))) => found.number == number,
            (Some(found), None) => found.is_link,
            (None, _) => false,
        }
    }

    /// What the catalog has there, and its number.
    fn catalog_at(&self, path: &[Vec<u8>]) -> Option<(NodeKind, u64)> {
        let node = self.node_at(path)?;
        self.catalog.node(node).map(|node| (node.kind(), node.source.number))
    }

    fn node_at(&self, path: &[Vec<u8>]) -> Option<NodeId> {
        path.iter().try_fold(NodeId::ROOT, |node, name| self.catalog.entry(node, name))
    }

    /// The links that the catalog has there, from there on: of a link an empty path.
    fn links_below(&self, path: &[Vec<u8>]) -> Vec<Path> {
        let mut links = Vec::new();
        let mut left: Vec<(NodeId, Path)> =
            self.node_at(path).map(|node| (node, Path::new())).into_iter().collect();
        while let Some((node, path)) = left.pop() {
            let Some(node) = self.catalog.node(node) else { continue };
            for (name, child) in &node.entries {
                left.push((*child, [&path[..], std::slice::from_ref(name)].concat()));
            }
            if node.kind() == NodeKind::Symlink {
                links.push(path);
            }
        }
        links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> Path {
        path.split('/').map(|name| name.into()).collect()
    }

    #[test]
    fn a_link_moves_with_its_directory_and_is_forgotten_after_a_while() {
        let (mut links, t) = (Links::default(), Instant::now());
        links.note(path("a/b/link"), t);
        links.note(path("a2/link"), t + Duration::from_secs(30));
        links.moves(&path("a"), &path("c/d"), t + Duration::from_secs(30));
        assert!(links.contains(&path("c/d/b/link")) && links.contains(&path("a/b/link")));
        assert!(!links.contains(&path("c/d2/link")) && !links.contains(&path("c/d/link")));
        links.forget(t + Duration::from_secs(61));
        assert!(!links.contains(&path("a/b/link")) && links.contains(&path("c/d/b/link")));
    }

    #[test]
    fn however_directories_move_not_more_is_remembered_than_there_is_room_for() {
        let (mut links, t) = (Links::default(), Instant::now());
        links.note(path("a/link"), t);
        for _ in 0..10_000 {
            links.moves(&path("a"), &path("a/b"), t);
        }
        assert_eq!(links.lately.len(), 1);
        for _ in 0..100 {
            links.moves(&path("a"), &path("b/c"), t);
            links.moves(&path("b"), &path("a/d"), t);
        }
        assert!(links.lately.len() <= LINKS_MAX && links.contains(&path("b/c/link")));
        links.forget(t + LATELY);
        assert!(!links.contains(&path("b/c/link")));
    }
}
