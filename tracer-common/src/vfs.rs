//! What the probes of file systems report: who changes which file or name, before it is changed.
//!
//! A change is reported when it begins ([`KIND_CHANGE`], [`KIND_ENTRY`], [`KIND_PATH`]); its event is authoritative, and
//! counted whether or not there was room for it. That it is over ([`KIND_END`]) is reported where somebody asked for that
//! ([`counter`] does not count it), as a hint. Files are named by inode; [`KIND_NAME`] says, before the first event that needs
//! it, where an inode hangs, so that paths can be put together also of what is gone by then.
//!
//! Who asks for files that fsync brought to their disk has a ring of its own, which holds an [`Inode`] for each, and the counters
//! `SEEN`, `EMITTED`, `LOST` and `READ_FAILED` are of those.

/// Grows with every change of an event.
pub const EVENT_VERSION: u64 = 2;

/// A file's content or attributes are about to change: a [`ChangeEvent`].
pub const KIND_CHANGE: u8 = 1;
/// A name is about to come, go or move: an [`EntryEvent`].
pub const KIND_ENTRY: u8 = 2;
/// A system call is about to change what a path names, which nobody has looked up yet: a [`PathEvent`].
pub const KIND_PATH: u8 = 3;
/// Where an inode hangs: a [`NameEvent`].
pub const KIND_NAME: u8 = 4;
/// The system call in which a task made the change `seq` (and others before) is over: a [`ChangeEvent`] with `offset` as the
/// call's result.
pub const KIND_END: u8 = 5;

/// What is about to happen.
pub mod op {
    /// `offset`, `length`.
    pub const WRITE: u8 = 1;
    /// A page of a shared mapping becomes writable: `offset`, `length`.
    pub const MMAP: u8 = 2;
    /// `offset`, `length`; `detail` is the mode (FALLOC_FL_*).
    pub const FALLOCATE: u8 = 3;
    /// `offset` is the new size.
    pub const TRUNCATE: u8 = 4;
    /// The file is the target of copy_file_range: `offset`, `length`.
    pub const COPY: u8 = 5;
    /// It shares blocks of another file from now on: `offset`, `length` (0: to the other's end).
    pub const CLONE: u8 = 6;
    /// As CLONE, of bytes that are equal.
    pub const DEDUPE: u8 = 7;
    /// `dir`, `name`.
    pub const CREATE: u8 = 8;
    pub const MKDIR: u8 = 9;
    pub const MKNOD: u8 = 10;
    pub const SYMLINK: u8 = 11;
    /// The inode gets another name: `dir`, `name`.
    pub const LINK: u8 = 12;
    /// The inode loses a name: `dir`, `name`.
    pub const UNLINK: u8 = 13;
    pub const RMDIR: u8 = 14;
    /// From `dir`, `name` to `other_dir`, `other_name`; `detail` is RENAME_*; `victim` had the new name before.
    pub const RENAME: u8 = 15;
    /// Owner, mode or times; `detail` is ATTR_*.
    pub const ATTRIBUTES: u8 = 16;
    /// An extended attribute, ACLs among them.
    pub const XATTR: u8 = 17;
    /// Flags of the inode (chattr), project.
    pub const FLAGS: u8 = 18;
    /// A file without a name, in directory `inode`.
    pub const TMPFILE: u8 = 19;
    /// A command of the file system's own that may change anything of the file; `detail` is its number.
    pub const IOCTL: u8 = 20;
    /// The page cache of the file was changed; it was clean there before: `offset`, `length`. Fallback only.
    pub const DIRTY: u8 = 21;
    pub const COUNT: u8 = 22;
}

/// `length` of a change whose extent is not known.
pub const LENGTH_UNKNOWN: u64 = u64::MAX;
pub const COMM_BYTES: usize = 16;
/// Bytes of a name; it ends at the first 0.
pub const NAME_BYTES: usize = 256;
/// In `detail` of a [`PathEvent`] that could mean the link or where it leads: it means the link.
pub const NOT_FOLLOWED: u32 = 1 << 31;
/// Bytes of a path, in a short or a long [`PathEvent`].
pub const PATH_BYTES_SHORT: usize = 256;
pub const PATH_BYTES_LONG: usize = 4096;

/// An inode of one of the watched file systems.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode {
    pub number: u64,
    /// `i_generation`: tells inodes that had the same number after each other.
    pub generation: u32,
    /// The kernel's number of the file system: major << 20 | minor.
    pub dev: u32,
}

