use std::path::Path;
use std::time::{Duration, Instant};

use crate::apply::decision::{Decision, Found, decide};
use crate::apply::hash_list::KeptHashes;
use crate::apply::look::{SOMETHING_ELSE, holds_something_else};
use crate::apply::records::{Onto, Span, apply_some};
use crate::apply::restore::{Ways, restore};
use crate::apply::{ApplyError, ApplyProgress, ApplyStats, Checkpoint, ReplicaFiles};
use crate::journal::{Journal, Leg};
use crate::model::{Lsn, Point, VolumeInfo};
use crate::target::{OpenTarget, TargetError, TargetWriter};

/// The target kept current, and its checkpoint. After an error every later call returns `Latched` until it is opened
/// again.
pub struct Replica {
    files: ReplicaFiles,
    target: TargetWriter,
    checkpoint: Checkpoint,
    pub(super) hashes: KeptHashes,
    /// A long apply syncs and moves its checkpoint after this much, so that a restart need not begin anew.
    checkpoint_every_bytes: u64,
    latched: bool,
    /// Test: the machine on which writing a checkpoint is one operation.
    #[cfg(test)]
    pub(super) machine: crate::target::faulty::Machine,
}

/// What opening a replica found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// A new target: it will be built from the journal's first record.
    Fresh,
    /// It goes on here.
    At(Checkpoint),
    /// What it holds is not known, for this reason: it will be built again from the journal's first record.
    Unknown(String),
}

const CHECKPOINT_EVERY_BYTES: u64 = 1 << 30;
const FINISH_HASHES_MAX: Duration = Duration::from_secs(2);
const REFRESHED_AT_ONCE: usize = 64;

impl Replica {
    /// Opens the replica at `target_path`, whose `files` are in its journal's directory, and records there that it is the replica. The
    /// caller holds the journal's lock.
    ///
    /// # Errors
    /// When the target has content that is not this journal's and `force` is not given, the checkpoint is of another
    /// volume, or the replica that the checkpoint speaks of is gone.
    pub fn open(
        files: &ReplicaFiles,
        target_path: &Path,
        info: &VolumeInfo,
        force: bool,
    ) -> Result<(Replica, ReplicaState), ApplyError> {
        // As one would find it again from elsewhere.
        let target_path = std::path::absolute(target_path).unwrap_or_else(|_| target_path.to_owned());
        let decision = decide(Found {
            checkpoint: Checkpoint::read(files),
            target: TargetWriter::identity_of(&target_path)?.as_deref(),
            target_path: &target_path.display().to_string(),
            volume: info.id,
            force,
        })?;
        let open = &|how| TargetWriter::open(&target_path, info.size_bytes, how);
        let (target, state) = match decision {
            Decision::Fresh(how) => (open(how)?, ReplicaState::Fresh),
            Decision::Rebuild(how, why) => (open(how)?, ReplicaState::Unknown(why)),
            Decision::Resume(checkpoint) => resume(files, checkpoint, open, force)?,
        };
        // What a target holds that is not resumed is not known: the checkpoint found names no list of it.
        let named = match &state {
            ReplicaState::At(checkpoint) => checkpoint.hash_list,
            ReplicaState::Fresh | ReplicaState::Unknown(_) => None,
        };
        let hashes = KeptHashes::open(files, info.id, &target, named);
        let checkpoint = match &state {
            // It may have been renamed since.
            ReplicaState::At(checkpoint) => {
                Checkpoint { target_path: target_path.display().to_string(), ..checkpoint.clone() }
            }
            ReplicaState::Fresh | ReplicaState::Unknown(_) => {
                Checkpoint::fresh(info.id, &target_path, target.identity())
            }
        };
        let checkpoint = Checkpoint { hash_list: hashes.id(), ..checkpoint };
        checkpoint.write(files)?;
        Ok((Replica::of(files, target, checkpoint, hashes), state))
    }

