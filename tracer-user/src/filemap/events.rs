//! Saves as fanotify tells them: exactly those of one file system, by the file's handle, with the name it was saved under.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::filemap::record::Why;

const METADATA_BYTES: usize = 24;
const INFO_HEADER_BYTES: usize = 4;
const FSID_BYTES: usize = 8;
const BUFFER_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Handles are as `tree::inode::handle_of` makes them.
    Saved { why: Why, handle: Vec<u8>, dir: Vec<u8>, name: Vec<u8> },
    /// The kernel's queue was full: there were more.
    Lost,
}

/// The kernel's queue of events of one file system.
pub struct Events {
    queue: File,
    buffer: Vec<u8>,
}

impl Events {
    /// Of the file system that holds `path`, from now on.
    pub fn of(path: &Path) -> io::Result<Events> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_DFID_NAME
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_TARGET_FID;
        let event_flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE).cast_unsigned();
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::fanotify_init(flags, event_flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call made this descriptor, and nobody else has it.
        let queue = unsafe { File::from_raw_fd(fd) };
        let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
        let (mark, mask) =
            (libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM, libc::FAN_CLOSE_WRITE | libc::FAN_MOVED_TO);
        // SAFETY: the path is a C string that outlives the call.
        match unsafe { libc::fanotify_mark(fd, mark, mask, libc::AT_FDCWD, path.as_ptr()) } {
            0 => Ok(Events { queue, buffer: vec![0; BUFFER_BYTES] }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What is queued, as much as is taken at once; empty if there is nothing.
    pub fn take(&mut self) -> io::Result<Vec<Event>> {
        loop {
            match self.queue.read(&mut self.buffer) {
                Ok(len) => return Ok(decode(&self.buffer[..len])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// An event that is not whole ends it; one without a file's handle is none of ours. Both can only come of a kernel that
/// speaks another version.
pub fn decode(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(head) = bytes.first_chunk::<METADATA_BYTES>() {
        let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let info = usize::from(u16::from_ne_bytes([head[6], head[7]]));
        let mask = u64::from_ne_bytes(*head[8..].first_chunk().expect("24 bytes are more than 16"));
        if head[4] != libc::FANOTIFY_METADATA_VERSION || info < METADATA_BYTES {
            break;
        }
        let Some(body) = bytes.get(info..len) else { break };
        if mask & libc::FAN_Q_OVERFLOW != 0 {
            events.push(Event::Lost);
        }
        let why = if mask & libc::FAN_CLOSE_WRITE != 0 { Why::Close } else { Why::Rename };
        if mask & (libc::FAN_CLOSE_WRITE | libc::FAN_MOVED_TO) != 0 {
            events.extend(saved(why, body));
        }
        bytes = &bytes[len..];
    }
    events
}

fn saved(why: Why, mut infos: &[u8]) -> Option<Event> {
    let (mut file, mut place) = (None, None);
    while let Some([kind, _, len @ ..]) = infos.first_chunk::<INFO_HEADER_BYTES>() {
        let len = usize::from(u16::from_ne_bytes(*len));
        let body = infos.get(INFO_HEADER_BYTES..len)?;
        match *kind {
            libc::FAN_EVENT_INFO_TYPE_FID => file = Some(handle(body)?.0),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => place = Some(handle(body)?),
            _ => {}
        }
        infos = &infos[len..];
    }
    let (dir, name) = place?;
    let name = name.split(|byte| *byte == 0).next()?.to_vec();
    Some(Event::Saved { why, handle: file?, dir, name })
}

/// And what is behind it.
fn handle(info: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (len, rest) = info.get(FSID_BYTES..)?.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_ne_bytes(*len) as usize)?;
    Some(([&i32::from_ne_bytes(*kind).to_le_bytes(), bytes].concat(), rest))
}
