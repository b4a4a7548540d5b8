//! Files of a volume at a point, out of its journal, without rebuilding the volume.
//!
//! An ext4 is read here, from a [`crate::journal::View`]; any other file system by the kernel, from a scratch image.

mod ext4;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod list;
mod mounted;
mod partitions;
mod path;
mod point;
mod restore;
mod samples;
mod volume;

use std::io;

use crate::journal::JournalError;
use crate::model::Attributes;

pub use list::Listed;
pub use path::PathError;
pub use point::{Files, FilesAt, FilesError, Means, open_files};
pub use restore::{Lost, RestoreFile, RestoreFileError, Restored};
pub use samples::Samples;
pub use volume::Volume;

/// What a file system says of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub inode: u64,
    pub links: u32,
    pub attributes: Attributes,
}

/// Names and where they lead.
type Entries<H> = Vec<(Vec<u8>, H)>;

/// Takes content that stands at a byte of a file.
type TakeContent<'a> = &'a mut dyn FnMut(u64, &[u8]) -> io::Result<()>;

/// A file system that is only read.
pub trait FileSystem {
    /// Leads to an inode.
    type Handle: Clone;

    fn root(&self) -> Self::Handle;

    fn node(&mut self, handle: &Self::Handle) -> Result<Node, FsError>;

    /// What is in a directory, without `.` and `..`.
    fn entries(&mut self, dir: &Self::Handle) -> Result<Entries<Self::Handle>, FsError>;

    /// The content of a regular file in the order of its bytes, without its holes.
    fn content(&mut self, file: &Self::Handle, take: TakeContent<'_>) -> Result<(), FsError>;
}

/// Why a file system could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("the journal cannot be read")]
    Journal(#[from] JournalError),
    #[error(
        "the file system is damaged: {what}. Take another point, or `afterwrite replay` this one and repair the image"
    )]
    Corrupt { what: String },
    #[error("{what}, which only the kernel reads. Pass --mount, as root")]
    Unsupported { what: String },
    #[error("cannot {what}")]
    Io { what: String, source: io::Error },
}

impl FsError {
    fn corrupt(what: impl Into<String>) -> FsError {
        FsError::Corrupt { what: what.into() }
    }

    fn unsupported(what: impl Into<String>) -> FsError {
        FsError::Unsupported { what: what.into() }
    }
}
