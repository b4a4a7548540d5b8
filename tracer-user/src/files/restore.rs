//! Writing a file or a tree that was read to a place of this machine.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::files::path::{PathError, find, joined, normal};
use crate::files::{FileSystem, FsError, Node};
use crate::model::{Attributes, NodeKind};
use crate::tree::{name_of, open_path, set_times};

/// What is written has this name in a directory beside its place.
const WORK_NAME: &[u8] = b"restored";

#[derive(Clone, Debug)]
pub struct RestoreFile {
    /// From the file system's root.
    pub path: Vec<u8>,
    pub output: PathBuf,
    /// A directory with all below it.
    pub recursive: bool,
    /// Replace what is there.
    pub force: bool,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub files: u64,
    pub dirs: u64,
    /// Symbolic links, pipes, sockets and devices.
    pub others: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Content, without holes.
    pub data_bytes: u64,
    /// What could not be made as it was.
    pub lost: Vec<Lost>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Of the point, escaped.
    pub path: String,
    pub what: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreFileError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error("{} is a directory; pass --recursive to restore it with all below it", path.escape_ascii())]
    IsADirectory { path: Vec<u8> },
    #[error("{} is there already; name another path, or pass --force to have it replaced", path.display())]
    Exists { path: PathBuf },
    #[error("{} names no file; name one that is to be made", path.display())]
    NoName { path: PathBuf },
    #[error("cannot {what} {}; nothing was restored", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write what {} is restored to; nothing was restored", path.escape_ascii())]
    Write {
        path: Vec<u8>,
        #[source]
        source: io::Error,
    },
}

/// Writes it beside `output`, and gives it that name when all is on the disk.
pub fn restore_file<F: FileSystem>(fs: &mut F, options: &RestoreFile) -> Result<Restored, RestoreFileError> {
    let RestoreFile { path, output, recursive, force } = options;
    let (handle, node) = find(fs, path)?;
    let path = normal(path)?;
    let is_dir = node.attributes.kind() == NodeKind::Dir;
    if is_dir && !recursive {
        return Err(RestoreFileError::IsADirectory { path });
    }
    let Some(name) = output.file_name() else {
        return Err(RestoreFileError::NoName { path: output.clone() });
    };
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let exists = || RestoreFileError::Exists { path: output.clone() };
    let there = output.symlink_metadata().ok();
    if there.is_some() && !force {
        return Err(exists());
    }
    let failed = |what| move |source| RestoreFileError::Io { what, path: output.clone(), source };
    let dir = File::open(parent).map_err(failed("open the directory of"))?;
    // Gone with this run, unless it is killed.
    let beside = tempfile::Builder::new().prefix(".afterwrite-").tempdir_in(parent);
    let beside = beside.map_err(failed("write beside"))?;
    let work = File::open(beside.path()).map_err(failed("write beside"))?;
    let is_root = rustix::process::geteuid().is_root();
    let mut writer =
        Writer { root: work, is_root, linked: HashMap::new(), above: Vec::new(), done: Restored::default() };
    let root = writer.root.try_clone().map_err(failed("write beside"))?;
    writer.put(fs, (&handle, node), Put { dir: &root, name: WORK_NAME, at: WORK_NAME.to_vec(), path })?;
    rustix::fs::syncfs(&writer.root).map_err(|errno| failed("sync")(errno.into()))?;

    let swaps = there.is_some_and(|there| there.is_dir() || is_dir);
    let flags = match force {
        false => RenameFlags::NOREPLACE,
        // What was there is removed with the work directory.
        true if swaps => RenameFlags::EXCHANGE,
        true => RenameFlags::empty(),
    };
    match rustix::fs::renameat_with(&writer.root, WORK_NAME, &dir, name.as_bytes(), flags) {
        Err(Errno::EXIST) => return Err(exists()),
        done => done.map_err(|errno| failed("make")(errno.into()))?,
    }
    dir.sync_all().map_err(failed("sync the directory of"))?;
    beside.close().map_err(failed("remove the work directory beside"))?;
    Ok(writer.done)
}

