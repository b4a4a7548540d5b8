use crate::journal::{Journal, JournalError};
use crate::model::{PointTarget, Timeline};
use crate::restore::{ResolveError, ResolvedPoint, resolve};

/// [`resolve`] in a journal whose timeline this is.
///
/// # Errors
/// Outside, that the journal can't be read; inside, that there is no such point.
pub(super) fn find_point(
    journal: &Journal,
    timeline: &Timeline,
    to: &PointTarget,
    force: bool,
) -> Result<Result<ResolvedPoint, ResolveError>, JournalError> {
    let instant = match to {
        PointTarget::Time(time) => journal.last_instant(&timeline.stretches, *time)?,
        _ => None,
    };
    let found = resolve(timeline, to, instant, force);
    Ok(found.map(|point| match point.time {
        Some(_) => point,
        // Of a record that was folded nobody knows.
        None => ResolvedPoint { time: journal.time_of(point.lsn).ok(), ..point },
    }))
}
