use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use crate::model::ByteRange;

/// Alignment of [`AlignedBuf`]: no device of Linux wants more for direct I/O.
const PAGE_BYTES: usize = 4096;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

const _: () = assert!(size_of::<Page>() == PAGE_BYTES && align_of::<Page>() == PAGE_BYTES);

/// Bytes whose start in memory is aligned to 4096, as direct I/O needs. Grows, and keeps what it has grown to.
#[derive(Default)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// Empty, with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::default();
        buf.set_len(bytes);
        buf.set_len(0);
        buf
    }

    /// Makes the buffer `len` bytes long. What the bytes are then is not specified (but they are initialised).
    pub fn set_len(&mut self, len: usize) {
        let pages = len.div_ceil(PAGE_BYTES);
        if pages > self.pages.len() {
            self.pages.resize(pages, Page([0; PAGE_BYTES]));
        }
        self.len = len;
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are initialised, contiguous bytes without padding, and `len` is at most their size.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; any byte value is valid for a page.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot open {} for reading", path.display())]
    Open {
        path: PathBuf,
        #[source]
        errno: Errno,
    },
    /// The device said no: a medium error, or the device is gone.
    #[error("cannot read {} at byte {byte}", path.display())]
    Io {
        path: PathBuf,
        byte: u64,
        #[source]
        errno: Errno,
    },
    /// It is shorter than the range asked for, or has become so.
    #[error("{} ends at byte {byte}, before the end of the range {range}; has it been made smaller?", path.display())]
    PastEnd { path: PathBuf, byte: u64, range: ByteRange },
}

/// A block device or regular file open for reads past the page cache, which may hold other bytes than the device.
/// Many threads may read at once.
pub struct DirectFile {
    path: PathBuf,
    /// Open with O_DIRECT.
    direct: Option<File>,
    /// Open without; regular files only.
    buffered: Option<File>,
    /// Set when a file system opened with O_DIRECT but refused to read so.
    direct_refused: AtomicBool,
    /// Ranges are widened to multiples of this: the logical sector of a device, 4096 for a file.
    granule_bytes: u64,
}

impl DirectFile {
    /// Opens read-only with O_DIRECT. A regular file on a file system that refuses O_DIRECT is read through the
    /// page cache, a block device never.
    pub fn open(path: &Path) -> Result<DirectFile, ReadError> {
        let error = |errno| ReadError::Open { path: path.to_owned(), errno };
        let direct = match open_with(path, libc::O_DIRECT) {
            Ok(file) => Some(file),
            Err(Errno::EINVAL) => None,
            Err(errno) => return Err(error(errno)),
        };
        let is_device =
            std::fs::metadata(path).map_err(|e| error(errno_of(&e)))?.file_type().is_block_device();
        let (buffered, granule_bytes) = match (&direct, is_device) {
            (None, true) => return Err(error(Errno::EINVAL)),
            (Some(device), true) => {
                (None, super::device::logical_sector_bytes(device).map_err(error)?.into())
            }
            (_, false) => (Some(open_with(path, 0).map_err(error)?), PAGE_BYTES as u64),
        };
        let direct_refused = AtomicBool::new(direct.is_none());
        Ok(DirectFile { path: path.to_owned(), direct, buffered, direct_refused, granule_bytes })
    }

