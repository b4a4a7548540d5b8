//! Fuzz targets of the cache and of what the kernel tells: see `crate::fuzzing`.

use crate::filemap::events;
use crate::filemap::record::Record;
use crate::filemap::segment::{HEADER_BYTES, frame, header, scan, with_checksums};

pub fn map_segment(data: &[u8]) {
    let number = 7;
    for bytes in [data.to_vec(), [&header(number)[..], data].concat(), with_checksums(number, data)] {
        let Ok(scanned) = scan(number, &bytes) else { continue };
        assert!(scanned.end >= HEADER_BYTES as u64 && scanned.end <= bytes.len() as u64);
        let mut again = header(number).to_vec();
        for (offset, record) in &scanned.records {
            assert_eq!(*offset, again.len() as u64);
            again.extend(frame(number, *offset, record));
        }
        assert_eq!(again, bytes[..again.len()]);
        assert_eq!(scanned.end, again.len() as u64);
    }
    if let Ok(record) = Record::decode(data) {
        assert_eq!(record.encode(), data);
    }
}

pub fn fanotify_events(data: &[u8]) {
    for event in events::decode(data) {
        if let events::Event::Saved { handle, dir, name, .. } = event {
            assert!(handle.len() + dir.len() + name.len() <= data.len());
        }
    }
}
