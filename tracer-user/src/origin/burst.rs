//! Recognises that one process rewrites or removes many files within a short while. Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use serde::Serialize;

use crate::capture::vfs::VfsChange;
use crate::model::{FileId, FileOp, Process, Timestamp};

/// So many files …
const FILES: usize = 100;
/// … within this time.
const WINDOW_NS: u64 = 10_000_000_000;
/// Processes that are looked at; of more those that changed something longest ago are forgotten.
const PROCESSES_MAX: usize = 1024;
/// Files that a process made itself; what it does to them is its own affair.
const OWN_MAX: usize = 65536;

/// A process that changed many files which were there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Burst {
    pub process: Process,
    /// Before the first change of it.
    pub began: Timestamp,
    pub rewritten: usize,
    pub removed: usize,
}

#[derive(Debug, Default)]
struct Seen {
    /// Of the last while: when, which, and whether it was removed. A file stands here once.
    files: VecDeque<(Timestamp, FileId, Vec<u8>, bool)>,
    known: HashSet<(FileId, Vec<u8>)>,
    own: HashSet<FileId>,
    last: Timestamp,
    reported: bool,
}

#[derive(Debug, Default)]
pub struct Bursts {
    processes: HashMap<(u32, u64), Seen>,
}

impl Bursts {
    /// A burst is told once, when it is recognised; a process that rested for the window can begin another.
    pub fn add(&mut self, change: &VfsChange, path: &[u8], time: Timestamp) -> Option<Burst> {
        let key = (change.process.pid, change.process.start_ns);
        if self.processes.len() >= PROCESSES_MAX && !self.processes.contains_key(&key) {
            let idlest = self.processes.iter().min_by_key(|(_, seen)| seen.last).map(|(key, _)| *key);
            idlest.map(|key| self.processes.remove(&key));
        }
        let seen = self.processes.entry(key).or_default();
        if time.0 > seen.last.0.saturating_add(WINDOW_NS) {
            seen.reported = false;
        }
        seen.last = time;
        if matches!(change.op, FileOp::Create | FileOp::Tmpfile | FileOp::Mknod) && seen.own.len() < OWN_MAX {
            seen.own.insert(change.file);
        }
        let removed = change.op.removes();
        let counts = removed || change.op == FileOp::Rename || change.op.changes_content();
        if !counts || (change.file.inode != 0 && seen.own.contains(&change.file)) {
            return None;
        }
        // Of a file that is known by its path only the inode is the same for all.
        let file =
            if change.file.inode == 0 { (change.file, path.to_vec()) } else { (change.file, Vec::new()) };
        while let Some((first, file, path, _)) = seen.files.front()
            && first.0.saturating_add(WINDOW_NS) < time.0
        {
            seen.known.remove(&(*file, path.clone()));
            seen.files.pop_front();
        }
        if seen.known.insert(file.clone()) {
            seen.files.push_back((time, file.0, file.1, removed));
        }
        if seen.reported || seen.files.len() < FILES {
            return None;
        }
        seen.reported = true;
        let removed = seen.files.iter().filter(|(_, _, _, removed)| *removed).count();
        let began = seen.files.front().map_or(time, |(first, ..)| *first);
        let rewritten = seen.files.len() - removed;
        Some(Burst { process: change.process.clone(), began, rewritten, removed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::vfs::Named;

    const SECOND: u64 = 1_000_000_000;

    fn change(pid: u32, op: FileOp, inode: u64) -> VfsChange {
        let file = FileId { inode, generation: 1, dev: 7 };
        let process = Process { pid, start_ns: 5, cgroup: 1, name: b"tool".to_vec() };
        let (seq, time_ns, detail, offset, length, tid) = (0, 0, 0, 0, None, pid);
        VfsChange { seq, time_ns, op, detail, file, offset, length, process, tid, name: Named::No }
    }

    fn bursts(changes: impl IntoIterator<Item = (u32, FileOp, u64, u64)>) -> Vec<Burst> {
        let mut bursts = Bursts::default();
        let add = |(pid, op, inode, time)| bursts.add(&change(pid, op, inode), b"", Timestamp(time));
        changes.into_iter().filter_map(add).collect()
    }

    #[test]
    fn removing_many_files_is_told_once_with_when_it_began() {
        let found = bursts((0..300).map(|n| (1, FileOp::Unlink, n + 1, SECOND + n)));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].began, found[0].removed, found[0].rewritten), (Timestamp(SECOND), 100, 0));
    }

    #[test]
    fn rewriting_many_files_counts_and_many_writes_to_few_do_not() {
        assert_eq!(bursts((0..300).map(|n| (1, FileOp::Write, n + 1, n))).len(), 1);
        assert!(bursts((0..9000).map(|n| (1, FileOp::Write, n % 99 + 1, n))).is_empty());
    }

    #[test]
    fn slow_work_and_the_work_of_many_processes_is_no_burst() {
        assert!(bursts((0..500).map(|n| (1, FileOp::Unlink, n + 1, n * SECOND / 9))).is_empty());
        assert!(bursts((0..5000u64).map(|n| (n as u32 % 90, FileOp::Unlink, n + 1, n))).is_empty());
    }

    #[test]
    fn what_a_process_made_itself_does_not_count() {
        let work = (0..500).flat_map(|n| {
            [FileOp::Create, FileOp::Write, FileOp::Rename, FileOp::Unlink].map(|op| (1, op, n + 1, n))
        });
        assert!(bursts(work).is_empty());
    }

    #[test]
    fn after_a_rest_another_burst_is_told() {
        let again = 60 * SECOND;
        let work = (0..300).map(|n| (1, FileOp::Unlink, n + 1, n));
        let more = (0..300).map(|n| (1, FileOp::Unlink, n + 1000, again + n));
        let found = bursts(work.chain(more));
        assert_eq!(found.iter().map(|burst| burst.began.0).collect::<Vec<_>>(), [0, again]);
    }
}
