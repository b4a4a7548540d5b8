//! What the path of a system call means: for the fallback, which sees calls before anybody has looked the path up.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::io::mount_table::{MountPoint, locate, reach};
use crate::model::FileId;
use crate::origin::tree::Tree;

/// A file system and the path within it.
pub type Place = (u32, Vec<u8>);

/// The file system and the path within it, as far as that can still be found out: by the mounts of this process, through
/// symbolic links that are still there.
pub fn look_up(mounts: &[MountPoint], tree: &Tree, base: FileId, path: &[u8]) -> Option<Place> {
    let real = real_name(mounts, tree, base, path)?;
    locate(mounts, &real)
}

/// Where the symbolic link leads that the path names; `None` if it names none.
pub fn follow(mounts: &[MountPoint], tree: &Tree, base: FileId, path: &[u8]) -> Option<Place> {
    let link = real_name(mounts, tree, base, path)?;
    let link = Path::new(OsStr::from_bytes(&link));
    if !link.symlink_metadata().ok()?.is_symlink() {
        return None;
    }
    locate(mounts, link.canonicalize().ok()?.as_os_str().as_bytes())
}

/// Absolute, through no symbolic link but perhaps the last name.
fn real_name(mounts: &[MountPoint], tree: &Tree, base: FileId, path: &[u8]) -> Option<Vec<u8>> {
    let absolute = if path.starts_with(b"/") {
        path.to_vec()
    } else {
        let base = tree.path(base).and_then(|inside| reach(mounts, base.dev, &inside))?;
        [&base, &b"/"[..], path].concat()
    };
    let plain = without_dots(&absolute);
    let (dir, name) = plain.rsplit_at_slash();
    let real = Path::new(OsStr::from_bytes(dir)).canonicalize();
    let real = real.map_or_else(|_| plain.clone(), |dir| [dir.as_os_str().as_bytes(), b"/", name].concat());
    Some(without_dots(&real))
}

trait SplitPath {
    fn rsplit_at_slash(&self) -> (&[u8], &[u8]);
}

impl SplitPath for Vec<u8> {
    /// Directory and name.
    fn rsplit_at_slash(&self) -> (&[u8], &[u8]) {
        match self.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&self[..at.max(1)], &self[at + 1..]),
            None => (b"/", self),
        }
    }
}

/// Resolves `.`, `..` and repeated slashes, as if there were no symbolic links.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let mut plain = Vec::with_capacity(path.len());
    for name in names {
        plain.push(b'/');
        plain.extend_from_slice(name);
    }
    if plain.is_empty() { b"/".to_vec() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_go_and_the_root_has_no_parent() {
        assert_eq!(without_dots(b"/a/./b//../c/"), b"/a/c");
        assert_eq!(without_dots(b"/../.."), b"/");
    }

    #[test]
    fn a_relative_path_begins_at_its_directory() {
        let root = FileId { inode: 2, generation: 0, dev: 7 };
        let dir = FileId { inode: 3, generation: 0, dev: 7 };
        let mut tree = Tree::default();
        tree.hangs(0, root, root, b"/".to_vec());
        tree.hangs(0, dir, root, b"dir".to_vec());
        let mount = |dev, point: &[u8]| MountPoint { dev, root: b"/".to_vec(), point: point.to_vec() };
        let mounts = [mount(1, b"/"), mount(7, b"/no/such/mount")];
        assert_eq!(look_up(&mounts, &tree, dir, b"x/../y"), Some((7, b"/dir/y".to_vec())));
        assert_eq!(look_up(&mounts, &tree, dir, b"/no/such/mount/z"), Some((7, b"/z".to_vec())));
        assert_eq!(look_up(&mounts, &tree, FileId::default(), b"y"), None);
    }
}
