//! Some bytes of some files, by their paths, of a volume that lies somewhere as it is.

use crate::files::ext4::{Ext4, is_ext4};
use crate::files::path::{PathError, find};
use crate::files::volume::Volume;
use crate::files::{Entries, FileSystem, FsError};

/// Of an ext4, as that is read here without the kernel.
pub struct Samples<V> {
    fs: Ext4<V>,
    /// The directory that was looked at last: those who are asked for lie side by side.
    dir: Option<(Vec<u8>, Entries<u32>)>,
}

impl<V: Volume> Samples<V> {
    /// `None`: there is no ext4.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(mut volume: V) -> Result<Option<Samples<V>>, FsError> {
        if !is_ext4(&mut volume)? {
            return Ok(None);
        }
        Ok(Some(Samples { fs: Ext4::open(volume)?, dir: None }))
    }

    /// At most `len_max` bytes from `start` on; `None`: there is no such regular file. Follows no symbolic link.
    ///
    /// # Errors
    /// The file system cannot be read.
    pub fn read(&mut self, path: &[u8], start: u64, len_max: usize) -> Result<Option<Vec<u8>>, FsError> {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return Ok(None) };
        let (dir, name) = (&path[..slash], &path[slash + 1..]);
        if self.dir.as_ref().is_none_or(|(known, _)| known != dir) {
            let handle = match find(&mut self.fs, dir) {
                Ok((handle, _)) => handle,
                Err(PathError::Fs(error)) => return Err(error),
                Err(_) => return Ok(None),
            };
            self.dir = Some((dir.to_vec(), self.fs.entries(&handle)?));
        }
        let entries = self.dir.iter().flat_map(|(_, entries)| entries);
        let found = entries.filter(|(there, _)| there == name).map(|(_, inode)| *inode).next();
        found.map_or(Ok(None), |inode| self.fs.bytes_at(inode, start, len_max))
    }
}
