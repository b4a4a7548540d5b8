//! Directory trees: protected file by file, byte range by byte range.
//!
//! The collector hears that something changed, reads what is there now, and journals how that differs from the catalog of what
//! the journal says already. The writer brings a target directory from one mark to another. Needs no BPF: whoever runs a
//! protection tells what the probes see ([`event::World`]).

mod catalog;
mod checkpoint;
mod collector;
pub mod event;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod inode;
mod net;
mod net_content;
mod pending;
mod plan;
mod replay;
mod replica;
mod retention;
mod source;
mod target;
mod verify;

pub use catalog::Catalog;
pub use checkpoint::{TreeCheckpoint, TreeCheckpointError};
pub use collector::{Collector, CollectorStatus, MarkMade, TreeError};
pub use inode::{attributes, name_of, open_path, set_times};
pub use pending::Name;
pub use replay::{TreeReplayError, load, replay_tree};
pub use replica::TreeReplica;
pub use retention::{TreePruneError, plan_prune, prune};
pub use source::{Source, SourceError};
pub use target::{Applied, TargetTree, TreeTargetError};
pub use verify::{TreeDifference, TreeVerify, verify_trees};
