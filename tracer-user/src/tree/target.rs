//! A directory that a tree is written to.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Uid,
};
use rustix::io::Errno;

use crate::model::{Attributes, ByteRange, NodeId, NodeKind};
use crate::tree::inode::{name_of, open_path, set_times};
use crate::tree::plan::{From, Names, Step};

/// Where what moves waits; nothing of a source can be called that.
const STAGING: &[u8] = b".afterwrite-staging";
const OPEN_MAX: usize = 64;
/// Names of a path that are looked up in one go, below PATH_MAX.
const NAMES_AT_ONCE: usize = 15;

/// What was done to a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    pub records: u64,
    pub data_bytes: u64,
    pub hole_bytes: u64,
    pub names: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum TreeTargetError {
    #[error("the target {} is not empty; name an empty or a new directory, or pass --force to have it emptied", path.display())]
    NotEmpty { path: PathBuf },
    #[error("the target {} is not a directory; name one", path.display())]
    NotADirectory { path: PathBuf },
    #[error("the target {} is in use by another afterwrite; stop that first", path.display())]
    Locked { path: PathBuf },
    #[error("cannot {what} {} in the target", display(name))]
    Io {
        what: &'static str,
        name: Names,
        #[source]
        source: io::Error,
    },
}

fn display(names: &Names) -> String {
    names.iter().map(|name| format!("/{}", name.escape_ascii())).collect::<String>()
}

/// The one writer of a target directory.
pub struct TargetTree {
    path: PathBuf,
    root: File,
    /// Files that are being written, by their numbers.
    open: HashMap<NodeId, File>,
}

