//! The journal: a directory of segments that hold every record of one volume's history, in order.
//!
//! One [`Writer`] appends; any number of [`Journal`] readers read, also meanwhile, and never write. What
//! [`Writer::sync`] acknowledged survives a power cut. The bytes are described in docs/FORMAT.md.

mod back;
mod check;
mod error;
mod fold;
mod folded;
mod folds;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod index;
mod instants;
mod listing;
mod open_segment;
mod options;
mod origin;
mod packing;
mod prune;
mod reader;
mod record;
mod records;
mod recovery;
mod reopen;
mod retention;
mod segment;
mod stretches;
#[cfg(test)]
mod tests;
mod tree;
mod view;
mod volume;
mod walk;
mod writer;

pub use back::{Back, Wanted};
pub use check::CheckReport;
pub use error::JournalError;
pub use fold::{NetEffect, Take, scratch_error};
pub use folded::{Leg, Way, WayCost};
pub use folds::{Fold, Folds};
pub use listing::{Listed, Listing};
pub use options::{BadSyncPolicy, JournalOptions, SyncPolicy};
pub use prune::{PruneOptions, PrunePlan, plan_prune, prune, prune_with};
pub use reader::{Journal, JournalLock, SegmentInfo};
pub use record::LABEL_LEN_MAX;
pub use records::Records;
pub use recovery::{Recovery, TornTail};
pub use retention::Retention;
pub use view::View;
pub use writer::Writer;
