use std::io;
use std::path::PathBuf;

use crate::io::DeviceError;
use crate::model::ByteRange;

/// Why a target cannot be opened or written. `path` is the target as the user named it.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{path} does not exist. Check the path; if it is on a disk of its own, mount that first")]
    Missing { path: PathBuf },
    #[error(
        "{path} cannot be created: its directory does not exist. Create the directory, or mount the disk it is on"
    )]
    NoParent { path: PathBuf },
    #[error("{path} is {what}. A target is a regular file or a block device")]
    Unsuitable { path: PathBuf, what: &'static str },
    #[error(
        "{path} is not empty: {found}. Look at what is on it; --force overwrites it, or name another target"
    )]
    NotEmpty { path: PathBuf, found: String },
    #[error("{path} holds {size_bytes} bytes and the volume needs {needed_bytes}. Give it a larger target")]
    TooSmall { path: PathBuf, size_bytes: u64, needed_bytes: u64 },
    #[error(
        "{path} is in use: {by}. Release it (umount, swapoff, dmsetup, or stop the other afterwrite) and try again"
    )]
    Busy { path: PathBuf, by: &'static str },
    #[error("{path} is read-only. Remount its file system or make the device writable (blockdev --setrw)")]
    ReadOnly { path: PathBuf },
    #[error("{path} has no space left. Make room and start again: it resumes where the last checkpoint is")]
    NoSpace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the device as a target")]
    Device(#[from] DeviceError),
    #[error("bytes {range} lie outside the volume of {size_bytes} bytes")]
    OutOfRange { range: ByteRange, size_bytes: u64 },
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} failed before and what it holds is not known for sure. Open it again: it resumes at the last checkpoint"
    )]
    Latched { path: PathBuf },
}
