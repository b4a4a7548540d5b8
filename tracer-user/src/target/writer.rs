use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use crate::model::ByteRange;
use crate::target::medium::{Medium, RawMedium};
use crate::target::open::{self, OpenTarget};
use crate::target::{Op, TargetError};

/// Writes a volume to a raw image file or a block device. After a failed write or sync every later call returns
/// `TargetError::Latched` until the target is opened again: what it holds then is not known.
pub struct TargetWriter {
    medium: Box<dyn Medium>,
    path: PathBuf,
    size_bytes: u64,
    identity: String,
    may_hold_old_bytes: bool,
    latched: bool,
    /// Held as long as the target is open.
    _lock: Option<Flock<File>>,
}

impl TargetWriter {
    /// Opens the target of a volume of `size_bytes`. A target may be larger; its rest is never touched.
    pub fn open(path: &Path, size_bytes: u64, how: OpenTarget) -> Result<TargetWriter, TargetError> {
        let opened = open::open(path, size_bytes, how)?;
        Ok(TargetWriter {
            medium: Box::new(RawMedium::new(opened.file, opened.kind)),
            path: path.to_owned(),
            size_bytes,
            identity: opened.identity,
            may_hold_old_bytes: opened.may_hold_old_bytes,
            latched: false,
            _lock: opened.lock,
        })
    }

    /// The identity of what is at `path`, without opening it; `None` when nothing is there.
    pub fn identity_of(path: &Path) -> Result<Option<String>, TargetError> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(open::identity_of(path, &metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TargetError::Io { what: "look at", path: path.to_owned(), source }),
        }
    }

    #[cfg(test)]
    pub(crate) fn over(medium: impl Medium + 'static, size_bytes: u64) -> TargetWriter {
        TargetWriter {
            medium: Box::new(medium),
            path: PathBuf::from("test"),
            size_bytes,
            identity: "test".to_owned(),
            may_hold_old_bytes: false,
            latched: false,
            _lock: None,
        }
    }

    /// Writes `bytes` at byte `start` of the volume; durable after `sync`.
    pub fn write(&mut self, start: u64, bytes: &[u8]) -> Result<(), TargetError> {
        self.check(ByteRange::with_len(start, bytes.len() as u64))?;
        let done = self.medium.write_at(start, bytes);
        self.latch("write to", done)
    }

    /// Makes `range` read as zeros; durable after `sync`. On a file it becomes a hole. `discard` says that a block
    /// device may give the space back; it does so only where it then reads as zeros.
    pub fn zero(&mut self, range: ByteRange, discard: bool) -> Result<(), TargetError> {
        self.check(range)?;
        let done = if range.is_empty() { Ok(()) } else { self.medium.zero(range, discard) };
        self.latch("write zeros to", done)
    }

    /// Does what a `Coalescer` gives out.
    pub fn put(&mut self, op: Op<'_>) -> Result<(), TargetError> {
        match op {
            Op::Write { start, bytes } => self.write(start, bytes),
            Op::Zero { range, discard } => self.zero(range, discard),
        }
    }

    /// Reads what was written, synced or not.
    pub fn read_at(&self, start: u64, bytes: &mut [u8]) -> Result<(), TargetError> {
        self.check(ByteRange::with_len(start, bytes.len() as u64))?;
        self.medium.read_at(start, bytes).map_err(|source| self.error("read", source))
    }

    /// All that was written before is durable when this returns.
    pub fn sync(&mut self) -> Result<(), TargetError> {
        self.check(ByteRange::new(0, 0))?;
        let done = self.medium.sync();
        self.latch("sync", done)
    }

    /// Recognises the target again: `file:INODE:BIRTH` or `dev:…`.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The target as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the volume it takes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where nothing is written it may show what it held before (a block device opened as `New`).
    pub fn may_hold_old_bytes(&self) -> bool {
        self.may_hold_old_bytes
    }

    /// Whether the range lies in the volume.
    pub fn check_range(&self, range: ByteRange) -> Result<(), TargetError> {
        match range.end <= self.size_bytes {
            true => Ok(()),
            false => Err(TargetError::OutOfRange { range, size_bytes: self.size_bytes }),
        }
    }

    fn check(&self, range: ByteRange) -> Result<(), TargetError> {
        if self.latched {
            return Err(TargetError::Latched { path: self.path.clone() });
        }
        self.check_range(range)
    }

    fn latch(&mut self, what: &'static str, done: io::Result<()>) -> Result<(), TargetError> {
        done.map_err(|source| {
            self.latched = true;
            self.error(what, source)
        })
    }

    fn error(&self, what: &'static str, source: io::Error) -> TargetError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                TargetError::NoSpace { path, source }
            }
            _ => TargetError::Io { what, path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::faulty::{Fault, FaultyDisk};

    #[test]
    fn a_failed_operation_latches_whatever_it_was() {
        for fault in [Fault::Eio, Fault::NoSpace] {
            for fail_at in 0..3 {
                let disk = FaultyDisk::new(1 << 16);
                disk.fail_at(fail_at, fault);
                let mut target = TargetWriter::over(disk.clone(), 1 << 16);
                let results = [
                    target.write(0, &[1; 512]),
                    target.zero(ByteRange::new(512, 1024), false),
                    target.sync(),
                    target.write(1024, &[1; 512]),
                ];
                for (number, result) in results.into_iter().enumerate() {
                    match result {
                        Ok(()) => assert!(number < fail_at),
                        Err(TargetError::Latched { .. }) => assert!(number > fail_at),
                        Err(TargetError::NoSpace { .. }) => {
                            assert!(number == fail_at && fault == Fault::NoSpace)
                        }
                        Err(TargetError::Io { .. }) => assert!(number == fail_at && fault == Fault::Eio),
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_written_past_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, vec![9; 8192]).unwrap();
        let mut target = TargetWriter::open(&path, 4096, OpenTarget::Resume).unwrap();
        assert!(matches!(target.write(4000, &[1; 97]), Err(TargetError::OutOfRange { .. })));
        assert!(matches!(target.zero(ByteRange::new(0, 4097), true), Err(TargetError::OutOfRange { .. })));
        assert!(matches!(target.write(u64::MAX, &[1]), Err(TargetError::OutOfRange { .. })));
        // Refused, not failed: it goes on.
        target.write(4000, &[1; 96]).unwrap();
        target.sync().unwrap();
        let bytes = fs::read(&path).unwrap();
        assert!(bytes[4000..4096].iter().all(|b| *b == 1) && bytes[4096..].iter().all(|b| *b == 9));
    }

    #[test]
    fn read_at_sees_what_was_just_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut target =
            TargetWriter::open(&dir.path().join("image"), 1 << 20, OpenTarget::New { force: false }).unwrap();
        target.write(100, b"hello").unwrap();
        target.zero(ByteRange::new(102, 104), false).unwrap();
        let mut bytes = [1; 7];
        target.read_at(99, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0he\0\0o\0");
    }
}
