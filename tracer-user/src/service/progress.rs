//! What the threads of a protection tell each other and `status`: values that move left, never data.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::{Origin, Rung};
use crate::collect::CollectorStatus;
use crate::model::{Lsn, MarkId, Point, Timestamp, VolumeId};
use crate::service::origin::OriginStatus;
use crate::service::retention::Retained;

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
    #[serde(flatten)]
    pub collector: CollectorStatus,
    /// Last record that survives a power cut.
    pub durable_lsn: Lsn,
    /// Stored (compressed) bytes written to the journal in this session.
    pub journal_bytes: u64,
    pub last_mark: Option<Point>,
    /// The one of `replicas` that is furthest behind, those that fail before all others.
    pub replica: ReplicaStatus,
    /// One for each target, in the order in which they were named.
    pub replicas: Vec<ReplicaStatus>,
    pub left_out: Vec<LeftOut>,
    pub origin: OriginStatus,
    /// `null` when all history is kept.
    pub retention: Option<RetentionStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Where it is, as it was named.
    pub target: String,
    pub applied_lsn: Lsn,
    /// The replica is at a mark, not within an apply or a baseline.
    pub consistent: bool,
    pub mark: Option<MarkId>,
    /// How old the state of the replica is: time since its mark.
    pub age_ms: Option<u64>,
    /// Stored (compressed) bytes that this session journaled after its mark.
    pub lag_bytes: u64,
    /// Restorable marks of the journal that it was not brought to yet; of an earlier session's at most the last one.
    pub behind_marks: u64,
    /// Why the target can't be written; tried again every few seconds.
    pub error: Option<String>,
    /// Bytes written to the target in this session.
    pub written_bytes: u64,
}

/// A target that the journal knows and that was not named this time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftOut {
    /// Where it was, as it was named then.
    pub target: String,
    /// The mark that it stays at, if it is at one.
    pub mark: Option<u64>,
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
    /// In the order in which they were named.
    pub targets: Vec<TargetProgress>,
    /// Why the journal can't be written at the moment.
    pub paused: Option<String>,
    pub retention: Option<RetentionStatus>,
    /// The first error of a thread, as a chain of causes.
    pub failure: Option<String>,
}

/// How far one target is.
#[derive(Clone, Debug, Default)]
pub struct TargetProgress {
    pub applied: Lsn,
    pub consistent: bool,
    pub mark: Option<Point>,
    /// Restorable marks that are not on it yet, and `journal_bytes` when each was durable.
    unapplied: VecDeque<(Lsn, u64)>,
    /// `journal_bytes` at its mark.
    applied_bytes: u64,
    /// In this session.
    pub written_bytes: u64,
    /// Why it can't be written at the moment.
    pub error: Option<String>,
}

/// Of marks that are not on a replica; while there are more, its lag in bytes is that of an older mark.
const UNAPPLIED_MAX: usize = 4096;

impl Progress {
    /// A mark is durable.
    pub fn marked(&mut self, mark: &Point) {
        self.last_mark = Some(mark.clone());
        if mark.class.restorable() {
            self.restorable = Some(mark.clone());
            for target in &mut self.targets {
                target.unapplied.push_back((mark.lsn, self.journal_bytes));
                if target.unapplied.len() > UNAPPLIED_MAX {
                    target.unapplied.pop_front();
                }
            }
        }
    }

    /// The targets that hold all up to this record, those that work first.
    pub fn targets_at(&self, lsn: Lsn) -> Vec<usize> {
        let mut there: Vec<usize> =
            (0..self.targets.len()).filter(|index| self.targets[*index].applied >= lsn).collect();
        there.sort_by_key(|index| self.targets[*index].error.is_some());
        there
    }

    /// Those of this session are known one by one.
    fn behind_marks(&self, of: &TargetProgress) -> u64 {
        let is_behind = self.restorable.as_ref().is_some_and(|mark| of.applied < mark.lsn);
        u64::try_from(of.unapplied.len()).unwrap_or(u64::MAX).max(is_behind.into())
    }

    /// Of the target at this place, which is called so.
    pub fn replica_status(&self, index: usize, target: &str, now: Timestamp) -> ReplicaStatus {
        let of = &self.targets[index];
        ReplicaStatus {
            target: target.to_owned(),
            applied_lsn: of.applied,
            consistent: of.consistent,
            mark: of.mark.as_ref().map(|mark| mark.id),
            age_ms: of.mark.as_ref().map(|mark| now.0.saturating_sub(mark.time.0) / 1_000_000),
            lag_bytes: self.journal_bytes.saturating_sub(of.applied_bytes),
            behind_marks: self.behind_marks(of),
            error: of.error.clone(),
            written_bytes: of.written_bytes,
        }
    }
}

