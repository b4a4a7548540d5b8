use std::io;
use std::path::PathBuf;

use crate::filemap::segment::SegmentError;
use crate::io::{DeviceError, TopologyError};
use crate::tree::SourceError;

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Storage(#[from] TopologyError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(
        "{} is on the file system that is watched, and would be lost with it; name a directory on another one",
        path.display()
    )]
    SameFileSystem { path: PathBuf },
    #[error("{} is in use by another afterwrite map; stop that one, or name another cache", path.display())]
    InUse { path: PathBuf },
    #[error("{} is no cache of maps; name the directory that was given to afterwrite map --cache", path.display())]
    NotACache { path: PathBuf },
    #[error(
        "the cache {} belongs to {}, not to {}; name another cache",
        path.display(),
        of.display(),
        wanted.display()
    )]
    OtherVolume { path: PathBuf, of: PathBuf, wanted: PathBuf },
    #[error(
        "{} does not hold the file system of the cache any more (another one is mounted there, or none); mount it, and try \
         again",
        path.display()
    )]
    NotMounted { path: PathBuf },
    #[error(
        "cannot read the cache {}; remove it, and start again with --all, which maps every file",
        path.display()
    )]
    Damaged {
        path: PathBuf,
        #[source]
        source: SegmentError,
    },
    #[error("cannot watch the file system of {} by fanotify, which needs root and Linux 5.17", path.display())]
    Fanotify {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl MapError {
    /// For `map_err`.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> MapError {
        let path = path.into();
        move |source| MapError::Io { what, path, source }
    }
}
