//! Block devices of this machine that one may want to protect.

use std::path::{Path, PathBuf};

use super::device::BlockDevice;

/// Names of a device that are the same after a reboot, best first.
const LASTING: [&str; 4] = ["/dev/mapper", "/dev/disk/by-id", "/dev/disk/by-partuuid", "/dev/disk/by-uuid"];

/// Devices that hold data of their own: nothing stands on them but file systems, they are no swap, can be written and covered.
/// Each by a name that lasts, if it has one.
pub fn candidates() -> std::io::Result<Vec<BlockDevice>> {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let swaps: Vec<_> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/class/block")? {
        let dir = entry?.path();
        let Some(name) = dir.file_name().and_then(|name| name.to_str()) else { continue };
        let path = Path::new("/dev").join(name.replace('!', "/"));
        if is_divided(&dir) || swaps.iter().any(|swap| same(Path::new(swap), &path)) {
            continue;
        }
        // What is gone by now, or an empty drive.
        let Ok(mut device) = BlockDevice::open(&path) else { continue };
        if device.size_bytes > 0 && !device.read_only && device.obstacle().is_none() {
            device.path = lasting(&path).unwrap_or(path);
            found.push(device);
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// It has partitions, or is part of another device.
fn is_divided(dir: &Path) -> bool {
    let entries =
        |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(&dir.join("holders")).next().is_some()
        || entries(dir).any(|below| below.join("partition").exists())
}

fn lasting(path: &Path) -> Option<PathBuf> {
    LASTING.iter().find_map(|dir| {
        let links = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
        links.filter(|link| same(link, path)).min()
    })
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
