//! Where the inodes of the watched file systems hang, from what the probes tell. Pure.

use std::collections::HashMap;

use crate::capture::vfs::Named;
use crate::model::{FileId, FileOp};

/// Inodes that are remembered.
const NODES_MAX: usize = 1 << 20;
/// Directories above each other.
const DEPTH_MAX: usize = 4096;
/// For so long after a rename a probe may still tell the old name, which it read just before.
const SETTLES_NS: u64 = 1_000_000_000;
const RENAME_EXCHANGE: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    parent: FileId,
    name: Vec<u8>,
}

/// A tree by its child-to-parent links: a directory that is renamed takes all below it along.
#[derive(Debug, Default)]
pub struct Tree {
    places: HashMap<FileId, Place>,
    /// Where an inode was until lately.
    left: HashMap<FileId, (u64, Place)>,
}

/// The paths that a change is about, from the root of the file system; empty where they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Paths {
    pub path: Vec<u8>,
    /// Of a rename, or link.
    pub new_path: Vec<u8>,
    /// Where `path` leads, if it is a symbolic link: perhaps that is what changes.
    pub followed: Vec<u8>,
}

impl Paths {
    /// That of the change: where a link elsewhere leads, if there is no other.
    pub fn any(self) -> Vec<u8> {
        if self.path.is_empty() { self.followed } else { self.path }
    }
}

impl Tree {
    /// A probe tells where an inode hangs.
    pub fn hangs(&mut self, time_ns: u64, file: FileId, parent: FileId, name: Vec<u8>) {
        let place = Place { parent, name };
        if let Some((since, old)) = self.left.get(&file)
            && *old == place
            && time_ns < since.saturating_add(SETTLES_NS)
        {
            return;
        }
        self.left.remove(&file);
        self.places.insert(file, place);
    }

    /// What a change is about; from then on names are as after it.
    pub fn change(&mut self, time_ns: u64, op: FileOp, detail: u32, file: FileId, named: &Named) -> Paths {
        match named {
            Named::No => Paths { path: self.path(file).unwrap_or_default(), ..Paths::default() },
            Named::Entry { dir, name } if op == FileOp::Link => {
                let new_path = self.entry(*dir, name).unwrap_or_default();
                Paths { path: self.path(file).unwrap_or_default(), new_path, ..Paths::default() }
            }
            Named::Entry { dir, name } => {
                let path = self.entry(*dir, name).unwrap_or_default();
                if file.inode != 0 && !op.removes() {
                    self.places.insert(file, Place { parent: *dir, name: name.clone() });
                }
                Paths { path, ..Paths::default() }
            }
            Named::Rename { from, to, victim } => {
                let [path, new_path] =
                    [from, to].map(|(dir, name)| self.entry(*dir, name).unwrap_or_default());
                self.moves(time_ns, file, from, to);
                if detail & RENAME_EXCHANGE != 0 {
                    self.moves(time_ns, *victim, to, from);
                }
                Paths { path, new_path, ..Paths::default() }
            }
            // Nobody has looked it up: see `Places`.
            Named::Path { .. } => Paths::default(),
        }
    }

    fn moves(&mut self, time_ns: u64, file: FileId, from: &(FileId, Vec<u8>), to: &(FileId, Vec<u8>)) {
        if file.inode == 0 {
            return;
        }
        let [from, to] = [from, to].map(|(parent, name)| Place { parent: *parent, name: name.clone() });
        self.left.retain(|_, (since, _)| time_ns < since.saturating_add(SETTLES_NS));
        self.left.insert(file, (time_ns, from));
        self.places.insert(file, to);
    }

