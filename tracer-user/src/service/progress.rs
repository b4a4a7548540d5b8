//! What the threads of a protection tell each other and `status`: values that move left, never data.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::{Origin, Rung};
use crate::collect::CollectorStatus;
use crate::model::{Lsn, MarkId, Point, VolumeId};
use crate::service::origin::OriginStatus;

/// What `status --json` prints for a volume.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub volume: VolumeId,
    pub source: String,
    pub size_bytes: u64,
    pub pid: u32,
    /// `extents`.
    pub capture: &'static str,
    pub rung: Rung,
    /// The probes go on recording when this process dies.
    pub pinned: bool,
    pub probes: Origin,
    /// `ring`, or `bitmap` while the ring has no room or nobody empties it.
    pub recording: &'static str,
    /// Why the journal can't be written; tried again every few seconds.
    pub paused: Option<String>,
    pub journal: String,
    pub target: String,
    #[serde(flatten)]
    pub collector: CollectorStatus,
    /// Last record that survives a power cut.
    pub durable_lsn: Lsn,
    /// Stored (compressed) bytes written to the journal in this session.
    pub journal_bytes: u64,
    pub last_mark: Option<Point>,
    pub replica: ReplicaStatus,
    pub origin: OriginStatus,
    /// `null` when all history is kept.
    pub retention: Option<RetentionStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    pub applied_lsn: Lsn,
    /// The replica is at a mark, not within an apply or a baseline.
    pub consistent: bool,
    pub mark: Option<MarkId>,
    /// How old the state of the replica is: time since its mark.
    pub age_ms: Option<u64>,
    /// Why the target can't be written; tried again every few seconds.
    pub error: Option<String>,
    /// Bytes written to the target in this session.
    pub written_bytes: u64,
}

/// Of a protection that was told what to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionStatus {
    /// Why the journal could not be pruned the last time; tried again at the next.
    pub error: Option<String>,
    /// Bytes of files removed in this session.
    pub freed_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub durable: Lsn,
    pub journal_bytes: u64,
    /// Of any class.
    pub last_mark: Option<Point>,
    /// The last mark that the replica may be brought to.
    pub restorable: Option<Point>,
    /// The journal took its last record.
    pub journal_ended: bool,
    pub applied: Lsn,
    pub consistent: bool,
    pub replica_mark: Option<Point>,
    pub target_bytes: u64,
    /// Why the target can't be written at the moment.
    pub target_error: Option<String>,
    /// Why the journal can't be written at the moment.
    pub paused: Option<String>,
    pub retention: Option<RetentionStatus>,
    /// The first error of a thread, as a chain of causes.
    pub failure: Option<String>,
}

#[derive(Default)]
pub struct SharedProgress {
    state: Mutex<Progress>,
    changed: Condvar,
}

impl SharedProgress {
    pub fn new(initial: Progress) -> SharedProgress {
        SharedProgress { state: Mutex::new(initial), changed: Condvar::new() }
    }

    pub fn get(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().expect("nobody panics with the progress locked")
    }

    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.get());
        self.changed.notify_all();
    }

    pub fn fail(&self, error: anyhow::Error) {
        self.update(|progress| {
            progress.failure.get_or_insert_with(|| format!("{error:#}"));
        });
    }

    /// Waits this long, or until the protection ends.
    pub fn wait_for_end(&self, at_most: Duration) {
        let going_on = |progress: &mut Progress| progress.failure.is_none() && !progress.journal_ended;
        let waited = self.changed.wait_timeout_while(self.get(), at_most, going_on);
        drop(waited.expect("nobody panics with the progress locked"));
    }

    /// Waits until something changed, at most this long.
    pub fn wait(&self, at_most: Duration) -> MutexGuard<'_, Progress> {
        let waited = self.changed.wait_timeout(self.get(), at_most);
        waited.expect("nobody panics with the progress locked").0
    }
}
