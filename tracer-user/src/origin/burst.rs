//! Notices that programs of one name rewrite or remove many files within a short while: one process, or one for each file.
//! Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::capture::vfs::{Named, VfsChange};
use crate::model::{FileBurst, FileId, FileOp, Process, Timestamp};
use crate::origin::content::BYTES_MAX;
use crate::origin::tree::Paths;
use crate::origin::verdict::{FILES, SAMPLES_MAX, WINDOW_NS};

/// Names that are looked at; of more those whose processes changed something longest ago are forgotten.
const NAMES_MAX: usize = 1024;
/// Files that the processes made themselves, and those that were made lately; what they do to them is their own affair.
const OWN_MAX: usize = 65536;
/// Files written last that are kept, by whomever.
const WRITTEN_MAX: usize = 256;
/// Of a file that is written piece by piece not only the first piece is looked at.
const BYTES_MIN: usize = 4096;

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

/// A file that was rewritten, and where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    file: FileId,
    /// Before it was changed first.
    pub time: Timestamp,
    pub path: Vec<u8>,
    /// Where it was renamed to, perhaps over another file; empty if it was not.
    pub new_path: Vec<u8>,
    /// Of what was written first, if that is known.
    range: Option<(u64, Option<u64>)>,
}

impl Rewritten {
    pub fn path_now(&self) -> &[u8] {
        if self.new_path.is_empty() { &self.path } else { &self.new_path }
    }

    /// What was there before: the file it was renamed over, or it itself.
    pub fn paths_before(&self) -> impl Iterator<Item = &[u8]> {
        [&*self.new_path, &*self.path].into_iter().filter(|path| !path.is_empty())
    }

    pub fn start(&self) -> u64 {
        self.range.map_or(0, |(start, _)| start)
    }

    pub fn len_max(&self) -> usize {
        let len = self.range.and_then(|(_, len)| len).and_then(|len| usize::try_from(len).ok());
        len.map_or(BYTES_MAX, |len| len.clamp(BYTES_MIN, BYTES_MAX))
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// Of the last while. A file stands here once.
    files: VecDeque<Touched>,
    known: HashSet<File>,
    own: HashSet<FileId>,
    /// The last ones.
    rewritten: VecDeque<Rewritten>,
    last: Timestamp,
    /// Not again before a rest.
    suspected: bool,
}

/// Many files were changed: whether it is a burst is for who looks at them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// Nothing was looked into yet.
    pub found: FileBurst,
    /// The last ones.
    pub rewritten: Vec<Rewritten>,
    /// Paths of files that processes of the cgroup wrote last: who encrypts may write another file, and have the first removed by
    /// another program.
    pub written: Vec<Vec<u8>>,
}

/// Files made within the last while by whomever: a shell makes the file that another program writes.
#[derive(Debug, Default)]
struct Made {
    files: HashMap<FileId, Timestamp>,
    order: VecDeque<FileId>,
}

#[derive(Debug, Default)]
pub struct Bursts {
    names: HashMap<Name, Seen>,
    made: Made,
    /// Cgroup and path.
    written: VecDeque<(u64, Vec<u8>)>,
}

impl Bursts {
    /// A name is suspected once; after a rest as long as the window, or when it was acquitted, it can be again.
    pub fn add(&mut self, change: &VfsChange, paths: &Paths, time: Timestamp) -> Option<Suspicion> {
        let name = (change.process.cgroup, change.process.name.clone());
        if self.names.len() >= NAMES_MAX && !self.names.contains_key(&name) {
            let idlest = self.names.iter().min_by_key(|(_, seen)| seen.last).map(|(name, _)| name.clone());
            idlest.map(|name| self.names.remove(&name));
        }
        if change.op.changes_content() && !paths.path.is_empty() {
            self.wrote(change.process.cgroup, &paths.path);
        }
        if makes(change.op) {
            self.made.add(change.file, time);
        }
        let only_just_made = self.made.holds(rewrites(change), time);
        let seen = self.names.entry(name.clone()).or_default();
        if seen.add(change, paths, time, only_just_made) { self.suspicion(&name, time) } else { None }
    }

    /// What was suspected was no burst: of those files only the removed ones count on. Those that were touched since may be too many.
    pub fn acquit(&mut self, found: &FileBurst) -> Option<Suspicion> {
        let name = (found.process.cgroup, found.process.name.clone());
        let seen = self.names.get_mut(&name)?;
        seen.suspected = false;
        let counts_on = |touched: &Touched| touched.removed || touched.time > found.recognised;
        for touched in seen.files.iter().filter(|touched| !counts_on(touched)) {
            seen.known.remove(&touched.file);
        }
        seen.files.retain(counts_on);
        seen.rewritten.retain(|file| file.time > found.recognised);
        let last = seen.last;
        self.suspicion(&name, last)
    }