impl TargetTree {
    /// Made if it is not there. Held as long as this lives.
    pub fn open(path: &Path) -> Result<TargetTree, TreeTargetError> {
        let failed = |what| move |source| TreeTargetError::Io { what, name: Vec::new(), source };
        match std::fs::metadata(path) {
            Ok(there) if !there.is_dir() => {
                return Err(TreeTargetError::NotADirectory { path: path.to_owned() });
            }
            Ok(_) => {}
            Err(_) => std::fs::create_dir_all(path).map_err(failed("make"))?,
        }
        let root = File::open(path).map_err(failed("open"))?;
        rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| TreeTargetError::Locked { path: path.to_owned() })?;
        Ok(TargetTree { path: path.to_owned(), root, open: HashMap::new() })
    }

    /// By which the directory is recognised again.
    pub fn identity(&self) -> io::Result<String> {
        let metadata = self.root.metadata()?;
        Ok(format!("dir:{:x}:{}", metadata.dev(), metadata.ino()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a directory with anything in it, or empties it.
    pub fn begin(&mut self, force: bool) -> Result<(), TreeTargetError> {
        let names = list(&self.root).map_err(at("list", &[]))?;
        let old = names.iter().filter(|name| *name != b"lost+found").count();
        if old > 0 && !force {
            return Err(TreeTargetError::NotEmpty { path: self.path.clone() });
        }
        names.iter().try_for_each(|name| remove_all(&self.root, name)).map_err(at("empty", &[]))
    }

    /// Makes all durable.
    pub fn sync(&mut self) -> Result<(), TreeTargetError> {
        self.open.clear();
        rustix::fs::syncfs(&self.root).map_err(at("sync", &[]))
    }

    pub fn step(
        &mut self,
        step: &Step,
        attributes: impl Fn(NodeId) -> Option<Attributes>,
    ) -> Result<(), TreeTargetError> {
        match step {
            Step::Remove { path, is_dir } => {
                let flags = if *is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                let removed = self.in_dir(path, |dir, name| rustix::fs::unlinkat(dir, name, flags));
                gone_is_fine(removed).map_err(at("remove", path))
            }
            Step::Stage { path, node } => {
                let staging = self.staging().map_err(at("stage", path))?;
                let to = staged(*node);
                if there(&staging, to.as_bytes()) {
                    return Ok(());
                }
                let moved = self.in_dir(path, |dir, name| rustix::fs::renameat(dir, name, &staging, &to));
                gone_is_fine(moved).map_err(at("stage", path))
            }
            Step::Make { path, node } => {
                let Some(attributes) = attributes(*node) else { return Ok(()) };
                let made = self.in_dir(path, |dir, name| make(dir, name, &attributes));
                there_is_fine(made).map_err(at("make", path))
            }
            Step::Place { path, node } => {
                let staging = self.staging().map_err(at("place", path))?;
                let from = staged(*node);
                if !there(&staging, from.as_bytes()) {
                    return Ok(());
                }
                self.in_dir(path, |dir, name| rustix::fs::renameat(&staging, &from, dir, name))
                    .map_err(at("place", path))
            }
            Step::Link { from: From::Staged(node), path } => {
                let staging = self.staging().map_err(at("link", path))?;
                let from = staged(*node);
                let linked = self.in_dir(path, |dir, name| {
                    rustix::fs::linkat(&staging, &from, dir, name, AtFlags::empty())
                });
                gone_is_fine(there_is_fine(linked)).map_err(at("link", path))
            }
            Step::Link { from: From::Path(from), path } => {
                let (dir, name) = self.parent(from).map_err(at("link", from))?;
                let linked =
                    self.in_dir(path, |to, new| rustix::fs::linkat(&dir, name, to, new, AtFlags::empty()));
                there_is_fine(linked).map_err(at("link", path))
            }
        }
    }

    pub fn write(
        &mut self,
        node: NodeId,
        path: &Names,
        start: u64,
        bytes: &[u8],
    ) -> Result<(), TreeTargetError> {
        let file = self.file(node, path).map_err(at("open", path))?;
        file.write_all_at(bytes, start).map_err(at("write", path))
    }

    /// The range reads as zeros, as far as the file goes; says how much that is.
    pub fn punch(&mut self, node: NodeId, path: &Names, range: ByteRange) -> Result<u64, TreeTargetError> {
        let file = self.file(node, path).map_err(at("open", path))?;
        let size = file.metadata().map_err(at("look at", path))?.size();
        let end = range.end.min(size);
        if range.start >= end {
            return Ok(0);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, flags, range.start, end - range.start) {
            Err(Errno::OPNOTSUPP) => zero(file, range.start, end).map_err(at("zero", path)),
            done => done.map_err(at("punch a hole into", path)),
        }?;
        Ok(end - range.start)
    }

    /// Everything but names and bytes, times last.
    pub fn set(
        &mut self,
        node: NodeId,
        path: &Names,
        attributes: &Attributes,
    ) -> Result<(), TreeTargetError> {
        if attributes.kind() == NodeKind::File {
            let file = self.file(node, path).map_err(at("open", path))?;
            if file.metadata().map_err(at("look at", path))?.size() != attributes.size {
                file.set_len(attributes.size).map_err(at("truncate", path))?;
            }
        }
        let file = match path.is_empty() {
            true => open_path(&self.root, b".").map_err(at("open", path))?,
            false => {
                let (dir, name) = self.parent(path).map_err(at("open", path))?;
                open_path(&dir, name).map_err(at("open", path))?
            }
        };
        set_owner_and_mode(&file, attributes).map_err(at("set owner and mode of", path))?;
        set_xattrs(&file, attributes).map_err(at("set extended attributes of", path))?;
        set_times(&file, attributes).map_err(at("set times of", path))
    }

    pub fn set_times(&mut self, path: &Names, attributes: &Attributes) -> Result<(), TreeTargetError> {
        let file = match path.is_empty() {
            true => open_path(&self.root, b".").map_err(at("open", path))?,
            false => {
                let (dir, name) = self.parent(path).map_err(at("open", path))?;
                open_path(&dir, name).map_err(at("open", path))?
            }
        };
        set_times(&file, attributes).map_err(at("set times of", path))
    }

    /// What moved is in its place.
    pub fn unstage(&mut self) -> Result<(), TreeTargetError> {
        gone_is_fine(rustix::fs::unlinkat(&self.root, STAGING, AtFlags::REMOVEDIR))
            .map_err(at("remove the staging directory", &[]))
    }

    fn staging(&self) -> io::Result<File> {
        there_is_fine(rustix::fs::mkdirat(&self.root, STAGING, Mode::RWXU))?;
        open_dir(&self.root, &[STAGING.to_vec()])
    }

    fn parent<'p>(&self, path: &'p Names) -> io::Result<(File, &'p [u8])> {
        let Some((name, dirs)) = path.split_last() else { return Err(Errno::INVAL.into()) };
        Ok((open_dir(&self.root, dirs)?, name))
    }

    fn in_dir(&self, path: &Names, act: impl FnOnce(&File, &[u8]) -> Result<(), Errno>) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(act(&dir, name)?)
    }

    fn file(&mut self, node: NodeId, path: &Names) -> io::Result<&File> {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        if !self.open.contains_key(&node) {
            let (dir, name) = self.parent(path)?;
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let file = File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?);
            self.open.insert(node, file);
        }
        Ok(&self.open[&node])
    }
}

