//! Looks up where changed files lie on the volume, once they have blocks there: what ties who changed a file to the blocks that
//! are journaled.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::io::clock::realtime;
use crate::io::fiemap::{Extent, extents_of, is_stored_plainly};
use crate::io::{DeviceNumber, MountedFs, open_unnoticed};
use crate::model::{ByteRange, FileChanges, FilePlaces, Origin, PlacedExtent};
use crate::origin::{Placing, Unplaced};

/// Files of one look, so that the ring does not wait for it.
const FILES_A_LOOK: usize = 64;
/// Of one file.
const EXTENTS_MAX: usize = 1024;

#[derive(Default)]
pub struct Placer {
    placing: Placing,
    /// Of the file system that lies on the volume as a whole: there its own addresses are the volume's.
    mount_point: Option<PathBuf>,
}

impl Placer {
    pub fn mounted(&mut self, volume: DeviceNumber, mounts: &[MountedFs]) {
        let direct = mounts.iter().find(|mount| mount.depth == 0 && mount.number == volume);
        self.mount_point = direct.map(|mount| mount.mount_point.clone());
    }

    pub fn add(&mut self, changes: &FileChanges) {
        if self.mount_point.is_some() {
            self.placing.add(changes, Instant::now());
        }
    }

    pub fn given_up(&self) -> u64 {
        self.placing.given_up()
    }

    /// Some that are due.
    pub fn look(&mut self) -> Vec<Origin> {
        let Some(mount_point) = self.mount_point.clone() else { return Vec::new() };
        let mut found = Vec::new();
        for unplaced in self.placing.due(Instant::now(), FILES_A_LOOK) {
            // What is gone or renamed meanwhile has no place to tell of.
            let Ok(file) = open(&mount_point, &unplaced) else { continue };
            if !is_stored_plainly(&file).unwrap_or(false) {
                continue;
            }
            let at = realtime();
            let Ok((extents, _)) = extents_of(&file, false, EXTENTS_MAX) else { continue };
            match placed(&extents, &unplaced) {
                Some(extents) if extents.is_empty() => {}
                Some(extents) => {
                    found.push(Origin::Places(FilePlaces { file: unplaced.file, at, extents }));
                }
                None => self.placing.later(unplaced, Instant::now()),
            }
        }
        found
    }
}

fn open(mount_point: &Path, unplaced: &Unplaced) -> io::Result<File> {
    let below = unplaced.path.strip_prefix(b"/").unwrap_or(&unplaced.path);
    let file = open_unnoticed(&mount_point.join(OsStr::from_bytes(below)))?;
    let is_it = |file: &File| Ok::<_, io::Error>(file.metadata()?.ino() == unplaced.file.inode);
    match file {
        Some(file) if is_it(&file)? => Ok(file),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Where the changed ranges lie; `None` if a part of them has no blocks yet.
fn placed(extents: &[Extent], unplaced: &Unplaced) -> Option<Vec<PlacedExtent>> {
    let mut placed = Vec::new();
    for extent in extents {
        let end = extent.offset.saturating_add(extent.length);
        for ByteRange { start, end } in unplaced.ranges.overlapping(ByteRange::new(extent.offset, end)) {
            if extent.is_unsettled() {
                return None;
            }
            if extent.is_plain() {
                let on_volume = extent.physical + (start - extent.offset);
                placed.push(PlacedExtent { offset: start, start: on_volume, length: end - start });
            }
        }
    }
    placed.truncate(EXTENTS_MAX);
    Some(placed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ByteRange, FileId, FileOp, FileOps, Process, Timestamp};

    const DELALLOC: u32 = 4;
    const INLINE: u32 = 0x200;

    fn unplaced(ranges: &[(u64, u64)]) -> Unplaced {
        let mut ops = FileOps::default();
        ops.insert(FileOp::Write);
        let (first, last) = (Timestamp(0), Timestamp(0));
        let file = FileId { inode: 1, ..FileId::default() };
        let ranges = ranges.iter().map(|(start, end)| ByteRange::new(*start, *end)).collect();
        let (path, new_path, process) = (b"/a".to_vec(), Vec::new(), Process::default());
        let mut placing = Placing::default();
        let now = Instant::now();
        placing.add(&FileChanges { process, file, path, new_path, ops, first, last, count: 1, ranges }, now);
        placing.due(now + std::time::Duration::from_secs(1), 1).remove(0)
    }

    fn extent(offset: u64, physical: u64, flags: u32) -> Extent {
        Extent { offset, physical, length: 100, flags }
    }

    #[test]
    fn only_what_was_changed_is_placed() {
        let extents = [extent(0, 5000, 0), extent(100, 9000, 0), extent(300, 7000, 1)];
        let expected = [(50, 5050, 50), (100, 9000, 20), (310, 7010, 10)];
        let found = placed(&extents, &unplaced(&[(50, 120), (210, 250), (310, 320)])).unwrap();
        assert_eq!(found.iter().map(|e| (e.offset, e.start, e.length)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_has_no_blocks_yet_waits_if_it_was_changed() {
        let extents = [extent(0, 5000, 0), extent(100, 0, DELALLOC)];
        assert_eq!(placed(&extents, &unplaced(&[(0, 101)])), None);
        assert_eq!(placed(&extents, &unplaced(&[(0, 10)])).unwrap().len(), 1);
        assert_eq!(placed(&[extent(0, 0, INLINE)], &unplaced(&[(0, 10)])), Some(Vec::new()));
    }
}
