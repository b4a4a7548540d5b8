use crate::journal::{Journal, JournalError};
use crate::model::{PointTarget, Timeline, Timestamp};
use crate::restore::{BadGlob, Beginning, ResolveError, ResolvedPoint, beginning, resolve};

/// Why a point was not found in a journal.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("the journal cannot be read")]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Glob(#[from] BadGlob),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

/// [`resolve`] in a journal whose timeline this is; and the change that the point is just before, if one is named so.
///
/// # Errors
/// There is no such point, or the journal can't be read.
pub fn find_point(
    journal: &Journal,
    timeline: &Timeline,
    to: &PointTarget,
    force: bool,
) -> Result<(ResolvedPoint, Option<Beginning>), FindError> {
    let before = to.is_before_something().then(|| beginning(journal, to)).transpose()?;
    // What was submitted before its first change, and nothing later.
    let to = match &before {
        Some(before) => PointTarget::Time(Timestamp(before.changes.first.0.saturating_sub(1))),
        None => to.clone(),
    };
    let instant = match &to {
        PointTarget::Time(time) => journal.last_instant(&timeline.stretches, *time)?,
        _ => None,
    };
    let found = resolve(timeline, &to, instant, force)?;
    let point = match found.time {
        Some(_) => found,
        // Of a record that was folded nobody knows.
        None => ResolvedPoint { time: journal.time_of(found.lsn).ok(), ..found },
    };
    Ok((point, before))
}
