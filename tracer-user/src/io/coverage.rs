use std::fmt;

use super::aligned::{AlignedBuf, DirectFile};
use super::device::BlockDevice;
use super::sysfs::attribute;
use crate::model::ByteRange;

/// Drivers whose medium is changed by hand have fixed numbers.
const FLOPPY_MAJOR: u32 = 2;
const CD_ROM_MAJOR: u32 = 11;

/// Why not every write to a device can be seen, or not known to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// SMR disks, ZNS: where a zone append lands and what a zone reset clears is not seen.
    Zoned,
    /// Persistent memory that a file system can map into processes: their stores are no writes of the block layer.
    Dax,
    /// The kernel hands the bios of such a device to one of its paths: their completion is a path's, and before
    /// Linux 6.3 nobody counts them as under way.
    NvmeMultipath,
    /// CD-ROM and floppy disks: another medium is other content without a write.
    ChangeableMedium,
    /// The kernel was told not to count this disk's requests, so that it always looks idle.
    NotCounted { disk: String },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Zoned => f.write_str(
                "is a zoned device: its appends don't say where they write; protect the volumes above it",
            ),
            Obstacle::Dax => f.write_str(
                "is memory that a file system can map into processes (DAX), and their stores can't be seen; \
                 put the file system on the device's BTT, which has no DAX (`ndctl create-namespace --mode sector`)",
            ),
            Obstacle::NvmeMultipath => f.write_str(
                "is an NVMe disk with several paths, of whose writes the kernel does not say when they are done; \
                 start the machine with nvme_core.multipath=N, or protect the volumes above it",
            ),
            Obstacle::ChangeableMedium => f.write_str(
                "has a medium that can be exchanged for another without a write; copy it to a disk and protect that",
            ),
            Obstacle::NotCounted { disk } => write!(
                f,
                "is on a disk whose writes the kernel does not count; `echo 1 > /sys/block/{}/queue/iostats` has it \
                 count them",
                disk.replace('/', "!")
            ),
        }
    }
}

impl BlockDevice {
    /// Whether something keeps this device's writes from being seen.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let is =
            |name: &str, value: &str| attribute(&self.disk.sysfs_dir, name).is_some_and(|is| is == value);
        if attribute(&self.disk.sysfs_dir, "queue/zoned").is_some_and(|model| model != "none") {
            return Some(Obstacle::Zoned);
        }
        if is("queue/dax", "1") {
            return Some(Obstacle::Dax);
        }
        // A disk with one path lies below its controller.
        if self.disk.sysfs_dir.iter().any(|part| part == "nvme-subsystem") {
            return Some(Obstacle::NvmeMultipath);
        }
        if matches!(self.disk.number.major, FLOPPY_MAJOR | CD_ROM_MAJOR) {
            return Some(Obstacle::ChangeableMedium);
        }
        (!self.counts_requests() || !self.counts_bios())
            .then(|| Obstacle::NotCounted { disk: self.disk.name.clone() })
    }

    /// Whether dm and md count the bios under way: from Linux 6.4 on only with `queue/iostats`, before that always,
    /// whatever that says. A read shows it.
    fn counts_bios(&self) -> bool {
        let has = |name: &str| self.disk.sysfs_dir.join(name).exists();
        let on = attribute(&self.disk.sysfs_dir, "queue/iostats").is_none_or(|on| on != "0");
        if self.request_based || on || !(has("dm") || has("md")) {
            return true;
        }
        let reads =
            || attribute(&self.disk.sysfs_dir, "stat")?.split_whitespace().next()?.parse::<u64>().ok();
        let before = reads();
        let mut buffer = AlignedBuf::with_capacity(4096);
        let sector = ByteRange::new(0, u64::from(self.logical_sector_bytes));
        let read = DirectFile::open(&self.path).and_then(|file| file.read_range(sector, &mut buffer));
        // What can't be read at all is somebody else's to tell.
        read.is_err() || before < reads()
    }
}
