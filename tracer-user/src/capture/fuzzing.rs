//! Fuzz targets of what comes from the kernel: see `crate::fuzzing`.

use tracer_common::vfs::{
    CHANGE_EVENT_BYTES, COMM_BYTES, INODE_BYTES, NAME_BYTES, NAME_EVENT_BYTES, PATH_BYTES_LONG,
};
use tracer_common::{BLOCK_EVENT_BYTES, PAYLOAD_EVENT_BYTES};

use crate::capture::vfs::{Named, VfsEvent, synced_file};
use crate::capture::{Event, Payload, VolumeExtent};
use crate::model::ByteRange;

/// Bytes from the ring for changes of files.
pub fn vfs_event(bytes: &[u8]) {
    if let Some(file) = synced_file(bytes) {
        assert_eq!(bytes.len(), INODE_BYTES);
        assert_eq!(file.inode.to_ne_bytes(), bytes[..8]);
    }
    let Some(event) = VfsEvent::parse(bytes) else { return };
    let is_name = |name: &[u8], max: usize| name.len() < max && !name.contains(&0);
    match event {
        VfsEvent::Change(change) => {
            assert_eq!(change.op as u8, bytes[1]);
            assert_eq!(change.seq.to_ne_bytes(), bytes[8..16]);
            assert!(is_name(&change.process.name, COMM_BYTES + 1));
            match change.name {
                Named::No => assert_eq!(bytes.len(), CHANGE_EVENT_BYTES),
                Named::Entry { name, .. } => assert!(is_name(&name, NAME_BYTES)),
                Named::Rename { from, to, .. } => {
                    assert!(is_name(&from.1, NAME_BYTES) && is_name(&to.1, NAME_BYTES));
                }
                Named::Path { path, .. } => assert!(is_name(&path, PATH_BYTES_LONG)),
            }
        }
        VfsEvent::Name { name, .. } => {
            assert_eq!(bytes.len(), NAME_EVENT_BYTES);
            assert!(is_name(&name, NAME_BYTES));
        }
        VfsEvent::End { .. } => assert_eq!(bytes.len(), CHANGE_EVENT_BYTES),
    }
}

/// A byte that chooses the volume, then the bytes from the ring.
pub fn event(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let on_disk = match choice % 3 {
        0 => ByteRange::new(0, 1 << 40),
        1 => ByteRange::new(1 << 20, (1 << 20) + 4096),
        _ => ByteRange::new(512, 1 << 63),
    };
    let volume = VolumeExtent { on_disk, ..VolumeExtent::default() };
    let Some(event) = Event::parse(bytes, &volume) else { return };
    let (range, submitted) = match &event {
        Event::Submit { range, .. } => (Some(*range), true),
        Event::Piece { range, .. } => (Some(*range).filter(|range| !range.is_empty()), false),
        Event::Complete { range, .. } => (*range, false),
    };
    let data = match &event {
        Event::Submit { payload: Payload::Whole(data), .. } | Event::Piece { bytes: data, .. } => Some(data),
        _ => None,
    };
    assert_eq!(bytes.len(), if data.is_some() { PAYLOAD_EVENT_BYTES } else { BLOCK_EVENT_BYTES });
    // What the event names of the disk, counted without the parser.
    let number =
        |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u128::from(*b));
    let start = number(16, 8) * 512;
    let end = start + number(32, 4);
    let wanted_start = start.max(u128::from(on_disk.start));
    let wanted_end = end.min(u128::from(on_disk.end));
    match range {
        Some(range) => {
            assert!(range.start < range.end && range.end <= on_disk.len());
            assert_eq!(u128::from(range.start + on_disk.start), wanted_start);
            assert_eq!(u128::from(range.end + on_disk.start), wanted_end);
            if let Some(data) = data {
                let from =
                    BLOCK_EVENT_BYTES + usize::try_from(wanted_start - start).expect("within the event");
                assert_eq!(data[..], bytes[from..from + data.len()]);
                assert_eq!(data.len() as u64, range.len());
            }
        }
        None if data.is_some() => assert!(data.is_some_and(Vec::is_empty)),
        None => assert!(!submitted && wanted_start >= wanted_end),
    }
}
