use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::aligned::errno_of;
use super::sysfs::{DeviceNumber, Sysfs, attribute, children, number_of};

nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
nix::ioctl_read_bad!(blksszget, 0x1268, libc::c_int);
nix::ioctl_read_bad!(blkroget, 0x125e, libc::c_int);

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("there is no {}; `lsblk` lists the block devices of this machine", path.display())]
    NotFound { path: PathBuf },
    #[error("{} is a regular file, not a block device; attach it first with `losetup -f --show {}`",
        path.display(), path.display())]
    RegularFile { path: PathBuf },
    #[error("{} is {kind}, not a block device; `lsblk` lists the block devices of this machine", path.display())]
    NotABlockDevice { path: PathBuf, kind: &'static str },
    #[error("no permission to open {}; run this as root", path.display())]
    Permission { path: PathBuf },
    #[error("{} has a size of zero; nothing is attached to it yet (loop: `losetup`, zram: its disksize)",
        path.display())]
    ZeroSize { path: PathBuf },
    #[error("cannot {what} {}", path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        #[source]
        errno: Errno,
    },
}

/// The whole disk a volume is, or is a partition of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub number: DeviceNumber,
    /// As the kernel names it: `sda`, `loop0`, `dm-3`.
    pub name: String,
    /// Its directory in sysfs, without symbolic links.
    pub sysfs_dir: PathBuf,
}

/// Completed I/O of a disk since it was made, as in `/sys/block/NAME/stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoCounts {
    /// The queue is told to count (`queue/iostats`).
    pub counted: bool,
    pub reads: u64,
    /// Write-zeroes are among them.
    pub writes: u64,
    pub written_sectors: u64,
    pub discards: u64,
    pub discarded_sectors: u64,
}

impl IoCounts {
    fn parse(stat: &str) -> Option<IoCounts> {
        let fields: Vec<u64> = stat.split_whitespace().map_while(|field| field.parse().ok()).collect();
        Some(IoCounts {
            counted: false,
            reads: *fields.first()?,
            writes: *fields.get(4)?,
            written_sectors: *fields.get(6)?,
            discards: *fields.get(11)?,
            discarded_sectors: *fields.get(13)?,
        })
    }

    /// Nothing but reads lies between the two.
    pub fn same_writes(&self, other: &IoCounts) -> bool {
        IoCounts { reads: 0, ..self.clone() } == IoCounts { reads: 0, ..other.clone() }
    }

    /// Nothing but reads since the disk is there.
    pub fn is_without_writes(&self) -> bool {
        self.same_writes(&IoCounts { counted: self.counted, ..IoCounts::default() })
    }
}

/// What is known of a block device when it is opened. Holds no file open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// As the user named it.
    pub path: PathBuf,
    pub number: DeviceNumber,
    /// As the kernel names it: `sda1`, `loop0`, `dm-3`.
    pub name: String,
    pub size_bytes: u64,
    pub logical_sector_bytes: u32,
    pub read_only: bool,
    pub disk: Disk,
    /// Where the volume starts on its disk; 0 if it is the whole disk.
    pub start_bytes: u64,
    /// Whether the disk works by requests (then writes complete as `block_rq_complete`) or by bios.
    pub request_based: bool,
    sysfs: Sysfs,
    sysfs_dir: PathBuf,
}

