//! The machine's storage as it is: devices, what they stand on, what is mounted on them, and direct reads.

mod aligned;
mod candidates;
pub mod clock;
mod coverage;
mod device;
pub mod fiemap;
mod graph;
pub mod log_line;
#[cfg(feature = "capture")]
pub mod mount_table;
mod mounts;
mod open;
mod pace;
pub mod priority;
mod replace;
mod scratch_disk;
mod space;
pub mod store;
mod sysfs;
mod topology;

pub use aligned::{AlignedBuf, DirectFile, ReadError};
pub use candidates::candidates;
pub use coverage::Obstacle;
pub use device::{BlockDevice, DeviceError, Disk, IoCounts};
pub use graph::{Conflict, DeviceGraph, DeviceNode, FileId, Storage};
pub use mounts::{MountedFs, MountsError, mounted_on};
pub use open::open_unnoticed;
pub use pace::Pace;
pub use replace::{NEW_SUFFIX, replace};
pub use scratch_disk::ScratchDisk;
pub use space::Space;
pub use sysfs::{DeviceNumber, Sysfs};
pub use topology::{Role, TopologyError, devices_below, devices_of_path, ensure_not_on_volume};

#[cfg(test)]
pub(crate) mod test_devices;
