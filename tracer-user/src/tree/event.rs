//! What the collector hears of the tree, whoever tells it.

use std::io;

use crate::model::FileOp;
use crate::tree::pending::Name;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Change(Change),
    /// The call of a thread is over in which it made its last changes.
    End {
        thread: u32,
    },
    /// Something that was not understood: as good as a lost one.
    NotUnderstood,
}

/// Something is about to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub op: FileOp,
    /// More of it, by `op`.
    pub detail: u32,
    pub thread: u32,
    /// 0: not known.
    pub inode: u64,
    pub offset: u64,
    /// `None`: not known.
    pub length: Option<u64>,
    pub names: Vec<Name>,
    /// What is meant may be where a symbolic link of that name leads.
    pub follows: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub seen: u64,
    /// Of those, what can be taken from the ring or is known to be lost.
    pub accounted: u64,
    /// Changes that nobody will be told of.
    pub missing: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freezing {
    Frozen,
    /// `held`: until the thaw was asked for.
    Thawed {
        held: bool,
    },
    /// Nothing is frozen.
    Failed(String),
}

/// The source's file system, as far as it speaks by itself.
pub trait World {
    /// What happened since, at most so many.
    fn events(&mut self, max: usize) -> Vec<Event>;
    fn counters(&mut self) -> Counters;
    /// Asks for a freeze, or a thaw; the answer comes later.
    fn freeze(&mut self) -> io::Result<()>;
    fn thaw(&mut self) -> io::Result<()>;
    fn answer(&mut self) -> Option<Freezing>;
}
