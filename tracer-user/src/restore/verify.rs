use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::io::{AlignedBuf, BlockDevice, DeviceError, DirectFile, ReadError};
use crate::model::ByteRange;
use crate::restore::digest::{CHUNK_BYTES, ChunkHash, digest, hash_chunk};

/// What comparing two volumes found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// No byte of the source is missing or different on the target.
    pub identical: bool,
    pub source_bytes: u64,
    /// A target may be larger than its source; what is beyond is not looked at.
    pub target_bytes: u64,
    /// BLAKE3 of the source and of the target, as `b3sum` prints it; over as many bytes as the smaller of the two has.
    pub source_blake3: String,
    pub target_blake3: String,
    /// Sum over all differing ranges.
    pub differing_bytes: u64,
    /// Where they differ, in blocks of 4 KiB joined where adjacent; the first `RANGES_MAX` of them.
    pub differing: Vec<ByteRange>,
    /// There are more ranges than are listed.
    pub more: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub differing_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{} cannot be verified: it is neither a file nor a block device", path.display())]
    Unsuitable { path: PathBuf },
    #[error("cannot look at {}", path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot look at the device")]
    Device(#[from] DeviceError),
    #[error("cannot compare to the end")]
    Read(#[from] ReadError),
}

/// What is compared between two reports of progress: bounds what the threads may find before it is joined.
pub(super) const WINDOW_BYTES: u64 = 128 << 20;
const BLOCK_BYTES: usize = 4096;
const RANGES_MAX: usize = 1 << 16;

/// Compares every byte of `source` with `target`, past the page cache where the file system can, always so on a block
/// device: what counts is what is on the disk, also under a mounted file system. Opens both read-only.
///
/// Whoever changes one of them meanwhile gets a difference that is none: freeze the source or stop its writers.
pub fn verify(
    source: &Path,
    target: &Path,
    progress: &mut dyn FnMut(VerifyProgress),
) -> Result<VerifyReport, VerifyError> {
    let (source_bytes, target_bytes) = (size_of(source)?, size_of(target)?);
    // Both can be opened, or nothing is begun.
    drop((DirectFile::open(source)?, DirectFile::open(target)?));
    let total_bytes = source_bytes.min(target_bytes);
    let mut found = Differing::default();
    let (mut source_hashes, mut target_hashes) = (Vec::new(), Vec::new());
    for window in ByteRange::new(0, total_bytes).chunks(WINDOW_BYTES) {
        let chunks: Vec<_> = window.chunks(CHUNK_BYTES).collect();
        let compared: Vec<Result<Compared, ReadError>> = chunks
            .into_par_iter()
            .map_init(|| Pair::open(source, target), |pair, chunk| pair.compare(chunk, total_bytes))
            .collect();
        for chunk in compared {
            let chunk = chunk?;
            chunk.differing.into_iter().for_each(|range| found.push(range));
            source_hashes.push(chunk.hashes.0);
            target_hashes.push(chunk.hashes.1);
        }
        progress(VerifyProgress { done_bytes: window.end, total_bytes, differing_bytes: found.bytes });
    }
    found.push(ByteRange::new(total_bytes, source_bytes));
    Ok(VerifyReport {
        identical: found.bytes == 0,
        source_bytes,
        target_bytes,
        source_blake3: digest(&source_hashes, total_bytes),
        target_blake3: digest(&target_hashes, total_bytes),
        differing_bytes: found.bytes,
        differing: found.ranges,
        more: found.more,
    })
}

/// The differing ranges so far: they come in order, and adjacent ones are joined.
#[derive(Default)]
pub(super) struct Differing {
    pub(super) ranges: Vec<ByteRange>,
    pub(super) bytes: u64,
    pub(super) more: bool,
}

impl Differing {
    pub(super) fn push(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        self.bytes += range.len();
        let room = self.ranges.len() < RANGES_MAX;
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if room => self.ranges.push(range),
            _ => self.more = true,
        }
    }
}

/// What one thread reads with.
struct Pair {
    files: Result<(DirectFile, DirectFile), ReadError>,
    buffers: (AlignedBuf, AlignedBuf),
}

impl Pair {
    fn open(source: &Path, target: &Path) -> Pair {
        let files = DirectFile::open(source).and_then(|source| Ok((source, DirectFile::open(target)?)));
        Pair { files, buffers: Default::default() }
    }

