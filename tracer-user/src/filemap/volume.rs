//! Which file system a cache is of, and where its parts may be.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::fstatfs;
use serde::{Deserialize, Serialize};

use crate::filemap::MapError;
use crate::io::{BlockDevice, DeviceNumber, Role, Sysfs, ensure_not_on_volume};
use crate::tree::Source;

const EXT_MAGIC: u64 = 0xef53;
const XFS_MAGIC: u64 = 0x5846_5342;

/// The file `cache.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapVolume {
    pub version: u32,
    /// Of this cache; copies remember what of it they have seen.
    pub id: String,
    /// The directory that is watched.
    pub path: PathBuf,
    /// Its handle, in hexadecimal digits.
    pub root: String,
    /// Of the device, see `BlockDevice::identity`; empty if the file system is on none, or on several.
    pub identity: String,
}

/// The watched directory, open, and its device if it is on exactly one.
pub struct Watched {
    pub source: Source,
    pub device: Option<BlockDevice>,
}

impl MapVolume {
    pub const VERSION: u32 = 1;

    pub fn new(watched: &Watched) -> Result<MapVolume, MapError> {
        let mut id = [0; 16];
        let random = Path::new("/dev/urandom");
        std::fs::File::open(random)
            .and_then(|mut file| file.read_exact(&mut id))
            .map_err(MapError::io("read", random))?;
        Ok(MapVolume {
            version: MapVolume::VERSION,
            id: hex(&id),
            path: watched.source.path().to_owned(),
            root: watched.root()?,
            identity: watched.identity(),
        })
    }

    /// It is a cache of this directory of this file system.
    pub fn is_of(&self, watched: &Watched) -> Result<bool, MapError> {
        Ok(self.root == watched.root()? && self.identity == watched.identity())
    }
}

impl Watched {
    pub fn open(path: &Path) -> Result<Watched, MapError> {
        let path = path.canonicalize().map_err(MapError::io("find", path))?;
        let source = Source::open(&path)?;
        let dev = std::fs::metadata(&path).map_err(MapError::io("look at", &path))?.dev();
        // A file system without a device, or with several, has a number that no device has.
        let device = match Sysfs::host().device_dir(DeviceNumber::from_stat(dev)) {
            Ok(dir) => {
                let name = dir.file_name().unwrap_or_default().to_string_lossy().replace('!', "/");
                Some(BlockDevice::open(&Path::new("/dev").join(name))?)
            }
            Err(_) => None,
        };
        Ok(Watched { source, device })
    }

    /// `path` is not on the file system that is watched, nor on what that stands on.
    pub fn ensure_elsewhere(&self, path: &Path, role: Role) -> Result<(), MapError> {
        let dev = |path: &Path| {
            std::fs::metadata(path).map(|metadata| metadata.dev()).map_err(MapError::io("look at", path))
        };
        let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
        let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
        if dev(existing)? == dev(self.source.path())? {
            return Err(MapError::SameFileSystem { path: path.to_owned() });
        }
        match &self.device {
            Some(device) => Ok(ensure_not_on_volume(device, path, role)?),
            None => Ok(()),
        }
    }

    /// FIEMAP of this file system tells bytes of its one device (btrfs tells addresses of its own).
    pub fn has_device_addresses(&self) -> Result<bool, MapError> {
        let path = self.source.path();
        let root = self.source.root().map_err(MapError::io("look at", path))?;
        let kind = fstatfs(&root.file).map_err(|errno| MapError::io("look at", path)(errno.into()))?.f_type;
        let Some(device) = &self.device else { return Ok(false) };
        let mounts = Path::new("/proc/self/mountinfo");
        let mounts = std::fs::read_to_string(mounts).map_err(MapError::io("read", mounts))?;
        Ok(matches!(kind.cast_unsigned(), EXT_MAGIC | XFS_MAGIC)
            && !journals_data(&mounts, &device.number.to_string()))
    }

    fn root(&self) -> Result<String, MapError> {
        let root = self.source.root().map_err(MapError::io("look at", self.source.path()))?;
        Ok(hex(&root.handle))
    }

    fn identity(&self) -> String {
        self.device.as_ref().map(BlockDevice::identity).unwrap_or_default()
    }
}

/// Mounted so that what is written goes into the log first, and to its place later.
fn journals_data(mountinfo: &str, device: &str) -> bool {
    let of_device = mountinfo.lines().filter(|line| line.split(' ').nth(2) == Some(device));
    let mut options = of_device.filter_map(|line| line.rsplit(' ').next()).flat_map(|all| all.split(','));
    options.any(|option| option == "data=journal")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_goes_through_the_log_is_recognised() {
        let mounts = "21 1 7:1 / /a rw,noatime - ext4 /dev/loop1 rw,data=journal\n22 1 7:11 / /b rw - ext4 /dev/loop11 rw\n";
        assert!(journals_data(mounts, "7:1") && !journals_data(mounts, "7:11") && !journals_data("", "7:1"));
    }
}