    pub(super) fn of(
        files: &ReplicaFiles,
        target: TargetWriter,
        checkpoint: Checkpoint,
        hashes: KeptHashes,
    ) -> Replica {
        Replica {
            files: files.clone(),
            target,
            checkpoint,
            hashes,
            checkpoint_every_bytes: CHECKPOINT_EVERY_BYTES,
            latched: false,
            #[cfg(test)]
            machine: Default::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn checkpoint_every(mut self, bytes: u64) -> Replica {
        self.checkpoint_every_bytes = bytes;
        self
    }

    /// Brings the replica from where it is to record `to`, which must be durable in the journal. When `mark` is a
    /// restorable point at `to`, the replica is that point afterwards.
    ///
    /// The order that makes a kill at any instant harmless: the checkpoint says what was begun, durably; the records are
    /// applied; the target and its hash list are synced; the checkpoint says what is there.
    pub fn advance(
        &mut self,
        journal: &Journal,
        to: Lsn,
        mark: Option<&Point>,
    ) -> Result<ApplyStats, ApplyError> {
        self.latching(|replica| {
            let begun = replica.begun(journal)?;
            match to < begun {
                true => Err(ApplyError::ApplyPending { begun, wanted: to }),
                false => replica.try_advance(journal, to, mark, &mut |_| {}),
            }
        })
    }

    /// [`Replica::advance`], or back to a record that the replica is past. Back it reads what was written since, and of the history
    /// before as much as it takes to find what stood there; nothing else is written.
    ///
    /// Going back is an apply that was begun and not finished: whatever of the records after `applied` up to `applying` is on the
    /// target, applying them once more brings it where it was. So a kill at any instant is as harmless as in an apply, and
    /// whoever opens the replica next may go on forward, or back to any record.
    pub fn go_to(
        &mut self,
        journal: &Journal,
        to: Lsn,
        mark: Option<&Point>,
        progress: &mut dyn FnMut(ApplyProgress),
    ) -> Result<ApplyStats, ApplyError> {
        self.latching(|replica| match to < replica.begun(journal)? {
            true => replica.go_back(journal, to, mark, progress),
            false => replica.try_advance(journal, to, mark, progress),
        })
    }

    fn latching<T>(
        &mut self,
        run: impl FnOnce(&mut Replica) -> Result<T, ApplyError>,
    ) -> Result<T, ApplyError> {
        if self.latched {
            return Err(ApplyError::Latched);
        }
        let result = run(self);
        self.latched = result.is_err();
        result
    }

    /// The last record that may be on the target; all up to there must be in the journal.
    fn begun(&self, journal: &Journal) -> Result<Lsn, ApplyError> {
        let volume = self.checkpoint.volume;
        if journal.info().id != volume {
            return Err(ApplyError::WrongVolume { found: volume, expected: journal.info().id });
        }
        let begun = self.checkpoint.begun();
        let last = journal.last_lsn()?;
        match begun > last {
            true => Err(ApplyError::JournalLost { applied: begun, last }),
            false => Ok(begun),
        }
    }

    fn try_advance(
        &mut self,
        journal: &Journal,
        to: Lsn,
        mark: Option<&Point>,
        progress: &mut dyn FnMut(ApplyProgress),
    ) -> Result<ApplyStats, ApplyError> {
        let Checkpoint { applied, applying, .. } = self.checkpoint;
        let mut stats = ApplyStats::default();
        if to > applied || applying.is_some() {
            self.begin(applied, to)?;
        }
        while self.checkpoint.applied < to {
            // A replica that is behind what was folded begins anew, from the base: the first leg then covers all of it.
            let way = journal.way(self.checkpoint.applied, to)?;
            let Some(leg) = way.legs.first() else { break };
            let reached = match self.go(journal, leg, &mut stats, progress) {
                Err(ApplyError::Journal(_) | ApplyError::JournalEnds { .. })
                    if !journal.is_current(&way)? =>
                {
                    // It was pruned meanwhile: there is another way.
                    continue;
                }
                reached => reached?,
            };
            self.sync()?;
            if reached < to {
                self.keep(Checkpoint { applied: reached, ..self.checkpoint.clone() })?;
            } else {
                break;
            }
        }
        self.arrive(to, mark)?;
        Ok(stats)
    }

    /// See [`Replica::go_to`].
    fn go_back(
        &mut self,
        journal: &Journal,
        to: Lsn,
        mark: Option<&Point>,
        progress: &mut dyn FnMut(ApplyProgress),
    ) -> Result<ApplyStats, ApplyError> {
        let (from, begun) = (self.checkpoint.applied.min(to), self.begun(journal)?);
        let mut ways = Ways::between(journal, from, begun, to)?;
        self.begin(from, begun)?;
        let mut stats = ApplyStats::default();
        loop {
            let onto = Onto { target: &mut self.target, hashes: &mut self.hashes, only: None };
            match restore(journal, &ways, onto, &mut stats, progress) {
                Err(ApplyError::Journal(_)) if !ways.are_current(journal)? => {
                    // It was pruned meanwhile: there are other ways.
                    ways = Ways::between(journal, from, begun, to)?;
                }
                done => break done?,
            }
        }
        self.sync()?;
        self.arrive(to, mark)?;
        Ok(stats)
    }

    /// Durably, before the target is changed: all up to `applied` is on it, or will be when the records up to `applying` are.
    fn begin(&mut self, applied: Lsn, applying: Lsn) -> Result<(), ApplyError> {
        self.hashes.retry();
        let applying = Some(applying);
        self.keep(Checkpoint { applied, applying, consistent: false, mark: None, ..self.checkpoint.clone() })
    }

    fn sync(&mut self) -> Result<(), ApplyError> {
        self.target.sync()?;
        self.hashes.sync();
        Ok(())
    }

    fn arrive(&mut self, to: Lsn, mark: Option<&Point>) -> Result<(), ApplyError> {
        let mark = mark.filter(|mark| mark.lsn == to && mark.class.restorable());
        let there = Checkpoint {
            applied: to,
            applying: None,
            consistent: mark.is_some(),
            mark: mark.map(|mark| mark.id),
            ..self.checkpoint.clone()
        };
        if there != self.checkpoint {
            self.keep(there)?;
        }
        Ok(())
    }

    /// Applies a leg, or as much of it as one checkpoint may wait for; returns the record it came to.
    fn go(
        &mut self,
        journal: &Journal,
        leg: &Leg,
        stats: &mut ApplyStats,
        progress: &mut dyn FnMut(ApplyProgress),
    ) -> Result<Lsn, ApplyError> {
        let records = journal.leg_records(leg)?;
        let bytes_max = if leg.is_fold() { u64::MAX } else { self.checkpoint_every_bytes };
        let onto = Onto { target: &mut self.target, hashes: &mut self.hashes, only: None };
        let reached = apply_some(records, onto, Span::of(leg), bytes_max, stats, progress)?;
        Ok(if leg.is_fold() { leg.to } else { reached })
    }

    /// For when there is nothing to apply: hashes `granules_max` granules at most that were changed in part, so that
    /// their hash is not known. Says whether there are more. Not before the replica is at a mark, since until then it
    /// changes everywhere.
    pub fn refresh_hashes(&mut self, granules_max: usize) -> bool {
        let at_rest = !self.latched && self.checkpoint.applying.is_none() && self.checkpoint.consistent;
        at_rest && self.hashes.refresh(&self.target, granules_max)
    }

    /// What is left of the hashes before it is closed, if it takes not long: whoever compares next need not read there.
    pub fn finish_hashes(&mut self) {
        let begun = Instant::now();
        while self.refresh_hashes(REFRESHED_AT_ONCE) && begun.elapsed() < FINISH_HASHES_MAX {}
    }

    /// Whether nothing has to be done to bring it to this record.
    pub fn is_at(&self, lsn: Lsn) -> bool {
        self.checkpoint.applied == lsn && self.checkpoint.applying.is_none()
    }

    /// What is durable on the target.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Whether the target can still be read: one that fails while there is nothing to apply would else go unnoticed.
    pub fn look(&self) -> Result<(), ApplyError> {
        let mut bytes = [0; 512];
        Ok(self.target.read_at(0, &mut bytes)?)
    }

    /// The record that an interrupted apply must go on to before anything else; see `Checkpoint::applying`.
    pub fn pending(&self) -> Option<Lsn> {
        self.checkpoint.applying
    }

    fn keep(&mut self, checkpoint: Checkpoint) -> Result<(), ApplyError> {
        #[cfg(test)]
        self.machine.step().map_err(|source| {
            let path = self.files.checkpoint();
            crate::apply::CheckpointError::Io { what: "write", path, source }
        })?;
        // A list that was given up is named no more from here on.
        let checkpoint = Checkpoint { hash_list: self.hashes.id(), ..checkpoint };
        checkpoint.write(&self.files)?;
        self.checkpoint = checkpoint;
        Ok(())
    }
}

/// The target that the checkpoint speaks of, if it holds what was applied to it as far as a quick look tells. If not, what is there may be
/// all that is left of somebody's work: it is overwritten only by force, or where it is empty.
fn resume(
    files: &ReplicaFiles,
    checkpoint: Checkpoint,
    open: &dyn Fn(OpenTarget) -> Result<TargetWriter, TargetError>,
    force: bool,
) -> Result<(TargetWriter, ReplicaState), ApplyError> {
    let target = open(OpenTarget::Resume)?;
    // Amid an apply it need not hold what the list says.
    let at_rest = checkpoint.applying.is_none();
    if !(at_rest && holds_something_else(&target, files)) {
        return Ok((target, ReplicaState::At(checkpoint)));
    }
    // It is opened by one at a time.
    drop(target);
    let target = open(OpenTarget::New { force }).map_err(|error| match error {
        TargetError::NotEmpty { path, .. } => ApplyError::NotTheReplica { path },
        error => error.into(),
    })?;
    let why = format!("it {SOMETHING_ELSE}");
    log::warn!("{}: {why}; the replica is built again", checkpoint.target_path);
    Ok((target, ReplicaState::Unknown(why)))
}
