//! The hash list: BLAKE3 of every granule of the replica, in the file `replica.hashes` beside the checkpoint (`ReplicaFiles` has its name).
//!
//! One thing always holds while the checkpoint says that nothing is being applied: **an entry is unknown, or it is the
//! hash of what was applied to its granule.** For
//!
//! * the checkpoint names the list, by a random number. A list that it does not name is not looked at;
//! * what an apply changes, it changes between the checkpoint that says `applying` and the one that says `applied`. In
//!   between, entries of the granules it touches are made unknown or, where it writes a granule whole, set; whether
//!   before or after the target is written does not matter, as it is all done again after a crash: the records after
//!   `applied` up to `applying` are applied again, and touch at least the same granules;
//! * all of that is synced before the checkpoint says `applied`;
//! * at rest only unknown entries are set, to the hash of what a synced target holds. That need not be durable: an entry
//!   that was lost is unknown, and a torn one fails its checksum, which is as good;
//! * if the list can't be written, it is given up, and the next checkpoint, which is durable before `applied` is, names
//!   none. Applying goes on.
//!
//! What cannot be said of an entry is "unknown", and then the replica itself is read. That is never wrong.

mod format;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod kept;
mod list;
mod reader;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use format::{HashListHeader, HashListId, HeaderError};
pub(super) use kept::KeptHashes;
#[cfg(test)]
pub(super) use list::HashList;
pub use reader::HashListReader;

/// Why a hash list cannot be used. Nothing is lost with it: `protect` begins a new one.
#[derive(Debug, thiserror::Error)]
pub enum HashListError {
    #[error("there is no hash list {}; a running `afterwrite protect` makes one", path.display())]
    Missing { path: PathBuf },
    #[error("the hash list {} cannot be used: {what}; `afterwrite protect` begins a new one", path.display())]
    Unusable { path: PathBuf, what: String },
    #[error("cannot {what} the hash list {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}
