use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::apply::{
    ApplyError, ApplyProgress, ApplyStats, Checkpoint, CheckpointError, Replica, ReplicaFiles,
};
use crate::journal::{Journal, JournalError, Leg};
use crate::model::{Lsn, MarkId, Point, PointTarget, Timeline, VolumeId};
use crate::restore::{Beginning, FindError, ResolvedPoint, find_point};
use crate::target::{TargetError, TargetWriter};

#[derive(Clone, Debug)]
pub struct RewindOptions {
    /// The replica: a raw image file or a block device.
    pub target: PathBuf,
    /// Directory of the journal.
    pub journal: PathBuf,
    pub to: PointTarget,
    /// Take a fuzzy point.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What a rewind does: with `dry_run` it is shown, otherwise carried out as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RewindPlan {
    pub volume: VolumeId,
    /// The device the journal is the history of, as it was named.
    pub source: String,
    pub target: PathBuf,
    pub volume_bytes: u64,
    /// The record that the replica is at.
    pub from_lsn: Lsn,
    /// The mark that is, if it is one.
    pub from_mark: Option<MarkId>,
    /// An apply or a rewind was interrupted: the replica may hold any of the records after `from_lsn` up to this one.
    pub begun_lsn: Option<Lsn>,
    pub point: ResolvedPoint,
    /// It lies before what the replica holds.
    pub back: bool,
    /// Records between the two, which are read; going back, more are that tell what stood there before.
    pub records: u64,
    /// Bytes of the journal's files that hold them, at most.
    pub journal_bytes: u64,
    /// Bytes that are written to the replica, at most; `None` for a journal whose segments do not all say that.
    pub write_bytes_max: Option<u64>,
    /// The change that the point is before, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Beginning>,
}

/// What a rewind did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewindOutcome {
    pub plan: RewindPlan,
    /// `None` for a dry run.
    pub stats: Option<ApplyStats>,
}

/// How far a rewind is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewindProgress<'a> {
    /// The plan is made and the replica open.
    Begins(&'a RewindPlan),
    Applies(ApplyProgress),
}

#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    #[error("cannot use the journal {}", dir.display())]
    Journal {
        dir: PathBuf,
        #[source]
        source: JournalError,
    },
    #[error(
        "an `afterwrite` is at work on the journal {}: `afterwrite status` shows it. Stop that `protect` first; started again \
         it brings the replica forward", dir.display()
    )]
    InUse { dir: PathBuf },
    #[error("cannot go to that point")]
    Point(#[from] FindError),
    #[error("the journal {} has no replica yet. `afterwrite replay` builds a point on a target of its own", dir.display())]
    NoReplica { dir: PathBuf },
    #[error("cannot look for the replicas of {}", dir.display())]
    Look {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "what the replica holds is not known; start `afterwrite protect` once, it builds the replica again"
    )]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "{} is not a replica that this journal keeps, which is {replicas}: name that one, or build the point on another target \
         with `afterwrite replay`", target.display()
    )]
    NotTheReplica { target: PathBuf, replicas: String },
    #[error(
        "the first copy of the volume is not finished, and the point lies within it: start `afterwrite protect` again, it \
         finishes the copy"
    )]
    Unfinished,
    #[error("cannot use the replica")]
    Target(#[from] TargetError),
    #[error("nothing was changed on the replica {}", target.display())]
    NotBegun {
        target: PathBuf,
        #[source]
        source: ApplyError,
    },
    #[error(
        "the rewind stopped: {} is at no point now. Do it again, to this point or another one, or start `afterwrite protect`, \
         which brings it to the last one", target.display()
    )]
    Incomplete {
        target: PathBuf,
        #[source]
        source: ApplyError,
    },
}