pub const INODE_BYTES: usize = 16;
const _: () = assert!(size_of::<Inode>() == INODE_BYTES);

/// What all changes have.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeEvent {
    /// `KIND_*`, the same place in all events.
    pub kind: u8,
    /// [`op`]
    pub op: u8,
    pub zero: u16,
    /// More of what happens, by `op`.
    pub detail: u32,
    /// Number of this change among all seen, from 0; a hole is a lost event.
    pub seq: u64,
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC), before the change.
    pub time_ns: u64,
    /// Number 0: not known, or not made yet.
    pub inode: Inode,
    pub offset: u64,
    pub length: u64,
    /// Of cgroup v2.
    pub cgroup: u64,
    /// When the process was started, by CLOCK_BOOTTIME: tells processes that had the same number after each other.
    pub process_start_ns: u64,
    /// Process and thread.
    pub pid: u32,
    pub tid: u32,
    /// Of the process's first thread.
    pub comm: [u8; COMM_BYTES],
}

pub const CHANGE_EVENT_BYTES: usize = 96;
const _: () = assert!(size_of::<ChangeEvent>() == CHANGE_EVENT_BYTES);
const _: () = assert!(align_of::<ChangeEvent>() == 8);

#[repr(C)]
pub struct EntryEvent {
    pub event: ChangeEvent,
    pub dir: Inode,
    pub other_dir: Inode,
    /// What had the new name before a rename; number 0 for nothing.
    pub victim: Inode,
    pub name: [u8; NAME_BYTES],
    pub other_name: [u8; NAME_BYTES],
}

pub const ENTRY_EVENT_BYTES: usize = CHANGE_EVENT_BYTES + 48 + 2 * NAME_BYTES;
const _: () = assert!(size_of::<EntryEvent>() == ENTRY_EVENT_BYTES);

/// `event.inode` is the directory the path begins at, if it does not begin with `/`; `event.detail` may have
/// [`NOT_FOLLOWED`]. Of two paths (rename, link) each has an event, with the same `seq`.
#[repr(C)]
pub struct PathEvent<const N: usize> {
    pub event: ChangeEvent,
    /// Which path of the call, from 0.
    pub which: u32,
    pub zero: u32,
    /// Up to the first 0; without one it was longer.
    pub path: [u8; N],
}

pub const PATH_EVENT_HEAD_BYTES: usize = CHANGE_EVENT_BYTES + 8;
const _: () = assert!(size_of::<PathEvent<PATH_BYTES_SHORT>>() == PATH_EVENT_HEAD_BYTES + PATH_BYTES_SHORT);
const _: () = assert!(size_of::<PathEvent<PATH_BYTES_LONG>>() == PATH_EVENT_HEAD_BYTES + PATH_BYTES_LONG);

#[repr(C)]
pub struct NameEvent {
    /// [`KIND_NAME`]
    pub kind: u8,
    pub zero: [u8; 7],
    pub time_ns: u64,
    pub inode: Inode,
    /// Equal to `inode` for the root of the file system.
    pub parent: Inode,
    pub name: [u8; NAME_BYTES],
}

pub const NAME_EVENT_BYTES: usize = 48 + NAME_BYTES;
const _: () = assert!(size_of::<NameEvent>() == NAME_EVENT_BYTES);

/// Indexes into the `VFS_COUNTERS` array map (u64 each).
pub mod counter {
    /// Changes that a probe saw. `SEEN == EMITTED + LOST` at rest.
    pub const SEEN: u32 = 0;
    pub const EMITTED: u32 = 1;
    /// For which the ring had no room.
    pub const LOST: u32 = 2;
    /// Events that say where an inode hangs, for which the ring had no room: paths may be wrong.
    pub const NAMES_LOST: u32 = 3;
    /// Kernel memory, or a program's, that could not be read: a change may have gone unseen.
    pub const READ_FAILED: u32 = 4;
    /// System calls of 32-bit programs, which the fallback does not understand.
    pub const NOT_UNDERSTOOD: u32 = 5;
    /// Not a counter: raised, by both sides, when what was told of names is not to be relied on any more.
    pub const EPOCH: u32 = 6;
    /// What nothing else tells of: io_uring's changes of names, attributes and lengths, and its fallocate, once when they are
    /// asked for and once when they are done, whatever they are of. Fallback only.
    pub const UNSEEN: u32 = 7;
    pub const COUNT: u32 = 8;
}
