//! What the threads of a protection tell each other and `status`: values that move left, never data.

use std::collections::VecDeque;
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
    /// Of the ring between probes and collector.
    pub ring_bytes: u64,
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
    /// Stored (compressed) bytes that this session journaled after its mark.
    pub lag_bytes: u64,
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
    /// Restorable marks that are not on the replica yet, and `journal_bytes` when each was durable.
    pub unapplied: VecDeque<(Lsn, u64)>,
    /// `journal_bytes` at the replica's mark.
    pub applied_bytes: u64,
    pub target_bytes: u64,
    /// Why the target can't be written at the moment.
    pub target_error: Option<String>,
    /// Why the journal can't be written at the moment.
    pub paused: Option<String>,
    pub retention: Option<RetentionStatus>,
    /// The first error of a thread, as a chain of causes.
    pub failure: Option<String>,
}

/// Of marks that are not on the replica; while there are more, its lag in bytes is that of an older mark.
const UNAPPLIED_MAX: usize = 4096;

impl Progress {
    /// A mark is durable.
    pub fn marked(&mut self, mark: &Point) {
        self.last_mark = Some(mark.clone());
        if mark.class.restorable() {
            self.restorable = Some(mark.clone());
            self.unapplied.push_back((mark.lsn, self.journal_bytes));
            if self.unapplied.len() > UNAPPLIED_MAX {
                self.unapplied.pop_front();
            }
        }
    }

    /// The replica holds all up to this record.
    pub fn applied_to(&mut self, lsn: Lsn) {
        self.applied = lsn;
        while let Some((_, bytes)) = self.unapplied.pop_front_if(|(mark, _)| *mark <= lsn) {
            self.applied_bytes = bytes;
        }
    }

    pub fn lag_bytes(&self) -> u64 {
        self.journal_bytes.saturating_sub(self.applied_bytes)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PointClass, Timestamp};

    fn mark(id: u64, lsn: u64, class: PointClass) -> Point {
        Point { id: MarkId(id), class, lsn: Lsn(lsn), time: Timestamp(0), label: String::new() }
    }

    #[test]
    fn the_lag_is_what_was_journaled_after_the_mark_of_the_replica() {
        let mut progress = Progress { journal_bytes: 100, ..Progress::default() };
        assert_eq!(progress.lag_bytes(), 100);
        progress.marked(&mark(1, 10, PointClass::Fs));
        progress.journal_bytes = 150;
        progress.marked(&mark(2, 20, PointClass::Fuzzy));
        progress.journal_bytes = 170;
        progress.marked(&mark(3, 30, PointClass::Crash));
        progress.journal_bytes = 171;
        for (applied, lag) in [(9, 171), (10, 71), (29, 71), (30, 1), (31, 1)] {
            progress.applied_to(Lsn(applied));
            assert_eq!(progress.lag_bytes(), lag, "{applied}");
        }
        for id in 4..10_000 {
            progress.marked(&mark(id, id * 10, PointClass::Fs));
        }
        assert_eq!(progress.unapplied.len(), UNAPPLIED_MAX);
    }
}
