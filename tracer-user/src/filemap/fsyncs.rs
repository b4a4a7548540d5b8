//! Saves by fsync: they are told by the inode's number, and handle and name are found here.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, OFlags};

use crate::filemap::volume::Watched;
use crate::model::FileId;
use crate::tree::inode::{handle_of, handle_of_inode, name_of, open_path};

/// How often a file is looked for that is renamed at the same time; then the rename is heard of.
const TRIES: usize = 3;

/// Who hears of fsyncs of the watched file system; readable when there are some. A trait, as maps are made without BPF, too.
pub trait Fsyncs: AsFd {
    /// Those since.
    fn take(&mut self) -> Vec<FileId>;
    /// How many there were that `take` did not tell; never goes back.
    fn missing(&self) -> u64;
}

/// A file, by its handle and its name in a directory.
pub struct Place {
    pub handle: Vec<u8>,
    pub dir: Vec<u8>,
    pub name: Vec<u8>,
}

/// Whether inodes of this file system can be found by their numbers. `root`: the handle of one of them.
pub fn can_be_found(root: &[u8]) -> bool {
    handle_of_inode(root, 1, 0).is_some()
}

/// `None` if it is no file below the watched directory, or gone.
pub fn place_of(watched: &Watched, root: &[u8], file: FileId) -> io::Result<Option<Place>> {
    let Some(handle) = handle_of_inode(root, file.inode, file.generation) else { return Ok(None) };
    let Some(found) = watched.source.open_inode(&handle, OFlags::PATH)? else { return Ok(None) };
    if !found.metadata()?.is_file() {
        return Ok(None);
    }
    let handle = handle_of(&found)?;
    for _ in 0..TRIES {
        // It is in use, so the kernel knows its name.
        let path = std::fs::read_link(name_of(&found))?;
        if !path.starts_with(watched.source.path()) {
            return Ok(None);
        }
        if let Some((dir, name)) = in_directory(watched, &path, &handle)? {
            return Ok(Some(Place { handle, dir, name }));
        }
    }
    Ok(None)
}

/// The directory's handle and the name, if the file with this handle has this path now.
fn in_directory(watched: &Watched, path: &Path, handle: &[u8]) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let dir = match open_path(CWD, dir.as_os_str().as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        dir => dir?,
    };
    let name = name.as_bytes().to_vec();
    let there = watched.source.look(&dir, &name)?.is_some_and(|there| there.handle == handle);
    Ok(if there { Some((handle_of(&dir)?, name)) } else { None })
}
