//! Where changes come from: who changed which file.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::model::{ByteRange, Timestamp};

macro_rules! file_ops {
    ($($name:ident = $number:literal $text:literal,)*) => {
        /// A way to change a file or a name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum FileOp { $($name = $number,)* }

        impl FileOp {
            pub const ALL: &[FileOp] = &[$(FileOp::$name,)*];

            pub fn name(self) -> &'static str {
                match self { $(FileOp::$name => $text,)* }
            }
        }
    };
}

// The numbers stand in journals (docs/FORMAT.md) and are those of the probes.
file_ops! {
    Write = 1 "write",
    Mmap = 2 "mmap",
    Fallocate = 3 "fallocate",
    Truncate = 4 "truncate",
    Copy = 5 "copy",
    Clone = 6 "clone",
    Dedupe = 7 "dedupe",
    Create = 8 "create",
    Mkdir = 9 "mkdir",
    Mknod = 10 "mknod",
    Symlink = 11 "symlink",
    Link = 12 "link",
    Unlink = 13 "unlink",
    Rmdir = 14 "rmdir",
    Rename = 15 "rename",
    Attributes = 16 "attributes",
    Xattr = 17 "xattr",
    Flags = 18 "flags",
    Tmpfile = 19 "tmpfile",
    Ioctl = 20 "ioctl",
    Dirty = 21 "dirty",
}

impl FileOp {
    pub fn from_number(number: u8) -> Option<FileOp> {
        FileOp::ALL.iter().copied().find(|op| *op as u8 == number)
    }

    /// The file's bytes may be others after it.
    pub fn changes_content(self) -> bool {
        matches!(
            self,
            FileOp::Write
                | FileOp::Mmap
                | FileOp::Fallocate
                | FileOp::Truncate
                | FileOp::Copy
                | FileOp::Clone
                | FileOp::Ioctl
                | FileOp::Dirty
        )
    }

    /// A call for it with a path may mean where a symbolic link leads.
    pub fn may_follow_links(self) -> bool {
        matches!(self, FileOp::Truncate | FileOp::Attributes | FileOp::Xattr | FileOp::Flags | FileOp::Link)
    }

    /// A file is not to be found under its name after it.
    pub fn removes(self) -> bool {
        matches!(self, FileOp::Unlink | FileOp::Rmdir)
    }
}

impl fmt::Display for FileOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Several of them; bit n stands for number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOps(pub u32);

impl FileOps {
    /// Bits that stand for an operation.
    pub const KNOWN: u32 = ((1 << (FileOp::Dirty as u32 + 1)) - 1) & !1;

    pub fn insert(&mut self, op: FileOp) {
        self.0 |= 1 << op as u32;
    }

    pub fn contains(self, op: FileOp) -> bool {
        self.0 & (1 << op as u32) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = FileOp> {
        FileOp::ALL.iter().copied().filter(move |op| self.contains(*op))
    }
}

impl fmt::Display for FileOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(FileOp::name).collect();
        f.pad(&names.join(","))
    }
}

impl Serialize for FileOps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(FileOp::name))
    }
}

/// An inode of a mounted file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FileId {
    /// 0: not known, or there was none yet.
    pub inode: u64,
    /// Tells files that had the same inode number after each other.
    pub generation: u32,
    /// The kernel's number of the file system: major << 20 | minor.
    pub dev: u32,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Process {
    pub pid: u32,
    /// When it was started, in nanoseconds since boot: tells processes that had the same number after each other.
    pub start_ns: u64,
    /// Of cgroup v2.
    pub cgroup: u64,
    /// At most 15 bytes.
    #[serde(serialize_with = "lossy")]
    pub name: Vec<u8>,
}

/// What one process did to one file within a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChanges {
    pub process: Process,
    pub file: FileId,
    /// Within the file system, from its root `/`. Empty if it is not known.
    #[serde(serialize_with = "lossy")]
    pub path: Vec<u8>,
    /// Where the file went, if it was renamed; where it is linked to.
    #[serde(serialize_with = "lossy", skip_serializing_if = "Vec::is_empty")]
    pub new_path: Vec<u8>,
    pub ops: FileOps,
    /// Before the first of them was done, and before the last.
    pub first: Timestamp,
    pub last: Timestamp,
    pub count: u64,
    /// Bytes of the file, in order, without overlap; not of what has no range. An end of 2^63: not known.
    pub ranges: Vec<ByteRange>,
}

/// A while of which it is not known, or not in full, who changed what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OriginUnknown {
    pub from: Timestamp,
    pub to: Timestamp,
    /// Changes that are known to be missing; 0 if that is not known.
    pub missing: u64,
    pub why: String,
}

/// Programs of one name that changed many files within a short while, which they had not made themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileBurst {
    /// The one that made the first change of it.
    pub process: Process,
    /// Before that change.
    pub began: Timestamp,
    /// When it was recognised; it may have gone on.
    pub recognised: Timestamp,
    /// Files until then.
    pub rewritten: u32,
    pub removed: u32,
    /// Files they wrote that were looked into …
    pub sampled: u32,
    /// … and of them those that hold random bytes, as what is encrypted does.
    pub random: u32,
    /// Rewritten files of which it is known what they held before …
    pub compared: u8,
    /// … and of them those that hold random bytes or nothing now, and held something else.
    pub spoiled: u8,
}

/// A part of a file, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PlacedExtent {
    /// In the file, in bytes.
    pub offset: u64,
    /// On the volume, in bytes.
    pub start: u64,
    pub length: u64,
}

/// Where what was changed of a file lies on the volume, once it had blocks there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FilePlaces {
    pub file: FileId,
    pub at: Timestamp,
    /// In the order of the file, without overlap.
    pub extents: Vec<PlacedExtent>,
}

impl FilePlaces {
    /// Which byte of the file lies at this one of the volume.
    pub fn offset_of(&self, volume_byte: u64) -> Option<u64> {
        let holds = |extent: &&PlacedExtent| {
            volume_byte.checked_sub(extent.start).is_some_and(|into| into < extent.length)
        };
        let extent = self.extents.iter().find(holds)?;
        Some(extent.offset + (volume_byte - extent.start))
    }
}

/// What the journal says about who changed what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Changes(FileChanges),
    Unknown(OriginUnknown),
    Burst(FileBurst),
    Places(FilePlaces),
}

fn lossy<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&String::from_utf8_lossy(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_operations_stand_for_each_other() {
        let mut ops = FileOps::default();
        for op in FileOp::ALL {
            assert_eq!(FileOp::from_number(*op as u8), Some(*op));
            ops.insert(*op);
        }
        assert_eq!(ops.0, FileOps::KNOWN);
        assert_eq!(ops.iter().count(), FileOp::ALL.len());
        assert_eq!(FileOp::from_number(0), None);
        assert_eq!(FileOp::from_number(22), None);
    }
}
