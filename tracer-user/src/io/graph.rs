use std::collections::BTreeMap;
use std::fmt;

use super::sysfs::DeviceNumber;

/// A file wherever it is named from: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    pub dev: u64,
    pub inode: u64,
}

/// A block device and what it stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceNode {
    /// As the kernel names it.
    pub name: String,
    /// The whole disk, if this is a partition.
    pub partition_of: Option<DeviceNumber>,
    /// What it writes to: dm and md slaves, the devices under a loop device's file; for a partition those of its disk.
    pub below: Vec<DeviceNumber>,
    /// The file behind a loop device.
    pub backing: Option<FileId>,
}

/// Block devices by what they stand on. Plain data: read by [`super::devices_below`] and its siblings, judged here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceGraph {
    pub nodes: BTreeMap<DeviceNumber, DeviceNode>,
}

/// Where bytes are to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// To a block device itself.
    Device(DeviceNumber),
    /// To a file, which exists (`id`) or does not yet, on the file system that these devices hold.
    File { devices: Vec<DeviceNumber>, id: Option<FileId> },
}

/// Why bytes must not be written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// It is the protected volume.
    IsVolume,
    /// It is the disk of which the volume is a partition.
    HoldsVolume { disk: String },
    /// It is a partition of the volume.
    PartOfVolume { partition: String },
    /// It is written to the volume in the end, through these devices from the top down.
    StandsOnVolume { through: Vec<String> },
    /// The volume stands on this device: writing to it destroys the volume.
    UnderVolume { device: String },
    /// It is the very file the volume is made of.
    BackingFile { device: String },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::IsVolume => write!(f, "is on the protected volume itself"),
            Conflict::HoldsVolume { disk } => {
                write!(f, "is on {disk}, the disk that holds the protected volume")
            }
            Conflict::PartOfVolume { partition } => {
                write!(f, "is on {partition}, a partition of the protected volume")
            }
            Conflict::StandsOnVolume { through } => {
                write!(f, "is on {}, which stands on the protected volume", through.join(" on "))
            }
            Conflict::UnderVolume { device } => {
                write!(f, "is {device}, which the protected volume stands on")
            }
            Conflict::BackingFile { device } => {
                write!(f, "is the file that {device} under the volume is made of")
            }
        }
    }
}

impl DeviceGraph {
    /// All devices that writes to `device` reach, without itself. The disk of a partition is not among them:
    /// only the partition's part of it is written.
    pub fn below(&self, device: DeviceNumber) -> Vec<DeviceNumber> {
        let mut found: Vec<DeviceNumber> = Vec::new();
        let mut open = self.direct(device).to_vec();
        while let Some(next) = open.pop() {
            if next != device && !found.contains(&next) {
                found.push(next);
                open.extend(self.direct(next));
            }
        }
        found.sort();
        found
    }

    /// The devices from `device` down to one that shares bytes with `volume`, both included; the longest such way.
    /// None if writes to `device` do not reach the volume.
    pub fn way_down(&self, device: DeviceNumber, volume: DeviceNumber) -> Option<Vec<DeviceNumber>> {
        self.way_down_beyond(&mut Vec::new(), device, volume)
    }

    fn way_down_beyond(
        &self,
        above: &mut Vec<DeviceNumber>,
        device: DeviceNumber,
        volume: DeviceNumber,
    ) -> Option<Vec<DeviceNumber>> {
        // The kernel lets no device stand on itself, but the graph may have been read while it changed.
        if above.contains(&device) {
            return None;
        }
        if self.share_bytes(device, volume) {
            return Some(vec![device]);
        }
        above.push(device);
        let ways = self.direct(device).iter().filter_map(|&next| self.way_down_beyond(above, next, volume));
        let longest = ways.max_by_key(Vec::len).map(|mut way| {
            way.insert(0, device);
            way
        });
        above.pop();
        longest
    }