    fn compare(&mut self, chunk: ByteRange, total_bytes: u64) -> Result<Compared, ReadError> {
        let (source, target) = match &self.files {
            Ok(files) => files,
            Err(error) => return Err(error.clone()),
        };
        source.read_range(chunk, &mut self.buffers.0)?;
        target.read_range(chunk, &mut self.buffers.1)?;
        let source_hash = hash_chunk(chunk.start, &self.buffers.0, total_bytes);
        if *self.buffers.0 == *self.buffers.1 {
            return Ok(Compared { differing: Vec::new(), hashes: (source_hash, source_hash) });
        }
        Ok(Compared {
            differing: differing_blocks(chunk.start, &self.buffers.0, &self.buffers.1),
            hashes: (source_hash, hash_chunk(chunk.start, &self.buffers.1, total_bytes)),
        })
    }
}

struct Compared {
    /// Blocks, joined where adjacent.
    differing: Vec<ByteRange>,
    /// Of source and target.
    hashes: (ChunkHash, ChunkHash),
}

fn differing_blocks(start: u64, source: &[u8], target: &[u8]) -> Vec<ByteRange> {
    let mut found = Differing::default();
    let blocks = source.chunks(BLOCK_BYTES).zip(target.chunks(BLOCK_BYTES));
    for (number, (source, _)) in blocks.enumerate().filter(|(_, (source, target))| source != target) {
        found.push(ByteRange::with_len(start + (number * BLOCK_BYTES) as u64, source.len() as u64));
    }
    found.ranges
}

pub(super) fn size_of(path: &Path) -> Result<u64, VerifyError> {
    use std::os::unix::fs::FileTypeExt;
    let look = |source| VerifyError::Look { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(look)?;
    match () {
        () if metadata.is_file() => Ok(metadata.len()),
        () if metadata.file_type().is_block_device() => Ok(BlockDevice::open(path)?.size_bytes),
        () => Err(VerifyError::Unsuitable { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn compare(source: &[u8], target: &[u8]) -> VerifyReport {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::write(&one, source).unwrap();
        std::fs::write(&two, target).unwrap();
        verify(&one, &two, &mut |_| {}).unwrap()
    }

    #[test]
    fn equal_volumes_are_identical_also_when_the_target_is_larger() {
        let source = vec![3; (3 << 20) + 512];
        let mut target = source.clone();
        assert!(compare(&source, &target).identical);
        target.extend_from_slice(&[9; 5000]);
        let report = compare(&source, &target);
        assert!(report.identical && report.differing.is_empty());
        assert_eq!(report.target_bytes - report.source_bytes, 5000);
    }

    #[test]
    fn a_smaller_target_differs_in_what_is_missing() {
        let source = vec![0; 2 << 20];
        let report = compare(&source, &source[..(1 << 20) + 512]);
        assert!(!report.identical);
        assert_eq!(report.differing, [ByteRange::new((1 << 20) + 512, 2 << 20)]);
    }

    #[test]
    fn differing_blocks_are_joined_across_chunks() {
        let source = vec![0; 4 << 20];
        let mut target = source.clone();
        target[(1 << 20) - 1] = 1;
        target[1 << 20] = 1;
        target[(3 << 20) + 4096] = 1;
        let report = compare(&source, &target);
        let wanted =
            [ByteRange::new((1 << 20) - 4096, (1 << 20) + 4096), ByteRange::with_len((3 << 20) + 4096, 4096)];
        assert_eq!(report.differing, wanted);
        assert_eq!(report.differing_bytes, 12288);
    }

    #[test]
    fn the_list_of_ranges_is_bounded_and_the_sum_is_not() {
        let mut found = Differing::default();
        (0..RANGES_MAX as u64 + 10).for_each(|n| found.push(ByteRange::with_len(n * 8192, 4096)));
        assert_eq!(
            (found.ranges.len(), found.bytes, found.more),
            (RANGES_MAX, (RANGES_MAX as u64 + 10) * 4096, true)
        );
    }

    #[test]
    fn what_is_missing_or_no_volume_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(verify(&file, &dir.path().join("no"), &mut |_| {}), Err(VerifyError::Look { .. })));
        assert!(matches!(verify(dir.path(), &file, &mut |_| {}), Err(VerifyError::Unsuitable { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn exactly_the_changed_blocks_are_found(changes in prop::collection::btree_set(0usize..3 << 20, 0..20)) {
            let source = vec![7; 3 << 20];
            let mut target = source.clone();
            changes.iter().for_each(|at| target[*at] = 8);
            let report = compare(&source, &target);
            for (number, block) in target.chunks(4096).enumerate() {
                let at = (number * 4096) as u64;
                let listed = report.differing.iter().any(|range| range.start <= at && at < range.end);
                prop_assert_eq!(listed, block.contains(&8));
            }
            prop_assert_eq!(report.identical, changes.is_empty());
        }
    }
}
