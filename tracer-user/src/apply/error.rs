use std::path::PathBuf;

use crate::apply::CheckpointError;
use crate::apply::look::SOMETHING_ELSE;
use crate::journal::JournalError;
use crate::model::{Lsn, VolumeId};
use crate::target::TargetError;

/// Why records could not be brought onto a target.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("cannot read the journal")]
    Journal(#[from] JournalError),
    #[error("cannot write the target")]
    Target(#[from] TargetError),
    #[error("record {lsn} does not fit the target")]
    Record {
        lsn: Lsn,
        #[source]
        source: TargetError,
    },
    #[error("cannot keep the replica's checkpoint")]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "the journal ends at record {last}, before record {wanted}: it was cut. `afterwrite journal check` tells more"
    )]
    JournalEnds { last: Lsn, wanted: Lsn },
    #[error(
        "the journal gives record {found} where record {wanted} belongs: `afterwrite journal check` tells more"
    )]
    OutOfOrder { found: Lsn, wanted: Lsn },
    /// The replica is ahead of the journal: acknowledged history was lost.
    #[error(
        "the replica holds records up to {applied}, but the journal ends at {last}: the journal lost records it had \
         acknowledged. Keep a copy of the replica, look at the journal's disk, and start with a new journal directory"
    )]
    JournalLost { applied: Lsn, last: Lsn },
    #[error(
        "applying up to record {begun} was begun, so the target cannot stop at record {wanted}: apply up to {begun}"
    )]
    ApplyPending { begun: Lsn, wanted: Lsn },
    #[error(
        "the checkpoint in this journal is of volume {found}, the journal of volume {expected}. Give every volume \
         a journal directory of its own"
    )]
    WrongVolume { found: VolumeId, expected: VolumeId },
    #[error(
        "the replica {} is gone. Mount the disk it is on, or rebuild it from the journal with --force", path.display()
    )]
    TargetGone { path: PathBuf },
    /// What is there has content, and not that of the replica.
    #[error(
        "{} {}. Name the replica's disk; or keep what is there elsewhere if it is needed, and have the replica rebuilt over \
         it by `protect --force`", path.display(), SOMETHING_ELSE
    )]
    NotTheReplica { path: PathBuf },
    #[error("the replica stopped at an earlier error: open it again, it resumes at the last checkpoint")]
    Latched,
}