impl BlockDevice {
    /// Looks at the device named by `path`, which may be a symbolic link.
    pub fn open(path: &Path) -> Result<BlockDevice, DeviceError> {
        let error = |what, e: &std::io::Error| match errno_of(e) {
            Errno::ENOENT | Errno::ENOTDIR => DeviceError::NotFound { path: path.to_owned() },
            Errno::EACCES | Errno::EPERM => DeviceError::Permission { path: path.to_owned() },
            errno => DeviceError::Io { path: path.to_owned(), what, errno },
        };
        let kind = std::fs::metadata(path).map_err(|e| error("look at", &e))?.file_type();
        if kind.is_file() {
            return Err(DeviceError::RegularFile { path: path.to_owned() });
        }
        if !kind.is_block_device() {
            let kind = match kind {
                kind if kind.is_dir() => "a directory",
                kind if kind.is_char_device() => "a character device",
                _ => "a pipe or socket",
            };
            return Err(DeviceError::NotABlockDevice { path: path.to_owned(), kind });
        }
        let file = File::open(path).map_err(|e| error("open", &e))?;
        // Of the open file: the path may have come to name another device.
        let number = DeviceNumber::from_stat(file.metadata().map_err(|e| error("look at", &e))?.rdev());
        let geometry = Geometry::of(&file).map_err(|(what, errno)| error(what, &errno.into()))?;
        if geometry.size_bytes == 0 {
            return Err(DeviceError::ZeroSize { path: path.to_owned() });
        }
        BlockDevice::describe(path, number, geometry, Sysfs::host()).map_err(|e| error("find in sysfs", &e))
    }

    fn describe(
        path: &Path,
        number: DeviceNumber,
        geometry: Geometry,
        sysfs: Sysfs,
    ) -> std::io::Result<BlockDevice> {
        let sysfs_dir = sysfs.device_dir(number)?;
        let is_partition = sysfs_dir.join("partition").exists();
        let disk_dir = match sysfs_dir.parent() {
            Some(parent) if is_partition => parent.to_owned(),
            _ => sysfs_dir.clone(),
        };
        // sysfs counts in 512 bytes whatever the sector size.
        let start: u64 = match is_partition {
            true => {
                attribute(&sysfs_dir, "start").and_then(|start| start.parse().ok()).ok_or(Errno::ENODATA)?
            }
            false => 0,
        };
        Ok(BlockDevice {
            path: path.to_owned(),
            number,
            name: name_of(&sysfs_dir),
            size_bytes: geometry.size_bytes,
            logical_sector_bytes: geometry.logical_sector_bytes,
            read_only: geometry.read_only,
            disk: Disk {
                number: number_of(&disk_dir).ok_or(Errno::ENODATA)?,
                name: name_of(&disk_dir),
                sysfs_dir: disk_dir.clone(),
            },
            start_bytes: start * 512,
            request_based: !children(&disk_dir.join("mq")).is_empty(),
            sysfs,
            sysfs_dir,
        })
    }

    pub fn is_partition(&self) -> bool {
        self.number != self.disk.number
    }

    /// The size the device has now, in bytes; [`BlockDevice::size_bytes`] is the one it had when it was opened.
    /// None if the device is gone.
    pub fn size_bytes_now(&self) -> Option<u64> {
        // sysfs counts in 512 bytes whatever the sector size.
        attribute(&self.sysfs_dir, "size")?.parse::<u64>().ok()?.checked_mul(512)
    }

    /// The kernel's number of this life of the disk: another file behind the same loop device has another one. Since
    /// 5.15, and never used twice before the next boot.
    pub fn disk_sequence(&self) -> Option<u64> {
        attribute(&self.disk.sysfs_dir, "diskseq")?.parse().ok()
    }

    /// What the kernel has counted of the whole disk's I/O. None if it does not count, or the device is gone.
    pub fn io_counts(&self) -> Option<IoCounts> {
        // Drivers that take bios count by themselves, some whatever this says.
        let counted = attribute(&self.disk.sysfs_dir, "queue/iostats")? == "1";
        if self.request_based && !counted {
            return None;
        }
        Some(IoCounts { counted, ..IoCounts::parse(&attribute(&self.disk.sysfs_dir, "stat")?)? })
    }

    /// Written to this very device, disk or partition, since it is there.
    pub fn written_bytes(&self) -> Option<u64> {
        Some(IoCounts::parse(&attribute(&self.sysfs_dir, "stat")?)?.written_sectors * 512)
    }

