//! Volumes whose probes are at work without a process that reads what they record.

use serde::Serialize;

use crate::capture::{CaptureError, detach as detach_probes, recorded_bytes, unattended_volumes};
use crate::service::run_dir::{self, LockError, VolumeLock};

/// Nobody reads what its probes record.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    /// The kernel's name of the volume.
    pub volume: String,
    /// Bytes written and not under a durable mark, at least; `None` when an afterwrite of another version knows.
    pub recorded_bytes: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    #[error(transparent)]
    Protected(#[from] LockError),
    #[error("the probes of {volume} could not be removed; are you root?")]
    Probes {
        volume: String,
        #[source]
        source: CaptureError,
    },
    #[error("no probes are attached to {volume}; `afterwrite status` shows those there are")]
    None { volume: String },
}

/// All of them; those of running protections are not among them.
pub fn recorded() -> Vec<Recorded> {
    unattended_volumes()
        .into_iter()
        .map(|volume| Recorded { recorded_bytes: recorded_bytes(&volume), volume })
        .collect()
}

/// Removes the probes of a volume that nobody protects now, and what they recorded: the next start compares the whole
/// volume.
pub fn detach(volume: &str) -> Result<(), DetachError> {
    let volume = run_dir::volume_name(volume);
    let _lock = VolumeLock::take(&run_dir::path(), &volume)?;
    match detach_probes(&volume) {
        Ok(true) => Ok(()),
        Ok(false) => Err(DetachError::None { volume }),
        Err(source) => Err(DetachError::Probes { volume, source }),
    }
}
