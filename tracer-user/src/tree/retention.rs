//! Retention of a tree's journal: as that of a volume's, but that all marks are kept at which the target may be.

use std::path::Path;

use crate::journal::{Journal, JournalError, PruneOptions, PrunePlan, prune_with};
use crate::model::Timestamp;
use crate::tree::checkpoint::{TreeCheckpoint, TreeCheckpointError};
use crate::tree::net::TreeNet;

#[derive(Debug, thiserror::Error)]
pub enum TreePruneError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("it is not known which marks the target needs")]
    Checkpoint(#[from] TreeCheckpointError),
}

/// The plan of a prune at `now`. Reads only.
pub fn plan_prune(dir: &Path, options: &PruneOptions, now: Timestamp) -> Result<PrunePlan, TreePruneError> {
    let options = with_target(dir, options)?;
    Ok(crate::journal::plan_prune(&Journal::open(dir)?, &options, now)?)
}

/// Carries out what [`plan_prune`] says, also beside the journal's writer. At any instant the journal holds every mark that is
/// kept.
pub fn prune(dir: &Path, options: &PruneOptions, now: Timestamp) -> Result<PrunePlan, TreePruneError> {
    let options = with_target(dir, options)?;
    Ok(prune_with(dir, &options, now, &mut TreeNet::open(dir)?)?)
}

/// The target goes forward only, and what it is to become is said by how it differs from the mark it is at: so it needs that
/// mark, and whichever later one it has come to when the prune is done.
fn with_target(dir: &Path, options: &PruneOptions) -> Result<PruneOptions, TreePruneError> {
    let checkpoint = TreeCheckpoint::read(dir)?;
    Ok(PruneOptions { keep_from: checkpoint.map(|checkpoint| checkpoint.applied), ..options.clone() })
}
