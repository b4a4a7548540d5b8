use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::aligned::errno_of;
use super::graph::DeviceGraph;
use super::sysfs::{DeviceNumber, Sysfs};
use super::topology::read_graph;

#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        errno: Errno,
    },
    #[error("line {line:?} of {} is not understood", path.display())]
    Parse { path: PathBuf, line: String },
    /// Its super block cannot be opened by any path, so that it cannot be frozen.
    #[error("the {fs_type} mounted at {} is covered by another mount; unmount that one first", mount_point.display())]
    Covered { mount_point: PathBuf, fs_type: String },
}

/// A file system on the volume or on something that stands on it: one for each super block, however often mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedFs {
    /// A path to it from this process. Within /proc/PID/root if only mounted in another mount namespace.
    pub mount_point: PathBuf,
    pub fs_type: String,
    /// Of the super block: a device, or anonymous (major 0) as with btrfs.
    pub number: DeviceNumber,
    /// How many devices are between it and the volume: 0 on the volume itself or on a partition of it.
    pub depth: usize,
    /// Its super block is: nobody can write to it by any mount of it.
    pub read_only: bool,
    mount_id: u64,
}

impl MountedFs {
    /// Opens the root of this very mount, to be frozen by. ESTALE if the path has come to lead to another.
    pub fn open(&self) -> Result<File, Errno> {
        let flags = libc::O_DIRECTORY | libc::O_NONBLOCK;
        let root = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&self.mount_point);
        let root = root.map_err(|e| errno_of(&e))?;
        match mount_id_of(Some(&root), Path::new("")) {
            Ok(Some(id)) if id != self.mount_id => Err(Errno::ESTALE),
            Ok(_) => Ok(root),
            Err(errno) => Err(errno),
        }
    }
}

/// The file systems on `volume`, on its partitions and on all that stands above (dm, md, loop over a file in one
/// of them), in all mount namespaces. The topmost comes first: freezing in this order never blocks on a frozen one.
pub fn mounted_on(volume: DeviceNumber) -> Result<Vec<MountedFs>, MountsError> {
    let sysfs = Sysfs::host();
    let mut mounts = read_mounts()?;
    mounts.extend(mounts_elsewhere());
    let tops: Vec<DeviceNumber> = mounts.iter().flat_map(|mount| mount.devices(&sysfs)).collect();
    // A loop device whose file cannot be looked at is taken to stand on nothing: a deleted image on another disk
    // must not prevent marks of this one.
    let graph = read_graph(&sysfs, &mounts, &tops).0;
    topmost_first(&sysfs, &mounts, &graph, volume)
}

fn topmost_first(
    sysfs: &Sysfs,
    mounts: &[Mount],
    graph: &DeviceGraph,
    volume: DeviceNumber,
) -> Result<Vec<MountedFs>, MountsError> {
    let mut found: BTreeMap<DeviceNumber, Result<MountedFs, MountsError>> = BTreeMap::new();
    for mount in mounts {
        let ways = mount.devices(sysfs).into_iter().filter_map(|device| graph.way_down(device, volume));
        let Some(depth) = ways.map(|way| way.len() - 1).max() else { continue };
        if matches!(found.get(&mount.number), Some(Ok(_))) {
            continue;
        }
        let candidate = MountedFs {
            mount_point: mount.path.clone(),
            fs_type: mount.fs_type.clone(),
            number: mount.number,
            depth,
            read_only: mount.read_only,
            mount_id: mount.id,
        };
        let covered =
            || MountsError::Covered { mount_point: mount.path.clone(), fs_type: mount.fs_type.clone() };
        match candidate.open() {
            Ok(_) => drop(found.insert(mount.number, Ok(candidate))),
            Err(_) => drop(found.entry(mount.number).or_insert_with(|| Err(covered()))),
        }
    }
    let mut file_systems = found.into_values().collect::<Result<Vec<_>, _>>()?;
    file_systems.sort_by_key(|fs| std::cmp::Reverse(fs.depth));
    Ok(file_systems)
}

/// A line of mountinfo.
#[derive(Clone, Debug)]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) number: DeviceNumber,
    /// As this process reaches it.
    pub(super) path: PathBuf,
    pub(super) fs_type: String,
    read_only: bool,
    source: PathBuf,
    options: Vec<(String, PathBuf)>,
}

