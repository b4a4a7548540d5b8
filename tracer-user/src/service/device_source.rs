use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::apply::ReplicaFiles;
use crate::apply::hash_list::HashListReader;
use crate::capture::VolumeExtent;
use crate::collect::{ReplicaBytes, ReplicaHashes, Source};
use crate::io::{AlignedBuf, BlockDevice, DirectFile, ReadError, mounted_on};
use crate::model::{ByteRange, GranuleHash, Granules};

/// The protected block device, read past the page cache.
pub struct DeviceSource {
    device: BlockDevice,
    file: DirectFile,
}

impl DeviceSource {
    pub fn open(device: BlockDevice) -> Result<DeviceSource, ReadError> {
        let file = DirectFile::open(&device.path)?;
        Ok(DeviceSource { device, file })
    }
}

impl Source for DeviceSource {
    fn size_bytes(&self) -> std::io::Result<u64> {
        self.device.size_bytes_now().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn read(&self, range: ByteRange) -> std::io::Result<AlignedBuf> {
        let mut buffer =
            AlignedBuf::with_capacity(usize::try_from(range.len()).map_err(std::io::Error::other)?);
        self.file.read_range(range, &mut buffer).map_err(std::io::Error::other)?;
        Ok(buffer)
    }

    fn writing(&self) -> Option<bool> {
        let writes = self.device.writes_in_flight()?;
        Some(writes > 0 || self.device.is_suspended())
    }

    fn is_busy(&self) -> bool {
        self.device.is_busy()
    }

    fn completions_name_ranges(&self) -> bool {
        self.device.request_based
    }

    fn mounts(&self) -> std::io::Result<Vec<PathBuf>> {
        let mounts = mounted_on(self.device.number).map_err(std::io::Error::other)?;
        Ok(mounts.into_iter().map(|mount| mount.mount_point).collect())
    }
}

/// The replica through the page cache, as the applier writes it, and its hash list.
pub struct ReplicaFile {
    file: std::fs::File,
    buffer: Vec<u8>,
    hashes: Option<Arc<dyn ReplicaHashes>>,
}

impl ReplicaFile {
    pub fn open(path: &Path, files: &ReplicaFiles) -> std::io::Result<ReplicaFile> {
        let hashes = HashListReader::of_replica(files)
            .inspect_err(|error| log::debug!("comparing without hashes: {error}"))
            .ok();
        let hashes = hashes.map(|list| Arc::new(ReplicaHashList(list)) as Arc<dyn ReplicaHashes>);
        Ok(ReplicaFile { file: std::fs::File::open(path)?, buffer: Vec::new(), hashes })
    }
}

impl ReplicaBytes for ReplicaFile {
    fn read(&mut self, range: ByteRange) -> std::io::Result<&[u8]> {
        use std::os::unix::fs::FileExt;
        let len = usize::try_from(range.len()).map_err(std::io::Error::other)?;
        self.buffer.resize(len, 0);
        self.file.read_exact_at(&mut self.buffer, range.start)?;
        Ok(&self.buffer)
    }

    fn hashes(&self) -> Option<Arc<dyn ReplicaHashes>> {
        self.hashes.clone()
    }
}

struct ReplicaHashList(HashListReader);

impl ReplicaHashes for ReplicaHashList {
    fn granules(&self) -> Granules {
        self.0.header().granules
    }

    fn hashes(&self, granules: Range<u64>) -> Vec<Option<GranuleHash>> {
        // What can't be read is unknown, and then the replica is.
        self.0.read(granules.clone()).unwrap_or_else(|_| granules.map(|_| None).collect())
    }
}

/// The volume as the probes filter it.
pub fn volume_extent(device: &BlockDevice) -> VolumeExtent {
    VolumeExtent {
        disk_major: device.disk.number.major,
        disk_first_minor: device.disk.number.minor,
        disk_sequence: device.disk_sequence().unwrap_or(0),
        on_disk: ByteRange::with_len(device.start_bytes, device.size_bytes),
        request_based: device.request_based,
        device_numbers: device.disk_and_partitions().into_iter().map(|n| (n.major, n.minor)).collect(),
    }
}