    /// The path of an inode.
    pub fn path(&self, file: FileId) -> Option<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = file;
        for _ in 0..DEPTH_MAX {
            let place = self.places.get(&at)?;
            if place.parent == at {
                let mut path = Vec::new();
                for name in names.iter().rev() {
                    path.push(b'/');
                    path.extend_from_slice(name);
                }
                return Some(if path.is_empty() { b"/".to_vec() } else { path });
            }
            names.push(&place.name);
            at = place.parent;
        }
        None
    }

    /// The path of a directory's entry.
    pub fn entry(&self, dir: FileId, name: &[u8]) -> Option<Vec<u8>> {
        let mut path = self.path(dir)?;
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Some(path)
    }

    /// Too much to remember: whoever forgets it has the probes tell it anew.
    pub fn is_full(&self) -> bool {
        self.places.len() >= NODES_MAX
    }

    pub fn clear(&mut self) {
        self.places.clear();
        self.left.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(inode: u64) -> FileId {
        FileId { inode, generation: 1, dev: 9 }
    }

    /// `/` (2), `/dir` (3), `/dir/sub` (4), `/dir/sub/file` (5)
    fn tree() -> Tree {
        let mut tree = Tree::default();
        for (inode, parent, name) in [(5, 4, "file"), (4, 3, "sub"), (3, 2, "dir"), (2, 2, "/")] {
            tree.hangs(0, id(inode), id(parent), name.into());
        }
        tree
    }

    fn path(tree: &Tree, inode: u64) -> String {
        String::from_utf8(tree.path(id(inode)).unwrap_or_default()).unwrap()
    }

    fn rename(from: (u64, &str), to: (u64, &str), victim: u64) -> Named {
        let place = |(dir, name): (u64, &str)| (id(dir), name.as_bytes().to_vec());
        let victim = if victim == 0 { FileId::default() } else { id(victim) };
        Named::Rename { from: place(from), to: place(to), victim }
    }

    #[test]
    fn a_path_goes_up_to_the_root() {
        let tree = tree();
        assert_eq!(path(&tree, 5), "/dir/sub/file");
        assert_eq!(path(&tree, 2), "/");
        assert_eq!(tree.entry(id(2), b"new"), Some(b"/new".to_vec()));
        assert_eq!(tree.path(id(77)), None);
    }

    #[test]
    fn a_renamed_directory_takes_what_is_below_it_along() {
        let mut tree = tree();
        let paths = tree.change(10, FileOp::Rename, 0, id(3), &rename((2, "dir"), (2, "moved"), 0));
        assert_eq!((&*paths.path, &*paths.new_path), (&b"/dir"[..], &b"/moved"[..]));
        assert_eq!(path(&tree, 5), "/moved/sub/file");
    }

    #[test]
    fn an_exchange_moves_both() {
        let mut tree = tree();
        tree.hangs(0, id(6), id(2), b"other".to_vec());
        let named = rename((4, "file"), (2, "other"), 6);
        tree.change(10, FileOp::Rename, RENAME_EXCHANGE, id(5), &named);
        assert_eq!((path(&tree, 5).as_str(), path(&tree, 6).as_str()), ("/other", "/dir/sub/file"));
    }

    #[test]
    fn an_old_name_that_was_read_just_before_the_rename_does_not_come_back() {
        let mut tree = tree();
        tree.change(10, FileOp::Rename, 0, id(5), &rename((4, "file"), (4, "new"), 0));
        tree.hangs(11, id(5), id(4), b"file".to_vec());
        assert_eq!(path(&tree, 5), "/dir/sub/new");
        // The rename failed, or it was renamed back in a way that nobody saw.
        tree.hangs(11 + SETTLES_NS, id(5), id(4), b"file".to_vec());
        assert_eq!(path(&tree, 5), "/dir/sub/file");
    }

    #[test]
    fn what_is_removed_keeps_its_path_for_those_who_have_it_open() {
        let mut tree = tree();
        let entry = Named::Entry { dir: id(4), name: b"file".to_vec() };
        assert_eq!(tree.change(10, FileOp::Unlink, 0, id(5), &entry).path, b"/dir/sub/file");
        assert_eq!(path(&tree, 5), "/dir/sub/file");
    }

    #[test]
    fn a_file_that_is_made_has_the_name_it_was_made_with() {
        let mut tree = tree();
        let entry = Named::Entry { dir: id(3), name: b"\xff\n".to_vec() };
        tree.change(10, FileOp::Create, 0, id(9), &entry);
        assert_eq!(tree.path(id(9)).unwrap(), b"/dir/\xff\n");
    }

    #[test]
    fn links_that_form_a_circle_end() {
        let mut tree = Tree::default();
        tree.hangs(0, id(5), id(6), b"a".to_vec());
        tree.hangs(0, id(6), id(5), b"b".to_vec());
        assert_eq!(tree.path(id(5)), None);
    }
}
