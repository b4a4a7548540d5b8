//! A directory tree as the records of its journal describe it.

use std::fmt;

use serde::Serialize;

use crate::model::ByteRange;

/// Number of a file, directory or other inode of a protected tree. Never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The directory that is protected.
    pub const ROOT: NodeId = NodeId(1);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// As file systems keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileTime {
    pub seconds: i64,
    pub nanos: u32,
}

/// What `st_mode` says that an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    File,
    Dir,
    Symlink,
    /// Pipes, sockets and devices.
    Special,
}

/// All that is known of an inode but its names and its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of a device, as `st_rdev`.
    pub rdev: u64,
    /// Of a regular file.
    pub size: u64,
    pub accessed: FileTime,
    pub modified: FileTime,
    /// Of a symbolic link.
    pub link_target: Vec<u8>,
    /// Names and values, ACLs among them, in the order of the names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    pub fn kind(&self) -> NodeKind {
        match self.mode & 0o170_000 {
            0o100_000 => NodeKind::File,
            0o040_000 => NodeKind::Dir,
            0o120_000 => NodeKind::Symlink,
            _ => NodeKind::Special,
        }
    }

    /// Equal but for the time of the last access, which nobody is told of.
    pub fn same(&self, other: &Attributes) -> bool {
        Attributes { accessed: other.accessed, ..self.clone() } == *other
    }
}

/// How an inode of the source is found and recognised again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceInode {
    pub number: u64,
    /// Its `st_ctime` when its content was read, if an equal one later proves that nothing has changed since; else 0.
    pub changed: FileTime,
    /// As `name_to_handle_at` gives it: the type, 4 bytes, then the handle.
    pub handle: Vec<u8>,
}

/// One step of a tree's history. The state is what all of them say in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeChange {
    /// A new inode, or what an inode is from now on.
    Inode {
        node: NodeId,
        attributes: Box<Attributes>,
        source: SourceInode,
    },
    /// A regular file holds `bytes` from byte `start` on. Its size is that of its last Inode.
    Data {
        node: NodeId,
        start: u64,
        bytes: Vec<u8>,
    },
    /// The range of a regular file is a hole: it reads as zeros, and takes no room.
    Hole {
        node: NodeId,
        range: ByteRange,
    },
    /// The name leads to the inode from now on, whatever it led to before. A directory has one name: the last.
    Link {
        dir: NodeId,
        name: Vec<u8>,
        node: NodeId,
    },
    Unlink {
        dir: NodeId,
        name: Vec<u8>,
    },
}

impl TreeChange {
    pub fn name(&self) -> &'static str {
        match self {
            TreeChange::Inode { .. } => "inode",
            TreeChange::Data { .. } => "data",
            TreeChange::Hole { .. } => "hole",
            TreeChange::Link { .. } => "link",
            TreeChange::Unlink { .. } => "unlink",
        }
    }

    /// The inode that is changed: of a name the directory.
    pub fn node(&self) -> NodeId {
        match self {
            TreeChange::Inode { node, .. }
            | TreeChange::Data { node, .. }
            | TreeChange::Hole { node, .. } => *node,
            TreeChange::Link { dir, .. } | TreeChange::Unlink { dir, .. } => *dir,
        }
    }
}
