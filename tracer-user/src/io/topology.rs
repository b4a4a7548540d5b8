use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::aligned::errno_of;
use super::device::BlockDevice;
use super::graph::{Conflict, DeviceGraph, DeviceNode, FileId, Storage};
use super::mounts::{Mount, MountsError, mount_id_of, read_mounts};
use super::sysfs::{DeviceNumber, Sysfs, attribute, device_links, number_of};

/// How many overlays may lie on each other, as many as the kernel allows and some.
const OVERLAYS_MAX: u32 = 8;

/// How many symbolic links a path may lead through, as in the kernel.
const LINKS_MAX: usize = 40;

/// What a path is to be for the protected volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Journal,
    Target,
    Cache,
    /// Of a group.
    Member,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Journal => "journal",
            Role::Target => "target",
            Role::Cache => "cache",
            Role::Member => "volume",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("the {role} {} {conflict} {}; put it on another disk or partition", path.display(), volume.display())]
    OnVolume { role: Role, path: PathBuf, volume: PathBuf, conflict: Conflict },
    #[error("cannot find out what {} is stored on", path.display())]
    Path {
        path: PathBuf,
        #[source]
        errno: Errno,
    },
    /// The file behind a loop device is deleted or out of reach, so that nobody knows what it is stored on.
    #[error("cannot find out what {device} stands on: its file {} cannot be looked at; \
        detach it with `losetup -d /dev/{device}` or choose another place", file.display())]
    Backing { device: String, file: PathBuf },
    #[error("cannot tell which file systems are mounted")]
    Mounts(#[from] MountsError),
}

/// The devices that writes to `device` reach, without itself: dm and md slaves, and what the file of a loop device
/// is stored on. The disk of a partition is not among them, but what that disk stands on is.
pub fn devices_below(device: DeviceNumber) -> Result<Vec<DeviceNumber>, TopologyError> {
    let (graph, unknown) = read_graph(&Sysfs::host(), &read_mounts()?, &[device]);
    unknown.into_iter().next().map_or_else(|| Ok(graph.below(device)), Err)
}

/// The block devices of the file system that holds `path`, or would hold it if it does not exist yet. Empty if
/// there are none, as with tmpfs and NFS.
pub fn devices_of_path(path: &Path) -> Result<Vec<DeviceNumber>, TopologyError> {
    file_system_devices(&Sysfs::host(), &read_mounts()?, path)
}

/// Refuses a journal or target whose bytes would end on `volume`, or overwrite what it is made of.
pub fn ensure_not_on_volume(volume: &BlockDevice, path: &Path, role: Role) -> Result<(), TopologyError> {
    let sysfs = volume.sysfs();
    let mounts = read_mounts()?;
    let existing = nearest_existing(path)?;
    let metadata = std::fs::metadata(&existing).map_err(|e| path_error(path, &e))?;
    let storage = match metadata.file_type().is_block_device() {
        true => Storage::Device(DeviceNumber::from_stat(metadata.rdev())),
        false => Storage::File {
            devices: file_system_devices(sysfs, &mounts, &existing)?,
            id: Some(FileId { dev: metadata.dev(), inode: metadata.ino() }),
        },
    };
    let mut tops = vec![volume.number];
    match &storage {
        Storage::Device(device) => tops.push(*device),
        Storage::File { devices, .. } => tops.extend(devices),
    }
    let (graph, unknown) = read_graph(sysfs, &mounts, &tops);
    if let Some(conflict) = graph.conflict(volume.number, &storage) {
        return Err(TopologyError::OnVolume {
            role,
            path: path.to_owned(),
            volume: volume.path.clone(),
            conflict,
        });
    }
    unknown.into_iter().next().map_or(Ok(()), Err)
}

