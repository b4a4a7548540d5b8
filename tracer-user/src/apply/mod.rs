//! From the journal to a target: `apply` brings records onto it, `Replica` does so with a checkpoint, so that whenever
//! it is stopped the replica comes back to a mark. Only what is durable in the journal may be asked for.

mod checkpoint;
mod decision;
mod error;
pub mod hash_list;
mod look;
mod records;
mod replica;
mod replica_files;
mod restore;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
pub(crate) mod history;
#[cfg(test)]
mod tests;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use error::ApplyError;
pub use records::{ApplyProgress, ApplyStats};
pub use replica::{Replica, ReplicaState};
pub use replica_files::{FoundTarget, ReplicaFiles};
pub use restore::rebuild;