impl Mount {
    fn parse(line: &str, root: &Path) -> Option<Mount> {
        let info = procfs::process::MountInfo::from_line(line).ok()?;
        let point = unescape(info.mount_point.to_str()?);
        let read_only = info.super_options.contains_key("ro");
        let options = info.super_options.into_iter();
        Some(Mount {
            id: u64::try_from(info.mnt_id).ok()?,
            number: info.majmin.parse().ok()?,
            path: match root == Path::new("/") {
                true => point,
                false => root.join(point.strip_prefix("/").ok()?),
            },
            fs_type: info.fs_type,
            read_only,
            source: unescape(&info.mount_source.unwrap_or_default()),
            options: options.filter_map(|(key, value)| Some((key, unescape(&value?)))).collect(),
        })
    }

    /// The block devices that hold the file system, its external log included.
    pub(super) fn devices(&self, sysfs: &Sysfs) -> Vec<DeviceNumber> {
        let mut devices = Vec::new();
        if self.number.major != 0 {
            devices.push(self.number);
        } else if let Some(source) = self.source.to_str().filter(|source| source.starts_with('/')) {
            // bcachefs names all its devices, with colons between; btrfs only one.
            devices.extend(source.split(':').filter_map(|device| block_device(Path::new(device))));
            if self.fs_type == "btrfs" {
                let siblings: Vec<_> =
                    devices.iter().flat_map(|&device| sysfs.btrfs_siblings(device)).collect();
                devices.extend(siblings);
            }
        }
        let beside =
            self.options.iter().filter(|(key, _)| ["logdev", "rtdev", "journal_path"].contains(&&**key));
        devices.extend(beside.filter_map(|(_, path)| block_device(path)));
        devices.sort();
        devices.dedup();
        devices
    }

    /// The directories an overlay file system writes to and reads from.
    pub(super) fn layers(&self) -> Vec<PathBuf> {
        if self.fs_type != "overlay" {
            return Vec::new();
        }
        let option = |wanted| self.options.iter().find(move |(key, _)| key == wanted).map(|(_, path)| path);
        let lower = option("lowerdir").map(|dirs| dirs.as_os_str().as_bytes().split(|&byte| byte == b':'));
        let lower = lower.into_iter().flatten().filter(|dir| !dir.is_empty());
        let lower = lower.map(|dir| PathBuf::from(OsString::from_vec(dir.to_vec())));
        option("upperdir").into_iter().chain(option("workdir")).cloned().chain(lower).collect()
    }
}

/// The mounts of this process' namespace.
pub(super) fn read_mounts() -> Result<Vec<Mount>, MountsError> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let text =
        std::fs::read(&path).map_err(|e| MountsError::Read { path: path.clone(), errno: errno_of(&e) })?;
    let parse = |line: &str| {
        let error = || MountsError::Parse { path: path.clone(), line: line.to_owned() };
        Mount::parse(line, Path::new("/")).ok_or_else(error)
    };
    String::from_utf8_lossy(&text).lines().map(parse).collect()
}

/// The mounts of all other namespaces, by one process each. A process that ends meanwhile is no error.
fn mounts_elsewhere() -> Vec<Mount> {
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let mut seen = vec![own];
    let mut mounts = Vec::new();
    for process in super::sysfs::children(Path::new("/proc")) {
        let Ok(namespace) = std::fs::read_link(process.join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        let Ok(text) = std::fs::read(process.join("mountinfo")) else { continue };
        seen.push(namespace);
        let root = process.join("root");
        mounts.extend(String::from_utf8_lossy(&text).lines().filter_map(|line| Mount::parse(line, &root)));
    }
    mounts
}

/// The id of the mount `path` is on, relative to `dir` (itself if `path` is empty). None on kernels before 5.8.
pub(super) fn mount_id_of(dir: Option<&File>, path: &Path) -> Result<Option<u64>, Errno> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let at = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    // SAFETY: statx is plain numbers, for which zeros are valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends in NUL and both pointers outlive the call.
    Errno::result(unsafe {
        libc::statx(at, name.as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_MNT_ID, &mut stat)
    })?;
    Ok((stat.stx_mask & libc::STATX_MNT_ID != 0).then_some(stat.stx_mnt_id))
}

fn block_device(path: &Path) -> Option<DeviceNumber> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata.file_type().is_block_device().then(|| DeviceNumber::from_stat(metadata.rdev()))
}

