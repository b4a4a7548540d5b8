use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A block device's number, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    /// From `st_dev` or `st_rdev` of a file.
    pub fn from_stat(dev: u64) -> DeviceNumber {
        DeviceNumber { major: libc::major(dev), minor: libc::minor(dev) }
    }

    /// As the kernel's `dev_t`, which is what tracepoints carry: 12 bits of major, 20 of minor.
    pub fn kernel_dev(self) -> u32 {
        self.major << 20 | self.minor
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a device number is MAJOR:MINOR, not {0:?}")]
pub struct BadDeviceNumber(String);

impl FromStr for DeviceNumber {
    type Err = BadDeviceNumber;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadDeviceNumber(text.to_owned());
        let (major, minor) = text.trim().split_once(':').ok_or_else(bad)?;
        Ok(DeviceNumber {
            major: major.parse().map_err(|_| bad())?,
            minor: minor.parse().map_err(|_| bad())?,
        })
    }
}

/// A sysfs tree: the host's, or one that a test made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// The running kernel's, at /sys.
    pub fn host() -> Sysfs {
        Sysfs::at("/sys")
    }

    pub fn at(root: impl Into<PathBuf>) -> Sysfs {
        Sysfs { root: root.into() }
    }

    /// The directory of a block device, whole disk or partition, without symbolic links.
    pub fn device_dir(&self, number: DeviceNumber) -> std::io::Result<PathBuf> {
        self.root.join("dev/block").join(number.to_string()).canonicalize()
    }

    /// Numbers of the devices a btrfs file system consists of, given one of them. Empty if none does.
    pub fn btrfs_siblings(&self, member: DeviceNumber) -> Vec<DeviceNumber> {
        let file_systems = children(&self.root.join("fs/btrfs"));
        let members = file_systems.iter().map(|fs| device_links(&fs.join("devices")));
        members.into_iter().find(|devices| devices.contains(&member)).unwrap_or_default()
    }
}

/// The trimmed content of an attribute; none if it is absent, unreadable or empty.
pub(super) fn attribute(dir: &Path, name: &str) -> Option<String> {
    let content = std::fs::read_to_string(dir.join(name)).ok()?;
    let content = content.trim();
    (!content.is_empty()).then(|| content.to_owned())
}

pub(super) fn number_of(dir: &Path) -> Option<DeviceNumber> {
    attribute(dir, "dev")?.parse().ok()
}

/// Numbers of the block devices a directory of links (`slaves`, btrfs' `devices`) points to.
pub(super) fn device_links(dir: &Path) -> Vec<DeviceNumber> {
    children(dir).iter().filter_map(|link| number_of(link)).collect()
}

pub(super) fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut children: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    children.sort();
    children
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_parse_and_encode() {
        let number: DeviceNumber = "259:1\n".parse().unwrap();
        assert_eq!(number, DeviceNumber { major: 259, minor: 1 });
        assert_eq!(number.to_string(), "259:1");
        assert_eq!(number.kernel_dev(), 259 << 20 | 1);
        for wrong in ["", "7", "7:", ":1", "a:b", "7:1:2"] {
            assert!(wrong.parse::<DeviceNumber>().is_err(), "{wrong}");
        }
    }
}