/// The one that is furthest behind.
pub fn furthest_behind(replicas: &[ReplicaStatus]) -> ReplicaStatus {
    let order = |replica: &&ReplicaStatus| (replica.error.is_none(), replica.consistent, replica.applied_lsn);
    replicas.iter().min_by_key(order).cloned().unwrap_or_default()
}

impl TargetProgress {
    /// It holds all up to this record.
    pub fn applied_to(&mut self, lsn: Lsn) {
        self.applied = lsn;
        while let Some((_, bytes)) = self.unapplied.pop_front_if(|(mark, _)| *mark <= lsn) {
            self.applied_bytes = bytes;
        }
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

    /// Waits this long, or until the protection ends; says whether it has.
    pub fn wait_for_end(&self, at_most: Duration) -> bool {
        let going_on = |progress: &mut Progress| progress.failure.is_none() && !progress.journal_ended;
        let waited = self.changed.wait_timeout_while(self.get(), at_most, going_on);
        !going_on(&mut waited.expect("nobody panics with the progress locked").0)
    }

    /// Waits as long as it stays that way, at most this long.
    pub fn wait_while(
        &self,
        at_most: Duration,
        stays: impl FnMut(&mut Progress) -> bool,
    ) -> MutexGuard<'_, Progress> {
        let waited = self.changed.wait_timeout_while(self.get(), at_most, stays);
        waited.expect("nobody panics with the progress locked").0
    }
}

impl Retained for SharedProgress {
    fn wait_for_end(&self, at_most: Duration) -> bool {
        self.wait_for_end(at_most)
    }

    fn update_retention(&self, change: &mut dyn FnMut(&mut RetentionStatus)) {
        self.update(|progress| change(progress.retention.get_or_insert_default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PointClass;

    fn mark(id: u64, lsn: u64, class: PointClass) -> Point {
        Point { id: MarkId(id), class, lsn: Lsn(lsn), time: Timestamp(0), label: String::new() }
    }

    #[test]
    fn the_lag_of_each_target_is_what_was_journaled_after_its_mark() {
        let targets = vec![TargetProgress::default(); 2];
        let mut progress = Progress { journal_bytes: 100, targets, ..Progress::default() };
        let lag = |progress: &Progress, index| progress.replica_status(index, "", Timestamp(0)).lag_bytes;
        assert_eq!(lag(&progress, 0), 100);
        progress.marked(&mark(1, 10, PointClass::Fs));
        progress.journal_bytes = 150;
        progress.marked(&mark(2, 20, PointClass::Fuzzy));
        progress.journal_bytes = 170;
        progress.marked(&mark(3, 30, PointClass::Crash));
        progress.journal_bytes = 171;
        for (applied, expected) in [(9, 171), (10, 71), (29, 71), (30, 1), (31, 1)] {
            progress.targets[1].applied_to(Lsn(applied));
            assert_eq!((lag(&progress, 0), lag(&progress, 1)), (171, expected), "{applied}");
            let behind = |index| progress.replica_status(index, "", Timestamp(0)).behind_marks;
            let of_second = [10, 30].into_iter().filter(|mark| *mark > applied).count() as u64;
            assert_eq!((behind(0), behind(1)), (2, of_second), "{applied}");
        }
        for id in 4..10_000 {
            progress.marked(&mark(id, id * 10, PointClass::Fs));
        }
        assert!(progress.targets.iter().all(|target| target.unapplied.len() == UNAPPLIED_MAX));
    }

    #[test]
    fn what_is_compared_with_is_a_target_at_the_record_that_works() {
        let target = |applied, error: Option<&str>| TargetProgress {
            applied: Lsn(applied),
            error: error.map(str::to_owned),
            ..TargetProgress::default()
        };
        let targets = vec![target(7, Some("full")), target(6, None), target(8, None)];
        let progress = Progress { targets, ..Progress::default() };
        assert_eq!(progress.targets_at(Lsn(7)), [2, 0]);
        assert!(progress.targets_at(Lsn(9)).is_empty());
    }

    #[test]
    fn the_one_that_fails_or_is_furthest_behind_stands_for_all() {
        let status = |target: &str, applied, consistent, error: Option<&str>| ReplicaStatus {
            target: target.into(),
            applied_lsn: Lsn(applied),
            consistent,
            error: error.map(str::to_owned),
            ..ReplicaStatus::default()
        };
        let mut all = vec![status("current", 9, true, None), status("behind", 5, true, None)];
        assert_eq!(furthest_behind(&all).target, "behind");
        all.push(status("applying", 8, false, None));
        assert_eq!(furthest_behind(&all).target, "applying");
        all.push(status("failing", 9, true, Some("full")));
        assert_eq!(furthest_behind(&all).target, "failing");
    }
}