    /// Whether a file system, swap, dm or md has it, or a part of it, for itself. What can't be told is taken for that.
    pub fn is_claimed(&self) -> bool {
        use std::os::unix::fs::OpenOptionsExt;
        // Without O_CREAT this is no test of existence: who asks for it on a block device gets it alone or not at all.
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&self.path).is_err()
    }

    /// A suspended dm device holds bios that count nowhere as under way.
    pub fn is_suspended(&self) -> bool {
        attribute(&self.disk.sysfs_dir, "dm/suspended").is_some_and(|suspended| suspended == "1")
    }

    /// Writes (with discards and write-zeroes) under way on the whole disk. None if the device is gone, or nobody counts.
    pub fn writes_in_flight(&self) -> Option<u64> {
        if !self.counts_requests() {
            return None;
        }
        let inflight = attribute(&self.disk.sysfs_dir, "inflight")?;
        inflight.split_whitespace().nth(1)?.parse().ok()
    }

    /// Whether it, or its disk, is reading or writing now. What can't be told is taken for no.
    pub fn is_busy(&self) -> bool {
        let inflight = attribute(&self.disk.sysfs_dir, "inflight").unwrap_or_default();
        inflight.split_whitespace().any(|count| count != "0")
    }

    /// Whether the kernel counts the requests under way. What takes bios counts, or has written before it returns.
    pub(super) fn counts_requests(&self) -> bool {
        !self.request_based || attribute(&self.disk.sysfs_dir, "queue/iostats").is_none_or(|on| on != "0")
    }

    /// (major, minor) of the whole disk and of its partitions.
    pub fn disk_and_partitions(&self) -> Vec<DeviceNumber> {
        let partitions = children(&self.disk.sysfs_dir);
        let partitions = partitions.iter().filter(|dir| dir.join("partition").exists());
        std::iter::once(self.disk.number).chain(partitions.filter_map(|dir| number_of(dir))).collect()
    }

    /// How the device is recognised again after a reboot: the first of `dm:UUID`, `md:UUID`, `loop:FILE`,
    /// `wwid:…`, `serial:…` (these of the disk, with `#partN` for a partition of it), `partuuid:…`, `name:…`.
    pub fn identity(&self) -> String {
        let disk = &self.disk.sysfs_dir;
        let part = attribute(&self.sysfs_dir, "partition")
            .map(|number| format!("#part{number}"))
            .unwrap_or_default();
        if let Some(uuid) = attribute(disk, "dm/uuid") {
            return format!("dm:{uuid}{part}");
        }
        if let Some(uuid) =
            attribute(disk, "md/uuid").or_else(|| link_suffix("by-id", "md-uuid-", self.disk.number))
        {
            return format!("md:{uuid}{part}");
        }
        if let Some(file) = attribute(disk, "loop/backing_file") {
            let offset = attribute(disk, "loop/offset").filter(|offset| offset != "0");
            let offset = offset.map(|offset| format!("@{offset}")).unwrap_or_default();
            return format!("loop:{file}{offset}{part}");
        }
        if let Some(wwid) = attribute(disk, "wwid").or_else(|| attribute(disk, "device/wwid")) {
            return format!("wwid:{wwid}{part}");
        }
        if let Some(serial) = attribute(disk, "serial").or_else(|| attribute(disk, "device/serial")) {
            return format!("serial:{serial}{part}");
        }
        if let Some(uuid) = self.partuuid() {
            return format!("partuuid:{uuid}");
        }
        format!("name:{}", self.name)
    }

    fn partuuid(&self) -> Option<String> {
        let uevent = attribute(&self.sysfs_dir, "uevent")?;
        let told = uevent.lines().find_map(|line| line.strip_prefix("PARTUUID=").map(str::to_owned));
        told.or_else(|| link_suffix("by-partuuid", "", self.number))
    }

    pub(super) fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }
}

/// What the ioctls of an open device say.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    size_bytes: u64,
    logical_sector_bytes: u32,
    read_only: bool,
}

