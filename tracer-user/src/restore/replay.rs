use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::apply::{ApplyError, ApplyProgress, ApplyStats, Checkpoint, apply};
use crate::journal::{Journal, JournalError, Leg, Way};
use crate::model::{ByteRange, Lsn, PointTarget, Timestamp, VolumeId};
use crate::restore::{BadGlob, Beginning, BeginningError, ResolveError, ResolvedPoint, beginning, resolve};
use crate::target::{OpenTarget, TargetError, TargetWriter};

#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Directory of the journal.
    pub journal: PathBuf,
    pub to: PointTarget,
    /// A raw image file, created when missing, or a block device.
    pub target: PathBuf,
    /// Overwrite a target that is not empty, and take a fuzzy point.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What a replay does: with `dry_run` it is shown, otherwise carried out as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplayPlan {
    pub volume: VolumeId,
    /// The device the journal is the history of, as it was named.
    pub source: String,
    pub point: ResolvedPoint,
    /// It begins with the base image of this record; 0 for none, that is, with the journal's first record.
    pub base_lsn: Lsn,
    /// Records that are applied.
    pub records: u64,
    /// First record of the journal that is applied as such; those before are in the base and in folds.
    pub first_lsn: Lsn,
    /// Last record that is applied.
    pub last_lsn: Lsn,
    /// Bytes of the journal's files that hold them, at most.
    pub journal_bytes: u64,
    /// Bytes that are written to the target, at most; `None` for a journal whose segments do not all say that.
    pub write_bytes_max: Option<u64>,
    /// Size of the volume.
    pub volume_bytes: u64,
    pub target: PathBuf,
    /// The change that the point is before, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Beginning>,
}

/// What a replay did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayOutcome {
    pub plan: ReplayPlan,
    /// `None` for a dry run.
    pub stats: Option<ApplyStats>,
    /// Bytes of the volume that no record up to the point defines: they are zeros on the target. Not 0 only where the
    /// baseline was not finished.
    pub undefined_bytes: u64,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayProgress<'a> {
    /// The plan is made and the target open.
    Begins(&'a ReplayPlan),
    Applies(ApplyProgress),
    /// All is written, and waits for the target's disk.
    Syncs,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("cannot read the journal {}", dir.display())]
    Journal {
        dir: PathBuf,
        #[source]
        source: JournalError,
    },
    #[error("cannot restore that point")]
    Resolve(#[from] ResolveError),
    #[error("cannot restore that point")]
    Glob(#[source] BadGlob),
    #[error("cannot use the target")]
    Target(#[from] TargetError),
    #[error("the target {} lies in the journal {}. Name a path outside of it", target.display(), dir.display())]
    TargetInJournal { target: PathBuf, dir: PathBuf },
    #[error(
        "the target {} is the replica that this journal keeps current. Restore to another path; the replica itself is \
         at a point already", target.display()
    )]
    TargetIsReplica { target: PathBuf },
    #[error("the restore stopped: {} is incomplete and must not be used", target.display())]
    Incomplete {
        target: PathBuf,
        #[source]
        source: ApplyError,
    },
}

