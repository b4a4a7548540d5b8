//! Recognises that programs of one name rewrite or remove many files within a short while: one process, or one for each file.
//! Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::capture::vfs::VfsChange;
use crate::model::{FileBurst, FileId, FileOp, Process, Timestamp};

/// So many files …
const FILES: usize = 100;
/// … within this time.
const WINDOW_NS: u64 = 10_000_000_000;
/// Names that are looked at; of more those whose processes changed something longest ago are forgotten.
const NAMES_MAX: usize = 1024;
/// Files that the processes made themselves; what they do to them is their own affair.
const OWN_MAX: usize = 65536;
/// Files written last that are kept, by whomever …
const WRITTEN_MAX: usize = 256;
/// … and those of one burst that are looked into.
const SAMPLES_MAX: usize = 16;

/// Processes of a name in a cgroup.
type Name = (u64, Vec<u8>);

/// A file; of one that is known by its path only the inode is the same for all.
type File = (FileId, Vec<u8>);

#[derive(Debug)]
struct Touched {
    time: Timestamp,
    file: File,
    removed: bool,
    process: Process,
}

#[derive(Debug, Default)]
struct Seen {
    /// Of the last while. A file stands here once.
    files: VecDeque<Touched>,
    known: HashSet<File>,
    own: HashSet<FileId>,
    last: Timestamp,
    reported: bool,
}

/// A burst, just recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBurst {
    /// No file was sampled yet.
    pub burst: FileBurst,
    /// Paths of files that processes of the cgroup wrote last: who encrypts may write another file, and have the first removed by
    /// another program.
    pub written: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
pub struct Bursts {
    names: HashMap<Name, Seen>,
    /// Cgroup and path.
    written: VecDeque<(u64, Vec<u8>)>,
}

impl Bursts {
    /// A burst is told once, when it is recognised; after a rest as long as the window there can be another.
    pub fn add(&mut self, change: &VfsChange, path: &[u8], time: Timestamp) -> Option<NewBurst> {
        let name = (change.process.cgroup, change.process.name.clone());
        if self.names.len() >= NAMES_MAX && !self.names.contains_key(&name) {
            let idlest = self.names.iter().min_by_key(|(_, seen)| seen.last).map(|(name, _)| name.clone());
            idlest.map(|name| self.names.remove(&name));
        }
        let cgroup = change.process.cgroup;
        if change.op.changes_content() && !path.is_empty() {
            self.wrote(cgroup, path);
        }
        let burst = self.names.entry(name).or_default().add(change, path, time)?;
        let of_it = self.written.iter().filter(|(other, _)| *other == cgroup).map(|(_, path)| path.clone());
        Some(NewBurst { burst, written: of_it.rev().take(SAMPLES_MAX).collect() })
    }

    fn wrote(&mut self, cgroup: u64, path: &[u8]) {
        if self.written.iter().rev().take(SAMPLES_MAX).any(|known| *known.1 == *path) {
            return;
        }
        if self.written.len() == WRITTEN_MAX {
            self.written.pop_front();
        }
        self.written.push_back((cgroup, path.to_vec()));
    }
}

impl Seen {
    fn add(&mut self, change: &VfsChange, path: &[u8], time: Timestamp) -> Option<FileBurst> {
        if time.0 > self.last.0.saturating_add(WINDOW_NS) {
            self.reported = false;
        }
        self.last = time;
        if matches!(change.op, FileOp::Create | FileOp::Tmpfile | FileOp::Mknod) && self.own.len() < OWN_MAX {
            self.own.insert(change.file);
        }
        let removed = change.op.removes();
        let counts = removed || change.op == FileOp::Rename || change.op.changes_content();
        if !counts || (change.file.inode != 0 && self.own.contains(&change.file)) {
            return None;
        }
        self.forget_before(time);
        let by_path = if change.file.inode == 0 { path.to_vec() } else { Vec::new() };
        let file = (change.file, by_path);
        if self.known.insert(file.clone()) {
            self.files.push_back(Touched { time, file, removed, process: change.process.clone() });
        }
        if self.reported || self.files.len() < FILES {
            return None;
        }
        self.reported = true;
        let first = self.files.front()?;
        let count = |removed| self.files.iter().filter(|file| file.removed == removed).count();
        let count = |removed| u32::try_from(count(removed)).unwrap_or(u32::MAX);
        Some(FileBurst {
            process: first.process.clone(),
            began: first.time,
            recognised: time,
            rewritten: count(false),
            removed: count(true),
            sampled: 0,
            random: 0,
        })
    }

    fn forget_before(&mut self, time: Timestamp) {
        while let Some(first) = self.files.front()
            && first.time.0.saturating_add(WINDOW_NS) < time.0
        {
            self.known.remove(&first.file);
            self.files.pop_front();
        }
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

    fn bursts(changes: impl IntoIterator<Item = (u32, FileOp, u64, u64)>) -> Vec<FileBurst> {
        let mut bursts = Bursts::default();
        let add = |(pid, op, inode, time)| bursts.add(&change(pid, op, inode), b"", Timestamp(time));
        changes.into_iter().filter_map(add).map(|new| new.burst).collect()
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
    fn slow_work_and_that_of_many_programs_is_no_burst() {
        assert!(bursts((0..500).map(|n| (1, FileOp::Unlink, n + 1, n * SECOND / 9))).is_empty());
        let mut bursts = Bursts::default();
        for n in 0..5000 {
            let mut change = change(n as u32, FileOp::Unlink, n + 1);
            change.process.name = format!("tool{}", n % 90).into();
            assert_eq!(bursts.add(&change, b"", Timestamp(n)), None);
        }
    }

    #[test]
    fn a_process_for_each_file_is_one_burst_of_its_name() {
        let found = bursts((0..150).map(|n| (n as u32 + 7, FileOp::Unlink, n + 1, n)));
        assert_eq!(found.iter().map(|burst| burst.process.pid).collect::<Vec<_>>(), [7], "the first of them");
    }

    #[test]
    fn what_was_written_last_is_named_also_where_it_is_a_file_of_its_own() {
        let mut bursts = Bursts::default();
        let mut found = None;
        for n in 0..100u64 {
            for (op, inode, path) in [
                (FileOp::Create, 1000 + n, format!("/{n}.enc")),
                (FileOp::Write, 1000 + n, format!("/{n}.enc")),
                (FileOp::Unlink, n + 1, format!("/{n}")),
            ] {
                found = found.or(bursts.add(&change(1, op, inode), path.as_bytes(), Timestamp(n)));
            }
        }
        let written = found.unwrap().written;
        assert_eq!((written.len(), &*written[0]), (16, &b"/99.enc"[..]));
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
