//! What the probes and the freezer say, as the collector of a tree wants to hear it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::capture::vfs::{Named, VfsChange};
use crate::collect::{Freeze, FreezeReply as Reply, Freezer};
use crate::model::{FileId, FileOp};
use crate::origin::{FileWatch, Paths, Seen};
use crate::tree::Name;
use crate::tree::event::{Change, Counters, Event, Freezing, World};

pub struct Probes {
    pub watch: FileWatch,
    /// Of the tree, within its file system.
    pub root: Vec<u8>,
    pub mount: PathBuf,
    pub freezer: Freezer,
    pub freeze_at_most: Duration,
    /// Stores through mappings are told of clean pages only.
    pub always_clean: bool,
}

impl World for Probes {
    fn events(&mut self, max: usize) -> Vec<Event> {
        self.watch
            .drain(max)
            .into_iter()
            .map(|seen| match seen {
                Seen::Change(change, paths) => Event::Change(self.change(&change, &paths)),
                Seen::End { tid, .. } => Event::End { thread: tid },
                Seen::NotUnderstood => Event::NotUnderstood,
            })
            .collect()
    }

    fn counters(&mut self) -> Counters {
        let counters = self.watch.counters();
        let missing = counters.missing() + counters.names_lost + counters.unseen;
        Counters { seen: counters.seen, accounted: counters.emitted + counters.lost, missing }
    }

    fn freeze(&mut self) -> io::Result<()> {
        self.freezer.freeze(std::slice::from_ref(&self.mount), self.freeze_at_most)
    }

    fn thaw(&mut self) -> io::Result<()> {
        self.freezer.thaw()
    }

    fn answer(&mut self) -> Option<Freezing> {
        Some(match self.freezer.poll()? {
            Reply::Frozen => Freezing::Frozen,
            Reply::Thawed { held } => Freezing::Thawed { held },
            Reply::Failed { what } => Freezing::Failed(what),
            Reply::AtRest { .. } | Reply::Synced => return None,
        })
    }
}

impl Probes {
    fn change(&self, change: &VfsChange, paths: &Paths) -> Change {
        let VfsChange { op, detail, tid, file, offset, length, name, .. } = change;
        let entry = |(dir, name): &(FileId, Vec<u8>)| Name::Entry { dir: dir.inode, name: name.clone() };
        let mut inode = file.inode;
        let names = match name {
            Named::Entry { dir, name } => vec![Name::Entry { dir: dir.inode, name: name.clone() }],
            Named::Rename { from, to, .. } => vec![entry(from), entry(to)],
            // A file that was made says which it is, and where it hangs only by its path.
            Named::No if !is_of_names(*op) => Vec::new(),
            Named::No | Named::Path { .. } => {
                if matches!(name, Named::Path { .. }) {
                    inode = 0;
                }
                [&paths.path, &paths.new_path, &paths.followed]
                    .into_iter()
                    .filter_map(|path| self.below(path))
                    .map(Name::Path)
                    .collect()
            }
        };
        let follows = matches!(name, Named::Path { followed: true, .. }) && op.may_follow_links();
        let (op, detail, thread, offset, length) = (*op, *detail, *tid, *offset, *length);
        Change { op, detail, thread, inode, offset, length, names, follows }
    }

    /// The names from the root of the tree on.
    fn below(&self, path: &[u8]) -> Option<Vec<Vec<u8>>> {
        let root = self.root.strip_suffix(b"/").unwrap_or(&self.root);
        let rest = path.strip_prefix(root)?;
        let names: Vec<Vec<u8>> = rest.split(|byte| *byte == b'/').skip(1).map(<[u8]>::to_vec).collect();
        (rest.starts_with(b"/") && names.iter().all(|name| !name.is_empty())).then_some(names)
    }
}

fn is_of_names(op: FileOp) -> bool {
    matches!(
        op,
        FileOp::Create
            | FileOp::Mkdir
            | FileOp::Mknod
            | FileOp::Symlink
            | FileOp::Link
            | FileOp::Unlink
            | FileOp::Rmdir
            | FileOp::Rename
    )
}

/// Why the tree's file system is not frozen for marks, if it is not.
pub fn freeze_obstacle(source: u64, root: Option<u64>, journal: Option<u64>) -> Option<String> {
    if root == Some(source) {
        Some("it is the root file system, which is never frozen".into())
    } else if journal == Some(source) {
        Some("the journal is on the same file system, and could not be written meanwhile".into())
    } else {
        None
    }
}
