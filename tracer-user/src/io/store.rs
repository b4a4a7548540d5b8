//! A directory of append-only files behind a small trait, so that tests can put a disk underneath that fails,
//! tears and loses power.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};

#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), expect(dead_code, reason = "tests use more of it than the fuzz targets"))]
pub(crate) mod faulty;

/// Name of the file a [`DirStore`] locks for its one writer.
pub const LOCK_NAME: &str = "lock";

/// What was appended last stays in the page cache: whoever follows the writer reads it there.
const CACHED_BYTES: u64 = 32 << 20;
/// What was synced leaves it in portions of this size.
const DROPPED_BYTES_MIN: u64 = 8 << 20;

/// The files hold what stands on a volume: they are their owner's alone.
const FILE_MODE: u32 = 0o600;

/// Files of one directory, by name. What is written is durable only after [`Store::sync`]; that a file exists, was
/// renamed or removed is durable only after [`Store::sync_dir`].
pub trait Store {
    /// The directory, for messages.
    fn dir(&self) -> &Path;
    /// Another handle, of the files whose names begin with `prefix`, which is left away in them: as if they were alone in a
    /// directory. The lock is not part of it.
    fn part(&self, prefix: &str) -> Self
    where
        Self: Sized;
    /// Where a file is, for messages.
    fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }
    /// The names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Size of a file in bytes.
    fn size(&self, name: &str) -> io::Result<u64>;
    /// Fills `buffer` from byte `offset` on as far as the file goes; returns how many bytes that were.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Makes an empty file; fails if there is one of that name.
    fn create(&mut self, name: &str) -> io::Result<()>;
    /// Writes all of `bytes` at the end. After an error any prefix of them may be there.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes content and size durable (fdatasync).
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// What is read of a file afterwards is on the disk: what could not be written is not shown any more.
    fn forget_cache(&mut self, name: &str) -> io::Result<()>;
    /// Writes bytes anew that are there already, so that the next [`Store::sync`] brings them to the disk, whatever a
    /// failed one before it left behind: then the kernel calls pages clean that never got there.
    fn rewrite(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn truncate(&mut self, name: &str, size_bytes: u64) -> io::Result<()>;
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Replaces `to` if it exists.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&mut self) -> io::Result<()>;
}

/// A directory of this machine.
#[derive(Debug)]
pub struct DirStore {
    dir: PathBuf,
    /// Of the names of all files; see [`Store::part`].
    prefix: String,
    /// The file appended to last stays open: a failed write-back is reported to the descriptor that wrote.
    appending: Option<Appending>,
    /// The one before it.
    ended: Option<File>,
    _lock: Option<Flock<File>>,
}

#[derive(Debug)]
struct Appending {
    name: String,
    file: File,
    /// Of which the page cache was last relieved.
    dropped: u64,
}

impl DirStore {
    /// For reading: takes no lock, creates nothing.
    pub fn open(dir: &Path) -> DirStore {
        DirStore { dir: dir.to_owned(), prefix: String::new(), appending: None, ended: None, _lock: None }
    }

