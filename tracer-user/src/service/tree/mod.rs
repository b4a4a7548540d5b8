//! A running protection of a directory tree.

mod prepare;
mod run;
mod status;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use crate::capture::vfs::VfsOptions;
use crate::journal::{JournalOptions, PruneOptions};

pub use run::protect_tree;
pub use status::TreeStatus;

#[derive(Clone, Debug)]
pub struct TreeOptions {
    pub source: PathBuf,
    pub journal: PathBuf,
    pub target: PathBuf,
    pub mark_every: Option<Duration>,
    pub freeze_timeout: Duration,
    pub journal_options: JournalOptions,
    pub probes: VfsOptions,
    /// All history is kept when there is none.
    pub retention: Option<PruneOptions>,
    pub force: bool,
}

/// What a user interface may show.
pub enum TreeEvent<'a> {
    /// All changes are seen from here on.
    Attached {
        status: &'a TreeStatus,
        resumed: bool,
    },
    /// Twice a second.
    Progress(&'a TreeStatus),
    Stopping,
}
