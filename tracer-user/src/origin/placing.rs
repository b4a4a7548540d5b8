//! Which changed parts of files are still to be looked up on the volume: a file has blocks only once its bytes were written
//! back. Pure: time is passed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::{ByteRange, ByteRangeSet, FileChanges, FileId, FileOp};

/// Before the first look, and twice as long before each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// After a look as late as this it is given up.
const PAUSE_MAX: Duration = Duration::from_secs(64);
const FILES_MAX: usize = 16384;
/// Of one file; more become one.
const RANGES_MAX: usize = 256;

/// A file to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplaced {
    pub file: FileId,
    pub path: Vec<u8>,
    /// Changed, in the file.
    pub ranges: ByteRangeSet,
    pause: Duration,
}

#[derive(Debug, Default)]
pub struct Placing {
    files: HashMap<FileId, (Instant, Unplaced)>,
    given_up: u64,
}

impl Placing {
    pub fn add(&mut self, changes: &FileChanges, now: Instant) {
        let FileChanges { file, path, new_path, ops, ranges, .. } = changes;
        let renamed = ops.contains(FileOp::Rename) && !new_path.is_empty();
        let path = if renamed { new_path } else { path };
        if let Some((_, known)) = self.files.get_mut(file)
            && !path.is_empty()
        {
            known.path.clone_from(path);
        }
        // Of some ways it is not told which inode they are of.
        if file.inode == 0 || ranges.is_empty() || !ops.iter().any(FileOp::changes_content) {
            return;
        }
        if self.files.len() >= FILES_MAX && !self.files.contains_key(file) {
            self.given_up += 1;
            return;
        }
        let new = || {
            let unplaced =
                Unplaced { file: *file, path: path.clone(), ranges: ByteRangeSet::new(), pause: FIRST_PAUSE };
            (now + FIRST_PAUSE, unplaced)
        };
        let (_, unplaced) = self.files.entry(*file).or_insert_with(new);
        ranges.iter().for_each(|range| unplaced.ranges.insert(*range));
        if unplaced.ranges.range_count() > RANGES_MAX {
            unplaced.ranges = hull(&unplaced.ranges).into_iter().collect();
        }
    }

    /// Those that are to be looked up now, at most `max`.
    pub fn due(&mut self, now: Instant, max: usize) -> Vec<Unplaced> {
        let due = self.files.iter().filter(|(_, (at, _))| *at <= now).map(|(file, _)| *file);
        let due: Vec<FileId> = due.take(max).collect();
        due.into_iter().filter_map(|file| self.files.remove(&file)).map(|(_, unplaced)| unplaced).collect()
    }

    /// It has no blocks yet.
    pub fn later(&mut self, mut unplaced: Unplaced, now: Instant) {
        unplaced.pause *= 2;
        if unplaced.pause > PAUSE_MAX {
            self.given_up += 1;
            return;
        }
        self.files.insert(unplaced.file, (now + unplaced.pause, unplaced));
    }

    /// Files of which it is not told where they lie.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }
}

fn hull(ranges: &ByteRangeSet) -> Option<ByteRange> {
    Some(ByteRange::new(ranges.iter().next()?.start, ranges.iter().last()?.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FileOps, Process, Timestamp};

    fn changes(inode: u64, path: &str, new_path: &str, op: FileOp, range: Option<ByteRange>) -> FileChanges {
        let mut ops = FileOps::default();
        ops.insert(op);
        FileChanges {
            process: Process::default(),
            file: FileId { inode, ..FileId::default() },
            path: path.into(),
            new_path: new_path.into(),
            ops,
            first: Timestamp(0),
            last: Timestamp(0),
            count: 1,
            ranges: range.into_iter().collect(),
        }
    }

    fn written(inode: u64, start: u64) -> FileChanges {
        changes(inode, "/a", "", FileOp::Write, Some(ByteRange::with_len(start, 10)))
    }

    #[test]
    fn what_was_changed_is_due_after_a_while_under_its_last_name() {
        let (mut placing, now) = (Placing::default(), Instant::now());
        placing.add(&written(1, 0), now);
        placing.add(&written(1, 100), now);
        placing.add(&changes(1, "/a", "/b", FileOp::Rename, None), now);
        placing.add(&changes(2, "/c", "", FileOp::Attributes, None), now);
        assert!(placing.due(now, 9).is_empty());
        let due = placing.due(now + FIRST_PAUSE, 9);
        assert_eq!(due.len(), 1);
        assert_eq!((&*due[0].path, due[0].ranges.range_count()), (&b"/b"[..], 2));
        assert!(placing.due(now + PAUSE_MAX, 9).is_empty());
    }

    #[test]
    fn what_has_no_blocks_is_looked_at_ever_later_and_given_up() {
        let (mut placing, mut now) = (Placing::default(), Instant::now());
        placing.add(&written(1, 0), now);
        let mut looks = 0;
        while placing.given_up() == 0 {
            now += FIRST_PAUSE;
            for unplaced in placing.due(now, 9) {
                looks += 1;
                placing.later(unplaced, now);
            }
        }
        assert_eq!(looks, 7);
    }

    #[test]
    fn many_ranges_become_one() {
        let (mut placing, now) = (Placing::default(), Instant::now());
        for at in 0..=RANGES_MAX as u64 {
            placing.add(&written(1, at * 100), now);
        }
        let due = placing.due(now + FIRST_PAUSE, 1);
        assert_eq!(
            due[0].ranges.iter().collect::<Vec<_>>(),
            [ByteRange::new(0, RANGES_MAX as u64 * 100 + 10)]
        );
    }
}