/// Brings a replica where it stands to another point of its journal, durably. The journal is only read; nobody writes to it
/// meanwhile.
///
/// # Errors
/// With `Incomplete` the replica may be at no point, and its checkpoint says so.
pub fn rewind(
    options: &RewindOptions,
    progress: &mut dyn FnMut(RewindProgress<'_>),
) -> Result<RewindOutcome, RewindError> {
    let dir = &options.journal;
    let journal_error = |source| match source {
        JournalError::Locked { dir } => RewindError::InUse { dir },
        source => RewindError::Journal { dir: dir.clone(), source },
    };
    let (journal, _lock) = Journal::open_at_rest(dir).map_err(journal_error)?;
    let (files, checkpoint) = replica_of(dir, &options.target, &journal)?;
    let timeline = journal.timeline().map_err(journal_error)?;
    let found = find_point(&journal, &timeline, &options.to, options.force)?;
    let plan = plan(&journal, &checkpoint, &timeline, found, &options.target)?;
    if options.dry_run {
        return Ok(RewindOutcome { plan, stats: None });
    }
    let not_begun = |source| RewindError::NotBegun { target: options.target.clone(), source };
    let (mut replica, _) =
        Replica::open(&files, &options.target, journal.info(), false).map_err(not_begun)?;
    progress(RewindProgress::Begins(&plan));
    let to = plan.point.lsn;
    let mark =
        timeline.points.binary_search_by_key(&to, |point| point.lsn).ok().map(|at| &timeline.points[at]);
    let mut tell = |at| progress(RewindProgress::Applies(at));
    match replica.go_to(&journal, to, mark, &mut tell) {
        Ok(stats) => Ok(RewindOutcome { plan, stats: Some(stats) }),
        Err(source) if checkpoint.applying.or(replica.checkpoint().applying).is_none() => {
            Err(not_begun(source))
        }
        Err(source) => Err(RewindError::Incomplete { target: options.target.clone(), source }),
    }
}

/// What is known of the replica, which has to be `target`.
fn replica_of(
    dir: &Path,
    target: &Path,
    journal: &Journal,
) -> Result<(ReplicaFiles, Checkpoint), RewindError> {
    let all = ReplicaFiles::all(dir).map_err(|source| RewindError::Look { dir: dir.to_owned(), source })?;
    if all.is_empty() {
        return Err(RewindError::NoReplica { dir: dir.to_owned() });
    }
    let Some(identity) = TargetWriter::identity_of(target)? else {
        return Err(TargetError::Missing { path: target.to_owned() }.into());
    };
    match ReplicaFiles::of_identity(dir, &identity)? {
        Some((files, checkpoint)) if checkpoint.volume == journal.info().id => Ok((files, checkpoint)),
        _ => {
            let known = all.iter().filter_map(|files| Checkpoint::read(files).ok().flatten());
            let replicas = known.map(|checkpoint| checkpoint.target_path).collect::<Vec<_>>().join(" or ");
            Err(RewindError::NotTheReplica { target: target.to_owned(), replicas })
        }
    }
}

fn plan(
    journal: &Journal,
    checkpoint: &Checkpoint,
    timeline: &Timeline,
    (point, before): (ResolvedPoint, Option<Beginning>),
    target: &Path,
) -> Result<RewindPlan, RewindError> {
    let not_begun = |source| RewindError::NotBegun { target: target.to_owned(), source };
    let begun = checkpoint.begun();
    if begun > timeline.last_lsn {
        return Err(not_begun(ApplyError::JournalLost { applied: begun, last: timeline.last_lsn }));
    }
    let first = timeline.points.iter().find(|point| point.class.restorable()).map(|point: &Point| point.lsn);
    if first.is_none_or(|first| begun < first && point.lsn < first) {
        return Err(RewindError::Unfinished);
    }
    let journal_error = |source: JournalError| not_begun(source.into());
    let from = checkpoint.applied;
    let back = point.lsn < begun;
    // Also whether there is a way to it at all.
    journal.way(Lsn::ZERO, point.lsn).map_err(journal_error)?;
    let way = match back {
        true => journal.way_over(from.min(point.lsn), begun),
        false => journal.way(from, point.lsn),
    };
    let way = way.map_err(journal_error)?;
    let cost = journal.cost_of(&way).map_err(journal_error)?;
    let info = journal.info();
    Ok(RewindPlan {
        volume: info.id,
        source: info.source.clone(),
        target: target.to_owned(),
        volume_bytes: info.size_bytes,
        from_lsn: from,
        from_mark: checkpoint.mark,
        begun_lsn: checkpoint.applying,
        point,
        back,
        records: way.legs.iter().map(Leg::records).sum(),
        journal_bytes: cost.journal_bytes,
        write_bytes_max: cost.record_bytes,
        before,
    })
}