impl Geometry {
    fn of(device: &File) -> Result<Geometry, (&'static str, Errno)> {
        let mut size_bytes = 0u64;
        // SAFETY: the descriptor is open and BLKGETSIZE64 writes one u64.
        unsafe { blkgetsize64(device.as_raw_fd(), &mut size_bytes) }.map_err(|e| ("get the size of", e))?;
        let mut read_only = 0;
        // SAFETY: the descriptor is open and BLKROGET writes one int.
        unsafe { blkroget(device.as_raw_fd(), &mut read_only) }
            .map_err(|e| ("ask for write protection of", e))?;
        let logical_sector_bytes = logical_sector_bytes(device).map_err(|e| ("get the sector size of", e))?;
        Ok(Geometry { size_bytes, logical_sector_bytes, read_only: read_only != 0 })
    }
}

/// The smallest unit the device reads and writes.
pub(super) fn logical_sector_bytes(device: &File) -> Result<u32, Errno> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open and BLKSSZGET writes one int.
    unsafe { blksszget(device.as_raw_fd(), &mut bytes) }?;
    u32::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).ok_or(Errno::EINVAL)
}

fn name_of(sysfs_dir: &Path) -> String {
    // The kernel writes '!' for the '/' in names such as cciss/c0d0.
    sysfs_dir.file_name().map(|name| name.to_string_lossy().replace('!', "/")).unwrap_or_default()
}

