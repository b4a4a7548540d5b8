//! What the threads of a tree's protection tell each other and `status`.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde::Serialize;

use crate::capture::vfs::{VfsCounters, VfsRung};
use crate::model::{ActivityShown, Lsn, MarkId, Point, VolumeId};
use crate::service::progress::RetentionStatus;
use crate::service::retention::Retained;
use crate::tree::CollectorStatus;

/// What `status --json` prints for a tree.
#[derive(Clone, Debug, Serialize)]
pub struct TreeStatus {
    /// `tree`.
    pub kind: &'static str,
    pub volume: VolumeId,
    pub source: String,
    pub pid: u32,
    /// `baseline`, `resync` or `live`.
    pub state: &'static str,
    pub rung: VfsRung,
    /// Hooks this kernel does not have.
    pub absent: Vec<&'static str>,
    pub counters: VfsCounters,
    pub journal: String,
    pub target: String,
    /// Why the file system is not frozen for marks.
    pub not_frozen: Option<String>,
    #[serde(flatten)]
    pub collector: CollectorStatus,
    pub journal_bytes: u64,
    /// Why the journal can't be written; tried again every few seconds.
    pub paused: Option<String>,
    pub last_mark: Option<Point>,
    pub last_mark_error: Option<String>,
    pub replica: TreeReplicaStatus,
    /// When it was told what to keep.
    pub retention: Option<RetentionStatus>,
    /// By what was journaled; a tree has no map.
    #[serde(flatten)]
    pub activity: ActivityShown,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct TreeReplicaStatus {
    pub applied_lsn: Lsn,
    /// It is at a mark, not on its way to one.
    pub consistent: bool,
    pub mark: Option<MarkId>,
    pub age_ms: Option<u64>,
    /// Why the target can't be written; tried again every few seconds.
    pub error: Option<String>,
    /// In this session.
    pub data_bytes: u64,
    pub names: u64,
    #[serde(skip)]
    pub at: Option<Point>,
}

/// The status, and what else threads wait for.
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

pub struct State {
    pub status: TreeStatus,
    /// The last mark that the target may be brought to.
    pub goal: Option<Point>,
    /// Nothing more will be journaled.
    pub ended: bool,
    pub failure: Option<String>,
}

impl Shared {
    pub fn new(status: TreeStatus) -> Arc<Shared> {
        let state = State { status, goal: None, ended: false, failure: None };
        Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() })
    }

    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock().expect("nobody panics with the status locked"));
        self.changed.notify_all();
        result
    }

    /// Waits until something changed, at most this long; then looks.
    pub fn wait<T>(&self, at_most: Duration, look: impl FnOnce(&State) -> T) -> T {
        let state = self.state.lock().expect("nobody panics with the status locked");
        let waited = self.changed.wait_timeout(state, at_most);
        look(&waited.expect("nobody panics with the status locked").0)
    }

    pub fn status(&self) -> TreeStatus {
        let mut status = self.update(|state| state.status.clone());
        status.replica.age_ms = status.replica.at.as_ref().map(|mark| {
            let now = jiff::Timestamp::now().as_nanosecond();
            u64::try_from((now - i128::from(mark.time.0)).max(0) / 1_000_000).unwrap_or(u64::MAX)
        });
        status
    }
}

impl Retained for Shared {
    fn wait_for_end(&self, at_most: Duration) -> bool {
        let state = self.state.lock().expect("nobody panics with the status locked");
        let waited = self.changed.wait_timeout_while(state, at_most, |state| !state.ended);
        waited.expect("nobody panics with the status locked").0.ended
    }

    fn update_retention(&self, change: &mut dyn FnMut(&mut RetentionStatus)) {
        self.update(|state| change(state.status.retention.get_or_insert_default()));
    }
}