    fn suspicion(&mut self, name: &Name, time: Timestamp) -> Option<Suspicion> {
        let seen = self.names.get_mut(name).filter(|seen| !seen.suspected && seen.files.len() >= FILES)?;
        seen.suspected = true;
        let first = seen.files.front()?;
        let count = |removed| seen.files.iter().filter(|file| file.removed == removed).count();
        let count = |removed| u32::try_from(count(removed)).unwrap_or(u32::MAX);
        let found = FileBurst {
            process: first.process.clone(),
            began: first.time,
            recognised: time,
            rewritten: count(false),
            removed: count(true),
            sampled: 0,
            random: 0,
            compared: 0,
            spoiled: 0,
        };
        let rewritten = seen.rewritten.iter().filter(|file| file.time >= found.began).cloned().collect();
        let of_it = self.written.iter().filter(|(other, _)| *other == name.0).map(|(_, path)| path.clone());
        Some(Suspicion { found, rewritten, written: of_it.rev().take(SAMPLES_MAX).collect() })
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

fn makes(op: FileOp) -> bool {
    matches!(op, FileOp::Create | FileOp::Tmpfile | FileOp::Mknod)
}

/// Who writes another file and renames it over the first has rewritten that.
fn rewrites(change: &VfsChange) -> FileId {
    match &change.name {
        Named::Rename { victim, .. } if victim.inode != 0 => *victim,
        _ => change.file,
    }
}

impl Made {
    fn add(&mut self, file: FileId, time: Timestamp) {
        while let Some(first) = self.order.front().copied()
            && (self.order.len() >= OWN_MAX || !self.holds(first, time))
        {
            self.order.pop_front();
            self.files.remove(&first);
        }
        if file.inode != 0 && self.files.insert(file, time).is_none() {
            self.order.push_back(file);
        }
    }

    fn holds(&self, file: FileId, time: Timestamp) -> bool {
        self.files.get(&file).is_some_and(|made| time.0 <= made.0.saturating_add(WINDOW_NS))
    }
}

impl Seen {
    /// Whether one more file was touched.
    fn add(&mut self, change: &VfsChange, paths: &Paths, time: Timestamp, only_just_made: bool) -> bool {
        if time.0 > self.last.0.saturating_add(WINDOW_NS) {
            self.suspected = false;
        }
        self.last = time;
        if makes(change.op) && self.own.len() < OWN_MAX {
            self.own.insert(change.file);
        }
        let removed = change.op.removes();
        let counts = removed || change.op == FileOp::Rename || change.op.changes_content();
        let file = rewrites(change);
        let is_own = file.inode != 0 && self.own.contains(&file);
        if !counts || is_own || (only_just_made && !removed) {
            return false;
        }
        self.forget_before(time);
        let by_path = if file.inode == 0 { paths.path.clone() } else { Vec::new() };
        let key = (file, by_path);
        let is_new = self.known.insert(key.clone());
        if is_new {
            self.files.push_back(Touched { time, file: key, removed, process: change.process.clone() });
        }
        if !removed {
            self.rewrote(change, paths, (file, time), is_new);
        }
        is_new
    }

    fn rewrote(
        &mut self,
        change: &VfsChange,
        paths: &Paths,
        (file, time): (FileId, Timestamp),
        is_new: bool,
    ) {
        let moves = change.op == FileOp::Rename;
        let known = self.rewritten.iter_mut().rev().find(|known| match moves {
            true => known.path_now() == paths.path,
            false => file.inode != 0 && known.file == file,
        });
        let range = (change.op != FileOp::Truncate && !moves).then_some((change.offset, change.length));
        match known {
            Some(known) if moves => known.new_path.clone_from(&paths.new_path),
            Some(known) => known.range = known.range.or(range),
            None if is_new => {
                if self.rewritten.len() == SAMPLES_MAX {
                    self.rewritten.pop_front();
                }
                let (path, new_path) = (paths.path.clone(), paths.new_path.clone());
                self.rewritten.push_back(Rewritten { file, time, path, new_path, range });
            }
            None => {}
        }
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

    const SECOND: u64 = 1_000_000_000;

    fn change(pid: u32, op: FileOp, inode: u64) -> VfsChange {
        let file = FileId { inode, generation: 1, dev: 7 };
        let process = Process { pid, start_ns: 5, cgroup: 1, name: b"tool".to_vec() };
        let (seq, time_ns, detail, offset, length, tid) = (0, 0, 0, 0, None, pid);
        VfsChange { seq, time_ns, op, detail, file, offset, length, process, tid, name: Named::No }
    }

    fn paths(path: &str) -> Paths {
        Paths { path: path.into(), ..Paths::default() }
    }

    fn bursts(changes: impl IntoIterator<Item = (u32, FileOp, u64, u64)>) -> Vec<FileBurst> {
        let mut bursts = Bursts::default();
        let add = |(pid, op, inode, time)| bursts.add(&change(pid, op, inode), &paths(""), Timestamp(time));
        changes.into_iter().filter_map(add).map(|suspicion| suspicion.found).collect()
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
            assert_eq!(bursts.add(&change, &paths(""), Timestamp(n)), None);
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
                found = found.or(bursts.add(&change(1, op, inode), &paths(&path), Timestamp(n)));
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
    fn what_another_program_only_just_made_does_not_count() {
        for (pause, wanted) in [(SECOND, 0), (11 * SECOND, 100)] {
            let mut bursts = Bursts::default();
            for n in 1..=100u64 {
                let mut made = change(7, FileOp::Create, n);
                made.process.name = b"shell".into();
                assert_eq!(bursts.add(&made, &paths(""), Timestamp(n)), None);
            }
            let write = |n: u64| bursts.add(&change(1, FileOp::Write, n), &paths(""), Timestamp(pause + n));
            let found = (1..=100).filter_map(write).next();
            assert_eq!(found.map_or(0, |suspicion| suspicion.found.rewritten), wanted);
        }
    }

    fn rename(number: u64, victim: u64) -> (VfsChange, Paths) {
        let entry = |name: &str| (FileId::default(), name.as_bytes().to_vec());
        let victim = FileId { inode: victim, generation: 1, dev: 7 };
        let name = Named::Rename { from: entry("x.new"), to: entry("x"), victim };
        let (path, new_path) = (format!("/{number}.new").into(), format!("/{number}").into());
        (
            VfsChange { name, ..change(1, FileOp::Rename, number) },
            Paths { path, new_path, ..Paths::default() },
        )
    }

    #[test]
    fn a_file_of_its_own_that_it_renames_over_another_one_rewrites_that() {
        for (victim, wanted) in [(0, None), (5000, Some((100, 0, 16)))] {
            let mut bursts = Bursts::default();
            let mut found = None;
            for n in 1..=200u64 {
                bursts.add(&change(1, FileOp::Create, n), &paths(&format!("/{n}.new")), Timestamp(n));
                let (rename, paths) = rename(n, if victim == 0 { 0 } else { victim + n });
                found = found.or(bursts.add(&rename, &paths, Timestamp(n)));
            }
            let last = found.as_ref().and_then(|found| found.rewritten.last().cloned());
            let counts = found.map(|new| (new.found.rewritten, new.found.removed, new.rewritten.len()));
            assert_eq!(counts, wanted);
            if let Some(last) = last {
                assert_eq!(last.path_now(), b"/100");
                assert!(last.paths_before().eq([&b"/100"[..], b"/100.new"]));
            }
        }
    }

    #[test]
    fn what_is_looked_at_of_a_file_is_where_it_was_written_first_and_under_its_last_name() {
        let mut bursts = Bursts::default();
        let mut found = None;
        for n in 1..=100u64 {
            let path = paths(&format!("/{n}"));
            for (op, offset, length) in [
                (FileOp::Truncate, 0, Some(0)),
                (FileOp::Write, 8192, Some(20_000)),
                (FileOp::Write, 0, None),
            ] {
                let change = VfsChange { offset, length, ..change(1, op, n) };
                found = found.or(bursts.add(&change, &path, Timestamp(n)));
                if op == FileOp::Write && n < 100 {
                    let new_path = format!("/{n}.enc").into();
                    let (mut renamed, _) = rename(n, 0);
                    renamed.file.inode = n;
                    bursts.add(&renamed, &Paths { new_path, ..path.clone() }, Timestamp(n));
                }
            }
        }
        let rewritten = found.unwrap().rewritten;
        assert_eq!(rewritten.len(), SAMPLES_MAX);
        let of = |file: &Rewritten| (file.start(), file.len_max());
        assert_eq!((of(&rewritten[0]), rewritten[0].path_now()), ((8192, 20_000), &b"/85.enc"[..]));
        // The last one was only just truncated.
        assert_eq!((of(&rewritten[15]), rewritten[15].path_now()), ((0, BYTES_MAX), &b"/100"[..]));
    }

    #[test]
    fn who_was_acquitted_is_suspected_again_for_what_it_did_since() {
        let mut bursts = Bursts::default();
        let mut add = |from: u64, op| {
            let add = |n: u64| bursts.add(&change(1, op, n), &paths(""), Timestamp(n));
            (from..from + 100).filter_map(add).last()
        };
        let first = add(1, FileOp::Write).unwrap();
        assert_eq!(add(101, FileOp::Write), None, "nobody has looked yet");
        let second = bursts.acquit(&first.found).unwrap();
        assert_eq!((second.found.began, second.found.rewritten), (Timestamp(101), 100));
        assert!(second.rewritten.iter().all(|file| file.time > first.found.recognised));
        assert_eq!(bursts.acquit(&second.found), None);
        // The same files again, and what was removed counts on.
        let mut add = |n: u64, op| bursts.add(&change(1, op, n), &paths(""), Timestamp(1000 + n));
        assert!((1..=99).all(|n| add(n, FileOp::Unlink).is_none()));
        let third = add(100, FileOp::Write).unwrap();
        assert_eq!((third.found.removed, third.found.rewritten), (99, 1));
        assert_eq!(bursts.acquit(&third.found), None);
        let fourth = bursts.add(&change(1, FileOp::Unlink, 100), &paths(""), Timestamp(2000)).unwrap();
        assert_eq!((fourth.found.removed, fourth.found.rewritten), (100, 0));
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
