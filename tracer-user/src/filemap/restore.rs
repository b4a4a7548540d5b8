//! A copy of one file, which comes to its name when it is whole.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{XattrFlags, fsetxattr};

use crate::model::Attributes;
use crate::tree::set_times;

/// What a kill leaves begins so, and goes with the next copy of the file.
const TEMPORARY_PREFIX: &[u8] = b".afterwrite-";

pub struct Restore {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Restore {
    /// At `below` in `target`; `inode` tells apart what is copied at the same time. Directories are made as they are in
    /// `source`.
    pub fn create(target: &Path, source: &Path, below: &Path, inode: u64) -> io::Result<Restore> {
        if !below.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(io::Error::other("a path that leads elsewhere"));
        }
        let path = target.join(below);
        let dirs = Vec::from_iter(below.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()));
        for dir in dirs.into_iter().rev() {
            make_dir(&target.join(dir), &source.join(dir))?;
        }
        let mut name = OsString::from(std::ffi::OsStr::from_bytes(TEMPORARY_PREFIX));
        name.push(format!("{inode}.tmp"));
        let temporary = path.with_file_name(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        Ok(Restore { file, temporary, path })
    }

    /// As after `create`, for another try.
    pub fn begin_anew(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Gives it all that belongs to it and its name; when this returns it is durable.
    pub fn finish(self, attributes: &Attributes) -> io::Result<()> {
        self.file.set_len(attributes.size)?;
        std::os::unix::fs::fchown(&self.file, Some(attributes.uid), Some(attributes.gid))?;
        // After the owner: a change of that takes set-user-ID away.
        self.file.set_permissions(Permissions::from_mode(attributes.mode & 0o7777))?;
        for (name, value) in &attributes.xattrs {
            fsetxattr(&self.file, &name[..], value, XattrFlags::empty())?;
        }
        set_times(&self.file, attributes)?;
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    pub fn abandon(self) -> io::Result<()> {
        std::fs::remove_file(&self.temporary)
    }
}

fn make_dir(dir: &Path, like: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    // The source's may be gone by now.
    if let Ok(metadata) = std::fs::metadata(like) {
        std::os::unix::fs::chown(dir, Some(metadata.uid()), Some(metadata.gid()))?;
        std::fs::set_permissions(dir, Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    File::open(dir.parent().unwrap_or(Path::new("/")))?.sync_all()
}
