//! The map from files to the device's blocks, made when a file is saved, and the copy manager that uses it later.
//!
//! `watch` hears of saves (`events`, `fsyncs`), maps them (`extents`) and appends a record to the cache (`cache`, whose format is in
//! `segment` and `record`, both pure). `copy` reads a cache and copies what was saved. docs/FORMAT.md, *The cache of maps*.

mod cache;
mod copied;
mod copy;
mod criteria;
mod error;
mod events;
mod fsyncs;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod record;
mod rescan;
mod restore;
mod segment;
mod syncer;
#[cfg(test)]
mod tests;
mod volume;
mod watch;

pub use copy::{Copier, CopyOptions, CopyReport, How};
pub use criteria::Criteria;
pub use error::MapError;
pub use fsyncs::Fsyncs;
pub use record::{MapRecord, Why};
pub use watch::{Report, WatchOptions, watch};
