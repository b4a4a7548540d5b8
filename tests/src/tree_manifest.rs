//! What a directory tree holds, as found without any code of Afterwrite: to hold two trees against each other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::libc;

use crate::ways::system::c_path;

/// By path from the root of the tree: all that belongs to it, as text.
pub fn tree_manifest(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut manifest = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        manifest.insert(dir.clone(), describe(&root.join(&dir))?);
        for entry in fs::read_dir(root.join(&dir)).with_context(|| format!("{dir:?}"))? {
            let path = dir.join(entry?.file_name());
            let full = root.join(&path);
            let metadata = full.symlink_metadata()?;
            if metadata.is_dir() {
                dirs.push(path);
                continue;
            }
            let mut what = describe(&full).with_context(|| format!("{path:?}"))?;
            if metadata.nlink() > 1 {
                inodes.entry(metadata.ino()).or_insert_with(Vec::new).push(path.clone());
                what += &format!(" links {}", metadata.nlink());
            }
            manifest.insert(path, what);
        }
    }
    // Names of one inode name each other.
    for mut names in inodes.into_values() {
        names.sort();
        for name in &names {
            manifest.get_mut(name).context("it was described")?.push_str(&format!(" of {:?}", names[0]));
        }
    }
    Ok(manifest)
}

/// An error that names what is different.
pub fn same_trees(source: &Path, target: &Path) -> Result<()> {
    let (one, two) = (tree_manifest(source)?, tree_manifest(target)?);
    let differing = one.keys().chain(two.keys()).filter(|path| one.get(*path) != two.get(*path));
    let differing: Vec<_> = differing
        .take(10)
        .map(|path| {
            let bytes = bytes_differ(&source.join(path), &target.join(path)).unwrap_or_default();
            format!("{path:?}:\n  {:?}\n  {:?}\n  {bytes}", one.get(path), two.get(path))
        })
        .collect();
    ensure!(differing.is_empty(), "{source:?} and {target:?} differ:\n{}", differing.join("\n"));
    Ok(())
}

/// Everything but times of access and of change, numbers of inodes, holes.
fn describe(path: &Path) -> Result<String> {
    let metadata = path.symlink_metadata()?;
    let mut what = format!(
        "{:o} {}:{} {}.{:09} dev {}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.rdev()
    );
    if metadata.is_file() {
        what += &format!(" {} {}", metadata.size(), hash(path)?);
    } else if metadata.is_symlink() {
        what += &format!(" -> {:?}", fs::read_link(path)?);
    }
    for (name, value) in xattrs(path)? {
        what += &format!(" {}={}", name.escape_ascii(), value.escape_ascii());
    }
    Ok(what)
}

fn hash(path: &Path) -> Result<String> {
    let (mut file, mut hasher) = (fs::File::open(path)?, blake3::Hasher::new());
    let mut bytes = vec![0; 1 << 16];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hasher.finalize().to_hex()[..16].to_owned()),
            count => hasher.update(&bytes[..count]),
        };
    }
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = c_path(path);
    let mut names = vec![0u8; 1 << 16];
    // SAFETY: the path ends with a 0, and the buffer is as long as is said.
    let count = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(count) = usize::try_from(count) else { return no_xattrs() };
    let mut xattrs = BTreeMap::new();
    // XFS lists its ACLs twice.
    let names = names[..count].split_inclusive(|byte| *byte == 0);
    for name in names.filter(|name| !name.starts_with(b"trusted.SGI_ACL_")) {
        let mut value = vec![0u8; 1 << 16];
        // SAFETY: path and name end with a 0, and the buffer is as long as is said.
        let count = unsafe {
            libc::lgetxattr(path.as_ptr(), name.as_ptr().cast(), value.as_mut_ptr().cast(), value.len())
        };
        let Ok(count) = usize::try_from(count) else { return no_xattrs() };
        value.truncate(count);
        xattrs.insert(name[..name.len() - 1].to_vec(), value);
    }
    Ok(xattrs)
}

fn no_xattrs<T: Default>() -> io::Result<T> {
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(T::default()) } else { Err(error) }
}

/// Where they do, for people.
fn bytes_differ(one: &Path, two: &Path) -> Option<String> {
    if !one.symlink_metadata().ok()?.is_file() || !two.symlink_metadata().ok()?.is_file() {
        return None;
    }
    let (one, two) = (fs::read(one).ok()?, fs::read(two).ok()?);
    let at: Vec<usize> = (0..one.len().min(two.len())).filter(|at| one[*at] != two[*at]).collect();
    let pages: std::collections::BTreeSet<usize> = at.iter().map(|at| at >> 12).collect();
    Some(format!("{} bytes differ, in pages {pages:?}", at.len()))
}
