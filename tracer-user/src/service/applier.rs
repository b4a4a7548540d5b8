//! The applier's thread, one for each target: it owns the replica there. Whatever becomes of one, the journal and the others go on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::apply::{ApplyError, ApplyProgress, Replica, ReplicaFiles};
use crate::io::priority::{Work, claim};
use crate::io::{BlockDevice, Pace};
use crate::journal::Journal;
use crate::model::{Lsn, Point, VolumeInfo};
use crate::service::prepare::Target;
use crate::service::progress::{Progress, SharedProgress, TargetProgress};

/// Between two looks that find nothing to apply, while there are granules to be hashed anew.
const TICK: Duration = Duration::from_millis(100);
/// A target that failed is tried again this soon.
const RETRY: Duration = Duration::from_secs(2);
/// While nothing is applied, the target is looked at this often.
const LOOK: Duration = Duration::from_secs(10);
/// Hashed anew at each of them: 4 MiB.
const REFRESHED_GRANULES: usize = 64;

pub struct Applier {
    /// Its place among the targets.
    index: usize,
    path: PathBuf,
    files: ReplicaFiles,
    /// `None` while it can't be used.
    replica: Option<Replica>,
    pace: Pace,
    shared: Shared,
}

/// What of the progress says what is to be done now.
#[derive(Clone, Copy, PartialEq)]
struct Aim {
    goal: Lsn,
    ended: bool,
    failed: bool,
    /// Nothing will come for a while.
    rests: bool,
}

impl Aim {
    fn of(p: &Progress, index: usize) -> Aim {
        let goal = p.restorable.as_ref().map_or(p.durable, |mark| mark.lsn);
        let rests = p.paused.is_some() && p.targets[index].applied >= goal;
        Aim { goal, ended: p.journal_ended, failed: p.failure.is_some(), rests }
    }
}

/// What all appliers of a volume have in common.
#[derive(Clone)]
pub struct Shared {
    pub source: BlockDevice,
    pub info: VolumeInfo,
    pub journal: Arc<Journal>,
    pub progress: Arc<SharedProgress>,
}

impl Applier {
    /// Of the target that is the `index`th; one that can't be used is tried again.
    pub fn new(index: usize, target: Target, pace: Pace, shared: &Shared) -> Applier {
        let Target { path, files, replica, .. } = target;
        let (replica, error) = match replica {
            Ok(replica) => (Some(replica), None),
            Err(error) => (None, Some(error)),
        };
        let applier = Applier { index, path, files, replica, pace, shared: shared.clone() };
        if let Some(error) = error {
            applier.failed(&error.into());
        }
        applier
    }

    /// Whether nothing has to be done to bring it to this record.
    pub fn is_at(&self, lsn: Lsn) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.is_at(lsn))
    }

    /// Brings the replica to each restorable mark once that is durable; until there is a first one (the baseline), along with the
    /// journal. A target that fails is opened again until it works: the journal goes on without it.
    pub fn run(mut self) {
        claim(Work::Deferrable);
        let mut looked = Instant::now();
        let mut seen = Aim::of(&self.shared.progress.get(), self.index);
        let mut wait = Duration::ZERO;
        loop {
            let mark;
            (seen, mark) = {
                let p = self.shared.progress.wait_while(wait, |p| Aim::of(p, self.index) == seen);
                (Aim::of(&p, self.index), p.restorable.clone())
            };
            let Aim { goal, ended, failed, rests } = seen;
            if failed {
                return;
            }
            if rests {
                // Its hash list is beside the journal: whoever has to unmount that disk must not wait for us.
                self.replica = None;
                wait = LOOK;
                continue;
            }
            wait = TICK;
            let result = match &mut self.replica {
                Some(replica) if !replica.is_at(goal) => self.advance(goal, mark.as_ref(), true),
                Some(replica) if ended => return replica.finish_hashes(),
                Some(replica) if looked.elapsed() >= LOOK => {
                    looked = Instant::now();
                    replica.look().map_err(anyhow::Error::from)
                }
                Some(replica) => {
                    let has_more = replica.refresh_hashes(REFRESHED_GRANULES);
                    wait = if has_more { TICK } else { LOOK.saturating_sub(looked.elapsed()) };
                    continue;
                }
                None => self.open().map_err(anyhow::Error::from),
            };
            match result {
                Ok(()) => self.update(|target| target.error = None),
                Err(error) => {
                    // Until it is opened anew nobody knows what it holds.
                    self.replica = None;
                    self.failed(&error);
                    if ended {
                        // Nobody waits for it to heal.
                        return;
                    }
                    self.shared.progress.wait_for_end(RETRY);
                }
            }
        }
    }

    /// One step, also before the capture starts. Somebody may have rewound the replica, to wherever. Paced, unless somebody waits for
    /// it.
    fn advance(&mut self, goal: Lsn, mark: Option<&Point>, paced: bool) -> anyhow::Result<()> {
        let Applier {
            replica: Some(replica), pace, shared: Shared { source, journal, progress, .. }, ..
        } = self
        else {
            return Ok(());
        };
        let (mut done, mut begun) = (0, Instant::now());
        let mut applied = |at: ApplyProgress| {
            if !paced {
                return;
            }
            pace.did(at.data_bytes - done, begun, Instant::now(), source.is_busy());
            // At the end nobody is kept waiting.
            progress.wait_for_end(pace.wait(Instant::now()));
            (done, begun) = (at.data_bytes, Instant::now());
        };
        let stats = replica.go_to(journal, goal, mark, &mut applied).with_context(|| {
            format!("the replica could not be brought to record {goal}; start again to resume")
        })?;
        let checkpoint = replica.checkpoint().clone();
        self.update(|target| {
            target.applied_to(checkpoint.applied);
            target.consistent = checkpoint.consistent;
            target.mark = mark.filter(|_| checkpoint.consistent).cloned();
            target.written_bytes += stats.written_bytes;
        });
        Ok(())
    }

    fn open(&mut self) -> Result<(), ApplyError> {
        let (replica, _) = Replica::open(&self.files, &self.path, &self.shared.info, false)?;
        self.replica = Some(replica);
        Ok(())
    }

    /// Tells of it, once.
    fn failed(&self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let known = self.shared.progress.get().targets[self.index].error.as_ref() == Some(&text);
        if !known {
            log::warn!("the target {} fails, the journal goes on without it: {text}", self.path.display());
        }
        self.update(|target| {
            target.error = Some(text);
            target.consistent = false;
        });
    }

    fn update(&self, change: impl FnOnce(&mut TargetProgress)) {
        self.shared.progress.update(|progress| change(&mut progress.targets[self.index]));
    }
}

/// Brings one of them to `goal`, so that the source can be compared with it: the one that is nearest, and the next one if that fails.
///
/// # Errors
/// With that of the last one if none of them comes there.
pub fn bring_one(appliers: &mut [Applier], goal: Lsn, mark: Option<&Point>) -> anyhow::Result<()> {
    let mut order: Vec<(bool, Lsn, usize)> = Vec::new();
    for (at, applier) in appliers.iter().enumerate() {
        if let Some(replica) = &applier.replica {
            order.push((replica.is_at(goal), replica.checkpoint().applied, at));
        }
    }
    order.sort_unstable();
    let mut last = Ok(());
    for (.., at) in order.into_iter().rev() {
        let applier = &mut appliers[at];
        match applier.advance(goal, mark, false) {
            Ok(()) => return Ok(()),
            Err(error) => {
                applier.replica = None;
                applier.failed(&error);
                last = Err(error);
            }
        }
    }
    last
}
