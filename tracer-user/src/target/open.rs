use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Whence, lseek};

use crate::io::store::forget_cache;
use crate::io::{BlockDevice, DeviceNumber};
use crate::target::TargetError;
use crate::target::medium::Kind;

/// What the caller knows of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenTarget {
    /// Nothing is on it yet: a file that is created, or without content, or a block device whose first MiB is zero.
    /// `force` takes one that has content: a file is emptied, a device is left as it is until it is written.
    New { force: bool },
    /// It was written by Afterwrite before and keeps its content.
    Resume,
}

pub(super) struct Opened {
    pub(super) file: File,
    pub(super) kind: Kind,
    pub(super) identity: String,
    /// A new target that may still show old content where nothing is written (a block device).
    pub(super) may_hold_old_bytes: bool,
    pub(super) lock: Option<Flock<File>>,
}

const PROBED_BYTES: u64 = 1 << 20;

pub(super) fn open(path: &Path, size_bytes: u64, how: OpenTarget) -> Result<Opened, TargetError> {
    let failed = |what| move |source| TargetError::Io { what, path: path.to_owned(), source };
    let before = before(path, how)?;
    let is_device = before.as_ref().is_some_and(|metadata| metadata.file_type().is_block_device());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(before.is_none());
    let file = open_by(options, path, is_device)?;
    let opened = file.metadata().map_err(failed("look at"))?;
    suitable(path, &opened)?;
    if how == OpenTarget::Resume {
        // What a failed write-back left in the cache is no replica. What has not been synced since the checkpoint is
        // applied again.
        forget_cache(&file);
    }
    if is_device {
        open_device(path, file, &opened, size_bytes, how)
    } else {
        open_file(path, file, &opened, size_bytes, how, before.is_none())
    }
}

/// Whether `open` would take it, as far as that can be told without writing to it.
pub(crate) fn look(path: &Path, size_bytes: u64, how: OpenTarget) -> Result<(), TargetError> {
    let Some(metadata) = before(path, how)? else { return Ok(()) };
    let is_device = metadata.file_type().is_block_device();
    let mut options = OpenOptions::new();
    options.read(true);
    let file = open_by(options, path, is_device)?;
    match is_device {
        true => look_at_device(path, &file, size_bytes, how),
        false => look_at_file(path, &file, &metadata, size_bytes, how),
    }
}

/// What is there; `None` where nothing is and something may be made.
fn before(path: &Path, how: OpenTarget) -> Result<Option<Metadata>, TargetError> {
    let path = path.to_owned();
    match fs::metadata(&path) {
        Ok(metadata) => suitable(&path, &metadata).map(|()| Some(metadata)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TargetError::Io { what: "look at", path, source: error })
        }
        Err(_) if how == OpenTarget::Resume => Err(TargetError::Missing { path }),
        Err(_) if !parent(&path).is_dir() => Err(TargetError::NoParent { path }),
        Err(_) => Ok(None),
    }
}

fn open_by(mut options: OpenOptions, path: &Path, is_device: bool) -> Result<File, TargetError> {
    if is_device {
        // Fails with EBUSY while it is mounted, a dm or md member, or opened by another TargetWriter.
        options.custom_flags(libc::O_EXCL);
    }
    options.open(path).map_err(|source| refused(path, source))
}

fn look_at_device(path: &Path, file: &File, size_bytes: u64, how: OpenTarget) -> Result<(), TargetError> {
    let device = BlockDevice::open(path)?;
    if device.read_only {
        // The kernel opens it all the same, and refuses the first write.
        return Err(TargetError::ReadOnly { path: path.to_owned() });
    }
    if device.size_bytes < size_bytes {
        return Err(TargetError::TooSmall {
            path: path.to_owned(),
            size_bytes: device.size_bytes,
            needed_bytes: size_bytes,
        });
    }
    if how == (OpenTarget::New { force: false }) {
        let mut head = Vec::new();
        let failed = |source| TargetError::Io { what: "read", path: path.to_owned(), source };
        file.take(PROBED_BYTES).read_to_end(&mut head).map_err(failed)?;
        if let Some(at) = head.iter().position(|byte| *byte != 0) {
            let found = format!("byte {at} of the device is not zero");
            return Err(TargetError::NotEmpty { path: path.to_owned(), found });
        }
    }
    Ok(())
}

