use crate::files::path::{PathError, find, joined, normal};
use crate::files::{FileSystem, FsError, Node};
use crate::model::NodeKind;

/// A name of a file system, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// From the file system's root.
    pub path: Vec<u8>,
    pub node: Node,
}

/// Lists what is in a directory in the order of the names, with `recursive` all below it, too; or a file itself. `take` says
/// whether it wants more.
pub fn list<F: FileSystem>(
    fs: &mut F,
    path: &[u8],
    recursive: bool,
    take: &mut dyn FnMut(Listed) -> bool,
) -> Result<(), PathError> {
    let (handle, node) = find(fs, path)?;
    let path = normal(path)?;
    if node.attributes.kind() != NodeKind::Dir {
        take(Listed { path, node });
        return Ok(());
    }
    // Directories that were begun: where they are, and what of them is still to be listed, the last first.
    let mut begun = vec![begin(fs, path, &handle, node.inode)?];
    while let Some(dir) = begun.last_mut() {
        let Some((name, handle)) = dir.left.pop() else {
            begun.pop();
            continue;
        };
        let path = joined(&dir.path, &name);
        let node = fs.node(&handle)?;
        let (inode, is_dir) = (node.inode, node.attributes.kind() == NodeKind::Dir);
        if !take(Listed { path: path.clone(), node }) {
            return Ok(());
        }
        if is_dir && recursive {
            if begun.iter().any(|dir| dir.inode == inode) {
                let what = format!("directory {} is within itself", path.escape_ascii());
                return Err(FsError::corrupt(what).into());
            }
            let dir = begin(fs, path, &handle, inode)?;
            begun.push(dir);
        }
    }
    Ok(())
}

struct Begun<H> {
    path: Vec<u8>,
    inode: u64,
    left: Vec<(Vec<u8>, H)>,
}

fn begin<F: FileSystem>(
    fs: &mut F,
    path: Vec<u8>,
    dir: &F::Handle,
    inode: u64,
) -> Result<Begun<F::Handle>, FsError> {
    let mut left = fs.entries(dir)?;
    left.sort_by(|one, two| two.0.cmp(&one.0));
    Ok(Begun { path, inode, left })
}
