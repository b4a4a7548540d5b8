//! What the path of a system call means: for the fallback, which sees calls before anybody has looked the path up.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::io::clock::monotonic_ns;
use crate::io::mount_table::{MountPoint, locate, reach};
use crate::model::FileId;
use crate::origin::tree::Tree;

/// A file system and the path within it.
pub type Place = (u32, Vec<u8>);

/// What the directories in calls' paths really are. Many calls after each other name what is in the same one.
#[derive(Default)]
pub struct Lookups {
    /// When it was looked at (CLOCK_MONOTONIC), and what was found.
    dirs: HashMap<Vec<u8>, (u64, Vec<u8>)>,
}

impl Lookups {
    pub fn clear(&mut self) {
        self.dirs.clear();
    }

    /// Absolute, through no symbolic link but perhaps the last name, as far as that can still be found out: by the mounts of
    /// this process, through symbolic links that are still there. What was looked at after the call serves, too.
    pub fn real_name(
        &mut self,
        (mounts, tree): (&[MountPoint], &Tree),
        (base, path): (FileId, &[u8]),
        time_ns: u64,
    ) -> Option<Vec<u8>> {
        let absolute = if path.starts_with(b"/") {
            path.to_vec()
        } else {
            let base = tree.path(base).and_then(|inside| reach(mounts, base.dev, &inside))?;
            [&base, &b"/"[..], path].concat()
        };
        let plain = without_dots(&absolute);
        let (dir, name) = plain.rsplit_at_slash();
        let real = self.real_dir(dir, time_ns);
        let real = real.map_or_else(|| plain.clone(), |dir| [&dir, &b"/"[..], name].concat());
        Some(without_dots(&real))
    }

    fn real_dir(&mut self, dir: &[u8], time_ns: u64) -> Option<Vec<u8>> {
        if let Some((looked_ns, real)) = self.dirs.get(dir)
            && time_ns < *looked_ns
        {
            return Some(real.clone());
        }
        let now_ns = monotonic_ns();
        let real = Path::new(OsStr::from_bytes(dir)).canonicalize().ok()?.into_os_string().into_vec();
        self.dirs.insert(dir.to_vec(), (now_ns, real.clone()));
        Some(real)
    }
}

/// Where the symbolic link of this name leads; `None` if it is none.
pub fn follow(mounts: &[MountPoint], real: &[u8]) -> Option<Place> {
    let link = Path::new(OsStr::from_bytes(real));
    if !link.symlink_metadata().ok()?.is_symlink() {
        return None;
    }
    locate(mounts, link.canonicalize().ok()?.as_os_str().as_bytes())
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
        let look_up = |base, path: &[u8]| {
            let real = Lookups::default().real_name((&mounts, &tree), (base, path), 0)?;
            locate(&mounts, &real)
        };
        assert_eq!(look_up(dir, b"x/../y"), Some((7, b"/dir/y".to_vec())));
        assert_eq!(look_up(dir, b"/no/such/mount/z"), Some((7, b"/z".to_vec())));
        assert_eq!(look_up(FileId::default(), b"y"), None);
    }

    #[test]
    fn a_directory_is_looked_at_again_for_a_call_that_came_later() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let (link, file) = (top.join("link"), top.join("link/file"));
        let leads_to = |to: &str| {
            let _ = std::fs::remove_file(&link);
            std::fs::create_dir_all(top.join(to)).unwrap();
            std::os::unix::fs::symlink(to, &link).unwrap();
        };
        let mut lookups = Lookups::default();
        let mut real = |time_ns| {
            let path = file.as_os_str().as_bytes();
            let real =
                lookups.real_name((&[], &Tree::default()), (FileId::default(), path), time_ns).unwrap();
            std::path::PathBuf::from(std::ffi::OsString::from_vec(real))
        };
        let before = monotonic_ns();
        leads_to("one");
        assert_eq!(real(before), top.join("one/file"));
        leads_to("two");
        assert_eq!(real(before), top.join("one/file"));
        assert_eq!(real(monotonic_ns()), top.join("two/file"));
    }
}
