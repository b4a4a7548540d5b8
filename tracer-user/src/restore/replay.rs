use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::apply::{ApplyError, ApplyProgress, ApplyStats, ReplicaFiles, rebuild};
use crate::journal::{Journal, JournalError, Leg, Way};
use crate::model::{Lsn, PointTarget, VolumeId};
use crate::restore::{Beginning, FindError, ResolvedPoint, find_point};
use crate::target::{self, OpenTarget, TargetError, TargetWriter};

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
    /// Records on the way; where much was overwritten, not all of them are read.
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
    Point(#[from] FindError),
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
    let how = OpenTarget::New { force: options.force };
    if options.dry_run {
        target::look(&options.target, plan.volume_bytes, how)?;
        return Ok(ReplayOutcome { plan, stats: None, undefined_bytes: 0 });
    }
    let mut target = TargetWriter::open(&options.target, plan.volume_bytes, how)?;
    progress(ReplayProgress::Begins(&plan));
    let incomplete = |source: ApplyError| ReplayError::Incomplete { target: options.target.clone(), source };
    let (stats, undefined) = loop {
        let mut tell = |at| progress(ReplayProgress::Applies(at));
        let rebuilt = rebuild(&journal, &mut target, &way, &mut tell);
        if rebuilt.is_ok() || journal.is_current(&way).map_err(journal_error)? {
            break rebuilt.map_err(incomplete)?;
        }
        // It was pruned meanwhile. All is written again, in another way.
        way = journal.way(Lsn::ZERO, plan.last_lsn).map_err(|error| incomplete(error.into()))?;
    };
    if target.may_hold_old_bytes() {
        for range in undefined.iter() {
            target.zero(range, true).map_err(|e| incomplete(e.into()))?;
        }
    }
    progress(ReplayProgress::Syncs);
    target.sync().map_err(|e| incomplete(e.into()))?;
    Ok(ReplayOutcome { plan, stats: Some(stats), undefined_bytes: undefined.bytes() })
}

fn plan(journal: &Journal, options: &ReplayOptions) -> Result<(ReplayPlan, Way), ReplayError> {
    let journal_error = |source| ReplayError::Journal { dir: options.journal.clone(), source };
    let timeline = journal.timeline().map_err(journal_error)?;
    let (point, before) = find_point(journal, &timeline, &options.to, options.force)?;
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
        before,
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
    if let Some(identity) = TargetWriter::identity_of(target)?
        && ReplicaFiles::of_identity(dir, &identity).is_ok_and(|replica| replica.is_some())
    {
        return Err(ReplayError::TargetIsReplica { target: target.to_owned() });
    }
    Ok(())
}
