use crate::capture::features::Rung;
use crate::model::ByteRange;

/// The protected volume as the block layer counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeExtent {
    /// Of the whole disk.
    pub disk_major: u32,
    pub disk_first_minor: u32,
    /// The kernel's number of this life of the disk; 0 when it does not tell.
    pub disk_sequence: u64,
    /// The volume's bytes on the whole disk.
    pub on_disk: ByteRange,
    /// The driver takes requests (blk-mq); otherwise it takes bios.
    pub request_based: bool,
    /// (major, minor) of the disk and of all its partitions, for the tracepoint rung.
    pub device_numbers: Vec<(u32, u32)>,
}

impl VolumeExtent {
    /// The disk's number as the kernel has it.
    pub fn disk_dev(&self) -> u32 {
        (self.disk_major << 20) | self.disk_first_minor
    }
}

#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// A rung to use instead of the best.
    pub rung: Option<Rung>,
    /// A power of two, at least 4096.
    pub ring_bytes: u32,
    /// Copy what is written.
    pub payload: bool,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions { rung: None, ring_bytes: 16 << 20, payload: false }
    }
}