    /// Whether, and why, bytes for `volume`'s protection must not be written to `storage`.
    pub fn conflict(&self, volume: DeviceNumber, storage: &Storage) -> Option<Conflict> {
        let tops = match storage {
            Storage::Device(device) => std::slice::from_ref(device),
            Storage::File { devices, .. } => devices,
        };
        if let Some(way) = tops.iter().find_map(|&top| self.way_down(top, volume)) {
            return Some(self.describe(volume, &way));
        }
        let under_volume = || std::iter::once(volume).chain(self.below(volume));
        match storage {
            Storage::Device(device) => under_volume()
                .any(|below| self.share_bytes(below, *device))
                .then(|| Conflict::UnderVolume { device: self.name(*device) }),
            Storage::File { id, .. } => {
                let same = |below: &DeviceNumber| id.is_some() && self.backing(*below) == *id;
                under_volume().find(same).map(|below| Conflict::BackingFile { device: self.name(below) })
            }
        }
    }

    fn describe(&self, volume: DeviceNumber, way: &[DeviceNumber]) -> Conflict {
        match way {
            [only] if *only == volume => Conflict::IsVolume,
            [only] if self.disk(volume) == Some(*only) => Conflict::HoldsVolume { disk: self.name(*only) },
            [only] => Conflict::PartOfVolume { partition: self.name(*only) },
            way => {
                Conflict::StandsOnVolume { through: way.iter().map(|&device| self.name(device)).collect() }
            }
        }
    }

    /// Whether some bytes belong to both: the same device, or a disk and a partition of it.
    fn share_bytes(&self, one: DeviceNumber, other: DeviceNumber) -> bool {
        one == other || self.disk(one) == Some(other) || self.disk(other) == Some(one)
    }

    fn disk(&self, device: DeviceNumber) -> Option<DeviceNumber> {
        self.nodes.get(&device)?.partition_of
    }

    /// The file behind a loop device, or behind the loop device that this is a partition of.
    fn backing(&self, device: DeviceNumber) -> Option<FileId> {
        let disk = self.disk(device).unwrap_or(device);
        self.nodes.get(&disk)?.backing
    }

    fn direct(&self, device: DeviceNumber) -> &[DeviceNumber] {
        self.nodes.get(&device).map_or(&[], |node| &node.below)
    }