/// Turns `\040` and its like back into the byte.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        let value = octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(first));
        rest = &rest[if value.is_some() { 4 } else { 1 }..];
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BlockDevice;
    use crate::io::test_devices::{Loop, Mounted, run, text};

    const MIB: u64 = 1 << 20;

    fn number(device: &Path) -> DeviceNumber {
        BlockDevice::open(device).unwrap().number
    }

    #[test]
    fn escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape(r"/a\040b\134\011"), Path::new("/a b\\\t"));
        assert_eq!(unescape(r"/plain\9\04"), Path::new(r"/plain\9\04"));
    }

    #[test]
    fn file_system_in_a_file_on_the_volume_comes_before_the_volumes_own() {
        let lower = Loop::of_size(64 * MIB);
        let below = Mounted::mkfs("ext4", &lower.device);
        let image = below.point.join("inner.img");
        File::create(&image).unwrap().set_len(32 * MIB).unwrap();
        let upper = Loop::over(&image);
        let above = Mounted::mkfs("ext4", &upper.device);

        let found = mounted_on(number(&lower.device)).unwrap();
        let summary: Vec<_> =
            found.iter().map(|fs| (fs.mount_point.as_path(), &*fs.fs_type, fs.depth)).collect();
        assert_eq!(summary, [(above.point.as_path(), "ext4", 1), (below.point.as_path(), "ext4", 0)]);
        assert_eq!(found[0].number, number(&upper.device));
        assert_eq!(mounted_on(number(&upper.device)).unwrap().len(), 1);
    }

    #[test]
    fn bind_mounts_count_once_and_other_partitions_not_at_all() {
        let mut disk = Loop::of_size(64 * MIB);
        let first = disk.add_partition(2048, 32 * 2048);
        let second = disk.add_partition(40 * 2048, 20 * 2048);
        let one = Mounted::mkfs("ext4", &first);
        let other = Mounted::mkfs("ext4", &second);
        let _bind = Mounted::new(&one.point, &["--bind"]);
        let points = |device: &Path| -> Vec<PathBuf> {
            mounted_on(number(device)).unwrap().into_iter().map(|fs| fs.mount_point).collect()
        };
        assert_eq!(points(&first), [one.point.as_path()]);
        let mut both = points(&disk.device);
        both.sort();
        let mut wanted = [one.point.clone(), other.point.clone()];
        wanted.sort();
        assert_eq!(both, wanted);
    }

    #[test]
    fn covered_mount_is_found_by_its_other_path_or_refused() {
        let disk = Loop::of_size(32 * MIB);
        let fs = Mounted::mkfs("ext4", &disk.device);
        let cover = Loop::of_size(32 * MIB);
        run("mkfs.ext4", &["-q", text(&cover.device)]);
        let bind = Mounted::new(&fs.point, &["--bind"]);
        run("mount", &[text(&cover.device), text(&fs.point)]);
        let found = mounted_on(number(&disk.device));
        drop(bind);
        let hidden = mounted_on(number(&disk.device));
        run("umount", &[text(&fs.point)]);
        assert_eq!(found.unwrap().len(), 1);
        let error = hidden.unwrap_err();
        assert!(matches!(error, MountsError::Covered { .. }), "{error}");
    }

    #[test]
    fn btrfs_is_found_by_all_its_devices_although_its_number_is_anonymous() {
        let (one, two) = (Loop::of_size(160 * MIB), Loop::of_size(160 * MIB));
        run("mkfs.btrfs", &["-q", "-d", "single", text(&one.device), text(&two.device)]);
        let fs = Mounted::new(&one.device, &[]);
        for device in [&one.device, &two.device] {
            let found = mounted_on(number(device)).unwrap();
            assert_eq!(found.len(), 1, "{}", device.display());
            assert_eq!((found[0].mount_point.as_path(), found[0].number.major), (fs.point.as_path(), 0));
            assert!(found[0].open().is_ok());
        }
    }

    #[test]
    fn mount_of_another_namespace_is_found() {
        use std::io::{BufRead, BufReader, Write};
        use std::process::{Command, Stdio};
        let disk = Loop::of_size(32 * MIB);
        run("mkfs.ext4", &["-q", text(&disk.device)]);
        let dir = tempfile::tempdir().unwrap();
        let script =
            format!("mount {} {} && echo ready && read line", disk.device.display(), dir.path().display());
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let found = mounted_on(number(&disk.device));
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();
        let found = found.unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].mount_point.starts_with("/proc"), "{}", found[0].mount_point.display());
    }

    #[test]
    fn layers_of_an_overlay_are_told() {
        let line = "40 27 0:40 / /m rw - overlay overlay rw,lowerdir=/l1:/l\\0402,upperdir=/u,workdir=/w";
        let mount = Mount::parse(line, Path::new("/")).unwrap();
        assert_eq!(mount.layers(), ["/u", "/w", "/l1", "/l 2"].map(PathBuf::from));
    }
}