/// Reads what `tops` stand on. Also returns an error for each loop device whose file cannot be looked at.
pub(super) fn read_graph(
    sysfs: &Sysfs,
    mounts: &[Mount],
    tops: &[DeviceNumber],
) -> (DeviceGraph, Vec<TopologyError>) {
    let mut graph = DeviceGraph::default();
    let mut unknown = Vec::new();
    let mut open = tops.to_vec();
    while let Some(number) = open.pop() {
        // A device may have gone since its number was read; then nothing stands on it either.
        let Ok(dir) = sysfs.device_dir(number) else { continue };
        if graph.nodes.contains_key(&number) {
            continue;
        }
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let disk_dir = dir.parent().filter(|_| dir.join("partition").exists());
        let partition_of = disk_dir.and_then(number_of);
        let whole = disk_dir.unwrap_or(&dir);
        let mut node =
            DeviceNode { name, partition_of, below: device_links(&whole.join("slaves")), backing: None };
        if let Some(file) = attribute(whole, "loop/backing_file") {
            let file = PathBuf::from(file);
            match std::fs::metadata(&file) {
                Ok(metadata) if metadata.file_type().is_block_device() => {
                    node.below.push(DeviceNumber::from_stat(metadata.rdev()));
                }
                Ok(metadata) => {
                    node.backing = Some(FileId { dev: metadata.dev(), inode: metadata.ino() });
                    match file_system_devices(sysfs, mounts, &file) {
                        Ok(devices) => node.below.extend(devices),
                        Err(error) => unknown.push(error),
                    }
                }
                Err(_) => unknown.push(TopologyError::Backing { device: node.name.clone(), file }),
            }
        }
        open.extend(&node.below);
        open.extend(node.partition_of);
        graph.nodes.insert(number, node);
    }
    (graph, unknown)
}

fn file_system_devices(
    sysfs: &Sysfs,
    mounts: &[Mount],
    path: &Path,
) -> Result<Vec<DeviceNumber>, TopologyError> {
    let mut devices = Vec::new();
    let mut open = vec![(nearest_existing(path)?, 0)];
    while let Some((path, depth)) = open.pop() {
        let mount = mount_of(mounts, &path)?;
        devices.extend(mount.devices(sysfs));
        if depth < OVERLAYS_MAX {
            // A layer may be named as another namespace sees it; one that is not there is skipped.
            let layers = mount.layers().into_iter().filter(|layer| layer.exists());
            open.extend(layers.map(|layer| (layer, depth + 1)));
        }
    }
    devices.sort();
    devices.dedup();
    Ok(devices)
}

fn mount_of<'m>(mounts: &'m [Mount], path: &Path) -> Result<&'m Mount, TopologyError> {
    let error = |errno| TopologyError::Path { path: path.to_owned(), errno };
    if let Some(id) = mount_id_of(None, path).map_err(error)? {
        return mounts.iter().find(|mount| mount.id == id).ok_or_else(|| error(Errno::ENOENT));
    }
    // Kernels before 5.8: the longest mount point that the path is under; the last one if mounted over.
    let path = path.canonicalize().map_err(|e| path_error(path, &e))?;
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.path));
    above.max_by_key(|mount| mount.path.components().count()).ok_or_else(|| error(Errno::ENOENT))
}

/// `path` if it exists, else the nearest directory in which it would be created, symbolic links followed.
fn nearest_existing(path: &Path) -> Result<PathBuf, TopologyError> {
    let mut current = path.to_owned();
    let mut links = 0;
    loop {
        match std::fs::symlink_metadata(&current) {
            Ok(metadata) if metadata.file_type().is_symlink() && !current.exists() => {
                links += 1;
                let aim = std::fs::read_link(&current).map_err(|e| path_error(path, &e))?;
                if links > LINKS_MAX {
                    return Err(TopologyError::Path { path: path.to_owned(), errno: Errno::ELOOP });
                }
                current = current.parent().unwrap_or(Path::new("/")).join(aim);
            }
            Ok(_) => return Ok(current),
            Err(e) if matches!(errno_of(&e), Errno::ENOENT | Errno::ENOTDIR) => {
                current = match current.parent() {
                    Some(parent) if parent != Path::new("") => parent.to_owned(),
                    _ if current.is_absolute() => return Err(path_error(path, &e)),
                    _ => PathBuf::from("."),
                };
            }
            Err(e) => return Err(path_error(path, &e)),
        }
    }
}

