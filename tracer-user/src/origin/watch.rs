//! Changes of files as they happen, with their paths.

use std::collections::{BTreeSet, HashMap};

use crate::capture::CaptureError;
use crate::capture::vfs::{Named, VfsCapture, VfsChange, VfsCounters, VfsEvent, VfsRung};
use crate::io::mount_table::{MountPoint, locate, mount_table};
use crate::model::{FileId, FileOp};
use crate::origin::places::{Lookups, Place, follow};
use crate::origin::tree::{Paths, Tree};

/// Calls with two paths of which only the first has come.
const HALVES_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are changes")]
pub enum Seen {
    Change(VfsChange, Paths),
    /// See [`VfsEvent::End`].
    End {
        seq: u64,
        time_ns: u64,
        tid: u32,
        result: i64,
    },
    /// An event that no probe of this version writes.
    NotUnderstood,
}

/// Probes of file systems, and what they told of names.
pub struct FileWatch {
    probes: VfsCapture,
    tree: Tree,
    mounts: Vec<MountPoint>,
    /// Of what is drained at once.
    lookups: Lookups,
    watched: BTreeSet<u32>,
    /// The first path of a call with two, by the number of the change.
    halves: HashMap<u64, Half>,
    names_lost: u64,
}

/// `None` for what lies elsewhere.
struct Half {
    place: Option<Place>,
    followed: Option<Place>,
}

impl FileWatch {
    pub fn new(probes: VfsCapture) -> FileWatch {
        let (tree, mounts, lookups) = (Tree::default(), Vec::new(), Lookups::default());
        let (watched, halves) = (BTreeSet::new(), HashMap::new());
        FileWatch { probes, tree, mounts, lookups, watched, halves, names_lost: 0 }
    }

    pub fn rung(&self) -> VfsRung {
        self.probes.rung()
    }

    pub fn absent(&self) -> &[&'static str] {
        self.probes.absent()
    }

    pub fn counters(&self) -> VfsCounters {
        self.probes.counters()
    }

    /// Watches these file systems (by the kernel's numbers) and no others. Says which were not watched before.
    pub fn watch(&mut self, file_systems: &BTreeSet<u32>) -> Result<Vec<u32>, CaptureError> {
        let new: Vec<u32> = file_systems.difference(&self.watched).copied().collect();
        for dev in &new {
            self.probes.watch(*dev)?;
        }
        for dev in self.watched.difference(file_systems) {
            self.probes.unwatch(*dev)?;
        }
        self.watched.clone_from(file_systems);
        // Without it paths of calls can't be looked up; the next look tries again.
        if let Ok(mounts) = mount_table() {
            self.mounts = mounts;
        }
        Ok(new)
    }

    /// What was seen since, at most `max` events.
    pub fn drain(&mut self, max: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.lookups.clear();
        for _ in 0..max {
            match self.probes.next_event() {
                None => break,
                Some(None) => seen.push(Seen::NotUnderstood),
                Some(Some(event)) => seen.extend(self.take(event)),
            }
        }
        let names_lost = self.probes.names_lost();
        if names_lost != self.names_lost || self.tree.is_full() {
            if self.tree.is_full() {
                self.tree.clear();
            }
            self.names_lost = names_lost;
            self.probes.forget_names();
        }
        seen
    }

    fn take(&mut self, event: VfsEvent) -> Option<Seen> {
        match event {
            VfsEvent::Name { time_ns, file, parent, name } => {
                self.tree.hangs(time_ns, file, parent, name);
                None
            }
            VfsEvent::End { seq, time_ns, tid, result } => Some(Seen::End { seq, time_ns, tid, result }),
            VfsEvent::Change(change) => match &change.name {
                Named::Path { .. } => self.take_path(change),
                _ => {
                    let VfsChange { time_ns, op, detail, file, ref name, .. } = change;
                    let paths = self.tree.change(time_ns, op, detail, file, name);
                    Some(Seen::Change(change, paths))
                }
            },
        }
    }

    /// A call that has not looked its paths up yet.
    fn take_path(&mut self, change: VfsChange) -> Option<Seen> {
        let Named::Path { base, path, which, followed } = &change.name else { return None };
        let follows = *followed && change.op.may_follow_links();
        // Of the file itself, by its descriptor.
        let itself = path.is_empty() && base.inode != 0;
        let seen_from = (&self.mounts[..], &self.tree);
        let real = match itself {
            true => None,
            false => self.lookups.real_name(seen_from, (*base, path), change.time_ns),
        };
        let place = match itself {
            true => self.tree.path(*base).map(|path| (base.dev, path)),
            false => real.as_ref().and_then(|real| locate(&self.mounts, real)),
        };
        let ours = |place: Option<Place>| place.filter(|(dev, _)| self.watched.contains(dev));
        let followed = real.filter(|_| follows).and_then(|real| ours(follow(&self.mounts, &real)));
        let ours = ours(place);
        let two = matches!(change.op, FileOp::Rename | FileOp::Link);
        if two && *which == 0 {
            if self.halves.len() >= HALVES_MAX {
                self.halves.clear();
            }
            self.halves.insert(change.seq, Half { place: ours, followed });
            return None;
        }
        let (first, followed) = match two {
            true => self.halves.remove(&change.seq).map(|half| (half.place, half.followed))?,
            false => (ours.clone(), followed),
        };
        let dev = first.as_ref().or(ours.as_ref()).or(followed.as_ref())?.0;
        let name = |place: Option<Place>| place.map(|(_, path)| path).unwrap_or_default();
        let new_path = if two { name(ours) } else { Vec::new() };
        let paths = Paths { path: name(first), new_path, followed: name(followed) };
        Some(Seen::Change(VfsChange { file: FileId { dev, ..FileId::default() }, ..change }, paths))
    }
}
