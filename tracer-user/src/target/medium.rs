use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::model::ByteRange;

/// What a `TargetWriter` writes on: the real thing, or a faulty double in tests. Ranges are inside the medium.
pub(crate) trait Medium: Send {
    fn write_at(&mut self, start: u64, bytes: &[u8]) -> io::Result<()>;
    /// Afterwards the range reads as zeros. `discard` allows to give the space back.
    fn zero(&mut self, range: ByteRange, discard: bool) -> io::Result<()>;
    fn read_at(&self, start: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// All that was written survives a power cut once this returned.
    fn sync(&mut self) -> io::Result<()>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Device,
}

/// A regular file or a block device, through the page cache.
pub(crate) struct RawMedium {
    file: File,
    kind: Kind,
    /// Cleared when the kernel says it cannot, so that it is asked once only.
    can_unmap: bool,
    can_zero_range: bool,
}

/// One fallocate call covers this much at most: a device that must write its zeros answers signals in between.
const ZERO_BYTES_MAX: u64 = 256 << 20;
/// fallocate on a device wants whole sectors, and no sector is larger than this; the rest is written as zeros.
const DEVICE_GRANULE: u64 = 4096;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl RawMedium {
    pub(crate) fn new(file: File, kind: Kind) -> RawMedium {
        RawMedium { file, kind, can_unmap: true, can_zero_range: kind == Kind::Device }
    }

    fn zero_piece(&mut self, piece: ByteRange, discard: bool) -> io::Result<()> {
        // On a file a hole is the cheapest zero. On a device PUNCH_HOLE unmaps, and the kernel does it only where the
        // range reads as zeros afterwards (else EOPNOTSUPP); ZERO_RANGE keeps the space.
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if self.can_unmap && (self.kind == Kind::File || discard) {
            if self.fallocate(punch, piece)? {
                return Ok(());
            }
            self.can_unmap = false;
        }
        if self.can_zero_range {
            if self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, piece)? {
                return Ok(());
            }
            self.can_zero_range = false;
        }
        self.write_zeros(piece)
    }

    /// False when the file system or device has no such operation.
    fn fallocate(&self, flags: FallocateFlags, range: ByteRange) -> io::Result<bool> {
        let start = i64::try_from(range.start).map_err(io::Error::other)?;
        let len = i64::try_from(range.len()).map_err(io::Error::other)?;
        loop {
            return match fallocate(&self.file, flags, start, len) {
                Ok(()) => Ok(true),
                Err(Errno::EINTR) => continue,
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(false),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    fn write_zeros(&self, range: ByteRange) -> io::Result<()> {
        for piece in range.chunks(ZEROS.len() as u64) {
            let len = usize::try_from(piece.len()).map_err(io::Error::other)?;
            self.file.write_all_at(&ZEROS[..len], piece.start)?;
        }
        Ok(())
    }
}

impl Medium for RawMedium {
    fn write_at(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, start)
    }

    fn zero(&mut self, range: ByteRange, discard: bool) -> io::Result<()> {
        let granule = match self.kind {
            Kind::File => 1,
            Kind::Device => DEVICE_GRANULE,
        };
        let inner_start = range.start.next_multiple_of(granule);
        let inner_end = range.end - range.end % granule;
        if inner_start >= inner_end {
            return self.write_zeros(range);
        }
        self.write_zeros(ByteRange::new(range.start, inner_start))?;
        for piece in ByteRange::new(inner_start, inner_end).chunks(ZERO_BYTES_MAX) {
            self.zero_piece(piece, discard)?;
        }
        self.write_zeros(ByteRange::new(inner_end, range.end))
    }

    fn read_at(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, start)
    }

    fn sync(&mut self) -> io::Result<()> {
        // Not sync_data: a file that grew or got holes must keep its size and extents too; for a device it is the same.
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeroing_a_file_punches_holes_and_keeps_the_size() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let mut medium = RawMedium::new(file.try_clone().unwrap(), Kind::File);
        let before = file.metadata().unwrap().blocks();
        medium.zero(ByteRange::new(1000, (1 << 20) - 1000), false).unwrap();
        let after = file.metadata().unwrap();
        assert_eq!(after.len(), 1 << 20);
        assert!(after.blocks() < before / 4, "{} of {before} blocks left", after.blocks());
        let mut bytes = vec![1; 1 << 20];
        medium.read_at(0, &mut bytes).unwrap();
        assert!(bytes[..1000].iter().all(|b| *b == 7) && bytes[(1 << 20) - 1000..].iter().all(|b| *b == 7));
        assert!(bytes[1000..(1 << 20) - 1000].iter().all(|b| *b == 0));
    }

    #[test]
    fn without_fallocate_zeros_are_written() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 200_000], 0).unwrap();
        let mut medium = RawMedium::new(file, Kind::Device);
        (medium.can_unmap, medium.can_zero_range) = (false, false);
        medium.zero(ByteRange::new(5000, 150_001), true).unwrap();
        let mut bytes = vec![1; 200_000];
        medium.read_at(0, &mut bytes).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte, if (5000..150_001).contains(&at) { 0 } else { 7 }, "byte {at}");
        }
    }
}