struct Writer {
    root: File,
    is_root: bool,
    /// Inodes with several names, and where the first one was written.
    linked: HashMap<u64, Vec<u8>>,
    /// The directories that it is in.
    above: Vec<u64>,
    done: Restored,
}

/// Where something goes.
struct Put<'a> {
    dir: &'a File,
    name: &'a [u8],
    /// From the writer's root.
    at: Vec<u8>,
    /// Of the point.
    path: Vec<u8>,
}

impl Writer {
    fn put<F: FileSystem>(
        &mut self,
        fs: &mut F,
        (handle, node): (&F::Handle, Node),
        to: Put<'_>,
    ) -> Result<(), RestoreFileError> {
        let Put { dir, name, at, path } = to;
        let Node { inode, links, attributes } = &node;
        let kind = attributes.kind();
        let failed = |source| RestoreFileError::Write { path: path.clone(), source };
        let failed_errno = |errno: Errno| failed(errno.into());
        if *links > 1 && kind != NodeKind::Dir {
            if let Some(first) = self.linked.get(inode) {
                let linked = rustix::fs::linkat(&self.root, &first[..], dir, name, AtFlags::empty());
                linked.map_err(failed_errno)?;
                self.done.hard_links += 1;
                return Ok(());
            }
            self.linked.insert(*inode, at.clone());
        }
        match kind {
            NodeKind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR);
                let file = File::from(file.map_err(failed_errno)?);
                file.set_len(attributes.size).map_err(failed)?;
                let mut data_bytes = 0;
                fs.content(handle, &mut |start, bytes| {
                    data_bytes += bytes.len() as u64;
                    file.write_all_at(bytes, start)
                })?;
                self.done.data_bytes += data_bytes;
                self.done.files += 1;
            }
            NodeKind::Dir => {
                if self.above.contains(inode) {
                    let what = format!("directory {} is within itself", path.escape_ascii());
                    return Err(FsError::corrupt(what).into());
                }
                rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(failed_errno)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(failed_errno)?;
                let made = File::from(made);
                self.above.push(*inode);
                for (name, handle) in fs.entries(handle)? {
                    let node = fs.node(&handle)?;
                    let (at, path) = ([&at[..], b"/", &name].concat(), joined(&path, &name));
                    self.put(fs, (&handle, node), Put { dir: &made, name: &name, at, path })?;
                }
                self.above.pop();
                self.done.dirs += 1;
            }
            NodeKind::Symlink => {
                rustix::fs::symlinkat(&attributes.link_target[..], dir, name).map_err(failed_errno)?;
                self.done.others += 1;
            }
            NodeKind::Special => {
                let (kind, mode) = (FileType::from_raw_mode(attributes.mode), Mode::RUSR | Mode::WUSR);
                match rustix::fs::mknodat(dir, name, kind, mode, attributes.rdev) {
                    Err(Errno::PERM) => {
                        self.lose(&path, "a device, which only root can make");
                        self.linked.remove(inode);
                        return Ok(());
                    }
                    made => made.map_err(failed_errno)?,
                }
                self.done.others += 1;
            }
        }
        let file = open_path(dir, name).map_err(failed)?;
        self.dress(&file, attributes, &path).map_err(failed)
    }

    /// All but names and bytes, times last.
    fn dress(&mut self, file: &File, attributes: &Attributes, path: &[u8]) -> io::Result<()> {
        let Attributes { mode, uid, gid, xattrs, .. } = attributes;
        if self.is_root {
            let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
            rustix::fs::chownat(file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        let name = name_of(file);
        if attributes.kind() != NodeKind::Symlink {
            // A change of owner takes the bits for others away.
            rustix::fs::chmod(&name, Mode::from_raw_mode(mode & 0o7777))?;
        }
        for (xattr, value) in xattrs {
            if let Err(errno) = rustix::fs::setxattr(&name, &xattr[..], value, XattrFlags::empty()) {
                let why = io::Error::from(errno);
                self.lose(path, &format!("extended attribute {}: {why}", xattr.escape_ascii()));
            }
        }
        set_times(file, attributes)
    }

    fn lose(&mut self, path: &[u8], what: &str) {
        let path = path.escape_ascii().to_string();
        self.done.lost.push(Lost { path, what: what.to_owned() });
    }
}