    /// For the only one who does something: locks `dir/lock_name` as long as the store lives.
    ///
    /// # Errors
    /// `WouldBlock` when another process or another store of this one holds the lock.
    pub fn open_exclusive(dir: &Path, lock_name: &str) -> io::Result<DirStore> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(FILE_MODE);
        let file = options.open(dir.join(lock_name))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
        Ok(DirStore { _lock: Some(lock), ..DirStore::open(dir) })
    }

    fn appending(&mut self, name: &str) -> io::Result<&mut File> {
        Ok(&mut self.opened(name)?.file)
    }

    fn opened(&mut self, name: &str) -> io::Result<&mut Appending> {
        if self.appending.as_ref().is_none_or(|open| open.name != name) {
            let file = OpenOptions::new().append(true).open(self.path(name))?;
            self.appending = Some(Appending { name: name.to_owned(), file, dropped: 0 });
        }
        Ok(self.appending.as_mut().expect("opened just above"))
    }

    /// What is on the disk gives its memory back, also what was read of it since: a journal is long, and soon nobody will
    /// want of it but its last part.
    fn drop_behind(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.appending else { return Ok(()) };
        let until = open.file.metadata()?.len().saturating_sub(CACHED_BYTES);
        if until >= open.dropped + DROPPED_BYTES_MIN {
            open.dropped = until;
            // Advice.
            let len = i64::try_from(until).map_err(io::Error::other)?;
            let _ = posix_fadvise(&open.file, 0, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            if let Some(ended) = &self.ended {
                let _ = posix_fadvise(ended, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            }
        }
        Ok(())
    }

    fn forget(&mut self, name: &str) {
        if self.appending.as_ref().is_some_and(|open| open.name == name) {
            self.appending = None;
        }
    }
}

/// After a write-back that failed, the page cache holds pages that are clean and not on the disk, and ext4 then takes
/// their blocks for written: the same bytes written once more, and synced without an error, read as zeros after the next
/// mount. What has left the cache is read from the disk again, and treated as it is there.
pub fn forget_cache(file: &File) {
    // Tells of the old failure, if nobody has heard of it yet. What did not get to the disk is not shown afterwards.
    let _ = file.sync_all();
    // Advice; pages that stay are still to be written, or being read.
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

impl Store for DirStore {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn part(&self, prefix: &str) -> DirStore {
        DirStore { prefix: self.prefix.clone() + prefix, ..DirStore::open(&self.dir) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(self.prefix.clone() + name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_prefix(&self.prefix).map(str::to_owned));
        }
        Ok(names)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path(name))?.len())
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = File::open(self.path(name))?;
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create_new(true).mode(FILE_MODE).open(self.path(name))?;
        let next = Appending { name: name.to_owned(), file, dropped: 0 };
        self.ended = self.appending.replace(next).map(|ended| ended.file);
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.appending(name)?.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.appending(name)?.sync_data()?;
        self.drop_behind()
    }

    fn forget_cache(&mut self, name: &str) -> io::Result<()> {
        forget_cache(&OpenOptions::new().write(true).open(self.path(name))?);
        Ok(())
    }

    fn rewrite(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Opened first, so that the sync through it tells of every failed write-back of these bytes.
        self.appending(name)?;
        // Not through it: a descriptor that appends ignores the offset.
        OpenOptions::new().write(true).open(self.path(name))?.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, name: &str, size_bytes: u64) -> io::Result<()> {
        self.appending(name)?.set_len(size_bytes)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.forget(name);
        std::fs::remove_file(self.path(name))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.forget(from);
        self.forget(to);
        std::fs::rename(self.path(from), self.path(to))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_exclusive_store_would_block() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirStore::open_exclusive(dir.path(), LOCK_NAME).unwrap();
        assert_eq!(
            DirStore::open_exclusive(dir.path(), LOCK_NAME).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(first);
        DirStore::open_exclusive(dir.path(), LOCK_NAME).unwrap();
    }

    #[test]
    fn a_part_shows_and_makes_only_files_of_its_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = DirStore::open(dir.path());
        let mut part = whole.part("a.").part("b.");
        part.create("x").unwrap();
        part.append("x", b"of the part").unwrap();
        part.rename("x", "y").unwrap();
        whole.create("y").unwrap();
        assert_eq!((part.list().unwrap(), part.size("y").unwrap()), (vec!["y".to_owned()], 11));
        assert_eq!((whole.size("a.b.y").unwrap(), whole.size("y").unwrap()), (11, 0));
        assert_eq!(part.path("y"), dir.path().join("a.b.y"));
        part.remove("y").unwrap();
        assert_eq!(whole.list().unwrap(), ["y"]);
    }

    #[test]
    fn appends_reads_truncates_and_renames() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DirStore::open(dir.path());
        store.create("a").unwrap();
        store.append("a", b"hello ").unwrap();
        store.append("a", b"world").unwrap();
        store.truncate("a", 8).unwrap();
        store.append("a", b"!").unwrap();
        store.sync("a").unwrap();
        store.rewrite("a", 2, b"llo").unwrap();
        store.rename("a", "b").unwrap();
        store.sync_dir().unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.path().join("b")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let mut buffer = [0; 16];
        assert_eq!(store.read_at("b", 2, &mut buffer).unwrap(), 7);
        assert_eq!(&buffer[..7], b"llo wo!");
        assert_eq!((store.size("b").unwrap(), store.list().unwrap()), (9, vec!["b".to_owned()]));
        assert!(store.create("b").is_err());
        store.remove("b").unwrap();
        assert_eq!(store.read_at("b", 0, &mut buffer).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