fn look_at_file(
    path: &Path,
    file: &File,
    metadata: &Metadata,
    size_bytes: u64,
    how: OpenTarget,
) -> Result<(), TargetError> {
    match how {
        OpenTarget::Resume if metadata.len() < size_bytes => Err(TargetError::TooSmall {
            path: path.to_owned(),
            size_bytes: metadata.len(),
            needed_bytes: size_bytes,
        }),
        OpenTarget::New { force: false } => {
            let failed = |source| TargetError::Io { what: "look into", path: path.to_owned(), source };
            match first_data(file).map_err(failed)? {
                Some(at) => {
                    let found = format!("a file of {} bytes with data from byte {at} on", metadata.len());
                    Err(TargetError::NotEmpty { path: path.to_owned(), found })
                }
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn open_device(
    path: &Path,
    file: File,
    metadata: &Metadata,
    size_bytes: u64,
    how: OpenTarget,
) -> Result<Opened, TargetError> {
    look_at_device(path, &file, size_bytes, how)?;
    let identity = identity_of(path, metadata);
    let may_hold_old_bytes = how != OpenTarget::Resume;
    Ok(Opened { file, kind: Kind::Device, identity, may_hold_old_bytes, lock: None })
}

fn open_file(
    path: &Path,
    file: File,
    metadata: &Metadata,
    size_bytes: u64,
    how: OpenTarget,
    created: bool,
) -> Result<Opened, TargetError> {
    let failed = |what| move |source| TargetError::Io { what, path: path.to_owned(), source };
    let locked = file.try_clone().map_err(failed("lock"))?;
    let lock = match Flock::lock(locked, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Some(lock),
        Err((_, Errno::EWOULDBLOCK)) => {
            return Err(TargetError::Busy { path: path.to_owned(), by: "another process holds its lock" });
        }
        // A file system without locks: nothing to do about it.
        Err((_, Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS)) => None,
        Err((_, errno)) => return Err(failed("lock")(errno.into())),
    };
    look_at_file(path, &file, metadata, size_bytes, how)?;
    if how != OpenTarget::Resume {
        file.set_len(0).map_err(failed("empty"))?;
        file.set_len(size_bytes).map_err(failed("set the size of"))?;
    }
    if created {
        // The name must be on disk before a checkpoint speaks of it.
        let parent = parent(path);
        File::open(&parent).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory of"))?;
    }
    Ok(Opened {
        file,
        kind: Kind::File,
        identity: identity_of(path, metadata),
        may_hold_old_bytes: false,
        lock,
    })
}

/// Recognises a target again, also after a reboot: inode and birth time of a file; of a device what the hardware or its
/// mapping says, for device numbers change.
pub(super) fn identity_of(path: &Path, metadata: &Metadata) -> String {
    if metadata.file_type().is_block_device() {
        return match BlockDevice::open(path) {
            Ok(device) => format!("dev:{}", device.identity()),
            Err(_) => format!("dev:{}", DeviceNumber::from_stat(metadata.rdev())),
        };
    }
    match metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok()) {
        Some(born) => format!("file:{}:{}", metadata.ino(), born.as_nanos()),
        None => format!("file:{}:{}", metadata.dev(), metadata.ino()),
    }
}

/// Where the first allocated byte of a file is; a file of holes only is as good as an empty one.
fn first_data(file: &File) -> io::Result<Option<u64>> {
    match lseek(file, 0, Whence::SeekData) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn suitable(path: &Path, metadata: &Metadata) -> Result<(), TargetError> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_char_device() => "a character device",
        () => "neither a file nor a block device",
    };
    Err(TargetError::Unsuitable { path: path.to_owned(), what })
}

fn refused(path: &Path, source: io::Error) -> TargetError {
    let path = path.to_owned();
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => {
            TargetError::Busy { path, by: "it is mounted, or another program or device holds it" }
        }
        Some(Errno::ETXTBSY) => {
            TargetError::Busy { path, by: "the kernel uses it as swap or as a running program" }
        }
        Some(Errno::EROFS) => TargetError::ReadOnly { path },
        _ => TargetError::Io { what: "open", path, source },
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const NEW: OpenTarget = OpenTarget::New { force: false };

    fn error_of(path: &Path, size: u64, how: OpenTarget) -> TargetError {
        match open(path, size, how) {
            Ok(_) => panic!("{} must be refused", path.display()),
            Err(error) => error,
        }
    }

    #[test]
    fn a_new_file_has_the_size_of_the_volume_and_no_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        drop(open(&path, 10 << 20, NEW).unwrap());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (10 << 20, 0));
        // Nothing but holes: still new.
        drop(open(&path, 20 << 20, NEW).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 20 << 20);
    }

    #[test]
    fn a_file_with_content_is_refused_and_untouched_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, b"precious").unwrap();
        assert!(matches!(error_of(&path, 4096, NEW), TargetError::NotEmpty { .. }));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        drop(open(&path, 4096, OpenTarget::New { force: true }).unwrap());
        assert_eq!(fs::read(&path).unwrap(), vec![0; 4096]);
    }

    #[test]
    fn a_look_says_what_opening_would_and_leaves_all_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        look(&path, 4096, NEW).unwrap();
        assert!(!path.exists());
        fs::write(&path, b"precious").unwrap();
        assert!(matches!(look(&path, 4096, NEW), Err(TargetError::NotEmpty { .. })));
        look(&path, 4096, OpenTarget::New { force: true }).unwrap();
        assert!(matches!(look(&path, 4096, OpenTarget::Resume), Err(TargetError::TooSmall { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(matches!(look(dir.path(), 4096, NEW), Err(TargetError::Unsuitable { .. })));
        assert!(matches!(look(&dir.path().join("no/image"), 4096, NEW), Err(TargetError::NoParent { .. })));
    }

    #[test]
    fn resume_keeps_the_content_and_wants_an_existing_large_enough_target() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        assert!(matches!(error_of(&path, 4096, OpenTarget::Resume), TargetError::Missing { .. }));
        assert!(!path.exists());
        fs::write(&path, vec![5; 4096]).unwrap();
        drop(open(&path, 4096, OpenTarget::Resume).unwrap());
        assert_eq!(fs::read(&path).unwrap(), vec![5; 4096]);
        assert!(matches!(error_of(&path, 8192, OpenTarget::Resume), TargetError::TooSmall { .. }));
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(error_of(dir.path(), 4096, NEW), TargetError::Unsuitable { .. }));
        assert!(matches!(error_of(Path::new("/dev/null"), 4096, NEW), TargetError::Unsuitable { .. }));
        assert!(matches!(error_of(&dir.path().join("no/image"), 4096, NEW), TargetError::NoParent { .. }));
        symlink("nowhere/else", dir.path().join("dangling")).unwrap();
        assert!(matches!(error_of(&dir.path().join("dangling"), 4096, NEW), TargetError::Io { .. }));
    }

    #[test]
    fn one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let first = open(&path, 4096, NEW).unwrap();
        assert!(matches!(error_of(&path, 4096, NEW), TargetError::Busy { .. }));
        drop(first);
        drop(open(&path, 4096, NEW).unwrap());
    }

    #[test]
    fn identity_stays_through_a_rename_and_differs_for_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let first = open(&one, 4096, NEW).unwrap().identity;
        fs::rename(&one, &two).unwrap();
        assert_eq!(open(&two, 4096, OpenTarget::Resume).unwrap().identity, first);
        assert_ne!(open(&one, 4096, NEW).unwrap().identity, first);
    }
}
