//! The tree that is protected, by its inodes.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, OFlags, SeekFrom, seek};
use rustix::io::Errno;

use crate::model::{Attributes, ByteRange, FileTime, SourceInode};
use crate::tree::inode::{attributes, changed, clean, handle_of, open_handle, open_path};

/// Longer pieces of content are cut.
pub const PIECE_BYTES_MAX: u64 = 1 << 20;

pub struct Source {
    path: PathBuf,
    root: File,
    dev: u64,
}

/// An inode as it was found.
pub struct Found {
    pub file: File,
    pub metadata: Metadata,
    pub handle: Vec<u8>,
}

/// What a range of a file holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data { start: u64, bytes: Vec<u8> },
    Hole(ByteRange),
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{} is not a directory; name one, or a block device", path.display())]
    NotADirectory { path: PathBuf },
    #[error("cannot open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the file system of {} does not tell its files apart by handles, which protecting a tree needs (overlayfs, FUSE \
         and some others don't); protect a directory on ext4, xfs or btrfs, or run as root",
        path.display()
    )]
    NoHandles {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Source {
    pub fn open(path: &Path) -> Result<Source, SourceError> {
        let failed = |source| SourceError::Open { path: path.to_owned(), source };
        let root = File::open(path).map_err(failed)?;
        let metadata = root.metadata().map_err(failed)?;
        if !metadata.is_dir() {
            return Err(SourceError::NotADirectory { path: path.to_owned() });
        }
        let source = Source { path: path.to_owned(), root, dev: metadata.dev() };
        let none = |source| SourceError::NoHandles { path: path.to_owned(), source };
        let handle = handle_of(&source.root).map_err(none)?;
        match source.open_inode(&handle, OFlags::PATH).map_err(none)? {
            Some(_) => Ok(source),
            None => Err(none(io::Error::from_raw_os_error(libc::ESTALE))),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn dir(&self) -> &File {
        &self.root
    }

    /// Not of another file system that is mounted inside.
    pub fn is_of(&self, metadata: &Metadata) -> bool {
        metadata.dev() == self.dev
    }

    pub fn root(&self) -> io::Result<Found> {
        let file = self.root.try_clone()?;
        Ok(Found { metadata: file.metadata()?, handle: handle_of(&file)?, file })
    }

    /// `None` if it is no more.
    pub fn open_inode(&self, handle: &[u8], flags: OFlags) -> io::Result<Option<File>> {
        open_handle(self.root.as_fd(), handle, flags)
    }

    /// `None`: there is no such name now, or another file system is mounted there.
    pub fn look(&self, dir: &File, name: &[u8]) -> io::Result<Option<Found>> {
        let file = match open_path(dir, name) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESTALE)) =>
            {
                return Ok(None);
            }
            file => file?,
        };
        let metadata = file.metadata()?;
        if !self.is_of(&metadata) {
            return Ok(None);
        }
        Ok(Some(Found { handle: handle_of(&file)?, metadata, file }))
    }

    /// The names in a directory.
    pub fn list(&self, handle: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
        let Some(dir) = self.open_inode(handle, flags)? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in Dir::new(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }
}

impl Found {
    pub fn attributes(&self) -> io::Result<Attributes> {
        attributes(&self.file, &self.metadata)
    }

    /// `trusted`: an equal `st_ctime` will prove later that nothing has changed.
    pub fn inode(&self, trusted: bool) -> SourceInode {
        let changed = if trusted { changed(&self.metadata) } else { FileTime::default() };
        SourceInode { number: self.metadata.ino(), changed, handle: self.handle.clone() }
    }
}

/// What a regular file holds in `range`, which may go beyond its end; `visit` says whether to go on. Returns up to where it
/// was read.
pub fn read(
    file: &File,
    range: ByteRange,
    clean_first: bool,
    visit: &mut dyn FnMut(Piece) -> io::Result<bool>,
) -> io::Result<u64> {
    if clean_first && !range.is_empty() {
        clean(file, range.start, range.len())?;
    }
    let size = file.metadata()?.size();
    let mut at = range.start;
    while at < range.end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, range.end),
            // None up to the end, or there is no such place.
            Err(Errno::NXIO) => range.end,
            Err(errno) => return Err(errno.into()),
        };
        if data > at {
            if !visit(Piece::Hole(ByteRange { start: at, end: data }))? {
                return Ok(data);
            }
            at = data;
            continue;
        }
        let hole = seek(file, SeekFrom::Hole(at)).map_or(size, |hole| hole).max(at + 1);
        let len = (hole.min(range.end) - at).min(PIECE_BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let count = read_all(file, &mut bytes, at)?;
        bytes.truncate(count);
        // Cut off meanwhile: whoever did that is heard of.
        let end = if count == 0 { range.end } else { at + count as u64 };
        let piece = match count {
            0 => Piece::Hole(ByteRange { start: at, end }),
            _ => Piece::Data { start: at, bytes },
        };
        if !visit(piece)? {
            return Ok(end);
        }
        at = end;
    }
    Ok(at)
}

fn read_all(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < bytes.len() {
        match file.read_at(&mut bytes[count..], at + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
