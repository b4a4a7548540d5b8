//! Over devices of their own; they need root, as protecting does.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::capture::{
    Capture, CaptureOptions, Event, Origin, Rung, VolumeExtent, detach, unattended_volumes,
};
use crate::io::BlockDevice;
use crate::io::test_devices::Loop;
use crate::model::{ByteRange, ByteRangeSet, MarkId, VolumeId};

const SIZE: u64 = 1 << 20;
const ID: VolumeId = VolumeId([7; 16]);

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP: BPF programs can only be loaded by root");
    }
    root
}

/// A disk whose probes are removed with it.
struct Disk {
    disk: Loop,
    device: BlockDevice,
    file: File,
}

impl Disk {
    fn new() -> Disk {
        let disk = Loop::of_size(SIZE);
        let device = BlockDevice::open(&disk.device).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&disk.device).unwrap();
        Disk { disk, device, file }
    }

    fn extent(&self) -> VolumeExtent {
        VolumeExtent {
            disk_major: self.device.disk.number.major,
            disk_first_minor: self.device.disk.number.minor,
            disk_sequence: self.device.disk_sequence().unwrap_or(0),
            on_disk: ByteRange::new(0, self.device.size_bytes),
            request_based: self.device.request_based,
            device_numbers: Vec::new(),
        }
    }

    fn open(&self, options: &CaptureOptions) -> (Capture, Origin) {
        Capture::open(self.extent(), &self.device.name, ID, Some(MarkId(5)), options).unwrap()
    }

    fn write(&self, block: u64) {
        self.file.write_all_at(&[1; 4096], block * 4096).unwrap();
        self.file.sync_data().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = detach(&self.device.name);
        assert!(self.disk.device.exists());
    }
}

fn block(number: u64) -> ByteRange {
    ByteRange::with_len(number * 4096, 4096)
}

fn blocks(numbers: impl IntoIterator<Item = u64>) -> ByteRangeSet {
    numbers.into_iter().map(block).collect()
}

fn submissions(capture: &mut Capture) -> Vec<(u64, ByteRange)> {
    let mut found = Vec::new();
    while let Some(event) = capture.next_event() {
        if let Event::Submit { seq, range, .. } = event.unwrap() {
            found.push((seq, range));
        }
    }
    found
}

#[test]
fn every_write_has_the_next_number_and_the_counters_add_up() {
    if !is_root() {
        return;
    }
    const WRITES: u64 = 20;
    let disk = Disk::new();
    let mut capture = Capture::attach(disk.extent(), &CaptureOptions::default()).unwrap();
    (0..WRITES).for_each(|number| disk.write(number * 2));
    assert!(!capture.ring_is_empty());
    let numbers: Vec<u64> = submissions(&mut capture).into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(numbers, (0..WRITES).collect::<Vec<_>>());
    assert!(capture.ring_is_empty());
    let counters = capture.counters();
    assert_eq!((counters.seen, counters.emitted, counters.marked), (WRITES, WRITES, 0));
    assert!(counters.completions_seen >= WRITES && counters.read_failed == 0, "{counters:?}");
    assert!(capture.take_dirty().is_empty());
}

#[test]
fn what_a_dead_process_consumed_is_owed_and_what_it_did_not_is_in_the_ring() {
    if !is_root() {
        return;
    }
    let disk = Disk::new();
    let (mut capture, origin) = disk.open(&CaptureOptions::default());
    assert_eq!(origin, Origin::New);
    assert!(capture.is_pinned());
    assert_eq!(capture.ledger().unscanned().bytes(), SIZE, "nothing is known of a new volume");
    capture.ledger().keep_unscanned(&blocks([9]));
    disk.write(3);
    assert_eq!(submissions(&mut capture).len(), 1);
    drop(capture);
    disk.write(4);

    let (mut capture, origin) = disk.open(&CaptureOptions::default());
    assert_eq!(origin, Origin::Adopted);
    assert_eq!((capture.ledger().owed(), capture.ledger().unscanned()), (blocks([3]), blocks([9])));
    assert_eq!(submissions(&mut capture).iter().map(|(_, range)| *range).collect::<Vec<_>>(), [block(4)]);
    assert_eq!(capture.ledger().owed(), blocks([3, 4]));
    assert_eq!(capture.counters().seen, 2);

    // A mark: forgotten is what was owed before its instant, and only once it is durable.
    capture.ledger().turn();
    disk.write(7);
    submissions(&mut capture);
    assert_eq!(capture.ledger().owed(), blocks([3, 4, 7]));
    capture.settle(MarkId(5));
    assert_eq!(capture.ledger().owed(), blocks([7]));
    capture.detach().unwrap();
    assert!(!unattended_volumes().contains(&disk.device.name));
}

#[test]
fn other_probes_take_over_all_that_is_owed() {
    if !is_root() {
        return;
    }
    let disk = Disk::new();
    // A ring for a few events only: the rest is in the bitmap.
    let (mut capture, _) = disk.open(&CaptureOptions { ring_bytes: 4096, ..CaptureOptions::default() });
    capture.ledger().keep_unscanned(&ByteRangeSet::new());
    disk.write(0);
    submissions(&mut capture);
    drop(capture);
    (1..200).for_each(|number| disk.write(number));

    let other = CaptureOptions { rung: Some(Rung::RawTp), ..CaptureOptions::default() };
    let (mut capture, origin) = disk.open(&other);
    assert_eq!((origin, capture.rung()), (Origin::Replaced, Rung::RawTp));
    assert!(capture.ledger().owed().contains_all(ByteRange::new(0, 200 * 4096)));
    assert!(capture.ledger().unscanned().is_empty());
    disk.write(210);
    assert!(submissions(&mut capture).iter().any(|(_, range)| *range == block(210)));
    drop(capture);
    assert_eq!(disk.open(&other).1, Origin::Adopted);
}

#[test]
fn probes_of_another_disk_journal_or_an_older_copy_of_it_are_not_adopted() {
    if !is_root() {
        return;
    }
    let disk = Disk::new();
    let options = CaptureOptions::default();
    let name = &disk.device.name;
    let (mut capture, _) = disk.open(&options);
    capture.settle(MarkId(5));
    drop(capture);
    let other = Capture::open(disk.extent(), name, VolumeId([8; 16]), Some(MarkId(5)), &options);
    let error = other.err().expect("it is another journal").to_string();
    assert!(error.contains("afterwrite detach"), "{error}");
    assert_eq!(disk.open(&options).1, Origin::Adopted);

    let (_, origin) = Capture::open(disk.extent(), name, ID, Some(MarkId(4)), &options).unwrap();
    assert_eq!(origin, Origin::New, "mark 5 is missing");
    let other_life = VolumeExtent { disk_sequence: disk.extent().disk_sequence + 1, ..disk.extent() };
    let (_, origin) = Capture::open(other_life, name, ID, Some(MarkId(5)), &options).unwrap();
    assert_eq!(origin, Origin::New, "the disk was another one");
}
