//! A file system that the kernel reads, from a scratch image of the point. Nothing is left behind however the process ends: the
//! image has no name, the loop device goes with its last user, and the mount is in no place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::files::{Entries, FileSystem, FsError, Node, TakeContent};
use crate::io::ScratchDisk;
use crate::model::ByteRange;
use crate::tree::attributes;

const READ_BYTES: usize = 1 << 20;

pub struct Mounted {
    root: OwnedFd,
    _disk: ScratchDisk,
}

impl Mounted {
    /// Mounts what is in a range of an image. The kernel may write to it, to recover the file system.
    pub fn mount(image: &File, range: ByteRange, kind: &str) -> Result<Mounted, FsError> {
        let disk = ScratchDisk::over(image, range).map_err(|source| FsError::Io {
            what: "make a loop device of a scratch image".to_owned(),
            source,
        })?;
        let root = mount(&disk, kind).map_err(|errno| FsError::Io {
            what: format!("mount the {kind} of this point (`dmesg` says why)"),
            source: errno.into(),
        })?;
        Ok(Mounted { root, _disk: disk })
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<File, FsError> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = openat2(&self.root, path, flags, Mode::empty(), resolve);
        Ok(File::from(opened.map_err(|errno| failed(path, errno))?))
    }
}

fn mount(disk: &ScratchDisk, kind: &str) -> Result<OwnedFd, rustix::io::Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", disk.path())?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    if kind == "xfs" {
        // It is a copy: the volume itself may be mounted.
        rustix::mount::fsconfig_set_flag(&context, "nouuid")?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn failed(path: &[u8], source: impl Into<io::Error>) -> FsError {
    FsError::Io { what: format!("read /{} of the mounted point", path.escape_ascii()), source: source.into() }
}

impl FileSystem for Mounted {
    /// From the root, without a slash before it.
    type Handle = Vec<u8>;

    fn root(&self) -> Vec<u8> {
        Vec::new()
    }

    fn node(&mut self, handle: &Vec<u8>) -> Result<Node, FsError> {
        let file = self.open(handle, OFlags::PATH)?;
        let metadata = file.metadata().map_err(|error| failed(handle, error))?;
        let attributes = attributes(&file, &metadata).map_err(|error| failed(handle, error))?;
        let links = u32::try_from(metadata.nlink()).unwrap_or(u32::MAX);
        Ok(Node { inode: metadata.ino(), links, attributes })
    }

    fn entries(&mut self, dir: &Vec<u8>) -> Result<Entries<Vec<u8>>, FsError> {
        let file = self.open(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        for entry in Dir::new(file).map_err(|errno| failed(dir, errno))? {
            let entry = entry.map_err(|errno| failed(dir, errno))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let path = if dir.is_empty() { name.to_vec() } else { [dir, &b"/"[..], name].concat() };
                entries.push((name.to_vec(), path));
            }
        }
        Ok(entries)
    }

    fn content(&mut self, file: &Vec<u8>, take: TakeContent<'_>) -> Result<(), FsError> {
        let path = file;
        let file = self.open(path, OFlags::RDONLY)?;
        let read_failed = |error| failed(path, error);
        let size = file.metadata().map_err(read_failed)?.size();
        let mut buffer = vec![0; READ_BYTES];
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
                Err(rustix::io::Errno::NXIO) => break,
                data => data.map_err(|errno| failed(path, errno))?,
            };
            let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data));
            let end = end.map_err(|errno| failed(path, errno))?.min(size);
            at = data;
            while at < end {
                let len = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
                file.read_exact_at(&mut buffer[..len], at).map_err(read_failed)?;
                take(at, &buffer[..len])
                    .map_err(|source| FsError::Io { what: "write what was read".to_owned(), source })?;
                at += len as u64;
            }
        }
        Ok(())
    }
}