fn path_error(path: &Path, error: &std::io::Error) -> TopologyError {
    TopologyError::Path { path: path.to_owned(), errno: errno_of(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::test_devices::{Loop, Mounted, run};

    const MIB: u64 = 1 << 20;

    fn check(volume: &Path, path: &Path, role: Role) -> Result<(), TopologyError> {
        ensure_not_on_volume(&BlockDevice::open(volume).unwrap(), path, role)
    }

    fn conflict(volume: &Path, path: &Path) -> Conflict {
        match check(volume, path, Role::Journal) {
            Err(TopologyError::OnVolume { conflict, .. }) => conflict,
            other => panic!("{} on {}: {other:?}", path.display(), volume.display()),
        }
    }

    #[test]
    fn journal_on_the_volume_is_refused_however_it_is_named() {
        let disk = Loop::of_size(64 * MIB);
        let fs = Mounted::mkfs("ext4", &disk.device);
        assert_eq!(conflict(&disk.device, &fs.point), Conflict::IsVolume);
        assert_eq!(conflict(&disk.device, &fs.point.join("not/there/yet")), Conflict::IsVolume);
        let outside = tempfile::tempdir().unwrap();
        let link = outside.path().join("link");
        std::os::unix::fs::symlink(fs.point.join("not there yet"), &link).unwrap();
        assert_eq!(conflict(&disk.device, &link), Conflict::IsVolume);
        assert!(check(&disk.device, outside.path(), Role::Journal).is_ok());
        assert!(check(&disk.device, Path::new("/dev/shm/x"), Role::Journal).is_ok());
        let message = check(&disk.device, &fs.point, Role::Journal).unwrap_err().to_string();
        assert!(message.ends_with("put it on another disk or partition"), "{message}");
    }

    #[test]
    fn partitions_of_the_volume_are_refused_and_its_neighbours_are_not() {
        let mut disk = Loop::of_size(64 * MIB);
        let first = disk.add_partition(2048, 32 * 2048);
        let second = disk.add_partition(40 * 2048, 20 * 2048);
        let fs = Mounted::mkfs("ext4", &first);
        assert!(check(&second, &fs.point, Role::Journal).is_ok());
        assert!(check(&second, &first, Role::Target).is_ok());
        assert!(matches!(conflict(&disk.device, &fs.point), Conflict::PartOfVolume { .. }));
        assert!(matches!(conflict(&first, &disk.device), Conflict::HoldsVolume { .. }));
    }

    #[test]
    fn storage_in_a_file_on_the_volume_is_refused_and_the_file_below_it_too() {
        let lower = Loop::of_size(64 * MIB);
        let below = Mounted::mkfs("ext4", &lower.device);
        let image = below.point.join("inner.img");
        std::fs::File::create(&image).unwrap().set_len(32 * MIB).unwrap();
        let upper = Loop::over(&image);
        let above = Mounted::mkfs("ext4", &upper.device);

        assert!(matches!(conflict(&lower.device, &above.point), Conflict::StandsOnVolume { .. }));
        assert!(matches!(conflict(&lower.device, &upper.device), Conflict::StandsOnVolume { .. }));
        // The other way round: beside the image is fine, the image itself and the device under it are not.
        assert!(check(&upper.device, &below.point.join("journal"), Role::Journal).is_ok());
        assert!(matches!(conflict(&upper.device, &image), Conflict::BackingFile { .. }));
        let hard_link = below.point.join("other-name");
        std::fs::hard_link(&image, &hard_link).unwrap();
        assert!(matches!(conflict(&upper.device, &hard_link), Conflict::BackingFile { .. }));
        assert!(matches!(conflict(&upper.device, &lower.device), Conflict::UnderVolume { .. }));
        let numbers = [&lower.device, &upper.device].map(|path| BlockDevice::open(path).unwrap().number);
        assert!(devices_below(numbers[1]).unwrap().contains(&numbers[0]));
        assert_eq!(devices_of_path(&image).unwrap(), [numbers[0]]);
    }

    #[test]
    fn journal_on_btrfs_or_overlay_over_the_volume_is_refused() {
        let disk = Loop::of_size(160 * MIB);
        let fs = Mounted::mkfs("btrfs", &disk.device);
        let subvolume = fs.point.join("sub");
        run("btrfs", &["-q", "subvolume", "create", subvolume.to_str().unwrap()]);
        assert_eq!(conflict(&disk.device, &subvolume), Conflict::IsVolume);
        for dir in ["upper", "work"] {
            std::fs::create_dir(fs.point.join(dir)).unwrap();
        }
        let lower = tempfile::tempdir().unwrap();
        let layer = |name: &str| fs.point.join(name).to_str().unwrap().to_owned();
        let (upper, work) = (layer("upper"), layer("work"));
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.path().display());
        let overlay = Mounted::new(Path::new("overlay"), &["-t", "overlay", "-o", &options]);
        assert_eq!(conflict(&disk.device, &overlay.point), Conflict::IsVolume);
    }

    #[test]
    fn deleted_file_behind_a_loop_device_is_said_not_passed() {
        let (volume, other) = (Loop::of_size(8 * MIB), Loop::of_size(8 * MIB));
        std::fs::remove_file(other.file()).unwrap();
        let error = check(&volume.device, &other.device, Role::Target).unwrap_err();
        assert!(matches!(error, TopologyError::Backing { .. }), "{error}");
    }

    #[test]
    fn graph_is_read_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        let add = |dir: &str, attributes: &[(&str, &str)], slaves: &[&str]| {
            let path = root.path().join("devices").join(dir);
            std::fs::create_dir_all(path.join("slaves")).unwrap();
            for (name, content) in attributes {
                std::fs::write(path.join(name), content).unwrap();
                if *name == "dev" {
                    let links = root.path().join("dev/block");
                    std::fs::create_dir_all(&links).unwrap();
                    std::os::unix::fs::symlink(&path, links.join(content.trim())).unwrap();
                }
            }
            for slave in slaves {
                let name = Path::new(slave).file_name().unwrap();
                std::os::unix::fs::symlink(
                    root.path().join("devices").join(slave),
                    path.join("slaves").join(name),
                )
                .unwrap();
            }
        };
        add("sda", &[("dev", "8:0\n")], &[]);
        add("sda/sda1", &[("dev", "8:1\n"), ("partition", "1\n")], &[]);
        add("sdb", &[("dev", "8:16\n")], &[]);
        add("md0", &[("dev", "9:0\n")], &["sda/sda1", "sdb"]);
        add("md0/md0p1", &[("dev", "259:0\n"), ("partition", "1\n")], &[]);
        add("dm-0", &[("dev", "252:0\n")], &["md0/md0p1"]);

        let n = |text: &str| text.parse::<DeviceNumber>().unwrap();
        let (graph, unknown) = read_graph(&Sysfs::at(root.path()), &[], &[n("252:0")]);
        assert!(unknown.is_empty());
        assert_eq!(graph.below(n("252:0")), ["8:1", "8:16", "259:0"].map(n));
        assert_eq!(graph.nodes[&n("8:1")].partition_of, Some(n("8:0")));
        assert_eq!(graph.nodes[&n("259:0")].name, "md0p1");
        let way = graph.way_down(n("252:0"), n("8:0")).unwrap();
        assert_eq!(way, ["252:0", "259:0", "8:1"].map(n));
    }
}
