//! Events of the probes of file systems, out of the ring's bytes.

use tracer_common::vfs::{
    CHANGE_EVENT_BYTES, COMM_BYTES, ChangeEvent, ENTRY_EVENT_BYTES, INODE_BYTES, Inode, KIND_CHANGE,
    KIND_END, KIND_ENTRY, KIND_NAME, KIND_PATH, LENGTH_UNKNOWN, NAME_BYTES, NAME_EVENT_BYTES, NOT_FOLLOWED,
    PATH_BYTES_LONG, PATH_BYTES_SHORT, PATH_EVENT_HEAD_BYTES,
};

use crate::model::{FileId, FileOp, Process};

/// What a probe reported. Times are CLOCK_MONOTONIC, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VfsEvent {
    /// A file or a name is about to change.
    Change(VfsChange),
    /// Where an inode hangs: `parent` is itself for the root of the file system.
    Name { time_ns: u64, file: FileId, parent: FileId, name: Vec<u8> },
    /// The system call of a thread is over, in which it made the change `seq`, and others before.
    End { seq: u64, time_ns: u64, tid: u32, result: i64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfsChange {
    /// Number among all changes; a hole is one that was lost.
    pub seq: u64,
    /// Before it is done.
    pub time_ns: u64,
    pub op: FileOp,
    /// More of it: see `tracer_common::vfs::op`.
    pub detail: u32,
    pub file: FileId,
    pub offset: u64,
    /// `None`: not known.
    pub length: Option<u64>,
    pub process: Process,
    pub tid: u32,
    pub name: Named,
}

/// Which name changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// None: the file is what changes.
    No,
    Entry {
        dir: FileId,
        name: Vec<u8>,
    },
    Rename {
        from: (FileId, Vec<u8>),
        to: (FileId, Vec<u8>),
        victim: FileId,
    },
    /// What the path means, seen from this directory, nobody has looked up. Of two paths of a call this is number `which`.
    Path {
        base: FileId,
        path: Vec<u8>,
        which: u32,
        /// Of a symbolic link at its end it may be meant where that leads, by an operation that may follow links.
        followed: bool,
    },
}

impl VfsEvent {
    /// `None` for bytes that no probe of this version writes. Ring bytes are untrusted: length first, then a copy.
    pub fn parse(bytes: &[u8]) -> Option<VfsEvent> {
        match *bytes.first()? {
            KIND_NAME => parse_name(bytes),
            KIND_CHANGE if bytes.len() == CHANGE_EVENT_BYTES => {
                change(&head(bytes)?, Named::No).map(VfsEvent::Change)
            }
            KIND_END if bytes.len() == CHANGE_EVENT_BYTES => {
                let event = head(bytes)?;
                let result = event.offset.cast_signed();
                Some(VfsEvent::End { seq: event.seq, time_ns: event.time_ns, tid: event.tid, result })
            }
            KIND_ENTRY if bytes.len() == ENTRY_EVENT_BYTES => parse_entry(bytes),
            KIND_PATH => parse_path(bytes),
            _ => None,
        }
    }
}

fn head(bytes: &[u8]) -> Option<ChangeEvent> {
    let head = bytes.first_chunk::<CHANGE_EVENT_BYTES>()?;
    // SAFETY: ChangeEvent is repr(C) of integers without padding, so any bytes of its size are a value of it.
    Some(unsafe { head.as_ptr().cast::<ChangeEvent>().read_unaligned() })
}

fn change(event: &ChangeEvent, name: Named) -> Option<VfsChange> {
    let ChangeEvent { process_start_ns: start_ns, cgroup, pid, .. } = *event;
    let end = event.comm.iter().position(|byte| *byte == 0).unwrap_or(COMM_BYTES);
    Some(VfsChange {
        seq: event.seq,
        time_ns: event.time_ns,
        op: FileOp::from_number(event.op)?,
        detail: event.detail,
        file: file_id(event.inode),
        offset: event.offset,
        length: (event.length != LENGTH_UNKNOWN).then_some(event.length),
        process: Process { pid, start_ns, cgroup, name: event.comm[..end].to_vec() },
        tid: event.tid,
        name,
    })
}

fn parse_entry(bytes: &[u8]) -> Option<VfsEvent> {
    let event = head(bytes)?;
    let (ids, names) = bytes[CHANGE_EVENT_BYTES..].split_at(3 * INODE_BYTES);
    let id = |at: usize| Some(file_id(inode(ids.get(at * INODE_BYTES..)?)?));
    let (dir, other_dir, victim) = (id(0)?, id(1)?, id(2)?);
    let (name, other_name) = names.split_at(NAME_BYTES);
    let name = up_to_zero(name)?;
    let named = match FileOp::from_number(event.op)? {
        FileOp::Rename => {
            Named::Rename { from: (dir, name), to: (other_dir, up_to_zero(other_name)?), victim }
        }
        _ => Named::Entry { dir, name },
    };
    change(&event, named).map(VfsEvent::Change)
}

fn parse_path(bytes: &[u8]) -> Option<VfsEvent> {
    let event = head(bytes)?;
    let path = bytes.get(PATH_EVENT_HEAD_BYTES..)?;
    if path.len() != PATH_BYTES_SHORT && path.len() != PATH_BYTES_LONG {
        return None;
    }
    let which = u32::from_ne_bytes(*bytes.get(CHANGE_EVENT_BYTES..)?.first_chunk()?);
    let followed = event.detail & NOT_FOLLOWED == 0;
    let named = Named::Path { base: file_id(event.inode), path: up_to_zero(path)?, which, followed };
    let detail = event.detail & !NOT_FOLLOWED;
    change(&ChangeEvent { inode: Inode::default(), detail, ..event }, named).map(VfsEvent::Change)
}

fn parse_name(bytes: &[u8]) -> Option<VfsEvent> {
    if bytes.len() != NAME_EVENT_BYTES {
        return None;
    }
    let time_ns = u64::from_ne_bytes(*bytes[8..].first_chunk()?);
    let (file, parent) = (inode(&bytes[16..])?, inode(&bytes[16 + INODE_BYTES..])?);
    let name = up_to_zero(&bytes[16 + 2 * INODE_BYTES..])?;
    Some(VfsEvent::Name { time_ns, file: file_id(file), parent: file_id(parent), name })
}

/// The event of a file that was brought to its disk.
pub fn synced_file(bytes: &[u8]) -> Option<FileId> {
    (bytes.len() == INODE_BYTES).then(|| inode(bytes).map(file_id))?
}

fn inode(bytes: &[u8]) -> Option<Inode> {
    let bytes = bytes.first_chunk::<INODE_BYTES>()?;
    // SAFETY: Inode is repr(C) of integers without padding, so any bytes of its size are a value of it.
    Some(unsafe { bytes.as_ptr().cast::<Inode>().read_unaligned() })
}

fn file_id(inode: Inode) -> FileId {
    FileId { inode: inode.number, generation: inode.generation, dev: inode.dev }
}

/// Behind the 0 is whatever the ring held.
fn up_to_zero(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(bytes[..end].to_vec())
}