fn at<E: Into<io::Error>>(what: &'static str, name: &[Vec<u8>]) -> impl FnOnce(E) -> TreeTargetError {
    let name = name.to_vec();
    move |source| TreeTargetError::Io { what, name, source: source.into() }
}

fn staged(node: NodeId) -> String {
    node.0.to_string()
}

fn there(dir: &File, name: &[u8]) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Below the root and through no symbolic link, whatever was put there meanwhile.
fn open_dir(root: &File, names: &[Vec<u8>]) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut dir = root.try_clone()?;
    for names in names.chunks(NAMES_AT_ONCE) {
        let path = names.join(&b'/');
        dir = File::from(rustix::fs::openat2(&dir, &path[..], flags, Mode::empty(), resolve)?);
    }
    Ok(dir)
}

fn make(dir: &File, name: &[u8], attributes: &Attributes) -> Result<(), Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    match attributes.kind() {
        NodeKind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, mode).map(drop)
        }
        NodeKind::Dir => rustix::fs::mkdirat(dir, name, Mode::RWXU),
        NodeKind::Symlink => rustix::fs::symlinkat(&attributes.link_target[..], dir, name),
        NodeKind::Special => {
            rustix::fs::mknodat(dir, name, FileType::from_raw_mode(attributes.mode), mode, attributes.rdev)
        }
    }
}

fn set_owner_and_mode(file: &File, attributes: &Attributes) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (attributes.uid, attributes.gid) {
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        rustix::fs::chownat(file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    if attributes.kind() != NodeKind::Symlink {
        // A change of owner takes the bits for others away.
        rustix::fs::chmod(name_of(file), Mode::from_raw_mode(attributes.mode & 0o7777))?;
    }
    Ok(())
}

fn set_xattrs(file: &File, attributes: &Attributes) -> io::Result<()> {
    let now = crate::tree::inode::attributes(file, &file.metadata()?)?;
    let path = name_of(file);
    for (name, _) in
        now.xattrs.iter().filter(|(name, _)| !attributes.xattrs.iter().any(|(wanted, _)| wanted == name))
    {
        rustix::fs::removexattr(&path, &name[..])?;
    }
    for xattr in attributes.xattrs.iter().filter(|xattr| !now.xattrs.contains(xattr)) {
        rustix::fs::setxattr(&path, &xattr.0[..], &xattr.1, rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

fn zero(file: &File, start: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 16];
    let mut at = start;
    while at < end {
        let len = (end - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..usize::try_from(len).unwrap_or(0)], at)?;
        at += len;
    }
    Ok(())
}

fn list(dir: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn remove_all(dir: &File, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
            list(&inner)?.iter().try_for_each(|name| remove_all(&inner, name))?;
            Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
        }
        done => Ok(done?),
    }
}

fn gone_is_fine<E: Into<io::Error>>(done: Result<(), E>) -> io::Result<()> {
    match done.map_err(Into::into) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(()),
        done => done,
    }
}

fn there_is_fine<E: Into<io::Error>>(done: Result<(), E>) -> io::Result<()> {
    match done.map_err(Into::into) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}