    /// False if the file is read through the page cache.
    pub fn is_direct(&self) -> bool {
        !self.direct_refused.load(Ordering::Relaxed)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `buf` with exactly the bytes of `range`. After an error its content is not specified.
    pub fn read_range(&self, range: ByteRange, buf: &mut AlignedBuf) -> Result<(), ReadError> {
        let granule = self.granule_bytes;
        let wide = range.align_outward(granule, u64::MAX - u64::MAX % granule);
        let skip = usize::try_from(range.start - wide.start).expect("less than a granule");
        let wanted = usize::try_from(range.len()).expect("a range that is read fits in memory");
        buf.set_len(usize::try_from(wide.len()).expect("a range that is read fits in memory"));
        let filled = match (&self.direct, &self.buffered) {
            (Some(file), None) => self.fill(file, wide.start, buf, skip + wanted)?,
            (Some(file), Some(buffered)) if self.is_direct() => {
                match self.fill(file, wide.start, buf, skip + wanted) {
                    Err(ReadError::Io { errno: Errno::EINVAL, .. }) => {
                        self.direct_refused.store(true, Ordering::Relaxed);
                        self.fill(buffered, wide.start, buf, skip + wanted)?
                    }
                    filled => filled?,
                }
            }
            (_, Some(file)) => self.fill(file, wide.start, buf, skip + wanted)?,
            (None, None) => unreachable!("open keeps at least one"),
        };
        if filled < skip + wanted {
            let byte = wide.start + filled as u64;
            return Err(ReadError::PastEnd { path: self.path.clone(), byte, range });
        }
        buf.copy_within(skip..skip + wanted, 0);
        buf.set_len(wanted);
        Ok(())
    }

    /// Reads from byte `start` until `enough` bytes of `buf` are there or the end is: returns how many are.
    fn fill(&self, file: &File, start: u64, buf: &mut AlignedBuf, enough: usize) -> Result<usize, ReadError> {
        let granule = usize::try_from(self.granule_bytes).expect("a sector size");
        let mut filled = 0;
        while filled < enough {
            // A short read may end anywhere; the next must start aligned again.
            let from = filled - filled % granule;
            match file.read_at(&mut buf[from..], start + from as u64) {
                Ok(len) if from + len <= filled => break,
                Ok(len) => filled = from + len,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let byte = start + from as u64;
                    return Err(ReadError::Io { path: self.path.clone(), byte, errno: errno_of(&e) });
                }
            }
        }
        Ok(filled)
    }
}

fn open_with(path: &Path, flags: i32) -> Result<File, Errno> {
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| errno_of(&e))
}

/// The errno of an error that came from a system call.
pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::test_devices::Loop;
    use proptest::prelude::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
    }

    #[test]
    fn buffer_is_aligned_whatever_its_length() {
        let mut buf = AlignedBuf::with_capacity(1);
        assert!(buf.is_empty());
        for len in [0, 1, 4096, 4097, 1 << 20] {
            buf.set_len(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr().align_offset(4096), 0);
        }
    }

    #[test]
    fn any_range_of_a_file_and_of_a_device_reads_back() {
        let content = pattern(300_032); // whole sectors, but not whole pages
        let image = Loop::with_content(&content);
        let readers = [DirectFile::open(&image.device).unwrap(), DirectFile::open(image.file()).unwrap()];
        assert!(readers[0].is_direct());
        proptest!(|(start in 0usize..300_032, len in 0usize..70_000)| {
            let mut buf = AlignedBuf::default();
            let end = (start + len).min(content.len());
            for reader in &readers {
                reader.read_range(ByteRange::new(start as u64, end as u64), &mut buf).unwrap();
                prop_assert_eq!(&buf[..], &content[start..end]);
            }
        });
    }

    #[test]
    fn file_on_tmpfs_is_read_too() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, pattern(9000)).unwrap();
        let file = DirectFile::open(&path).unwrap();
        let mut buf = AlignedBuf::default();
        file.read_range(ByteRange::new(4000, 9000), &mut buf).unwrap();
        assert_eq!(&buf[..], &pattern(9000)[4000..]);
    }

    #[test]
    fn range_past_the_end_says_where_the_end_is() {
        let image = Loop::with_content(&pattern(8192));
        for path in [&image.device, image.file()] {
            let file = DirectFile::open(path).unwrap();
            let error = file.read_range(ByteRange::new(4096, 12288), &mut AlignedBuf::default()).unwrap_err();
            assert!(matches!(error, ReadError::PastEnd { byte: 8192, .. }), "{error}");
        }
    }

    #[test]
    fn opening_what_is_not_there_carries_the_errno() {
        let error = DirectFile::open(Path::new("/dev/none-such")).err().unwrap();
        assert!(matches!(error, ReadError::Open { errno: Errno::ENOENT, .. }), "{error}");
    }
}