/// Rebuilds a point of a journal on a target, durably. The journal is only read, also while it is being written.
pub fn replay(
    options: &ReplayOptions,
    progress: &mut dyn FnMut(ReplayProgress<'_>),
) -> Result<ReplayOutcome, ReplayError> {
    let journal_error = |source| ReplayError::Journal { dir: options.journal.clone(), source };
    let journal = Journal::open(&options.journal).map_err(journal_error)?;
    let (plan, mut way) = plan(&journal, options)?;
    refuse_own_files(&options.journal, &options.target)?;
    if options.dry_run {
        return Ok(ReplayOutcome { plan, stats: None, undefined_bytes: 0 });
    }
    let how = OpenTarget::New { force: options.force };
    let mut target = TargetWriter::open(&options.target, plan.volume_bytes, how)?;
    progress(ReplayProgress::Begins(&plan));
    let incomplete = |source: ApplyError| ReplayError::Incomplete { target: options.target.clone(), source };
    let stats = loop {
        let stats = apply(&journal, &mut target, &way, &mut |at| progress(ReplayProgress::Applies(at)));
        if stats.is_ok() || journal.is_current(&way).map_err(journal_error)? {
            break stats.map_err(incomplete)?;
        }
        // It was pruned meanwhile. All is written again, in another way.
        way = journal.way(Lsn::ZERO, plan.last_lsn).map_err(|error| incomplete(error.into()))?;
    };
    let undefined = stats.covered.gaps(ByteRange::new(0, plan.volume_bytes));
    if target.may_hold_old_bytes() {
        for range in &undefined {
            target.zero(*range, true).map_err(|e| incomplete(e.into()))?;
        }
    }
    progress(ReplayProgress::Syncs);
    target.sync().map_err(|e| incomplete(e.into()))?;
    let undefined_bytes = undefined.into_iter().map(ByteRange::len).sum();
    Ok(ReplayOutcome { plan, stats: Some(stats), undefined_bytes })
}

fn plan(journal: &Journal, options: &ReplayOptions) -> Result<(ReplayPlan, Way), ReplayError> {
    let journal_error = |source| ReplayError::Journal { dir: options.journal.clone(), source };
    let timeline = journal.timeline().map_err(journal_error)?;
    // Just before the process or file: what was submitted before its first change, and nothing later.
    let beginning = match &options.to {
        before @ (PointTarget::BeforeProcess(_) | PointTarget::BeforeFile(_)) => {
            Some(beginning(journal, before).map_err(|error| match error {
                BeginningError::Journal(source) => journal_error(source),
                BeginningError::Glob(error) => ReplayError::Glob(error),
                BeginningError::Resolve(error) => ReplayError::Resolve(error),
            })?)
        }
        _ => None,
    };
    let to = match &beginning {
        Some(beginning) => PointTarget::Time(Timestamp(beginning.changes.first.0.saturating_sub(1))),
        None => options.to.clone(),
    };
    let instant = match to {
        PointTarget::Time(time) => journal.last_instant(&timeline.stretches, time).map_err(journal_error)?,
        _ => None,
    };
    let mut point = resolve(&timeline, &to, instant, options.force)?;
    if point.time.is_none() {
        // Of a record that was folded nobody knows; it is refused below.
        point.time = journal.time_of(point.lsn).ok();
    }
    let way = journal.way(Lsn::ZERO, point.lsn).map_err(journal_error)?;
    let cost = journal.cost_of(&way).map_err(journal_error)?;
    let info = journal.info();
    let plan = ReplayPlan {
        volume: info.id,
        source: info.source.clone(),
        base_lsn: way.legs.first().filter(|leg| leg.is_fold()).map_or(Lsn::ZERO, |leg| leg.to),
        records: way.legs.iter().map(Leg::records).sum(),
        first_lsn: way.legs.last().filter(|leg| !leg.is_fold()).map_or(point.lsn, |leg| leg.after).next(),
        last_lsn: point.lsn,
        point,
        journal_bytes: cost.journal_bytes,
        write_bytes_max: cost.record_bytes,
        volume_bytes: info.size_bytes,
        target: options.target.clone(),
        before: beginning,
    };
    Ok((plan, way))
}

fn refuse_own_files(dir: &Path, target: &Path) -> Result<(), ReplayError> {
    let real = |path: &Path| -> io::Result<PathBuf> {
        match (path.canonicalize(), path.parent(), path.file_name()) {
            // Not there yet: where it would be.
            (Err(_), Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
                Ok(Path::new(".").canonicalize()?.join(name))
            }
            (Err(_), Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
            (found, ..) => found,
        }
    };
    if let (Ok(real_dir), Ok(real_target)) = (real(dir), real(target))
        && real_target.starts_with(&real_dir)
    {
        return Err(ReplayError::TargetInJournal { target: target.to_owned(), dir: dir.to_owned() });
    }
    // A checkpoint that cannot be read forbids nothing: the replica is then rebuilt by whoever keeps it.
    let replica = Checkpoint::read(dir).ok().flatten().map(|checkpoint| checkpoint.target_identity);
    if replica.is_some() && replica == TargetWriter::identity_of(target)? {
        return Err(ReplayError::TargetIsReplica { target: target.to_owned() });
    }
    Ok(())
}