/// The rest after `prefix` of the name of the link in /dev/disk/`by` that leads to the device, if udev made one.
fn link_suffix(by: &str, prefix: &str, number: DeviceNumber) -> Option<String> {
    children(&Path::new("/dev/disk").join(by)).iter().find_map(|link| {
        let name = link.file_name()?.to_str()?.strip_prefix(prefix)?;
        let device = std::fs::metadata(link).ok()?;
        (DeviceNumber::from_stat(device.rdev()) == number).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_counts_are_read_and_reads_are_no_writes() {
        let stat = "  10 1 80 3   20 2 160 5   0 9 8   4 0 32 1   6 7";
        let counts = IoCounts::parse(stat).unwrap();
        let expected = IoCounts {
            counted: false,
            reads: 10,
            writes: 20,
            written_sectors: 160,
            discards: 4,
            discarded_sectors: 32,
        };
        assert_eq!(counts, expected);
        assert!(counts.same_writes(&IoCounts { reads: 11, ..counts.clone() }));
        assert!(!counts.same_writes(&IoCounts { discards: 5, ..counts.clone() }));
        assert_eq!(IoCounts::parse("1 2 3"), None);
    }
    use crate::io::test_devices::{Loop, Zram, run, text};

    const MIB: u64 = 1 << 20;

    #[test]
    fn whole_loop_device_is_described() {
        let image = Loop::of_size(4 * MIB);
        let device = BlockDevice::open(&image.device).unwrap();
        assert_eq!((device.size_bytes, device.logical_sector_bytes, device.start_bytes), (4 * MIB, 512, 0));
        assert_eq!((device.name.as_str(), device.disk.name.as_str()), (image.name(), image.name()));
        assert_eq!(device.number.major, 7);
        assert_eq!(device.disk.number, device.number);
        assert!(device.request_based && !device.read_only && !device.is_partition());
        assert_eq!(device.writes_in_flight(), Some(0));
        assert!(!device.is_busy());
        assert_eq!(device.identity(), format!("loop:{}", image.file().display()));
    }

    #[test]
    fn partition_knows_its_disk_and_start() {
        let mut image = Loop::of_size(8 * MIB);
        image.add_partition(2048, 4096);
        let second = image.add_partition(6144, 2048);
        let device = BlockDevice::open(&second).unwrap();
        assert_eq!((device.size_bytes, device.start_bytes), (MIB, 3 * MIB));
        assert_eq!(device.disk.name, image.name());
        assert!(device.is_partition() && device.request_based);
        assert_eq!(device.identity(), format!("loop:{}#part2", image.file().display()));
    }

    #[test]
    fn size_is_followed_when_the_device_grows() {
        let image = Loop::of_size(4 * MIB);
        let device = BlockDevice::open(&image.device).unwrap();
        std::fs::OpenOptions::new().write(true).open(image.file()).unwrap().set_len(6 * MIB).unwrap();
        run("losetup", &["--set-capacity", text(&image.device)]);
        assert_eq!(device.size_bytes, 4 * MIB);
        assert_eq!(device.size_bytes_now(), Some(6 * MIB));
    }

    #[test]
    fn read_only_device_is_told() {
        let image = Loop::of_size(MIB);
        run("blockdev", &["--setro", text(&image.device)]);
        let device = BlockDevice::open(&image.device);
        // The flag would outlive the attachment, and meet the next user of this loop device.
        run("blockdev", &["--setrw", text(&image.device)]);
        assert!(device.unwrap().read_only);
    }

    #[test]
    fn what_is_no_block_device_is_refused_with_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.img");
        std::fs::write(&file, "x").unwrap();
        let message = |path: &Path| BlockDevice::open(path).unwrap_err().to_string();
        assert!(message(&file).contains(&format!("losetup -f --show {}", file.display())));
        assert!(message(dir.path()).contains("a directory"));
        assert!(message(Path::new("/dev/null")).contains("a character device"));
        assert!(message(&dir.path().join("none")).contains("there is no"));
    }

    #[test]
    fn device_without_a_size_is_refused() {
        let zram = Zram::without_size();
        let error = BlockDevice::open(&zram.device).unwrap_err();
        assert!(matches!(error, DeviceError::ZeroSize { .. }), "{error}");
    }

    #[test]
    fn bio_based_disk_and_identities_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        let add = |path: &str, content: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        let link = |number: &str, to: &str| {
            std::fs::create_dir_all(root.path().join("dev/block")).unwrap();
            std::os::unix::fs::symlink(root.path().join(to), root.path().join("dev/block").join(number))
                .unwrap();
        };
        add("devices/dm-0/dev", "252:0\n");
        add("devices/dm-0/dm/uuid", "LVM-abc\n");
        link("252:0", "devices/dm-0");
        add("devices/nvme0n1/dev", "259:0\n");
        add("devices/nvme0n1/wwid", "eui.0025\n");
        add("devices/nvme0n1/mq/0/cpu_list", "0");
        add("devices/nvme0n1/inflight", "       3        4\n");
        add("devices/nvme0n1/nvme0n1p2/dev", "259:2\n");
        add("devices/nvme0n1/nvme0n1p2/partition", "2\n");
        add("devices/nvme0n1/nvme0n1p2/start", "4096\n");
        link("259:2", "devices/nvme0n1/nvme0n1p2");
        add("devices/vda/dev", "254:0\n");
        add("devices/vda/serial", "\n");
        add("devices/vda/vda1/dev", "254:1\n");
        add("devices/vda/vda1/partition", "1\n");
        add("devices/vda/vda1/start", "2048\n");
        add("devices/vda/vda1/uevent", "DEVTYPE=partition\nPARTUUID=12-34\n");
        link("254:1", "devices/vda/vda1");
        link("254:0", "devices/vda");

        let describe = |number: &str| {
            let geometry = Geometry { size_bytes: 1, logical_sector_bytes: 512, read_only: false };
            let number = number.parse().unwrap();
            BlockDevice::describe(Path::new("/dev/x"), number, geometry, Sysfs::at(root.path())).unwrap()
        };
        assert_eq!(describe("252:0").identity(), "dm:LVM-abc");
        assert!(!describe("252:0").request_based);
        let nvme = describe("259:2");
        assert_eq!(nvme.identity(), "wwid:eui.0025#part2");
        assert_eq!((nvme.start_bytes, nvme.request_based), (4096 * 512, true));
        assert_eq!(nvme.writes_in_flight(), Some(4));
        assert!(nvme.is_busy());
        assert_eq!(describe("254:1").identity(), "partuuid:12-34");
        assert_eq!(describe("254:0").identity(), "name:vda");
    }
}