    fn name(&self, device: DeviceNumber) -> String {
        self.nodes.get(&device).map_or_else(|| device.to_string(), |node| node.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SDA: u32 = 0;
    const SDA1: u32 = 1;
    const SDA2: u32 = 2;
    const SDB: u32 = 16;
    const LV_A: u32 = 100;
    const LV_B: u32 = 101;
    const LOOP: u32 = 200;
    const LOOP_P1: u32 = 201;
    const CRYPT: u32 = 300;
    const MD: u32 = 400;
    const IMAGE: FileId = FileId { dev: 5, inode: 77 };

    fn n(minor: u32) -> DeviceNumber {
        DeviceNumber { major: 1, minor }
    }

    /// sda1 is a PV with two LVs; a loop device over a file on lv_a, partitioned; crypt on its partition; md over
    /// lv_b and sdb.
    fn graph() -> DeviceGraph {
        let node = |name: &str, partition_of: Option<u32>, below: &[u32], backing| DeviceNode {
            name: name.into(),
            partition_of: partition_of.map(n),
            below: below.iter().map(|&minor| n(minor)).collect(),
            backing,
        };
        let nodes = [
            (SDA, node("sda", None, &[], None)),
            (SDA1, node("sda1", Some(SDA), &[], None)),
            (SDA2, node("sda2", Some(SDA), &[], None)),
            (SDB, node("sdb", None, &[], None)),
            (LV_A, node("lv_a", None, &[SDA1], None)),
            (LV_B, node("lv_b", None, &[SDA1], None)),
            (LOOP, node("loop0", None, &[LV_A], Some(IMAGE))),
            (LOOP_P1, node("loop0p1", Some(LOOP), &[LV_A], None)),
            (CRYPT, node("crypt", None, &[LOOP_P1], None)),
            (MD, node("md0", None, &[LV_B, SDB], None)),
        ];
        DeviceGraph { nodes: nodes.into_iter().map(|(minor, node)| (n(minor), node)).collect() }
    }

    fn on(device: u32) -> Storage {
        Storage::File { devices: vec![n(device)], id: None }
    }

    fn device(device: u32) -> Storage {
        Storage::Device(n(device))
    }

    #[test]
    fn conflicts_by_table() {
        let through = |names: &[&str]| {
            Some(Conflict::StandsOnVolume { through: names.iter().map(|&name| name.into()).collect() })
        };
        let under = |device: &str| Some(Conflict::UnderVolume { device: device.into() });
        let image = Storage::File { devices: vec![n(LV_A)], id: Some(IMAGE) };
        let table = [
            // volume, storage, verdict
            (SDA1, on(SDA1), Some(Conflict::IsVolume)),
            (SDA1, device(SDA1), Some(Conflict::IsVolume)),
            (SDA1, on(SDA2), None),
            (SDA1, device(SDA2), None),
            (SDA1, on(SDB), None),
            (SDA1, on(SDA), Some(Conflict::HoldsVolume { disk: "sda".into() })),
            (SDA1, device(SDA), Some(Conflict::HoldsVolume { disk: "sda".into() })),
            (SDA, on(SDA2), Some(Conflict::PartOfVolume { partition: "sda2".into() })),
            (SDA1, on(LV_A), through(&["lv_a", "sda1"])),
            (SDA, device(LV_B), through(&["lv_b", "sda1"])),
            (SDA2, on(LV_A), None),
            (SDA1, on(LOOP), through(&["loop0", "lv_a", "sda1"])),
            (SDA1, on(CRYPT), through(&["crypt", "loop0p1", "lv_a", "sda1"])),
            (SDA1, on(MD), through(&["md0", "lv_b", "sda1"])),
            (SDB, on(MD), through(&["md0", "sdb"])),
            (LOOP, on(CRYPT), through(&["crypt", "loop0p1"])),
            // Files beside the volume's own stack are fine, devices in it and the file it is made of are not.
            (LV_A, on(LV_B), None),
            (LV_A, device(LV_B), None),
            (LV_A, on(SDA2), None),
            (LV_A, device(SDA1), under("sda1")),
            (LV_A, device(SDA), under("sda")),
            (LV_A, device(SDA2), None),
            (LOOP, on(LV_A), None),
            (LOOP, device(LV_A), under("lv_a")),
            (LOOP, image.clone(), Some(Conflict::BackingFile { device: "loop0".into() })),
            (CRYPT, image.clone(), Some(Conflict::BackingFile { device: "loop0p1".into() })),
            (LV_B, image, None),
            // Nothing is known of the device: only that it is another one.
            (SDA1, on(999), None),
            (SDA1, Storage::File { devices: vec![], id: None }, None),
        ];
        for (volume, storage, verdict) in table {
            assert_eq!(graph().conflict(n(volume), &storage), verdict, "volume {volume}, {storage:?}");
        }
    }

    #[test]
    fn below_is_transitive_and_leaves_the_disk_of_a_partition_out() {
        assert_eq!(graph().below(n(CRYPT)), [SDA1, LV_A, LOOP_P1].map(n));
        assert_eq!(graph().below(n(SDA1)), []);
    }

    #[test]
    fn way_down_is_the_longest_and_ends_in_a_cycle_too() {
        let mut graph = graph();
        graph.nodes.get_mut(&n(MD)).unwrap().below = [SDA1, LV_B].map(n).to_vec();
        assert_eq!(graph.way_down(n(MD), n(SDA1)).unwrap(), [MD, LV_B, SDA1].map(n));
        graph.nodes.get_mut(&n(LV_B)).unwrap().below = vec![n(MD)];
        assert_eq!(graph.way_down(n(LV_B), n(SDB)), None);
        assert_eq!(graph.below(n(LV_B)), [SDA1, MD].map(n));
    }
}
