//! What a process did to a file within a while, as one record: so that many writes are not many records. Pure.

use std::collections::HashMap;

use crate::capture::vfs::VfsChange;
use crate::model::{ByteRange, ByteRangeSet, FileChanges, FileId, FileOp, FileOps, Process, Timestamp};
use crate::origin::tree::Paths;

/// Ranges end here where their end is not known.
const END_UNKNOWN: u64 = 1 << 63;
/// Of one record; more are merged across the smallest gaps.
const RANGES_MAX: usize = 64;
/// Records that are being put together; with more they are handed on at once.
const OPEN_MAX: usize = 4096;

/// The same process, file and path: a file under another name is another record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    start_ns: u64,
    file: FileId,
    paths: Paths,
}

#[derive(Debug)]
struct Open {
    process: Process,
    ops: FileOps,
    first: Timestamp,
    last: Timestamp,
    count: u64,
    ranges: ByteRangeSet,
}

#[derive(Debug, Default)]
pub struct Aggregate {
    open: HashMap<Key, Open>,
}

impl Aggregate {
    pub fn add(&mut self, change: &VfsChange, paths: Paths, time: Timestamp) {
        let Process { pid, start_ns, .. } = change.process;
        let key = Key { pid, start_ns, file: change.file, paths };
        let open = self.open.entry(key).or_insert_with(|| Open {
            process: change.process.clone(),
            ops: FileOps::default(),
            first: time,
            last: time,
            count: 0,
            ranges: ByteRangeSet::new(),
        });
        open.ops.insert(change.op);
        open.first = open.first.min(time);
        open.last = open.last.max(time);
        open.count += 1;
        if let Some(range) = range_of(change) {
            open.ranges.insert(range);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.open.len() >= OPEN_MAX
    }

    /// All there is, in the order of their first changes.
    pub fn take(&mut self) -> Vec<FileChanges> {
        let records = self.open.drain().map(|(key, open)| FileChanges {
            process: open.process,
            file: key.file,
            new_path: key.paths.new_path.clone(),
            path: key.paths.any(),
            ops: open.ops,
            first: open.first,
            last: open.last,
            count: open.count,
            ranges: few(&open.ranges),
        });
        let mut records: Vec<_> = records.collect();
        records.sort_by_key(|changes| changes.first);
        records
    }
}

/// The bytes of the file that change; `None` for what has no range.
fn range_of(change: &VfsChange) -> Option<ByteRange> {
    let ranged = matches!(
        change.op,
        FileOp::Write
            | FileOp::Mmap
            | FileOp::Fallocate
            | FileOp::Copy
            | FileOp::Clone
            | FileOp::Dedupe
            | FileOp::Dirty
    );
    let start = change.offset.min(END_UNKNOWN);
    // A clone of length 0 goes to the other file's end.
    let length = change.length.filter(|length| *length > 0);
    let end = length.map_or(END_UNKNOWN, |length| start.saturating_add(length).min(END_UNKNOWN));
    (ranged && start < end).then_some(ByteRange { start, end })
}

/// At most [`RANGES_MAX`]; what lies in the smallest gaps is then said to have changed, too.
fn few(ranges: &ByteRangeSet) -> Vec<ByteRange> {
    let mut ranges: Vec<ByteRange> = ranges.iter().collect();
    if ranges.len() <= RANGES_MAX {
        return ranges;
    }
    let mut gaps: Vec<u64> = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    // Only gaps larger than this stay.
    let largest = gaps[RANGES_MAX - 1];
    ranges.dedup_by(|next, last| {
        let joins = next.start - last.end <= largest;
        if joins {
            last.end = next.end;
        }
        joins
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::vfs::Named;

    fn change(pid: u32, op: FileOp, offset: u64, length: Option<u64>) -> VfsChange {
        VfsChange {
            seq: 0,
            time_ns: 0,
            op,
            detail: 0,
            file: FileId { inode: 12, generation: 1, dev: 7 },
            offset,
            length,
            process: Process { pid, start_ns: 5, cgroup: 1, name: b"tool".to_vec() },
            tid: pid,
            name: Named::No,
        }
    }

    fn paths(path: &str) -> Paths {
        Paths { path: path.into(), ..Paths::default() }
    }

    #[test]
    fn many_writes_of_a_process_to_a_file_are_one_record_with_the_exact_first_time() {
        let mut aggregate = Aggregate::default();
        for at in [7u64, 3, 9] {
            let write = change(1, FileOp::Write, at * 100, Some(50));
            aggregate.add(&write, paths("/a"), Timestamp(at));
        }
        aggregate.add(&change(2, FileOp::Write, 0, Some(1)), paths("/a"), Timestamp(5));
        aggregate.add(&change(1, FileOp::Unlink, 0, None), paths("/a"), Timestamp(11));
        let taken = aggregate.take();
        assert_eq!(taken.len(), 2);
        assert_eq!((taken[0].process.pid, taken[0].first, taken[0].last), (1, Timestamp(3), Timestamp(11)));
        assert_eq!((taken[0].count, taken[0].ranges.len()), (4, 3));
        assert!(taken[0].ops.contains(FileOp::Write) && taken[0].ops.contains(FileOp::Unlink));
        assert_eq!((taken[1].process.pid, taken[1].first), (2, Timestamp(5)));
        assert!(aggregate.is_empty());
    }

    #[test]
    fn another_name_of_the_file_is_another_record() {
        let mut aggregate = Aggregate::default();
        aggregate.add(&change(1, FileOp::Write, 0, Some(1)), paths("/a.tmp"), Timestamp(1));
        aggregate.add(&change(1, FileOp::Write, 0, Some(1)), paths("/a"), Timestamp(2));
        assert_eq!(aggregate.take().len(), 2);
    }

    #[test]
    fn an_unknown_length_reaches_to_the_end() {
        let mut aggregate = Aggregate::default();
        aggregate.add(&change(1, FileOp::Write, 10, None), paths("/a"), Timestamp(1));
        aggregate.add(&change(1, FileOp::Write, u64::MAX, Some(9)), paths("/a"), Timestamp(1));
        aggregate.add(&change(1, FileOp::Truncate, 3, Some(0)), paths("/a"), Timestamp(1));
        assert_eq!(aggregate.take()[0].ranges, [ByteRange { start: 10, end: 1 << 63 }]);
    }

    #[test]
    fn many_ranges_are_merged_across_the_smallest_gaps() {
        let mut aggregate = Aggregate::default();
        for at in 0..1000u64 {
            let start = at * 10 + if at >= 500 { 1 << 20 } else { 0 };
            aggregate.add(&change(1, FileOp::Write, start, Some(4)), paths("/a"), Timestamp(1));
        }
        let ranges = aggregate.take().remove(0).ranges;
        assert!(ranges.len() <= RANGES_MAX);
        assert_eq!(ranges.first().unwrap().start, 0);
        assert!(ranges.iter().all(|range| range.end <= 5000 || range.start >= 1 << 20), "{ranges:?}");
    }
}
